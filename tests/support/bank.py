"""Stripe's simulator as a process, and what it recorded."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support import web
from tests.support.customers import Customer
from tests.support.servers import ROOT, wait_until
from tests.support.town import PACKAGES

SECRET = "whsec_simulated"
CREDITS = {"starter": (9_990_000, 0), "pro": (99_990_000, 9_999_000)}


@dataclass
class Bank:
    """The simulator as a process, by its control paths."""

    url: str
    process: subprocess.Popen[bytes]

    def control(self, what: str, /, **body: Any) -> Any:
        answer = web.post(f"{self.url}/__stripe/{what}", json=body, timeout=100)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def settings(self, **changes: Any) -> None:
        web.put(f"{self.url}/__stripe/settings", json=changes, timeout=10).raise_for_status()

    def record(self) -> Any:
        return web.get(f"{self.url}/__stripe/record", timeout=10).json()

    def drain(self) -> None:
        assert self.control("drain", timeout_s=90)["drained"] is True


@contextlib.contextmanager
def open_bank() -> Iterator[Bank]:
    """Run the simulator."""
    process = subprocess.Popen([sys.executable, "-m", "sandbox.stripe"], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    found = re.search(rb"http://\S+", process.stdout.readline())
    assert found is not None
    yield Bank(found[0].decode(), process)
    process.kill()
    process.communicate()


def bank_environment(bank: Bank) -> dict[str, str]:
    """A Tollkeeper's, beside that simulator."""
    return {
        "STRIPE_API_KEY": "sk_test_sandbox",
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "TOLLKEEPER_STRIPE__API_BASE": bank.url,
        "TOLLKEEPER_STRIPE__SUCCESS_URL": "https://app.test/ok?s={CHECKOUT_SESSION_ID}",
        "TOLLKEEPER_STRIPE__CANCEL_URL": "https://app.test/no",
        "TOLLKEEPER_STRIPE__MAX_CHECKOUTS_PER_HOUR": "0",
        "TOLLKEEPER_ADVANCED__SAME_CHECKOUT_SECONDS": "0",
        "TOLLKEEPER_BILLING__AUTO_RECHARGE": "true",
        "TOLLKEEPER_PACKAGES": PACKAGES,
    }


def checkout(customer: Customer, code: str = "starter", **more: Any) -> dict[str, Any]:
    """A payment page of that customer's."""
    url = f"{customer.server.url}/api/billing/checkout"
    answer = web.post(url, json={"packageCode": code, **more}, headers=customer.headers, timeout=20)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def bought(bank: Bank, customer: Customer, code: str = "starter", **more: Any) -> dict[str, Any]:
    """A package of that customer's, paid and credited."""
    page = checkout(customer, code, **more)
    bank.control(f"sessions/{page['sessionId']}/pay")
    bank.drain()
    wait_until(lambda: purchase_of(customer, page["id"])["state"] == "credited", 10, "it is credited")
    return page


def purchase_of(customer: Customer, purchase_id: str) -> dict[str, Any]:
    """One purchase as its owner sees it."""
    answer = web.get(f"{customer.server.url}/api/billing/purchases/{purchase_id}", headers=customer.headers, timeout=20)
    found: dict[str, Any] = answer.json()
    return found
