"""Times as they are read and written: ISO 8601, in the years that it can write."""

import pytest

from proxy.web.times import EARLIEST_MS, LATEST_MS, iso_time, read_time


@pytest.mark.parametrize(
    ("milliseconds", "written"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_795_000_000_123, "2026-11-18T11:06:40.123Z"),
        (LATEST_MS, "9999-12-31T23:59:59.999Z"),
        (EARLIEST_MS, "0001-01-01T00:00:00.000Z"),
    ],
)
def test_what_is_written_is_read(milliseconds: int, written: str) -> None:
    assert iso_time(milliseconds) == written
    assert read_time(written) == milliseconds


def test_a_row_from_before_the_bound_is_shown_at_the_calendars_end() -> None:
    assert iso_time(LATEST_MS + 50_400_000) == "9999-12-31T23:59:59.999Z"
    assert iso_time(EARLIEST_MS - 50_400_000) == "0001-01-01T00:00:00.000Z"
    for text in ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"):
        with pytest.raises(ValueError, match="year"):
            read_time(text)
