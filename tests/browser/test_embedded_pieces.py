"""<tollkeeper-balance> and <tollkeeper-buy> in Chromium, inside a page of another origin whose policy allows nothing else."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Town
from tests.browser.visits import Visits, look
from tests.support import web
from tests.support.admins import bearer
from tests.support.customers import Customer
from tests.support.servers import ROOT, wait_until

GUIDE = (ROOT / "docs" / "integrate.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The one block of a language that the guide has."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    return str(found)


class ForeignPage:
    """The app's site, as the guide shows it, under a policy as strict as a policy can be."""

    def __init__(self, home: str) -> None:
        self.home, self.token = home, ""
        app = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, body = app.files().get(self.path, ("text/plain", ""))
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body.encode())))
                self.send_header("Content-Security-Policy", app.policy)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.origin = f"http://127.0.0.1:{self._server.server_port}"

    def files(self) -> dict[str, tuple[str, str]]:
        """Path → kind and text."""
        page = block("html").replace("http://127.0.0.1:8080", self.home).replace('refresh="30"', 'refresh="5"')
        return {
            "/": ("text/html", page),
            "/app.js": ("text/javascript", block("js")),
            "/app.css": ("text/css", block("css")),
            "/token": ("text/plain", self.token),
        }

    @property
    def policy(self) -> str:
        return (
            f"default-src 'none'; script-src 'self' {self.home}; connect-src 'self' {self.home}; style-src 'self'; "
            "img-src data:; "
            "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def foreign(town: Town) -> Iterator[ForeignPage]:
    page = ForeignPage(town.server.url)
    yield page
    page.close()


@pytest.fixture(scope="module")
def service(town: Town) -> str:
    return town.admin("service")


def token_of(town: Town, service: str, customer: Customer, **asked: Any) -> dict[str, Any]:
    body = {"accountId": customer.account_id, "buy": True, **asked}
    answer = web.post(f"{town.server.url}/api/tokens", json=body, headers=bearer(service), timeout=20)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def focused(page: Page, stops: int) -> list[str]:
    """Outlines of what the Tab key reaches inside the pieces, in order."""
    found = []
    for _ in range(stops):
        page.keyboard.press("Tab")
        inside = "document.activeElement.shadowRoot.activeElement"
        found.append(page.evaluate(f"(s => `${{s.outlineStyle}} ${{s.outlineWidth}}`)(getComputedStyle({inside}))"))
    return found


def chatted(customer: Customer) -> None:
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(customer.chat, max_tokens=20).result().status_code == 200


def test_a_foreign_page_shows_the_balance_as_it_changes_and_looks_as_it_says(
    town: Town, visits: Visits, foreign: ForeignPage, service: str
) -> None:
    customer = town.customer(1_234_567_891)
    foreign.token = token_of(town, service, customer, origins=[foreign.origin])["token"]
    page = visits.window()
    page.goto(foreign.origin)
    expect(page.locator("tollkeeper-balance")).to_have_text("1,234,567.89 credits")
    expect(page.locator("tollkeeper-buy button")).to_have_count(2)
    button = page.locator("tollkeeper-buy button").first
    expect(button).to_have_css("background-color", "rgb(1, 82, 3)")
    expect(button).to_have_css("border-radius", "7px")
    look(page)
    assert focused(page, 2) == ["solid 3px", "solid 3px"]  # each is reached, and its focus is seen
    chatted(customer)
    expect(page.locator("tollkeeper-balance")).not_to_have_text("1,234,567.89 credits", timeout=20_000)
    page.set_viewport_size({"width": 360, "height": 740})
    look(page)
    page.close()


def test_buying_with_the_keyboard_leads_to_the_payment_page_unless_the_app_takes_over(
    town: Town, visits: Visits, foreign: ForeignPage, service: str
) -> None:
    customer = town.customer()
    foreign.token = token_of(town, service, customer, origins=[foreign.origin])["token"]
    page = visits.window()
    page.goto(foreign.origin)
    expect(page.locator("tollkeeper-buy button")).to_have_count(2)
    page.evaluate(
        "document.addEventListener('tollkeeper-checkout', (event) => { event.preventDefault(); window.bought = event.detail; })"
    )
    page.locator("tollkeeper-buy button").first.focus()
    page.keyboard.press("Enter")
    bought = wait_until(lambda: page.evaluate("window.bought"), 10, "the app is told of the payment page")
    assert bought["id"].startswith("pur_")
    expect(page.locator("tollkeeper-buy button").first).to_be_enabled()
    second = visits.window()
    second.goto(foreign.origin)
    expect(second.locator("tollkeeper-buy button")).to_have_count(2)
    second.locator("tollkeeper-buy button").nth(1).focus()
    second.keyboard.press("Space")
    second.wait_for_url(lambda url: not url.startswith(foreign.origin))
    assert second.url.startswith(town.stripe)
    rows = web.get(f"{town.server.url}/api/billing/purchases", headers=customer.headers, timeout=10).json()["data"]
    assert {row["id"] for row in rows} > {bought["id"]}


def test_a_token_that_ends_asks_for_another_and_goes_on_with_it(
    town: Town, visits: Visits, foreign: ForeignPage, service: str
) -> None:
    customer = town.customer(5_000_000)
    made = token_of(town, service, customer, origins=[foreign.origin])
    foreign.token = made["token"]
    page = visits.window()
    page.goto(foreign.origin)
    expect(page.locator("tollkeeper-balance")).to_have_text("5,000 credits")
    foreign.token = ""  # the app has none for now
    town.cli("token", "revoke", made["tokenId"], "--reason", "test")
    expect(page.locator("tollkeeper-balance [role=alert]")).to_contain_text("API key", timeout=30_000)
    look(page)
    foreign.token = token_of(town, service, customer, origins=[foreign.origin])["token"]
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as when its window is looked at again
    expect(page.locator("tollkeeper-balance")).to_have_text("5,000 credits", timeout=20_000)


def test_a_page_of_another_origin_than_the_tokens_sees_nothing(
    town: Town, visits: Visits, foreign: ForeignPage, service: str
) -> None:
    customer = town.customer(5_000_000)
    foreign.token = token_of(town, service, customer, origins=["https://app.example.com"])["token"]
    page = visits.window()
    page.goto(foreign.origin)
    expect(page.locator("tollkeeper-balance [role=alert]")).to_have_text("This cannot be loaded right now.")
    assert "5,000" not in page.content()
    console = ("CORS policy", "net::ERR_FAILED")  # where Chromium says so
    visits.errors = [text for text in visits.errors if not any(part in text for part in console)]


def test_a_token_without_the_right_to_buy_shows_the_balance_alone(
    town: Town, visits: Visits, foreign: ForeignPage, service: str
) -> None:
    customer = town.customer(5_000_000)
    foreign.token = token_of(town, service, customer, origins=[foreign.origin], buy=False)["token"]
    page: Page = visits.window()
    page.goto(foreign.origin)
    expect(page.locator("tollkeeper-balance")).to_have_text("5,000 credits")
    expect(page.locator("tollkeeper-buy [role=alert]")).to_have_text(
        "This token may not buy: it was made without `buy`."
    )
    look(page)


def test_the_script_is_the_same_for_everybody_and_says_nothing_of_anybody(town: Town) -> None:
    answer = web.get(f"{town.server.url}/embed/tollkeeper.js", timeout=10)
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    for risky in ("innerHTML", "eval(", "new Function", "document.write", "localStorage", "document.cookie"):
        assert risky not in answer.text
    assert json.dumps(dict(answer.headers)).count("set-cookie") == 0
