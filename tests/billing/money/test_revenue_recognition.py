"""Lots of credits: consumed first in, first out; exactly what was paid is recognised."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.money.errors import InvariantBroken
from billing.money.revenue_recognition import Lot, Span, position, recognised_of, shrink, withdraw_free


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


def test_revenue_is_rounded_to_the_nearest_and_half_of_one_up() -> None:
    third, half = Lot("a", 3, 1), Lot("b", 4, 2)
    assert [recognised_of(third, consumed) for consumed in range(4)] == [0, 0, 1, 1]
    assert [recognised_of(half, consumed) for consumed in range(5)] == [0, 1, 1, 2, 2]
    assert recognised_of(Lot("gone", 0, 0), 0) == recognised_of(Lot("refunded", 0, 5), 0) == 0
    assert recognised_of(Lot("free", 10, 0), 10) == 0


@pytest.mark.parametrize(("lot", "consumed"), [((10, 5), -1), ((10, 5), 11), ((10, -1), 5), ((-1, 5), 0)])
def test_what_no_lot_can_be_stops_by_name(lot: tuple[int, int], consumed: int) -> None:
    with pytest.raises(InvariantBroken, match=rf"^lot l1: {consumed} consumed of {lot[0]}$"):
        recognised_of(Lot("l1", *lot), consumed)


def test_a_part_by_hand_that_touches_a_lot_at_its_edge_is_none_of_it() -> None:
    lots = [Lot("a", 100, 100), Lot("b", 100, 300)]
    assert position(lots, 200, [Span(0, 100)]) == (300, 0, 0, 0, 100)
    assert position(lots, 200, [Span(100, 200)]) == (100, 0, 0, 0, 300)
    assert position(lots, 200, [Span(90, 110), Span(150, 160)]) == (400 - 10 - 30 - 30, 0, 0, 0, 70)
    assert position(lots, 120, [Span(110, 150)]) == (100 + 60 - 30, 240, 80, 0, 30), "what is consumed alone is taken"
    assert position(lots, 120, [Span(50, 50)]) == (160, 240, 80, 0, 0)


def test_a_lot_shrinks_and_grows_alone() -> None:
    lots = [Lot("a", 100, 50), Lot("b", 30, 20)]
    assert shrink(lots, "a", 40, 20) == [Lot("a", 60, 30), Lot("b", 30, 20)]
    assert shrink(shrink(lots, "b", 10, 5), "b", -10, -5) == lots
    assert shrink(lots, "c", 1, 1) == lots


def test_a_correction_takes_the_newest_free_credits_first_and_no_more_than_it_says() -> None:
    lots = [Lot("g", 100, 0), Lot("a", 200, 100), Lot("h", 30, 0)]
    assert withdraw_free(lots, 10) == ([Lot("g", 100, 0), Lot("a", 200, 100), Lot("h", 20, 0)], 0)
    assert withdraw_free(lots, 30) == ([Lot("g", 100, 0), Lot("a", 200, 100), Lot("h", 0, 0)], 0)
    assert withdraw_free(lots, 200) == ([Lot("g", 0, 0), Lot("a", 200, 100), Lot("h", 0, 0)], 70)
    assert withdraw_free(lots, 25, 310) == ([Lot("g", 100, 0), Lot("a", 200, 100), Lot("h", 10, 0)], 5)
    assert withdraw_free(lots, 0) == (lots, 0)
    assert withdraw_free([], 5) == ([], 5)
    cheap = [Lot("g", 100, 0), Lot("p", 10, 1)]
    assert withdraw_free(cheap, 5) == ([Lot("g", 95, 0), Lot("p", 10, 1)], 0), "a millicredit that was paid is paid"
    assert lots == [Lot("g", 100, 0), Lot("a", 200, 100), Lot("h", 30, 0)], "what is given in stays as it is"
