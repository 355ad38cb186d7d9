"""Claims, which are refunds and disputes: what goes back is a share of what was sold, and never more; by hand and by property."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.money.errors import InvariantBroken
from billing.money.postings import Posting
from billing.payments.claims import (
    NOTHING,
    Claim,
    Parts,
    Whole,
    allocate,
    cents_within,
    claim_postings,
    clearing,
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


TAXED = Whole(119, 1_000_000, 100_000, 190_000)
"""$1.19: a dollar, ten per cent of it as a bonus, and 19 % tax."""


def refund(number: int, cents: int, counts: bool = True) -> Claim:
    return Claim(f"re_{number}", "refund", cents, counts, lost=False)


def dispute(cents: int, **said: int) -> Claim:
    return Claim("dp_1", "dispute", cents, True, **{"lost": False, **said})  # type: ignore[arg-type]


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
        ("warning_under_review", True, False, True),
        ("charge_refunded", False, False, True),
        ("appeal", True, False, False),
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
    for status in ("pending", "requires_action", "succeeded"):
        assert refund_status(status) == (True, False, True)
    assert refund_status("canceled") == (False, False, True)
    assert refund_status("new") == (True, False, False)
    assert refund_status("failed") == (False, False, True)


@pytest.mark.parametrize(
    ("cents", "parts"),
    [
        # tax of c cents is 19 c / 119, to the nearest cent; 840 is the bonus of one, rounded down
        (0, NOTHING),
        (-5, NOTHING),
        (1, Parts(10_000, 840, 0)),
        (3, Parts(30_000, 2_521, 0)),
        (4, Parts(30_000, 3_361, 10_000)),
        (118, Parts(990_000, 99_159, 190_000)),
        (119, Parts(1_000_000, 100_000, 190_000)),
        (500, Parts(1_000_000, 100_000, 190_000)),
    ],
)
def test_the_share_of_so_many_cents_by_hand(cents: int, parts: Parts) -> None:
    assert share(TAXED, cents) == parts


def test_a_share_is_whole_however_much_was_sold() -> None:
    """Beyond 2**53 a float would be off by cents, and below it a float all the same."""
    cents = 2**53 + 1
    large = Whole(2 * cents, cents * 10_000, 0, cents * 10_000)
    assert share(large, 2 * cents) == Parts(cents * 10_000, 0, cents * 10_000)
    assert {type(part) for part in share(TAXED, 3)} == {int}


def test_half_a_cent_of_tax_is_a_cent() -> None:
    assert share(Whole(4, 20_000, 0, 20_000), 1) == Parts(0, 0, 10_000)
    assert share(Whole(1, 10_000, 7, 0), 1) == Parts(10_000, 7, 0), "one cent is a purchase"


def test_what_expired_of_a_bonus_is_not_taken_once_more() -> None:
    expired = Whole(100, 1_000_000, 500, 0, expired=400)
    assert [share(expired, cents).bonus for cents in (10, 20, 21, 100)] == [50, 100, 100, 100]


@pytest.mark.parametrize(
    "wrong",
    [
        Whole(0, 0, 0, 0),
        Whole(-1, -10_000, 0, 0),
        Whole(100, 999_999, 0, 0),
        Whole(100, 1_000_000, 0, 10_000),
        Whole(100, 990_001, 0, 9_999),
    ],
)
def test_a_purchase_whose_parts_do_not_sum_in_cents_stops(wrong: Whole) -> None:
    with pytest.raises(InvariantBroken, match=r"^the parts of a purchase do not sum to what was paid$"):
        share(wrong, 1)


@pytest.mark.parametrize(
    ("before", "left", "cents"),
    [
        # tax is no credit: three cents are 30,000 and 2,521 of the bonus, four 30,000 and 3,361
        (0, -1, 0),
        (0, 0, 0),
        (0, 10_839, 0),
        (0, 10_840, 1),
        (0, 32_520, 2),
        (0, 33_360, 3),
        (0, 33_361, 4),
        (0, 10**9, 119),
        (0, 1_100_000, 119),
        (0, 1_099_999, 118),
        (100, 10**9, 19),
        (118, 0, 0),
        (118, 10_841, 1),
        (118, 10_840, 0),
        (119, 10**9, 0),
        (200, 10**9, 0),
    ],
)
def test_the_most_cents_that_some_credits_allow_by_hand(before: int, left: int, cents: int) -> None:
    assert cents_within(TAXED, before, left) == cents


def test_claims_take_in_the_order_of_their_arrival_and_only_those_that_count() -> None:
    claims = [refund(1, 60), refund(2, 30, counts=False), dispute(50), refund(3, 40)]
    # 60 cents: 10 of tax; 110: 18; the last 9 are all that is left, and 31 cents more went out than were sold
    assert allocate(TAXED, claims) == [
        Parts(500_000, 50_420, 100_000),
        NOTHING,
        Parts(420_000, 42_016, 80_000),
        Parts(80_000, 7_564, 10_000, 310_000),
    ]
    assert allocate(TAXED, [dispute(200)]) == [Parts(1_000_000, 100_000, 190_000, 0)], (
        "a dispute's excess is no loss yet"
    )
    assert allocate(TAXED, []) == []


def rows_of(postings: list[Posting]) -> list[tuple[str, str, int, str]]:
    return [(row.debit, row.credit, row.amount, row.kind) for row in postings]


def test_all_parts_of_a_refund_and_of_a_dispute_are_posted_by_name() -> None:
    parts = Parts(500, 40, 90, 7)
    rows = claim_postings(refund(1, 5), parts, "a", 3, 1_796)
    assert rows_of(rows) == [
        ("customer:a", "cash", 500, "refund"),
        ("customer:a", "promo", 40, "refund_bonus"),
        ("payable:tax", "cash", 90, "refund_tax"),
        ("platform_loss", "cash", 7, "refund_loss"),
    ]
    assert {row[5:8] for row in rows} == {("re_1:3", 1_796, "stripe")}
    assert {row.reference_type for row in rows} == {"refund"}
    disputed = claim_postings(dispute(5, withdrawn=600), Parts(500, 40, 90), "a", 1, 7)
    assert rows_of(disputed) == [
        ("customer:a", "disputes", 500, "dispute"),
        ("customer:a", "promo", 40, "dispute_bonus"),
        ("payable:tax", "disputes", 90, "dispute_tax"),
    ]
    assert {(row.reference_type, row.reference_id) for row in disputed} == {("dispute", "dp_1:1")}


def test_only_what_changed_since_is_posted() -> None:
    before = Parts(500, 40, 90, 7)
    rows = claim_postings(refund(1, 5)._replace(booked=before), Parts(450, 40, 95, 0), "a", 2, 7)
    assert rows_of(rows) == [
        ("cash", "customer:a", 50, "refund"),
        ("payable:tax", "cash", 5, "refund_tax"),
        ("cash", "platform_loss", 7, "refund_loss"),
    ]


@pytest.mark.parametrize(
    ("withdrawn", "cleared", "posted"),
    [
        # taken back are 590: the rest of what Stripe withdraws clears `disputes`, whatever was cleared before
        (590, 0, []),
        (500, 0, [("disputes", "cash", 90, "dispute_cleared")]),
        (500, 60, [("disputes", "cash", 30, "dispute_cleared")]),
        (500, 100, [("cash", "disputes", 10, "dispute_cleared")]),
        (700, 0, [("platform_loss", "disputes", 110, "dispute_loss")]),
        (700, -80, [("platform_loss", "disputes", 30, "dispute_loss")]),
        (600, -80, [("disputes", "platform_loss", 70, "dispute_loss")]),
        (500, -80, [("disputes", "cash", 90, "dispute_cleared"), ("disputes", "platform_loss", 80, "dispute_loss")]),
        (700, 50, [("cash", "disputes", 50, "dispute_cleared"), ("platform_loss", "disputes", 110, "dispute_loss")]),
    ],
)
def test_what_a_lost_dispute_clears(withdrawn: int, cleared: int, posted: list[tuple[str, str, int, str]]) -> None:
    taken = Parts(500, 40, 90)
    lost = dispute(5, lost=1, withdrawn=withdrawn, cleared=cleared)._replace(lost=True, booked=taken)
    assert clearing(lost, taken) == 590 - withdrawn
    assert rows_of(claim_postings(lost, taken, "a", 2, 7)) == posted
    assert {row.created_at for row in claim_postings(lost, taken, "a", 2, 7)} <= {7}
    assert {row.reference_id for row in claim_postings(lost, taken, "a", 2, 7)} <= {"dp_1:2"}
    assert clearing(lost._replace(lost=False), taken) == 0


def test_a_claim_begins_with_nothing_booked_withdrawn_or_cleared() -> None:
    assert refund(1, 5)[5:] == ((0, 0, 0, 0), 0, 0)
    assert Whole(1, 1, 1, 1).expired == 0
