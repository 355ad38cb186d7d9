"""Claims, which are refunds and disputes: what goes back is a share of what was sold, and never more; by hand and by property."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    assert all(part.tax % 10_000 == 0 for part in parts), "tax is a whole cent"


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


def test_the_tax_of_a_part_is_the_nearest_cent() -> None:
    package = Whole(11_899, 99_990_000, 0, 19_000_000)  # $99.99 and 19 %
    assert share(package, 3_333) == Parts(28_010_000, 0, 5_320_000)  # of $33.33: 3333 * 1900 / 11899 = 532.2
    assert allocate(package, [refund(1, 3_333), refund(2, 3_333)])[1].tax == 5_320_000


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
