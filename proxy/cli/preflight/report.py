"""Report of checks: as JSON, and as a table for people."""

from collections.abc import Sequence
from typing import Any

from config.errors import ConfigError
from proxy.cli.preflight.site import Check


def as_result(checks: Sequence[Check]) -> tuple[dict[str, Any], str, int]:
    """Return JSON object, table, exit code: 0 unless something failed."""
    counts = {state: len([check for check in checks if check.state == state]) for state in ("PASS", "WARN", "FAIL")}
    rows = [check._asdict() for check in checks]
    good = not counts["FAIL"]
    return {"ok": good, "counts": counts, "checks": rows}, _table([*checks], counts), 0 if good else 1


def _table(checks: Sequence[Check], counts: dict[str, int]) -> str:
    """Write one line a check, its fix on a line of its own."""
    width = max(len(f"{check.area} {check.name}") for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state}  {f'{check.area} {check.name}':<{width}}  {check.found}")
        if check.fix:
            lines.append(f"      {'':<{width}}  → {check.fix}")
    verdict = (
        "Nothing stands in the way." if not counts["FAIL"] else f"{counts['FAIL']} to put right before going live."
    )
    return "\n".join(
        [*lines, "", f"{counts['PASS']} pass, {counts['WARN']} to look at, {counts['FAIL']} fail. {verdict}"]
    )


def broken(error: ConfigError) -> Check:
    """Row of a configuration that cannot be used."""
    place = error.where if error.line is None else f"{error.where}:{error.line}"
    return Check("config", "valid", "FAIL", f"{place}: {error.key} {error.reason}", error.fix)
