"""Packages and payments: exact millicredits, and what of a payment is credited."""

import pytest

from billing.money.amounts import MoneyError
from billing.payments.purchase import NEXT, Payment, Sold, Transition, judge, may_become, offer

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
