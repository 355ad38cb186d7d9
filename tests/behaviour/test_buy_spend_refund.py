"""The whole product with Stripe on the other side: buy, spend, refund, 402, recharge, notices, and the commands around it."""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from billing.payments.stripe.signatures import verify
from tests.support import web
from tests.support.customers import acting_for, new_customer
from tests.support.fake_stripe import FakeStripe
from tests.support.fake_stripe_server import serve_fake
from tests.support.servers import RedisServer, Tollkeeper, wait_until
from tests.support.town import NOTICES, Town, environment


@pytest.fixture
def notices() -> Iterator[tuple[str, list[tuple[bytes, str]]]]:
    """The operator's app."""
    taken: list[tuple[bytes, str]] = []

    class App(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            taken.append((body, self.headers["tollkeeper-signature"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), App)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hooks", taken
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["embedded", "redis"])
def town(
    request: pytest.FixtureRequest,
    make_tollkeeper: Callable[..., Tollkeeper],
    notices: tuple[str, list[tuple[bytes, str]]],
) -> Iterator[Town]:
    stripe = FakeStripe()
    with serve_fake(stripe) as (fake, api_base):
        more = environment(api_base, notices[0])
        if request.param == "redis":
            redis: RedisServer = request.getfixturevalue("redis_server")
            more |= {"TOLLKEEPER_REDIS__URL": redis.url, "TOLLKEEPER_LISTEN__WORKERS": "2"}
        server = make_tollkeeper(**more).start()
        yield Town(server, stripe, fake, notices[1])
        server.kill()


def test_buy_spend_and_give_back(town: Town) -> None:
    customer = new_customer(town.server, 0)
    refused = customer.chat()
    assert refused.status_code == 402
    page = town.buy(customer)
    assert page["url"].startswith("https://checkout.stripe.test/")
    town.stripe.pay(page["sessionId"])
    began = time.monotonic()
    town.deliver()
    customer.wait_balance(9_990_000, 3)
    assert time.monotonic() - began < 3
    assert customer.chat(max_tokens=5).status_code == 200
    purchase = web.get(f"{town.server.url}/api/billing/purchases/{page['sessionId']}", headers=customer.headers).json()
    assert purchase["state"] == "credited"
    town.stripe.give_back(town.stripe.intent_of(page["sessionId"]).id, 999)
    town.deliver()
    wait_until(lambda: customer.balance() < 0, 5, "a balance below zero")
    refused = customer.chat()
    assert refused.status_code == 402
    assert refused.json()["topUpUrl"] == f"{town.server.url}/credits"
    second = town.buy(customer)
    town.stripe.pay(second["sessionId"])
    town.deliver()
    wait_until(lambda: customer.balance() > 0, 5, "cured")
    assert customer.chat(max_tokens=5).status_code == 200
    metrics = web.get(f"{town.server.url}/metrics").text
    assert 'stripe_webhook_events_total{type="checkout.session.completed"} 2.0' in metrics
    assert "billing_credits_purchased_total 19980.0" in metrics
    town.server.cli("drain")
    town.server.cli("reconcile")


def test_a_landing_buyer_is_credited_though_no_webhook_ever_comes(town: Town) -> None:
    customer = new_customer(town.server, 0)
    page = town.buy(customer)
    town.stripe.pay(page["sessionId"])
    landed = web.get(
        f"{town.server.url}/api/billing/purchases/{page['sessionId']}", headers=customer.headers, timeout=20
    ).json()
    assert landed["state"] == "credited"
    customer.wait_balance(9_990_000, 3)


def test_auto_recharge_and_low_balance_follow_real_spending(town: Town) -> None:
    customer = new_customer(town.server, 0)
    page = town.buy(customer, savePaymentMethod=True)
    town.stripe.pay(page["sessionId"])
    town.deliver()
    customer.wait_balance(9_990_000, 3)
    time.sleep(1.2)  # armed: the watch has seen it above
    wish = {
        "enabled": True,
        "thresholdMillicredits": "9989999",
        "packageCode": "starter",
        "monthlyCeilingCents": 2_000,
        "consent": True,
    }
    put = web.put(f"{town.server.url}/api/billing/auto-recharge", json=wish, headers=acting_for(customer))
    assert put.status_code == 200, put.text
    time.sleep(1.2)
    assert len(town.stripe.orders) == 1
    assert customer.chat(max_tokens=50).status_code == 200  # falls below by itself
    wait_until(lambda: customer.balance() > 19_000_000, 10, "recharged")
    town.deliver()
    time.sleep(1.2)
    assert len([intent for intent in town.stripe.intents_by_id.values() if intent.status == "succeeded"]) == 2
    town.server.cli("grant", customer.account_id, "-19900", "--reason", "test")
    body, signature = wait_until(
        lambda: next((one for one in town.notices if json.loads(one[0])["kind"] == "balance.low"), None),
        10,
        "the notice",
    )
    verify(body, signature, [NOTICES], int(time.time()), 300)
    told = json.loads(body)
    assert (told["kind"], told["accountId"]) == ("balance.low", customer.account_id)
    # it is noted after the other side has answered
    wait_until(
        lambda: (
            {row["state"] for row in town.server.cli("notices")["data"] if row["kind"] == "balance.low"} == {"sent"}
        ),
        10,
        "the notice is noted as sent",
    )


def test_the_commands(town: Town, folder: Path) -> None:
    customer = new_customer(town.server, 0)
    page = town.buy(customer, "pro")
    town.stripe.pay(page["sessionId"])  # and no webhook is delivered
    swept = town.server.cli("stripe", "sweep", "--days", "2")
    assert swept["eventsMissed"] + len(swept["fixed"]) >= 1
    customer.wait_balance(109_989_000, 5)
    assert town.server.cli("stripe", "sweep")["fixed"] == []
    inbox = town.server.cli("stripe", "inbox", "--state", "done")
    assert inbox["waiting"] == 0
    assert {row["source"] for row in inbox["data"]} == {"sweep"}
    replayed = town.server.cli("stripe", "replay", inbox["data"][0]["eventId"])
    assert replayed["state"] == "done"
    assert customer.balance() == 109_989_000
    missing = town.server.cli("stripe", "replay", "evt_none", code=1)
    assert "evt_none" in missing["error"]
    (row,) = town.server.cli("stripe", "purchases", customer.account_id)["data"]
    assert (row["state"], row["packageCode"]) == ("credited", "pro")
    journal = town.server.cli("books", "journal")["data"]
    assert sum(int(line["debitMillicredits"]) - int(line["creditMillicredits"]) for line in journal) == 0
    assert {"cash", "deferred revenue"} <= {line["account"] for line in journal}
    assert town.server.cli("books", "days")["data"][-1]["liabilityMillicredits"] == "109989000"
    done = town.server.run("books", "journal", "--output", str(folder / "journal.csv"))
    assert done.returncode == 0
    assert (folder / "journal.csv").read_text().startswith("day,account,debitUsd,creditUsd")
    assert town.server.run("stripe", "sweep", "--days", "31").returncode == 2
    assert town.server.run("stripe", "sweep", STRIPE_API_KEY="", STRIPE_WEBHOOK_SECRET="").returncode == 2
    assert town.server.run("check-config", STRIPE_WEBHOOK_SECRET="").returncode == 2
    told = wait_until(lambda: town.server.cli("notices")["data"], 10, "a notice")
    assert [row["kind"] for row in told] == ["purchase.credited"]
    assert town.server.cli("reconcile", "--no-stripe")["ok"] is True


def test_it_does_not_start_without_a_webhook_secret(make_tollkeeper: Callable[..., Tollkeeper]) -> None:
    done = make_tollkeeper(STRIPE_API_KEY="sk_test_1").run("serve")
    assert done.returncode == 2
    assert "anybody could say that they paid" in done.stderr


def test_reconcile_asks_stripe_and_names_what_differs(town: Town) -> None:
    town.server.wait_first_sweep()
    customer = new_customer(town.server, 0)
    page = town.buy(customer)
    town.stripe.pay(page["sessionId"])
    town.stripe.age(1_000)  # paid long ago, and never credited
    found = town.server.cli("reconcile", code=1)
    assert [row["check"] for row in found["findings"]] == ["paid at Stripe vs credited purchase (cents)"]
    town.server.cli("stripe", "sweep")
    town.server.cli("drain")
    assert town.server.cli("reconcile")["ok"] is True
