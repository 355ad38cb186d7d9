"""What Stripe tells of buyers has an end: not stored where nothing reads it, dropped after a term, erased when asked."""

import json
from pathlib import Path
from typing import Any

import msgspec

from billing.ledger.accounts import Accounts
from billing.ledger.audit_log import Who
from billing.payments.stripe.objects import Event, EventData, EventObject
from billing.storage.database import now_ms
from tests.support.command import run_command
from tests.support.shop import Shop

OWNER = Who("owner", "owner")
EMAIL = b"ada@example.com"


async def carried(shop: Shop) -> list[str]:
    return [payload for (payload,) in await shop.rows("SELECT payload FROM stripe_inbox WHERE payload <> ''")]


async def test_what_we_do_not_handle_is_not_stored(shop: Shop) -> None:
    about = EventData(object=EventObject(id="cus_1"))
    event = Event(id="evt_1", type="customer.updated", created=1, data=about)
    assert await shop.inbox.store(event, msgspec.json.encode(event) + EMAIL, "webhook")
    assert await carried(shop) == []
    assert not await shop.inbox.store(event, b"{}", "webhook"), "its id is known all the same"


async def test_what_was_handled_is_dropped_after_its_term_and_can_be_replayed(shop: Shop) -> None:
    purchase = await shop.paid(await shop.books.account())
    assert len(await carried(shop)) == 2
    assert await shop.inbox.drop_payloads(now_ms() - 60_000) == 0, "not yet"
    assert await shop.inbox.drop_payloads(now_ms() + 60_000) == 2
    assert await carried(shop) == []
    for (event_id,) in await shop.rows("SELECT event_id FROM stripe_inbox"):
        await shop.inbox.replay(event_id)
    await shop.work()
    assert (await shop.get(purchase)).state == "credited"
    assert await shop.balance(purchase.account_id) == 109_989_000
    assert {state for (state,) in await shop.rows("SELECT state FROM stripe_inbox")} == {"done"}


async def test_what_waits_is_not_dropped(shop: Shop) -> None:
    intent = shop.stripe._new_intent(500, "cus_x", "pur_unknown", "succeeded")
    shop.stripe.give_back(intent.id, 500)
    await shop.deliver()
    assert await shop.inbox.drop_payloads(now_ms() + 60_000) == 0


async def test_an_account_is_renamed_and_erased_and_its_money_stays(shop: Shop) -> None:
    accounts = Accounts(shop.books.database)
    mine, other = await shop.paid(await shop.books.account()), await shop.paid(await shop.books.account())
    shop.stripe.give_back(mine.payment_intent_id or "", 100)
    await shop.deliver()
    await accounts.update(mine.account_id, {"name": "Lovelace Ltd"}, OWNER, "they asked")
    assert (await accounts.get(mine.account_id)).name == "Lovelace Ltd"
    await accounts.close(mine.account_id, OWNER, "they asked")
    await accounts.erase(mine.account_id, OWNER, "they asked")
    before = len(await carried(shop))
    emptied = await shop.inbox.erase_account(mine.account_id)
    assert (emptied, len(await carried(shop))) == (before - 2, 2)
    assert all(
        other.session_id in payload or (other.payment_intent_id or "") in payload for payload in await carried(shop)
    )
    rows = await shop.rows("SELECT action, before, after FROM audit_log WHERE action LIKE 'account.%' ORDER BY id")
    assert [row[0] for row in rows][-2:] == ["account.close", "account.erase"]
    assert "Lovelace" not in str(rows)
    assert await shop.findings() == []


def test_by_command(tmp_path: Path) -> None:
    def run(*arguments: str) -> dict[str, Any]:
        done = run_command(tmp_path, {}, [*arguments, "--json"])
        assert done.returncode == 0, done
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    run("migrate")
    account = run("account", "create", "Ada")["accountId"]
    assert run("account", "rename", account, "Ada Lovelace", "--reason", "married")["name"] == "Ada Lovelace"
    assert run("account", "show", account)["name"] == "Ada Lovelace"
    assert run_command(tmp_path, {}, ["account", "erase", account, "--reason", "early"]).returncode == 1
    run("account", "close", account, "--reason", "she asked")
    erased = run("account", "erase", account, "--reason", "she asked")
    assert (erased["name"], erased["eventsEmptied"]) == ("erased", 0)
    assert run("account", "show", account)["name"] == "erased"
    assert run_command(tmp_path, {}, ["account", "rename", "acct_missing", "x"]).returncode == 1
