"""What costs nothing is limited like what does, and is for customers: not for a key without money."""

from collections.abc import Callable

import pytest

from tests.support import web
from tests.support.served import Customer, MakeCustomer
from tests.support.servers import Sandbox, Serve, Tollkeeper, sandbox_says, wait_until

FREE = {
    "/v1/moderations": {"input": "hello"},
    "/v1/responses/input_tokens": {"model": "gpt-4.1", "input": "hello"},
}


@pytest.mark.parametrize("path", FREE)
def test_a_free_endpoint_is_refused_at_nothing_and_leaves_no_row(
    path: str, served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    poor = new_customer(served(), "0")
    for _ in range(5):
        answer = poor.post(FREE[path], path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (402, "insufficient_credits")
    assert (sandbox.record(), poor.held(), poor.usage()) == ([], 0, [])


@pytest.mark.parametrize("path", FREE)
def test_a_free_endpoint_has_a_rate_where_the_key_has_none(
    path: str, served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    customer = new_customer(served(TOLLKEEPER_LIMITS__FREE_REQUESTS_PER_MINUTE="3"))
    answers = [customer.post(FREE[path], path).status_code for _ in range(6)]
    assert answers == [200, 200, 200, 429, 429, 429]
    assert customer.post(customer.body(max_tokens=5)).status_code == 200  # what is paid for is not in its way


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/gpt-4.1"),
        ("GET", "/v1/files"),
        ("GET", "/v1/responses/resp_x"),
        ("POST", "/v1/conversations"),
        ("POST", "/v1/realtime/client_secrets"),
        ("POST", "/v1/batches"),
    ],
)
def test_every_call_that_costs_nothing_has_that_rate(
    method: str, path: str, served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    customer = new_customer(served(TOLLKEEPER_LIMITS__FREE_REQUESTS_PER_MINUTE="3"))
    url = customer.server.url + path
    answers = [web.request(method, url, json={}, headers=customer.headers, timeout=20) for _ in range(5)]
    assert [answer.status_code == 429 for answer in answers] == [False] * 3 + [True] * 2
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert int(answers[-1].headers["retry-after"]) > 0


def test_a_keys_own_rate_counts_what_is_free_as_well(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    slow = new_customer(served(), requests_per_minute=2)
    assert web.get(slow.server.v1 + "/models", headers=slow.headers).status_code == 200
    assert slow.post({"input": "x"}, "/v1/moderations").status_code == 200
    assert slow.post(slow.body(max_tokens=5)).status_code == 429


def test_what_runs_in_a_keys_only_place_is_asked_after_and_cancelled(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    """Whatever it used of the key's minute of tokens: asking takes none."""
    customer = new_customer(served(), concurrency=1, tokens_per_minute=500)
    wanted = {"model": "gpt-4.1", "background": True, "max_output_tokens": 50}
    made = customer.post({**wanted, "input": "hello " + sandbox_says(queued_ms=60_000)}, "/v1/responses")
    assert (made.status_code, customer.held() > 0) == (200, True)
    assert customer.post(customer.body(max_tokens=5)).status_code == 429  # the place is taken
    one = f"{customer.server.v1}/responses/{made.json()['id']}"
    assert [web.get(one, headers=customer.headers, timeout=20).status_code for _ in range(3)] == [200] * 3
    heavy = {"items": [{"type": "message", "role": "user", "content": "word " * 60_000}]}
    assert customer.post(heavy, "/v1/conversations").status_code == 200
    assert customer.post({}, f"/v1/responses/{made.json()['id']}/cancel").json()["status"] == "cancelled"
    wait_until(lambda: customer.held() == 0, 10, "it is settled")


def test_a_secret_for_a_browser_is_not_minted_for_who_cannot_pay(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer
) -> None:
    poor = new_customer(served(), "0")
    session = {"session": {"type": "realtime", "model": "gpt-realtime-2.1"}}
    assert poor.post(session, "/v1/realtime/client_secrets").status_code == 402


def test_what_is_free_leaves_nothing_held_on_either_store(stack: Tollkeeper) -> None:
    account = stack.account("1000")
    customer = Customer(stack, account.account_id, account.api_key, None)  # type: ignore[arg-type]
    customer.wait_balance(1_000_000)
    for _ in range(5):
        assert customer.post({"input": "x"}, "/v1/moderations").status_code == 200
        assert web.get(stack.v1 + "/files", headers=customer.headers).status_code == 200
    assert (customer.balance(), customer.held()) == (1_000_000, 0)


def test_while_nobody_is_charged_nobody_is_refused(make_tollkeeper: Serve) -> None:
    server = make_tollkeeper(
        TOLLKEEPER_BILLING__CHARGING_ENABLED="false", TOLLKEEPER_BILLING__CHARGING_DISABLED_MODE="free"
    ).start()
    account = server.account()
    answer = web.post(server.v1 + "/moderations", json={"input": "x"}, headers=account.headers, timeout=20)
    assert answer.status_code == 200
