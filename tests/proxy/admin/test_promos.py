"""Promo codes, grants with an end and welcome credits by API, page and command of one served product."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.admins import bearer, enter
from tests.support.openapi import fits
from tests.support.servers import Sandbox, Tollkeeper, wait_until

pytestmark = pytest.mark.served
PROMOS = "/api/admin/promos"


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_CREDITS__WELCOME_CREDITS": "12.5",
        "TOLLKEEPER_CREDITS__WELCOME_DAYS": "30",
    }
    server = Tollkeeper(new_folder("promos"), environment).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def keys(server: Tollkeeper) -> dict[str, dict[str, str]]:
    roles = ("finance", "support", "service")
    return {role: bearer(server.cli("admin", "create", role, "--role", role)["adminKey"]) for role in roles}


def ask(server: Tollkeeper, method: str, path: str, key: dict[str, str], **body: Any) -> httpx.Response:
    answer = web.request(method, server.url + path, json=body or None, headers=key, timeout=20)
    fits(answer, re.sub(r"/promos/[A-Z0-9-]+/", "/promos/{code}/", re.sub(r"acct_\w+", "{account_id}", path)))
    return answer


def test_a_code_is_made_listed_and_ended_with_the_reasons_in_the_audit_log(
    server: Tollkeeper, keys: dict[str, dict[str, str]]
) -> None:
    body = {"code": "api-1", "credits": "500", "uses": 3, "creditDays": 60, "reason": "the campaign"}
    made = ask(server, "POST", PROMOS, keys["finance"], **body)
    assert (made.status_code, made.json()["code"], made.json()["state"]) == (201, "API-1", "open")
    assert ask(server, "POST", PROMOS, keys["finance"], **body).status_code == 200
    other = ask(server, "POST", PROMOS, keys["finance"], **{**body, "credits": "501"})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "promo_taken")
    bad = ask(server, "POST", PROMOS, keys["finance"], **{**body, "code": "?"})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "code")
    assert ask(server, "POST", PROMOS, keys["support"], **body).status_code == 403
    account = server.cli("account", "create", "somebody", "--no-key")["accountId"]
    acting = {**keys["service"], "Tollkeeper-Account": account}
    assert ask(server, "POST", "/api/billing/promo", acting, code="api-1").json()["again"] is False
    ended = ask(server, "POST", f"{PROMOS}/API-1/end", keys["finance"], reason="enough")
    assert (ended.json()["state"], ended.json()["uses"]) == ("ended", 1)
    (row,) = [row for row in ask(server, "GET", PROMOS, keys["support"]).json()["data"] if row["code"] == "API-1"]
    assert row["state"] == "ended"
    assert server.run("audit", "export", "audit.jsonl").returncode == 0
    rows = [json.loads(line) for line in (server.folder / "audit.jsonl").read_text().splitlines()]
    about = [row for row in rows if row["action"].startswith("promos.") and "API-1" in row["subject"] + row["reason"]]
    found = [(row["action"], row["reason"]) for row in about]
    assert found == [
        ("promos.add", "the campaign"),
        ("promos.redeem", "Promo code API-1"),
        ("promos.end", "enough"),
    ]


def test_commands_make_list_and_end_codes(server: Tollkeeper) -> None:
    made = server.cli("promo", "add", "--credits", "20", "--uses", "5", "--until", "30d", "--reason", "test")
    assert (made["new"], made["mostUses"]) == (True, 5)
    assert made["code"] in server.run("promo", "list").stdout
    assert server.cli("promo", "end", made["code"].lower(), "--reason", "test")["state"] == "ended"
    assert server.cli("promo", "end", "NONE", "--reason", "test", code=1)["error"]
    assert server.cli("promo", "add", "NO", "--credits", "0", "--reason", "test", code=1)["error"]


def test_the_page_makes_and_ends_codes_and_grants_with_an_end(server: Tollkeeper) -> None:
    key = server.cli("admin", "create", "Ada", "--role", "owner")["adminKey"]
    account = server.cli("account", "create", "on the page", "--no-key")["accountId"]
    with web.client(base_url=server.url, follow_redirects=True, timeout=20) as browser:
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', enter(browser, key).text)
        assert found is not None
        form = {"csrf": found[1], "reason": "test"}
        made = browser.post("/admin/promos", data={**form, "code": "page-1", "credits": "5", "uses": "9", "days": "7"})
        assert "The code is made." in made.text
        assert "0 of 9" in made.text
        bad = browser.post("/admin/promos", data={**form, "code": "page-1", "credits": "6"})
        assert (bad.status_code, "made before" in bad.text) == (409, True)
        ended = browser.post("/admin/promos/end", data={**form, "code": "PAGE-1"})
        assert "The code is ended." in ended.text
        given = browser.post(
            f"/admin/accounts/{account}/grant",
            data={**form, "credits": "70", "reference": "page", "expires": "30d", "show": "yes"},
        )
        assert "70.000 credits of it expire" in given.text
        assert '<span class="state off">shown</span>' in given.text


def test_grants_end_and_accounts_are_welcomed(server: Tollkeeper, keys: dict[str, dict[str, str]]) -> None:
    body = {"name": "Ann", "externalId": "u-1"}
    made, again = (ask(server, "POST", "/api/admin/accounts", keys["service"], **body).json() for _ in range(2))
    assert (made["welcomeMillicredits"], again["welcomeMillicredits"]) == ("12500", "0")
    account = made["accountId"]
    ends = "2099-01-01T00:00:00.000Z"
    grant = {"credits": "3", "reason": "a test", "reference": "r1", "expiresAt": ends}
    path = f"/api/admin/accounts/{account}"
    assert ask(server, "POST", f"{path}/grant", keys["finance"], **grant).json()["expiresAt"] == ends
    refused = ask(server, "POST", f"{path}/adjust", keys["finance"], **{**grant, "credits": "-1", "reference": "r2"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "expiresAt")
    done = server.cli("grant", account, "4", "--expires", "90d", "--show-reason", "--reason", "our gift")
    assert done["expiresAt"] is not None
    shown = ask(server, "GET", path, keys["finance"]).json()["expiringCredits"]
    assert sorted(int(row["millicredits"]) for row in shown) == [3_000, 4_000, 12_500]
    assert len(server.cli("account", "show", account)["expiringCredits"]) == 3
    acting = {**keys["service"], "Tollkeeper-Account": account}
    me = ask(server, "GET", "/api/billing/me", acting).json()
    assert me["expiringCredits"][-1]["expiresAt"] == ends
    reasons = {row["referenceId"]: row["reason"] for row in me["recentLedger"]}
    assert reasons["r1"] == ""
    assert "our gift" in reasons.values()
    rows = {row["referenceId"]: row for row in ask(server, "GET", f"{path}/ledger", keys["support"]).json()["data"]}
    assert (rows["r1"]["reason"], rows["r1"]["reasonShown"]) == ("a test", False)
    assert ask(server, "GET", "/api/billing/packages", acting).json()["anyAmount"] is None


def test_the_service_lets_credits_expire(server: Tollkeeper) -> None:
    account = server.cli("account", "create", "expires", "--no-key")["accountId"]
    server.cli("grant", account, "50", "--expires", "1s", "--reason", "for a moment")
    # the job looks every minute: asked for, it does at once

    def gone() -> bool:
        server.cli("jobs", "run", "expiry")
        return server.cli("account", "show", account)["postedMillicredits"] == "12500"

    wait_until(gone, 20, "the credits expire")
    assert server.cli("account", "show", account)["balanceMillicredits"] == "12500"
    assert [row["kind"] for row in server.cli("ledger", account)["data"]][0] == "expiry"
    assert server.cli("reconcile") == {"ok": True, "findings": []}
