"""The rollout: a stable share of accounts, lists beside it, and nobody moved out by a greater percent."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.rollout import is_in, position
from config.settings import Rollout

ACCOUNTS = [f"acct_{number:024x}" for number in range(20_000)]


@given(st.text(min_size=1, max_size=40), st.integers(0, 100), st.integers(0, 100))
@settings(max_examples=300)
@pytest.mark.slow
def test_a_greater_percent_moves_nobody_out(account: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert is_in(Rollout(percent=high), account) or not is_in(Rollout(percent=low), account)


def test_5_25_100_let_in_as_many_as_they_say_and_each_keeps_the_ones_before() -> None:
    before: set[str] = set()
    for percent in (5, 25, 100):
        inside = {account for account in ACCOUNTS if is_in(Rollout(percent=percent), account)}
        assert before <= inside
        assert abs(len(inside) / len(ACCOUNTS) - percent / 100) < 0.01
        before = inside
    assert not [account for account in ACCOUNTS if is_in(Rollout(percent=0), account)]


def test_the_place_of_an_account_never_changes() -> None:
    # a change of the hash would move accounts out: these are what the first version computed
    assert [position(account) for account in ("acct_1", "acct_2", "acct_3")] == [4992, 5671, 456]


def test_lists_come_before_the_share() -> None:
    rollout = Rollout(percent=0, include=("a",), exclude=("b",))
    assert is_in(rollout, "a")
    assert not is_in(msgspec.structs.replace(rollout, percent=100), "b")
    assert not is_in(Rollout(percent=100, include=("a",), exclude=("a",)), "a")
