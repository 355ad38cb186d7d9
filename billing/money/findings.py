"""Findings of checks. Values only."""

from collections.abc import Iterable
from typing import NamedTuple


class Finding(NamedTuple):
    """One disagreement, in millicredits unless the check's name says otherwise.

    `unit`: how many millicredits one of `expected` and `found` is; 0 where they are no money, or money that another
    finding has in it already.
    """

    check: str
    subject: str
    expected: int
    found: int
    unit: int = 1

    def __str__(self) -> str:
        """For people."""
        difference = self.found - self.expected
        return f"{self.check}: {self.subject}: expected {self.expected}, found {self.found} (difference {difference})"


def mismatch(findings: Iterable[Finding]) -> int:
    """Sum the millicredits in dispute."""
    return sum(abs(finding.found - finding.expected) * finding.unit for finding in findings)
