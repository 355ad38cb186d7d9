"""Postings of each event, held against the table of docs/ledger.md; parts sum to the whole."""

from typing import Any

import pytest

from billing.money.errors import InvariantBroken
from billing.money.postings import (
    DISPUTES,
    FEES,
    GrantTerms,
    Posting,
    charge_postings,
    customer,
    effect_on,
    expiry_posting,
    grant_posting,
    payable,
    purchase_postings,
    signed,
)
from billing.payments.claims import Whole, share

NOW = 1_796_000_000_000
HOUR_LATER = NOW + 3_600_000


def whole(posting: Posting) -> dict[str, Any]:
    """All of a posting but what is as it mostly is."""
    usual = {"created_at": NOW, "actor": "system", "reason": "", "expires_at": None, "reason_shown": False}
    return {name: value for name, value in posting._asdict().items() if name not in usual or usual[name] != value}


def row(debit: str, credit: str, amount: int, kind: str, origin: str, reference: str, **more: Any) -> dict[str, Any]:
    said = {"debit": debit, "credit": credit, "amount": amount, "kind": kind}
    return {**said, "reference_type": origin, "reference_id": reference, **more}


def test_a_charge_its_loss_and_its_cost() -> None:
    made = charge_postings("req_1", "acc_1", 700, 30, 500, NOW)
    assert [whole(posting) for posting in made] == [
        row("customer:acc_1", "revenue", 700, "usage", "charge", "req_1"),
        row("platform_loss", "revenue", 30, "platform_loss", "charge", "req_1"),
        row("cogs", "payable:openai", 500, "usage_cost", "charge", "req_1"),
    ]
    assert charge_postings("req_1", "acc_1", 0, 0, 500, NOW, "azure") == [
        Posting("cogs", "payable:azure", 500, "usage_cost", "charge", "req_1", NOW)
    ]
    assert [made.kind for made in charge_postings("req_1", "acc_1", 1, 0, 0, NOW)] == ["usage"]
    assert charge_postings("req_1", "acc_1", 0, 0, 0, NOW) == []


@pytest.mark.parametrize("parts", [(-1, 5, 5), (5, -1, 5), (5, 5, -1)])
def test_a_charge_with_a_negative_part_is_refused_by_name(parts: tuple[int, int, int]) -> None:
    with pytest.raises(InvariantBroken, match=r"^charge req_1 has a negative part$"):
        charge_postings("req_1", "acc_1", *parts, NOW)


def test_names_of_accounts() -> None:
    assert customer("acc_1") == "customer:acc_1"
    assert (payable("azure"), payable("")) == ("payable:azure", "payable:openai")
    assert (DISPUTES, FEES) == ("disputes", "fees"), "the others are in what is made of them"


def test_a_grant_and_its_correction() -> None:
    given = grant_posting("acc_1", 900, "ref", NOW, "ada", "ticket 7")
    assert whole(given) == row(
        "promo", "customer:acc_1", 900, "adjustment", "grant", "ref", actor="ada", reason="ticket 7"
    )
    back = grant_posting("acc_1", -900, "ref", NOW, "ada", "ticket 7")
    assert whole(back) == row(
        "customer:acc_1", "promo", 900, "adjustment", "grant", "ref", actor="ada", reason="ticket 7"
    )
    assert (grant_posting("acc_1", 0, "ref", NOW, "ada", "").debit) == "promo"
    welcome = grant_posting("acc_1", 5, "ref", NOW, "app", "", GrantTerms(HOUR_LATER, True, "welcome"))
    assert whole(welcome) == row(
        *("promo", "customer:acc_1", 5, "adjustment", "welcome", "ref"),
        actor="app",
        expires_at=HOUR_LATER,
        reason_shown=True,
    )
    assert GrantTerms() == (None, False, "grant")


def test_credits_that_expired_go_back_to_promo() -> None:
    assert whole(expiry_posting("acc_1", 40, "lot_1", NOW)) == row(
        "customer:acc_1", "promo", 40, "expiry", "expiry", "lot_1"
    )


def test_a_purchase_its_bonus_which_alone_may_expire_and_its_tax() -> None:
    made = purchase_postings("pur_1", "acc_1", 10_000, 500, 1_900, NOW, HOUR_LATER)
    assert [whole(posting) for posting in made] == [
        row("cash", "customer:acc_1", 10_000, "purchase", "purchase", "pur_1"),
        row("promo", "customer:acc_1", 500, "purchase_bonus", "purchase", "pur_1", expires_at=HOUR_LATER),
        row("cash", "payable:tax", 1_900, "purchase_tax", "purchase", "pur_1"),
    ]
    assert [whole(posting) for posting in purchase_postings("pur_1", "acc_1", 1, 0, 0, NOW)] == [
        row("cash", "customer:acc_1", 1, "purchase", "purchase", "pur_1")
    ]
    assert purchase_postings("pur_1", "acc_1", 0, 7, 0, NOW)[0].expires_at is None


@pytest.mark.parametrize("parts", [(-1, 5, 5), (5, -1, 5), (5, 5, -1)])
def test_a_purchase_with_a_negative_part_is_refused_by_name(parts: tuple[int, int, int]) -> None:
    with pytest.raises(InvariantBroken, match=r"^purchase pur_1 has a negative part$"):
        purchase_postings("pur_1", "acc_1", *parts, NOW)


def test_what_goes_back_the_other_way_is_the_same_amount_turned_round() -> None:
    there = signed("customer:acc_1", "cash", 250, "refund", ("refund", "re_1.1"), NOW, "asked for")
    back = signed("customer:acc_1", "cash", -250, "refund", ("refund", "re_1.2"), NOW)
    assert [whole(posting) for posting in (*there, *back)] == [
        row("customer:acc_1", "cash", 250, "refund", "refund", "re_1.1", actor="stripe", reason="asked for"),
        row("cash", "customer:acc_1", 250, "refund", "refund", "re_1.2", actor="stripe"),
    ]
    assert signed("fees", "cash", 0, "stripe_fee", ("purchase", "pur_1"), NOW) == []
    assert [made.amount for made in signed("fees", "cash", 1, "stripe_fee", ("purchase", "pur_1"), NOW)] == [1]


def test_what_a_posting_does_to_a_balance() -> None:
    paid = Posting("cash", "customer:a", 9, "purchase", "purchase", "p", NOW)
    spent = Posting("customer:a", "revenue", 4, "usage", "charge", "r", NOW)
    moved = Posting("customer:a", "customer:a", 5, "adjustment", "grant", "g", NOW)
    assert [effect_on("customer:a", posting) for posting in (paid, spent, moved)] == [9, -4, 0]
    assert [effect_on("customer:b", posting) for posting in (paid, spent)] == [0, 0]


def test_a_part_of_a_purchase_that_is_none_is_refused() -> None:
    with pytest.raises(InvariantBroken):
        share(Whole(100, 5, 0, 0), 1)
