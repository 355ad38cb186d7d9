"""Price plans by API, page and command: who may, what is refused, what is recorded, and the warning below cost."""

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
from tests.support.servers import Sandbox, Tollkeeper

PLANS = "/api/admin/plans"


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    server = Tollkeeper(new_folder("plans"), {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def keys(server: Tollkeeper) -> dict[str, dict[str, str]]:
    roles = ("finance", "service", "viewer")
    return {role: bearer(server.cli("admin", "create", role, "--role", role)["adminKey"]) for role in roles}


@pytest.fixture
def account(server: Tollkeeper) -> str:
    return str(server.cli("account", "create", "somebody", "--no-key")["accountId"])


def ask(server: Tollkeeper, method: str, path: str, key: dict[str, str], **body: Any) -> httpx.Response:
    answer = web.request(method, server.url + path, json=body or None, headers=key, timeout=20)
    fits(answer, re.sub(r"acct_\w+", "{account_id}", path))
    return answer


def test_a_plan_is_kept_once_and_given_to_accounts_with_the_reasons_in_the_audit_log(
    server: Tollkeeper, keys: dict[str, dict[str, str]], account: str
) -> None:
    body = {"planId": "gold", "prices": {"markup": "1.1"}, "reason": "a large customer"}
    made = ask(server, "POST", PLANS, keys["finance"], **body)
    assert (made.status_code, made.json()["versionId"], made.json()["warning"]) == (201, "gold.1", None)
    assert ask(server, "POST", PLANS, keys["finance"], **body).status_code == 200
    path = f"/api/admin/accounts/{account}/plan"
    assert ask(server, "GET", path, keys["viewer"]).json()["planId"] is None
    given = ask(server, "POST", path, keys["service"], planId="gold", endsAt="2099-01-01T00:00:00Z")
    assert (given.status_code, given.json()["versionId"]) == (200, "gold.1")
    assert given.json()["assignments"][0]["endsAt"] == "2099-01-01T00:00:00.000Z"
    (listed,) = [row for row in ask(server, "GET", PLANS, keys["viewer"]).json()["data"] if row["planId"] == "gold"]
    assert (listed["applies"], listed["accounts"]) == (True, 1)
    lines = server.run("audit", "export", "audit.jsonl")
    assert lines.returncode == 0
    rows = [json.loads(line) for line in (server.folder / "audit.jsonl").read_text().splitlines()]
    found = [(row["action"], row["subject"], row["reason"]) for row in rows if row["action"].startswith("plans.")]
    assert ("plans.add", "gold.1", "a large customer") in found
    assert ("plans.assign", account, "") in found


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"planId": "none-such"}, 404, "plan_not_found"),
        ({"planId": None, "endsAt": "2020-01-01T00:00:00Z"}, 400, "invalid_value"),
        ({"planId": None, "startsAt": "2099-01-02T00:00:00Z", "endsAt": "2099-01-01T00:00:00Z"}, 400, "invalid_value"),
    ],
)
def test_what_cannot_be_assigned_is_refused(
    body: dict[str, Any], status: int, code: str, server: Tollkeeper, keys: dict[str, dict[str, str]], account: str
) -> None:
    refused = ask(server, "POST", f"/api/admin/accounts/{account}/plan", keys["service"], **body)
    assert refused.status_code == status, refused.text
    assert refused.json()["error"]["code"] == code or status == 400


def test_a_plan_that_sells_below_what_it_costs_is_kept_and_said_everywhere(
    server: Tollkeeper, keys: dict[str, dict[str, str]]
) -> None:
    cheap = {"planId": "cheap", "prices": {"markup": "1.3", "models": {"gpt-4.1": {"markup": "0.9"}}}, "reason": "test"}
    made = ask(server, "POST", PLANS, keys["finance"], **cheap)
    assert "gpt-4.1" in made.json()["warning"]
    assert "0.9" in made.json()["warning"]
    done = server.cli("check-config")
    assert "cheap.1 sells below what it costs" in done["warning"]
    rows = {row["name"]: row for row in server.cli("preflight", code=None)["checks"]}
    assert rows["price plans"]["state"] == "WARN"
    assert "cheap.1" in rows["price plans"]["found"]
    # a version that is dearer takes its place, and nothing is said of the one before
    server.cli("plan", "add", "cheap", "--markup", "1.3")
    assert "cheap" not in (server.cli("check-config")["warning"] or "")


def test_plans_are_made_and_given_on_the_page(server: Tollkeeper, account: str) -> None:
    key = server.cli("admin", "create", "Ada", "--role", "owner")["adminKey"]
    with web.client(base_url=server.url, follow_redirects=True, timeout=20) as browser:
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', enter(browser, key).text)
        assert found is not None
        form = {"csrf": found[1], "reason": "test"}
        bad = browser.post("/admin/plans", data={**form, "plan": "page", "models": "{"})
        assert (bad.status_code, "no JSON" in bad.text) == (400, True)
        kept = browser.post("/admin/plans", data={**form, "plan": "page", "models": '{"gpt-4.1": {"markup": "2"}}'})
        assert "The version is kept." in kept.text
        assert "page.1" in kept.text
        given = browser.post(f"/admin/accounts/{account}/plan", data={**form, "plan": "page"})
        assert "priced by <code>page.1</code>" in given.text
        taken = browser.post(f"/admin/accounts/{account}/plan", data={**form, "plan": ""})
        assert "everyone's prices" in taken.text
    assert server.cli("plan", "show", account)["planId"] is None


def test_the_command_says_what_it_did_and_refuses_what_is_wrong(server: Tollkeeper, account: str) -> None:
    made = server.cli("plan", "add", "silver", "--markup", "1.15", "--from", "2026-01-01T00:00:00Z")
    assert (made["versionId"], made["new"]) == ("silver.1", True)
    done = server.cli("plan", "assign", account, "silver", "--until", "30d")
    assert done["versionId"] == "silver.1"
    assert server.run("plan", "list").stdout.startswith("VERSION")
    assert server.cli("plan", "add", "silver", "--markup", "cheap", code=1)["error"]
    assert server.cli("plan", "add", "silver", code=2)["error"]
    assert server.cli("plan", "assign", account, "bronze", code=1)["error"]
