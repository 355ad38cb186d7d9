"""A refund whose answer was lost, by command, over HTTP and killed in between: Stripe's own record has it once."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.bank import Bank, bought
from tests.support.customers import Customer, new_customer
from tests.support.servers import Tollkeeper, wait_until


def refunded(bank: Bank) -> list[int]:
    """What Stripe gave back, in cents."""
    return [row["amount"] for row in bank.record()["records"] if row["kind"] == "refunded"]


def fault(bank: Bank, kind: str, **more: Any) -> None:
    """Stripe makes the next refunds and its answers are lost."""
    bank.control("faults", kind=kind, path="/refunds$", method="POST", after=True, **more)


def mend(bank: Bank) -> None:
    web.delete(f"{bank.url}/__stripe/faults", timeout=10).raise_for_status()


def balance_is(customer: Customer, millicredits: int) -> None:
    customer.wait_balance(millicredits, 10)


def test_by_command(bank: Bank, shop: Tollkeeper) -> None:
    customer = new_customer(shop, 0)
    page = bought(bank, customer)
    asked = ("purchases", "refund", page["id"], "--usd", "3", "--reason", "ticket 17")
    fault(bank, "reset", count=3)
    lost = shop.run(*asked)
    assert (lost.returncode, "may have been made" in lost.stderr, "Ask again" in lost.stderr) == (1, True, True)
    mend(bank)
    balance_is(customer, 6_990_000)  # its webhook has booked it: nothing here counts on that
    again = shop.cli(*asked)
    assert (again["again"], again["refundedCents"], refunded(bank)) == (True, 300, [300])
    named = [*asked, "--reference", "ticket 17"]
    assert shop.cli(*named)["again"] is False  # meant so: another asking
    assert shop.cli(*named)["again"] is True
    refused = shop.run(*("purchases", "refund", page["id"], "--reason", "x", "--reference", "ticket 17"))
    assert (refused.returncode, "was used before" in refused.stderr) == (1, True)
    assert refunded(bank) == [300, 300]
    balance_is(customer, 3_990_000)
    taken = 'billing_credits_taken_back_total{kind="refund"} 6000.0'
    wait_until(lambda: taken in web.get(f"{shop.url}/metrics").text, 10, "counted, whoever booked it")


@pytest.mark.parametrize("failure", [{"kind": "reset", "count": 3}, {"kind": "status", "status": 500, "saved": True}])
def test_over_http(bank: Bank, shop: Tollkeeper, failure: dict[str, Any]) -> None:
    customer = new_customer(shop, 0)
    page = bought(bank, customer)
    key = shop.cli("admin", "create", "finance", "--role", "finance")["adminKey"]
    url = f"{shop.url}/api/admin/purchases/{page['id']}/refund"

    def post(idempotency_key: str = "", **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} | ({"Idempotency-Key": idempotency_key} if idempotency_key else {})
        return web.post(url, json={"usd": "3", "reason": "ticket", **body}, headers=headers, timeout=40)

    fault(bank, **failure)
    first = post("a")
    mend(bank)
    if first.status_code != 200:
        error = first.json()["error"]
        assert (first.status_code, error["code"], "may have been made" in error["message"]) == (
            503,
            "refund_in_doubt",
            True,
        )
    for _ in range(2):
        assert post("a").json()["again"] is True
    assert post(reference="a").json()["again"] is True
    assert refunded(bank) == [300]
    assert post("b").json()["again"] is False
    assert (post("b", usd="1").status_code, post("b", reference="c").status_code) == (409, 400)
    assert refunded(bank) == [300, 300]
    balance_is(customer, 3_990_000)


def test_a_closing_that_is_repeated_gives_nothing_back_again(bank: Bank, shop: Tollkeeper) -> None:
    """With the server stopped, nobody tells the balance store of the refund: only the ledger knows of it."""
    customer = new_customer(shop, 0)
    bought(bank, customer)
    shop.cli("grant", customer.account_id, "-5000", "--reason", "taken back by hand")
    balance_is(customer, 4_990_000)
    shop.stop()
    closing = ("account", "close", customer.account_id, "--refund", "--reason", "they left")
    first, second = shop.cli(*closing), shop.cli(*closing)
    assert [row["refundedCents"] for row in first["refunds"]] == refunded(bank) == [499]
    assert second["refunds"] == []


@pytest.mark.parametrize("when", ["before Stripe answers", "after Stripe has made it"])
def test_killed_in_between(bank: Bank, shop: Tollkeeper, when: str) -> None:
    """kill -9 after the asking is written down."""
    customer = new_customer(shop, 0)
    page = bought(bank, customer)
    asked = ["purchases", "refund", page["id"], "--usd", "3", "--reason", "ticket 17"]
    if when == "before Stripe answers":
        bank.settings(api_latency_ms=2_000)
    else:
        fault(bank, "timeout", hang_s=30)
    command = [sys.executable, "-m", "proxy.cli", *asked]
    process = subprocess.Popen(command, cwd=shop.folder, env=shop.all_environment())
    wait_until(lambda: bool(refunded(bank)) if "after" in when else is_asked(shop), 20, "it is under way")
    process.send_signal(signal.SIGKILL)
    process.wait()
    bank.settings(api_latency_ms=0)
    mend(bank)
    # Stripe may still be at work on what was asked before the kill, and says so to who asks the same
    done = wait_until(lambda: shop.cli(*asked, code=None).get("refundedCents"), 15, "it answers")
    assert done == 300
    wait_until(lambda: refunded(bank) == [300], 10, "it is made")
    balance_is(customer, 6_990_000)
    assert refunded(bank) == [300]


def test_a_bank_transfer_is_written_down_and_so_is_its_return(bank: Bank, shop: Tollkeeper) -> None:
    customer = new_customer(shop, 0)
    wire = ("purchases", "record", customer.account_id, "--usd", "500", "--reference", "wire 17", "--reason", "invoice")
    first, second = shop.cli(*wire), shop.cli(*wire)
    assert (first["id"], first["again"], second["again"]) == (second["id"], False, True)
    balance_is(customer, 500_000_000)
    back = ("purchases", "refund", first["id"], "--usd", "100", "--reason", "too much", "--reference", "wire back")
    assert [shop.cli(*back)["again"] for _ in range(2)] == [False, True]
    balance_is(customer, 400_000_000)
    assert bank.record()["records"] == []
    counted = "billing_credits_purchased_total 500000.0"
    wait_until(lambda: counted in web.get(f"{shop.url}/metrics").text, 10, "counted as any purchase")
    assert shop.run("reconcile").returncode == 0


def is_asked(shop: Tollkeeper) -> bool:
    """Whether the asking is committed."""
    with contextlib.closing(sqlite3.connect(shop.folder / "var" / "tollkeeper.db")) as connection:
        return bool(connection.execute("SELECT id FROM refund_askings WHERE state = 'asked'").fetchall())
