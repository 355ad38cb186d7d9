"""Served proxies that tests of one module share, one a configuration; customers are made beside the running server."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from billing.ledger.accounts import Accounts, KeyRules
from billing.ledger.ledger import Ledger
from billing.money.amounts import parse_credits
from billing.storage.database import Database
from tests.support.bank import SECRET, Bank, bank_environment, open_bank
from tests.support.served import RICH, Customer, MakeCustomer
from tests.support.servers import Sandbox, Tollkeeper, wait_until

_numbers = itertools.count()


@pytest.fixture(scope="module")
def served(session_sandbox: Sandbox, new_folder: Callable[[str], Path]) -> Iterator[Callable[..., Tollkeeper]]:
    """A running Tollkeeper (embedded store, SQLite) with these settings; a module's same one for the same settings.

    Not the session's: by its end thirty servers would look at their stores for nobody, and take half of the machine.
    """
    running: dict[tuple[tuple[str, str], ...], Tollkeeper] = {}

    def get(**environment: str) -> Tollkeeper:
        key = tuple(sorted(environment.items()))
        if key not in running:
            home = new_folder("served")
            running[key] = Tollkeeper(
                home, {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url, **environment}
            ).start()
        return running[key]

    yield get
    for server in running.values():
        server.kill()


@pytest.fixture(scope="session")
def new_customer(session_sandbox: Sandbox) -> MakeCustomer:
    """A new account with exactly these credits on a running server; `rules` are those of its key."""

    async def make(server: Tollkeeper, credits: str, rules: KeyRules) -> Customer:
        database = Database(f"sqlite+aiosqlite:///{server.folder}/var/tollkeeper.db", 1, 5.0)
        try:
            accounts = Accounts(database)
            account_id = await accounts.create("test")
            _, secret = await accounts.create_key(account_id, rules)
            if parse_credits(credits):
                reference = f"grant_{account_id}"
                await Ledger(database).grant(account_id, parse_credits(credits), reference, "test", "test")
        finally:
            await database.close()
        return Customer(server, account_id, secret, session_sandbox)

    def new(server: Tollkeeper, credits: str = RICH, **rules: Any) -> Customer:
        customer = asyncio.run(make(server, credits, KeyRules(**rules)))
        customer.wait_balance(parse_credits(credits))
        return customer

    return new


@pytest.fixture(scope="module")
def _rich(new_customer: MakeCustomer) -> Callable[[Tollkeeper], Customer]:
    known: dict[str, Customer] = {}

    def get(server: Tollkeeper) -> Customer:
        if server.url not in known:
            known[server.url] = new_customer(server)
        return known[server.url]

    return get


@pytest.fixture
def customer_of(_rich: Callable[[Tollkeeper], Customer], sandbox: Sandbox) -> Callable[[Tollkeeper], Customer]:
    """A customer with money to burn on a given server: nothing of an earlier test is held, the sandbox's record is empty."""

    def get(server: Tollkeeper) -> Customer:
        customer = _rich(server)
        wait_until(lambda: customer.held() == 0, 20, "what an earlier test left behind has ended")
        return customer

    return get


@pytest.fixture
def customer(served: Callable[..., Tollkeeper], customer_of: Callable[[Tollkeeper], Customer]) -> Customer:
    """A customer with money to burn on a server with the shipped settings."""
    return customer_of(served())


@pytest.fixture
def always(sandbox: Sandbox) -> Iterator[Callable[..., None]]:
    """Directives that hold for every request, so that a request's own text stays as it is."""

    def set_directive(**directive: Any) -> None:
        sandbox.settings(directive=directive)

    yield set_directive
    sandbox.settings(directive={})


@pytest.fixture
def bank() -> Iterator[Bank]:
    """Stripe's simulator."""
    with open_bank() as opened:
        yield opened


@pytest.fixture
def shop(bank: Bank, make_tollkeeper: Callable[..., Tollkeeper]) -> Tollkeeper:
    """A served Tollkeeper whose webhook the simulator knows."""
    server = make_tollkeeper(**bank_environment(bank)).start()
    bank.control("endpoints", url=f"{server.url}/webhooks/stripe", secret=SECRET)
    return server
