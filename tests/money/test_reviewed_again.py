"""What a second reviewer found in money in; each of these failed once."""

from typing import Any

import pytest
from sqlalchemy import text

from billing.ledger.audit_log import Who
from billing.money.amounts import MoneyError
from billing.money.errors import NotYet, StoreUnavailable, StripeRefused
from billing.payments.purchase import NotRefundable, refund_cents
from tests.money.fake_stripe import replace
from tests.money.shop import Shop
from tests.money.test_recharge import BUYER, WISH, account_with_card, spend, told
from tests.money.test_reviewed import autos, run, state_of

ADA = Who("ada", "finance")


class Seen:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.moves: list[tuple[str, int]] = []

    def moved(self, kind: str, millicredits: int) -> None:
        self.moves.append((kind, millicredits))


# -- who disputes is not charged again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["in review", "before it is settled"])
async def test_a_dispute_stops_it_whatever_the_purchase_is(shop: Shop, when: str) -> None:
    account = await account_with_card(shop)
    purchase = await shop.buy(account)
    odd = {"currency": "eur"} if when == "in review" else {}
    shop.stripe.pay(purchase.session_id or "", **odd)
    if when == "in review":
        await shop.deliver()
        assert (await shop.get(purchase)).state == "review"
    intent = shop.stripe.intent_of(purchase.session_id or "")
    shop.stripe.open_dispute(intent.id)
    await shop.deliver()
    await run(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.enabled, row.state) == (False, "stopped")
    await spend(shop, account, 0)
    await run(shop)
    assert autos(shop) == []


async def test_every_dispute_is_told(shop: Shop) -> None:
    account = await account_with_card(shop)
    first, second = await shop.paid(account), await shop.paid(account)
    for purchase in (first, second):
        shop.stripe.open_dispute(purchase.payment_intent_id or "")
        await shop.deliver()
        await run(shop)
        await shop.recharges.put(account, WISH, BUYER)  # on again
    assert (await told(shop)).count("auto_recharge.stopped") == 2


@pytest.mark.parametrize("ends", ["credited", "declined"])
async def test_a_dispute_while_a_payment_is_in_flight_stops_it_when_that_has_ended(shop: Shop, ends: str) -> None:
    account = await account_with_card(shop)
    shop.stripe.slow = True
    await spend(shop, account, 0)
    await run(shop)
    assert await state_of(shop, account) == "paying"
    (bought,) = [row for row in await shop.sales.of_account(account, 9) if row.origin == "checkout"]
    shop.stripe.open_dispute(bought.payment_intent_id or "")
    await shop.deliver()
    await run(shop)
    if ends == "credited":
        shop.stripe.arrive()
    else:
        (intent,) = [one for one in shop.stripe.intents_by_id.values() if one.status == "processing"]
        shop.stripe.intents_by_id[intent.id] = replace(intent, status="requires_payment_method")
        shop.stripe.emit("payment_intent.payment_failed", intent.id)
    await shop.deliver()
    await run(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.enabled, row.state, "disputed" in row.message) == (False, "stopped", True)
    assert (await told(shop))[0] == "auto_recharge.stopped"
    assert len(autos(shop)) == 1


async def test_who_switches_it_on_after_a_dispute_while_a_payment_is_in_flight_means_it(shop: Shop) -> None:
    account = await account_with_card(shop)
    shop.stripe.slow = True
    await spend(shop, account, 0)
    await run(shop)
    (bought,) = [row for row in await shop.sales.of_account(account, 9) if row.origin == "checkout"]
    shop.stripe.open_dispute(bought.payment_intent_id or "")
    await shop.deliver()
    await shop.recharges.put(account, WISH, BUYER)
    shop.stripe.arrive()
    await run(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.enabled, row.state) == (True, "ready")


async def test_a_refusal_is_no_decline(shop: Shop) -> None:
    """The customer is not told that a card was declined which nobody tried, and nothing is asked for again and again."""
    account = await account_with_card(shop)

    async def refuse(_order: Any, _method: str) -> Any:
        raise StripeRefused("resource_missing", "No such PaymentMethod", 400)

    shop.stripe.charge_saved_method = refuse  # type: ignore[method-assign]
    await spend(shop, account, 0)
    await run(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.state, row.failures, row.next_try_at) == ("action_needed", 0, None)
    assert "declined" not in row.message
    assert row.action_url


# -- sweeps ------------------------------------------------------------------------------------------------------------


async def stuck(shop: Shop) -> str:
    """A purchase that died before Stripe answered, of a customer that Stripe may not know."""
    purchase = await shop.buy(await shop.books.account())
    del shop.stripe.sessions_by_id[purchase.session_id or ""]
    async with shop.books.database.write() as connection:
        await connection.execute(
            text("UPDATE purchases SET state = 'created', session_id = NULL WHERE id = :id"), {"id": purchase.id}
        )
    return purchase.id


@pytest.mark.parametrize(("code", "becomes"), [("resource_missing", "failed"), ("permission_denied", "created")])
async def test_a_refusal_ends_no_sweep(shop: Shop, code: str, becomes: str) -> None:
    """Where Stripe knows no such customer it was never asked; where it does not say, nothing is given up."""
    lost = await shop.buy(await shop.books.account())
    purchase_id = await stuck(shop)
    await shop.age(1_000)
    shop.stripe.pay(lost.session_id or "")
    shop.delivered = len(shop.stripe.events_made)  # nobody told us
    shop.stripe.events_made.clear()  # and Stripe made no event
    real = shop.stripe.sessions

    def sessions(**filters: Any) -> Any:
        if "customer" in filters:
            raise StripeRefused(code, "No", 400)
        return real(**filters)

    shop.stripe.sessions = sessions  # type: ignore[method-assign]
    swept = await shop.sweeper.sweep(30, livemode=False)
    assert (await shop.get(lost)).state == "credited"
    assert [row[0] for row in await shop.rows(f"SELECT state FROM purchases WHERE id = '{purchase_id}'")] == [becomes]
    assert len(swept.problems) == (code != "resource_missing")
    assert await shop.rows("SELECT name FROM sweep_marks") == [("events",)]


async def test_a_list_that_cannot_be_read_keeps_no_other_waiting_and_is_read_again(shop: Shop) -> None:
    paid = await shop.paid(await shop.books.account())
    shop.stripe.give_back(paid.payment_intent_id or "", 500)
    shop.delivered = len(shop.stripe.events_made)
    shop.stripe.events_made.clear()

    async def broken(**_filters: Any) -> Any:
        raise StripeRefused("permission_denied", "No", 403)
        yield

    shop.stripe.sessions = broken  # type: ignore[method-assign]
    swept = await shop.sweeper.sweep(30, livemode=False)
    assert [line.partition(":")[0] for line in swept.problems] == ["the list of sessions"]
    assert len(swept.fixed) == 1
    assert await shop.rows("SELECT name FROM sweep_marks") == [], "the next one reads from the same time on"


# -- figures -----------------------------------------------------------------------------------------------------------


async def test_what_goes_back_in_the_moment_of_crediting_is_counted_as_going_back(shop: Shop) -> None:
    seen = Seen()
    shop.sync._observer = seen
    purchase = await shop.buy(await shop.books.account())
    shop.stripe.pay(purchase.session_id or "", livemode=True)  # which needs a look by a person
    await shop.deliver()
    intent = shop.stripe.intent_of(purchase.session_id or "")
    shop.stripe.give_back(intent.id, 5_000)
    shop.stripe.open_dispute(intent.id, 1_000)
    await shop.deliver()
    assert seen.moves == []
    shop.stripe.sessions_by_id[purchase.session_id or ""] = replace(
        shop.stripe.sessions_by_id[purchase.session_id or ""], livemode=False
    )
    applied = await shop.sync.accept(purchase.id, ADA, "it was paid")
    bought = [amount for kind, amount in seen.moves if kind == "purchase"]
    back = {kind: amount for kind, amount in seen.moves if kind != "purchase"}
    assert sum(bought) - sum(back.values()) == applied.credited == await shop.balance(purchase.account_id)
    assert (len(bought), set(back)) == (1, {"refund", "dispute"})
    assert back["refund"] == 5 * back["dispute"] > 0


async def test_what_takes_a_purchase_back_says_which(shop: Shop) -> None:
    account = await shop.books.account(5_000)
    first, second = await shop.paid(account), await shop.paid(account)
    shop.stripe.give_back(first.payment_intent_id or "", 500)
    shop.stripe.open_dispute(second.payment_intent_id or "")
    await shop.deliver()
    await spend(shop, account, 1_000)
    rows = await shop.books.ledger.transfers_of(account, 50)
    named = {(row.kind.removesuffix("_bonus"), row.purchase_id) for row in rows}
    wanted = {("purchase", first.id), ("purchase", second.id), ("refund", first.id), ("dispute", second.id)}
    assert named == wanted | {("usage", None), ("adjustment", None)}


# -- refunds that are asked for here ------------------------------------------------------------------------------------


async def test_a_refund_is_audited_asked_for_and_booked_once(shop: Shop) -> None:
    purchase = await shop.paid(await shop.books.account())
    half = await shop.refunding.refund(purchase.id, 5_000, ADA, "they asked")
    assert (half.cents, half.status) == (5_000, "succeeded")
    assert await shop.balance(purchase.account_id) == 109_989_000 * 4_999 // 9_999
    await shop.deliver()  # and its webhooks change nothing
    assert await shop.balance(purchase.account_id) == 109_989_000 * 4_999 // 9_999
    rest = await shop.refunding.refund(purchase.id, None, ADA, "the rest as well")
    assert (rest.cents, await shop.balance(purchase.account_id)) == (4_999, 0)
    with pytest.raises(NotRefundable, match="refunded or disputed already"):
        await shop.refunding.refund(purchase.id, None, ADA, "again")
    asked = await shop.rows(
        "SELECT actor, role, subject, reason FROM audit_log WHERE action = 'purchase.refund' ORDER BY id"
    )
    assert asked == [("ada", "finance", purchase.id, "they asked"), ("ada", "finance", purchase.id, "the rest as well")]
    assert await shop.findings() == []


async def test_an_answer_that_is_lost_refunds_once(shop: Shop) -> None:
    purchase = await shop.paid(await shop.books.account())
    key = f"{purchase.id}:refund:1:3000"
    shop.stripe.poisoned_keys.add(key)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await shop.refunding.refund(purchase.id, 3_000, ADA, "they asked")
    shop.stripe.poisoned_keys.clear()
    await shop.refunding.refund(purchase.id, 3_000, ADA, "they asked")
    assert [refund.amount for refund in shop.stripe.refunds_by_id.values()] == [3_000]
    await shop.refunding.refund(purchase.id, 3_000, ADA, "another one, meant so")
    assert [refund.amount for refund in shop.stripe.refunds_by_id.values()] == [3_000, 3_000]


async def test_a_refund_that_cannot_be_booked_at_once_is_booked_by_its_events(shop: Shop) -> None:
    """Stripe has made it: an error would have it asked for again."""
    purchase = await shop.paid(await shop.books.account())
    real = shop.sync.refund

    async def busy(_refund_id: str) -> Any:
        raise NotYet("others keep changing this purchase")

    shop.sync.refund = busy  # type: ignore[method-assign]
    made = await shop.refunding.refund(purchase.id, 3_000, ADA, "they asked")
    assert (made.cents, await shop.balance(purchase.account_id)) == (3_000, 109_989_000)
    shop.sync.refund = real  # type: ignore[method-assign]
    await shop.deliver()
    assert await shop.balance(purchase.account_id) == 109_989_000 - 109_989_000 * 3_000 // 9_999
    assert len(shop.stripe.refunds_by_id) == 1


async def test_what_cannot_go_back_is_refused_before_stripe_is_asked(shop: Shop) -> None:
    opened, paid = await shop.buy(await shop.books.account()), await shop.paid(await shop.books.account())
    calls = shop.stripe.calls
    for purchase_id, cents, because in (
        ("pur_missing", None, "no purchase"),
        (opened.id, None, "nothing was paid"),
        (paid.id, 10_000, r"\$99.99 can be given back, not \$100.00"),
        (paid.id, 0, r"not \$0.00"),
        (paid.id, -5, r"not \$-0.05"),
    ):
        with pytest.raises(NotRefundable, match=because):
            await shop.refunding.refund(purchase_id, cents, ADA, "test")
    assert shop.stripe.calls == calls
    assert await shop.rows("SELECT action FROM audit_log") == []


@pytest.mark.parametrize("usd", ["0", "-1", "0.001", "1e2", "ten", ""])
def test_only_whole_cents_go_back(usd: str) -> None:
    with pytest.raises(MoneyError):
        refund_cents(usd)
    assert refund_cents("12.34") == 1_234
