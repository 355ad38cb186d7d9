"""Holds: the limits of a key."""

import pytest

from billing.money.amounts import Millicredits
from billing.money.buckets import BUCKETS, SLOTS, bucket_of, slot_of_bucket
from billing.money.holds import KEPT_SECONDS, MINUTE_US, NO_LEADS, Budget, Entry, Held, KeyLimits, Leads, Refused


@pytest.mark.parametrize(
    "limits",
    [
        KeyLimits(requests_per_minute=1),
        KeyLimits(tokens_per_minute=1),
        KeyLimits(concurrency=1),
        KeyLimits(budgets=(Budget("key:k", "total", Millicredits(1)),)),
    ],
)
def test_a_key_is_limited_by_any_one_of_its_limits(limits: KeyLimits) -> None:
    assert limits.any is True


def test_a_key_without_limits_is_not_limited_and_does_not_pass() -> None:
    assert KeyLimits().any is False
    assert KeyLimits(passing=True).any is False
    assert (KeyLimits().passing, Leads().requests_us, Leads().tokens_us) == (False, 0, 0)


def test_what_is_not_said_of_a_hold_is_nothing() -> None:
    assert Budget("key:k", "2026-11", Millicredits(5)) == ("key:k", "2026-11", 5, None, "")
    assert KeyLimits() == (0, 0, 0, (), False)
    assert Leads(0, 0) == NO_LEADS
    assert Held(1, 2) == Held(1, 2, Leads(0, 0))
    assert Refused("balance", 1, 2) == Refused("balance", 1, 2, 0, 0, Leads(0, 0), 0)
    assert Entry("1-0", 3, 4, b"{}") == ("1-0", 3, 4, b"{}", 0, "")


def test_a_minute_has_60_million_microseconds_and_counts_are_kept_for_a_week() -> None:
    assert (MINUTE_US, KEPT_SECONDS) == (60 * 1_000 * 1_000, 7 * 24 * 60 * 60)


def test_the_bucket_of_an_account_never_moves() -> None:
    """CRC-32 as zlib has it of "123456789" is 0xCBF43926, its published check value; the last digit names the bucket."""
    assert BUCKETS == 16
    assert bucket_of("123456789") == 6
    assert bucket_of("ü") == 5  # its UTF-8, C3 BC, has CRC-32 0x63D969D5


def crc16(text: str) -> int:
    """CRC-16 as Redis Cluster's specification has it, bit by bit: polynomial 0x1021, from 0."""
    found = 0
    for byte in text.encode():
        found ^= byte << 8
        for _ in range(8):
            found = (found << 1 ^ (0x1021 if found & 0x8000 else 0)) & 0xFFFF
    return found


def test_the_slot_of_a_bucket_is_that_of_its_tag() -> None:
    assert crc16("123456789") == 0x31C3, "the specification's own check value"
    assert SLOTS == 2**14
    assert [slot_of_bucket(bucket) for bucket in range(BUCKETS)] == [crc16(f"b{one}") % 2**14 for one in range(BUCKETS)]
