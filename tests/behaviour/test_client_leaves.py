"""A client that leaves pays for what the upstream has sent until then; the upstream's own record is the witness.

The sandbox sends one event for the role, one a token, one for the finish reason, then the usage chunk. Told to fall
silent after k events, it has sent exactly max(0, k - 1) tokens (of TOKENS) when the client leaves.
"""

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.bodies import TEXT
from tests.support.customers import new_customer as new_account
from tests.support.raw_upstream import RawUpstream
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import Serve, Tollkeeper, sandbox_says, wait_until
from tests.support.wire import events_of

TOKENS = 4
EVENTS = TOKENS + 2  # role and finish reason

CustomerOf = Callable[[Tollkeeper], Customer]


def silent_after(events: int) -> Any:
    return {"after_chunks": events} if events else "after_headers"


def assert_counted_and_cancelled(customer: Customer, request_id: str, events: int, prices: tuple[str, str]) -> None:
    record, served = customer.generation(request_id), customer.finished(request_id)
    assert (served["outcome"], served["chunksSent"]) == ("client_gone", events)
    shown = min(max(0, events - 1), TOKENS)
    assert served["usage"]["completion_tokens"] == shown
    assert (record["outcome"], record["usageSource"]) == ("client_gone", "counted")
    assert (record["inputTokens"], record["outputTokens"]) == (served["usage"]["prompt_tokens"], shown)
    expected = usd_to_charge((served["usage"]["prompt_tokens"], prices[0]), (shown, prices[1]))
    assert int(record["chargedMillicredits"]) == expected


@pytest.mark.parametrize("asks", [True, False], ids=["asks for usage", "does not ask"])
@pytest.mark.parametrize("events", range(EVENTS + 1))
def test_a_client_that_leaves_mid_stream_pays_for_what_was_sent(customer: Customer, events: int, asks: bool) -> None:
    before = customer.balance()
    body = customer.body({"silent": silent_after(events), "output_tokens": TOKENS}, max_tokens=50)
    if asks:
        body["stream_options"] = {"include_usage": True}
    with customer.stream(body) as wire:
        assert wire.answer.status == 200
        assert len(events_of(wire.read_events(events))) == events
        request_id = wire.request_id
        assert customer.held() > 0
    # gpt-4o-mini: 0.15 / 0.60 USD per million tokens
    assert_counted_and_cancelled(customer, request_id, events, ("0.15", "0.6"))
    wait_until(lambda: customer.held() == 0, 5, "no hold is left")
    assert before - customer.balance() == customer.charged(request_id)


def test_a_client_with_a_large_prompt_is_seen_to_leave_a_silent_upstream(customer: Customer) -> None:
    body = customer.body({"silent": {"after_chunks": 3}, "output_tokens": TOKENS}, max_tokens=50)
    body["messages"].insert(0, {"role": "user", "content": "once more, " * 20_000})
    with customer.stream(body) as wire:
        wire.read_events(3)
        request_id = wire.request_id
    assert_counted_and_cancelled(customer, request_id, 3, ("0.15", "0.6"))


@pytest.mark.parametrize("events", [0, 2, EVENTS])
def test_a_client_that_resets_its_connection_pays_the_same(customer: Customer, events: int) -> None:
    wire = customer.stream(customer.body({"silent": silent_after(events), "output_tokens": TOKENS}, max_tokens=50))
    wire.read_events(events)
    request_id = wire.request_id
    wire.leave(rst=True)
    assert_counted_and_cancelled(customer, request_id, events, ("0.15", "0.6"))


def test_a_legacy_stream_is_counted_as_well(customer: Customer) -> None:
    text = '[[sandbox {"silent": {"after_chunks": 3}, "output_tokens": 9}]]'
    with customer.stream(
        {"model": "gpt-3.5-turbo-instruct", "prompt": text, "max_tokens": 50}, "/v1/completions"
    ) as wire:
        wire.read_events(3)
        request_id = wire.request_id
    record, served = customer.generation(request_id), customer.finished(request_id)
    assert (served["outcome"], served["usage"]["completion_tokens"]) == ("client_gone", 3)
    # gpt-3.5-turbo-instruct: 1.5 / 2. A legacy prompt is its text and nothing around it; one token more is the bound's slack.
    low = usd_to_charge((served["usage"]["prompt_tokens"], "1.5"), (3, "2"))
    assert low <= int(record["chargedMillicredits"]) <= low + 2
    assert (record["usageSource"], record["outputTokens"]) == ("counted", 3)


def test_two_choices_are_both_counted(customer: Customer) -> None:
    # events: two roles, then a token of each choice in turn
    with customer.stream(
        customer.body({"silent": {"after_chunks": 7}, "output_tokens": 9}, n=2, max_tokens=50)
    ) as wire:
        wire.read_events(7)
        request_id = wire.request_id
    record, served = customer.generation(request_id), customer.finished(request_id)
    assert served["usage"]["completion_tokens"] == 5
    expected = usd_to_charge((served["usage"]["prompt_tokens"], "0.15"), (5, "0.6"))
    assert (record["outputTokens"], int(record["chargedMillicredits"])) == (5, expected)


def test_arguments_of_a_tool_call_are_counted(customer: Customer) -> None:
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
    }
    fields = {"tools": [tool], "tool_choice": "required", "max_tokens": 90}
    with customer.stream(customer.body({"silent": {"after_chunks": 4}}, **fields)) as wire:
        wire.read_events(4)
        request_id = wire.request_id
    record, served = customer.generation(request_id), customer.finished(request_id)
    # {"a":"UTC"} as the sandbox cut it, and the name; joined pieces may merge into fewer tokens, never into more
    assert 0 < record["outputTokens"] <= served["usage"]["completion_tokens"]


@pytest.mark.parametrize("events", [0, 1, 3])
def test_a_reasoning_model_is_drained_and_its_own_usage_charged(customer: Customer, events: int) -> None:
    # 16 tokens of thinking stand behind the role event; nobody could count them
    body = customer.body({"chunk_interval_ms": 60, "output_tokens": 6}, model="gpt-5-mini", max_completion_tokens=200)
    with customer.stream(body) as wire:
        wire.read_events(events)
        request_id = wire.request_id
    record, served = customer.generation(request_id), customer.finished(request_id)
    assert served["outcome"] == "completed"
    assert (
        served["usageSent"]["completion_tokens"],
        served["usageSent"]["completion_tokens_details"]["reasoning_tokens"],
    ) == (22, 16)
    assert (record["outcome"], record["usageSource"], record["reasoningTokens"]) == ("client_gone", "upstream", 16)
    # gpt-5-mini: 0.25 / 2
    assert int(record["chargedMillicredits"]) == usd_to_charge(
        (served["usageSent"]["prompt_tokens"], "0.25"), (22, "2")
    )


def test_a_reasoning_model_is_drained_when_the_client_leaves_while_it_thinks(customer: Customer) -> None:
    body = customer.body({"latency_ms": 400, "output_tokens": 3}, model="gpt-5-mini", max_completion_tokens=200)
    with customer.stream(body):
        request_id = str(customer.only_upstream_request()["clientRequestId"])
    record, served = customer.generation(request_id), customer.finished(request_id)
    assert (served["outcome"], record["outcome"], record["usageSource"]) == ("completed", "client_gone", "upstream")
    assert int(record["chargedMillicredits"]) == usd_to_charge(
        (served["usageSent"]["prompt_tokens"], "0.25"), (19, "2")
    )


@pytest.mark.parametrize("events", [0, 2])
def test_a_search_that_was_done_is_paid_by_a_client_that_leaves(customer: Customer, events: int) -> None:
    body = customer.body(
        {"chunk_interval_ms": 60, "text": "one two three"}, model="gpt-5-search-api", max_completion_tokens=200
    )
    with customer.stream(body) as wire:
        wire.read_events(events)
        request_id = wire.request_id
    record, served = customer.generation(request_id), customer.finished(request_id)
    assert (record["outcome"], record["usageSource"]) == ("client_gone", "upstream")
    # gpt-5-search-api: 1.25 / 10, and $0.01 = 10,000 millicredits for the search; 16 tokens of thinking and 3 of text
    expected = usd_to_charge((served["usageSent"]["prompt_tokens"], "1.25"), (19, "10")) + 10_000
    assert int(record["chargedMillicredits"]) == expected


def test_with_on_disconnect_read_on_every_model_is_read_on(served: Serve, customer_of: CustomerOf) -> None:
    customer = customer_of(
        served(TOLLKEEPER_METERING__ON_DISCONNECT="read_on", TOLLKEEPER_METERING__READ_ON_SECONDS="2")
    )
    with customer.stream(customer.body({"chunk_interval_ms": 60, "output_tokens": 6}, max_tokens=50)) as wire:
        wire.read_events(2)
        request_id = wire.request_id
    record, upstream = customer.generation(request_id), customer.finished(request_id)
    assert (upstream["outcome"], upstream["usageSent"]["completion_tokens"]) == ("completed", 6)
    assert (record["outcome"], record["usageSource"]) == ("client_gone", "upstream")
    assert int(record["chargedMillicredits"]) == usd_to_charge(
        (upstream["usageSent"]["prompt_tokens"], "0.15"), (6, "0.6")
    )


def test_draining_is_bounded_in_time_and_then_counted(served: Serve, customer_of: CustomerOf) -> None:
    customer = customer_of(
        served(TOLLKEEPER_METERING__ON_DISCONNECT="read_on", TOLLKEEPER_METERING__READ_ON_SECONDS="2")
    )
    with customer.stream(customer.body({"silent": {"after_chunks": 3}, "output_tokens": 6}, max_tokens=50)) as wire:
        wire.read_events(3)
        request_id = wire.request_id
    record, upstream = customer.generation(request_id), customer.finished(request_id)
    assert (upstream["outcome"], upstream["usage"]["completion_tokens"]) == ("client_gone", 2)
    assert (record["outcome"], record["usageSource"], record["outputTokens"]) == ("client_gone", "counted", 2)


def test_draining_is_bounded_in_tokens_and_then_counted(served: Serve, customer_of: CustomerOf) -> None:
    customer = customer_of(
        served(TOLLKEEPER_METERING__ON_DISCONNECT="read_on", TOLLKEEPER_METERING__READ_ON_OUTPUT_TOKENS="20")
    )
    with customer.stream(customer.body({"chunk_interval_ms": 20, "output_tokens": 4000}, max_tokens=4000)) as wire:
        wire.read_events(2)
        request_id = wire.request_id
    record, upstream = customer.generation(request_id), customer.finished(request_id)
    assert upstream["outcome"] == "client_gone"
    assert (record["outcome"], record["usageSource"]) == ("client_gone", "counted")
    assert 20 < record["outputTokens"] <= upstream["usage"]["completion_tokens"] < 1000


def test_a_client_that_leaves_before_the_headers_pays_for_its_prompt(customer: Customer) -> None:
    before = customer.balance()
    with customer.stream(customer.body({"silent": "before_headers"}, max_tokens=50)):
        request_id = str(customer.only_upstream_request()["clientRequestId"])
        wait_until(lambda: customer.held() > 0, 5, "the hold stands")
    upstream = customer.finished(request_id)
    assert upstream["outcome"] == "client_gone"
    wait_until(lambda: customer.held() == 0, 5, "the hold is resolved")
    record = customer.generation(request_id)
    assert (record["outcome"], record["usageSource"], record["outputTokens"]) == ("client_gone", "counted", 0)
    assert before - customer.balance() == usd_to_charge((upstream["usage"]["prompt_tokens"], "0.15"), (0, "0.6"))


def test_an_answer_that_is_not_streamed_is_drained_and_charged(customer: Customer) -> None:
    before = customer.balance()
    body = customer.body({"latency_ms": 400, "output_tokens": 7}, max_tokens=50, stream=False)
    with customer.stream(body):
        request_id = str(customer.only_upstream_request()["clientRequestId"])
    record, upstream = customer.generation(request_id), customer.finished(request_id)
    assert (upstream["outcome"], upstream["usageSent"]["completion_tokens"]) == ("completed", 7)
    assert (record["outcome"], record["usageSource"], record["stream"]) == ("client_gone", "upstream", False)
    expected = usd_to_charge((upstream["usageSent"]["prompt_tokens"], "0.15"), (7, "0.6"))
    assert int(record["chargedMillicredits"]) == expected == before - customer.balance()


def test_a_client_that_leaves_after_the_end_has_paid_the_whole_answer(customer: Customer) -> None:
    with customer.stream(customer.body({"output_tokens": TOKENS}, max_tokens=50)) as wire:
        assert wire.read_all().clean
        request_id = wire.request_id
    record, upstream = customer.generation(request_id), customer.finished(request_id)
    assert (upstream["outcome"], record["outcome"], record["usageSource"]) == ("completed", "completed", "upstream")
    assert int(record["chargedMillicredits"]) == usd_to_charge(
        (upstream["usage"]["prompt_tokens"], "0.15"), (TOKENS, "0.6")
    )


def test_a_client_that_stops_reading_does_not_stop_others_and_pays_when_it_leaves(customer: Customer) -> None:
    wire = customer.stream(customer.body({"output_tokens": 16000}, max_tokens=16000, logprobs=True, top_logprobs=20))
    request_id = wire.request_id  # the head, and then nothing more is read: thirty megabytes pile up behind it
    assert customer.post(customer.body(max_tokens=5)).status_code == 200
    assert not customer.served(request_id)["finishedAt"]  # back-pressure reached the upstream
    wire.leave(rst=True)
    record, upstream = customer.generation(request_id), customer.finished(request_id)
    assert (upstream["outcome"], record["outcome"], record["usageSource"]) == ("client_gone", "client_gone", "counted")
    assert 0 < record["outputTokens"] <= upstream["usage"]["completion_tokens"] < 16000


@pytest.mark.parametrize("upstreams", [1, 2])
def test_who_leaves_while_an_upstream_error_arrives_owes_nothing(make_tollkeeper: Serve, upstreams: int) -> None:
    """Also where another upstream would be asked next."""
    upstream = RawUpstream()
    upstream.reply = b'HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n{"error":'
    upstream.hold_open = threading.Event()
    one = {"base_url": upstream.url, "api_key_variable": "OPENAI_API_KEY"}
    server = make_tollkeeper(TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url)
    if upstreams > 1:
        del server.environment["TOLLKEEPER_UPSTREAM__BASE_URL"]
        entries = [{"name": f"number{place}", **one} for place in range(upstreams)]
        server.environment["TOLLKEEPER_UPSTREAMS"] = json.dumps(entries)
    server.start()
    account = new_account(server, 1_000_000)
    try:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello " * 500}], "stream": True}
        with pytest.raises(httpx.TimeoutException):
            web.post(f"{server.v1}/chat/completions", json=body, headers=account.headers, timeout=0.7)
        wait_until(lambda: account.held() == 0, 10, "nothing is held")
        assert account.usage() == []
    finally:
        upstream.hold_open.set()
        upstream.close()


def test_function_tools_do_not_make_leaving_dearer(customer: Customer) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    counted = []
    for fields in ({}, {"tools": [tool]}):
        text = TEXT + sandbox_says(chunk_interval_ms=20, output_tokens=1_000)
        body = {"model": "gpt-4.1", "max_output_tokens": 2_000, "input": [{"role": "user", "content": text}], **fields}
        with customer.stream(body, "/v1/responses") as wire:
            wire.read_events(8)
            request_id = wire.request_id
        counted.append(customer.generation(request_id))
    assert [row["usageSource"] for row in counted] == ["counted", "counted"]
    assert abs(counted[1]["inputTokens"] - counted[0]["inputTokens"]) < 200
    assert all(int(row["chargedMillicredits"]) <= int(row["heldMillicredits"]) for row in counted)


PAGE = "data:application/pdf;base64,JVBERi0xLjQKJSVFT0YK"


@pytest.mark.parametrize("model", ["gpt-4.1", "gpt-4o-mini"])
def test_a_client_that_leaves_an_answer_about_a_file_pays_what_the_answer_cost(customer: Customer, model: str) -> None:
    """A file cannot be counted here, so the answer is read on to its usage: never the whole window for a page."""
    said = sandbox_says(output_tokens=100, chunk_interval_ms=20)
    page = {"type": "file", "file": {"filename": "a.pdf", "file_data": PAGE}}
    content = [{"type": "text", "text": said + "hi"}, page]
    body = {"model": model, "stream": True, "max_tokens": 200, "messages": [{"role": "user", "content": content}]}
    with customer.stream(body) as wire:
        wire.read_events(2)
        begun = wire.request_id
    record = customer.generation(begun)
    assert (record["usageSource"], record["outcome"], record["outputTokens"]) == ("upstream", "client_gone", 100)
    assert record["inputTokens"] < 2_000


@pytest.mark.parametrize(("calls", "fees"), [([], 0), (["web_search", "web_search"], 2)])
def test_a_client_that_leaves_pays_the_searches_that_were_made_and_none_that_were_offered(
    customer: Customer, calls: list[str], fees: int
) -> None:
    """A hosted tool that is merely offered costs nothing; one that was used is paid, though its user left."""
    said = sandbox_says(output_tokens=100, calls=calls, chunk_interval_ms=20)
    tools = [{"type": "web_search"}]
    body = {"model": "gpt-4.1", "stream": True, "store": False, "max_output_tokens": 500, "tools": tools, "input": said}
    with customer.stream(body, "/v1/responses") as wire:
        wire.read_events(3)
        begun = wire.request_id
    record = customer.generation(begun)
    usage = customer.finished(begun)["usage"]
    assert record["usageSource"] == "upstream"
    tokens = usd_to_charge((usage["input_tokens"], "2"), (usage["output_tokens"], "8"))
    assert int(record["chargedMillicredits"]) == tokens + fees * 10_000
