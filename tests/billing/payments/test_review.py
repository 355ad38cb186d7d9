"""Paid, but not what was sold: a person accepts it, once, for what came in. Both databases."""

import asyncio
from typing import Any

import pytest

from billing.ledger.audit_log import AuditLog, Who
from billing.payments.crediting import Receipt
from billing.payments.purchase import NotAcceptable
from billing.payments.purchase_store import Purchase, Stale
from billing.payments.stripe.objects import payment_of_session
from tests.support.fake_stripe import replace
from tests.support.shop import ADA, Shop

FINANCE = Who("ada", "finance")


async def in_review(shop: Shop, *, tax: int = 0, **wrong: Any) -> tuple[str, Purchase]:
    """A pro package, sold for 9,999 cents with 10 % bonus; what the session says of the payment is `wrong`."""
    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.pay(purchase.session_id or "", tax=tax, **wrong)
    await shop.deliver()
    found = await shop.get(purchase)
    assert (found.state, await shop.balance(account)) == ("review", 0)
    return account, found


async def accept(shop: Shop, purchase: Purchase) -> int:
    return (await shop.sync.accept(purchase.id, FINANCE, "the customer wrote to us")).credited


async def returned(shop: Shop, purchase: Purchase, cents: int) -> str:
    refund = shop.stripe.give_back(shop.stripe.intent_of(purchase.session_id or "").id, cents)
    await shop.deliver()
    return refund.id


@pytest.mark.parametrize(
    ("wrong", "credits"),
    [
        ({"amount_subtotal": 5_000, "amount_total": 5_000}, 50_000_000 + 5_000_000),
        ({"amount_total": 1}, 10_000 + 1_000),
        (
            {"amount_subtotal": 20_000, "amount_total": 20_000},
            200_000_000 + 9_999_000,
        ),  # no more bonus than was promised
        ({"customer": "cus_of_their_other_mail"}, 109_989_000),
    ],
)
async def test_what_came_in_is_credited_exactly_once(shop: Shop, wrong: dict[str, Any], credits: int) -> None:  # noqa: A002
    account, purchase = await in_review(shop, **wrong)
    assert [row.id for row in await shop.purchases.in_review()] == [purchase.id]
    assert await accept(shop, purchase) == credits
    assert (await shop.get(purchase)).state == "credited"
    for _ in range(2):  # again by hand, and by every event there is
        assert await accept(shop, purchase) == 0
        shop.stripe.emit("checkout.session.completed", purchase.session_id or "")
        await shop.deliver()
    assert await shop.balance(account) == credits
    assert await shop.rows("SELECT count(*) FROM transfers WHERE kind = 'purchase'") == [(1,)]
    assert await shop.rows("SELECT action, actor, subject FROM audit_log") == [("purchase.accept", "ada", purchase.id)]
    assert (await AuditLog(shop.books.database).verify()).problem == ""
    assert await shop.findings() == []
    assert await shop.purchases.in_review() == []


async def test_ten_people_accept_at_once(shop: Shop) -> None:
    account, purchase = await in_review(shop, amount_subtotal=1, amount_total=1)
    credited = await asyncio.gather(*(accept(shop, purchase) for _ in range(10)))
    assert sorted(credited) == [0] * 9 + [11_000]
    assert await shop.balance(account) == 11_000


async def test_tax_is_nobodys_credits(shop: Shop) -> None:
    account, purchase = await in_review(shop, tax=500, customer="cus_other")
    await accept(shop, purchase)
    assert await shop.balance(account) == 109_989_000
    assert await shop.ledger_of("payable:tax") == 5_000_000
    assert await shop.findings() == []


async def test_what_was_given_back_whole_cannot_be_accepted(shop: Shop) -> None:
    account, purchase = await in_review(shop, amount_subtotal=5_000, amount_total=5_000)
    refund = await returned(shop, purchase, 5_000)
    assert await shop.purchases.in_review() == []
    with pytest.raises(NotAcceptable, match="refunded"):
        await accept(shop, purchase)
    assert await shop.balance(account) == 0
    assert await shop.rows("SELECT count(*) FROM audit_log") == [(0,)]
    shop.stripe.change_refund(refund, "failed")  # the money came back to us: now it waits for a person again
    await shop.deliver()
    assert [row.id for row in await shop.purchases.in_review()] == [purchase.id]
    assert await accept(shop, purchase) == 55_000_000


async def test_a_part_given_back_before_or_after_takes_its_share(shop: Shop) -> None:
    account, purchase = await in_review(shop, amount_subtotal=5_000, amount_total=5_000)
    await returned(shop, purchase, 1_000)
    assert await accept(shop, purchase) == await shop.balance(account) == 44_000_000
    await returned(shop, purchase, 4_000)
    assert await shop.balance(account) == 0
    assert await shop.findings() == []


@pytest.mark.parametrize(
    ("wrong", "because"),
    [
        ({"payment_status": "no_payment_required", "amount_total": 0}, "not paid"),
        ({"currency": "jpy"}, "sold in 'usd'"),
        ({"livemode": True}, "the other mode"),
        ({"amount_total": 0}, "no money came in"),
    ],
)
async def test_what_is_no_money_of_ours_cannot_be_accepted(shop: Shop, wrong: dict[str, Any], because: str) -> None:
    account, purchase = await in_review(shop, **wrong)
    with pytest.raises(NotAcceptable, match=because):
        await accept(shop, purchase)
    assert (await shop.get(purchase)).state == "review"
    assert await shop.balance(account) == 0


async def test_only_a_payment_in_review_can_be_accepted(shop: Shop) -> None:
    account = await shop.books.account()
    page = await shop.buy(account)
    with pytest.raises(NotAcceptable, match="is open, not in review"):
        await accept(shop, page)
    with pytest.raises(NotAcceptable, match="no purchase"):
        await shop.sync.accept("pur_missing", FINANCE, "test")
    gone = await in_review(shop, amount_total=1)
    session = gone[1].session_id or ""
    shop.stripe.sessions_by_id[session] = replace(shop.stripe.sessions_by_id[session], payment_status="unpaid")
    with pytest.raises(NotAcceptable, match="not paid"):  # by Stripe's word now, not by what it said then
        await accept(shop, gone[1])


async def test_an_older_picture_of_the_purchase_is_not_accepted(shop: Shop) -> None:
    """Somebody changed it between our question to Stripe and our commit: asked anew instead."""
    account, purchase = await in_review(shop, amount_total=1)
    seen = payment_of_session(shop.stripe.sessions_by_id[purchase.session_id or ""])
    with pytest.raises(Stale):
        await shop.crediting.accept(purchase.id, seen, Receipt(), purchase.revision - 1, FINANCE, "test")
    assert await shop.balance(account) == 0
    assert await shop.rows("SELECT count(*) FROM audit_log") == [(0,)]


async def test_a_payment_in_review_is_done_with_once_it_was_refunded(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.pay(purchase.session_id or "", amount_total=500)
    await shop.deliver()
    assert any("a person must decide" in finding for finding in await shop.findings())
    shop.stripe.give_back(shop.stripe.intent_of(purchase.session_id or "").id, 500)
    await shop.deliver()
    assert await shop.findings() == []
    assert await shop.balance(account) == 0


async def test_a_payment_in_another_currency_is_refunded_and_closed(shop: Shop) -> None:
    purchase = await shop.buy(await shop.books.account())
    shop.stripe.pay(purchase.session_id or "", currency="eur")
    intent = shop.stripe.intent_of(purchase.session_id or "")
    shop.stripe.intents_by_id[intent.id] = replace(intent, currency="eur")
    await shop.deliver()
    assert await shop.findings() != []
    with pytest.raises(NotAcceptable, match="refund it at Stripe"):
        await shop.sync.accept(purchase.id, ADA, "x")
    shop.stripe.give_back(intent.id, 9_999)
    await shop.deliver()
    assert await shop.findings() == []
    assert {row[0] for row in await shop.rows("SELECT state FROM stripe_inbox")} == {"done"}


async def test_a_review_without_money_is_dismissed(shop: Shop) -> None:
    purchase = await shop.buy(await shop.books.account())
    shop.stripe.pay(purchase.session_id or "", payment_status="no_payment_required", amount_total=0)
    await shop.deliver()
    assert len(await shop.findings()) == 1
    assert await shop.crediting.dismiss(purchase.id, ADA, "a test")
    assert not await shop.crediting.dismiss(purchase.id, ADA, "again")
    await shop.sync.session(purchase.session_id or "")  # whatever Stripe says afterwards
    await shop.age(1_000)
    assert (await shop.get(purchase)).state == "dismissed"
    assert [*await shop.findings(), *await shop.check_stripe()] == []
    assert await shop.rows("SELECT actor, reason FROM audit_log WHERE action = 'purchase.dismiss'") == [
        ("ada", "a test")
    ]
    with pytest.raises(NotAcceptable):
        await shop.crediting.dismiss("pur_none", ADA, "x")
