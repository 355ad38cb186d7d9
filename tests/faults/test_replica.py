"""A replica of PostgreSQL that is behind, killed or promoted: no page fails, and money does not know that there is one."""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from billing.payments.stripe.signatures import sign
from tests.faults.load import Load, assert_books_match_the_record
from tests.support import web
from tests.support.customers import Customer, new_customer
from tests.support.fake_stripe import FakeStripe
from tests.support.fake_stripe_server import serve_fake
from tests.support.figures import metric
from tests.support.postgres_replica import PostgresReplica, primary_and_replica
from tests.support.servers import EVERY_MODEL, RedisServer, Sandbox, Tollkeeper, wait_until
from tests.support.town import SECRET, environment

START = 1_000_000_000
MONTH = f"{datetime.now(UTC):%Y-%m}"
PAGES = (
    "usage",
    "usage/summary?groupBy=day,model",
    "usage/export",
    f"statement?month={MONTH}",
    f"ledger?cursor={2**53}",
    "ledger",
    "me",
)


@dataclass
class House:
    """The product over Redis and a PostgreSQL with a replica, with two workers, and a Stripe."""

    server: Tollkeeper
    copy: PostgresReplica
    stripe: FakeStripe

    def get(self, path: str, customer: Customer) -> Any:
        answer = web.get(f"{self.server.url}/api/billing/{path}", headers=customer.headers, timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.headers["content-type"].startswith("application/json") else answer.text

    def requests_shown(self, customer: Customer) -> int:
        """Number of requests on the page that sums them up."""
        return int(self.get("usage/summary", customer)["total"]["requests"])

    def used(self) -> bool:
        """Whether both workers read from the replica."""
        return metric(self.server, "tollkeeper_replica_unused") == 0

    def remark(self) -> str:
        """What /readyz remarks about the replica; it is green whatever that is."""
        answer = web.get(f"{self.server.url}/readyz", timeout=5)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["notes"].get("replica", ""))

    def wait_remark(self, wanted: str) -> None:
        wait_until(lambda: self.remark() == wanted, 20, f"/readyz says {wanted!r}")


@pytest.fixture(scope="module")
def built(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[House]:
    home, stripe = new_folder("house"), FakeStripe()
    redis = RedisServer(home / "redis")
    redis.start()
    with primary_and_replica(home) as (url, copy), serve_fake(stripe) as (_, stripe_url):
        more = {
            **environment(stripe_url, "http://127.0.0.1:9/notices"),
            **EVERY_MODEL,
            "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
            "TOLLKEEPER_REDIS__URL": redis.url,
            "TOLLKEEPER_LISTEN__WORKERS": "2",
            "TOLLKEEPER_DATABASE__URL": url,
            "TOLLKEEPER_DATABASE__REPLICA_URL": copy.url,
            "TOLLKEEPER_DATABASE__TIMEOUT_SECONDS": "2",
        }
        server = Tollkeeper(home / "tk", more)
        server.folder.mkdir(exist_ok=True)
        server.start()
        yield House(server, copy, stripe)
        server.kill()
    redis.kill()


@pytest.fixture
def house(built: House) -> House:
    built.copy.mend()
    wait_until(built.used, 20, "pages are read from the replica")
    return built


def deliver(server: Tollkeeper, payload: bytes) -> int:
    headers = {"stripe-signature": sign(payload, SECRET, int(time.time()))}
    return web.post(f"{server.url}/webhooks/stripe", content=payload, headers=headers, timeout=20).status_code


def buy(house: House, customer: Customer) -> None:
    """Buy a package, and pay for it."""
    made = web.post(
        f"{house.server.url}/api/billing/checkout",
        json={"packageCode": "starter"},
        headers=customer.headers,
        timeout=20,
    )
    house.stripe.pay(made.json()["sessionId"])
    assert deliver(house.server, house.stripe.events_made[-1][1]) == 200


def known_to_the_ledger(house: House, customer: Customer) -> int:
    """Number of charges on the ledger's first page, which is the primary's."""
    return sum(row["kind"] == "usage" for row in house.get("ledger?limit=100", customer)["data"])


def show_the_past(house: House, customer: Customer, requests: int) -> bool:
    """Stop replaying, spend, and tell whether pages lack what the balance and the ledger have.

    It has 5 s for that: later than that pages are of the primary. Replaying is left stopped where it was seen.
    """
    wait_until(house.used, 20, "pages are read from the replica")
    house.copy.catch_up()
    house.copy.pause()
    balance = customer.balance()
    charged = float(customer.chat(max_tokens=5).headers["x-credits-charged"]) * 1_000
    assert customer.balance() == balance - charged
    wait_until(lambda: known_to_the_ledger(house, customer) == requests, 5, "it is booked")
    spent = house.get("ledger", customer)["data"][0]["createdAt"]
    time.sleep(1.3)  # in which the primary's own pages would have said that they have it
    statement, usage = house.get(f"statement?month={MONTH}", customer), house.get("usage/summary", customer)
    if (usage["total"]["requests"], statement.count("gpt-4o-mini")) == (requests - 1, int(requests > 1)):
        assert usage["asOf"] < spent, "it says that it has what it has not"
        return True
    house.copy.resume()
    return False


def test_money_is_exact_while_pages_show_the_past(house: House) -> None:
    """Accounts are made after the replica has stopped replaying, so whatever asked it would not know them."""
    known = new_customer(house.server, START)
    seen = any(show_the_past(house, known, requests) for requests in range(1, 6))
    assert seen, "no page was of the replica"
    poor, doomed, buyer = (new_customer(house.server, amount) for amount in (1, START, 0))
    assert poor.chat(max_tokens=500).status_code == 402
    assert doomed.chat(max_tokens=5).status_code == 200
    house.server.cli("key", "revoke", doomed.key_id)
    wait_until(lambda: doomed.chat(max_tokens=5).status_code == 401, 5, "a revoked key ends")
    buy(house, buyer)
    buyer.wait_balance(9_990_000, 10)
    assert [row["kind"] for row in house.get("ledger", buyer)["data"]] == ["purchase"]
    for path in PAGES:
        house.get(path, buyer)  # of an account that the replica does not know yet
    house.wait_remark("pages read the primary: it is more than 5 s behind the primary")
    wait_until(lambda: house.requests_shown(known) == known_to_the_ledger(house, known), 10, "all is shown")
    assert metric(house.server, "tollkeeper_replica_lag_seconds") > 3
    house.copy.resume()
    wait_until(house.used, 10, "it has caught up")
    house.wait_remark("")


@contextmanager
def visitors(house: House, customer: Customer) -> Iterator[list[str]]:
    """Have every page loaded over and over; yields what went wrong."""
    over, wrong = threading.Event(), list[str]()

    def visit(path: str) -> None:
        while not over.is_set():
            try:
                house.get(path, customer)
            except Exception as error:  # whatever it is, the test says it
                wrong.append(f"{path}: {error}")
                return

    threads = [threading.Thread(target=visit, args=(path,)) for path in PAGES]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_away_in_the_middle_of_load_no_page_fails(house: House, session_sandbox: Sandbox, how: signal.Signals) -> None:
    customer = new_customer(house.server, START)
    with visitors(house, customer) as wrong, Load(customer, clients=2) as load:
        load.more(20)
        house.copy.kill(how)
        load.more(20)
        wait_until(lambda: metric(house.server, "tollkeeper_replica_unused") == 1, 10, "it is said to be away")
        house.wait_remark("pages read the primary: it does not answer")
        load.more(20)
        house.copy.mend()
        wait_until(house.used, 20, "pages are read from it again")
        load.more(20)
    assert wrong == []
    assert set(load.statuses) == {200}
    rows = assert_books_match_the_record(customer, session_sandbox, load, START)
    wait_until(lambda: house.requests_shown(customer) == len(rows), 10, "every request is shown")


def test_promoted_it_is_not_read_from(house: House) -> None:
    customer = new_customer(house.server, START)
    house.copy.catch_up()
    house.copy.promote()
    wait_until(lambda: not house.used(), 10, "it is left")
    assert customer.chat(max_tokens=5).status_code == 200
    wait_until(lambda: house.requests_shown(customer) == 1, 10, "the request is shown")
    time.sleep(2.5)  # two looks more
    said = re.findall("the replica is not read from.*: it is no replica", house.server.log())
    assert len(said) == 2, "once by each worker"
    house.wait_remark("pages read the primary: it is no replica: it takes writes itself")
