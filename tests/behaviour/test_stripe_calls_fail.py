"""Every call of ours to Stripe fails in every way while refunds are asked for twice, by two doors and at once, pages are
clicked, cards are charged by themselves and the server is killed: in the end Stripe's own record has each asking once.

The dice are set by TOLLKEEPER_CALLS_SEED, the number of steps by TOLLKEEPER_CALLS_STEPS.
"""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support import web
from tests.support.bank import CREDITS, Bank, bought
from tests.support.customers import Customer, new_customer
from tests.support.servers import Tollkeeper, wait_until

SEED = int(os.environ.get("TOLLKEEPER_CALLS_SEED", "0")) or time.time_ns() % 2**32
STEPS = int(os.environ.get("TOLLKEEPER_CALLS_STEPS", "30"))
FAILURES: list[dict[str, Any]] = [
    {"kind": "reset", "after": True, "count": 1},
    {"kind": "reset", "after": True, "count": 4},
    {"kind": "reset", "count": 3},
    {"kind": "status", "status": 500, "after": True, "saved": True},
    {"kind": "status", "status": 500, "count": 4},
    {"kind": "status", "status": 429, "count": 2},
    {"kind": "status", "status": 429, "count": 4},
    {"kind": "status", "status": 409, "count": 1},
]
CALLS = [r"/refunds$", r"/checkout/sessions", r"/customers$", r"/payment_intents", r"/events", r"/charges", ""]


@dataclass
class Weather:
    """Who asks for what, and what was asked."""

    shop: Tollkeeper
    bank: Bank
    dice: random.Random
    admin: str = ""
    purchases: list[dict[str, Any]] = field(default_factory=list)
    owners: dict[str, Customer] = field(default_factory=dict)
    asked: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Reference -> (purchase, cents), of every refund that was asked for."""

    def buy(self, customer: Customer) -> None:
        page = bought(self.bank, customer, "pro", savePaymentMethod=True)
        self.purchases.append(page)
        self.owners[page["id"]] = customer

    def fail(self) -> None:
        """Order a failure of the next calls."""
        self.bank.control("faults", **self.dice.choice(FAILURES), path=self.dice.choice(CALLS))

    def mend(self) -> None:
        web.delete(f"{self.bank.url}/__stripe/faults", timeout=10).raise_for_status()

    def refund(self, reference: str) -> httpx.Response | None:
        """Ask over HTTP; None: no answer came (the server was killed)."""
        purchase, cents = self.asked[reference]
        headers = {"Authorization": f"Bearer {self.admin}", "Idempotency-Key": reference}
        body = {"usd": f"{cents // 100}.{cents % 100:02}", "reason": "storm"}
        with contextlib.suppress(httpx.HTTPError):
            url = f"{self.shop.url}/api/admin/purchases/{purchase}/refund"
            return web.post(url, json=body, headers=headers, timeout=60)
        return None

    # -- steps ------------------------------------------------------------------------------------------

    def ask_twice_at_once(self) -> None:
        if not self.asked or self.dice.random() < 0.6:
            purchase = self.dice.choice(self.purchases)
            self.asked[f"r{len(self.asked)}"] = (purchase["id"], self.dice.randint(1, 900))
        reference = self.dice.choice(list(self.asked))
        with ThreadPoolExecutor(2) as hands:
            list(hands.map(self.refund, [reference] * 2))

    def ask_by_command(self) -> None:
        reference = f"c{len(self.asked)}"
        purchase, cents = self.dice.choice(self.purchases)["id"], self.dice.randint(1, 900)
        self.asked[reference] = (purchase, cents)
        usd = f"{cents // 100}.{cents % 100:02}"
        for _ in range(2):
            self.shop.run(
                *("purchases", "refund", purchase, "--usd", usd, "--reason", "storm", "--reference", reference)
            )

    def click(self) -> None:
        customer = self.dice.choice(list(self.owners.values()))
        with contextlib.suppress(httpx.HTTPError):
            url = f"{self.shop.url}/api/billing/checkout"
            web.post(url, json={"packageCode": "starter"}, headers=customer.headers, timeout=60)

    def kill(self) -> None:
        assert self.shop.process is not None
        with ThreadPoolExecutor(1) as hands:
            going = hands.submit(self.ask_twice_at_once)
            time.sleep(self.dice.random() * 0.3)
            self.shop.process.send_signal(signal.SIGKILL)
            self.shop.process.wait()
            going.result()
        self.shop.start()

    def sweep(self) -> None:
        self.shop.run("stripe", "sweep")


def test_each_asking_is_once_at_stripe(bank: Bank, shop: Tollkeeper) -> None:
    print(f"seed {SEED}")
    weather = Weather(shop, bank, random.Random(SEED))
    weather.admin = shop.cli("admin", "create", "finance", "--role", "finance")["adminKey"]
    for _ in range(3):
        weather.buy(new_customer(shop, 0))
    steps = [weather.ask_twice_at_once] * 6 + [weather.click] * 3
    steps += [weather.ask_by_command, weather.kill, weather.sweep]
    for _ in range(STEPS):
        if weather.dice.random() < 0.8:
            weather.fail()
        weather.dice.choice(steps)()
        if weather.dice.random() < 0.5:
            weather.mend()
    weather.mend()
    for reference in weather.asked:
        answer = weather.refund(reference)
        assert answer is not None
        assert answer.status_code == 200, (reference, weather.asked[reference], answer.text)
    bank.drain()
    wait_until(lambda: shop.cli("stripe", "inbox")["waiting"] == 0, 30, "every event is handled")
    record = bank.record()
    made = Counter(row["amount"] for row in record["records"] if row["kind"] == "refunded")
    assert made == Counter(cents for _, cents in weather.asked.values()), f"seed {SEED}"
    paid, bonus = CREDITS["pro"]
    for purchase_id, customer in weather.owners.items():
        back = sum(cents for purchase, cents in weather.asked.values() if purchase == purchase_id)
        customer.wait_balance(paid + bonus - back * 10_000 - bonus * back // 9_999, 20)
    assert shop.run("reconcile").returncode == 0
