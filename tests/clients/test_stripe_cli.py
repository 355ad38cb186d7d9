"""Stripe's own command line (npm `@stripe/cli-linux-x64`, in tests/clients/node) drives the simulator that our tests trust.

Its fixtures are Stripe's: what they ask for must work at sandbox/stripe, and the events that follow must be taken by the served
product. These are other people's payments, and of another API version than ours: stored, counted, handled, and nobody's credits move.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from billing.payments.stripe.event_types import KINDS
from tests.support import web
from tests.support.customers import Customer, new_customer
from tests.support.servers import ROOT, Sandbox, Tollkeeper, wait_until
from tests.support.town import PACKAGES

STRIPE = ROOT / "tests" / "clients" / "node" / "node_modules" / "@stripe" / "cli-linux-x64" / "bin" / "stripe"
SECRET = "whsec_by_cli"
OLD_VERSION = "2026-08-26.dahlia"
"""What version 1.52.0 of the CLI was made for."""
LACKING = {"payment_intent.processing"}
"""The CLI makes it with a SEPA mandate, which the simulator has not: delayed payments are tested with us_bank_account."""
FOREIGN = ("customer.created", "product.created", "price.created", "payment_intent.created", "setup_intent.created")
STARTER = 9_990_000


@dataclass
class Town:
    """The served product, the simulator, and the CLI."""

    server: Tollkeeper
    bank: str
    home: Path
    customer: Customer

    def stripe(self, *arguments: str, at_bank: bool = True) -> str:
        """A command of the CLI's: what it prints. It must succeed."""
        assert STRIPE.is_file(), "no Stripe CLI: `make install-dev` installs it with npm (linux-x64)"
        where = ("--api-base", self.bank, "--api-key", "sk_test_sandbox") if at_bank else ()
        quiet = {
            "STRIPE_CLI_TELEMETRY_OPTOUT": "1",
            "DO_NOT_TRACK": "1",
        }  # without a way out to Stripe it panics now and then
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home), **quiet}
        done = subprocess.run(
            [str(STRIPE), *arguments, *where],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.home,
        )
        assert done.returncode == 0, (arguments, done.stdout[-2_000:], done.stderr[-2_000:])
        return done.stdout

    def control(self, what: str, method: str = "POST", **body: Any) -> Any:
        answer = web.request(method, f"{self.bank}/__stripe/{what}", json=body, timeout=40)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def drain(self) -> list[dict[str, Any]]:
        """Every delivery there was, once none is under way and all that was delivered is handled."""
        self.control("clock", "PUT", advance_s=5)  # banks and refunds that take their time are done
        assert self.control("drain", timeout_s=30)["drained"] is True
        wait_until(lambda: self.server.cli("stripe", "inbox")["waiting"] == 0, 20, "an empty inbox")
        found: list[dict[str, Any]] = self.control("deliveries", "GET")["deliveries"]
        return found

    def inbox(self) -> list[dict[str, Any]]:
        """Every stored event."""
        states = ("pending", "parked", "done", "ignored")
        return [
            row
            for state in states
            for row in self.server.cli("stripe", "inbox", "--state", state, "--limit", "500")["data"]
        ]

    def mismatches(self) -> int:
        found = re.search(
            r"^stripe_event_version_mismatches_total ([\d.]+)", web.get(f"{self.server.url}/metrics").text, re.MULTILINE
        )
        return int(float(found[1])) if found else 0

    def supported(self) -> set[str]:
        text = self.stripe("trigger", "--help", at_bank=False)
        return set(re.findall(r"^  ([a-z_]+(?:\.[a-z_]+)+)$", text, re.MULTILINE))

    def buy(self) -> str:
        """A paid and credited starter: its payment intent."""
        url, before = f"{self.server.url}/api/billing/checkout", self.customer.balance()
        page = web.post(url, json={"packageCode": "starter"}, headers=self.customer.headers, timeout=20).json()
        self.control(f"sessions/{page['sessionId']}/pay")
        self.customer.wait_balance(before + STARTER, 10)
        return str(json.loads(self.stripe("get", f"/v1/checkout/sessions/{page['sessionId']}"))["payment_intent"])


@pytest.fixture(scope="module")
def town(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Town]:
    home = new_folder("stripe-cli")
    command = [sys.executable, "-m", "sandbox.stripe", "--api-version", OLD_VERSION]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    found = re.search(rb"http://\S+", process.stdout.readline())
    assert found is not None
    bank = found[0].decode()
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "STRIPE_API_KEY": "sk_test_sandbox",
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "TOLLKEEPER_STRIPE__API_BASE": bank,
        "TOLLKEEPER_STRIPE__SUCCESS_URL": "https://app.test/ok?s={CHECKOUT_SESSION_ID}",
        "TOLLKEEPER_STRIPE__CANCEL_URL": "https://app.test/no",
        "TOLLKEEPER_ADVANCED__SAME_CHECKOUT_SECONDS": "0",
        "TOLLKEEPER_PACKAGES": PACKAGES,
        "TOLLKEEPER_DATABASE__TIMEOUT_SECONDS": "60",  # a disk that others share may take its time
    }
    server = Tollkeeper(home, environment).start()
    made = Town(server, bank, home, new_customer(server, 0))
    made.control("endpoints", url=f"{server.url}/webhooks/stripe", secret=SECRET)
    yield made
    server.kill()
    process.kill()
    process.communicate()


def test_every_event_that_stripe_can_trigger_is_taken_and_moves_no_credits(town: Town) -> None:
    assert town.supported() & LACKING == LACKING
    types = sorted(town.supported() & KINDS.keys() - LACKING)
    assert len(types) == 13
    town.buy()
    ledger, balance = town.server.cli("ledger", town.customer.account_id)["data"], town.customer.balance()
    for event_type in (*types, *FOREIGN):
        assert "Trigger succeeded" in town.stripe("trigger", event_type), event_type
    deliveries = town.drain()
    assert {delivery["state"] for delivery in deliveries} == {"delivered"}
    # a connection that was kept may be closed as it is used again, and a busy machine may answer late: no answer is none
    answers = [[one["status"] for one in delivery["attempts"] if one["status"]] for delivery in deliveries]
    assert answers == [[200]] * len(deliveries), "taken by its first answer"
    rows = town.inbox()
    delivered = {delivery["event"] for delivery in deliveries}
    assert {row["eventId"] for row in rows} == delivered
    assert {*types, *FOREIGN} <= {row["type"] for row in rows}
    assert {row["state"] for row in rows} <= {"done", "ignored"}, "none waits, none is parked"
    assert {row["state"] for row in rows if row["type"] not in KINDS} == {"ignored"}
    assert town.customer.balance() == balance
    assert town.server.cli("ledger", town.customer.account_id)["data"] == ledger
    assert town.mismatches() == len(deliveries)
    town.server.cli("reconcile")


def test_a_refund_made_with_the_cli_takes_its_credits_back_once(town: Town) -> None:
    intent = town.buy()
    before = town.customer.balance()
    made = json.loads(town.stripe("refunds", "create", "--payment-intent", intent, "--amount", "300"))
    assert (made["status"], made["amount"]) == ("succeeded", 300)
    town.customer.wait_balance(before - 3_000_000, 10)
    for event in [row["eventId"] for row in town.inbox() if row["type"] in ("refund.created", "charge.refunded")]:
        town.control(f"events/{event}/resend")
    town.drain()
    assert town.customer.balance() == before - 3_000_000


def test_a_page_expired_with_the_cli_is_expired_here(town: Town) -> None:
    url = f"{town.server.url}/api/billing/checkout"
    page = web.post(url, json={"packageCode": "pro"}, headers=town.customer.headers, timeout=20).json()
    town.stripe("checkout", "sessions", "expire", page["sessionId"])
    where = f"{town.server.url}/api/billing/purchases/{page['id']}"
    wait_until(lambda: web.get(where, headers=town.customer.headers).json()["state"] == "expired", 10, "expired")
