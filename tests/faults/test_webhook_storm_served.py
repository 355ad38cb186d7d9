"""The storm of test_storm.py against the real things: `tollkeeper serve` on Redis and PostgreSQL, and sandbox/stripe as a process of its own.

Accounts buy at `POST /api/billing/checkout`; what becomes of the payments is played at the simulator, whose deliveries come 1 to 5 times,
shuffled, 16 at once, while the jobs process is killed again and again and now and then a worker. At the end the ledger must say of every
purchase, refund and dispute what the simulator's own record says, and nothing else. The size is set by
TOLLKEEPER_STORM_SERVED=deliveries,kills (docs/stripe.md has a run of 10000,200), the dice by
TOLLKEEPER_STORM_SEED.
"""

import asyncio
import contextlib
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import text

from billing.payments.stripe.event_types import API_VERSION, KINDS
from billing.storage.database import Database
from tests.support import web
from tests.support.bank import CREDITS, Bank
from tests.support.customers import Customer, database_url, new_customer
from tests.support.live import SECRET, start_bank, stripe_environment
from tests.support.servers import RedisServer, Tollkeeper, wait_until, within

DELIVERIES, KILLS = (int(part) for part in os.environ.get("TOLLKEEPER_STORM_SERVED", "600,6").split(","))
SEED = int(os.environ.get("TOLLKEEPER_STORM_SEED", "0")) or 20_261_127
PER_HISTORY = 20
"""Deliveries that a history comes to on average, at the least: 7 to 8 events, each sent 3 times."""
HISTORIES = max(1, DELIVERIES // PER_HISTORY)
HANDS = 8
"""Histories lived at the same time."""
BOUND_SECONDS = 300
LEASE_SECONDS = 3.0
"""For so long a killed jobs process still holds the lease, and the next one waits."""
OUTCOMES = ["succeed"] * 6 + ["authenticate", "refund_pending", "decline", "delay", "delay", "delay_fail"]
HANDLED = "SELECT count(*) FROM stripe_inbox WHERE handled_at IS NOT NULL"
WAITING = "SELECT count(*) FROM stripe_inbox WHERE handled_at IS NULL"


class Sql:
    """The product's database, read from outside over one connection."""

    def __init__(self, url: str, runner: "asyncio.Runner") -> None:
        self._database, self._runner = Database(url, 1, 20.0), runner

    def rows(self, query: str) -> list[Any]:
        async def read() -> list[Any]:
            async with self._database.read() as connection:
                return list((await connection.execute(text(query))).all())

        return self._runner.run(read())

    def count(self, query: str) -> int:
        return int(self.rows(query)[0][0])

    def close(self) -> None:
        self._runner.run(self._database.close())


@pytest.fixture
def bank() -> Iterator[Bank]:
    url, process = start_bank("--seed", str(SEED))
    yield Bank(url, process)
    process.kill()
    process.communicate()


@pytest.fixture
def shop(
    bank: Bank, redis_server: RedisServer, empty_postgres: str, make_tollkeeper: Callable[..., Tollkeeper]
) -> Tollkeeper:
    """Two workers and a jobs process, whose webhook the simulator knows as docs/stripe.md says."""
    server = make_tollkeeper(
        **stripe_environment(bank.url),
        TOLLKEEPER_REDIS__URL=redis_server.url,
        TOLLKEEPER_DATABASE__URL=empty_postgres,
        TOLLKEEPER_LISTEN__WORKERS="2",
        TOLLKEEPER_ADVANCED__SAME_CHECKOUT_SECONDS="0",
    ).start()
    bank.control(
        "endpoints",
        url=f"{server.url}/webhooks/stripe",
        secret=SECRET,
        enabled_events=list(KINDS),
        api_version=API_VERSION,
    )
    # the first retry after 60 ms: a copy that met a killed worker is soon back in the crowd
    chaos = {"copies_min": 1, "copies_max": 5, "shuffle_ms": 1_500, "parallel": 16, "retry_scale": 0.001, "seed": SEED}
    bank.settings(delivery=chaos, async_delay_s=0.5, refund_delay_s=0.5)
    return server


@pytest.fixture
def sql(shop: Tollkeeper) -> Iterator[Sql]:
    with asyncio.Runner() as runner:
        opened = Sql(database_url(shop), runner)
        yield opened
        opened.close()


class Weather:
    """Generated histories, spread over the kills, so that no kill finds the place empty."""

    def __init__(self, server: Tollkeeper, bank: Bank, customers: list[Customer]) -> None:
        self.server, self.bank, self.customers = server, bank, customers
        self.sold: dict[str, tuple[str, str]] = {}
        """Session → account and package, as checkout answered."""
        self.lock = threading.Lock()
        self.kills = self.lost_clicks = 0

    @contextlib.contextmanager
    def blowing(self) -> Iterator[None]:
        """Live every history beside what the caller does."""
        with ThreadPoolExecutor(HANDS) as hands:
            lives = [hands.submit(self.live, number) for number in range(HISTORIES)]
            try:
                yield
            finally:
                self.kills = KILLS  # nobody waits for kills that do not come any more
            for life in lives:
                life.result()

    def live(self, number: int) -> None:
        """One purchase, from the click to whatever becomes of it. Its dice are its own: they do not depend on who is faster."""
        dice = random.Random(f"{SEED}:{number}")
        while number * KILLS > (self.kills + 1) * HISTORIES:
            time.sleep(0.02)
        session = self.click(dice.choice(self.customers), dice.choice(sorted(CREDITS)))
        if session is None:
            return
        pause(dice)
        if dice.random() < 0.08:
            self.bank.control(f"sessions/{session}/expire")
            return
        outcome = dice.choice(OUTCOMES)
        if outcome == "decline":
            declined = web.post(
                f"{self.bank.url}/__stripe/sessions/{session}/pay", json={"outcome": outcome}, timeout=40
            )
            assert declined.status_code == 402, declined.text
            pause(dice)
        self.bank.control(f"sessions/{session}/pay", outcome="succeed" if outcome == "decline" else outcome)
        if outcome == "delay_fail":
            return
        paid = wait_until(lambda: self.paid(session), 20, "the money arrives at the simulator")
        self.afterwards(dice, session, paid)

    def click(self, customer: Customer, code: str) -> str | None:
        """Open a page; a click that met a dying worker is made again, as a person would. None: two clicks at once got one page."""
        for _ in range(20):
            try:
                url = f"{self.server.url}/api/billing/checkout"
                answer = web.post(url, json={"packageCode": code}, headers=customer.headers, timeout=20)
            except httpx.TransportError:
                self.lost_clicks += 1
                time.sleep(0.2)
                continue
            assert answer.status_code == 201, answer.text
            session, sale = str(answer.json()["sessionId"]), (customer.account_id, code)
            with self.lock:
                met = session in self.sold
                self.sold[session] = sale
            return None if met else session
        raise AssertionError("no worker takes a click")

    def paid(self, session: str) -> int:
        rows = web.get(
            f"{self.bank.url}/__stripe/record", params={"session": session, "kind": "paid"}, timeout=20
        ).json()["records"]
        return int(rows[0]["amount"]) if rows else 0

    def afterwards(self, dice: random.Random, session: str, paid: int) -> None:
        """Refunds of parts, some of which fail, and a dispute on top of them, which may take more than is left."""
        left = paid
        for _ in range(dice.choice([0, 1, 1, 2, 3])):
            if not left:
                break
            pause(dice)
            amount = dice.randint(1, left)
            refund = self.bank.control("refunds", session=session, amount=amount)
            if dice.random() < 0.25:
                pause(dice)
                self.bank.control(f"refunds/{refund['id']}", action=dice.choice(["fail", "cancel"]))
            else:
                left -= amount
        if dice.random() < 0.4:
            pause(dice)
            dispute = self.bank.control("disputes", session=session, amount=dice.choice([paid, dice.randint(1, paid)]))
            if dice.random() < 0.8:
                pause(dice)
                self.bank.control(f"disputes/{dispute['id']}", action=dice.choice(["won", "lost"]))


def pause(dice: random.Random) -> None:
    time.sleep(dice.uniform(0, 0.3))


class Killer:
    """Kills the served children, and counts what the kills met."""

    def __init__(self, server: Tollkeeper, sql: Sql, dice: random.Random) -> None:
        assert server.process is not None
        self.parent, self.sql, self.dice = psutil.Process(server.process.pid), sql, dice
        self.jobs_killed = self.workers_killed = self.met_waiting = self.met_working = 0

    def alive(self, *names: str) -> list[psutil.Process]:
        found = []
        for child in self.parent.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # gone between two looks
                if child.name() in names and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
        return found

    def kill_jobs(self) -> None:
        """At any moment: one in four in the seconds after its start, the others in the second after it has begun to handle what waits."""
        (jobs,) = wait_until(lambda: self.alive("tk-jobs"), 20, "the jobs process was started again")
        before = self.sql.count(HANDLED)
        if self.dice.random() < 0.25:
            time.sleep(self.dice.uniform(0, LEASE_SECONDS))
        else:
            end = time.monotonic() + 3 * LEASE_SECONDS  # perhaps nothing comes
            while self.sql.count(HANDLED) == before and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(self.dice.uniform(0, 1))
        waits = self.sql.count(WAITING) > 0
        self.met_waiting += waits
        self.met_working += waits and self.sql.count(HANDLED) > before
        jobs.kill()
        self.jobs_killed += 1
        wait_until(lambda: jobs.pid not in [child.pid for child in self.alive("tk-jobs")], 5, "it is dead")

    def kill_worker(self) -> None:
        """Not before the last one that was killed serves again: with none there is no storm, only an outage."""
        names = ("tk-worker-0", "tk-worker-1")
        workers = wait_until(lambda: len(found := self.alive(*names)) == 2 and found, 20, "two workers")
        self.dice.choice(workers).kill()
        self.workers_killed += 1


@pytest.mark.timeout(240 + 15 * KILLS)
def test_a_storm_over_the_served_product_ends_at_the_simulators_record(shop: Tollkeeper, bank: Bank, sql: Sql) -> None:
    print(f"TOLLKEEPER_STORM_SEED={SEED}")
    dice = random.Random(SEED)
    began = time.monotonic()
    weather = Weather(shop, bank, [new_customer(shop, 0) for _ in range(4 + HISTORIES // 20)])
    killer = Killer(shop, sql, dice)
    with weather.blowing():
        while killer.jobs_killed < KILLS:
            killer.kill_jobs()
            weather.kills = killer.jobs_killed
            if dice.random() < 0.15:
                killer.kill_worker()
    sent = everything_arrives(bank)
    wait_until(lambda: sql.count(WAITING) == 0, BOUND_SECONDS, "every event is handled")
    took = time.monotonic() - began
    slowest = max(row[0] - row[1] for row in sql.rows("SELECT handled_at, received_at FROM stripe_inbox")) / 1_000
    print(
        f"{sent['deliveries']} deliveries of {len(sent['events'])} events, {sent['again']} sent again, {len(weather.sold)} pages"
    )
    print(
        f"{KILLS} kills of tk-jobs ({killer.met_waiting} met waiting events, {killer.met_working} in the middle of handling them)"
    )
    print(
        f"{killer.workers_killed} kills of workers, {weather.lost_clicks} clicks made again; slowest event {slowest:.1f} s, {took:.0f} s in all"
    )
    assert slowest < within(BOUND_SECONDS)
    inbox = sql.rows("SELECT event_id, source, state FROM stripe_inbox")
    assert {row[0] for row in inbox} == sent["events"]
    assert {row[1] for row in inbox} == {"webhook"}, "nothing had to be fetched"
    assert {row[2] for row in inbox} == {"done"}, "all were ours and of types we handle"
    shop.cli("drain")
    record = bank.record()
    assert {row["kind"] for row in record["records"]} == {
        "paid",
        "refunded",
        "refund_failed",
        "disputed",
        "dispute_won",
        "dispute_lost",
    }
    everything_moved_once(sql, record)
    credits_are_the_records(sql, record, weather)
    assert shop.cli("stripe", "sweep", "--days", "1")["fixed"] == []
    assert shop.cli("reconcile")["findings"] == []
    journal = shop.cli("books", "journal")["data"]
    assert sum(int(line["debitMillicredits"]) - int(line["creditMillicredits"]) for line in journal) == 0


def everything_arrives(bank: Bank) -> dict[str, Any]:
    """Wait for the last copy; what was sent, by the simulator's list of its requests."""
    wait_until(lambda: bank.control("drain", timeout_s=1)["drained"], 60, "every copy arrived")
    sendings = web.get(f"{bank.url}/__stripe/deliveries", timeout=60).json()["deliveries"]
    attempts = [attempt["status"] for sending in sendings for attempt in sending["attempts"]]
    assert {sending["state"] for sending in sendings} == {"delivered"}
    assert set(attempts) <= {200, None}, "every answer is an acknowledgement; None: its worker died"
    delivered = attempts.count(200)
    assert delivered == sum(sending["copies"] for sending in sendings)
    return {
        "events": {sending["event"] for sending in sendings},
        "deliveries": delivered,
        "again": len(attempts) - delivered,
    }


def everything_moved_once(sql: Sql, record: Any) -> None:
    """What each purchase, refund, fee and movement of a dispute did to `cash`, against the record: twice would be double, never is missing."""
    expected: defaultdict[str, int] = defaultdict(int)
    for row in record["records"]:
        taken = -1 if row["kind"] in ("refunded", "disputed") else 1
        # what a dispute moves is known by Stripe's balance transactions, and a fee always is
        known_by = {
            "paid": row["client_reference_id"],
            "disputed": row["balance_transaction"],
            "dispute_won": row["balance_transaction"],
        }
        if row["kind"] != "dispute_lost":
            expected[known_by.get(row["kind"], row["refund"])] += taken * row["amount"] * 10_000
        if row["fee"]:
            expected[row["balance_transaction"]] -= row["fee"] * 10_000
    found: defaultdict[str, int] = defaultdict(int)
    for reference, debit, amount in sql.rows(
        "SELECT reference_id, debit_account, amount_millicredits FROM transfers WHERE 'cash' IN (debit_account, credit_account)"
    ):
        found[reference.partition(":")[0]] += amount if debit == "cash" else -amount
    assert nonzero(found) == nonzero(expected)
    assert sum(found.values()) == record["totals"]["net"] * 10_000


def nonzero(sums: dict[str, int]) -> dict[str, int]:
    return {key: amount for key, amount in sums.items() if amount}


def credits_are_the_records(sql: Sql, record: Any, weather: Weather) -> None:
    """Purchase by purchase in the ledger, and account by account in the ledger and at the side API."""
    purchase_of = {
        row[key]: row["client_reference_id"] for row in record["records"] for key in ("refund", "dispute") if row[key]
    }
    purchase_by_session = {row["session"]: row["client_reference_id"] for row in record["records"]}
    accounts = dict.fromkeys((customer.account_id for customer in weather.customers), 0)
    expected: dict[tuple[str, str], int] = {}
    for payment in record["payments"].values():
        account, code = weather.sold[payment["session"]]
        left = credits_left(code, payment)
        expected[account, purchase_by_session[payment["session"]]] = left
        accounts[account] += left
    found: defaultdict[tuple[str, str], int] = defaultdict(int)
    in_ledger = dict.fromkeys(accounts, 0)
    for reference, debit, credit, amount in sql.rows(
        "SELECT reference_id, debit_account, credit_account, amount_millicredits FROM transfers"
    ):
        about = reference.partition(":")[0]
        for name, effect in ((debit, -amount), (credit, amount)):
            if name.startswith("customer:"):
                account = name.removeprefix("customer:")
                found[account, purchase_of.get(about, about)] += effect
                in_ledger[account] += effect
    assert dict(found) == expected
    assert in_ledger == accounts
    assert {customer.account_id: customer.balance() for customer in weather.customers} == accounts


def credits_left(code: str, payment: dict[str, int]) -> int:
    """Millicredits of a package, less what went back: of the paid part the cents, of the bonus its share, rounded for the customer."""
    paid, bonus = CREDITS[code]
    back = payment["refunded"] - payment["refund_failed"] + payment["disputed"] - payment["dispute_won"]
    counted = min(back, payment["paid"])
    return paid - counted * 10_000 + bonus - int(Fraction(bonus * counted, payment["paid"]))
