"""The pictures of the README: the Credits page and the operators' overview, of a product that was used.

`TOLLKEEPER_PICTURES=docs/images` writes them there; without it they are only made.
"""

import os
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import Town
from tests.browser.visits import Visits
from tests.support import web
from tests.support.servers import ROOT

SIZE = {"width": 1_160, "height": 860}
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
    page.goto(f"{town.server.url}/admin")
    page.get_by_label("Admin key or token").fill(town.admin("owner"))
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Accounts")).to_be_visible()
    take(page, "dashboard.png", folder)


def take(page: Page, name: str, folder: Path) -> None:
    """Photograph what is on the screen."""
    place = (ROOT / PLACE if PLACE else folder) / name
    page.screenshot(path=place)
    assert place.read_bytes().startswith(b"\x89PNG")


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
