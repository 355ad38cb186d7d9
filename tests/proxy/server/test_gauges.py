"""What gauges say is what the stores have: also of processes that died, and whoever did the work."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
from prometheus_client import CollectorRegistry

import proxy.server.jobs
from billing.balances.redis.store import RedisBalances
from billing.jobs.runs import Runs
from billing.money.findings import Finding
from billing.payments.stripe.inbox import Inbox
from billing.payments.stripe.objects import Event
from billing.storage.database import now_ms
from config.settings import DatabaseSettings, Settings
from proxy.customer_api.money_in import money_in
from proxy.observability.metrics import Metrics
from proxy.server.jobs import JobBook
from tests.support import web
from tests.support.customers import new_customer
from tests.support.figures import metric
from tests.support.servers import RedisServer, Sandbox, Tollkeeper, sandbox_says, wait_until
from tests.support.stores import Books, close_books, open_books, record, request

LEASE_SECONDS = 6


async def test_outstanding_holds_are_those_of_all_processes(folder: Path, redis_server: RedisServer) -> None:
    books = await open_books(folder, redis_server.url)
    other = RedisBalances(redis_server.url, books.ledger, 2, 60_000)
    await other.open()
    try:
        first, second = await books.account(1_000), await books.account(1_000)
        an_hour_ago = now_ms() - 3_600_000
        oldest = record("h1", first, created_at=an_hour_ago)
        await books.store.hold(msgspec.structs.replace(request("h1", first, 300), record=oldest))
        await books.store.hold(request("h2", second, 200))
        for store in (books.store, other):
            found = await store.outstanding()
            assert found[:2] == (2, 500)
            assert found.oldest_ms == pytest.approx(now_ms() - an_hour_ago, abs=60_000)
        await books.store.release("h1", first)
        assert (await other.outstanding())[:2] == (1, 200)
        await books.store.release("h2", second)
        assert await other.outstanding() == (0, 0, 0)
    finally:
        await other.close()
        await close_books(books)


def test_a_hold_whose_process_died_is_shown_until_it_is_resolved(
    folder: Path, redis_server: RedisServer, sandbox: Sandbox
) -> None:
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": sandbox.url,
        "TOLLKEEPER_REDIS__URL": redis_server.url,
        "TOLLKEEPER_LISTEN__WORKERS": "2",
        "TOLLKEEPER_ADVANCED__HOLD_LEASE_SECONDS": str(LEASE_SECONDS),
    }
    server = Tollkeeper(folder, environment).start()
    try:
        customer = new_customer(server)
        assert metric(server, "tollkeeper_holds_outstanding ") == 0
        slow = {
            "stream": True,
            "messages": [{"role": "user", "content": sandbox_says(output_tokens=400, chunk_interval_ms=100)}],
        }
        reading = threading.Thread(
            target=read_until_cut, args=(server, {"model": "gpt-4o-mini", **slow}, customer.headers)
        )
        reading.start()
        wait_until(lambda: metric(server, "tollkeeper_holds_outstanding ") == 1, 10, "the hold is shown, once")
        assert server.process is not None
        for child in psutil.Process(server.process.pid).children():
            if child.name().startswith("tk-worker"):
                os.kill(child.pid, signal.SIGKILL)
        reading.join(20)
        wait_until(
            lambda: metric(server, "tollkeeper_holds_oldest_seconds") >= 2,
            10,
            "it is shown without its process, and grows old",
        )
        assert metric(server, "tollkeeper_holds_outstanding_credits") > 0
        wait_until(lambda: metric(server, "tollkeeper_holds_outstanding ") == 0, LEASE_SECONDS + 15, "it was resolved")
    finally:
        server.kill()


def read_until_cut(server: Tollkeeper, body: dict[str, object], headers: dict[str, str]) -> None:
    try:
        with web.stream("POST", f"{server.v1}/chat/completions", json=body, headers=headers, timeout=30) as answer:
            answer.read()
    except httpx.HTTPError:
        return


def test_a_loss_is_counted_where_it_is_booked(make_tollkeeper: Callable[..., Tollkeeper]) -> None:
    """Once, also when its request was told of it, and also when it was booked after a restart."""
    server = make_tollkeeper().start()
    customer = new_customer(server, 800)
    more_than_held = sandbox_says(output_tokens=100, ignore_cap=True)
    assert customer.chat(more_than_held, model="gpt-4o", max_tokens=10).status_code == 200
    wait_until(
        lambda: metric(server, "tollkeeper_platform_loss_credits_total") == 0.258,
        5,
        "23 in at 2.5, 100 out at 10, of which 800",
    )
    time.sleep(1)
    assert metric(server, "tollkeeper_platform_loss_credits_total") == 0.258


async def test_an_event_that_never_came_has_waited_since_stripe_made_it(sql: Books) -> None:
    """Unless Stripe made it before it ever delivered anything here: then there was no endpoint, and nothing was late."""
    inbox, now = Inbox(sql.database), int(time.time())

    def event(number: int, age_seconds: int) -> Event:
        return Event(id=f"evt_{number}", type="charge.refunded", created=now - age_seconds)

    await inbox.store(event(1, 40_000), b"{}", "sweep")
    assert {one.event_id: one.received_at >= now * 1_000 for one in await inbox.due(10)} == {"evt_1": True}
    await inbox.store(event(2, 90), b"{}", "webhook")
    async with sql.database.write() as connection:
        await connection.exec_driver_sql(
            f"UPDATE stripe_inbox SET received_at = {(now - 3_600) * 1_000} WHERE source = 'webhook'"
        )
    await inbox.store(event(3, 900), b"{}", "sweep")
    since = {one.event_id: one.received_at for one in await inbox.due(10)}
    assert since["evt_1"] >= now * 1_000
    assert since["evt_2"] == (now - 3_600) * 1_000
    assert since["evt_3"] == (now - 900) * 1_000


async def test_what_is_in_dispute_counts_money_and_each_amount_once(sql: Books) -> None:
    """The rows of findings have no units, and of many only the first are kept: the sum is the run's own."""
    many = [Finding("cents", f"p{number}", 0, 2, 10) for number in range(1_200)] + [Finding("detail", "c1", 0, 900, 0)]
    await Runs(sql.database).keep("reconcile", 1, many, "a report\nof two lines")
    standing = await Runs(sql.database).standing("reconcile")
    assert standing is not None
    assert standing[1:3] == (1_201, 24_000)


def test_a_refused_delivery_counts_neither_way() -> None:
    """Stripe's own under another secret was not served well, and what anybody posts is no failing of ours."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for path, status in (
        ("/webhooks/stripe", 400),
        ("/webhooks/stripe", 404),
        ("/webhooks/stripe", 413),
        ("/webhooks/stripe", 200),
        ("/webhooks/stripe", 503),
        ("/api/billing/checkout", 400),
    ):
        metrics.count_side_answer(path, status, selling=True)
    metrics.publish()
    counted = [
        registry.get_sample_value("tollkeeper_slo_total", {"slo": "purchase", "result": result})
        for result in ("good", "bad")
    ]
    assert counted == [2, 1]


async def test_a_fault_of_ours_in_one_check_hides_nothing_that_others_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = await open_books(folder, "")
    account = await books.account(5_000)
    async with books.database.write() as connection:
        await connection.exec_driver_sql("UPDATE balances SET posted_millicredits = 7")
    settings = Settings(database=DatabaseSettings(url=f"sqlite+aiosqlite:///{folder}/ledger.db"))
    metrics = Metrics(CollectorRegistry())

    async def broken(*_: object) -> list[Finding]:
        raise KeyError("hash")

    monkeypatch.setattr(proxy.server.jobs, "check_audit", broken)
    book = JobBook(settings, None, money_in(settings, books.database, metrics), metrics)
    try:
        result = await book.schedule.run("reconcile")
        assert [(one.check, one.subject) for one in result.findings] == [("posted balance vs sum(transfers)", account)]
        assert result.problem == "the audit log: KeyError: 'hash'"
        standing = await Runs(books.database).standing("reconcile")
        assert standing is not None
        assert standing[:3] == (0, 1, 4_993)
    finally:
        await book.close()
        await close_books(books)
