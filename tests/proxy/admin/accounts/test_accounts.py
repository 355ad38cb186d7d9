"""Accounts as the operator's app and people make, find, change, close and erase them: API, page and command line."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.admins import bearer, enter
from tests.support.openapi import fits
from tests.support.servers import Sandbox, Tollkeeper, wait_until

pytestmark = pytest.mark.served
PATH = "/api/admin/accounts"


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    server = Tollkeeper(new_folder("accounts"), {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def keys(server: Tollkeeper) -> dict[str, str]:
    roles = ("service", "owner", "support")
    return {role: server.cli("admin", "create", f"the {role}", "--role", role)["adminKey"] for role in roles}


class Admin:
    """Somebody with a key, and the document that answers must fit."""

    def __init__(self, server: Tollkeeper, key: str) -> None:
        self.server, self.key = server, key

    def ask(self, method: str, path: str, documented: str, **options: Any) -> tuple[int, Any]:
        answer: httpx.Response = web.request(
            method, self.server.url + path, headers=bearer(self.key), timeout=20, **options
        )
        return answer.status_code, fits(answer, documented)

    def make(self, **body: Any) -> tuple[int, Any]:
        return self.ask("POST", PATH, PATH, json=body)

    def change(self, account: str, **body: Any) -> tuple[int, Any]:
        return self.ask("PATCH", f"{PATH}/{account}", PATH + "/{account_id}", json=body)

    def do(self, account: str, verb: str, **body: Any) -> tuple[int, Any]:
        return self.ask("POST", f"{PATH}/{account}/{verb}", PATH + "/{account_id}/" + verb, json=body)

    def found(self, **query: Any) -> list[str]:
        status, page = self.ask("GET", PATH, PATH, params=query)
        assert status == 200, page
        return [row["accountId"] for row in page["data"]]


@pytest.fixture
def app(server: Tollkeeper, keys: dict[str, str]) -> Admin:
    return Admin(server, keys["service"])


@pytest.fixture
def owner(server: Tollkeeper, keys: dict[str, str]) -> Admin:
    return Admin(server, keys["owner"])


def test_an_app_that_repeats_itself_makes_one_account_and_one_key(app: Admin) -> None:
    body = {"name": "Ann", "externalId": "user-1", "email": "Ann@Example.org", "metadata": {"plan": "pro"}}
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: app.make(**body), range(6)))
    assert sorted(status for status, _ in made) == [200] * 5 + [201]
    assert len({row["accountId"] for _, row in made}) == 1
    assert [row["apiKey"][:3] for _, row in made if row["apiKey"]] == ["tk-"]
    account = made[0][1]["accountId"]
    _, row = app.ask("GET", f"{PATH}/{account}", PATH + "/{account_id}")
    assert len(row["keys"]) == 1
    said = (row["externalId"], row["email"], row["metadata"], row["status"])
    assert said == ("user-1", "ann@example.org", {"plan": "pro"}, "active")
    status, without = app.make(name="Ben", externalId="user-2", key=False)
    assert (status, without["keyId"], without["apiKey"], without["created"]) == (201, None, None, True)
    for status, refused in (app.make(name="x", surprise=1), app.make(name="x", metadata={"a": 1}), app.make(name="")):
        assert status == 400, refused
    assert app.make(name="x", email="nobody")[1]["error"]["param"] == "email"


def test_a_listing_is_filtered_searched_and_paged(app: Admin) -> None:
    made = [
        app.make(name=f"listed {n}", externalId=f"list:{n}", metadata={"lot": "L"})[1]["accountId"] for n in range(3)
    ]
    assert app.found(externalId="list:1") == [made[1]]
    for words in (" list:1", "list:1\n"):  # as an app that sends blanks with it makes it, it finds it
        assert app.make(name="x", externalId=words)[1]["accountId"] == made[1]
        assert app.found(externalId=words) == [made[1]]
    assert app.found(metadata="lot:L", query="listed") == made[::-1]
    assert app.found(metadata=["lot:L", "lot:M"]) == []
    status, first = app.ask("GET", PATH, PATH, params={"metadata": "lot:L", "limit": 2})
    _, second = app.ask("GET", PATH, PATH, params={"metadata": "lot:L", "limit": 2, "cursor": first["nextCursor"]})
    assert [row["accountId"] for row in first["data"] + second["data"]] == made[::-1]
    assert (status, second["nextCursor"]) == (200, None)
    for wrong in ({"status": "gone"}, {"metadata": "plan"}, {"metadata": ":x"}, {"cursor": "x"}, {"limit": 0}):
        assert app.ask("GET", PATH, PATH, params=wrong)[0] == 400, wrong


def test_what_is_said_of_an_account_changes_field_by_field(app: Admin) -> None:
    account = app.make(name="Cy", externalId="user-3", email="c@x.example", metadata={"a": "1", "b": "2"})[1][
        "accountId"
    ]
    status, row = app.change(account, email=None, metadata={"a": None, "c": "3"}, reason="asked for")
    assert (status, row["email"], row["metadata"], row["name"]) == (200, None, {"b": "2", "c": "3"}, "Cy")
    assert app.change(account)[0] == 200
    other = app.make(name="Di", externalId="user-4")[1]["accountId"]
    status, refused = app.change(other, externalId="user-3")
    assert (status, refused["error"]["code"], refused["error"]["param"]) == (409, "external_id_taken", "externalId")
    assert app.change(account, externalId=None)[0] == 200
    assert app.change(other, externalId="user-3")[0] == 200
    assert app.change(account, name=None)[0] == 400
    assert app.change("acct_missing", name="x")[0] == 404


def test_a_closed_account_is_refused_everywhere_and_an_erased_one_is_nobody(
    server: Tollkeeper, app: Admin, owner: Admin, sandbox: Sandbox
) -> None:
    made = app.make(name="Eve", externalId="user-5", email="eve@x.example")[1]
    account, headers = made["accountId"], {"Authorization": f"Bearer {made['apiKey']}"}
    server.cli("grant", account, "5", "--reason", "gift")
    stored = {"model": "gpt-4o-mini", "input": "hi", "store": True, "max_output_tokens": 16}

    def respond() -> httpx.Response:
        return web.post(f"{server.v1}/responses", json=stored, headers=headers, timeout=20)

    wait_until(lambda: respond().status_code == 200, 10, "a stored response")
    assert app.do(account, "erase", reason="early")[1]["error"]["code"] == "account_not_closed"
    status, refused = app.do(account, "close", reason="left", remainder="refund")
    assert (status, refused["error"]["code"]) == (403, "role_not_allowed")
    assert owner.do(account, "close", reason="left", remainder="refund")[1]["error"]["code"] == "stripe_not_configured"
    assert app.do(account, "close", reason="")[0] == 400
    status, closed = app.do(account, "close", reason="left")
    assert (status, closed["status"], closed["keysRevoked"], closed["refunds"]) == (200, "closed", 1, [])
    assert closed["storedDeleted"] >= 1
    assert closed["storedLeft"] == 0
    assert 0 < int(closed["balanceMillicredits"]) < 5_000
    assert app.do(account, "close", reason="left")[1]["keysRevoked"] == 0
    wait_until(lambda: respond().status_code == 401, 6, "its key is dead")
    acting = {**bearer(app.key), "Tollkeeper-Account": account}
    wait_until(
        lambda: web.get(f"{server.url}/api/billing/me", headers=acting).json()["error"]["code"] == "account_closed",
        6,
        "nobody acts for it",
    )
    assert app.do(account, "keys")[1]["error"]["code"] == "account_closed"
    assert app.do(account, "block", blocked=False, reason="x")[1]["error"]["code"] == "account_closed"
    assert app.make(name="Eve", externalId="user-5")[1]["accountId"] == account
    assert app.found(status="closed", query="eve@x") == [account]
    status, erased = app.do(account, "erase", reason="asked for")
    assert (status, erased["name"], erased["externalId"], erased["email"]) == (200, "erased", None, None)
    assert app.do(account, "erase", reason="again")[0] == 200
    assert app.change(account, name="x")[1]["error"]["code"] == "account_closed"
    assert app.make(name="Eve", externalId="user-5", key=False)[0] == 201
    server.cli("drain")
    assert server.cli("reconcile") == {"ok": True, "findings": []}
    assert len(server.cli("usage", account)["data"]) >= 1


def test_people_do_the_same_on_the_page(server: Tollkeeper, keys: dict[str, str]) -> None:
    with web.client(base_url=server.url, follow_redirects=True, timeout=20) as browser:
        page = enter(browser, keys["owner"])
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
        assert token is not None

        def send(path: str, **fields: str) -> httpx.Response:
            return browser.post(path, data={"csrf": token[1], **fields})

        made = send("/admin/accounts", name="Fay <b>", external_id="page-1", email="fay@x.example")
        account = made.url.path.rpartition("/")[2]
        assert "The account is made." in made.text
        assert "Fay &lt;b&gt;" in made.text
        again = send("/admin/accounts", name="Other", external_id="page-1")
        assert (again.url.path, "already: this one" in again.text) == (made.url.path, True)
        assert account in browser.get("/admin", params={"query": "fay@x"}).text
        changed = send(f"/admin/accounts/{account}/details", name="Fay", external_id="", email="f@x.example")
        assert "The changes are kept." in changed.text
        assert "f@x.example" in changed.text
        taken = send("/admin/accounts", name="Gus", external_id="page-2")
        refused = send(f"/admin/accounts/{account}/details", name="Fay", external_id="page-2", email="")
        assert (refused.status_code, taken.status_code) == (409, 200)
        assert send(f"/admin/accounts/{account}/erase", reason="early").status_code == 409
        closed = send(f"/admin/accounts/{account}/close", reason="left", remainder="keep")
        assert "The account is closed." in closed.text
        assert "Close for good" not in closed.text
        erased = send(f"/admin/accounts/{account}/erase", reason="asked for")
        assert "f@x.example" not in erased.text
        assert "erased" in erased.text


def test_the_command_line_does_the_same(server: Tollkeeper) -> None:
    first = server.cli(
        "account", "create", "Hal", "--external-id", "cli-1", "--email", "h@x.example", "--metadata", "plan=pro", "a="
    )
    again = server.cli("account", "create", "Hal", "--external-id", "cli-1")
    assert (first["created"], again["created"], again["accountId"], again["apiKey"]) == (
        True,
        False,
        first["accountId"],
        None,
    )
    account = first["accountId"]
    bare = server.cli("account", "create", "Ida", "--no-key")
    assert (bare["keyId"], server.cli("key", "list", bare["accountId"])["data"]) == (None, [])
    shown = server.cli("account", "show", account)
    assert (shown["externalId"], shown["email"], shown["metadata"]) == (
        "cli-1",
        "h@x.example",
        {"plan": "pro", "a": ""},
    )
    found = server.cli("account", "list", "--search", "h@x.example", "--status", "active", "--metadata", "plan=pro")[
        "data"
    ]
    assert [row["accountId"] for row in found] == [account]
    changed = server.cli("account", "update", account, "--email", "", "--metadata", "plan=", "b=2")
    assert (changed["email"], changed["metadata"]) == (None, {"a": "", "b": "2"})
    assert server.run("account", "update", account, "--json").returncode == 1
    assert server.run("account", "create", "x", "--email", "nobody", "--json").returncode == 2
    assert server.run("account", "erase", account, "--json").returncode == 1
    closed = server.cli("account", "close", account, "--reason", "left")
    assert (closed["status"], closed["keysRevoked"], closed["refunds"]) == ("closed", 1, [])
    assert server.cli("account", "erase", account, "--reason", "asked for")["name"] == "erased"
    assert server.run("account", "block", account, "--unblock", "--json").returncode == 1
    actions = [row["action"] for row in audited(server, account)]
    assert actions == ["account.create", "account.update", "account.close", "account.erase"]


def audited(server: Tollkeeper, subject: str) -> list[dict[str, Any]]:
    key = server.cli("admin", "create", "reader", "--role", "ops")["adminKey"]
    answer = web.get(f"{server.url}/api/admin/audit", params={"subject": subject}, headers=bearer(key))
    return list(reversed(answer.json()["data"]))
