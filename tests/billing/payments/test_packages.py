"""Packages and payments: exact millicredits, and what of a payment is credited."""

from typing import Any

import pytest

from billing.money.amounts import MoneyError
from billing.payments.purchase import (
    NEXT,
    STATES,
    UNSETTLED,
    NotAcceptable,
    Offer,
    Payment,
    PaymentStatus,
    Refunded,
    RefundedPart,
    Sold,
    State,
    Transition,
    accepted,
    judge,
    may_become,
    mismatch,
    offer,
    offer_of_amount,
    refund_cents,
)

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


def test_an_offer_says_all_of_a_package() -> None:
    assert offer("pro", "99.99", "10") == Offer("pro", "usd", 9_999, 99_990_000, 9_999_000, None, False)  # type: ignore[arg-type]
    assert offer("pro", "99.99", "10", 30).bonus_days == 30
    assert offer("least", "0.01", "0").price_cents == 1
    with pytest.raises(MoneyError, match=r"^the price \$9.999 of 'odd' is not a whole number of cents$"):
        offer("odd", "9.999", "0")


@pytest.mark.parametrize(
    ("cents", "usd_per_1000", "paid", "bonus"),
    [
        (1_000, "1", 10_000_000, 0),
        (1_000, "0.8", 10_000_000, 2_500_000),
        (1, "0.3", 10_000, 23_333),  # 33,333.3 credits of a thousandth
        (1, "1", 10_000, 0),
    ],
)
def test_an_amount_buys_what_it_is_worth_and_the_rest_is_a_bonus(
    cents: int, usd_per_1000: str, paid: int, bonus: int
) -> None:
    assert offer_of_amount(cents, usd_per_1000) == ("amount", "usd", cents, paid, bonus, None, False)


@pytest.mark.parametrize(("cents", "usd_per_1000"), [(0, "1"), (-1, "1"), (100, "0"), (100, "-1"), (100, "1.01")])
def test_an_amount_is_sold_for_something_and_never_above_its_worth(cents: int, usd_per_1000: str) -> None:
    with pytest.raises(MoneyError, match=r"^1,000 credits cost more than \$0 and at most \$1$"):
        offer_of_amount(cents, usd_per_1000)


@pytest.mark.parametrize(
    ("payment", "returned", "bonus", "parts"),
    [
        (PAID, 0, 0, (9_990_000, 0)),
        (PAID, 998, 1_000, (9_990_000, 1_000)),
        # half of what was sold has half of its bonus, rounded down; more than was sold no more than all of it
        (PAID._replace(total_cents=500), 0, 1_001, (5_000_000, 501)),
        (PAID._replace(total_cents=2_000), 0, 1_000, (20_000_000, 1_000)),
        (PAID._replace(total_cents=1_189, tax_cents=190), 1_188, 0, (9_990_000, 0)),
        (PAID._replace(total_cents=1), 0, 998, (10_000, 0)),
    ],
)
def test_what_a_person_accepts_is_what_came_in(
    payment: Payment, returned: int, bonus: int, parts: tuple[int, int]
) -> None:
    assert accepted(SOLD, payment, returned, bonus) == parts


@pytest.mark.parametrize(
    ("change", "returned", "sentence"),
    [
        (
            {"status": "open"},
            0,
            "Stripe says that this payment is 'open', not paid: there is nothing to accept",
        ),
        ({"livemode": True}, 0, "the payment is of the other mode (test or live): it is not money of ours"),
        (
            {"currency": "eur"},
            0,
            "it was paid in 'eur' and sold in 'usd': refund it at Stripe, then dismiss it",
        ),
        (
            {"total_cents": 190, "tax_cents": 190},
            0,
            "no money came in: dismiss it, and move credits with `tollkeeper grant` if some are owed",
        ),
        (
            {"tax_cents": -1},
            0,
            "no money came in: dismiss it, and move credits with `tollkeeper grant` if some are owed",
        ),
        ({}, 999, "all of it was refunded or disputed: there is nothing left to accept"),
        ({}, 1_500, "all of it was refunded or disputed: there is nothing left to accept"),
    ],
)
def test_why_a_payment_cannot_be_accepted(change: dict[str, Any], returned: int, sentence: str) -> None:
    with pytest.raises(NotAcceptable) as refused:
        accepted(SOLD, PAID._replace(**change), returned, 0)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(("usd", "cents"), [("0.01", 1), ("1", 100), ("12.34", 1_234)])
def test_dollars_of_a_refund_are_cents(usd: str, cents: int) -> None:
    assert refund_cents(usd) == cents


@pytest.mark.parametrize("usd", ["0", "0.001", "1.005", "0." + "0" * 60 + "1"])
def test_a_refund_is_whole_cents(usd: str) -> None:
    with pytest.raises(MoneyError):
        refund_cents(usd)


def test_what_is_no_cent_is_named_in_short() -> None:
    with pytest.raises(MoneyError, match=r"^\$1.005 is not a whole number of cents above 0$"):
        refund_cents("1.005")
    with pytest.raises(MoneyError, match=r"^\$0{39}\. is not a whole number of cents above 0$"):
        refund_cents("0" * 39 + ".001")


@pytest.mark.parametrize(
    ("now", "then"),
    [
        ("created", "open processing credited expired failed review"),
        ("open", "processing credited expired failed review"),
        ("processing", "credited failed review"),
        ("expired", "credited review"),
        ("failed", "credited review"),
        ("review", "credited"),
        ("credited", ""),
        ("dismissed", ""),
    ],
)
def test_where_a_purchase_may_go(now: State, then: str) -> None:
    assert {state for state in STATES if may_become(now, state)} == set(then.split())


def test_money_may_be_on_its_way_before_a_purchase_has_ended() -> None:
    assert set(UNSETTLED) == set(STATES) - {"credited", "expired", "failed", "review", "dismissed"}


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        ("open", ""),
        ("processing", ""),
        ("expired", ""),
        ("failed", "the payment failed"),
        ("free", "complete without a payment (a full discount?): nothing is credited"),
        ("unknown", "Stripe reports a status this version does not know"),
    ],
)
def test_what_is_said_of_a_payment_that_is_none(status: PaymentStatus, problem: str) -> None:
    assert judge(SOLD, PAID._replace(status=status)).problem == problem


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"livemode": True}, "livemode differs"),
        ({"mode": "setup"}, "its mode is 'setup'"),
        ({"currency": "eur"}, "paid in 'eur', sold in 'usd'"),
        ({"subtotal_cents": 998, "total_cents": 998}, "998 cents instead of 999"),
        ({"tax_cents": -1, "total_cents": 998}, "a negative tax"),
        ({"total_cents": 998}, "a total of 998 cents (a discount?)"),
        ({"customer_id": "cus_2"}, "another customer"),
        ({"livemode": True, "customer_id": "cus_2"}, "livemode differs; another customer"),
    ],
)
def test_what_of_a_payment_is_not_what_was_sold(change: dict[str, Any], problem: str) -> None:
    assert mismatch(SOLD, PAID._replace(**change)) == problem


def test_a_refund_is_of_no_asking_and_made_now_unless_it_is_said() -> None:
    assert Refunded("re_1", 5, "pending")[3:] == ("", False)
    assert RefundedPart("pur_1", None).problem == ""
    assert Transition("open").problem == ""
