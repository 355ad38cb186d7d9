"""Stripe's record against purchases, claims and the ledger: each difference is found, what is on its way is none."""

import time

from sqlalchemy import text

from billing.payments.purchase_store import Purchase
from tests.support.fake_stripe import replace
from tests.support.shop import STARTER, Shop

DAY = 86_400


async def test_the_three_way_check_finds_each_tampering_and_nothing_else(shop: Shop) -> None:

    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    refund = shop.stripe.give_back(purchase.payment_intent_id or "", 500)
    await shop.deliver()
    await shop.age(1_000)

    async def checks(*statements: str) -> set[str]:
        async with shop.books.database.write() as connection:
            for statement in statements:
                await connection.execute(text(statement))
        return {finding.partition(":")[0] for finding in [*await shop.findings(), *await shop.check_stripe()]}

    assert await checks() == set()
    assert await checks("UPDATE claims SET amount_cents = 600") == {
        "claim vs what it should take",
        "refund succeeded at Stripe (cents)",
    }
    assert await checks("UPDATE claims SET amount_cents = 500, booked_paid = booked_paid + 1") == {
        "claim vs what it should take",
        "claim vs its transfers",
    }
    assert await checks(
        "UPDATE claims SET booked_paid = booked_paid - 1", "UPDATE purchases SET bonus_millicredits = 1"
    ) == {"purchase vs its transfers"}
    lost = {
        "purchase transfer without a credited purchase",
        "paid at Stripe vs credited purchase (cents)",
        "claim vs what it should take",
    }
    assert await checks("UPDATE purchases SET bonus_millicredits = 0, state = 'expired'") == lost
    await checks("UPDATE purchases SET state = 'credited'")
    del shop.stripe.sessions_by_id[purchase.session_id or ""]
    shop.stripe.intents_by_id[purchase.payment_intent_id or ""] = replace(
        shop.stripe.intents_by_id[purchase.payment_intent_id or ""], status="canceled"
    )
    assert await checks() == {"credited purchase vs paid at Stripe (cents)"}
    shop.stripe.change_refund(refund.id, "failed")
    assert "refund failed at Stripe (cents)" in await checks()


async def at(shop: Shop, purchase: Purchase, row_ago: float, session_ago: float, paid_ago: float) -> None:
    """Move a purchase in time: its row, its page, its payment."""
    now = time.time()
    times = f"created_at = {int((now - row_ago) * 1_000)}, credited_at = {int((now - paid_ago) * 1_000)}"
    async with shop.books.database.write() as connection:
        await connection.execute(text(f"UPDATE purchases SET {times} WHERE id = '{purchase.id}'"))
    sessions, intents = shop.stripe.sessions_by_id, shop.stripe.intents_by_id
    session, intent = sessions[purchase.session_id or ""], intents[purchase.payment_intent_id or ""]
    sessions[session.id] = replace(session, created=int(now - session_ago))
    charge = replace(intent.latest_charge, created=int(now - paid_ago))  # type: ignore[type-var]
    intents[intent.id] = replace(intent, created=int(now - paid_ago), latest_charge=charge)


async def test_a_page_opened_before_the_days_that_are_compared_is_no_finding(shop: Shop) -> None:
    purchase = await shop.paid(await shop.books.account())
    edge = 30 * DAY
    await at(shop, purchase, edge + 61, edge + 60, edge - 120)
    assert await shop.check_stripe() == []


async def test_what_was_paid_a_minute_ago_is_on_its_way(shop: Shop) -> None:
    purchase = await shop.buy(await shop.books.account())
    shop.stripe.pay(purchase.session_id or "")
    await shop.deliver()
    purchase = await shop.get(purchase)
    for paid_ago, findings in ((60, 0), (600, 1)):
        await at(shop, purchase, 1_000, 999, paid_ago)
        async with shop.books.database.write() as connection:
            await connection.execute(text("UPDATE purchases SET state = 'open'"))  # as if the webhook had not come
        assert len(await shop.check_stripe()) == findings


async def test_refunds_and_disputes_of_old_purchases_are_compared(shop: Shop) -> None:
    purchase = await shop.paid(await shop.books.account())
    await at(shop, purchase, 31 * DAY, 31 * DAY, 31 * DAY)
    refund = shop.stripe.give_back(purchase.payment_intent_id or "", 999)
    shop.stripe.refunds_by_id[refund.id] = replace(refund, created=int(time.time()) - 3_600)
    dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "", 2_000)
    shop.stripe.disputes_by_id[dispute.id] = replace(
        shop.stripe.disputes_by_id[dispute.id], created=int(time.time()) - 3_600
    )
    found = await shop.check_stripe()
    assert {line.split(":")[0] for line in found} >= {
        "refund succeeded at Stripe (cents)",
        "dispute needs_response at Stripe (cents)",
    }
    await shop.deliver()
    shop.stripe.disputes_by_id[dispute.id] = replace(
        shop.stripe.disputes_by_id[dispute.id], created=int(time.time()) - 3_600
    )
    assert await shop.check_stripe() == []


async def test_money_that_stripe_moved_and_cash_did_not_is_found(shop: Shop) -> None:
    purchase = await shop.paid(await shop.books.account())
    dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "", withdraw=False)
    await shop.deliver()
    shop.stripe.move_funds(dispute.id, -9_999, 1_500)
    await shop.deliver()
    await shop.age(1_000)
    assert await shop.check_stripe() == []
    async with shop.books.database.write() as connection:
        if shop.books.database.is_sqlite:
            names = await connection.execute(
                text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'transfers'")
            )
            for (name,) in names.all():
                await connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            await connection.execute(text("ALTER TABLE transfers DISABLE TRIGGER USER"))
        await connection.execute(text("DELETE FROM transfers WHERE kind IN ('dispute_cash', 'stripe_fee')"))
    found = await shop.check_stripe()
    assert sorted(line.split(" ")[0] for line in found) == ["dispute_cash", "stripe_fee", "stripe_fee"]
