"""End users, tokens and team members by command line and on the ops page; members see their own alone."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import web
from tests.support.admins import bearer, enter
from tests.support.customers import new_customer
from tests.support.openapi import fits
from tests.support.servers import Sandbox, Tollkeeper

pytestmark = pytest.mark.served


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    server = Tollkeeper(new_folder("access"), {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}).start()
    yield server
    server.kill()


def test_the_command_line_says_what_the_api_says(server: Tollkeeper) -> None:
    account = new_customer(server).account_id
    rules = server.cli("end-user", "rules", account, "--budget", "1/day", "10/month", "--required")
    assert (rules["required"], [row["limitMillicredits"] for row in rules["budgets"]]) == (True, ["1000", "10000"])
    assert server.cli("end-user", "rules", account) == rules
    assert not server.cli("end-user", "rules", account, "--not-required")["required"]
    made = server.cli("end-user", "set", account, "anna", "--budget", "5/day", "--wallet", "--reason", "test")
    assert (made["budgets"][0]["limitMillicredits"], made["walletStatus"]) == ("5000", "active")
    assert server.cli("end-user", "set", account, "anna", "--block", "--budget", "none")["blocked"]
    assert [row["endUser"] for row in server.cli("end-user", "list", account)["data"]] == ["anna"]
    assert server.run("end-user", "remove", account, "anna").returncode == 2  # its wallet is open
    server.cli("account", "close", made["walletAccountId"], "--reason", "test")
    assert server.cli("end-user", "remove", account, "anna")["removed"]
    assert server.run("end-user", "set", account, "anna").returncode == 1
    assert server.run("end-user", "rules", account, "--budget", "1/total").returncode == 2
    token = server.cli("token", "create", account, "--minutes", "5", "--origins", "https://app.example.com", "--buy")
    assert (token["buy"], token["origins"]) == (True, ["https://app.example.com"])
    assert token["token"].startswith("tkt-")
    assert server.cli("token", "revoke", token["tokenId"])["revoked"]
    (listed,) = server.cli("token", "list", account)["data"]
    assert (listed["state"], "token" in listed) == ("revoked", False)
    assert server.run("token", "revoke", token["tokenId"]).returncode == 1


def test_people_set_limits_and_revoke_tokens_on_the_page(server: Tollkeeper) -> None:
    account = new_customer(server).account_id
    token = server.cli("token", "create", account, "--end-user", "bert")
    owner = server.cli("admin", "create", "the owner", "--role", "owner")["adminKey"]
    path = f"/admin/accounts/{account}/access"
    with web.client(base_url=server.url, follow_redirects=True, timeout=20) as browser:
        entered = enter(browser, owner)
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', entered.text)
        assert found is not None
        form = {"csrf": found[1], "reason": "test", "limit": "2", "period": "week"}
        assert path in browser.get(f"/admin/accounts/{account}").text
        page = browser.post(f"{path}/rules", data={**form, "required": "yes"}).text
        assert re.search(r"2(\.0+)? credits a week", page)
        assert "A request must name one" in page
        page = browser.post(
            f"{path}/end-users", data={**form, "end_user": "<anna>", "blocked": "yes", "wallet": "yes"}
        ).text
        assert "&lt;anna&gt;" in page
        assert "<anna>" not in page
        assert browser.post(f"{path}/end-users", data={**form, "end_user": "x", "period": "total"}).status_code == 400
        page = browser.post(f"{path}/revoke", data={**form, "token": token["tokenId"]}).text
        assert "The token is revoked" in page
        assert browser.post(f"{path}/revoke", data={**form, "token": "tok_missing"}).status_code == 404
        other = new_customer(server).account_id
        again = server.cli("token", "create", other)
        refused = browser.post(f"{path}/revoke", data={**form, "token": again["tokenId"]})
        assert refused.status_code == 404  # of another account than the page's
    assert server.cli("end-user", "list", account)["data"][0]["blocked"]
    assert server.cli("token", "list", account)["data"][0]["state"] == "revoked"


def test_a_member_spends_and_sees_their_own_and_the_account_is_its_owners(server: Tollkeeper) -> None:
    owner = new_customer(server)
    app = server.cli("admin", "create", "our app", "--role", "service")["adminKey"]
    keys = f"{server.url}/api/admin/accounts/{owner.account_id}/keys"
    asked = {"role": "member", "budgets": [{"credits": "0.012", "period": "day"}]}
    made = web.post(keys, json=asked, headers=bearer(app)).json()
    headers = {"Authorization": f"Bearer {made['apiKey']}"}

    def get(path: str, code: int = 200) -> Any:
        answer = web.get(f"{server.url}/api/billing/{path}", headers=headers)
        assert answer.status_code == code, (path, answer.text)
        return fits(answer, f"/api/billing/{path.partition('?')[0]}") if code == 200 else answer.json()

    assert (get("balance")["availableMillicredits"], get("balance")["heldMillicredits"]) == ("12", "0")
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    url = f"{server.v1}/chat/completions"
    mine = web.post(url, json=body, headers=headers)
    theirs = web.post(url, json=body, headers=owner.headers)
    assert (mine.status_code, theirs.status_code) == (200, 200)
    assert "x-credits-remaining" not in mine.headers
    assert "x-credits-remaining" in theirs.headers
    assert get("balance")["availableMillicredits"] == "7"
    server.cli("drain")
    assert [row["requestId"] for row in get("usage")["data"]] == [mine.headers["x-request-id"]]
    assert get(f"usage?keyId={owner.key_id}")["data"][0]["requestId"] == mine.headers["x-request-id"]
    assert get("usage/summary")["total"]["requests"] == 1
    export = web.get(f"{server.url}/api/billing/usage/export", headers=headers).text
    assert mine.headers["x-request-id"] in export
    assert theirs.headers["x-request-id"] not in export
    of_theirs = web.get(f"{server.url}/api/billing/generations/{theirs.headers['x-request-id']}", headers=headers)
    assert of_theirs.status_code == 404
    for path in ("me", "ledger", "purchases", "packages", "low-balance", "auto-recharge", "statement?month=2026-10"):
        assert get(path, 403)["error"]["code"] == "member_key", path
    checkout = web.post(f"{server.url}/api/billing/checkout", json={"packageCode": "x"}, headers=headers)
    assert checkout.json()["error"]["code"] == "member_key"
    web.post(url, json=body, headers=headers)
    refused = web.post(url, json=body, headers=headers).json()
    assert (refused["limitSource"], refused["availableCredits"], refused["currentCredits"]) == (
        "key_limit",
        0.002,
        0.002,
    )
    changed = web.request(
        "PATCH", f"{server.url}/api/admin/keys/{made['keyId']}", json={"role": "owner"}, headers=bearer(app)
    )
    row = changed.json()
    assert row["role"] == "owner"
    assert server.cli("key", "update", made["keyId"], "--role", "member")["role"] == "member"
