"""Spend periods: names, starts and ends, in UTC."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from billing.money.spend_periods import (
    PERIODS,
    named_period_end_ms,
    period_end_ms,
    period_name,
    period_of,
    period_start_ms,
)


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000


@pytest.mark.parametrize(
    ("period", "now", "name", "start", "end"),
    [
        ("day", "2026-12-31T23:59:59", "2026-12-31", "2026-12-31", "2027-01-01"),
        ("day", "2028-02-29T00:00:00", "2028-02-29", "2028-02-29", "2028-03-01"),
        ("week", "2027-01-03T12:00:00", "2026-W53", "2026-12-28", "2027-01-04"),
        ("week", "2026-11-23T00:00:00", "2026-W48", "2026-11-23", "2026-11-30"),
        ("month", "2026-12-01T00:00:00", "2026-12", "2026-12-01", "2027-01-01"),
        ("month", "2028-02-29T23:00:00", "2028-02", "2028-02-01", "2028-03-01"),
        ("month", "2026-01-31T00:00:00", "2026-01", "2026-01-01", "2026-02-01"),
    ],
)
def test_a_period_has_a_name_a_start_and_an_end(period: str, now: str, name: str, start: str, end: str) -> None:
    assert period_name(period, ms(now)) == name
    assert period_start_ms(name) == ms(start)
    assert period_end_ms(period, ms(now)) == ms(end)


def test_a_total_never_ends() -> None:
    assert (period_name("total", ms("2026-11-23")), period_start_ms("total"), period_end_ms("total", 0)) == (
        "total",
        0,
        None,
    )


@pytest.mark.parametrize(
    ("name", "period", "start", "end"),
    [
        ("2026-11-23", "day", "2026-11-23", "2026-11-24"),
        ("2026-W48", "week", "2026-11-23", "2026-11-30"),
        ("2026-11", "month", "2026-11-01", "2026-12-01"),
        ("1970-01-01", "day", "1970-01-01", "1970-01-02"),
    ],
)
def test_a_name_says_which_period_it_is_and_when(name: str, period: str, start: str, end: str) -> None:
    assert (period_of(name), period_start_ms(name), named_period_end_ms(name)) == (period, ms(start), ms(end))


def test_the_names_of_periods() -> None:
    assert PERIODS == ("day", "week", "month", "total")
    assert (period_of("total"), named_period_end_ms("total")) == ("total", None)


def test_a_period_begins_with_its_first_millisecond() -> None:
    midnight = ms("2026-11-24")
    assert [period_name("day", midnight + plus) for plus in (-1, 0)] == ["2026-11-23", "2026-11-24"]


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_periods_are_in_utc_wherever_the_machine_stands() -> None:
    now = ms("2026-11-30T20:00:00")  # the next day, week and month in Tokyo
    assert [period_name(period, now) for period in PERIODS] == ["2026-11-30", "2026-W49", "2026-11", "total"]
    assert named_period_end_ms("2026-11") == ms("2026-12-01")
    assert named_period_end_ms("2026-11-30") == ms("2026-12-01")


def test_times_are_integers() -> None:
    assert {type(period_start_ms(name)) for name in ("2026-11-30", "2026-W49", "2026-11", "total")} == {int}
    assert type(named_period_end_ms("2026-11")) is int
