"""Keys as the operator's app and people make, limit, rotate and revoke them: API, page and command line, over both stores."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.admins import bearer, enter
from tests.support.customers import Customer, new_customer
from tests.support.openapi import fits
from tests.support.servers import Sandbox, Tollkeeper, served_over, wait_until

pytestmark = pytest.mark.served
ACCOUNT_KEYS, KEY = "/api/admin/accounts/{account_id}/keys", "/api/admin/keys/{key_id}"


@pytest.fixture(scope="module", params=["embedded", "redis"])
def server(
    request: pytest.FixtureRequest, new_folder: Callable[[str], Path], session_sandbox: Sandbox
) -> Iterator[Tollkeeper]:
    home = new_folder(f"keys-{request.param}")
    environment = {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}
    with served_over(request.param, home, **environment) as server:
        yield server


@pytest.fixture(scope="module")
def service(server: Tollkeeper) -> str:
    return str(server.cli("admin", "create", "our app", "--role", "service")["adminKey"])


class App:
    """The operator's app."""

    def __init__(self, server: Tollkeeper, key: str) -> None:
        self.server, self.key = server, key

    def ask(self, method: str, path: str, documented: str, **options: Any) -> tuple[int, Any]:
        answer = web.request(method, self.server.url + path, headers=bearer(self.key), timeout=20, **options)
        return answer.status_code, fits(answer, documented)

    def make(self, account: str, **body: Any) -> tuple[int, Any]:
        return self.ask("POST", f"/api/admin/accounts/{account}/keys", ACCOUNT_KEYS, json=body)

    def change(self, key: str, **body: Any) -> tuple[int, Any]:
        return self.ask("PATCH", f"/api/admin/keys/{key}", KEY, json=body)

    def read(self, key: str) -> Any:
        status, found = self.ask("GET", f"/api/admin/keys/{key}", KEY)
        assert status == 200, found
        return found


@pytest.fixture
def app(server: Tollkeeper, service: str) -> App:
    return App(server, service)


def chat(server: Tollkeeper, key: str, model: str = "gpt-4o-mini", tokens: int = 5) -> httpx.Response:
    """8 input tokens; of gpt-4o-mini with 5 of output: held for and charged at 5 millicredits at most."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens}
    return web.post(f"{server.v1}/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def test_a_key_has_a_name_tags_and_limits_that_the_app_reads_back(server: Tollkeeper, app: App) -> None:
    account = new_customer(server).account_id
    body = {
        "name": "CI",
        "tags": ["ci"],
        "reference": "r-1",
        "spendLimitCredits": "10",
        "budgets": [{"credits": "1", "period": "day"}, {"credits": "0.5", "period": "month", "models": ["gpt-4o"]}],
        "concurrency": 3,
    }
    status, made = app.make(account, **body)
    again = app.make(account, **body)
    assert (status, again) == (201, (200, {**made, "apiKey": None, "created": False}))
    assert chat(server, made["apiKey"]).status_code == 200
    server.cli("drain")
    row = app.read(made["keyId"])
    assert (row["name"], row["tags"], row["concurrency"], row["accountId"]) == ("CI", ["ci"], 3, account)
    assert (row["spendLimitMillicredits"], row["spendPeriod"], row["spendUsedMillicredits"]) == ("10000", "month", "5")
    day, month = row["budgets"]
    assert (day["period"], day["usedMillicredits"], day["models"]) == ("day", "5", None)
    assert (month["limitMillicredits"], month["usedMillicredits"], month["models"]) == ("500", "0", ["gpt-4o"])
    assert row["lastUsedAt"] is not None
    assert row["spendStartsAnewAt"] > day["startsAnewAt"] or row["spendStartsAnewAt"] == day["startsAnewAt"]
    _, listed = app.ask("GET", f"/api/admin/accounts/{account}/keys", ACCOUNT_KEYS)
    assert [key["keyId"] for key in listed["data"]][-1] == made["keyId"]
    for wrong in (
        {"budgets": [{"credits": "1", "period": "hour"}]},
        {"budgets": [{"credits": "x", "period": "day"}]},
        {"budgets": [{"credits": "1", "period": "day"}] * 2},
        {"spendPeriod": "hour"},
        {"spendLimitCredits": "-1"},
        {"name": "x" * 101},
        {"surprise": 1},
    ):
        assert app.make(account, **wrong)[0] == 400, wrong
    assert app.make("acct_missing")[0] == 404


def test_exactly_what_the_budgets_leave_is_served_and_a_change_is_in_force_within_seconds(
    server: Tollkeeper, app: App
) -> None:
    account = new_customer(server).account_id
    budgets = [{"credits": "0.028", "period": "day"}, {"credits": "1", "period": "total"}]
    _, made = app.make(account, budgets=budgets)
    key = made["apiKey"]
    with ThreadPoolExecutor(10) as pool:
        codes = list(pool.map(lambda _: chat(server, key).status_code, range(30)))
    assert codes.count(200) == 5  # of 28 millicredits, at 5 each
    assert set(codes) == {200, 402}
    refused = chat(server, key).json()
    assert (refused["limitSource"], refused["keyLimitRemainingCredits"]) == ("key_limit", 0.003)
    assert refused["keyLimitResetsAt"] is not None
    assert app.change(made["keyId"], budgets=[{"credits": "0.040", "period": "day"}], reason="more")[0] == 200
    wait_until(lambda: chat(server, key).status_code == 200, 6, "the change is in force")
    time.sleep(3)  # in the other workers too
    codes = [chat(server, key).status_code for _ in range(6)]
    assert codes == [200, 200, 402, 402, 402, 402]  # 40 less 25 was left: three in all
    assert app.change(made["keyId"], budgets=None)[1]["budgets"] == []
    wait_until(lambda: chat(server, key).status_code == 200, 6, "no limit is left")
    server.cli("drain")
    charged = [int(row["chargedMillicredits"]) for row in server.cli("usage", account)["data"]]
    assert charged == [5] * len(charged)
    assert server.cli("reconcile")["ok"]


def test_a_budget_of_models_ends_those_and_no_other(server: Tollkeeper, app: App) -> None:
    account = new_customer(server).account_id
    _, made = app.make(account, budgets=[{"credits": "0.012", "period": "month", "models": ["gpt-4o-m*"]}])
    codes = [chat(server, made["apiKey"]).status_code for _ in range(4)]
    assert codes == [200, 200, 402, 402]
    assert chat(server, made["apiKey"], "gpt-4o").status_code == 200
    batched = {"model": "gpt-4o-mini", "input": "hi", "max_output_tokens": 16}
    headers = {"Authorization": f"Bearer {made['apiKey']}"}
    assert web.post(f"{server.v1}/responses", json=batched, headers=headers).status_code == 402


def test_a_rotated_key_has_two_secrets_until_its_grace_is_over(server: Tollkeeper, app: App) -> None:
    customer = new_customer(server)
    rotate = f"/api/admin/keys/{customer.key_id}/rotate"
    status, rotated = app.ask("POST", rotate, KEY + "/rotate", json={"graceSeconds": 5, "reason": "leaked"})
    assert (status, rotated["keyId"], rotated["oldSecretUntil"] is not None) == (200, customer.key_id, True)
    assert chat(server, rotated["apiKey"]).status_code == 200
    assert chat(server, customer.api_key).status_code == 200
    wait_until(lambda: chat(server, customer.api_key).status_code == 401, 12, "the grace is over")
    assert chat(server, rotated["apiKey"]).status_code == 200
    assert app.ask("POST", rotate, KEY + "/rotate", json={"graceSeconds": -1})[0] == 400
    revoke = f"/api/admin/keys/{customer.key_id}/revoke"
    assert app.ask("POST", revoke, KEY + "/revoke", json={"reason": "over"})[0] == 200
    wait_until(lambda: chat(server, rotated["apiKey"]).status_code == 401, 6, "it is revoked")
    assert app.ask("POST", rotate, KEY + "/rotate", json={})[0] == 404
    assert app.change(customer.key_id, name="x")[0] == 404


def test_people_make_rotate_and_revoke_on_the_page_and_no_reload_makes_another(server: Tollkeeper) -> None:
    customer: Customer = new_customer(server)
    account = f"/admin/accounts/{customer.account_id}"
    owner = server.cli("admin", "create", "Ada", "--role", "owner")["adminKey"]
    with web.client(base_url=server.url, timeout=20) as browser:
        enter(browser, owner)
        page = browser.get(account)
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
        reference = re.search(r'name="reference" value="(page_[0-9a-f]+)"', page.text)
        assert token is not None
        assert reference is not None
        form = {"csrf": token[1], "reference": reference[1], "name": "By hand", "limit": "2"}
        made = browser.post(f"{account}/keys", data=form)
        assert made.status_code == 303
        shown = browser.get(made.headers["location"])
        assert re.search(r"tk-[\w-]{43}", shown.text)
        again = browser.get(made.headers["location"])
        assert (again.status_code, re.search(r"tk-[\w-]{43}", again.text)) == (404, None)
        assert browser.post(f"{account}/keys", data=form).headers["location"].endswith("done=key-there")
        assert len(server.cli("key", "list", customer.account_id)["data"]) == 2
        key = {"csrf": token[1], "key": customer.key_id, "reason": "leaked"}
        rotated = browser.post(f"{account}/keys/rotate", data=key)
        assert re.search(r"tk-[\w-]{43}", browser.get(rotated.headers["location"]).text)
        assert browser.post(f"{account}/keys/revoke", data=key).status_code == 303
        assert browser.post(f"{account}/keys/revoke", data=key).status_code == 404
        other = new_customer(server)
        assert browser.post(f"{account}/keys/rotate", data={**key, "key": other.key_id}).status_code == 404


def test_the_command_line_does_the_same(server: Tollkeeper) -> None:
    account = new_customer(server).account_id
    limits = ("--spend-limit", "10", "--period", "week", "--budget", "1/day", "0.5/month:gpt-4o*,o3")
    made = server.cli("key", "create", account, "--name", "CI", "--tags", "a", "b", "--reference", "x", *limits)
    assert server.cli("key", "create", account, "--reference", "x") == {**made, "apiKey": None}
    (row,) = [row for row in server.cli("key", "list", account)["data"] if row["keyId"] == made["keyId"]]
    assert (row["name"], row["tags"], row["spendPeriod"]) == ("CI", ["a", "b"], "week")
    assert [one["models"] for one in row["budgets"]] == [None, ["gpt-4o*", "o3"]]
    text = server.run("key", "list", account).stdout
    assert "10.000 credits a week, 1.000 credits a day, 0.500 credits a month of gpt-4o*,o3" in text
    changed = server.cli(
        "key", "update", made["keyId"], "--spend-limit", "none", "--budget", "none", "--rpm", "9", "--name", "new"
    )
    assert (changed["spendLimitMillicredits"], changed["budgets"], changed["requestsPerMinute"]) == (None, [], 9)
    assert server.cli("key", "update", made["keyId"], "--rpm", "none")["requestsPerMinute"] is None
    rotated = server.cli("key", "rotate", made["keyId"], "--grace-hours", "0", "--reason", "leaked")
    assert chat(server, rotated["apiKey"]).status_code == 200
    assert chat(server, made["apiKey"]).status_code == 401
    assert server.run("key", "update", made["keyId"], "--json").returncode == 1
    assert server.run("key", "create", account, "--budget", "1", "--json").returncode == 2
    assert server.run("key", "create", account, "--budget", "1/hour", "--json").returncode == 2
