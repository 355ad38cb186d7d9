"""Who cannot prove who they are is refused after a while; who can, never."""

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from openai import OpenAI, RateLimitError

import proxy.web.auth_failures
from billing.money.errors import StoreUnavailable
from billing.payments.stripe.signatures import sign
from proxy.web.auth_failures import (
    MOST_ADDRESSES,
    MOST_GATHERED,
    MOST_TOGETHER,
    MOST_WAITING,
    AuthFailures,
    GatheredLookups,
)
from proxy.web.rejections import Rejection
from tests.support import web
from tests.support.customers import new_customer
from tests.support.servers import Sandbox, Serve, Tollkeeper, wait_until
from tests.support.town import SECRET, environment

MOST = 5


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    """One worker behind a proxy of its own, which is this test."""
    limits = {
        "TOLLKEEPER_LISTEN__MAX_FAILURES_PER_MINUTE": str(MOST),
        "TOLLKEEPER_LISTEN__TRUSTED_PROXIES": '["127.0.0.1/32"]',
    }
    stripe = environment("http://127.0.0.1:9", "http://127.0.0.1:9/notices")
    server = Tollkeeper(
        new_folder("failures"), {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url, **stripe, **limits}
    ).start()
    yield server
    server.kill()


def bearer(key: str, address: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "x-forwarded-for": address}


def refused_after(ask: Callable[[str], httpx.Response], status: int) -> httpx.Response:
    """The answer that follows on as many failures as there may be."""
    assert [ask(f"wrong-{number}").status_code for number in range(MOST)] == [status] * MOST
    answer = ask("wrong-again")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_failures")
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert 0 < int(answer.headers["retry-after"]) <= 60
    return answer


def test_unknown_keys_are_refused_unseen_and_known_ones_and_other_addresses_are_not(server: Tollkeeper) -> None:
    customer = new_customer(server)
    new = server.cli("key", "create", customer.account_id)["apiKey"]
    models, me = f"{server.v1}/models", f"{server.url}/api/billing/me"
    assert web.get(models, headers=bearer(customer.api_key, "192.0.2.1")).status_code == 200
    refused_after(lambda key: web.get(models, headers=bearer(key, "192.0.2.1")), 401)
    for path in (models, me):
        assert web.get(path, headers=bearer(customer.api_key, "192.0.2.1")).status_code == 200, "known to the worker"
        assert web.get(path, headers=bearer("tk-nobodys", "192.0.2.1")).status_code == 429
        assert web.get(path, headers={"x-forwarded-for": "192.0.2.1"}).status_code == 401, "no key is not looked up"
    assert web.get(me, headers=bearer(new, "192.0.2.1")).status_code == 200, "a key that the worker never saw"
    with OpenAI(
        api_key="sk-no", base_url=server.v1, max_retries=0, default_headers={"x-forwarded-for": "192.0.2.1"}
    ) as client:
        with pytest.raises(RateLimitError):
            client.models.list()
    wait_until(
        lambda: 'tollkeeper_too_many_failures_total{kind="key"} 4.0' in web.get(f"{server.url}/metrics").text,
        5,
        "counted",
    )


def test_admins_are_not_locked_out(server: Tollkeeper) -> None:
    first, second = (server.cli("admin", "create", name, "--role", "owner")["adminKey"] for name in ("first", "second"))
    whoami = f"{server.url}/api/admin/whoami"
    assert web.get(whoami, headers=bearer(first, "192.0.2.3")).status_code == 200
    refused_after(lambda key: web.get(whoami, headers=bearer(key, "192.0.2.3")), 401)
    assert web.get(whoami, headers=bearer(first, "192.0.2.3")).status_code == 200
    assert web.get(whoami, headers=bearer(second, "192.0.2.3")).status_code == 200, "who was never here is not either"
    assert web.get(whoami, headers=bearer(second, "192.0.2.4")).status_code == 200
    from_there = {"x-forwarded-for": "192.0.2.3", "origin": server.url}
    signing_in = web.post(f"{server.url}/admin/sign-in", data={"key": "tka-wrong"}, headers=from_there)
    assert (signing_in.status_code, "Wait a minute" in signing_in.text) == (429, True)
    assert web.post(f"{server.url}/admin/sign-in", data={"key": first}, headers=from_there).status_code == 303
    link = web.post(
        f"{server.url}/api/portal/sessions", json={"accountId": "x"}, headers=bearer("tka-wrong", "192.0.2.3")
    )
    assert link.status_code == 429


def test_signatures_of_stripe_pass_whoever_fails_at_the_same_address(server: Tollkeeper) -> None:
    def deliver(secret: str) -> httpx.Response:
        body = json.dumps(
            {"id": "evt_1", "object": "event", "type": "invoice.paid", "created": int(time.time()), "livemode": False}
        ).encode()
        headers = {"stripe-signature": sign(body, secret, int(time.time())), "x-forwarded-for": "192.0.2.5"}
        return web.post(f"{server.url}/webhooks/stripe", content=body, headers=headers)

    refused_after(lambda secret: deliver(f"whsec_{secret}"), 400)
    assert deliver(SECRET).status_code == 200
    assert deliver("whsec_wrong").status_code == 429
    failures = 'stripe_webhook_failures_total{reason="signature"} 7.0'
    wait_until(
        lambda: failures in web.get(f"{server.url}/metrics").text, 5, "all of them are still failures to the alerts"
    )


def test_who_leaves_in_the_middle_of_a_webhook_is_no_failing_of_ours(server: Tollkeeper) -> None:
    head = b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    lines = server.log().count("/webhooks/stripe")
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(head)
    wait_until(lambda: server.log().count("/webhooks/stripe") >= lines + 3, 10, "all of them are over")
    metrics = web.get(f"{server.url}/metrics").text
    assert 'tollkeeper_slo_total{result="bad",slo="purchase"} 0.0' in metrics
    assert 'stripe_webhook_failures_total{reason="internal"} 0.0' in metrics


# -- what is remembered ----------------------------------------------------------------------------


def refuses(failures: AuthFailures, address: str, digest: str = "") -> bool:
    if not failures.is_over("key", address, digest):
        failures.check("key", address)
        return False
    assert failures.refusal("key", address).status == 429
    return True


def test_it_is_over_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(proxy.web.auth_failures.time, "monotonic", lambda: now)
    failures = AuthFailures(2)
    for _ in range(2):
        failures.count("key", "192.0.2.1")
    assert refuses(failures, "192.0.2.1")
    now = 1_059.9
    assert refuses(failures, "192.0.2.1")
    now = 1_060.0
    assert not refuses(failures, "192.0.2.1")
    failures.count("key", "192.0.2.1")
    assert not refuses(failures, "192.0.2.1"), "it begins anew"


def test_memory_is_bounded_and_a_customers_ipv6_is_one_address() -> None:
    failures = AuthFailures(1)
    for number in range(MOST_ADDRESSES + 10):
        failures.count("key", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        failures.remember_proof(f"{number}")
    assert (len(failures._failed), len(failures._proven)) == (10_000, 10_000)
    assert (refuses(failures, "10.0.0.1"), refuses(failures, "10.0.1.1")) == (False, True)
    assert not failures.is_over("key", "10.0.1.1", "9999")
    failures.count("key", "2001:db8::1")
    assert refuses(failures, "2001:db8::ffff")
    assert not refuses(failures, "2001:db8:0:1::1")


def test_nobody_is_refused_where_there_is_no_limit_or_no_address() -> None:
    for failures, address in ((AuthFailures(0), "192.0.2.1"), (AuthFailures(1), "")):
        for _ in range(3):
            failures.count("key", address)
        assert not refuses(failures, address)


# -- a flood ---------------------------------------------------------------------------------------


async def test_a_flood_of_wrong_keys_costs_few_looks_and_a_valid_one_among_them_is_found() -> None:
    asked: list[int] = []

    async def find(keys: Sequence[str]) -> dict[str, str]:
        asked.append(len(keys))
        await asyncio.sleep(0)
        return {key: f"found {key}" for key in keys if key == "good"}

    lookups = GatheredLookups(find)
    names = [*(f"wrong {number}" for number in range(1_200)), "good", "good"]
    found = await asyncio.gather(*(lookups.find(name) for name in names))
    assert (found[-2:], set(found[:-2])) == (["found good"] * 2, {None})
    assert (len(asked), sum(asked), max(asked) <= MOST_TOGETHER) == (3, 1_201, True)
    assert await lookups.find("good") == "found good"  # it goes on after a pause
    many = await asyncio.gather(*(lookups.find(f"{number}") for number in range(MOST_GATHERED + 50)))
    assert (set(many), sum(asked) - 1_202) == ({None}, MOST_GATHERED)  # what waits is bounded


async def test_a_store_that_is_away_is_heard_by_everybody_who_waits() -> None:
    async def find(_keys: Sequence[str]) -> dict[str, str]:
        raise StoreUnavailable("sql", "is away")

    lookups: GatheredLookups[str] = GatheredLookups(find)
    for _ in range(2):
        heard = await asyncio.gather(*(lookups.find(name) for name in "abc"), return_exceptions=True)
        assert {type(error) for error in heard} == {StoreUnavailable}


async def test_other_look_ups_take_turns_and_few_may_wait() -> None:
    failures, running, most, refused = AuthFailures(1), 0, 0, 0

    async def look() -> None:
        nonlocal running, most, refused
        try:
            async with failures.turn("admin", "192.0.2.1"):
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                running -= 1
        except Rejection:
            refused += 1

    await asyncio.gather(*(look() for _ in range(MOST_WAITING + 20)))
    assert (most, refused) == (1, 20)
    await look()
    assert refused == 20


def test_after_a_restart_under_a_flood_a_valid_key_is_let_in_at_once_and_the_log_says_what_to_set(
    make_tollkeeper: Serve,
) -> None:
    """Everybody behind one address, as behind a proxy that nobody named."""
    server = make_tollkeeper(TOLLKEEPER_LISTEN__MAX_FAILURES_PER_MINUTE="20").start()
    account = server.account("10")
    server.stop()
    server.start()
    stop, answered = threading.Event(), [0, 0]

    def flood(number: int) -> None:
        with httpx.Client(base_url=server.v1) as client:
            for time_ in itertools.count():
                if stop.is_set():
                    return
                wrong = {"Authorization": f"Bearer tk-{number}-{time_}"}
                answered[client.get("/models", headers=wrong).status_code == 429] += 1

    floods = [threading.Thread(target=flood, args=(number,)) for number in range(4)]
    for thread in floods:
        thread.start()
    try:
        wait_until(lambda: answered[1] > 50, 20, "the flood is refused")
        statuses = [web.get(f"{server.v1}/models", headers=account.headers).status_code for _ in range(5)]
        new = server.cli("key", "create", account.account_id)["apiKey"]
        headers = {"Authorization": f"Bearer {new}"}
        statuses.append(web.get(f"{server.v1}/models", headers=headers).status_code)
        admin = server.cli("admin", "create", "ann", "--role", "owner")["adminKey"]
        headers = {"Authorization": f"Bearer {admin}"}
        statuses.append(web.get(f"{server.url}/api/admin/whoami", headers=headers).status_code)
    finally:
        stop.set()
        for thread in floods:
            thread.join()
    assert statuses == [200] * 7
    assert 20 <= answered[0] < 20 + len(floods)  # those that were on their way
    assert "name its network in listen.trusted_proxies" in server.log()
