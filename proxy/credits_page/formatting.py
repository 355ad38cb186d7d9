"""Times, dollars and months as the Credits page writes them. Pure."""

from datetime import UTC, datetime

from proxy.web.times import iso_time

MOST_MONTHS = 36


def moment(at: int) -> dict[str, str]:
    """Write a time for a <time> element: ISO 8601, and UTC in words for browsers without the script."""
    iso = iso_time(at)
    return {"iso": iso, "text": f"{iso[:10]} {iso[11:16]} UTC"}


def dollars(amount: int) -> str:
    """Millicredits (micro-dollars) as dollars and the nearest cents: $12.97."""
    cents = (abs(amount) + 5_000) // 10_000
    return f"{'−' if amount < 0 else ''}${cents // 100:,}.{cents % 100:02}"


def months(since: int, now: int) -> list[dict[str, str]]:
    """List the months that have a statement, this one first (Unix milliseconds, UTC)."""
    first, date = iso_time(since)[:7], datetime.fromtimestamp(now / 1_000, UTC)
    found: list[dict[str, str]] = []
    year, month = date.year, date.month
    while len(found) < MOST_MONTHS and (code := f"{year:04}-{month:02}") >= first:
        found.append({"code": code, "text": f"{date.replace(year=year, month=month, day=1):%B %Y}"})
        year, month = (year, month - 1) if month > 1 else (year - 1, 12)
    return found
