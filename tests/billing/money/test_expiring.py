"""What expires first is spent first, against a model that counts single millicredits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.money.credits.expiring import ExpiringLot, mark_of, may_expire, spend, within
from billing.money.errors import InvariantBroken

LOTS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)), max_size=6).map(
    lambda found: [ExpiringLot(f"lot{number}", *one) for number, one in enumerate(found)]
)


def coins(lots: list[ExpiringLot]) -> list[str]:
    """Every millicredit by the name of its lot, in the order in which they are to be spent."""
    ordered = sorted(enumerate(lots), key=lambda one: (one[1].expires_at, one[0]))
    return [lot.lot_id for _, lot in ordered for _ in range(lot.remaining)]


@given(LOTS, st.integers(0, 250))
def test_what_expires_first_is_spent_first(lots: list[ExpiringLot], amount: int) -> None:
    after, rest = spend(lots, amount)
    assert coins(after) == coins(lots)[amount:]
    assert rest == max(0, amount - len(coins(lots)))
    assert [lot.lot_id for lot in after] == [lot.lot_id for lot in lots]


@given(LOTS, st.integers(-50, 250))
def test_no_more_is_left_of_lots_than_there_is_in_the_balance(lots: list[ExpiringLot], balance: int) -> None:
    left = coins(within(lots, balance))
    assert len(left) == min(len(coins(lots)), max(0, balance))
    assert left == coins(lots)[len(coins(lots)) - len(left) :]


@given(LOTS, st.integers(0, 250))
def test_what_is_promised_to_others_does_not_expire(lots: list[ExpiringLot], promised: int) -> None:
    for lot in lots:
        assert may_expire(lots, lot.lot_id, promised) == coins(lots)[promised:].count(lot.lot_id)
    assert may_expire(lots, "none of them", promised) == 0


def test_nothing_negative_is_spent() -> None:
    with pytest.raises(InvariantBroken):
        spend([], -1)


def test_the_mark_of_a_lot_is_half_of_its_names_sha_256() -> None:
    """Of "abc": the first example of FIPS 180."""
    assert mark_of("abc") == "exp_ba7816bf8f01cfea414140de5dae2223"
