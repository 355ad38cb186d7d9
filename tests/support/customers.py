"""Customers made beside a running server, straight through the accounts and the ledger: faster than the CLI, the same rows."""

import asyncio
from typing import Any

from billing.ledger.accounts import Accounts, KeyRules
from billing.ledger.ledger import Ledger
from billing.money.amounts import millicredits
from billing.storage.database import Database
from tests.support.servers import Account, Tollkeeper


class Customer(Account):
    """An account whose key's id is known."""

    key_id: str = ""

    @property
    def body(self) -> dict[str, Any]:
        """The smallest chat."""
        return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


def database_url(server: Tollkeeper) -> str:
    """Where a served Tollkeeper keeps its ledger."""
    return server.environment.get("TOLLKEEPER_DATABASE__URL", f"sqlite+aiosqlite:///{server.folder}/var/tollkeeper.db")


def new_customer(server: Tollkeeper, balance: int = 1_000_000_000, **rules: Any) -> Customer:
    """An account with so many millicredits, and a key with these rules; its balance is live when this returns."""
    customer = asyncio.run(_make(server, balance, KeyRules(**rules)))
    customer.wait_balance(balance)
    return customer


def acting_for(customer: Account) -> dict[str, str]:
    """The headers of the operator's own app when it acts for a customer."""
    key = customer.server.cli("admin", "create", "the app", "--role", "service")["adminKey"]
    return {"Authorization": f"Bearer {key}", "Tollkeeper-Account": customer.account_id}


async def _make(server: Tollkeeper, balance: int, rules: KeyRules) -> Customer:
    database = Database(database_url(server), 1, 5.0)
    try:
        accounts = Accounts(database)
        account_id = await accounts.create("test")
        key_id, secret = await accounts.create_key(account_id, rules)
        if balance:
            await Ledger(database).grant(account_id, millicredits(balance), f"grant_{account_id}", "test", "test")
    finally:
        await database.close()
    customer = Customer(server, account_id, secret)
    customer.key_id = key_id
    return customer
