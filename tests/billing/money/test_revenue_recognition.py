"""Lots of credits: consumed first in, first out; exactly what was paid is recognised."""

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.money.revenue_recognition import Lot, Span, position, recognised_of, withdraw_free


@given(st.integers(0, 10**9), st.integers(1, 2 * 10**9), st.lists(st.integers(0, 10**8), max_size=10))
@settings(max_examples=300, deadline=None)
def test_an_exhausted_lot_recognises_exactly_what_was_paid(paid, granted, steps) -> None:
    lot, consumed, total = Lot("l", granted, paid), 0, 0
    for step in [*steps, granted]:
        after = min(granted, consumed + step)
        total += recognised_of(lot, after) - recognised_of(lot, consumed)
        consumed = after
    assert total == paid


def test_bonus_credits_do_not_over_recognise() -> None:
    pro = Lot("p", 109_989_000, 99_990_000)
    assert recognised_of(pro, 50_000_000) < 50_000_000
    assert position([pro], 109_989_000) == (99_990_000, 0, 0, 0, 0)


def test_lots_are_consumed_first_in_first_out_and_what_none_covers_is_overdrawn() -> None:
    lots = [Lot("free", 100, 0), Lot("a", 200, 100), Lot("b", 50, 50)]
    assert position(lots, 150) == (25, 125, 200, 0, 0)
    assert position(lots, 400) == (150, 0, 0, 50, 0)


def test_what_was_taken_by_hand_is_told_apart_at_the_cost_of_the_lots_it_came_from() -> None:
    lots = [Lot("free", 100, 0), Lot("a", 200, 100), Lot("b", 50, 50)]
    assert position(lots, 150, [Span(0, 150)]) == (0, 125, 200, 0, 25)
    assert position(lots, 320, [Span(290, 310)]) == (20 * 1 + 95 - 10, 30, 30, 0, 5 + 10)
    assert position(lots, 400, [Span(340, 400)]) == (140, 0, 0, 50, 10)
    odd = [Lot("a", 3, 1)]  # rounded as usage is: all parts together are what was paid
    assert sum(position(odd, 3, [Span(start, start + 1)]).adjusted for start in range(3)) == 1


def test_a_correction_takes_free_credits_first() -> None:
    lots, rest = withdraw_free([Lot("g", 100, 0), Lot("a", 200, 100), Lot("h", 30, 0)], 50)
    assert ([lot.granted for lot in lots], rest) == ([80, 200, 0], 0)
    assert withdraw_free([Lot("a", 200, 100)], 50)[1] == 50
    half = [Lot("g", 100, 0), Lot("h", 30, 0)]  # 60 of the first are used: 40 and 30 are there to be taken
    assert withdraw_free(half, 100, 60) == ([Lot("g", 60, 0), Lot("h", 0, 0)], 30)
    assert withdraw_free(half, 100, 500) == (half, 100)
