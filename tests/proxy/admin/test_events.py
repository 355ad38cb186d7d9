"""Events by API, page and command, to a program that receives them: signed, logged, sent again, with the roles that may."""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.admins import bearer, enter
from tests.support.openapi import fits
from tests.support.receiver import Receiver, receiving
from tests.support.servers import Sandbox, Tollkeeper, wait_until

EVENTS = "/api/admin/events"
ENDPOINTS = f"{EVENTS}/endpoints"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox, receiver: Receiver) -> Iterator[Tollkeeper]:
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_NOTICES__PRIVATE_ENDPOINTS": "true",
        "TOLLKEEPER_NOTICES__URL": f"{receiver.url}/file",
        "TOLLKEEPER_NOTICES__KINDS": '["account.*"]',
        "NOTICES_SECRET": "a long random string of the file's own",
    }
    server = Tollkeeper(new_folder("events"), environment).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def key(server: Tollkeeper) -> dict[str, str]:
    return bearer(server.cli("admin", "create", "the app", "--role", "service")["adminKey"])


def ask(server: Tollkeeper, method: str, path: str, key: dict[str, str], **body: Any) -> httpx.Response:
    sent = body if method != "GET" else None
    answer = web.request(method, server.url + path, json=sent, headers=key, timeout=20)
    fits(
        answer,
        re.sub(r"ep_\w+", "{endpoint_id}", re.sub(r"/[^/]+/replay", "/{notice_id}/replay", path)).partition("?")[0],
    )
    return answer


def signed_by(receiver: Receiver, secret: str, event_id: str) -> int:
    """How many of the signatures of an event's last arrival are by this secret."""
    place = max(number for number, (_, _, event) in enumerate(receiver.arrived) if event["id"] == event_id)
    header = receiver.arrived[place][1]
    at = header.partition(",")[0].removeprefix("t=")
    wanted = hmac.new(secret.encode(), at.encode() + b"." + receiver.bodies[place], hashlib.sha256).hexdigest()
    return header.split(",").count(f"v1={wanted}")


def test_an_endpoint_hears_signed_and_in_order_and_again_when_it_is_asked_for(
    server: Tollkeeper, key: dict[str, str], receiver: Receiver
) -> None:
    url = f"{receiver.url}/first"
    made = ask(server, "POST", ENDPOINTS, key, url=url, kinds=["account.*", "key.*"], description="our app")
    assert made.status_code == 201, made.text
    endpoint, secret = made.json()["endpointId"], made.json()["secret"]
    account = ask_account(server, key)
    server.cli("account", "block", account, "--reason", "a test")
    server.cli("account", "block", account, "--unblock", "--reason", "a test")
    kinds = ["account.created", "key.created", "account.blocked", "account.unblocked"]

    def heard(path: str) -> list[dict[str, Any]]:
        return [event for event in receiver.events(path) if event["accountId"] == account]

    wait_until(lambda: len(heard("/first")) == 4 and len(heard("/file")) == 3, 20, "all of it has arrived")
    assert [event["kind"] for event in heard("/first")] == kinds
    assert [event["id"] for event in heard("/file")] == [
        event["id"] for event in heard("/first") if "account" in event["kind"]
    ]
    last = heard("/first")[-1]["id"]
    assert signed_by(receiver, secret, heard("/first")[1]["id"]) == 1
    newest = f"{EVENTS}?accountId={account}&endpointId={endpoint}&state=sent&limit=1"
    wait_until(lambda: ask(server, "GET", newest, key).json()["data"][0]["eventId"] == last, 10, "it is recorded")
    found = ask(server, "GET", newest, key).json()
    assert (found["data"][0]["eventId"], found["data"][0]["event"]["id"]) == (last, last)
    older = ask(server, "GET", f"{EVENTS}?accountId={account}&endpointId={endpoint}&cursor={found['nextCursor']}", key)
    assert [row["kind"] for row in older.json()["data"]] == kinds[2::-1]
    rotated = ask(server, "POST", f"{ENDPOINTS}/{endpoint}/rotate", key, graceSeconds=600, reason="a leak").json()
    again = ask(server, "POST", f"{EVENTS}/{found['data'][0]['noticeId']}/replay", key)
    assert again.status_code == 200, again.text
    wait_until(lambda: [event["id"] for event in heard("/first")].count(last) == 2, 20, "it has come again")
    assert [signed_by(receiver, one, last) for one in (secret, rotated["secret"])] == [1, 1]
    assert ask(server, "POST", f"{ENDPOINTS}/{endpoint}/remove", key).status_code == 200
    assert endpoint not in [row["endpointId"] for row in ask(server, "GET", ENDPOINTS, key).json()["data"]]


def ask_account(server: Tollkeeper, key: dict[str, str]) -> str:
    made = web.post(f"{server.url}/api/admin/accounts", json={"name": "somebody"}, headers=key, timeout=20)
    return str(made.json()["accountId"])


def test_events_of_a_disabled_endpoint_wait_and_what_fails_is_tried_again(
    server: Tollkeeper, key: dict[str, str], receiver: Receiver
) -> None:
    made = ask(server, "POST", ENDPOINTS, key, url=f"{receiver.url}/second", kinds=["account.created"]).json()
    endpoint = made["endpointId"]
    assert ask(server, "PATCH", f"{ENDPOINTS}/{endpoint}", key, disabled=True).json()["disabled"]
    account = ask_account(server, key)
    rows = f"{EVENTS}?endpointId={endpoint}&accountId={account}"
    wait_until(lambda: ask(server, "GET", rows, key).json()["data"], 10, "it waits")
    assert not receiver.events("/second")
    receiver.status = 500
    ask(server, "PATCH", f"{ENDPOINTS}/{endpoint}", key, disabled=False)
    wait_until(lambda: ask(server, "GET", rows, key).json()["data"][0]["attempts"] == 1, 10, "it was tried")
    receiver.status = 204
    (row,) = ask(server, "GET", rows, key).json()["data"]
    assert (row["state"], row["lastError"]) == ("pending", "status 500")
    wait_until(lambda: ask(server, "GET", rows, key).json()["data"][0]["state"] == "sent", 30, "it is tried again")
    assert receiver.ids("account.created", "/second") == [row["eventId"]] * 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "ftp://app.example.com/"}, "url"),
        ({"url": "https://ann:secret@app.example.com/"}, "url"),
        ({"url": "nothing"}, "url"),
        ({"url": "https://app.example.com/", "kinds": ["nothing.*"]}, "kinds"),
        ({"url": "https://app.example.com/", "kinds": []}, "kinds"),
    ],
)
def test_what_is_no_endpoint_is_refused(
    body: dict[str, Any], field: str, server: Tollkeeper, key: dict[str, str]
) -> None:
    refused = ask(server, "POST", ENDPOINTS, key, **body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field), refused.text
    assert ask(server, "POST", f"{EVENTS}/nothing/replay", key).status_code == 404


def test_a_private_address_is_refused_unless_it_is_allowed(server: Tollkeeper) -> None:
    for url in ("http://app.example.com/e", "https://127.0.0.1/e", "https://localhost:8443/e", "https://[::1]/e"):
        done = server.run("events", "add", url, TOLLKEEPER_NOTICES__PRIVATE_ENDPOINTS="false")
        assert done.returncode == 1, url
        assert "url" in done.stderr


def test_the_page_registers_shows_a_secret_once_and_sends_again(
    server: Tollkeeper, receiver: Receiver, key: dict[str, str]
) -> None:
    owner = server.cli("admin", "create", "Ada", "--role", "owner")["adminKey"]
    with web.client(base_url=server.url, follow_redirects=True, timeout=20) as browser:
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', enter(browser, owner).text)
        assert found is not None
        form = {"csrf": found[1], "reason": "test"}
        url = f"{receiver.url}/page"
        made = browser.post("/admin/events/endpoints", data={**form, "url": url, "kinds": "account.created"})
        assert re.search(r'id="secret" class="secret">whsec_[\w-]{43}<', made.text)
        assert "Not shown again" in browser.get(made.url).text
        listed = browser.get("/admin/events").text
        endpoint = re.search(rf"(ep_[0-9a-f]+)</code>(?:(?!ep_).)*?{re.escape(url)}", listed)
        assert endpoint is not None
        account = ask_account(server, key)
        wait_until(lambda: [one for one in receiver.events("/page") if one["accountId"] == account], 20, "it came")
        wait_until(lambda: rows_of(server, endpoint[1], account)[0]["state"] == "sent", 20, "it is recorded")
        (notice,) = [row["noticeId"] for row in rows_of(server, endpoint[1], account)]
        assert notice in browser.get("/admin/events").text
        assert "sent again" in browser.post("/admin/events/replay", data={**form, "notice": notice}).text
        wait_until(lambda: len(receiver.ids("account.created", "/page")) >= 2, 20, "it came again")
        assert (
            "is changed" in browser.post("/admin/events/endpoints/remove", data={**form, "endpoint": endpoint[1]}).text
        )
    actions = [row.split('"action":"')[1].split('"')[0] for row in exported(server)]
    assert {"endpoint.add", "endpoint.remove", "event.replay"} <= set(actions)


def rows_of(server: Tollkeeper, endpoint: str, account: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.cli("events", "list", "--endpoint", endpoint, "--account", account)["data"]
    return found


def exported(server: Tollkeeper) -> list[str]:
    server.run("audit", "export", "audit.jsonl")
    return (server.folder / "audit.jsonl").read_text().splitlines()


def test_the_command_does_what_the_api_does(server: Tollkeeper, receiver: Receiver) -> None:
    made = server.cli("events", "add", f"{receiver.url}/cli", "--kinds", "account.created", "--description", "by hand")
    endpoint = made["endpointId"]
    account = server.cli("account", "create", "somebody")["accountId"]
    wait_until(lambda: [row for row in rows_of(server, endpoint, account) if row["state"] == "sent"], 20, "it is sent")
    (row,) = rows_of(server, endpoint, account)
    assert server.cli("events", "replay", row["noticeId"])["state"] == "pending"
    assert server.cli("events", "change", endpoint, "--disable")["disabled"]
    assert server.cli("events", "rotate", endpoint, "--grace-hours", "1")["secret"] != made["secret"]
    assert endpoint in server.run("events", "endpoints").stdout
    assert server.cli("events", "remove", endpoint)["removed"]
    assert server.cli("events", "remove", endpoint, code=1)["error"]
    assert server.cli("events", "change", endpoint, code=1)["error"]


def test_a_kind_that_there_is_not_is_refused_by_check_config(server: Tollkeeper) -> None:
    done = server.run("check-config", TOLLKEEPER_NOTICES__KINDS='["nothing"]')
    assert done.returncode == 2
    assert "notices.kinds" in done.stderr
