"""Spend periods of API keys. All in UTC; a period has a name and a start."""

from datetime import UTC, date, datetime, timedelta
from typing import Literal, get_args

Period = Literal["day", "week", "month", "total"]
PERIODS: tuple[str, ...] = get_args(Period)


def period_name(period: str, now_ms: int) -> str:
    """Return the running period's name: "2026-11-23", "2026-W48", "2026-11", or "total"."""
    today = datetime.fromtimestamp(now_ms // 1000, UTC).date()
    if period == "day":
        return today.isoformat()
    if period == "week":
        year, week, _ = today.isocalendar()
        return f"{year}-W{week:02d}"
    if period == "month":
        return f"{today:%Y-%m}"
    return "total"


def period_of(name: str) -> Period:
    """Return which kind of period has this name."""
    if name == "total":
        return "total"
    if "W" in name:
        return "week"
    return "month" if len(name) == len("2026-11") else "day"


def period_start_ms(name: str) -> int:
    """Return when the named period began, in Unix milliseconds ("total": 0)."""
    if name == "total":
        return 0
    if "W" in name:
        first = date.fromisocalendar(int(name[:4]), int(name[6:]), 1)
    elif len(name) == len("2026-11"):
        first = date.fromisoformat(name + "-01")
    else:
        first = date.fromisoformat(name)
    epoch = datetime(first.year, first.month, first.day, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return epoch // timedelta(milliseconds=1)


def period_end_ms(period: str, now_ms: int) -> int | None:
    """Return when the running period ends, in Unix milliseconds ("total": never, None)."""
    return named_period_end_ms(period_name(period, now_ms))


def named_period_end_ms(name: str) -> int | None:
    """Return when the named period ends, in Unix milliseconds ("total": never, None)."""
    if name == "total":
        return None
    start = datetime.fromtimestamp(period_start_ms(name) // 1000, UTC)
    is_month = len(name) == len("2026-11")
    following = start + timedelta(days=7 if "W" in name else 32 if is_month else 1)
    if is_month:
        following = following.replace(day=1)
    return int(following.timestamp()) * 1_000
