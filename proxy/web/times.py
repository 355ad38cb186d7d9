"""Times as ISO 8601 in UTC."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST_MS, LATEST_MS = -62_135_596_800_000, 253_402_300_799_999
"""First and last moment that have a name in ISO 8601: the years 1 to 9999 in UTC, in Unix milliseconds."""


def iso_time(milliseconds: int) -> str:
    """Unix milliseconds as ISO 8601 in UTC.

    Beyond the years 1 to 9999, which once could be stored, it is their end.
    """
    named = min(max(milliseconds, EARLIEST_MS), LATEST_MS)
    return (EPOCH + timedelta(milliseconds=named)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_time(text: str) -> int:
    """Read a time in ISO 8601 (UTC unless it says otherwise) as Unix milliseconds.

    Raises ValueError, also beyond the years 1 to 9999 in UTC.
    """
    moment = datetime.fromisoformat(text)
    found = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    if not EARLIEST_MS <= found <= LATEST_MS:
        raise ValueError("in UTC this is no year from 1 to 9999")
    return found
