"""Disputes: credits held and money withdrawn, won, lost, beside refunds."""

import pytest
from prometheus_client import CollectorRegistry

from billing.accounting.daily_finance import Finance
from billing.accounting.journal import Books
from proxy.customer_api.money_in import MoneyCounter
from proxy.observability.metrics import Metrics
from tests.support.fake_stripe import replace
from tests.support.shop import Shop, open_shop, today


async def test_pitfall_14_a_disputes_credits_and_a_disputes_money_are_two_things(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    dispute = shop.stripe.open_dispute(
        purchase.payment_intent_id or "", status="warning_needs_response", withdraw=False
    )
    await shop.deliver()
    assert await shop.balance(account) == 0  # held from the first warning on, though no money has moved
    assert await shop.rows("SELECT kind FROM transfers WHERE kind = 'dispute_cash'") == []
    shop.stripe.disputes_by_id[dispute.id] = replace(shop.stripe.disputes_by_id[dispute.id], status="needs_response")
    shop.stripe.move_funds(dispute.id, -9_999, 1_500)
    await shop.deliver()
    assert [
        row[0] for row in await shop.rows("SELECT amount_millicredits FROM transfers WHERE kind = 'dispute_cash'")
    ] == [99_990_000]
    assert await shop.ledger_of("fees") == -((30 + 9_999 * 29 // 1_000) + 1_500) * 10_000
    shop.stripe.close_dispute(dispute.id, "lost")
    await shop.deliver()
    assert await shop.ledger_of("disputes") == 0
    assert await shop.balance(account) == 0


async def test_pitfall_15_a_dispute_on_top_of_a_refund_takes_no_more_than_was_sold(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    shop.stripe.give_back(purchase.payment_intent_id or "", 6_000)
    shop.stripe.open_dispute(purchase.payment_intent_id or "", 9_999)
    await shop.deliver()
    assert await shop.balance(account) == 0
    assert await shop.findings() == []


@pytest.mark.parametrize("end", ["won", "lost", "warning_closed", "prevented"])
async def test_a_dispute_holds_the_credits_and_ends(shop: Shop, end: str) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "", withdraw=end in ("won", "lost"))
    await shop.deliver()
    assert await shop.balance(account) == 0
    shop.stripe.close_dispute(dispute.id, end)
    await shop.deliver()
    assert await shop.balance(account) == (109_989_000 if end in ("won", "warning_closed") else 0)
    assert await shop.ledger_of("disputes") == 0
    assert await shop.findings() == []


async def test_an_unknown_dispute_status_keeps_the_hold_and_alerts(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "")
    await shop.deliver()
    shop.stripe.close_dispute(dispute.id, "arbitration_2031")
    await shop.deliver()
    assert await shop.balance(account) == 0
    assert "arbitration_2031" in caplog.text


async def test_a_refund_during_a_dispute_takes_nothing_twice(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    intent = purchase.payment_intent_id or ""
    dispute = shop.stripe.open_dispute(intent)
    await shop.deliver()
    refund = shop.stripe.give_back(intent, 9_999)
    await shop.deliver()
    assert await shop.balance(account) == 0
    assert await shop.ledger_of("platform_loss") == -99_990_000  # the bank took it and we sent it: that is our loss
    shop.stripe.close_dispute(dispute.id, "won")
    await shop.deliver()
    assert await shop.balance(account) == 0  # now the refund holds it
    assert await shop.ledger_of("platform_loss") == 0
    shop.stripe.change_refund(refund.id, "failed")
    await shop.deliver()
    assert await shop.balance(account) == 109_989_000
    assert await shop.ledger_of("disputes") == 0
    assert await shop.findings() == []


async def test_what_went_back_beyond_what_was_sold_is_one_loss_in_every_report(shop: Shop) -> None:
    """A refund of $30.00, then a dispute of the whole that is lost: $30.00 nobody gave back to us."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    shop.sync._observer = MoneyCounter(metrics)
    account = await shop.books.account()
    purchase = await shop.paid(account)
    shop.stripe.give_back(purchase.payment_intent_id or "", 3_000)
    dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "", 9_999)
    await shop.deliver()
    shop.stripe.close_dispute(dispute.id, "lost")
    await shop.deliver()
    assert await shop.ledger_of("platform_loss") == -30_000_000
    (books,) = await Books(shop.books.database).days(today(), today())
    assert (await Finance(shop.books.database).compute(today())).loss == books.platform_loss == 30_000_000
    metrics.publish()
    assert registry.get_sample_value("tollkeeper_platform_loss_credits_total") == 30_000


async def test_lost_disputes_block_an_account_by_configuration(sql) -> None:
    shop = open_shop(sql, block_after=2)
    account = await sql.account()
    for expected in ("active", "blocked"):
        purchase = await shop.paid(account)
        dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "")
        shop.stripe.close_dispute(dispute.id, "lost")
        await shop.deliver()
        assert (await sql.accounts.get(account)).status == expected
