"""A price per customer, over the wire: held for, charged, shown and kept by the plan that was in force when it began."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.support import web
from tests.support.customers import new_customer
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import RedisServer, Sandbox, Serve, Tollkeeper, sandbox_says, wait_until
from tests.support.sockets import create, opened, rows, until

STORING = {
    "TOLLKEEPER_BILLING__ALLOW_STORE": "true",
    "TOLLKEEPER_BILLING__ALLOW_BACKGROUND": "true",
    "TOLLKEEPER_ADVANCED__BATCH_POLL_SECONDS": "0.1",
}


def a_customer(server: Tollkeeper, sandbox: Sandbox, balance: int = 1_000_000_000) -> Customer:
    owner = new_customer(server, balance)
    return Customer(server, owner.account_id, owner.api_key, sandbox)


def plan_of_request(customer: Customer) -> str | None:
    record = customer.generation(customer.post(customer.body(max_tokens=5)).headers["x-request-id"])
    found: str | None = record["rates"].get("pricePlan")
    return found


def assign(customer: Customer, plan: str = "gold") -> None:
    customer.server.cli("plan", "assign", customer.account_id, plan)
    wanted = None if plan == "none" else f"{plan}.1"
    wait_until(lambda: customer.me()["pricePlan"] == wanted, 5, "the server follows")


@pytest.mark.parametrize("store", ["embedded", "redis", "postgresql"])
def test_a_plan_applies_within_two_seconds_to_requests_that_begin_after_it_and_to_its_account_alone(
    store: str, make_tollkeeper: Serve, sandbox: Sandbox, request: pytest.FixtureRequest
) -> None:
    environment = {"TOLLKEEPER_BILLING__MARKUP": "2"}
    if store != "embedded":
        redis: RedisServer = request.getfixturevalue("redis_server")
        environment |= {"TOLLKEEPER_LISTEN__WORKERS": "2", "TOLLKEEPER_REDIS__URL": redis.url}
    if store == "postgresql":
        environment["TOLLKEEPER_DATABASE__URL"] = request.getfixturevalue("fresh_postgres")
    server = make_tollkeeper(**environment).start()
    customer, other = a_customer(server, sandbox), a_customer(server, sandbox)
    server.cli("plan", "add", "gold", "--markup", "5")
    slow = customer.stream(customer.body({"output_tokens": 100, "chunk_interval_ms": 40}, max_tokens=150))
    with slow as wire:
        wire.read_events(1)
        server.cli("plan", "assign", customer.account_id, "gold")
        assigned = time.monotonic()
        wait_until(lambda: all(plan_of_request(customer) == "gold.1" for _ in range(6)), 10, "every worker follows")
        assert time.monotonic() - assigned < 5
        wire.read_all()
        begun = wire.request_id
    before = customer.generation(begun)
    assert "pricePlan" not in before["rates"]
    tokens = before["inputTokens"], before["outputTokens"]
    assert int(before["chargedMillicredits"]) == usd_to_charge((tokens[0], "0.30"), (tokens[1], "1.2"))
    answer = customer.post(customer.body({"output_tokens": 10}, max_tokens=20))
    record, usage = customer.generation(answer.headers["x-request-id"]), answer.json()["usage"]
    due = usd_to_charge((usage["prompt_tokens"], "0.75"), (usage["completion_tokens"], "3"))
    assert (int(record["chargedMillicredits"]), record["rates"]["markup"]) == (due, "5")
    assert round(float(answer.headers["x-credits-charged"]) * 1_000) == due
    assert plan_of_request(other) is None
    server.cli("plan", "assign", customer.account_id, "none", "--reason", "their contract ended")
    wait_until(lambda: all(plan_of_request(customer) is None for _ in range(6)), 10, "every worker follows")
    assert server.cli("reconcile") == {"ok": True, "findings": []}


def test_it_is_held_for_at_the_plans_price(make_tollkeeper: Serve, sandbox: Sandbox) -> None:
    server = make_tollkeeper(TOLLKEEPER_HOLDS__IN_FLIGHT_WAIT_SECONDS="0").start()
    customer = a_customer(server, sandbox, 1_000)
    body = customer.body(max_tokens=1_000)  # 600 millicredits of output at everyone's prices
    assert customer.post(body).status_code == 200
    server.cli("plan", "add", "gold", "--markup", "3")
    assign(customer)
    refused = customer.post(body)
    assert refused.status_code == 402, refused.text
    assert refused.json()["requiredCredits"] > 1.8


def test_customers_are_shown_their_own_prices(make_tollkeeper: Serve, sandbox: Sandbox, tmp_path: Path) -> None:
    server = make_tollkeeper(TOLLKEEPER_BILLING__MARKUP="2").start()
    customer, other = a_customer(server, sandbox), a_customer(server, sandbox)
    path = tmp_path / "gold.json"
    explicit = {"default": {"short": {"input": "0.20", "output": "0.90"}}}
    path.write_text(json.dumps({"markup": "1.5", "models": {"gpt-4o-mini": {"rates": explicit}}}))
    server.cli("plan", "add", "gold", str(path))
    assign(customer)

    def shown(whose: Customer, name: str) -> dict[str, Any]:
        answer = web.get(f"{whose.server.v1}/models/{name}", headers=whose.headers, timeout=10)
        found: dict[str, Any] = answer.json()["price"]["per_million_tokens"]
        return found

    assert shown(customer, "gpt-4o-mini") == {"input": 200, "output": 900}
    assert (shown(customer, "gpt-4.1")["input"], shown(other, "gpt-4.1")["input"]) == (3_000, 4_000)
    mine, others = customer.me(), other.me()
    assert (mine["pricePlan"], others["pricePlan"]) == ("gold.1", None)
    rates = {row["model"]: row for row in mine["activeRates"]}
    assert rates["gpt-4o-mini"]["customerUsdPerMillionTokens"] == {"input": "0.20", "output": "0.90"}
    assert rates["gpt-4.1"]["markup"] == "1.5"


def test_a_sockets_responses_are_priced_by_the_plan_of_their_own_beginning(
    make_tollkeeper: Serve, sandbox: Sandbox
) -> None:
    server = make_tollkeeper(**STORING).start()
    customer = a_customer(server, sandbox)
    server.cli("plan", "add", "gold", "--markup", "3")
    with opened(customer, "/responses") as socket:
        socket.send(create("one"))
        until(socket, "response.completed")
        assign(customer)
        socket.send(create("two"))
        until(socket, "response.completed")
        second, first = rows(customer, 2)[:2]
    for row, markup in ((first, 1), (second, 3)):
        due = usd_to_charge((row["inputTokens"], str(2 * markup)), (row["outputTokens"], str(8 * markup)))
        assert int(row["chargedMillicredits"]) == due, row


def test_a_realtime_session_stands_for_its_next_response_at_the_plans_price(
    make_tollkeeper: Serve, sandbox: Sandbox
) -> None:
    server = make_tollkeeper().start()
    customer = a_customer(server, sandbox)
    server.cli("plan", "add", "gold", "--markup", "7")
    with opened(customer, "/realtime?model=gpt-realtime-2.1") as socket:
        text = {"type": "session.update", "session": {"type": "realtime", "output_modalities": ["text"]}}
        socket.send(json.dumps(text))
        before = wait_until(customer.held, 10, "the next response is held for")
        assign(customer)
        socket.send(json.dumps(text))
        wait_until(lambda: customer.held() >= 7 * before - 7, 5, "it is held for at the plan's price")
        socket.send(json.dumps({"type": "response.create"}))
        until(socket, "response.done")
        (row,) = rows(customer, 1)
    assert customer.generation(row["requestId"])["rates"]["pricePlan"] == "gold.1"


@pytest.mark.parametrize("restarted", [False, True])
def test_what_goes_on_in_the_background_ends_by_the_plan_it_began_with(
    restarted: bool, make_tollkeeper: Serve, sandbox: Sandbox
) -> None:
    server = make_tollkeeper(**STORING).start()
    customer = a_customer(server, sandbox)
    server.cli("plan", "add", "gold", "--markup", "3")
    assign(customer)
    asked = "hello " + sandbox_says(background_ms=6_000)
    body = {"model": "gpt-4.1", "max_output_tokens": 50, "background": True, "input": asked}
    answer = customer.post(body, "/v1/responses")
    assert answer.json()["status"] == "queued", answer.text
    if restarted:
        assert server.stop() == 0
    server.cli("plan", "assign", customer.account_id, "none")
    server.cli("plan", "add", "gold", "--markup", "9")
    if restarted:
        server.start()
    record = wait_until(lambda: customer.generation(answer.headers["x-request-id"]), 30, "it is settled")
    assert record["rates"]["pricePlan"] == "gold.1"
    tokens = (record["inputTokens"], "6"), (record["outputTokens"], "24")
    assert int(record["chargedMillicredits"]) == usd_to_charge(*tokens)


def test_a_batch_is_priced_by_the_plan_it_was_made_under(make_tollkeeper: Serve, sandbox: Sandbox) -> None:
    server = make_tollkeeper(**STORING).start()
    customer = a_customer(server, sandbox)
    server.cli("plan", "add", "gold", "--markup", "3")
    assign(customer)
    sdk = OpenAI(base_url=server.v1, api_key=customer.api_key, max_retries=0)
    chat = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 60}
    lines = [{"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": chat} for name in "ab"]
    file = sdk.files.create(file=("in.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    sandbox.settings(batch_ms=1_000)
    sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    server.cli("plan", "assign", customer.account_id, "none")
    (row,) = wait_until(customer.usage, 20, "it is charged")
    sandbox.settings(batch_ms=200)
    # in batches gpt-4.1 is 1 in and 4 out
    assert int(row["chargedMillicredits"]) == usd_to_charge((row["inputTokens"], "3"), (row["outputTokens"], "12"))
    assert customer.generation(row["requestId"])["rates"]["pricePlan"] == "gold.1"
    assert server.cli("reconcile") == {"ok": True, "findings": []}


def test_a_plan_that_ends_gives_everyones_prices_back_by_itself(make_tollkeeper: Serve, sandbox: Sandbox) -> None:
    server = make_tollkeeper().start()
    customer = a_customer(server, sandbox)
    server.cli("plan", "add", "gold", "--markup", "3")
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 8))
    server.cli("plan", "assign", customer.account_id, "gold", "--until", ends)
    wait_until(lambda: customer.me()["pricePlan"] == "gold.1", 6, "it applies")
    wait_until(lambda: customer.me()["pricePlan"] is None, 15, "it has ended")
    assert plan_of_request(customer) is None
