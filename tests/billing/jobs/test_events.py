"""Watching for events: budgets, balances in per cent, changes, money and charges, each told once, on both databases."""

import pytest
from sqlalchemy import update

from billing.jobs import money_events
from billing.jobs.balance_shares import BalanceShares
from billing.jobs.change_events import ChangeEvents
from billing.jobs.limit_watch import LimitWatch
from billing.jobs.money_events import MARK, MoneyEvents
from billing.ledger.accounts import KeyBudget, KeyDetails, KeyRules
from billing.ledger.customers.desk import key_desk
from billing.ledger.ledger import Ledger
from billing.ledger.records.account_details import AccountDetails
from billing.money.amounts import millicredits
from billing.money.holds import Entry
from billing.storage.database import now_ms
from billing.storage.tables.payments import purchases, sweep_marks
from tests.support.events import ANN, listen, told_to
from tests.support.recharge import spend
from tests.support.shop import Shop
from tests.support.stores import record


def charge(account: str, key_id: str, number: int, amount: int) -> Entry:
    return Entry(str(number), amount, 0, record(f"req{number}", account).replace(b"key_1", key_id.encode()))


async def test_a_budget_is_told_at_each_threshold_once_and_again_after_its_limit_was_raised(shop: Shop) -> None:
    database, account = shop.books.database, await shop.books.account(1_000_000)
    changes = key_desk(database).changes
    rules = KeyRules(budgets=(KeyBudget(millicredits(1_000), "month"), KeyBudget(millicredits(5_000), "total")))
    key_id = (await changes.create(account, rules, KeyDetails("CI"), ANN)).key_id
    watch = LimitWatch(database, shop.notices)
    ledger = Ledger(database, watch.take, shop.notices)
    told = []
    for number, amount in enumerate((499, 1, 299, 1, 100, 100, 1_500)):
        await ledger.post([charge(account, key_id, number, amount)])
        while await watch.step():
            pass
        found = [event["data"] for event in await told_to(shop.notices)]
        told.append([(one["period"], one["percent"]) for one in found])
    month = [("month", 50), ("month", 80), ("month", 100)]
    assert told == [[], month[:1], month[:1], month[:2], month[:2], month, [*month, ("total", 50)]]
    await changes.change(key_id, {"budgets": (KeyBudget(millicredits(2_600), "month"),)}, ANN)
    fresh = LimitWatch(database, shop.notices)  # a process that begins looks at every key with a limit
    await fresh.step()
    raised = LimitWatch(database, shop.notices)
    await Ledger(database, raised.take, shop.notices).post([charge(account, key_id, 9, 100)])
    await raised.step()
    last = (await told_to(shop.notices))[-1]["data"]
    assert (last["percent"], last["limitMillicredits"], last["usedMillicredits"]) == (100, "2600", "2600")


async def test_a_budget_whose_last_charge_another_process_booked_is_told_when_that_one_is_gone(shop: Shop) -> None:
    """A key that has nothing left is charged no more, so nothing else would ever make anybody look."""
    database, account = shop.books.database, await shop.books.account(1_000_000)
    rules = KeyRules(budgets=(KeyBudget(millicredits(1_000), "month"),))
    key_id = (await key_desk(database).changes.create(account, rules, KeyDetails("CI"), ANN)).key_id
    staying, gone = LimitWatch(database, shop.notices), LimitWatch(database, shop.notices)
    while await staying.step():
        pass
    await Ledger(database, gone.take, shop.notices).post([charge(account, key_id, 1, 1_000)])
    while await staying.step():
        pass
    assert await told_to(shop.notices) == []
    staying.look_at_all()
    await staying.step()
    assert [event["data"]["percent"] for event in await told_to(shop.notices)] == [100]


async def test_a_balance_is_told_below_each_share_of_what_came_in_last(shop: Shop) -> None:
    account, shares = await shop.books.account(10_000), BalanceShares(shop.books.database, shop.notices, (20, 50))
    told = []
    for leave in (10_000, 5_000, 4_999, 4_000, 1_000, 500, 30_000, 14_000, 16_000, 7_900):
        await spend(shop, account, leave)
        await shares.watch()
        await shares.watch()
        told.append([event["data"]["thresholdPercent"] for event in await told_to(shop.notices)])
    once, both = [50], [50, 20]
    # at 16,000 it is above half of 30,000 again: from there on 16,000 is the whole
    assert told == [[], [], once, once, both, both, both, [*both, 50], [*both, 50], [*both, 50, 50]]


async def test_shares_are_watched_by_setting_alone(shop: Shop) -> None:
    account = await shop.books.account(10_000)
    await spend(shop, account, 1)
    assert await BalanceShares(shop.books.database, shop.notices, ()).watch() == 0


async def test_what_was_changed_before_anyone_looked_is_not_told_and_what_comes_after_is_told_once(shop: Shop) -> None:
    accounts, changes = shop.books.accounts, ChangeEvents(shop.books.database, shop.notices)
    await accounts.open(AccountDetails("before"), None, ANN)
    await changes.step()
    account = (await accounts.open(AccountDetails("after", email="after@example.org"), None, ANN)).account.id
    await accounts.set_status(account, "blocked", ANN, "a test")
    other = ChangeEvents(shop.books.database, shop.notices)
    for one in (changes, other, changes):
        await one.step()
    told = await told_to(shop.notices)
    assert [(event["kind"], event["accountId"]) for event in told] == [
        ("account.created", account),
        ("account.blocked", account),
    ]
    assert "example.org" not in str(told)
    assert "after" not in str([event["data"] for event in told])


async def test_money_is_told_once_whoever_looks(shop: Shop) -> None:
    purchase = await shop.paid(await shop.books.account())
    for _ in range(3):
        await MoneyEvents(shop.books.database, shop.notices).step()
    (event,) = await told_to(shop.notices)
    assert event["kind"] == "purchase.credited"
    assert event["data"]["creditedMillicredits"] == str(purchase.paid_millicredits + purchase.bonus_millicredits)
    assert event["data"]["totalCents"] == 9_999


async def test_more_than_a_page_of_purchases_is_told_at_one_look(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(money_events, "BATCH", 2)
    bought = [await shop.paid(await shop.books.account()) for _ in range(4)]
    await MoneyEvents(shop.books.database, shop.notices).step()
    assert {event["data"]["purchaseId"] for event in await told_to(shop.notices)} == {one.id for one in bought}


@pytest.mark.parametrize("looked", [True, False])
async def test_what_happened_while_nobody_looked_is_told(shop: Shop, looked: bool) -> None:
    """By a command, for hours; but not what was there before anybody ever looked."""
    hour = 3_600_000
    if looked:
        await MoneyEvents(shop.books.database, shop.notices).step()
    await shop.paid(await shop.books.account())
    async with shop.books.database.write() as connection:
        then = now_ms() - 3 * hour
        await connection.execute(update(purchases).values(credited_at=then, updated_at=then))
        await connection.execute(update(sweep_marks).where(sweep_marks.c.name == MARK).values(value=then - hour))
    await MoneyEvents(shop.books.database, shop.notices).step()
    assert len(await told_to(shop.notices)) == (1 if looked else 0)


async def test_each_state_of_a_refund_is_told(shop: Shop) -> None:
    money, account = MoneyEvents(shop.books.database, shop.notices), await shop.books.account()
    purchase = await shop.paid(account)
    refund = shop.stripe.give_back(purchase.payment_intent_id or "", 1_000)
    await shop.deliver()
    await money.step()
    shop.stripe.change_refund(refund.id, "failed")
    await shop.deliver()
    await money.step()
    found = [(event["kind"], event["data"].get("takenMillicredits", "")) for event in await told_to(shop.notices)]
    assert [kind for kind, _ in found] == ["purchase.credited", "refund.succeeded", "refund.failed"]
    assert (int(found[1][1]) > 0, found[2][1]) == (True, "0")


async def test_charges_are_told_with_the_transaction_that_books_them_and_only_to_who_names_them(shop: Shop) -> None:
    database, account = shop.books.database, await shop.books.account(1_000)
    ledger = Ledger(database, None, shop.notices)
    await ledger.post([charge(account, "key_1", 0, 1)])
    assert await told_to(shop.notices) == []
    endpoint = await listen(database, "usage.charged")
    shop.notices._known_until = 0.0
    entries = [charge(account, "key_1", number, 2) for number in range(1, 4)]
    for _ in range(2):  # a flush that is repeated books nothing, and tells nothing
        await ledger.post(entries)
    (event,) = await told_to(shop.notices, endpoint)
    assert [one["requestId"] for one in event["data"]["requests"]] == ["req1", "req2", "req3"]
    assert {one["chargedMillicredits"] for one in event["data"]["requests"]} == {"2"}
    with pytest.raises(Exception, match="(?i)acct_missing|foreign key"):
        await ledger.post([charge(account, "key_1", 5, 2), charge("acct_missing", "key_1", 6, 2)])
    assert len(await told_to(shop.notices, endpoint)) == 1, "what was not booked is not told"


async def test_erasing_an_account_forgets_what_its_charges_said(shop: Shop) -> None:
    database, account = shop.books.database, await shop.books.account(1_000)
    endpoint = await listen(database, "*", "usage.charged")
    await Ledger(database, None, shop.notices).post([charge(account, "key_1", 0, 1)])
    assert len(await told_to(shop.notices, endpoint)) == 1
    await shop.books.accounts.close(account, ANN, "")
    await shop.books.accounts.erase(account, ANN, "")
    assert await told_to(shop.notices, endpoint) == []
