"""The operators' page in Chromium, against the served product: what is done here is seen by customers, and by the audit log."""

import copy
import json
import re
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from billing.money.pricing import load_catalogue
from tests.browser.conftest import Town
from tests.browser.visits import PHONE, Visits, look, tab_stops, tab_to
from tests.support import web
from tests.support.customers import Customer
from tests.support.servers import sandbox_says, wait_until

PAGES = [
    "/admin",
    "/admin/purchases",
    "/admin/admins",
    "/admin/flags",
    "/admin/rates",
    "/admin/plans",
    "/admin/promos",
    "/admin/upstreams",
    "/admin/reconciliation",
    "/admin/events",
    "/admin/webhooks",
    "/admin/audit",
]
STOPS = "a[href]:visible, button:visible:enabled, input:visible, select:visible, summary:visible"
LOSS_DAY = "2026-01-05"


@pytest.fixture(scope="module")
def keys(town: Town) -> dict[str, str]:
    return {role: town.admin(role) for role in ("owner", "viewer", "support")}


@pytest.fixture(scope="module")
def buyer(town: Town) -> Customer:
    """A customer who bought at the made-up Stripe and then sent requests."""
    customer = town.customer(1_000_000)
    answer = web.post(
        f"{town.server.url}/api/billing/checkout", json={"packageCode": "starter"}, headers=customer.headers, timeout=20
    )
    url = answer.json()["url"]
    fields = dict(re.findall(r'name="?([\w\[\]]+)"?[^>]*?value="([^"]*)"', web.get(url, timeout=10).text))
    web.post(url, data={**fields, "email": "buyer@app.test", "name": "A. Buyer"}, timeout=10)
    customer.wait_balance(10_990_000, 10)
    for number in range(51):
        answer = customer.chat("words " * number, model=("gpt-4o-mini", "gpt-4.1")[number % 2], max_tokens=20)
        assert answer.status_code == 200, (answer.text, town.server.log()[-2_000:])
    town.cli("drain")
    return customer


@pytest.fixture(scope="module")
def history(town: Town) -> str:
    """What jobs leave behind: a day on which we lost money, and a reconciliation that found an account's balance changed by hand."""
    now = int(time.time() * 1_000)
    with closing(sqlite3.connect(town.server.folder / "var" / "tollkeeper.db", timeout=10)) as connection, connection:
        connection.execute(
            "INSERT INTO finance_daily (day, purchased_millicredits, deducted_millicredits, cost_millicredits, loss_millicredits,"
            " liability_millicredits, requests, updated_at) VALUES (?, 5000000, 2000000, 3500000, 1234, 9000000, 4321, ?)",
            (LOSS_DAY, now),
        )
    customer = town.customer(1_000_000)
    account_id = customer.account_id
    assert customer.chat(max_tokens=5).status_code == 200  # now the store keeps its balance
    town.cli("drain")  # and writes it no more
    with closing(sqlite3.connect(town.server.folder / "var" / "embedded.db", timeout=10)) as store, store:
        assert (
            store.execute("UPDATE figures SET balance = balance - 1000 WHERE account_id = ?", (account_id,)).rowcount
            == 1
        )
    town.cli("finance", "--days", "1")
    assert town.server.run("jobs", "run", "reconcile").returncode == 1
    return account_id


def enter(page: Page, town: Town, key: str) -> Page:
    page.goto(f"{town.server.url}/admin")
    page.get_by_label("Admin key or token").fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Accounts")).to_be_visible()
    return page


def open_account(page: Page, town: Town, customer: Customer) -> None:
    page.goto(f"{town.server.url}/admin/accounts/{customer.account_id}")


def card(page: Page, name: str) -> Locator:
    return page.locator(f"section[aria-labelledby={name}]")


def last_audit(town: Town, folder: Path) -> dict[str, Any]:
    """The newest row of the log as the command exports it."""
    path = folder / f"audit-{time.monotonic_ns()}.jsonl"
    town.cli("audit", "export", str(path))
    found: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])
    return found


# -- the way in -----------------------------------------------------------------------------------------------


def test_signing_in_and_out(town: Town, visits: Visits, keys: dict[str, str]) -> None:
    page = visits.window()
    page.goto(f"{town.server.url}/admin/flags")
    expect(page.get_by_role("heading", name="Tollkeeper operations")).to_be_visible()
    look(page)
    page.get_by_label("Admin key or token").fill("tka-nobody")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("This is not an admin key of ours.")
    look(page)
    enter(page, town, keys["owner"])
    (kept,) = page.context.cookies()
    assert (kept["name"], kept["httpOnly"], kept["sameSite"], kept["path"]) == ("tk_admin", True, "Strict", "/admin")
    assert keys["owner"] not in str(kept)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Admin key or token")).to_be_visible()
    page.context.add_cookies([kept])
    page.goto(f"{town.server.url}/admin")
    expect(page.get_by_label("Admin key or token")).to_be_visible()


def test_signing_in_with_the_companys_account(town: Town, visits: Visits) -> None:
    """The provider is another site, which our session's cookie never comes along from."""
    page = visits.window()
    page.goto(f"{town.server.url}/admin")
    look(page)
    tab_to(page, "Sign in with your company's account")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Accounts")).to_be_visible()
    assert page.url == f"{town.server.url}/admin"
    expect(page.get_by_text("oidc:u1 (ann@example.com), role finance")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    town.idp.claims = {"email": "eve@example.com"}
    page.get_by_role("link", name="Sign in with your company's account").click()
    expect(page.get_by_role("alert")).to_contain_text("no role of ours")
    look(page)
    town.idp.reset()


def test_a_viewer_sees_everything_it_may_and_no_form(
    town: Town, visits: Visits, keys: dict[str, str], buyer: Customer
) -> None:
    page = enter(visits.window(), town, keys["viewer"])
    expect(page.get_by_role("navigation", name="Sections").get_by_role("link")).to_have_text(
        [
            "Overview",
            "Purchases",
            "Flags",
            "Rate cards",
            "Price plans",
            "Promo codes",
            "Upstreams",
            "Reconciliation",
            "Events",
            "Webhooks",
        ]
    )
    open_to_all = [path for path in PAGES if path not in ("/admin/admins", "/admin/audit")]
    for path in (*open_to_all, f"/admin/accounts/{buyer.account_id}", f"/admin/accounts/{buyer.account_id}/access"):
        page.goto(town.server.url + path)
        forms = page.locator("form").evaluate_all(
            "(all) => all.map((one) => `${one.method} ${new URL(one.action).pathname}`)"
        )
        assert set(forms) <= {"post /admin/sign-out", "get /admin"}, path
        look(page)
    page.goto(f"{town.server.url}/admin/audit")
    expect(page.get_by_text("may not do this")).to_be_visible()
    look(page)


def test_support_is_told_its_cap_and_held_to_it(town: Town, visits: Visits, keys: dict[str, str]) -> None:
    customer = town.customer()
    page = enter(visits.window(), town, keys["support"])
    open_account(page, town, customer)
    cap = re.search(r"at most ([\d,]+) a day, over all accounts", card(page, "grant").inner_text())
    assert cap is not None
    expect(card(page, "adjust")).to_have_count(0)
    page.get_by_label("Credits to give").fill(str(int(cap[1].replace(",", "")) + 1))
    card(page, "grant").get_by_label("Reason").fill("too kind")
    page.get_by_role("button", name="Grant").click()
    expect(page.get_by_role("alert")).to_contain_text("ask someone in finance")
    assert customer.balance() == 0


# -- accounts -------------------------------------------------------------------------------------------------


def test_an_account_is_found_and_read(town: Town, visits: Visits, keys: dict[str, str], buyer: Customer) -> None:
    made = town.cli("account", "create", "Ada Lovelace & Co")
    page = enter(visits.window(), town, keys["owner"])
    for words in ("lovelace", made["accountId"], made["keyId"]):
        page.get_by_role("searchbox").or_(page.get_by_label("Account id, name, or key id")).fill(words)
        page.get_by_role("button", name="Find").click()
        expect(card(page, "find").locator("tbody tr")).to_have_count(1)
        expect(card(page, "find").locator("tbody")).to_contain_text("Ada Lovelace & Co")
    page.get_by_label("Account id, name, or key id").fill("nobody at all")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_text("No account fits “nobody at all”.")).to_be_visible()
    look(page)
    page.get_by_label("Account id, name, or key id").fill(buyer.account_id)
    page.keyboard.press("Enter")
    page.get_by_role("link", name=buyer.account_id).click()
    balance = buyer.balance()
    expect(page.locator("#balance")).to_have_text(f"{balance // 1_000:,}.{balance % 1_000:03}")
    expect(page.locator("#held")).to_have_text("0.000")
    wanted = [row["requestId"] for row in town.cli("usage", buyer.account_id, "--limit", "100")["data"]]
    rows = card(page, "usage").locator("tbody code")
    seen = rows.all_inner_texts()
    page.get_by_role("link", name="Older requests").click()
    expect(page.get_by_role("link", name="Older requests")).to_have_count(0)
    assert seen + rows.all_inner_texts() == wanted
    page.get_by_role("link", name="Newest requests").click()
    page.get_by_role("link", name="Older entries").click()
    expect(card(page, "ledger")).to_contain_text("+9,990.000")
    expect(card(page, "ledger")).to_contain_text("+1,000.000")
    page.goto(f"{town.server.url}/admin/accounts/acct_missing")
    expect(page.get_by_role("alert")).to_have_text("There is no such account.")


def test_a_running_requests_hold_is_seen(town: Town, visits: Visits, keys: dict[str, str]) -> None:
    customer = town.customer(1_000_000)
    page = enter(visits.window(), town, keys["owner"])
    done = threading.Event()

    def stream() -> None:
        content = "slowly " + sandbox_says(output_tokens=2_000, chunk_interval_ms=50)
        body = {
            "model": "gpt-4o",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 3_000,
            "stream": True,
        }
        with web.stream(
            "POST", f"{town.server.v1}/chat/completions", json=body, headers=customer.headers, timeout=60
        ) as answer:
            for _ in answer.iter_raw():
                if done.is_set():
                    break

    running = threading.Thread(target=stream)
    running.start()
    try:
        wait_until(lambda: customer.held() > 0, 10, "held")
        open_account(page, town, customer)
        held = customer.held()
        expect(page.locator("#held")).to_have_text(f"{held // 1_000:,}.{held % 1_000:03}")
        assert page.locator("#available").inner_text() != page.locator("#balance").inner_text()
    finally:
        done.set()
        running.join()
    wait_until(lambda: page.reload() and page.locator("#held").inner_text() == "0.000", 10, "let go")


def test_granting_adjusting_and_blocking_reach_the_customer(
    town: Town, visits: Visits, keys: dict[str, str], folder: Path
) -> None:
    customer = town.customer()
    page = enter(visits.window(), town, keys["owner"])
    open_account(page, town, customer)
    page.get_by_label("Credits to give").fill("1234.5")
    card(page, "grant").get_by_label("Reason").fill("an apology <b>&</b>")
    page.get_by_role("button", name="Grant").click()
    expect(page.get_by_role("status")).to_have_text("The credits are granted.")
    expect(card(page, "ledger")).to_contain_text("+1,234.500")
    expect(card(page, "ledger")).to_contain_text("an apology <b>&</b>")
    customer.wait_balance(1_234_500)
    assert last_audit(town, folder)["reason"] == "an apology <b>&</b>"
    page.reload()
    customer.wait_balance(1_234_500)
    page.get_by_label("Credits to add, or with a minus to take back").fill("-34.5")
    card(page, "adjust").get_by_label("Reason").fill("too much")
    page.get_by_role("button", name="Adjust").click()
    expect(page.get_by_role("status")).to_have_text("The adjustment is booked.")
    customer.wait_balance(1_200_000)
    page.get_by_label("Credits to give").fill("many")
    card(page, "grant").get_by_label("Reason").fill("a slip")
    page.get_by_role("button", name="Grant").click()
    expect(page.get_by_role("alert")).to_contain_text("is not an amount")
    open_account(page, town, customer)
    assert customer.chat(max_tokens=5).status_code == 200
    card(page, "block").get_by_label("Reason").fill("a stolen card")
    page.get_by_role("button", name="Block").click()
    expect(page.locator("#status")).to_have_text("blocked")
    look(page)
    wait_until(lambda: customer.chat(max_tokens=5).status_code == 403, 8, "refused")
    assert (last_audit(town, folder)["action"], last_audit(town, folder)["reason"]) == (
        "account.status",
        "a stolen card",
    )
    card(page, "block").get_by_label("Reason").fill("it was not")
    page.get_by_role("button", name="Unblock").click()
    expect(page.locator("#status")).to_have_text("active")
    wait_until(lambda: customer.chat(max_tokens=5).status_code == 200, 8, "served again")


# -- switches -------------------------------------------------------------------------------------------------


def test_a_flag_is_flipped_seen_to_work_and_cleared(
    town: Town, visits: Visits, keys: dict[str, str], folder: Path
) -> None:
    customer = town.customer(1_000_000)
    page = enter(visits.window(), town, keys["owner"])
    page.goto(f"{town.server.url}/admin/flags")
    flag = page.locator("#flag-charging_enabled")
    flag.get_by_text("Set charging_enabled by hand").click()
    flag.get_by_label("For how long").select_option("1 hour")
    flag.get_by_label("Reason").fill("the prices are wrong")
    look(page)
    flag.get_by_role("button", name="Set charging_enabled").click()
    expect(page.get_by_role("status")).to_contain_text("within 2 seconds")
    expect(flag.locator(".value")).to_have_text("false")
    expect(flag).to_contain_text("the prices are wrong")
    expect(flag).to_contain_text("until 20")
    look(page)
    wait_until(lambda: customer.chat(max_tokens=5).status_code == 503, 4, "it applies")
    row = last_audit(town, folder)
    assert (row["reason"], row["role"]) == ("the prices are wrong", "owner")
    page.goto(f"{town.server.url}/admin")
    expect(page.get_by_text("Charging is switched off.")).to_contain_text("the prices are wrong")
    look(page)
    guest = visits.window()
    guest.goto(town.link(customer))
    expect(guest.get_by_role("status").first).to_contain_text("Charging is paused")
    page.goto(f"{town.server.url}/admin/flags")
    flag.get_by_label("Reason to let the file decide charging_enabled again").fill("they are right now")
    flag.get_by_role("button", name="Clear charging_enabled").click()
    expect(flag.locator(".value")).to_have_text("true")
    wait_until(lambda: customer.chat(max_tokens=5).status_code == 200, 4, "charged again")
    page.locator("#flag-model_allowlist").get_by_text("Set model_allowlist by hand").click()
    page.get_by_label("Value").locator("visible=true").fill("[7]")
    page.locator("#flag-model_allowlist").get_by_label("Reason").fill("a slip")
    page.get_by_role("button", name="Set model_allowlist").click()
    expect(page.get_by_role("alert")).to_contain_text("model_allowlist")


def test_a_rate_card_is_activated(town: Town, visits: Visits, keys: dict[str, str], folder: Path) -> None:
    document, copied = copy.deepcopy(load_catalogue()), folder / "card.json"
    before = document["catalogueId"]
    copied.write_text(json.dumps({**document, "catalogueId": "card-of-a-test"}))
    town.cli("rates", "import", str(copied))
    page = enter(visits.window(), town, keys["owner"])
    page.get_by_role("link", name="Rate cards").click()
    expect(page.locator("#active")).to_have_text(before)
    page.get_by_text("Activate card-of-a-test").first.click()
    page.get_by_label("Reason").fill("new prices")
    look(page)
    page.get_by_role("button", name="Activate card-of-a-test now").click()
    expect(page.locator("#active")).to_have_text("card-of-a-test")
    assert town.cli("rates", "show")["active"] == "card-of-a-test"
    look(page)


# -- purchases and people -------------------------------------------------------------------------------------


def bought(town: Town) -> tuple[Customer, str]:
    """A customer with a purchase of $9.99, and its id."""
    customer = town.customer()
    checkout = f"{town.server.url}/api/billing/checkout"
    made = web.post(checkout, json={"packageCode": "starter"}, headers=customer.headers, timeout=20).json()
    pay = f"{town.stripe}/__stripe/sessions/{made['sessionId']}/pay"
    web.post(pay, json={"outcome": "succeed"}, timeout=20).raise_for_status()
    customer.wait_balance(9_990_000, 20)
    return customer, purchase_of(town, customer)


def purchase_of(town: Town, customer: Customer) -> str:
    """The id of the only purchase that they began."""
    listed = web.get(f"{town.server.url}/api/billing/purchases", headers=customer.headers, timeout=20).json()
    (found,) = listed["data"]
    return str(found["id"])


def test_a_purchase_is_refunded_in_part_and_then_in_whole(town: Town, visits: Visits, keys: dict[str, str]) -> None:
    customer, purchase = bought(town)
    page = enter(visits.window(), town, keys["owner"])
    open_account(page, town, customer)
    row = card(page, "purchases").get_by_role("row").filter(has_text=purchase)
    expect(row).to_contain_text("credited")
    row.get_by_text(f"Refund {purchase}").first.click()
    expect(row).to_contain_text("Empty: all that is left, $9.99.")
    row.get_by_label("Dollars").fill("a lot")
    row.get_by_label("Reason").fill("half of it failed")
    row.get_by_role("button", name=f"Refund {purchase}").click()
    expect(row.get_by_label("Dollars")).to_be_focused()
    expect(row.get_by_label("Reason")).to_have_value("half of it failed")
    look(page)
    row.get_by_label("Dollars").fill("4.00")
    row.get_by_role("button", name=f"Refund {purchase}").click()
    expect(page.get_by_role("status")).to_contain_text("The money goes back.")
    customer.wait_balance(5_990_000, 20)
    wait_until(lambda: page.reload() and "partly refunded" in row.inner_text(), 10, "shown")
    expect(row).to_contain_text("$4.00")
    look(page)
    page.goto(f"{town.server.url}/admin/purchases?state=credited")
    row.get_by_text(f"Refund {purchase}").first.click()
    row.get_by_label("Reason").fill("the rest of it too")
    row.get_by_role("button", name=f"Refund {purchase}").click()
    customer.wait_balance(0, 20)
    refunds = [one["amount"] for one in town.paid()["records"] if one["kind"] == "refunded"]
    assert refunds[-2:] == [400, 599]


def test_the_review_queue_is_decided_by_a_person(
    town: Town, visits: Visits, keys: dict[str, str], folder: Path
) -> None:
    customer = town.customer()
    checkout = f"{town.server.url}/api/billing/checkout"
    web.post(checkout, json={"packageCode": "starter"}, headers=customer.headers, timeout=20).raise_for_status()
    purchase = purchase_of(town, customer)
    with closing(sqlite3.connect(town.server.folder / "var" / "tollkeeper.db", timeout=10)) as sql, sql:
        sql.execute(
            "UPDATE purchases SET state = 'review', total_cents = 777, problem = 'another amount' WHERE id = ?",
            (purchase,),
        )
    page = enter(visits.window(), town, keys["owner"])
    page.get_by_role("link", name="Purchases").click()
    row = card(page, "review").get_by_role("row").filter(has_text=purchase)
    expect(row).to_contain_text("$7.77")
    expect(row).to_contain_text("another amount")
    row.get_by_text(f"Dismiss {purchase}").first.click()
    look(page)
    row.get_by_label("Reason").locator("visible=true").fill("given back at Stripe")
    row.get_by_role("button", name="Dismiss it").click()
    expect(page.get_by_role("status")).to_contain_text("The payment is closed.")
    expect(card(page, "review")).to_contain_text("None does.")
    last = last_audit(town, folder)
    assert (last["subject"], last["reason"]) == (purchase, "given back at Stripe")


def test_somebody_is_invited_and_comes_in(town: Town, visits: Visits, keys: dict[str, str]) -> None:
    page = enter(visits.window(), town, keys["owner"])
    page.get_by_role("link", name="Admins").click()
    look(page)
    page.get_by_label("Name").fill("Grace")
    card(page, "invite").get_by_label("Role").select_option("finance")
    page.get_by_role("button", name="Make a key for them").click()
    secret = page.locator("#secret").inner_text()
    look(page)
    theirs = enter(visits.window(), town, secret)
    expect(theirs.get_by_text("role finance")).to_be_visible()
    page.get_by_role("link", name="Back to the admins").click()
    assert secret not in page.content()
    row = card(page, "admins").get_by_role("row").filter(has_text="Grace")
    row.get_by_text("Revoke Grace").first.click()
    row.get_by_label("Reason").locator("visible=true").fill("was a test")
    look(page)
    row.get_by_role("button", name="Revoke Grace").click()
    expect(row).to_contain_text("revoked")
    theirs.reload()
    expect(theirs.get_by_label("Admin key or token")).to_be_visible()


def test_the_customers_page_is_opened_as_staff(town: Town, visits: Visits, keys: dict[str, str]) -> None:
    customer = town.customer(7_000)
    page = enter(visits.window(), town, keys["support"])
    open_account(page, town, customer)
    page.get_by_role("button", name="Open the customer's page").click()
    page.wait_for_url("**/credits")
    expect(page.get_by_role("status").first).to_contain_text("seen as staff by the support")
    expect(page.locator("#available")).to_have_text("7")
    assert page.evaluate("window.refused") == []


# -- what is going on -----------------------------------------------------------------------------------------


def test_the_overview_and_reconciliation_tell_what_is_wrong(
    town: Town, visits: Visits, keys: dict[str, str], buyer: Customer, history: str
) -> None:
    page = enter(visits.window(), town, keys["owner"])
    day = card(page, "money").get_by_role("row").filter(has_text=LOSS_DAY)
    expect(day).to_contain_text("−$1.50")
    expect(day).to_contain_text("$3.50")
    expect(day).to_contain_text("4,321")
    charts = card(page, "charts").get_by_role("img")
    expect(charts).to_have_count(4)
    assert charts.first.get_attribute("aria-label") is not None
    assert card(page, "charts").locator(".liability rect").count() >= 1
    look(page)
    owed = page.locator("#liability").inner_text()
    customer = town.customer(5_000_000)
    page.reload()
    assert round((_dollars(page.locator("#liability").inner_text()) - _dollars(owed)) * 100) == 500
    spent: dict[str, int] = {}
    for row in town.cli("usage", buyer.account_id, "--limit", "100")["data"]:
        spent[row["model"]] = spent.get(row["model"], 0) + 1
    for model, number in spent.items():
        row = card(page, "models").get_by_role("row").filter(has=page.get_by_role("rowheader", name=model, exact=True))
        assert int(row.locator("td").first.inner_text().replace(",", "")) >= number
    page.get_by_role("link", name="1 finding").click()
    expect(card(page, "findings")).to_contain_text(history)
    expect(card(page, "findings")).to_contain_text("998,995")
    look(page)
    assert customer.balance() == 5_000_000


def _dollars(text: str) -> float:
    return float(text.replace("$", "").replace(",", ""))


def test_a_webhook_is_replayed_and_books_nothing_twice(
    town: Town, visits: Visits, keys: dict[str, str], buyer: Customer
) -> None:
    balance = buyer.balance()
    page = enter(visits.window(), town, keys["owner"])
    page.get_by_role("link", name="Webhooks").click()
    row = card(page, "inbox").get_by_role("row").filter(has_text="checkout.session.completed").first
    expect(row).to_contain_text("done")
    event = row.locator("code").inner_text()
    row.get_by_role("button", name=f"Replay {event}").click()
    expect(page.get_by_role("status")).to_have_text("The event is handled again now.")
    page.get_by_role("link", name="Done").click()
    again = card(page, "inbox").get_by_role("row").filter(has_text=event)
    wait_until(lambda: page.reload() and again.count() == 1, 10, "handled again")
    assert buyer.balance() == balance
    page.get_by_role("link", name="Parked").click()
    expect(page.get_by_text("No event is parked.")).to_be_visible()
    look(page)
    page.get_by_role("link", name="Audit log").click()
    expect(card(page, "audit").locator("tbody tr").first).to_contain_text("webhook.replay")
    expect(card(page, "audit").locator("tbody tr").first).to_contain_text(event)


# -- for everybody --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("history")
@pytest.mark.parametrize("options", [{}, {"viewport": PHONE, "color_scheme": "dark"}], ids=["desktop", "dark phone"])
def test_axe_finds_nothing_on_any_page(
    options: dict[str, Any], town: Town, visits: Visits, keys: dict[str, str], buyer: Customer
) -> None:
    page = enter(visits.window(**options), town, keys["owner"])
    for path in (*PAGES, f"/admin/accounts/{buyer.account_id}", f"/admin/accounts/{buyer.account_id}/access"):
        page.goto(town.server.url + path)
        for summary in page.locator("summary").all():
            summary.click()
        look(page)


def test_an_operator_needs_no_mouse(town: Town, visits: Visits, keys: dict[str, str]) -> None:
    customer = town.customer()
    page = visits.window()
    page.goto(f"{town.server.url}/admin")
    tab_to(page, "Admin key or token")
    page.keyboard.type(keys["owner"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Accounts")).to_be_visible()
    tab_to(page, "Account id, name, or key id")
    page.keyboard.type(customer.account_id)
    page.keyboard.press("Enter")
    expect(card(page, "find").locator("tbody tr")).to_have_count(1)
    tab_to(page, customer.account_id)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Credits to give")).to_be_visible()
    stops = tab_stops(page)
    assert len(stops) == page.locator(STOPS).count()
    for path in ("/admin/purchases", "/admin/admins"):
        page.goto(town.server.url + path)
        assert len(tab_stops(page)) == page.locator(STOPS).count(), path
    page.go_back()
    page.go_back()
    page.evaluate("document.activeElement.blur()")
    tab_to(page, "Credits to give")
    page.keyboard.type("7")
    page.keyboard.press("Tab")
    page.keyboard.type("by keyboard")
    page.keyboard.press("Enter")
    page.wait_for_url("**?done=grant")  # a page that is still on its way would be interrupted by the next
    customer.wait_balance(7_000)
    page.goto(f"{town.server.url}/admin/flags")
    assert all(
        any(stop.startswith("summary Set " + flag) for stop in tab_stops(page))
        for flag in ("purchase_enabled", "rollout.percent")
    )
