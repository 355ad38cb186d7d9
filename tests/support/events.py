"""Everything that can happen to an account, so that every kind of event is told; and what was."""

import json
from typing import Any

from billing.jobs.balance_shares import BalanceShares
from billing.jobs.change_events import ChangeEvents
from billing.jobs.expiry import Expiry
from billing.jobs.limit_watch import LimitWatch
from billing.jobs.low_balance import LowBalance
from billing.jobs.money_events import MoneyEvents
from billing.ledger.accounts import KeyBudget, KeyDetails, KeyRules
from billing.ledger.audit_log import Who
from billing.ledger.credits.promos import Promos, PromoTerms
from billing.ledger.customers.desk import key_desk
from billing.ledger.events.endpoints import EventEndpoints
from billing.ledger.ledger import Ledger
from billing.ledger.notices import NoticeFilters, NoticeQueue
from billing.ledger.objects.upstream_objects import MadeObject, UpstreamObjects
from billing.ledger.objects.vector_stores import OwedDay, PaidDay, StorageDebt, VectorStores
from billing.ledger.records.account_details import AccountDetails
from billing.money.amounts import millicredits
from billing.money.holds import Entry
from billing.storage.database import Database
from tests.support.credits import DAY_MS, run_out
from tests.support.recharge import account_with_card, spend
from tests.support.shop import Shop
from tests.support.stores import record

ANN = Who("cli:ann", "cli")


async def listen(database: Database, *kinds: str) -> str:
    """Register an endpoint; its id."""
    row, _ = await EventEndpoints(database).add("https://app.example.com/events", kinds or ("*",), "", ANN)
    return row.id


async def told_to(notices: NoticeQueue, endpoint_id: str = "") -> list[dict[str, Any]]:
    """What a listener was told, oldest first."""
    rows = await notices.found(NoticeFilters(endpoint_id=endpoint_id), 500)
    return [json.loads(row.payload) for row in sorted(rows, key=lambda row: (row.created_at, row.id))]


async def change_everything(shop: Shop) -> None:
    """An account and a key of it, from their beginning to their end."""
    database, accounts = shop.books.database, shop.books.accounts
    changes = ChangeEvents(database, shop.notices)
    await changes.step()
    opened = await accounts.open(AccountDetails("Ann", "u-1", "ann@example.org"), None, ANN)
    account, keys = opened.account.id, key_desk(database).changes
    await accounts.update(account, {"name": "Ann B."}, ANN, "they married")
    made = await keys.create(account, KeyRules(), KeyDetails("CI"), ANN)
    await keys.change(made.key_id, {"name": "CI 2"}, ANN)
    await keys.rotate(made.key_id, 0, ANN, "")
    await accounts.revoke_key(made.key_id, ANN, "")
    for status in ("blocked", "active"):
        await accounts.set_status(account, status, ANN, "a test")
    await accounts.close(account, ANN, "they left")
    await accounts.erase(account, ANN, "they asked")
    while await changes.step():
        pass


async def use_up(shop: Shop) -> None:
    """A balance falls below its thresholds, a key spends its budget, and its charges are told."""
    database = shop.books.database
    account = await shop.books.account(100_000)
    low, shares = LowBalance(database, shop.notices, 0), BalanceShares(database, shop.notices, [50])
    await low.set_threshold(account, 5_000)
    await low.watch()
    await shares.watch()
    rules = KeyRules(budgets=(KeyBudget(millicredits(100_000), "month"),))
    made = await key_desk(database).changes.create(account, rules, KeyDetails("CI"), ANN)
    watch = LimitWatch(database, shop.notices)
    ledger = Ledger(database, watch.take, shop.notices)
    entry = Entry("1", 96_000, 0, record(f"req of {account}", account).replace(b"key_1", made.key_id.encode()))
    await ledger.post([entry])
    await watch.step()
    await low.watch()
    await shares.watch()


async def buy_and_give_back(shop: Shop) -> None:
    """A purchase, a refund of a part of it, and disputes of others."""
    money, account = MoneyEvents(shop.books.database, shop.notices), await shop.books.account()
    purchase = await shop.paid(account)
    await money.step()
    shop.stripe.give_back(purchase.payment_intent_id or "", 500)
    await shop.deliver()
    for end in ("won", "lost"):
        other = await shop.paid(await shop.books.account())
        dispute = shop.stripe.open_dispute(other.payment_intent_id or "")
        await shop.deliver()
        await money.step()
        shop.stripe.close_dispute(dispute.id, end)
        await shop.deliver()
    await money.step()


async def give_and_let_expire(shop: Shop) -> None:
    """A promo code is redeemed, and what it gave is announced to expire, and does."""
    books, account = shop.books, await shop.books.account()
    promos = Promos(books.database, shop.notices)
    await promos.add("SPRING", PromoTerms(1_000, credit_days=1), ANN)
    await promos.redeem(account, "SPRING", ANN)
    taking = Expiry(books.database, books.ledger, books.store, shop.notices)
    await taking.run(2 * DAY_MS)
    await run_out(books, f"promo:SPRING:{account}")
    assert (await taking.run(0)).expired == 1


async def recharge_and_store(shop: Shop) -> None:
    """A saved card that is refused, and storage that nobody pays for."""
    account = await account_with_card(shop)
    await spend(shop, account, 0)
    await shop.recharger.step(lambda _: None, enabled=True, livemode=False)
    stores = VectorStores(shop.books.database)
    await UpstreamObjects(shop.books.database).record_owner(account, "r", [MadeObject("vs_1", "vector_store")])
    days = [OwedDay(account, day, f"storage-{day}-{account}", 100, 10, "{}", 1_000 + day) for day in (1, 2)]
    await stores.decide(days)
    await stores.settle(PaidDay(days[0], 0), 0, 10, 7, 1_000, shop.notices)
    await stores.settle(PaidDay(days[1], 4), 0, 10, 7, 1_000, shop.notices)
    await stores.begin_removal(StorageDebt(account, 2, 1, None), ["vs_1"], 1_000, shop.notices)
