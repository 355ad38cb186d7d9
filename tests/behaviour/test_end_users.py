"""End users under one key, over both stores: a default for whoever is not known, budgets and wallets for whoever is, on
every way in. A chat of these tests is held for and charged at 5 millicredits.
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.support import web
from tests.support.customers import Customer, acting_for, new_customer
from tests.support.servers import Account, Sandbox, Tollkeeper, sandbox_says, served_over, wait_until
from tests.support.sockets import opened, until
from tests.support.team import BASE, ServiceApp, a_day
from tests.support.voice import open_call, secret_of

pytestmark = pytest.mark.served
USER = "Tollkeeper-User"
EVERYWHERE = 5.0
"""Seconds after which a change is in force in every process."""


@pytest.fixture(scope="module", params=["embedded", "redis"])
def server(
    request: pytest.FixtureRequest, new_folder: Callable[[str], Path], session_sandbox: Sandbox
) -> Iterator[Tollkeeper]:
    home = new_folder(f"users-{request.param}")
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_ADVANCED__BATCH_POLL_SECONDS": "0.1",
    }
    with served_over(request.param, home, **environment) as server:
        yield server


@pytest.fixture(scope="module")
def app(server: Tollkeeper) -> ServiceApp:
    return ServiceApp(server)


@pytest.fixture
def customer(server: Tollkeeper) -> Customer:
    return new_customer(server)


def chat(customer: Account, named: str = "", **fields: Any) -> httpx.Response:
    """8 input tokens and up to 5 of output: 5 millicredits. `named`: by the header."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, **fields}
    headers = {**customer.headers, **({USER: named} if named else {})}
    return web.post(f"{customer.server.v1}/chat/completions", json=body, headers=headers, timeout=30)


def refused_for_user(answer: httpx.Response) -> dict[str, Any]:
    """The body of a 402 by an end user's limit."""
    found: dict[str, Any] = answer.json()
    assert (answer.status_code, found["error"]["code"]) == (402, "insufficient_credits"), answer.text
    assert found["limitSource"] == "end_user_limit", answer.text
    return found


def in_force(customer: Account, user: str) -> None:
    """Wait until every worker holds whoever is named to a limit that nothing fits in."""

    def look() -> bool:
        return all(chat(customer, user).status_code == 402 for _ in range(12))

    wait_until(look, 15, "the limit is in force")
    time.sleep(EVERYWHERE)


def balance_of(customer: Account, user: str) -> dict[str, Any]:
    headers = {**customer.headers, USER: user}
    found: dict[str, Any] = web.get(f"{customer.server.url}/api/billing/balance", headers=headers).json()
    return found


def wallet_in_force(customer: Account, user: str, wallet_id: str) -> None:
    """Wait until every worker knows whose wallet pays."""

    def look() -> bool:
        return all(balance_of(customer, user).get("accountId") == wallet_id for _ in range(12))

    wait_until(look, 15, "the wallet is known")
    time.sleep(EVERYWHERE)


def test_exactly_what_the_default_leaves_each_is_served_and_the_refusal_says_until_when(
    server: Tollkeeper, app: ServiceApp, customer: Customer
) -> None:
    account = customer.account_id
    app.rules(account, **a_day("0.028"))
    in_force(customer, "probe")  # which has its 28 millicredits too
    named = [("anna", {}), ("", {"user": "bert"}), ("", {"safety_identifier": "carl"}), ("dora", {"user": "anna"})]
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(chat, customer, user, **fields) for _ in range(12) for user, fields in named]
        codes = [one.result().status_code for one in asked]
    for place, who in enumerate(("anna", "bert", "carl", "dora")):
        of_user = codes[place :: len(named)]
        assert (of_user.count(200), of_user.count(402)) == (5, 7), who  # of 28 millicredits, at 5 each
    found = refused_for_user(chat(customer, "anna"))
    assert found["error"]["message"].startswith(
        "This request needs up to 0.005 credits; this end user's limit of 0.028 credits a day leaves 0.003. "
        "It starts anew at 20"
    )
    assert (found["endUserLimitCredits"], found["endUserLimitPeriod"]) == (0.028, "day")
    assert found["endUserLimitRemainingCredits"] == 0.003
    assert "T00:00:00" in found["endUserLimitResetsAt"]
    assert chat(customer).status_code == 200  # nobody is named: no limit but the account's
    server.cli("drain")
    user = app.user(account, "anna")
    assert (user["known"], user["budgets"][0]["usedMillicredits"]) == (False, "25")
    summary = web.get(f"{server.url}/api/billing/usage/summary?groupBy=user", headers=customer.headers).json()
    spent = {
        row["endUser"]: row["chargedMillicredits"] for row in summary["data"] if row["endUser"] in ("anna", "dora")
    }
    assert spent == {"anna": "25", "dora": "25"}
    assert server.cli("reconcile")["ok"]


def test_whoever_is_known_has_budgets_of_their_own_and_is_blocked_and_forgotten(
    app: ServiceApp, customer: Customer
) -> None:
    account = customer.account_id
    app.rules(account, **a_day("0"))
    in_force(customer, "stranger")
    made = app.put(account, "anna", 201, budgets=[{"credits": "0.012", "period": "month"}])
    assert (made["known"], made["walletAccountId"], made["budgets"][0]["limitMillicredits"]) == (True, None, "12")
    time.sleep(EVERYWHERE)
    assert [chat(customer, "anna").status_code for _ in range(3)] == [200, 200, 402]
    assert refused_for_user(chat(customer, "anna"))["endUserLimitPeriod"] == "month"
    app.put(account, "anna", 200, budgets=[])
    time.sleep(EVERYWHERE)
    assert chat(customer, "anna").status_code == 200
    assert refused_for_user(chat(customer, "stranger"))
    app.put(account, "anna", 200, blocked=True)
    time.sleep(EVERYWHERE)
    assert chat(customer, "anna").json()["error"]["code"] == "end_user_blocked"
    removed = app.ask("POST", f"{BASE}/end-users/remove", account_id=account, json={"endUser": "anna"})
    assert removed["removed"]
    time.sleep(EVERYWHERE)
    assert chat(customer, "anna").status_code == 402
    assert not app.user(account, "anna")["known"]
    app.ask("POST", f"{BASE}/end-users/remove", 404, account_id=account, json={"endUser": "anna"})


def test_a_wallet_pays_for_whoever_has_one_and_the_keys_limits_count_all_of_them(
    server: Tollkeeper, app: ServiceApp
) -> None:
    customer = new_customer(server, balance=10, concurrency=1)
    account = customer.account_id
    wallet_id = app.put(account, "anna", 201, wallet=True)["walletAccountId"]
    assert app.put(account, "anna", 200, wallet=True)["walletAccountId"] == wallet_id
    wallet_in_force(customer, "anna", wallet_id)
    assert chat(customer, "anna").status_code == 402
    Account(server, wallet_id, customer.api_key).grant("0.010")
    wait_until(lambda: balance_of(customer, "anna")["balanceMillicredits"] == "10", 10, "it is paid into")
    slow = {"messages": [{"role": "user", "content": sandbox_says(latency_ms=1_500)}], "user": "anna"}
    with ThreadPoolExecutor(2) as pool:  # one at once, whoever pays: of the key, in the same atomic step
        first = pool.submit(chat, customer, "", **slow)
        wait_until(lambda: first.done() or int(balance_of(customer, "anna")["heldMillicredits"]), 10, "it is held for")
        assert not first.done(), first.result().text
        assert chat(customer).status_code == 429
        assert first.result().status_code == 200
    codes = [chat(customer, "anna").status_code for _ in range(3)]
    assert codes[-1] == 402
    assert [chat(customer).status_code for _ in range(3)] == [200, 200, 402]  # the account's own ten
    server.cli("drain")
    charged = {row["endUser"] for row in server.cli("usage", wallet_id)["data"]}
    assert charged == {"anna"}
    assert {row["endUser"] for row in server.cli("usage", account)["data"]} == {None}
    refused = app.put(account, "anna", 400, wallet=False)
    assert "Close its account first" in refused["error"]["message"]
    app.ask("POST", f"{BASE}/block", account_id=wallet_id, json={"blocked": True, "reason": "test"})
    time.sleep(EVERYWHERE)
    assert chat(customer, "anna").json()["error"]["code"] == "wallet_not_active"
    assert server.cli("reconcile")["ok"]


def test_what_a_wallet_pays_for_is_seen_by_its_user_alone(server: Tollkeeper, app: ServiceApp) -> None:
    customer = new_customer(server)
    wallet_id = app.put(customer.account_id, "anna", 201, wallet=True)["walletAccountId"]
    wallet_in_force(customer, "anna", wallet_id)
    Account(server, wallet_id, customer.api_key).grant("1000")
    body = {"model": "gpt-4.1", "input": "hello", "max_output_tokens": 20, "store": True}

    def made() -> httpx.Response:
        headers = {**customer.headers, USER: "anna"}
        return web.post(f"{server.v1}/responses", json=body, headers=headers, timeout=20)

    answer = wait_until(lambda: found if (found := made()).status_code == 200 else None, 10, "the wallet pays")
    path = f"{server.v1}/responses/{answer.json()['id']}"
    assert web.get(path, headers={**customer.headers, USER: "anna"}).status_code == 200
    assert web.get(path, headers=customer.headers).status_code == 404
    assert web.get(path, headers={**customer.headers, USER: "bert"}).status_code == 404
    affairs = web.get(f"{server.url}/api/billing/me", headers={**customer.headers, USER: "anna"})
    assert (affairs.status_code, affairs.json()["error"]["code"]) == (403, "wallet_of_end_user")


def test_what_a_wallet_pays_for_on_a_socket_is_its_own_as_well(server: Tollkeeper, app: ServiceApp) -> None:
    """Named by the response itself: one socket may be shared by many."""
    customer = new_customer(server)
    wallet_id = app.put(customer.account_id, "anna", 201, wallet=True)["walletAccountId"]
    wallet_in_force(customer, "anna", wallet_id)
    wallet = Account(server, wallet_id, customer.api_key)
    wallet.grant("1000")
    body = {"type": "response.create", "model": "gpt-4.1", "input": "hello", "max_output_tokens": 20, "store": True}

    def made() -> str:
        with opened(customer, "/responses") as socket:  # type: ignore[arg-type]
            socket.send(json.dumps({**body, "safety_identifier": "anna"}))
            last = until(socket, "response.completed", "response.incomplete", "error")[-1]
            return str(last["response"]["id"]) if "response" in last else ""

    path = f"{server.v1}/responses/{wait_until(made, 10, 'the wallet pays')}"
    anna = {**customer.headers, USER: "anna"}
    assert web.get(path, headers=anna).status_code == 200
    assert web.get(path, headers=customer.headers).status_code == 404
    wait_until(lambda: server.cli("usage", wallet_id)["data"], 10, "it is booked to the wallet")
    with opened(customer, "/responses") as socket:  # type: ignore[arg-type]
        follow = {**body, "previous_response_id": path.rpartition("/")[2]}
        socket.send(json.dumps(follow))
        assert until(socket, "error", "response.completed")[-1]["type"] == "error"
        socket.send(json.dumps({**follow, "safety_identifier": "anna"}))
        assert until(socket, "error", "response.completed", "response.incomplete")[-1]["type"] != "error"


def test_every_way_in_counts(server: Tollkeeper, app: ServiceApp, customer: Customer) -> None:
    account = customer.account_id
    app.rules(account, **a_day("0"))
    in_force(customer, "anna")
    headers = {**customer.headers, USER: "anna"}
    response = {"model": "gpt-4.1", "input": "hello", "max_output_tokens": 20}
    bodies: dict[str, dict[str, Any]] = {
        "/chat/completions": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}], "stream": True},
        "/responses": {**response, "background": True},
        "/embeddings": {"model": "text-embedding-3-small", "input": "x"},
        "/images/generations": {"model": "gpt-image-1", "prompt": "x"},
    }
    for path, body in bodies.items():
        refused_for_user(web.post(server.v1 + path, json=body, headers=headers, timeout=20))
        refused_for_user(
            web.post(server.v1 + path, json={**body, "user": "anna"}, headers=customer.headers, timeout=20)
        )
    line = {"custom_id": "1", "method": "POST", "url": "/v1/responses", "body": response}
    files = {"file": ("in.jsonl", json.dumps(line).encode())}
    made = web.post(f"{server.v1}/files", data={"purpose": "batch"}, files=files, headers=headers).json()
    batch = {"input_file_id": made["id"], "endpoint": "/v1/responses", "completion_window": "24h"}
    refused_for_user(web.post(f"{server.v1}/batches", json=batch, headers=headers, timeout=20))
    for path in ("/responses", "/realtime?model=gpt-realtime-2.1"):
        with pytest.raises(InvalidStatus) as refused:
            opened(_named(customer, "anna"), path)  # type: ignore[arg-type]
        assert json.loads(refused.value.response.body)["limitSource"] == "end_user_limit"
    with opened(customer, "/responses") as socket:  # type: ignore[arg-type]
        socket.send(json.dumps({"type": "response.create", **response, "safety_identifier": "anna"}))
        error = until(socket, "error")[-1]["error"]
        assert error["limitSource"] == "end_user_limit"
    app.put(account, "vera", 201, **a_day("0.002"))
    time.sleep(EVERYWHERE)
    refused_for_user(open_call(server, secret_of(_named(customer, "vera"))))  # the secret says whose call it is
    assert open_call(server, secret_of(customer)).status_code == 201


def _named(customer: Customer, user: str) -> Account:
    class Named(Account):
        @property
        def headers(self) -> dict[str, str]:
            return {**super().headers, USER: user}

    return Named(customer.server, customer.account_id, customer.api_key)


def test_a_background_response_of_an_end_user_is_charged_to_their_budget(
    server: Tollkeeper, app: ServiceApp, customer: Customer
) -> None:
    account = customer.account_id
    app.rules(account, **a_day("1"))
    in_force_at = {**customer.headers, USER: "anna"}
    body = {"model": "gpt-4.1", "input": "hello", "max_output_tokens": 100, "background": True}  # 2 / out 8
    time.sleep(EVERYWHERE)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: web.post(f"{server.v1}/responses", json=body, headers=in_force_at, timeout=20), range(8))
        )
    assert {answer.status_code for answer in answers} == {200, 402}
    server.cli("drain", code=None)

    def used() -> int:
        return int(app.user(account, "anna")["budgets"][0]["usedMillicredits"])

    wait_until(lambda: customer.held() == 0 and used() > 0, 20, "they have ended")
    rows = server.cli("usage", account)["data"]
    assert used() == sum(int(row["chargedMillicredits"]) for row in rows) <= 1_000
    assert {row["endUser"] for row in rows} == {"anna"}


def test_an_account_may_require_that_someone_is_named(server: Tollkeeper, app: ServiceApp, customer: Customer) -> None:
    assert app.rules(customer.account_id, required=True)["required"]
    time.sleep(EVERYWHERE)
    refused = chat(customer).json()["error"]
    assert (refused["code"], refused["param"]) == ("end_user_required", "safety_identifier")
    assert chat(customer, "anna").status_code == 200
    assert chat(customer, safety_identifier="anna").status_code == 200
    assert web.get(f"{server.v1}/models", headers=customer.headers).status_code == 200
    headers = {**acting_for(customer), USER: "anna"}  # the app acts for the account
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    assert web.post(f"{server.v1}/chat/completions", json=body, headers=headers).status_code == 200


def test_what_cannot_be_kept_is_refused_by_name(app: ServiceApp, customer: Customer) -> None:
    account = customer.account_id
    for said, field in (
        ({"budgets": [{"credits": "1", "period": "total"}]}, "budgets"),
        ({"budgets": [{"credits": "1", "period": "day"}] * 2}, "budgets"),
        ({"budgets": [{"credits": "-1", "period": "day"}]}, "budgets"),
    ):
        assert app.rules(account, 400, **said)["error"]["param"] == field
        assert app.put(account, "anna", 400, **said)["error"]["param"] == field
    for name in ("", "x" * 128, " anna", "a\nb"):
        assert app.put(account, name, 400)["error"]["param"] == "endUser"
    for name in ("x" * 127, "anna@example.com", "a/b?c=d", "日本"):
        assert app.put(account, name, 201)["endUser"] == name
        assert app.user(account, name)["known"]
    listed = app.ask("GET", f"{BASE}/end-users", account_id=account, params={"limit": 3})
    rest = app.ask("GET", f"{BASE}/end-users", account_id=account, params={"after": listed["nextAfter"]})
    assert [row["endUser"] for row in listed["data"] + rest["data"]] == sorted(
        ["x" * 127, "anna@example.com", "a/b?c=d", "日本"]
    )
    app.rules("acct_missing", 404)
    app.put("acct_missing", "anna", 404)
