"""The pictures of the documentation: the Credits page and the operators' pages, of a product that was used.

`TOLLKEEPER_PICTURES=docs/images` writes them there; without it they are only made.
"""

import os
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import Town
from tests.browser.visits import Visits
from tests.support import web
from tests.support.customers import Customer
from tests.support.servers import ROOT, wait_until

SIZE = {"width": 1_160, "height": 860}
COLORS, MOST_BYTES = 96, 60_000
LOW = {"width": 1_160, "height": 420}
PHONE = {"width": 390, "height": 780}
LOGO = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40"><rect width="40" height="40" rx="10" fill="#7a1fa2"/>'
    '<path d="M9 30L20 9l11 21z" fill="#ffffff"/></svg>'
)
BRAND = """[app]
name = "Acme Writer"
url = "https://app.example.com"
logo_file = "logo.svg"
color = "#7a1fa2"
dark_color = "#d7a6f0"
support_url = "mailto:help@example.com"
terms_url = "https://example.com/terms"
privacy_url = "https://example.com/privacy"
"""
PLACE = os.environ.get("TOLLKEEPER_PICTURES", "")


def test_pictures(town: Town, visits: Visits, folder: Path) -> None:
    customer = town.customer()
    page_of = f"{town.server.url}/api/billing/checkout"
    session = web.post(page_of, json={"packageCode": "pro"}, headers=customer.headers, timeout=20).json()["sessionId"]
    web.post(
        f"{town.stripe}/__stripe/sessions/{session}/pay", json={"outcome": "succeed"}, timeout=20
    ).raise_for_status()
    customer.wait_balance(109_989_000, 20)
    for number in range(14):
        model = ("gpt-4.1", "gpt-4o", "gpt-4o-mini")[number % 3]
        assert customer.chat("tell me of toll roads " * number, model=model, max_tokens=400).status_code == 200
    town.cli("drain")
    keep_past_days(town)
    town.cli("finance", "--days", "1")
    page = visits.window(viewport=SIZE)
    page.goto(town.link(customer))
    page.wait_for_url("**/credits")
    expect(page.get_by_role("heading", name="Credits", exact=True)).to_be_visible()
    take(page, "credits.png", folder)
    show(page, "#usage")
    take(page, "credits-usage.png", folder)
    show(page, "#activity")
    take(page, "credits-activity.png", folder)
    form = page.locator("form[action='/credits/keys']")
    form.get_by_label("Name").fill("the website")
    form.get_by_label("Spend limit in credits").fill("a lot")
    page.get_by_role("button", name="Create a key").click()
    expect(form.get_by_label("Spend limit in credits")).to_be_focused()
    show(page, "#keys")
    take(page, "credits-refused.png", folder)
    page.goto(f"{town.server.url}/credits/prices?find=gpt-5")
    take(page, "credits-prices.png", folder)
    photograph_the_product(town, visits, customer, folder)
    photograph_operations(town, visits, customer, folder)


def photograph_the_product(town: Town, visits: Visits, customer: Customer, folder: Path) -> None:
    """The operator's own name, logo and colours: signed out, and on a phone in the dark."""
    (town.server.folder / "logo.svg").write_text(LOGO)
    town.configure(BRAND)
    page = visits.window(viewport=LOW)
    brand = page.locator(".brand")
    wait_until(lambda: page.goto(f"{town.server.url}/credits") and brand.count() == 1, 5, "the name is there")
    take(page, "credits-signed-out.png", folder)
    phone = visits.window(viewport=PHONE, color_scheme="dark")
    phone.goto(town.link(customer))
    phone.wait_for_url("**/credits")
    take(phone, "credits-phone.png", folder)
    show(phone, "#activity")
    take(phone, "credits-phone-activity.png", folder)


def photograph_operations(town: Town, visits: Visits, customer: Customer, folder: Path) -> None:
    """The operators' pages."""
    page = visits.window(viewport=LOW)
    page.goto(f"{town.server.url}/admin")
    take(page, "ops-sign-in.png", folder)
    page.set_viewport_size(SIZE)
    page.get_by_label("Admin key or token").fill(town.admin("owner"))
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Accounts")).to_be_visible()
    take(page, "dashboard.png", folder)
    show(page, "#charts")
    take(page, "ops-charts.png", folder)
    page.goto(f"{town.server.url}/admin/accounts/{customer.account_id}")
    page.get_by_label("Credits to give").fill("a few")
    page.locator("section[aria-labelledby=grant]").get_by_label("Reason").fill("for the trouble on Monday")
    page.get_by_role("button", name="Grant").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.evaluate("window.scrollTo(0, 0)")
    take(page, "ops-account.png", folder)
    page.goto(f"{town.server.url}/admin/purchases")
    page.locator("summary").filter(has_text="Refund").first.click()
    take(page, "ops-purchases.png", folder)
    page.goto(f"{town.server.url}/admin/admins")
    take(page, "ops-admins.png", folder)
    phone = visits.window(viewport=PHONE, color_scheme="dark")
    phone.context.add_cookies(page.context.cookies())
    phone.goto(f"{town.server.url}/admin/accounts/{customer.account_id}")
    take(phone, "ops-phone.png", folder)


def show(page: Page, place: str) -> None:
    """Scroll a heading to the top of the screen."""
    page.evaluate("(place) => document.querySelector(place).closest('section').scrollIntoView()", place)


def take(page: Page, name: str, folder: Path) -> None:
    """Photograph what is on the screen."""
    place = (ROOT / PLACE if PLACE else folder) / name
    page.screenshot(path=place)
    with Image.open(place) as picture:
        picture.convert("RGB").quantize(COLORS).save(place, optimize=True)  # a third of the size, and nobody sees it
    assert place.stat().st_size < MOST_BYTES


def keep_past_days(town: Town) -> None:
    """Figures of the days before, as the job `finance` keeps them."""
    today = datetime.now(UTC).date()
    with closing(sqlite3.connect(town.server.folder / "var" / "tollkeeper.db", timeout=10)) as sql, sql:
        for back in range(1, 7):
            deducted = 9_000_000 + back * 1_370_000 % 4_000_000
            sql.execute(
                "INSERT INTO finance_daily (day, purchased_millicredits, deducted_millicredits, cost_millicredits,"
                " loss_millicredits, liability_millicredits, requests, updated_at) VALUES (?, ?, ?, ?, 0, ?, ?, ?)",
                (
                    (today - timedelta(days=back)).isoformat(),
                    back * 9_990_000,
                    deducted,
                    deducted * 5 // 6,
                    60_000_000 - back * 3_000_000,
                    4_000 + back * 311,
                    int(time.time() * 1_000),
                ),
            )
