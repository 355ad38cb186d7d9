"""Short-lived tokens of browsers and devices, over both stores, and what an attacker does with one.

A chat of these tests is held for and charged at 5 millicredits.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from billing.storage.database import Database, now_ms
from billing.storage.tables.portal import access_tokens
from tests.support import web
from tests.support.customers import Customer, database_url, new_customer
from tests.support.servers import Account, Sandbox, Tollkeeper, sandbox_says, served_over, wait_until
from tests.support.team import BASE, ServiceApp, a_day
from tests.support.voice import OFFER, VOICE

pytestmark = pytest.mark.served
PAGE, EVIL = "https://app.example.com", "https://evil.example"
EVERYWHERE = 5.0
"""Seconds after which a change is in force in every process."""


@pytest.fixture(scope="module", params=["embedded", "redis"])
def server(
    request: pytest.FixtureRequest, new_folder: Callable[[str], Path], session_sandbox: Sandbox
) -> Iterator[Tollkeeper]:
    home = new_folder(f"tokens-{request.param}")
    environment = {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}
    with served_over(request.param, home, **environment) as server:
        yield server


@pytest.fixture(scope="module")
def app(server: Tollkeeper) -> ServiceApp:
    return ServiceApp(server)


@pytest.fixture
def customer(server: Tollkeeper) -> Customer:
    return new_customer(server)


def mint(app: ServiceApp, account_id: str, code: int = 201, **asked: Any) -> Any:
    return app.ask("POST", "/api/tokens", code, json={"accountId": account_id, **asked})


def sent(token: str, origin: str = "", **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **({"Origin": origin} if origin else {}), **more}


def chat(server: Tollkeeper, headers: dict[str, str], model: str = "gpt-4o-mini", **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, **more}
    return web.post(f"{server.v1}/chat/completions", json=body, headers=headers, timeout=30)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, str(answer.json()["error"]["code"])


def test_a_page_of_the_tokens_origin_calls_and_no_other_page_does(
    server: Tollkeeper, app: ServiceApp, customer: Customer
) -> None:
    made = mint(app, customer.account_id, origins=[PAGE], minutes=5)
    assert (made["state"], made["origins"], made["buy"]) == ("active", [PAGE], False)
    token = made["token"]
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    url = f"{server.v1}/chat/completions"
    time.sleep(1)  # another worker has looked before it was made
    preflight = web.request("OPTIONS", url, headers={"Origin": PAGE, **asks})
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, PAGE)
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert "Origin" in preflight.headers["vary"]
    answer = chat(server, sent(token, PAGE))
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    with web.stream(
        "POST",
        url,
        json={"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}], "stream": True},
        headers=sent(token, PAGE),
        timeout=20,
    ) as stream:
        assert stream.headers["access-control-allow-origin"] == PAGE
        assert b"[DONE]" in b"".join(stream.iter_raw())
    for path in ("/api/billing/balance", "/v1/models"):
        answer = web.get(server.url + path, headers=sent(token, PAGE))
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE), path
    evil = web.request("OPTIONS", url, headers={"Origin": EVIL, **asks})
    assert "access-control-allow-origin" not in evil.headers
    for origin in (EVIL, "", "null", PAGE + ":8443", PAGE.upper(), "https://app.example.com.evil.example"):
        for ask in (
            chat(server, sent(token, origin)),
            web.get(f"{server.url}/api/billing/balance", headers=sent(token, origin)),
        ):
            assert code_of(ask) == (403, "origin_not_allowed"), origin
            assert "access-control-allow-origin" not in ask.headers
    # a key is for no page, whatever its origin; and a device's token is for no page either
    assert "access-control-allow-origin" not in chat(server, sent(customer.api_key, PAGE)).headers
    device = mint(app, customer.account_id)["token"]
    assert chat(server, sent(device)).status_code == 200
    assert code_of(chat(server, sent(device, PAGE))) == (403, "origin_not_allowed")
    unknown = chat(server, sent("tkt-" + "x" * 43, PAGE))
    assert (unknown.status_code, unknown.headers["access-control-allow-origin"]) == (401, PAGE)  # its page can say so


def test_it_is_good_for_models_and_its_balance_and_for_nothing_else(
    server: Tollkeeper, app: ServiceApp, customer: Customer
) -> None:
    token = mint(app, customer.account_id)["token"]
    headers = sent(token)
    for path in (
        "me",
        "ledger",
        "usage",
        "usage/summary",
        "usage/export",
        "purchases",
        "packages",
        "low-balance",
        "auto-recharge",
        "statement?month=2026-10",
        "generations/req_1",
    ):
        assert code_of(web.get(f"{server.url}/api/billing/{path}", headers=headers)) == (403, "token_not_allowed"), path
    checkout = web.post(f"{server.url}/api/billing/checkout", json={"packageCode": "x"}, headers=headers)
    assert code_of(checkout) == (403, "token_not_allowed")
    for method, path in (
        ("GET", "/files"),
        ("POST", "/batches"),
        ("GET", "/responses/resp_1"),
        ("GET", "/vector_stores"),
        ("POST", "/vector_stores/vs_1/search"),
        ("POST", "/realtime/client_secrets"),
        ("POST", "/realtime/calls/rtc_1/hangup"),
        ("POST", "/conversations"),
    ):
        body = {} if method == "POST" else None
        answer = web.request(method, server.v1 + path, json=body, headers=headers)
        assert code_of(answer) == (403, "token_not_allowed"), path
    for path in ("/api/tokens", f"/api/admin/accounts/{customer.account_id}/keys", "/api/portal/sessions"):
        answer = web.post(server.url + path, json={"accountId": customer.account_id}, headers=headers)
        assert answer.status_code == 401, path
    # the app's own key acts for accounts; a token acts for none but its own
    other = new_customer(server)
    named = web.get(f"{server.url}/api/billing/balance", headers={**headers, "Tollkeeper-Account": other.account_id})
    assert named.json()["accountId"] == customer.account_id


def test_exactly_its_ceiling_is_spent_however_many_ask_at_once(
    server: Tollkeeper, app: ServiceApp, customer: Customer
) -> None:
    token = mint(app, customer.account_id, ceilingCredits="0.028", models=["gpt-4o-mini"])["token"]
    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda _: chat(server, sent(token)).status_code, range(40)))
    assert (codes.count(200), codes.count(402)) == (5, 35)  # of 28 millicredits, at 5 each
    refused = chat(server, sent(token)).json()
    assert "this token's ceiling of 0.028 credits leaves 0.003" in refused["error"]["message"]
    assert code_of(chat(server, sent(token), "gpt-4o"))[0] in (403, 404)
    server.cli("drain")
    rows = server.cli("usage", customer.account_id)["data"]
    assert [row["chargedMillicredits"] for row in rows] == ["5"] * 5
    assert {row["keyId"] for row in rows} == {
        app.ask("GET", "/api/tokens", params={"accountId": customer.account_id})["data"][0]["tokenId"]
    }
    assert server.cli("reconcile")["ok"]


def test_what_is_asked_for_while_it_is_good_is_charged_when_it_is_not_any_more(
    server: Tollkeeper, app: ServiceApp, customer: Customer
) -> None:
    made = mint(app, customer.account_id)
    slow = {"messages": [{"role": "user", "content": sandbox_says(latency_ms=7_000, output_tokens=3)}]}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(chat, server, sent(made["token"]), **slow)
        time.sleep(0.7)
        _expire(server, made["tokenId"])
        time.sleep(EVERYWHERE - 1)
        assert code_of(chat(server, sent(made["token"]))) == (401, "key_expired")
        answer = running.result()
    assert answer.status_code == 200
    assert customer.held() == 0
    server.cli("drain")
    assert len(server.cli("usage", customer.account_id)["data"]) == 1
    listed = app.ask("GET", "/api/tokens", params={"accountId": customer.account_id})["data"]
    assert [row["state"] for row in listed] == ["expired"]


def _expire(server: Tollkeeper, token_id: str) -> None:
    """A minute is the shortest life: here it ends at once."""

    async def end() -> None:
        database = Database(database_url(server), 1, 5.0)
        async with database.write() as connection:
            of_it = access_tokens.c.id == token_id
            await connection.execute(update(access_tokens).where(of_it).values(expires_at=now_ms()))
        await database.close()

    asyncio.run(end())


def test_it_ends_with_its_revocation_its_account_and_its_accounts_block(server: Tollkeeper, app: ServiceApp) -> None:
    revoked, blocked, closed = (new_customer(server) for _ in range(3))
    tokens = [mint(app, one.account_id) for one in (revoked, blocked, closed)]
    assert [chat(server, sent(one["token"])).status_code for one in tokens] == [200, 200, 200]
    revoke = {"token_id": tokens[0]["tokenId"], "json": {"reason": "leaked"}}
    app.ask("POST", "/api/tokens/{token_id}/revoke", **revoke)
    app.ask("POST", "/api/tokens/{token_id}/revoke", 404, **revoke)
    app.ask("POST", f"{BASE}/block", account_id=blocked.account_id, json={"blocked": True, "reason": "test"})
    app.ask("POST", f"{BASE}/close", account_id=closed.account_id, json={"reason": "test"})
    time.sleep(EVERYWHERE)
    codes = [code_of(chat(server, sent(one["token"]))) for one in tokens]
    assert codes == [(401, "invalid_api_key"), (403, "account_blocked"), (401, "invalid_api_key")]
    mint(app, closed.account_id, 409)
    mint(app, "acct_missing", 404)


def test_a_token_of_an_end_user_is_theirs_alone_and_does_not_show_the_accounts_balance(
    server: Tollkeeper, app: ServiceApp, customer: Customer
) -> None:
    account = customer.account_id
    app.put(account, "anna", 201, **a_day("0.012"))
    wallet_id = app.put(account, "bert", 201, wallet=True)["walletAccountId"]
    Account(server, wallet_id, customer.api_key).grant("1")
    token = mint(app, account, endUser="anna")["token"]
    headers = sent(token, **{"Tollkeeper-User": "bert"})  # who somebody else's wallet is
    found = web.get(f"{server.url}/api/billing/balance", headers=headers).json()
    assert (found["availableMillicredits"], found["balanceMillicredits"], found["accountId"]) == ("12", "12", account)
    answers = [chat(server, headers, user="bert") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 402]
    assert all("x-credits-remaining" not in answer.headers for answer in answers)
    refused = answers[-1].json()
    assert refused["limitSource"] == "end_user_limit"
    assert (refused["availableCredits"], refused["currentCredits"]) == (0.002, 0.002)
    server.cli("drain")
    assert {row["endUser"] for row in server.cli("usage", account)["data"]} == {"anna"}
    berts = sent(mint(app, account, endUser="bert")["token"])
    wait_until(lambda: _balance(server, berts).get("balanceMillicredits") == "1000", 8, "bert has his wallet")
    assert _balance(server, berts)["accountId"] == wallet_id
    unknown = sent(mint(app, new_customer(server).account_id, endUser="carl")["token"])
    assert chat(server, unknown).status_code == 200  # nobody said anything: no limit but the account's


def _balance(server: Tollkeeper, headers: dict[str, str]) -> Any:
    return web.get(f"{server.url}/api/billing/balance", headers=headers).json()


def test_sockets_and_calls_of_a_page_ask_for_its_origin_too(
    server: Tollkeeper, app: ServiceApp, customer: Customer
) -> None:
    token = mint(app, customer.account_id, origins=[PAGE])["token"]
    url = server.v1.replace("http://", "ws://") + "/realtime?model=" + VOICE
    protocols: Any = ["realtime", f"openai-insecure-api-key.{token}"]
    with connect(url, subprotocols=protocols, origin=PAGE, open_timeout=10) as socket:  # type: ignore[arg-type]
        assert json.loads(socket.recv(timeout=10))["type"] == "session.created"
    with pytest.raises(InvalidStatus) as refused:
        connect(url, subprotocols=protocols, origin=EVIL, open_timeout=10)  # type: ignore[arg-type]
    assert refused.value.response.status_code == 403
    call = {"content": OFFER.encode(), "timeout": 20}
    named = {"Content-Type": "application/sdp"}
    opened = web.post(f"{server.v1}/realtime/calls?model={VOICE}", headers=sent(token, PAGE, **named), **call)
    assert opened.status_code == 201
    other = web.post(f"{server.v1}/realtime/calls?model={VOICE}", headers=sent(token, EVIL, **named), **call)
    assert code_of(other) == (403, "origin_not_allowed")


def test_what_cannot_be_held_to_is_not_made(app: ServiceApp, customer: Customer) -> None:
    for asked, field in (
        ({"minutes": 0}, None),
        ({"minutes": 1_441}, None),
        ({"ceilingCredits": "-1"}, "ceilingCredits"),
        ({"endUser": "x" * 128}, "endUser"),
        ({"origins": ["*"]}, "origins"),
        ({"origins": ["https://app.example.com/"]}, "origins"),
        ({"origins": ["https://*.example.com"]}, "origins"),
        ({"origins": ["https://APP.example.com"]}, "origins"),
        ({"origins": ["https://app.example.com:443"]}, "origins"),
        ({"origins": ["https://user@app.example.com"]}, "origins"),
        ({"origins": ["null"]}, "origins"),
        ({"origins": ["file://x"]}, "origins"),
        ({"origins": [f"https://a{n}.example.com" for n in range(11)]}, "origins"),
        ({"surprise": 1}, None),
    ):
        found = mint(app, customer.account_id, 400, **asked)
        assert found["error"]["param"] == field, asked
    for origin in ("http://localhost:3000", "https://app.example.com", "http://[::1]:8080"):
        assert mint(app, customer.account_id, origins=[origin])["origins"] == [origin]


def test_the_secret_is_kept_nowhere_and_the_log_of_changes_has_no_name(
    server: Tollkeeper, app: ServiceApp, customer: Customer
) -> None:
    made = mint(app, customer.account_id, endUser="a name of somebody")
    assert chat(server, sent(made["token"])).status_code == 200
    listed = app.ask("GET", "/api/tokens", params={"accountId": customer.account_id})
    exported = server.folder / "audit.jsonl"
    server.cli("audit", "export", str(exported))
    rows = [json.loads(line) for line in exported.read_text().splitlines()]
    assert any(row["action"] == "token.create" and row["subject"] == made["tokenId"] for row in rows)
    everything = json.dumps(listed) + exported.read_text() + server.log()
    assert made["token"] not in everything
    assert "a name of somebody" not in exported.read_text() + server.log()
