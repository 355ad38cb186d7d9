"""The whole product against the simulator of sandbox/stripe, which keeps a record of money of its own and delivers webhooks badly.

What must agree at the end: credits with what was paid, refunded and disputed there; and `cash` in our ledger with the
Stripe balance, to the cent, fees included.
"""

import random
import re
import time
from typing import Any

import pytest

from tests.support import web
from tests.support.bank import CREDITS, Bank, checkout
from tests.support.customers import Customer, acting_for, database_url, new_customer
from tests.support.figures import change_figures
from tests.support.servers import Tollkeeper, wait_until


def settled(server: Tollkeeper) -> bool:
    return bool(server.cli("stripe", "inbox")["waiting"] == 0)


def cash(server: Tollkeeper) -> int:
    """Cents in the ledger's cash account."""
    import sqlite3

    path = database_url(server).partition("///")[2]
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT debit_account, credit_account, amount_millicredits FROM transfers").fetchall()
    total = sum(amount * ((debit == "cash") - (credit == "cash")) for debit, credit, amount in rows)
    assert total % 10_000 == 0
    return int(total) // 10_000


def test_a_browser_buys_and_the_balance_rises(shop: Tollkeeper) -> None:
    """By the hosted page alone, as a person without scripts would."""
    customer = new_customer(shop, 0)
    page = checkout(customer, "pro")
    with web.client(follow_redirects=False, timeout=10) as browser:
        html = browser.get(page["url"]).text
        fields = {name: value for name, value in re.findall(r'name="?([\w\[\]]+)"?[^>]*?value="([^"]*)"', html) if name}
        fields |= {"email": "buyer@app.test"}
        answer = browser.post(page["url"], data=fields)
        assert answer.status_code in (302, 303), answer.text[:2_000]
        assert answer.headers["location"] == f"https://app.test/ok?s={page['sessionId']}"
    customer.wait_balance(109_989_000, 5)
    receipt = web.get(f"{shop.url}/api/billing/purchases/{page['id']}/receipt", headers=customer.headers)
    assert receipt.status_code == 303
    assert web.get(receipt.headers["location"]).status_code == 200


def test_a_customer_that_stripe_no_longer_knows_buys_at_the_first_click(shop: Tollkeeper, bank: Bank) -> None:
    customer = new_customer(shop, 0)
    bank.control(f"sessions/{checkout(customer)['sessionId']}/pay")
    customer.wait_balance(9_990_000, 10)
    key = {"Authorization": "Bearer sk_test_sandbox"}
    (known,) = web.get(f"{bank.url}/v1/customers", headers=key).json()["data"]
    web.request("DELETE", f"{bank.url}/v1/customers/{known['id']}", headers=key).raise_for_status()
    page = checkout(customer)  # 201
    (fresh,) = web.get(f"{bank.url}/v1/customers", headers=key).json()["data"]
    assert fresh["id"] != known["id"]
    bank.control(f"sessions/{page['sessionId']}/pay")
    customer.wait_balance(2 * 9_990_000, 10)


def test_bad_weather_ends_at_the_simulators_record(shop: Tollkeeper, bank: Bank) -> None:
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    dice = random.Random(seed)
    chaos = {
        "copies_min": 1,
        "copies_max": 5,
        "shuffle_ms": 300,
        "drop": 0.1,
        "cut": 0.1,
        "retry_scale": 0.0005,
        "seed": seed,
    }
    bank.settings(delivery=chaos, async_delay_s=0.2, refund_delay_s=0.2)
    customers = [new_customer(shop, 0) for _ in range(4)]
    sold: dict[str, tuple[Customer, str]] = {}
    for _ in range(24):
        customer, code = dice.choice(customers), dice.choice(sorted(CREDITS))
        page = checkout(customer, code)
        sold[page["sessionId"]] = (customer, code)
        live_one_life(bank, dice, page["sessionId"])
    time.sleep(1)
    bank.drain()
    shop.cli("stripe", "sweep")  # for what was dropped
    wait_until(lambda: settled(shop), 30, "an empty inbox")
    shop.cli("drain")
    assert shop.cli("stripe", "sweep")["fixed"] == []
    record = bank.record()
    expected = dict.fromkeys((customer.account_id for customer in customers), 0)
    for payment in record["payments"].values():
        customer, code = sold[payment["session"]]
        paid, bonus = CREDITS[code]
        back = payment["refunded"] - payment["refund_failed"] + payment["disputed"] - payment["dispute_won"]
        counted = min(back, payment["paid"])
        expected[customer.account_id] += paid + bonus - counted * 10_000 - bonus * counted // payment["paid"]
    assert {customer.account_id: customer.balance() for customer in customers} == expected
    assert cash(shop) == record["totals"]["net"]
    shop.cli("reconcile")


def live_one_life(bank: Bank, dice: random.Random, session: str) -> None:
    fate = dice.random()
    if fate < 0.1:
        bank.control(f"sessions/{session}/expire")
        return
    bank.control(
        f"sessions/{session}/pay", outcome=dice.choice(["succeed"] * 5 + ["authenticate", "delay", "delay_fail"])
    )
    if fate < 0.4:
        return
    time.sleep(0.25)
    found = [row for row in bank.record()["records"] if row["session"] == session]
    if not found:
        return  # a delayed payment that failed
    left = found[0]["amount"]
    for _ in range(dice.choice([0, 1, 2])):
        amount = dice.randint(1, left)
        refund = bank.control("refunds", session=session, amount=amount)
        if dice.random() < 0.3:
            bank.control(f"refunds/{refund['id']}", action="fail")
        else:
            left -= amount
        if not left:
            return
    if dice.random() < 0.4:
        dispute = bank.control("disputes", session=session, amount=left)
        if dice.random() < 0.7:
            bank.control(f"disputes/{dispute['id']}", action=dice.choice(["won", "lost"]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"livemode": True},
        {"timestamp_offset_s": -400},
        {"timestamp_offset_s": 4_000},
        {"signature": "wrong_secret"},
        {"signature": "missing"},
    ],
)
def test_what_does_not_verify_is_not_believed_and_the_sweeper_finds_the_truth(
    shop: Tollkeeper, bank: Bank, wrong: dict[str, Any]
) -> None:
    bank.settings(delivery={**wrong, "retry_scale": 0.0, "max_attempts": 2})
    customer = new_customer(shop, 0)
    page = checkout(customer)
    bank.control(f"sessions/{page['sessionId']}/pay")
    bank.drain()
    assert customer.balance() == 0
    assert shop.cli("stripe", "inbox")["counts"] == []
    shop.cli("stripe", "sweep")
    customer.wait_balance(9_990_000, 5)


def test_replies_that_are_lost_open_one_page_and_take_one_payment(shop: Tollkeeper, bank: Bank) -> None:
    customer = new_customer(shop, 0)
    bank.control("faults", kind="reset", after=True, path="checkout/sessions", count=2)
    page = checkout(customer, savePaymentMethod=True)
    bank.control(f"sessions/{page['sessionId']}/pay")
    customer.wait_balance(9_990_000, 5)
    assert len({row["session"] for row in bank.record()["records"]}) == 1
    bank.control("faults", kind="reset", after=True, path="payment_intents", count=2)
    wish = {
        "enabled": True,
        "thresholdMillicredits": "9990000",
        "packageCode": "starter",
        "monthlyCeilingCents": 5_000,
        "consent": True,
    }
    assert web.put(f"{shop.url}/api/billing/auto-recharge", json=wish, headers=acting_for(customer)).status_code == 200
    used = int(float(customer.chat(max_tokens=5).headers["x-credits-charged"]) * 1_000)
    customer.wait_balance(9_990_000 * 2 - used, 15)
    time.sleep(2.5)
    assert [row["kind"] for row in bank.record()["records"]] == ["paid", "paid"]


def test_a_card_that_wants_its_owner_yields_a_page(shop: Tollkeeper, bank: Bank) -> None:
    customer = new_customer(shop, 0)
    page = checkout(customer, savePaymentMethod=True)
    bank.control(f"sessions/{page['sessionId']}/pay", outcome="authenticate_always")
    customer.wait_balance(9_990_000, 5)
    wish = {
        "enabled": True,
        "thresholdMillicredits": "9990000",
        "packageCode": "starter",
        "monthlyCeilingCents": 5_000,
        "consent": True,
    }
    url = f"{shop.url}/api/billing/auto-recharge"
    assert web.put(url, json=wish, headers=acting_for(customer)).status_code == 200
    used = int(float(customer.chat(max_tokens=5).headers["x-credits-charged"]) * 1_000)
    found = wait_until(
        lambda: (row := web.get(url, headers=customer.headers).json())["state"] == "action_needed" and row, 15, "a page"
    )
    session = found["actionUrl"].rpartition("/")[2]
    bank.control(f"sessions/{session}/pay")
    customer.wait_balance(9_990_000 * 2 - used, 10)
    wait_until(lambda: web.get(url, headers=customer.headers).json()["state"] == "ready", 10, "ready again")


def test_what_a_sweep_put_right_is_found_by_its_job(shop: Tollkeeper, bank: Bank) -> None:
    """A row, a report and a metric: a webhook that never comes is not repaired in silence."""
    shop.wait_first_sweep()
    bank.settings(delivery={"drop": 1.0, "max_attempts": 1})
    web.put(f"{bank.url}/__stripe/clock", json={"offset_s": -300}, timeout=10).raise_for_status()
    customer = new_customer(shop, 0)
    page = checkout(customer)
    bank.control(f"sessions/{page['sessionId']}/pay")
    (finding,) = shop.cli("jobs", "run", "sweep", code=1)["findings"]
    assert (finding["check"], page["sessionId"] in finding["subject"]) == ("had not reached us", True)
    customer.wait_balance(9_990_000, 5)
    (row,) = [row for row in shop.cli("jobs", "list", code=1)["data"] if row["job"] == "sweep"]
    assert (row["everySeconds"], row["lastRun"]["findings"]) == (600, 1)
    shown = 'tollkeeper_job_findings{task="sweep"} 1'
    wait_until(lambda: shown in web.get(f"{shop.url}/metrics").text, 10, "the metric")
    assert shop.cli("jobs", "run", "sweep") == {"ok": True, "findings": []}


def test_a_sweep_that_cannot_read_everything_is_not_done(shop: Tollkeeper, bank: Bank) -> None:
    bank.control("faults", kind="status", path="disputes", status=403, count=9)
    done = shop.cli("jobs", "run", "sweep", code=3)
    assert "the list of disputes" in done["incomplete"]


def test_a_shell_that_knows_less_than_the_service_does_not_speak_for_it(shop: Tollkeeper) -> None:
    """What the service found stays found, and nobody is told that everything agrees."""
    customer = new_customer(shop, 5_000_000)
    checkout(customer)
    change_figures(shop, customer, 5_000)
    shop.cli("reconcile", code=1)
    shown = "tollkeeper_reconciliation_mismatch_credits 5.0"
    wait_until(lambda: shown in web.get(f"{shop.url}/metrics").text, 10, "the metric")
    change_figures(shop, customer, -5_000)
    poor = {"STRIPE_API_KEY": "", "STRIPE_WEBHOOK_SECRET": ""}
    for command in (("reconcile",), ("jobs", "run", "reconcile")):
        done = shop.run(*command, **poor)
        assert (done.returncode, "everything agrees" in done.stdout.lower()) == (3, False)
        assert "Stripe's record: purchases were made, and STRIPE_API_KEY is not set" in done.stdout
    left_out = shop.run("reconcile", "--no-stripe", **poor)
    assert left_out.returncode == 0, "who asks for less is told of that"
    time.sleep(3)
    assert shown in web.get(f"{shop.url}/metrics").text
    assert shop.cli("reconcile") == {"ok": True, "findings": []}


def test_finance_gives_a_payment_back(shop: Tollkeeper, bank: Bank) -> None:
    """By the API and by the command; the simulator's record says so, and support may not."""
    customer = new_customer(shop, 0)
    page = checkout(customer, "pro")
    bank.control(f"sessions/{page['sessionId']}/pay")
    customer.wait_balance(109_989_000, 5)
    keys = {role: shop.cli("admin", "create", role, "--role", role)["adminKey"] for role in ("finance", "support")}

    def refund(role: str, **asked: Any) -> Any:
        url = f"{shop.url}/api/admin/purchases/{page['id']}/refund"
        return web.post(
            url, json={"reason": "they asked", **asked}, headers={"Authorization": f"Bearer {keys[role]}"}, timeout=20
        )

    assert refund("support").status_code == 403
    assert refund("finance", usd="1.005").json()["error"]["param"] == "usd"
    assert refund("finance", usd="100").json()["error"]["code"] == "not_refundable"
    made = refund("finance", usd="49.99").json()
    assert (made["refundedCents"], made["status"]) == (4_999, "succeeded")
    customer.wait_balance(109_989_000 - 109_989_000 * 4_999 // 9_999, 5)
    rest = shop.cli("purchases", "refund", page["id"], "--reason", "the rest")
    assert rest["refundedCents"] == 5_000
    customer.wait_balance(0, 5)
    bank.drain()
    assert bank.record()["totals"]["refunded"] == 9_999
    wait_until(lambda: settled(shop), 10, "its webhooks are handled")
    assert customer.balance() == 0
    assert shop.cli("purchases", "refund", page["id"], "--reason", "more", code=1)["error"].endswith("already")
    assert shop.cli("reconcile") == {"ok": True, "findings": []}
