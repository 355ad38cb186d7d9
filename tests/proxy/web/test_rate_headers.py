"""A key's limits as OpenAI writes them."""

import time

import pytest

from billing.money.holds import Leads
from proxy.web import rate_headers as module
from proxy.web.rate_headers import KnownRates, rate_headers, span

MINUTE_US = 60_000_000


@pytest.mark.parametrize(
    ("milliseconds", "written"),
    [
        (0, "0s"),
        (1, "1ms"),
        (20, "20ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (8_640, "8.64s"),
        (59_001, "59.001s"),
        (60_000, "1m0s"),
        (72_172, "1m12.172s"),
        (360_000, "6m0s"),
    ],
)
def test_a_time_is_written_as_openai_does(milliseconds: int, written: str) -> None:
    assert span(milliseconds) == written


@pytest.mark.parametrize(
    ("limits", "leads", "expected"),
    [
        ((600, 0), Leads(), {"limit-requests": "600", "remaining-requests": "600", "reset-requests": "0s"}),
        ((2, 0), Leads(30_000_000), {"limit-requests": "2", "remaining-requests": "1", "reset-requests": "30s"}),
        ((2, 0), Leads(30_000_001), {"limit-requests": "2", "remaining-requests": "0", "reset-requests": "30.001s"}),
        (
            (7, 0),
            Leads(MINUTE_US // 7 * 7),
            {"limit-requests": "7", "remaining-requests": "0", "reset-requests": "1m0s"},
        ),
        ((0, 90_000), Leads(0, 20_000), {"limit-tokens": "90000", "remaining-tokens": "89970", "reset-tokens": "20ms"}),
        ((0, 100), Leads(0, 70_000_000), {"limit-tokens": "100", "remaining-tokens": "0", "reset-tokens": "1m10s"}),
        ((0, 0), Leads(5, 5), {}),
    ],
)
def test_what_is_left_is_what_the_bucket_still_takes(
    limits: tuple[int, int], leads: Leads, expected: dict[str, str]
) -> None:
    found = {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in rate_headers(*limits, leads)}
    assert found == expected


def test_what_the_store_told_is_carried_on_to_now_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(module, "KNOWN_KEYS", 2)
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    known = KnownRates()
    for key in ("a", "b", "c"):
        known.remember(key, Leads(2_000_000, 500_000))
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 1)
    assert [known.now(key) for key in ("a", "c", "d")] == [Leads(), Leads(1_000_000, 0), Leads()]
    known.give_back("c", 2_000_000)
    known.give_back("d", 1)
    assert [known.now("c"), known.now("d")] == [Leads(1_000_000, 0), Leads()]
