"""Requests beside /v1: their ids, their lines in the log, whose address the audit log names, and the rows of what admins do."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from billing.payments.stripe.signatures import sign
from tests.support import web
from tests.support.customers import Customer, new_customer
from tests.support.servers import Sandbox, Serve, Tollkeeper, wait_until

STRIPE = {
    "STRIPE_API_KEY": "sk_test_x",
    "STRIPE_WEBHOOK_SECRET": "whsec_x",
    "TOLLKEEPER_STRIPE__API_BASE": "http://127.0.0.1:9",
}
PAGES = {
    "TOLLKEEPER_STRIPE__SUCCESS_URL": "http://127.0.0.1:9/ok",
    "TOLLKEEPER_STRIPE__CANCEL_URL": "http://127.0.0.1:9/no",
}


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    home = new_folder("side-requests")
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_LISTEN__TRUSTED_PROXIES": '["127.0.0.1", "10.0.0.0/8"]',
    }
    server = Tollkeeper(home, environment).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def owner(server: Tollkeeper) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.cli('admin', 'create', 'owner', '--role', 'owner')['adminKey']}"}


@pytest.fixture(scope="module")
def customer(server: Tollkeeper) -> Customer:
    return new_customer(server, 0)


def line_of(server: Tollkeeper, request_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        lines = [json.loads(line) for line in server.log().splitlines() if request_id in line and line.startswith("{")]
        return lines[0] if len(lines) == 1 else None

    found: dict[str, Any] = wait_until(look, 5, "the one line of the request")
    return found


def newest(server: Tollkeeper, owner: dict[str, str], subject: str) -> dict[str, Any]:
    rows = web.get(f"{server.url}/api/admin/audit", params={"subject": subject, "limit": "1"}, headers=owner).json()[
        "data"
    ]
    found: dict[str, Any] = rows[0]
    return found


def block(server: Tollkeeper, customer: Customer, headers: dict[str, str]) -> httpx.Response:
    url = f"{server.url}/api/admin/accounts/{customer.account_id}/block?token=must-not-be-logged"
    return web.post(url, json={"blocked": False, "reason": "x"}, headers=headers)


def test_one_id_is_in_the_answer_the_row_and_the_line(
    server: Tollkeeper, owner: dict[str, str], customer: Customer
) -> None:
    answer = block(server, customer, owner)
    request_id = answer.headers["x-request-id"]
    assert answer.status_code == 200
    assert request_id.startswith("adm_")
    assert newest(server, owner, customer.account_id)["requestId"] == request_id
    line = line_of(server, request_id)
    assert line.pop("at") > 0
    assert line.pop("duration_ms") >= 0
    assert line == {
        "event": "side_request",
        "request_id": request_id,
        "method": "POST",
        "path": "/api/admin/accounts/{account_id}/block",
        "status": 200,
    }
    assert "must-not-be-logged" not in server.log()


def test_an_admins_own_id_is_kept_and_a_strange_one_is_not(
    server: Tollkeeper, owner: dict[str, str], customer: Customer
) -> None:
    answer = block(server, customer, {**owner, "x-request-id": "ticket-9"})
    assert answer.headers["x-request-id"] == "ticket-9"
    assert newest(server, owner, customer.account_id)["requestId"] == "ticket-9"
    for strange in ("x" * 81, "a b", ""):
        assert block(server, customer, {**owner, "x-request-id": strange}).headers["x-request-id"].startswith("adm_")


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/api/billing/me", "/api/billing/me", 401),
        ("POST", "/webhooks/stripe", "/webhooks/stripe", None),
        ("GET", "/credits", "/credits", 401),
        ("GET", "/credits/enter?token=must-not-be-logged", "/credits/enter", 403),
        ("GET", "/must-not-be-logged", "", 404),
        ("DELETE", "/api/billing/me", "/api/billing/me", 405),
        ("GET", "/api/admin/whoami", "/api/admin/whoami", 401),
    ],
)
def test_every_request_beside_v1_has_a_line(
    method: str, path: str, route: str, status: int | None, server: Tollkeeper
) -> None:
    answer = web.request(
        method, server.url + path, headers={"x-request-id": "not-an-admins"} if "admin" not in path else {}
    )
    request_id = answer.headers["x-request-id"]
    assert request_id.startswith(("side_", "adm_"))
    line = line_of(server, request_id)
    assert (line["method"], line["path"], line["status"]) == (method, route, answer.status_code)
    assert status in (None, answer.status_code)
    assert "must-not-be-logged" not in server.log()


def test_health_and_metrics_have_none_and_the_switch_is_the_same_as_for_v1(
    make_tollkeeper: Serve, server: Tollkeeper
) -> None:
    quiet = make_tollkeeper(TOLLKEEPER_LOG__ACCESS="false").start()
    for one in (quiet, server):
        for path in ("/healthz", "/readyz", "/metrics"):
            assert "x-request-id" in web.get(one.url + path).headers
    asked = web.get(f"{quiet.url}/api/billing/me").headers["x-request-id"]
    assert quiet.stop() == 0
    assert asked not in quiet.log()
    assert "side_request" not in quiet.log()
    assert not any(f'"path":"{path}"' in server.log() for path in ("/healthz", "/readyz", "/metrics"))


# -- behind a proxy --------------------------------------------------------------------------------------------


def test_the_audit_log_names_the_client_behind_a_trusted_proxy_only(
    server: Tollkeeper, owner: dict[str, str], customer: Customer, make_tollkeeper: Serve
) -> None:
    named = {"x-forwarded-for": "1.1.1.1, 203.0.113.7, 10.2.3.4"}
    assert block(server, customer, {**owner, **named}).status_code == 200
    assert newest(server, owner, customer.account_id)["ip"] == "203.0.113.7"
    trusting_none = make_tollkeeper().start()
    theirs = new_customer(trusting_none, 0)
    key = {"Authorization": f"Bearer {trusting_none.cli('admin', 'create', 'owner', '--role', 'owner')['adminKey']}"}
    assert block(trusting_none, theirs, {**key, **named}).status_code == 200
    assert newest(trusting_none, key, theirs.account_id)["ip"] == "127.0.0.1"


# -- what has a row --------------------------------------------------------------------------------------------


def test_links_into_a_customers_page_have_a_row_each(
    server: Tollkeeper, owner: dict[str, str], customer: Customer
) -> None:
    rows = server.cli("audit", "verify")["rows"]
    keys = {
        role: server.cli("admin", "create", role, "--role", role)["adminKey"] for role in ("support", "service", "ops")
    }
    asked = {"accountId": customer.account_id}

    def link(role: str) -> httpx.Response:
        return web.post(
            f"{server.url}/api/portal/sessions", json=asked, headers={"Authorization": f"Bearer {keys[role]}"}
        )

    assert link("support").status_code == 201
    row = newest(server, owner, customer.account_id)
    assert (row["action"], row["role"], row["actor"].startswith("support (adm_")) == ("portal.link", "support", True)
    assert row["requestId"].startswith("side_")
    server.cli("portal", customer.account_id)
    assert (
        newest(server, owner, customer.account_id)["action"],
        newest(server, owner, customer.account_id)["role"],
    ) == (
        "portal.link",
        "cli",
    )
    assert link("service").status_code == 201  # the app makes one whenever a customer goes to their page
    assert link("ops").status_code == 401
    assert server.cli("audit", "verify")["rows"] == rows + 3 + 2


def test_reasons_are_kept_wherever_they_are_given_and_asked_for_nowhere(
    server: Tollkeeper, owner: dict[str, str], customer: Customer
) -> None:
    made = server.cli("admin", "create", "bob", "--role", "viewer", "--reason", "new here")["adminKeyId"]
    assert newest(server, owner, made)["reason"] == "new here"
    server.cli("admin", "revoke", made, "--reason", "left")
    assert newest(server, owner, made)["reason"] == "left"
    server.cli("account", "block", customer.account_id, "--unblock", "--reason", "paid")
    assert newest(server, owner, customer.account_id)["reason"] == "paid"
    key_id = server.cli("key", "create", customer.account_id)["keyId"]
    server.cli("key", "revoke", key_id, "--reason", "leaked")
    assert newest(server, owner, key_id)["reason"] == "leaked"
    card = server.cli("rates", "show")["active"]
    server.cli("rates", "activate", card, "--reason", "again")
    assert newest(server, owner, card)["reason"] == "again"
    admins = f"{server.url}/api/admin/admins"
    for body, reason in (({"reason": "by API"}, "by API"), (None, "")):
        made = web.post(admins, json={"name": "eve", "role": "viewer", **(body or {})}, headers=owner).json()[
            "adminKeyId"
        ]
        assert newest(server, owner, made)["reason"] == reason
        assert web.post(f"{admins}/{made}/revoke", json=body, headers=owner).status_code == 200
        assert newest(server, owner, made)["reason"] == reason
    assert web.post(f"{admins}/adm_x/revoke", json={"why": "x"}, headers=owner).status_code == 400
    assert web.post(admins, json={"name": "x" * 58, "role": "viewer"}, headers=owner).status_code == 400
    assert server.run("admin", "create", "x" * 58, "--role", "viewer").returncode == 2


def test_a_replay_has_a_row_by_whichever_way_it_is_asked_for(make_tollkeeper: Serve) -> None:
    server = make_tollkeeper(**STRIPE, **PAGES).start()
    owner = {"Authorization": f"Bearer {server.cli('admin', 'create', 'owner', '--role', 'owner')['adminKey']}"}
    event = {
        "id": "evt_1",
        "type": "a.type.of.no.interest",
        "livemode": False,
        "created": 1,
        "data": {"object": {"id": "obj_1"}},
    }
    body = json.dumps(event).encode()
    signed = {"stripe-signature": sign(body, "whsec_x", int(time.time()))}
    assert web.post(f"{server.url}/webhooks/stripe", content=body, headers=signed).status_code == 200
    replay = f"{server.url}/api/admin/webhooks/evt_1/replay"
    for given, reason in (({"json": {"reason": "a try"}}, "a try"), ({}, "")):
        assert web.post(replay, headers=owner, **given).status_code == 200
        row = newest(server, owner, "evt_1")
        assert (row["action"], row["reason"], row["role"], row["after"]) == (
            "webhook.replay",
            reason,
            "owner",
            {"state": "pending"},
        )
    server.cli("stripe", "replay", "evt_1", "--reason", "by hand", code=None)
    row = newest(server, owner, "evt_1")
    assert (row["action"], row["reason"], row["role"]) == ("webhook.replay", "by hand", "cli")
    rows = server.cli("audit", "verify")["rows"]
    assert server.run("stripe", "replay", "evt_missing").returncode == 1
    assert web.post(f"{server.url}/api/admin/webhooks/evt_missing/replay", headers=owner).status_code == 404
    assert server.cli("audit", "verify")["rows"] == rows
