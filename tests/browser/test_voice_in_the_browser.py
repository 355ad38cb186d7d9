"""The page of docs/voice.md in Chromium: its RTCPeerConnection takes the answer that comes through us, and its call is metered."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import Town
from tests.browser.visits import Visits, opened_browser
from tests.support import web
from tests.support.customers import Customer
from tests.support.servers import ROOT, Sandbox, sandbox_says, wait_until
from tests.support.voice import (
    RESPOND,
    answers,
    bill,
    calls,
    hang_up,
    leave,
    play,
    says,
    secret_of,
    wait_answers,
    wait_ended,
)

BALANCE = 10_000_000
KEPT = """window.made = [];
const Original = window.RTCPeerConnection;
window.RTCPeerConnection = class extends Original { constructor(...all) { super(...all); window.made.push(this); } };"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """With a microphone that beeps, and that nobody has to allow."""
    with opened_browser("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream") as browser:
        yield browser


def documented_page(server: str) -> str:
    """The page that docs/voice.md shows, for this server."""
    text = Path(ROOT / "docs" / "voice.md").read_text(encoding="utf-8")
    found = re.search(r"```html\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1].replace("http://127.0.0.1:8080", server)


class App:
    """The customer's app: its page, and the route that hands out secrets."""

    def __init__(self, server: str) -> None:
        self.page, self.secret = documented_page(server), ""
        app = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = (app.secret if self.path == "/secret" else app.page).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain" if self.path == "/secret" else "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def app(town: Town) -> Iterator[App]:
    app = App(town.server.url)
    yield app
    app.close()


def talk(visits: Visits, app: App) -> Page:
    """A window whose page has pressed Talk and has its answer."""
    page = visits.window()
    page.add_init_script(KEPT)
    page.goto(app.url)
    page.get_by_role("button", name="Talk").click()
    page.wait_for_function("window.made.length === 1 && window.made[0].remoteDescription !== null")
    return page


def only_call(sandbox: Sandbox, before: set[str]) -> str:
    (made,) = calls(sandbox).keys() - before
    return made


def test_a_page_opens_a_call_and_what_is_said_is_charged(
    town: Town, visits: Visits, app: App, session_sandbox: Sandbox
) -> None:
    customer, before = town.customer(BALANCE), set(calls(session_sandbox))
    app.secret = secret_of(customer)
    page = talk(visits, app)
    state = page.evaluate("({signalling: made[0].signalingState, type: made[0].remoteDescription.type})")
    assert state == {"signalling": "stable", "type": "answer"}
    senders = "made[0].getTransceivers().map((one) => [one.mid, one.currentDirection])"
    assert page.evaluate(senders) == [["0", "sendrecv"]]
    call_id = only_call(session_sandbox, before)
    assert calls(session_sandbox)[call_id]["sidebands"] == 1
    assert customer.held() > 0
    play(session_sandbox, call_id, says(f"hello {sandbox_says(output_tokens=30)}"), RESPOND)
    wait_answers(session_sandbox, call_id, 1)
    assert hang_up(customer, call_id).status_code == 200
    wait_until(lambda: customer.held() == 0, 20, "nothing is held")
    expected = bill(answers(session_sandbox, call_id))
    assert expected > 0
    customer.wait_balance(BALANCE - expected, 20)
    page.evaluate("made[0].close()")
    assert page.evaluate("made[0].signalingState") == "closed"


def test_a_page_that_closes_its_connection_ends_its_call(
    town: Town, visits: Visits, app: App, session_sandbox: Sandbox
) -> None:
    customer, before = town.customer(BALANCE), set(calls(session_sandbox))
    app.secret = secret_of(customer)
    page = talk(visits, app)
    call_id = only_call(session_sandbox, before)
    page.evaluate("made[0].close()")
    leave(session_sandbox, call_id)  # OpenAI sees that by the media, which the sandbox does not speak
    wait_ended(session_sandbox, call_id)
    wait_until(lambda: customer.held() == 0, 20, "nothing is held")
    assert customer.balance() == BALANCE


def test_a_page_reads_why_it_gets_no_call(town: Town, visits: Visits, app: App) -> None:
    customer: Customer = town.customer(1_000)
    app.secret = secret_of(customer)
    page = visits.window()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(app.url)
    with page.expect_event("pageerror"):
        page.get_by_role("button", name="Talk").click()
    visits.errors.clear()  # that is what the page is to see
    assert len(failures) == 1
    assert "credits" in failures[0]
    answer = web.get(f"{town.server.url}/readyz", timeout=10)
    assert answer.status_code == 200
