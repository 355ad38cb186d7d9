"""A key's own limits stand on every answer under /v1, in OpenAI's names; the upstream's never do."""

import re
from collections.abc import Callable

import httpx

from tests.support import web
from tests.support.customers import new_customer as customer_beside
from tests.support.served import Customer
from tests.support.servers import RedisServer, Serve, Tollkeeper

LIMITS = {"requests_per_minute": 60, "tokens_per_minute": 600_000}
UPSTREAMS = {"x-ratelimit-limit-requests": "9", "x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-requests": "9s"}


def shown(answer: httpx.Response) -> dict[str, str]:
    found = {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit-")}
    prefix = "x-ratelimit-"
    return {name.removeprefix(prefix): value for name, value in found.items()}


def assert_whole(answer: httpx.Response) -> None:
    found = shown(answer)
    parts = ("limit", "remaining", "reset")
    assert set(found) == {f"{part}-{unit}" for part in parts for unit in ("requests", "tokens")}, answer.text
    assert (found["limit-requests"], found["limit-tokens"]) == ("60", "600000")
    assert 0 <= int(found["remaining-requests"]) <= 60
    assert 0 <= int(found["remaining-tokens"]) <= 600_000
    for unit in ("requests", "tokens"):
        assert re.fullmatch(r"(\d+m)?\d+(\.\d+)?s|\d+ms", found[f"reset-{unit}"])


def test_every_kind_of_answer_says_them(served: Serve, new_customer: Callable[..., Customer]) -> None:
    customer = new_customer(served(), **LIMITS)
    url = customer.server.url
    answers: dict[int | str, httpx.Response] = {
        200: customer.post(customer.body({"headers": UPSTREAMS}, max_tokens=5)),
        "stream": customer.post(customer.body({"headers": UPSTREAMS}, max_tokens=5, stream=True)),
        400: customer.post(customer.body(max_tokens=-1)),
        404: customer.post(customer.body(model="gpt-of-nobody")),
        403: customer.post({}, "/v1/skills"),
        429: customer.post(customer.body({"status": 429, "headers": UPSTREAMS}, max_tokens=5)),
        401: customer.post(customer.body({"status": 401}, max_tokens=5)),
        "models": web.get(f"{url}/v1/models", headers=customer.headers, timeout=10),
        "no response": web.get(f"{url}/v1/responses/resp_1", headers=customer.headers, timeout=10),
    }
    for kind, answer in answers.items():
        assert answer.status_code == kind or not isinstance(kind, int)
        assert_whole(answer)
    poor = new_customer(served(), "0", **LIMITS)
    refused = poor.post(poor.body(max_tokens=5))
    assert refused.status_code == 402
    assert_whole(refused)
    assert shown(customer_without(served(), new_customer)) == {}


def customer_without(server: Tollkeeper, new_customer: Callable[..., Customer]) -> httpx.Response:
    free = new_customer(server)
    return free.post(free.body({"headers": UPSTREAMS}, max_tokens=5))


def test_a_429_says_that_nothing_is_left_and_when_there_is(
    served: Serve, new_customer: Callable[..., Customer]
) -> None:
    customer = new_customer(served(), requests_per_minute=2)
    seen = [shown(customer.post(customer.body(max_tokens=1))) for _ in range(3)]
    assert [one["remaining-requests"] for one in seen] == ["1", "0", "0"]
    assert not any("tokens" in name for one in seen for name in one)
    refused = customer.post(customer.body(max_tokens=1))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 50 < float(shown(refused)["reset-requests"].removesuffix("s")) < 60
    tokens = new_customer(served(), tokens_per_minute=2_000)
    answer = tokens.post(tokens.body(max_tokens=900))
    assert answer.status_code == 200
    # what was held for and not used was given back before the answer went out
    used = answer.json()["usage"]["total_tokens"]
    assert 2_000 - used - 1 <= int(shown(answer)["remaining-tokens"]) <= 2_000
    refused = tokens.post(tokens.body(max_tokens=4_000))
    assert refused.status_code == 429
    assert int(shown(refused)["remaining-tokens"]) > 1_900


def test_the_operators_defaults_count_too(served: Serve, new_customer: Callable[..., Customer]) -> None:
    customer = new_customer(served(TOLLKEEPER_LIMITS__REQUESTS_PER_MINUTE="100"))
    found = shown(customer.post(customer.body(max_tokens=1)))
    assert (found["limit-requests"], found["remaining-requests"]) == ("100", "99")


def test_over_redis_as_well(make_tollkeeper: Callable[..., Tollkeeper], redis_server: RedisServer) -> None:
    server = make_tollkeeper(TOLLKEEPER_REDIS__URL=redis_server.url).start()
    customer = customer_beside(server, **LIMITS)
    answers = [customer.chat(max_tokens=1) for _ in range(2)]
    for answer in answers:
        assert_whole(answer)
    assert [int(shown(answer)["remaining-requests"]) for answer in answers] == [59, 58]
