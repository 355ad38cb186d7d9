"""One Chromium and one served product per module; each test has windows of its own."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.browser.visits import Visits, opened_browser
from tests.support import web
from tests.support.customers import Customer, new_customer
from tests.support.identity import CLIENT, Idp
from tests.support.identity import SECRET as IDP_SECRET
from tests.support.servers import ROOT, Sandbox, Tollkeeper
from tests.support.town import PACKAGES

SECRET = "whsec_browser"
FLAG_FILE = "# what the tests change is appended\n"


@dataclass
class Town:
    """A served Tollkeeper, made-up OpenAI and Stripe behind it."""

    server: Tollkeeper
    stripe: str
    idp: Idp

    def cli(self, *arguments: str) -> Any:
        """The command's JSON."""
        return self.server.cli(*arguments)

    def customer(self, balance: int = 0) -> Customer:
        """An account with so many millicredits. On a thread: Playwright keeps an event loop running in this one."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(new_customer, self.server, balance).result()

    def link(self, customer: Customer) -> str:
        """A one-time link to the Credits page."""
        return str(self.cli("portal", customer.account_id)["url"])

    def admin(self, role: str) -> str:
        """A new admin key."""
        return str(self.cli("admin", "create", f"the {role}", "--role", role)["adminKey"])

    def configure(self, text: str) -> None:
        """Edit proxy.toml while it is served."""
        (self.server.folder / "proxy.toml").write_text(FLAG_FILE + text)

    def paid(self) -> Any:
        """What the made-up Stripe says moved."""
        return web.get(f"{self.stripe}/__stripe/record", timeout=10).json()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def town(new_folder: Callable[[str], Path], session_sandbox: Sandbox, request: pytest.FixtureRequest) -> Iterator[Town]:
    home = new_folder(request.module.__name__.rpartition(".")[2])
    bank = subprocess.Popen([sys.executable, "-m", "sandbox.stripe"], cwd=ROOT, stdout=subprocess.PIPE)
    assert bank.stdout is not None
    found = re.search(rb"http://\S+", bank.stdout.readline())
    assert found is not None
    server = Tollkeeper(
        home,
        {
            "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
            "STRIPE_API_KEY": "sk_test_sandbox",
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "TOLLKEEPER_STRIPE__API_BASE": found[0].decode(),
            "TOLLKEEPER_PACKAGES": PACKAGES,
            "TOLLKEEPER_ADVANCED__EMBEDDED_TIMEOUT_SECONDS": "10",  # a disk that all tests share may take its time
        },
    )
    server.environment |= {
        "TOLLKEEPER_PORTAL__PUBLIC_URL": server.url,
        "TOLLKEEPER_STRIPE__SUCCESS_URL": f"{server.url}/credits?session={{CHECKOUT_SESSION_ID}}",
        "TOLLKEEPER_STRIPE__CANCEL_URL": f"{server.url}/credits",
    }
    idp = Idp(f"{server.url}/admin/sign-in/callback", "localhost")
    server.environment |= {
        "TOLLKEEPER_ADMIN__OIDC_ISSUER": idp.url,
        "TOLLKEEPER_ADMIN__OIDC_CLIENT_ID": CLIENT,
        "TOLLKEEPER_ADMIN__OIDC_ROLES": '{"ann@example.com": "finance"}',
        "OIDC_CLIENT_SECRET": IDP_SECRET,
    }
    town = Town(server, found[0].decode(), idp)
    town.configure("[billing]\nauto_recharge = true\n")
    server.start()
    endpoint = {"url": f"{server.url}/webhooks/stripe", "secret": SECRET}
    web.post(f"{town.stripe}/__stripe/endpoints", json=endpoint, timeout=10).raise_for_status()
    yield town
    server.kill()
    idp.close()
    bank.kill()
    bank.communicate()


@pytest.fixture
def visits(browser: Browser, town: Town) -> Iterator[Visits]:
    made = Visits(browser, town.server.url)
    yield made
    made.close()
