"""Packages, states, splits, lots and signatures: the pure core, by hand and by property."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stripe import SignatureVerificationError, Webhook
from stripe._webhook import WebhookSignature

from billing.money.amounts import MoneyError
from billing.money.errors import InvariantBroken
from billing.money.postings import purchase_postings
from billing.money.revenue_recognition import Lot, Span, position, recognised_of, withdraw_free
from billing.payments.claims import (
    NOTHING,
    Claim,
    Parts,
    Whole,
    allocate,
    claim_postings,
    dispute_status,
    refund_status,
    share,
)
from billing.payments.purchase import NEXT, Payment, Sold, Transition, judge, may_become, offer
from billing.payments.stripe.signatures import BadSignature, sign, verify

SOLD = Sold("open", "usd", 999, False, "cus_1")
PAID = Payment("paid", "payment", "usd", 999, 999, 0, False, "cus_1")


@pytest.mark.parametrize(
    ("code", "usd", "bonus", "cents", "millicredits"),
    [
        ("starter", "9.99", "0", 999, 9_990_000),
        ("plus", "49.99", "5", 4_999, 52_489_500),
        ("pro", "99.99", "10", 9_999, 109_989_000),
    ],
)
def test_packages_are_exact_millicredits(code, usd, bonus, cents, millicredits) -> None:
    found = offer(code, usd, bonus)
    assert (found.price_cents, found.paid + found.bonus) == (cents, millicredits)
    assert found.paid == cents * 10_000


@pytest.mark.parametrize("usd", ["9.999", "0", "0.001"])
def test_a_price_is_whole_cents(usd) -> None:
    with pytest.raises(MoneyError):
        offer("odd", usd, "0")


def test_credited_is_final_and_a_late_payment_wins() -> None:
    assert NEXT["credited"] == frozenset()
    assert all(may_become(state, "credited") for state in NEXT if state not in ("credited", "dismissed"))
    assert NEXT["dismissed"] == frozenset()  # a person has seen to it
    assert not may_become("expired", "open")
    assert not may_become("processing", "open")
    assert not any(may_become(state, state) for state in NEXT)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("open", "open"),
        ("processing", "processing"),
        ("expired", "expired"),
        ("failed", "failed"),
        ("free", "review"),
        ("unknown", "review"),
    ],
)
def test_only_paid_is_credited(status, state) -> None:
    assert judge(SOLD, PAID._replace(status=status)).state == state
    assert judge(SOLD, PAID) == Transition("credited")


@pytest.mark.parametrize(
    "change",
    [
        {"subtotal_cents": 1, "total_cents": 1},
        {"currency": "jpy"},
        {"livemode": True},
        {"mode": "subscription"},
        {"total_cents": 500},
        {"customer_id": "cus_2"},
        {"tax_cents": -1, "total_cents": 998},
    ],
)
def test_what_was_not_sold_is_not_credited(change) -> None:
    verdict = judge(SOLD, PAID._replace(**change))
    assert verdict.state == "review"
    assert verdict.problem


def test_tax_comes_on_top() -> None:
    assert judge(SOLD, PAID._replace(tax_cents=190, total_cents=1_189)) == Transition("credited")


# -- what goes back -------------------------------------------------------------------------------------------------

PRO = Whole(9_999, 99_990_000, 9_999_000, 0)
wholes = st.builds(
    lambda price, tax, bonus: Whole(price + tax, price * 10_000, bonus, tax * 10_000),
    st.integers(1, 100_000),
    st.integers(0, 30_000),
    st.integers(0, 10**9),
)


def refund(number: int, cents: int, counts: bool = True) -> Claim:
    return Claim(f"re_{number}", "refund", cents, counts, lost=False)


@given(wholes, st.lists(st.integers(1, 40_000), min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_partial_refunds_of_any_split_sum_to_the_whole(whole, cents) -> None:
    cuts = sorted({min(cut, whole.total_cents) for cut in itertools.accumulate(cents)} | {whole.total_cents})
    pieces = [after - before for before, after in itertools.pairwise([0, *cuts])]
    parts = allocate(whole, [refund(number, piece) for number, piece in enumerate(pieces)])
    assert [sum(column) for column in zip(*parts, strict=True)] == [whole.paid, whole.bonus, whole.tax, 0]
    assert all(part.paid + part.tax == piece * 10_000 for part, piece in zip(parts, pieces, strict=True))
    assert all(min(part) >= 0 for part in parts)


@given(wholes, st.lists(st.tuples(st.integers(1, 200_000), st.booleans(), st.booleans()), max_size=8))
@settings(max_examples=300, deadline=None)
def test_never_more_is_taken_back_than_was_sold(whole, rows) -> None:
    claims = [
        Claim(str(n), "dispute" if d else "refund", cents, counts, lost=False)
        for n, (cents, counts, d) in enumerate(rows)
    ]
    parts = allocate(whole, claims)
    for column, most in ((0, whole.paid), (1, whole.bonus), (2, whole.tax)):
        assert 0 <= sum(part[column] for part in parts) <= most
    for claim, part in zip(claims, parts, strict=True):
        if claim.kind == "refund" and claim.counts:
            assert part.paid + part.tax + part.loss == claim.cents * 10_000  # exactly the cash that left
        if not claim.counts:
            assert part == NOTHING


def test_a_dispute_after_a_full_refund_takes_nothing_and_gets_its_share_when_the_refund_fails() -> None:
    both = [refund(1, 9_999), Claim("dp_1", "dispute", 9_999, True, lost=False)]
    assert allocate(PRO, both) == [Parts(99_990_000, 9_999_000), NOTHING]
    both[0] = both[0]._replace(counts=False)
    assert allocate(PRO, both) == [NOTHING, Parts(99_990_000, 9_999_000)]


def test_a_refund_posts_each_part_and_its_failure_posts_it_back() -> None:
    claim = refund(1, 5_000)
    parts = share(PRO, 5_000)
    rows = claim_postings(claim, parts, "a", 1, 7)
    assert [(r.debit, r.credit, r.amount, r.kind, r.reference_id) for r in rows] == [
        ("customer:a", "cash", 50_000_000, "refund", "re_1:1"),
        ("customer:a", "promo", 5_000_000, "refund_bonus", "re_1:1"),
    ]
    back = claim_postings(claim._replace(booked=parts), NOTHING, "a", 2, 8)
    assert [(r.debit, r.credit, r.amount) for r in back] == [
        ("cash", "customer:a", 50_000_000),
        ("promo", "customer:a", 5_000_000),
    ]
    assert claim_postings(claim._replace(booked=parts), parts, "a", 3, 9) == []


def test_a_lost_dispute_leaves_nothing_in_disputes_whatever_was_withdrawn() -> None:
    for withdrawn, expected in (
        (0, ("disputes", "cash")),
        (99_990_000, None),
        (200_000_000, ("platform_loss", "disputes")),
    ):
        claim = Claim("dp_1", "dispute", 9_999, True, lost=True, withdrawn=withdrawn)
        rows = claim_postings(claim, share(PRO, 9_999), "a", 1, 7)
        balance = sum(r.amount * ((r.credit == "disputes") - (r.debit == "disputes")) for r in rows) - withdrawn
        assert balance == 0
        cleared = [(r.debit, r.credit) for r in rows if r.kind in ("dispute_cleared", "dispute_loss")]
        assert cleared == ([expected] if expected else [])


def test_parts_that_do_not_sum_are_refused() -> None:
    with pytest.raises(InvariantBroken):
        share(Whole(100, 5, 0, 0), 1)
    with pytest.raises(InvariantBroken):
        purchase_postings("p", "a", -1, 0, 0, 1)


@pytest.mark.parametrize(
    ("status", "counts", "lost", "known"),
    [
        ("needs_response", True, False, True),
        ("under_review", True, False, True),
        ("warning_needs_response", True, False, True),
        ("warning_closed", False, False, True),
        ("won", False, False, True),
        ("lost", True, True, True),
        ("prevented", True, True, True),
        ("appeal_under_review", True, False, True),
        ("something_new", True, False, False),
    ],
)
def test_dispute_statuses(status, counts, lost, known) -> None:
    assert dispute_status(status) == (counts, lost, known)


def test_refund_statuses() -> None:
    assert [refund_status(s).counts for s in ("pending", "requires_action", "succeeded", "failed", "canceled")] == [
        True
    ] * 3 + [False] * 2
    assert refund_status("new").known is False


# -- revenue --------------------------------------------------------------------------------------------------------


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


# -- signatures -----------------------------------------------------------------------------------------------------

BODY, SECRET, NOW = b'{"id": "evt_1", "object": "event"}', "whsec_one", 1_795_000_000


def test_ours_and_the_librarys_signatures_are_the_same() -> None:
    header = WebhookSignature.generate_signature_header(BODY.decode(), SECRET, NOW)
    assert sign(BODY, SECRET, NOW).split(",") == header.split(",")
    verify(BODY, header, [SECRET], NOW, 300)
    import time

    assert Webhook.construct_event(BODY, sign(BODY, SECRET, int(time.time())), SECRET)["id"] == "evt_1"
    with pytest.raises(SignatureVerificationError):
        Webhook.construct_event(BODY + b" ", sign(BODY, SECRET, int(time.time())), SECRET)


@pytest.mark.parametrize(
    ("header", "secrets", "now"),
    [
        (sign(BODY, "whsec_other", NOW), [SECRET], NOW),
        (sign(BODY + b" ", SECRET, NOW), [SECRET], NOW),
        (sign(BODY, SECRET, NOW), [SECRET], NOW + 301),
        (sign(BODY, SECRET, NOW), [SECRET], NOW - 301),
        (sign(BODY, SECRET, NOW), [], NOW),
        (sign(BODY, "", NOW), [""], NOW),
        ("", [SECRET], NOW),
        (f"t={NOW}", [SECRET], NOW),
        (f"v1={'0' * 64}", [SECRET], NOW),
        (f"t={NOW},v1=é", [SECRET], NOW),
        (f"t=x,{sign(BODY, SECRET, NOW)}", [SECRET], NOW),
        (sign(BODY, SECRET, NOW).replace("v1=", "v0="), [SECRET], NOW),
        (sign(BODY, SECRET, NOW) + ",v1=" + "0" * 3_000, [SECRET], NOW),
    ],
)
def test_a_wrong_signature_is_refused(header, secrets, now) -> None:
    with pytest.raises(BadSignature):
        verify(BODY, header, secrets, now, 300)


def test_two_secrets_and_two_signatures_overlap_in_a_rotation() -> None:
    verify(BODY, sign(BODY, "whsec_old", NOW), ["whsec_new", "whsec_old"], NOW, 300)
    both = sign(BODY, "whsec_gone", NOW) + "," + sign(BODY, SECRET, NOW).split(",")[1]
    verify(BODY, both, [SECRET], NOW, 300)
