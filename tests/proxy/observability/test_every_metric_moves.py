"""Each metric of docs/metrics.md is moved by what it is there for: real traffic, purchases, faults and edits on a whole product."""

import json
import re
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from billing.payments.stripe.signatures import sign
from tests.support import web
from tests.support.customers import new_customer
from tests.support.fake_stripe import FakeStripe, replace
from tests.support.fake_stripe_server import FakeServer, serve_fake
from tests.support.rate_cards import activate_ends, day
from tests.support.servers import ROOT, RedisServer, Sandbox, Tollkeeper, sandbox_says, wait_until
from tests.support.town import SECRET, environment

DOCUMENTED = re.findall(
    r"^\| `(\w+)` \| (counter|gauge|histogram) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE
)

MODELS = {"openai_calls_total", "openai_tokens_in_total", "openai_tokens_out_total"}
LABELLED_BY_OTHERS = {*MODELS, "tollkeeper_requests_total", "tollkeeper_outcomes_total", "tollkeeper_job_runs_total"}
"""Counters by model, by status, by an error's code; and the first job may have run before anybody looks."""


MOVED_BY_FAULTS = {
    "tollkeeper_replica_failures_total",
    "tollkeeper_replica_lag_seconds",
    "tollkeeper_replica_unused",
    "tollkeeper_stray_holds_total",
    "tollkeeper_upstream_abandoned_credits_total",
    "tollkeeper_upstream_connect_failures_total",
}
"""Series of what only a fault brings about: test_a_hold_that_outlived_its_request_is_settled_and_counted,
test_a_502_says_in_the_log_and_a_metric_why, test_away_in_the_middle_of_load_no_page_fails; or one of several upstreams: test_one_that_fails_under_load_fails_no_request."""


class Watch:
    """Reads /metrics all the time, and remembers every value of every series."""

    def __init__(self, server: Tollkeeper) -> None:
        self.server = server
        self.seen: defaultdict[str, defaultdict[str, set[float]]] = defaultdict(lambda: defaultdict(set))
        self.over = threading.Event()
        self.read()  # what there is before anything happens
        self.thread = threading.Thread(target=self.read_on)
        self.thread.start()

    def read_on(self) -> None:
        while not self.over.wait(0.1):
            self.read()

    def read(self) -> None:
        try:
            text = web.get(f"{self.server.url}/metrics", timeout=10).text
        except httpx.HTTPError:
            return
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.seen[sample.name][json.dumps(sample.labels, sort_keys=True)].add(sample.value)

    def moved(self, name: str) -> bool:
        """Whether any of its series was seen with two values, or appeared with one that is not 0."""
        return any(len(values) > 1 or values != {0} for values in self.seen[name].values())

    def end(self) -> None:
        self.over.set()
        self.thread.join()
        self.read()


@pytest.fixture
def stripe() -> FakeStripe:
    return FakeStripe()


@pytest.fixture
def fake(stripe: FakeStripe) -> Iterator[tuple[FakeServer, str]]:
    with serve_fake(stripe) as served:
        yield served


@pytest.fixture
def busy(
    folder: Path, redis_server: RedisServer, sandbox: Sandbox, fake: tuple[FakeServer, str]
) -> Iterator[Tollkeeper]:
    """Two workers and their jobs, with Stripe, whose files the test edits."""
    (folder / "proxy.toml").write_text("# nothing is changed yet\n")
    more = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": sandbox.url,
        "TOLLKEEPER_REDIS__URL": redis_server.url,
        "TOLLKEEPER_LISTEN__WORKERS": "2",
        "TOLLKEEPER_ADVANCED__FINANCE_SECONDS": "1",
        "TOLLKEEPER_JOBS__MARGIN_TARGET_PERCENT": "10",
        "TOLLKEEPER_BILLING__EXTENDED_MODELS": '["gpt-4o*"]',
        "TOLLKEEPER_LISTEN__MAX_FAILURES_PER_MINUTE": "4",
        "TOLLKEEPER_LISTEN__TRUSTED_PROXIES": '["127.0.0.1/32"]',
    }
    server = Tollkeeper(folder, {**environment(fake[1], "http://127.0.0.1:9/notices"), **more}).start()
    yield server
    server.kill()


def deliver(server: Tollkeeper, payload: bytes, secret: str = SECRET) -> int:
    headers = {"stripe-signature": sign(payload, secret, int(time.time()))}
    return web.post(f"{server.url}/webhooks/stripe", content=payload, headers=headers, timeout=20).status_code


def test_every_metric_moves(
    busy: Tollkeeper, stripe: FakeStripe, fake: tuple[FakeServer, str], redis_server: RedisServer
) -> None:
    watch = Watch(busy)
    try:
        requests_of_every_kind(busy)
        purchases(busy, stripe, fake[0])
        closed_day(busy)
        missed_event(busy, stripe)
        edits(busy)
        activate_ends(busy, gpt_6_luna=day(20))
        wait_until(lambda: watch.moved("tollkeeper_model_shutdown_timestamp_seconds"), 20, "its end is shown")
        faults(busy, redis_server)
    finally:
        watch.end()
    begun = {
        (name, labels): values
        for name, kind in DOCUMENTED
        if kind == "counter" and name not in LABELLED_BY_OTHERS
        for labels, values in watch.seen[name].items()
    }
    assert [series for series, values in begun.items() if 0 not in values] == [], "an increase that rate() did not see"
    suffixes = {"histogram": "_count"}
    assert [
        name
        for name, kind in DOCUMENTED
        if not watch.moved(name + suffixes.get(kind, "")) and name not in MOVED_BY_FAULTS
    ] == []
    assert not any(watch.moved(name) for name in MOVED_BY_FAULTS)
    # and what it moved to, where the traffic above says it
    assert max(watch.seen["billing_credits_purchased_total"]["{}"]) == 2 * 9_990
    assert max(watch.seen["billing_credits_taken_back_total"]['{"kind": "refund"}']) == 6_000
    losses = [json.loads(line)["millicredits"] for line in busy.log().splitlines() if '"event":"platform_loss"' in line]
    assert losses == [
        258
    ]  # gpt-4o: 23 tokens in at 2.5 and 100 out at 10 are 1,058 millicredits, of which there were 800
    assert max(watch.seen["tollkeeper_platform_loss_credits_total"]["{}"]) == pytest.approx(0.258)
    assert max(watch.seen["billing_402_insufficient_credits_total"]['{"source": "balance"}']) == 1
    assert max(watch.seen["tollkeeper_reconciliation_mismatch_credits"]["{}"]) == 5
    assert watch.seen["tollkeeper_rollout_percent"]["{}"] >= {100, 25}
    assert watch.seen["finance_margin_target_ratio"]["{}"] <= {0, 0.1}


def requests_of_every_kind(server: Tollkeeper) -> None:
    """Served, streamed slowly, refused, failed upstream, implausible, and more than could be charged."""
    customer, poor, pays_it_all = new_customer(server), new_customer(server, 1), new_customer(server, 800)
    a_batch(server, customer.headers)
    assert customer.chat(max_tokens=5).status_code == 200
    assert poor.chat(max_tokens=5).status_code == 402
    assert customer.chat(sandbox_says(status=500)).status_code == 500
    assert customer.chat(sandbox_says(status=401)).status_code == 401
    assert (
        customer.chat(
            sandbox_says(usage={"prompt_tokens": 10**9, "completion_tokens": 1, "total_tokens": 10**9 + 1})
        ).status_code
        == 200
    )
    above = sandbox_says(output_tokens=100, ignore_cap=True)
    assert pays_it_all.chat(above, model="gpt-4o", max_tokens=10).status_code == 200
    nobody = {"Authorization": "Bearer tk-nobody", "x-forwarded-for": "192.0.2.1"}
    assert [web.get(f"{server.v1}/models", headers=nobody).status_code for _ in range(20)][-1] == 429
    slow = {
        "model": "gpt-4o-mini",
        "stream": True,
        "messages": [{"role": "user", "content": sandbox_says(output_tokens=40, chunk_interval_ms=50)}],
    }
    with web.stream("POST", f"{server.v1}/chat/completions", json=slow, headers=customer.headers, timeout=30) as answer:
        assert b"[DONE]" in answer.read()


def a_batch(server: Tollkeeper, headers: dict[str, str]) -> None:
    """One line that takes some seconds."""
    upstream = server.environment["TOLLKEEPER_UPSTREAM__BASE_URL"].removesuffix("/v1")
    web.put(f"{upstream}/__sandbox/settings", json={"batch_ms": 4_000}, timeout=10).raise_for_status()
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = {"file": ("in.jsonl", json.dumps(line).encode())}
    made = web.post(f"{server.v1}/files", data={"purpose": "batch"}, files=file, headers=headers, timeout=20)
    asked = {"input_file_id": made.json()["id"], "endpoint": line["url"], "completion_window": "24h"}
    assert web.post(f"{server.v1}/batches", json=asked, headers=headers, timeout=20).status_code == 200


def purchases(server: Tollkeeper, stripe: FakeStripe, fake: FakeServer) -> None:
    """Bought, half of it given back, an event that nobody signed, one of another version, and one that waits for Stripe."""
    customer = new_customer(server, 0)
    made = web.post(
        f"{server.url}/api/billing/checkout", json={"packageCode": "starter"}, headers=customer.headers, timeout=20
    )
    session = made.json()["sessionId"]
    paid_late(server, stripe)
    stripe.pay(session)
    (_, paid) = stripe.events_made[-1]
    assert deliver(server, paid, "whsec_wrong") == 400
    fake.break_next = 10  # Stripe does not answer the worker: the event has to wait
    assert deliver(server, paid) == 200
    time.sleep(2.5)
    fake.break_next = 0
    customer.wait_balance(9_990_000, 30)
    stripe.give_back(stripe.intent_of(session).id, 500)
    (_, refund) = stripe.events_made[-1]
    assert deliver(server, json.dumps({**json.loads(refund), "api_version": "2019-01-01"}).encode()) == 200
    wait_until(lambda: customer.balance() < 9_990_000, 20, "the refund is taken back")


def paid_late(server: Tollkeeper, stripe: FakeStripe) -> None:
    """Another buyer's payment, after its page had expired."""
    customer = new_customer(server, 0)
    made = web.post(
        f"{server.url}/api/billing/checkout", json={"packageCode": "starter"}, headers=customer.headers, timeout=20
    )
    session = made.json()["sessionId"]
    stripe.expire(session)
    assert deliver(server, stripe.events_made[-1][1]) == 200
    purchase = f"{server.url}/api/billing/purchases/{session}"
    wait_until(
        lambda: web.get(purchase, headers=customer.headers, timeout=20).json()["state"] == "expired",
        20,
        "it has expired",
    )
    stripe.sessions_by_id[session] = replace(stripe.sessions_by_id[session], status="open")
    stripe.pay(session)
    assert deliver(server, stripe.events_made[-1][1]) == 200
    customer.wait_balance(9_990_000, 30)


def closed_day(server: Tollkeeper) -> None:
    """As the job `finance` of the day before has left it; transfers of yesterday cannot be made today."""
    day = (datetime.now(UTC) - timedelta(days=2)).date().isoformat()
    row = {
        "day": day,
        "purchased_millicredits": 0,
        "deducted_millicredits": 7_000,
        "cost_millicredits": 6_000,
        "given_away_millicredits": 1_000,  # of the cost: no part of the margin
        "loss_millicredits": 0,
        "liability_millicredits": 0,
        "requests": 1,
        "updated_at": int(time.time() * 1_000),
    }
    with closing(sqlite3.connect(server.folder / "var" / "tollkeeper.db", timeout=10)) as ledger, ledger:
        ledger.execute(f"INSERT INTO finance_daily ({', '.join(row)}) VALUES (:{', :'.join(row)})", row)
    wait_until(
        lambda: "finance_closed_margin_daily_usd 0.002" in web.get(f"{server.url}/metrics").text, 10, "it is shown"
    )


def missed_event(server: Tollkeeper, stripe: FakeStripe) -> None:
    """Stripe made it and never delivered it: the sweep finds it."""
    stripe.give_back(next(iter(stripe.intents_by_id)), 100)
    event, _ = stripe.events_made.pop()
    event = msgspec.structs.replace(event, created=int(time.time()) - 600)  # what is younger may be on its way
    stripe.events_made.append((event, msgspec.json.encode(event)))
    owner = server.cli("admin", "create", "who asks for a sweep", "--role", "owner")["adminKey"]
    asked = {
        "url": f"{server.url}/api/admin/jobs/sweep/run",
        "json": {"reason": "a test"},
        "headers": {"Authorization": f"Bearer {owner}"},
    }
    assert web.post(**asked).status_code == 202
    wait_until(
        lambda: re.search("stripe_events_missed_total [1-9]", web.get(f"{server.url}/metrics").text), 20, "it was found"
    )


def edits(server: Tollkeeper) -> None:
    """A good edit with a key that waits for a restart, a bad one, and an override."""
    file = server.folder / "proxy.toml"
    file.write_text("[rollout]\npercent = 25\n[log]\naccess = false\n")
    wait_until(lambda: web.get(f"{server.url}/readyz").json()["notes"], 5, "the restart key is noted")
    time.sleep(0.6)
    file.write_text("[billing]\nmarkup = 'much'\n")
    wait_until(lambda: "config" in web.get(f"{server.url}/readyz").text, 5, "the bad edit is reported")
    time.sleep(0.6)
    file.write_text("# whole again\n")
    for switch in ("purchase_enabled", "charging_enabled", "auto_recharge"):
        server.cli("flags", "set", switch, "false", "--reason", "a test")
    time.sleep(2.5)
    for switch in ("purchase_enabled", "charging_enabled", "auto_recharge"):
        server.cli("flags", "clear", switch, "--reason", "a test")


def faults(server: Tollkeeper, store: RedisServer) -> None:
    """A copy of a balance that is wrong, a ledger that is locked, a Redis that dies and comes back as another run."""
    still, customer = new_customer(server, 5_000_000), new_customer(server)
    key = next(name for name in redis.Redis(port=store.port).scan_iter(f"*{still.account_id}*"))
    change_balance(store, key, 5_000)
    owner = {"Authorization": f"Bearer {server.cli('admin', 'create', 'the owner', '--role', 'owner')['adminKey']}"}
    ask: dict[str, Any] = {"json": {"reason": "a test"}, "headers": owner, "timeout": 10}
    assert web.post(f"{server.url}/api/admin/jobs/reconcile/run", **ask).status_code == 202
    wait_until(
        lambda: "tollkeeper_reconciliation_mismatch_credits 5.0" in web.get(f"{server.url}/metrics").text, 20, "found"
    )
    with closing(sqlite3.connect(server.folder / "var" / "tollkeeper.db", timeout=10, isolation_level=None)) as ledger:
        ledger.execute("BEGIN EXCLUSIVE")
        for _ in range(3):
            assert customer.chat(max_tokens=5).status_code == 200
        time.sleep(6)
        ledger.execute("ROLLBACK")
    store.kill()
    assert customer.chat(max_tokens=5).status_code == 503
    wait_until(lambda: web.get(f"{server.url}/readyz").status_code == 503, 10, "readiness is red")
    time.sleep(1)
    store.start()
    wait_until(lambda: customer.chat(max_tokens=5).status_code == 200, 20, "the balance is back")


def change_balance(store: RedisServer, key: bytes, by: int) -> None:
    """What nobody may do: write a balance by hand."""
    redis.Redis(port=store.port).hincrby(key, "balance", by)
