"""Price plans in memory: which version an account's requests are priced by at a time. No I/O, no clock."""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from billing.money.catalogue.price_plan import PlanPrices


class PlanVersion(NamedTuple):
    """A version of a plan; applies from `starts_at` until `ends_at` (Unix milliseconds; None: for good)."""

    row_id: int
    plan_id: str
    version: int
    starts_at: int
    ends_at: int | None
    prices: PlanPrices


class Assignment(NamedTuple):
    """A plan given to an account (None: everyone's prices), for the same kind of time."""

    row_id: int
    account_id: str
    plan_id: str | None
    starts_at: int
    ends_at: int | None


Dated = TypeVar("Dated", PlanVersion, Assignment)


class PlansInForce:
    """Everything that was read so far. `by_account` is empty where nobody has a plan."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.by_account: dict[str, list[Assignment]] = {}
        self._versions: dict[str, list[PlanVersion]] = {}
        self.version_row = self.assignment_row = 0
        """Rows that were read last."""

    def take(self, versions: Iterable[PlanVersion], assignments: Iterable[Assignment]) -> None:
        """Take rows that are new, in their order."""
        for version in versions:
            self._versions.setdefault(version.plan_id, []).append(version)
            self.version_row = version.row_id
        for one in assignments:
            self.by_account.setdefault(one.account_id, []).append(one)
            self.assignment_row = one.row_id

    def assignment(self, account_id: str, at_ms: int) -> Assignment | None:
        """Return what the account is assigned to at a time."""
        return _applies(self.by_account.get(account_id, ()), at_ms)

    def version(self, plan_id: str, at_ms: int) -> PlanVersion | None:
        """Return the version of a plan that applies at a time; None: the plan has none then."""
        return _applies(self._versions.get(plan_id, ()), at_ms)

    def prices_for(self, account_id: str, at_ms: int) -> PlanPrices | None:
        """Return how requests of the account that begin at a time are priced; None: as everyone's."""
        given = self.assignment(account_id, at_ms)
        if given is None or given.plan_id is None:
            return None
        version = self.version(given.plan_id, at_ms)
        return None if version is None else version.prices


def _applies(rows: "Iterable[Dated]", at_ms: int) -> "Dated | None":
    """Return of those that apply at a time the one made last."""
    found = None
    for row in rows:
        if row.starts_at <= at_ms and (row.ends_at is None or at_ms < row.ends_at):
            found = row
    return found
