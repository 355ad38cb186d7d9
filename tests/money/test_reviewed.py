"""What a reviewer with fresh eyes found in money in; each of these failed once."""

import csv
import io
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from billing.accounting.statements import Statement, StatementEntry, Statements
from billing.ledger.accounts import KeyRules
from billing.ledger.audit_log import Who
from billing.money.amounts import millicredits
from billing.money.errors import NotYet, StoreUnavailable
from billing.payments.purchase import NotAcceptable
from billing.payments.purchase_store import Purchase
from billing.payments.stripe.gateway import Declined
from config.checks import check_combinations
from config.errors import ConfigError
from config.settings import Package
from proxy.customer_api.statement_csv import statement_csv
from proxy.customer_api.statement_pdf import statement_pdf
from tests.billing.stores import Books
from tests.money.api import open_api, settings
from tests.money.fake_stripe import replace
from tests.money.shop import STARTER, Shop, open_shop
from tests.money.test_credits_page import visiting
from tests.money.test_recharge import BUYER, WISH, account_with_card, offer_of, spend

ADA = Who("ada", "finance")
DAY = 86_400


async def run(shop: Shop, times: int = 4, *, enabled: bool = True) -> None:
    """Steps of the recharge worker, each followed by what Stripe tells of it."""
    for _ in range(times):
        try:
            await shop.recharger.step(offer_of, enabled=enabled, livemode=False)
        except StoreUnavailable:
            continue
        finally:
            await shop.deliver()


def autos(shop: Shop) -> list[str]:
    """The keys of the automatic payments that Stripe was asked for, each once."""
    return list(dict.fromkeys(order.key for order in shop.stripe.orders if order.key.startswith("auto:")))


async def state_of(shop: Shop, account: str) -> str:
    row = await shop.recharges.get(account)
    assert row is not None
    return row.state


# -- a card is charged for usage, once, and only while its owner wants it ---------------------------------------------


async def test_a_payment_in_flight_is_concluded_whatever_the_balance_does_meanwhile(shop: Shop) -> None:
    account = await account_with_card(shop)
    shop.stripe.poisoned_keys.add(f"auto:{account}:1:1")
    await spend(shop, account, 0)
    await run(shop)  # begun, and Stripe does not answer
    await spend(shop, account, 20_000_000)
    await run(shop)
    await spend(shop, account, 0)
    await run(shop)
    shop.stripe.poisoned_keys.clear()
    await run(shop)
    assert await state_of(shop, account) == "ready"
    assert await shop.balance(account) == 9_990_000
    await spend(shop, account, 0)
    await run(shop)
    assert await shop.balance(account) == 9_990_000
    assert len(autos(shop)) == 2


async def test_a_refund_is_not_answered_by_charging_the_card_again(shop: Shop) -> None:
    account = await account_with_card(shop)
    (purchase,) = await shop.sales.of_account(account, 5)
    shop.stripe.give_back(purchase.payment_intent_id or "", 999)
    await shop.deliver()
    await run(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.enabled, "taken back" in row.message, autos(shop)) == (True, True, [])
    await spend(shop, account, 6_000_000)  # bought again, say: armed again
    await run(shop)
    await spend(shop, account, 0)
    await run(shop)
    assert len(autos(shop)) == 1


async def test_credits_that_an_admin_takes_back_charge_no_card(shop: Shop) -> None:
    account = await account_with_card(shop)
    await shop.books.correct(account, -9_000_000)
    await run(shop)
    assert autos(shop) == []


@pytest.mark.parametrize("block_after", [0, 1])
async def test_who_disputes_is_not_charged_again(sql: Books, block_after: int) -> None:
    shop = open_shop(sql, block_after=block_after)
    account = await account_with_card(shop)
    (purchase,) = await shop.sales.of_account(account, 5)
    dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "")
    await shop.deliver()
    await run(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.state, row.enabled) == ("stopped", False)
    assert [notice["kind"] for notice in await shop.notices.listing(None, 9)] == ["auto_recharge.stopped"]
    shop.stripe.close_dispute(dispute.id, "lost")
    await shop.deliver()
    await run(shop)
    assert autos(shop) == []
    blocked = (await sql.accounts.get(account))["status"] == "blocked"
    audited = await shop.rows("SELECT actor, subject FROM audit_log WHERE action = 'account.status'")
    assert (blocked, audited) == (bool(block_after), [("stripe", account)] * block_after)


async def test_a_blocked_account_is_not_charged(shop: Shop) -> None:
    account = await account_with_card(shop)
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE accounts SET status = 'blocked'"))
    await spend(shop, account, 0)
    await run(shop)
    assert await shop.recharges.begin(account, STARTER, livemode=False) is None
    assert autos(shop) == []


async def test_saving_the_same_settings_does_not_try_a_declined_card_again(shop: Shop) -> None:
    account = await account_with_card(shop)
    shop.stripe.decline = Declined("card_declined", "no", "")
    await spend(shop, account, 0)
    for wish in [WISH] * 5 + [WISH._replace(enabled=False), WISH] * 3:
        await run(shop)
        await shop.recharges.put(account, wish, BUYER)
    await run(shop)
    assert len(autos(shop)) == 1
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE stripe_customers SET payment_method_id = 'pm_another'"))
    shop.stripe.decline = None
    await shop.recharges.put(account, WISH, BUYER)  # another card: worth a try now
    await run(shop)
    assert await shop.balance(account) == 9_990_000


async def test_a_higher_ceiling_goes_on_at_once(shop: Shop) -> None:
    account = await account_with_card(shop, WISH._replace(monthly_ceiling_cents=999))
    for _ in range(2):
        await spend(shop, account, 0)
        await run(shop)
    assert await state_of(shop, account) == "ceiling"
    await shop.recharges.put(account, WISH, BUYER)
    await run(shop)
    assert await shop.balance(account) == 9_990_000


async def test_the_operators_ceiling_holds_whatever_the_accounts_is(shop: Shop) -> None:
    account = await account_with_card(shop)
    for _ in range(2):
        await spend(shop, account, 0)
        for _ in range(3):
            await shop.recharger.step(offer_of, enabled=True, livemode=False, most_cents=1_500)
            await shop.deliver()
    assert (len(autos(shop)), await state_of(shop, account)) == (1, "ceiling")


async def test_while_purchases_are_off_no_card_is_charged_and_no_page_opened(shop: Shop) -> None:
    account = await account_with_card(shop)
    shop.stripe.decline = Declined("authentication_required", "Authenticate.", "")
    await spend(shop, account, 0)
    await run(shop, 1)  # asked, and the bank wants the buyer ...
    pages = len(shop.stripe.sessions_by_id)
    other = await account_with_card(shop)
    await spend(shop, other, 0)
    await shop.recharges.watch()
    assert await shop.recharges.begin(other, STARTER, livemode=False) is not None
    await run(shop, enabled=False)  # ... when purchases are switched off
    assert autos(shop) == [f"auto:{account}:1:1"]
    assert len(shop.stripe.sessions_by_id) == pages + 1  # the other's own purchase, before the switch


async def test_a_payment_that_needs_a_person_is_not_made_once_more(shop: Shop) -> None:
    account = await account_with_card(shop)
    real = shop.stripe.charge_saved_method

    async def odd(order: Any, method: str) -> Any:
        intent = await real(order, method)
        shop.stripe.intents_by_id[intent.id] = replace(intent, amount_received=intent.amount - 1)  # type: ignore[union-attr]
        return shop.stripe.intents_by_id[intent.id]  # type: ignore[union-attr]

    shop.stripe.charge_saved_method = odd  # type: ignore[method-assign]
    await spend(shop, account, 0)
    await run(shop)
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE auto_recharges SET next_try_at = 0 WHERE next_try_at IS NOT NULL"))
    await run(shop)
    assert (len(autos(shop)), await state_of(shop, account)) == (1, "stopped")
    assert len(await shop.sales.in_review()) == 1


async def test_an_api_key_cannot_reach_the_card(shop: Shop) -> None:
    """Also one without any limit: what leaks may cost what is prepaid, and not what is on the card behind it."""
    account = await account_with_card(shop)
    body = {
        "enabled": True,
        "thresholdMillicredits": "9990000",
        "packageCode": "starter",
        "monthlyCeilingCents": 50_000,
        "consent": True,
    }
    async with open_api(shop, settings(billing={"auto_recharge": True})) as api:
        for rules in (KeyRules(), KeyRules(spend_limit=millicredits(1_000), spend_period="day")):
            _, secret = await shop.books.accounts.create_key(account, rules)
            answer = await api.client.put(
                "/api/billing/auto-recharge", json=body, headers={"authorization": f"Bearer {secret}"}
            )
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "credits_page_only")


async def test_switching_off_works_whatever_has_become_of_the_package(shop: Shop) -> None:
    account = await account_with_card(shop)
    dearer = msgspec.structs.replace(
        settings(billing={"auto_recharge": True}), packages=(Package(code="starter", usd="29.99"),)
    )
    async with visiting(shop, dearer) as visit:
        await visit.sign_in(account)
        page = await visit.send("recharge", threshold="", package="gone", ceiling="x", enabled="no")
        assert page.status_code == 303
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.enabled, row.threshold_millicredits) == (False, WISH.threshold)


async def test_a_decimal_comma_is_not_a_thousand_times_as_much(shop: Shop) -> None:
    account = await account_with_card(shop)
    async with visiting(shop, settings(billing={"auto_recharge": True})) as visit:
        await visit.sign_in(account)
        wish = {"threshold": "5,000", "package": "starter", "enabled": "yes", "consent": "yes"}
        for odd in ("20,00", "1e3", "1_000", "٣٠٠", "NaN", "200.001"):
            assert (await visit.send("recharge", **wish, ceiling=odd)).status_code == 400, odd
        assert (await visit.send("recharge", **wish, ceiling="1,000.00")).status_code == 303
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.threshold_millicredits, row.monthly_ceiling_cents) == (5_000_000, 100_000)


async def test_the_card_of_a_deleted_customer_does_not_come_back(shop: Shop) -> None:
    account = await account_with_card(shop)
    (first,) = await shop.sales.of_account(account, 5)
    shop.stripe.deleted_customers.add(first.customer_id)
    await shop.paid(account)
    shop.stripe.emit("charge.updated", (await shop.get(first)).charge_id)
    await shop.deliver()
    buyer = await shop.buyers.find(account)
    assert buyer is not None
    assert buyer.payment_method_id == ""


# -- what Stripe's record is compared with ----------------------------------------------------------------------------


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


async def test_what_stripe_took_before_the_purchase_was_credited_is_booked_with_it(shop: Shop) -> None:
    """In its transaction: nothing has to be remembered for afterwards."""
    purchase = await shop.buy(await shop.books.account())
    session_id = purchase.session_id or ""
    shop.stripe.pay(session_id, amount_subtotal=1, amount_total=1)  # goes to review
    intent = shop.stripe.intent_of(session_id)
    dispute = shop.stripe.open_dispute(intent.id, 9_999)
    shop.stripe.close_dispute(dispute.id, "lost")
    await shop.deliver()
    assert await shop.ledger_of("cash") > 0  # fees only: what never came in does not go out
    shop.stripe.sessions_by_id[session_id] = replace(
        shop.stripe.sessions_by_id[session_id], amount_subtotal=9_999, amount_total=9_999
    )
    dispute_calls = shop.stripe.dispute
    shop.stripe.dispute = no_more  # type: ignore[method-assign]
    await shop.sync.session(session_id)
    shop.stripe.dispute = dispute_calls  # type: ignore[method-assign]
    assert await shop.ledger_of("disputes") == 0
    assert len(await shop.rows("SELECT 1 FROM transfers WHERE kind = 'dispute_cash'")) == 1
    assert await shop.findings() == []
    await shop.age(1_000)
    assert await shop.check_stripe() == []


async def no_more(_id: str) -> None:
    raise AssertionError("the dispute was asked for again")


async def test_the_fee_of_a_payment_in_review_is_booked(shop: Shop) -> None:
    purchase = await shop.buy(await shop.books.account())
    shop.stripe.pay(purchase.session_id or "", amount_total=500)
    await shop.deliver()
    shop.stripe.give_back(shop.stripe.intent_of(purchase.session_id or "").id, 9_999)
    await shop.deliver()
    assert await shop.ledger_of("fees") == -(30 + 9_999 * 29 // 1_000) * 10_000


async def test_one_object_that_cannot_be_read_stops_no_sweep(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = await shop.buy(await shop.books.account())
    shop.stripe.pay(lost.session_id or "")
    shop.delivered = len(shop.stripe.events_made)  # nobody told us
    other = await shop.paid(await shop.books.account())
    shop.stripe.open_dispute(other.payment_intent_id or "")
    await shop.deliver()

    async def broken(_dispute_id: str) -> None:
        raise msgspec.ValidationError("Expected `str`, got `null` - at `$.reason`")

    monkeypatch.setattr(shop.stripe, "dispute", broken)
    swept = await shop.sweeper.sweep(30, livemode=False)
    assert len(swept.problems) == 1
    await shop.work()
    assert (await shop.get(lost)).state == "credited"


async def test_every_unsettled_purchase_gets_its_look(shop: Shop) -> None:
    purchases = [await shop.buy(await shop.books.account()) for _ in range(3)]
    await shop.age(1_000)
    looked: list[str] = []
    real = shop.sync.session

    async def session(session_id: str) -> Any:
        looked.append(session_id)
        return await real(session_id)

    shop.sync.session = session  # type: ignore[method-assign]
    await shop.sweeper.sweep(1, livemode=False)
    await shop.sweeper.sweep(
        1, livemode=False
    )  # the same three are not looked at again at once: others would come first
    assert sorted(looked) == sorted(purchase.session_id or "" for purchase in purchases)


# -- ways out for what needs a person ---------------------------------------------------------------------------------


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
    assert await shop.sales.dismiss(purchase.id, ADA, "a test")
    assert not await shop.sales.dismiss(purchase.id, ADA, "again")
    await shop.sync.session(purchase.session_id or "")  # whatever Stripe says afterwards
    await shop.age(1_000)
    assert (await shop.get(purchase)).state == "dismissed"
    assert [*await shop.findings(), *await shop.check_stripe()] == []
    assert await shop.rows("SELECT actor, reason FROM audit_log WHERE action = 'purchase.dismiss'") == [
        ("ada", "a test")
    ]
    with pytest.raises(NotAcceptable):
        await shop.sales.dismiss("pur_none", ADA, "x")


async def test_an_event_of_another_installation_is_ignored_by_a_person(shop: Shop) -> None:
    intent = shop.stripe._new_intent(500, "cus_x", "pur_of_the_other", "succeeded")
    refund = shop.stripe.give_back(intent.id, 500)
    await shop.deliver()
    parked = [row[0] for row in await shop.rows("SELECT event_id FROM stripe_inbox WHERE state = 'parked'")]
    assert parked != [], refund
    for event_id in parked:
        await shop.inbox.ignore(event_id, "the other installation's", ADA)
    await shop.age(1_000)
    await shop.work()
    assert (await shop.inbox.depth()).waiting == 0
    assert len(await shop.rows("SELECT 1 FROM audit_log WHERE action = 'webhook.ignore'")) == len(parked)


# -- statements, pages, settings --------------------------------------------------------------------------------------


@pytest.fixture
async def month() -> AsyncIterator[str]:
    yield time.strftime("%Y-%m", time.gmtime())


async def test_a_statement_says_what_was_paid_and_the_tax_in_it(shop: Shop, month: str) -> None:
    account = await shop.books.account()
    accepted = await shop.buy(account)
    shop.stripe.pay(accepted.session_id or "", amount_subtotal=5_000, amount_total=5_000)
    await shop.deliver()
    await shop.sync.accept(accepted.id, ADA, "x")
    await shop.paid(account, STARTER, tax=190)
    statement = await Statements(shop.books.database).read(account, month)
    rows = [
        row for row in csv.DictReader(io.StringIO(statement_csv(statement).decode())) if row["section"] == "purchase"
    ]
    assert sorted((row["paidUsd"], row["paidTaxUsd"]) for row in rows) == [("11.89", "1.90"), ("50.00", "0.00")]
    assert statement_pdf(statement) == statement_pdf(statement)


@pytest.mark.parametrize("letter", ["a", "W", "漢"])
def test_a_reason_of_any_length_fits_the_pdf(letter: str) -> None:
    entry = StatementEntry(1, "adjustment", "r", letter * 2_000, 5)
    assert statement_pdf(Statement("acct_1", "n", "2026-11", 0, 5, [], [entry], [])).startswith(b"%PDF")


async def test_receipts_are_asked_for_anew_and_all_of_them_are_reachable(shop: Shop) -> None:
    account = await shop.books.account()
    first = await shop.paid(account, STARTER)
    intent = shop.stripe.intent_of(first.session_id or "")
    charge = replace(intent.latest_charge, receipt_url="https://pay.stripe.test/new")  # type: ignore[type-var]
    shop.stripe.intents_by_id[intent.id] = replace(intent, latest_charge=charge)
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE purchases SET created_at = created_at - 100000"))
    for _ in range(20):
        await shop.paid(account, STARTER)
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        page = await visit.page()
        assert f"/credits/receipts/{first.id}" not in page
        older = page.split('href="/credits?purchases=')[1].split('"')[0].removesuffix("#purchases")
        assert f"/credits/receipts/{first.id}" in await visit.page(f"?purchases={older}")
        found = await visit.client.get(f"/credits/receipts/{first.id}")
    assert found.headers["location"] == "https://pay.stripe.test/new"


async def test_the_page_says_what_became_of_a_purchase(shop: Shop) -> None:
    account = await shop.books.account()
    for back in (100, 999, None):
        purchase = await shop.paid(account, STARTER)
        if back:
            shop.stripe.give_back(purchase.payment_intent_id or "", back)
        else:
            shop.stripe.open_dispute(purchase.payment_intent_id or "")
        await shop.deliver()
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        page = await visit.page()
    assert all(f">{state}<" in page for state in ("partly refunded", "refunded", "disputed"))
    assert "Credits are prepaid. 1,000 Credits = $1.00. You only pay for actual token usage." in page


async def test_no_page_breaks_on_a_nul(shop: Shop) -> None:
    account = await shop.books.account()
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        for path in ("?session=%00", "?usage=%00", "?%00=x", "/receipts/%00", "/statement?month=%00"):
            refused = await visit.client.get(f"/credits{path}")
            assert (refused.status_code, "holds a NUL character" in refused.text) == (400, True), path


async def test_a_page_that_is_still_being_settled_is_said(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.expire(purchase.session_id or "")

    async def session(_session_id: str) -> None:
        raise NotYet("others keep changing this purchase")

    shop.sync.session = session  # type: ignore[method-assign, assignment]
    async with open_api(shop) as api:
        answer = await api.client.post(
            "/api/billing/checkout", json={"packageCode": "pro"}, headers=await api.key(account)
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "checkout_settling")
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        assert (await visit.send("buy", package="pro")).status_code == 503


def test_no_untaxed_recharges() -> None:
    both = settings(billing={"auto_recharge": True}, stripe={"automatic_tax": True})
    with pytest.raises(ConfigError, match="tax"):
        check_combinations(both, "proxy.toml")


# -- what waits, and since when ---------------------------------------------------------------------------------------


async def test_an_old_event_that_is_replayed_is_not_late_and_one_that_was_never_handled_is(shop: Shop) -> None:
    waits: list[int] = []
    shop.worker._handled = waits.append
    await shop.paid(await shop.books.account(0))
    first = len(waits)
    await shop.age(86_400)
    (event_id, *_), *_ = await shop.rows("SELECT event_id FROM stripe_inbox ORDER BY event_id")
    await shop.inbox.replay(event_id)
    shop.stripe.down = True
    await shop.work()  # it has to wait, as any other
    assert (await shop.inbox.depth())[0] == 1
    assert 0 <= (await shop.inbox.depth()).oldest_ms < 300_000
    await shop.inbox.replay(event_id)  # again, while it waits: it has waited since the first time
    shop.stripe.down = False
    await shop.work()
    assert ((await shop.inbox.depth()).waiting, len(waits)) == (0, first), "handled again, which counts for nobody"
    purchase = await shop.buy(await shop.books.account(0))
    shop.stripe.pay(purchase.session_id or "")
    shop.stripe.down = True
    await shop.deliver()
    await shop.age(86_400)
    waiting = [row[0] for row in await shop.rows("SELECT event_id FROM stripe_inbox WHERE state = 'parked'")]
    for event_id in waiting:
        await shop.inbox.replay(event_id)
    assert (await shop.inbox.depth()).oldest_ms >= 86_400_000, "somebody paid and waits"
    shop.stripe.down = False
    await shop.work()
    assert [wait >= 86_400_000 for wait in waits[first:]] == [True] * len(waiting)
