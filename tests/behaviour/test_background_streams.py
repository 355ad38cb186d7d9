"""Background responses as streams: whoever reads, leaves or comes back, they are charged once, by the job's own usage."""

import json
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import pytest
from openai import OpenAI

from tests.support import web
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import Sandbox, Tollkeeper, sandbox_says, wait_until

START = 1_000_000
BACKGROUND = {"model": "gpt-4.1", "max_output_tokens": 50, "background": True}  # 2 / out 8


class Pair(NamedTuple):
    owner: Customer
    stranger: Customer


@pytest.fixture
def pair(served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox) -> Pair:
    return Pair(new_customer(served(), "1000"), new_customer(served(), "1000"))


def jobs(customer: Customer, made: str) -> list[dict[str, Any]]:
    """The upstream's records of a response."""
    return [row for row in customer.sandbox.record() if row.get("responseId") == made and row.get("jobStatus")]


def body(**directive: Any) -> dict[str, Any]:
    said = sandbox_says(**{"background_ms": 600, "queued_ms": 100, "output_tokens": 30, **directive})
    return {**BACKGROUND, "input": f"hello {said}"}


def numbers(events: bytes | str) -> list[int]:
    text = events if isinstance(events, str) else events.decode()
    return [int(found) for found in re.findall(r'"sequence_number":(\d+)', text)]


def response_id(events: bytes | str) -> str:
    text = events if isinstance(events, str) else events.decode()
    found = re.search(r'"id":"(resp_\w+)"', text)
    assert found is not None, text
    return found[1]


def resumed(customer: Customer, made: str, after: int | None = None) -> httpx.Response:
    place = "" if after is None else f"&starting_after={after}"
    url = f"{customer.server.v1}/responses/{made}?stream=true{place}"
    return web.get(url, headers=customer.headers, timeout=30)


def charged_once(customer: Customer, request_id: str, made: str) -> int:
    """What it was charged, by the upstream's own record of the job, and nothing else was."""
    (job,) = wait_until(lambda: [row for row in jobs(customer, made) if row["usage"]], 20, "the job has ended")
    usage = job["usage"]
    charge = usd_to_charge((usage["input_tokens"], "2"), (usage["output_tokens"], "8"))
    assert customer.charged(request_id) == charge
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")
    assert customer.balance() == START - charge
    assert len(customer.usage()) == 1
    return charge


def test_a_background_stream_is_read_and_charged_once(pair: Pair) -> None:
    with pair.owner.stream(body(), "/v1/responses") as wire:
        assert wire.header("x-credits-held") is not None
        events = wire.read_all()
    assert events.clean
    made = response_id(events.data)
    assert b'"status":"queued"' in events.data
    assert b'"type":"response.completed"' in events.data
    charged_once(pair.owner, wire.request_id, made)


def test_whoever_leaves_comes_back_and_reads_the_rest_for_nothing(pair: Pair) -> None:
    with pair.owner.stream(body(background_ms=1_500), "/v1/responses") as wire:
        begun = wire.read_events(5)
    made, last = response_id(begun), numbers(begun)[-1]
    rest = resumed(pair.owner, made, last)
    assert rest.status_code == 200
    assert numbers(rest.text)[0] == last + 1
    assert '"type":"response.completed"' in rest.text
    whole = resumed(pair.owner, made)
    assert numbers(whole.text) == list(range(len(numbers(whole.text))))
    charged_once(pair.owner, wire.request_id, made)
    assert numbers(resumed(pair.owner, made, last).text) == numbers(rest.text)
    charged_once(pair.owner, wire.request_id, made)


def asked_by_clients(sandbox: Sandbox) -> int:
    """Requests that came on behalf of a client: the poller's own questions come at any time."""
    return len([row for row in sandbox.record() if row["clientRequestId"]])


def test_nobody_else_resumes_it(pair: Pair, sandbox: Sandbox) -> None:
    with pair.owner.stream(body(), "/v1/responses") as wire:
        made = response_id(wire.read_events(2))
        before = asked_by_clients(sandbox)
        refused, never = resumed(pair.stranger, made), resumed(pair.stranger, "resp_never")
        assert refused.status_code == never.status_code == 404
        assert refused.json()["error"]["message"].replace(made, "resp_never") == never.json()["error"]["message"]
        assert asked_by_clients(sandbox) == before, "only its maker's question reaches the upstream"
    charged_once(pair.owner, wire.request_id, made)
    assert pair.stranger.balance() == START


def test_whoever_leaves_before_the_first_byte_is_charged_what_ran_on(pair: Pair, sandbox: Sandbox) -> None:
    with pair.owner.stream(body(latency_ms=500), "/v1/responses"):
        time.sleep(0.2)
    (row,) = wait_until(pair.owner.usage, 20, "it is charged")
    (job,) = [one for one in sandbox.record() if one.get("jobStatus")]
    assert job["usage"]["output_tokens"] == 30
    charged_once(pair.owner, row["requestId"], job["responseId"])


def test_a_stream_that_breaks_off_says_so_and_is_charged_by_its_job(pair: Pair) -> None:
    with pair.owner.stream(body(cut={"after_chunks": 6}), "/v1/responses") as wire:
        ended = wire.read_all()
    assert b"upstream_cut" in ended.data
    assert b"resume it" in ended.data
    charged_once(pair.owner, wire.request_id, response_id(ended.data))


def test_a_background_stream_that_is_cancelled_costs_what_its_events_showed(pair: Pair) -> None:
    with pair.owner.stream(body(queued_ms=10, background_ms=8_000, output_tokens=40), "/v1/responses") as wire:
        begun = wire.read_events(15)
        made = response_id(begun)
        url = f"{pair.owner.server.v1}/responses/{made}/cancel"
        assert web.post(url, headers=pair.owner.headers, timeout=10).json()["status"] == "cancelled"
        begun += wire.read_all().data
    seen = begun.count(b"event: response.output_text.delta")
    assert seen > 5
    row = pair.owner.generation(wire.request_id)
    (job,) = jobs(pair.owner, made)
    assert job["usage"]["output_tokens"] >= seen
    whole = usd_to_charge((job["usage"]["input_tokens"] + 10, "2"), (job["usage"]["output_tokens"], "8"))
    assert seen * 8 * 9 // 10 < int(row["chargedMillicredits"]) <= whole
    assert (row["usageSource"], row["outcome"]) == ("counted", "upstream_error")
    wait_until(lambda: pair.owner.held() == 0, 10, "nothing is held")
    assert pair.owner.balance() == START - int(row["chargedMillicredits"])


def test_the_sdk_streams_in_the_background_and_resumes(pair: Pair) -> None:
    sdk = OpenAI(base_url=pair.owner.server.v1, api_key=pair.owner.api_key, max_retries=0)
    seen, made = -1, ""
    with sdk.responses.create(**body(background_ms=1_500), stream=True) as stream:
        for event in stream:
            seen, made = event.sequence_number, made or event.response.id  # type: ignore[union-attr]
            if seen >= 3:
                break
    text, kinds = "", []
    for event in sdk.responses.retrieve(made, stream=True, starting_after=seen):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert kinds[-1] == "response.completed"
    assert sdk.responses.retrieve(made).output_text.endswith(text)
    (row,) = wait_until(pair.owner.usage, 20, "it is charged")
    charged_once(pair.owner, row["requestId"], made)


@pytest.mark.parametrize("query", ["?stream=true&starting_after=x", "?stream=maybe"])
def test_a_place_that_is_none_is_refused(pair: Pair, query: str) -> None:
    with pair.owner.stream(body(), "/v1/responses") as wire:
        made = response_id(wire.read_all().data)
    answer = web.get(f"{pair.owner.server.v1}/responses/{made}{query}", headers=pair.owner.headers, timeout=10)
    if "maybe" in query:
        assert answer.status_code in (200, 400)
    else:
        assert answer.status_code == 400


def test_no_money_is_a_402_before_anything_runs(pair: Pair, new_customer: Callable[..., Customer]) -> None:
    poor = new_customer(pair.owner.server, "0.01")
    answer = poor.post({**body(), "stream": True}, "/v1/responses")
    assert answer.status_code == 402
    assert json.loads(answer.text)["error"]["code"] == "insufficient_credits"
