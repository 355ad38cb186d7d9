"""Preflight's check of the clocks: those of other machines against ours."""

import time
from email.utils import parsedate_to_datetime

from proxy.cli.preflight.site import Check, Offset, Site

MOST_CLOCK_SECONDS = 2.0


def add_clock(site: Site, clock: str, date: str, sent: float) -> None:
    """Compare an answer's Date, which has whole seconds, with the middle of the call."""
    try:
        theirs = parsedate_to_datetime(date).timestamp() + 0.5
    except (TypeError, ValueError):
        return
    site.clocks.append(Offset(clock, theirs - (sent + time.time()) / 2))


def clock_checks(site: Site) -> list[Check]:
    """Check that every clock that was heard agrees with ours."""
    if not site.clocks:
        return [Check("clocks", "offset", "WARN", "no other clock was heard", "look at the checks that failed above")]
    checks = []
    for clock, seconds in site.clocks:
        far = abs(seconds) > MOST_CLOCK_SECONDS
        fix = (
            "run chrony or systemd-timesyncd on both machines; signatures, holds and days depend on the time"
            if far
            else ""
        )
        checks.append(Check("clocks", clock, "FAIL" if far else "PASS", f"{seconds:+.1f} s from ours", fix))
    return checks
