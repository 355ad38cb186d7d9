"""Every way in which an upstream can fail to finish its answer: what the client sees, and what it pays.

The sandbox sends one event for the role, one a token, one for the finish reason, then the usage chunk, then [DONE].
`hello` to a chat model is a prompt of 8 tokens: 3 for the message, `user`, `hello`, 3 to prime the answer.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import web
from tests.support.served import Customer, metric, usd_to_charge, wait_log
from tests.support.servers import SAMPLES, Serve, Tollkeeper, sandbox_says, wait_until
from tests.support.wire import Ended, events_of, text_of

TOKENS = 4
EVENTS = TOKENS + 2
PROMPT = 8
CHAT = "/v1/chat/completions"
ASKS = {"stream_options": {"include_usage": True}}

CustomerOf = Callable[[Tollkeeper], Customer]
Always = Callable[..., None]
NewCustomer = Callable[..., Customer]


def run(customer: Customer, body: dict[str, Any], **headers: str) -> tuple[Ended, dict[str, Any]]:
    """(what the client got of a 200, the ledger's record)."""
    with customer.stream(body, **headers) as wire:
        assert wire.answer.status == 200, wire.read_all()
        ended, request_id = wire.read_all(), wire.request_id
    return ended, customer.generation(request_id)


def assert_no_clean_end(ended: Ended) -> None:
    """Either the connection broke, or the last event is an error; in no case [DONE]."""
    assert b"[DONE]" not in ended.data
    if ended.clean:
        error = events_of(ended.data)[-1]["error"]
        assert set(error) >= {"message", "type", "param", "code"}
        assert error["code"] == "upstream_cut"


# -- cut ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rst", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("mid_chunk", [False, True], ids=["between", "mid_chunk"])
@pytest.mark.parametrize("events", range(EVENTS + 2))
def test_a_stream_that_the_upstream_cuts_costs_what_was_received(
    customer: Customer, events: int, mid_chunk: bool, rst: bool
) -> None:
    cut = {"after_chunks": events, "mid_chunk": mid_chunk, "rst": rst}
    ended, record = run(customer, customer.body({"cut": cut, "output_tokens": TOKENS}, max_tokens=50, **ASKS))
    served = customer.finished(record["requestId"])
    if events == EVENTS + 1:
        # the usage chunk and [DONE] were sent before the connection went: the answer is whole
        assert (record["usageSource"], record["outcome"], ended.clean) == ("upstream", "completed", True)
        assert ended.data.endswith(b"data: [DONE]\n\n")
        assert int(record["chargedMillicredits"]) == usd_to_charge(
            (served["usage"]["prompt_tokens"], "0.15"), (TOKENS, "0.6")
        )
        return
    assert_no_clean_end(ended)
    whole = ended.data[: ended.data.rfind(b"\n\n") + 2]
    received = [event for event in events_of(whole) if "error" not in event]
    shown = sum(bool(choice["delta"].get("content")) for event in received for choice in event["choices"])
    if not rst:  # a reset may overtake what was sent
        assert (len(received), shown) == (events, min(max(0, events - 1), TOKENS))
        assert served["usage"]["completion_tokens"] == shown
    assert (record["outcome"], record["usageSource"]) == ("upstream_cut" if shown else "insured", "counted")
    assert record["outputTokens"] == shown
    expected = usd_to_charge((served["usage"]["prompt_tokens"], "0.15"), (shown, "0.6")) if shown else 0
    assert int(record["chargedMillicredits"]) == expected


@pytest.mark.parametrize("rst", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_before_the_headers_is_a_502_that_costs_nothing(customer: Customer, stream: bool, rst: bool) -> None:
    before = customer.balance()
    answer = customer.post(customer.body({"cut": "before_headers", "rst": rst}, max_tokens=50, stream=stream))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_closed")
    assert customer.has_no_charge(answer.headers["x-request-id"])
    assert before - customer.balance() <= 3  # the marker of has_no_charge
    assert len(customer.sandbox.record()) == 2  # one of them is that marker: nothing was sent a second time


@pytest.mark.parametrize("where", ["after_headers", {"after_chunks": 1}])
def test_a_json_answer_that_is_cut_is_a_502_that_costs_nothing(customer: Customer, where: Any) -> None:
    answer = customer.post(customer.body({"cut": where}, max_tokens=50))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_closed")
    assert customer.has_no_charge(answer.headers["x-request-id"])


def test_a_cut_right_after_the_headers_shows_an_error_and_is_insured(customer: Customer) -> None:
    ended, record = run(customer, customer.body({"cut": "after_headers"}, max_tokens=50))
    assert_no_clean_end(ended)
    assert (record["outcome"], record["chargedMillicredits"]) == ("insured", "0")


@pytest.mark.parametrize(
    "cut", ["after_headers", {"after_chunks": 0}, {"after_chunks": 0, "mid_chunk": True}], ids=json.dumps
)
def test_a_stored_stream_that_is_cut_before_it_has_an_id_is_a_502(customer: Customer, cut: Any) -> None:
    said = sandbox_says(cut=cut, output_tokens=TOKENS)
    answer = customer.post(
        {"model": "gpt-4.1", "input": said, "max_output_tokens": 50, "stream": True}, "/v1/responses"
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_cut")
    assert customer.charged(answer.headers["x-request-id"]) == 0


def test_an_upstream_that_is_not_there_is_a_502_that_costs_nothing(served: Serve, customer_of: CustomerOf) -> None:
    customer = customer_of(served(TOLLKEEPER_UPSTREAM__BASE_URL="http://127.0.0.1:9/v1"))
    answer = customer.post(customer.body(max_tokens=50))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_connect")
    wait_until(lambda: customer.held() == 0, 5, "the hold is released")
    assert customer.balance() == 1_000_000_000


# -- silence --------------------------------------------------------------------------------------


@pytest.fixture
def impatient(served: Serve, customer_of: CustomerOf) -> Customer:
    """On a server that waits a second for anything, and 2.5 s for everything."""
    timeouts = {"FIRST_BYTE_TIMEOUT_SECONDS": "1.0", "IDLE_TIMEOUT_SECONDS": "1.0", "TOTAL_TIMEOUT_SECONDS": "2.5"}
    return customer_of(served(**{f"TOLLKEEPER_UPSTREAM__{name}": value for name, value in timeouts.items()}))


@pytest.mark.parametrize("stream", [False, True])
def test_silence_before_the_headers_is_a_504_that_costs_nothing(impatient: Customer, stream: bool) -> None:
    answer = impatient.post(impatient.body({"silent": "before_headers"}, max_tokens=50, stream=stream))
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_first_byte_timeout")
    assert impatient.finished(answer.headers["x-request-id"])["outcome"] == "client_gone"  # we hung up on it
    assert impatient.has_no_charge(answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("stream", "changes"),
    [(False, {}), (True, {"model": "gpt-5-mini"})],
    ids=["not streamed", "streamed, of a model that reasons"],
)
def test_what_was_begun_before_a_504_is_read_on_and_charged_by_its_usage(
    impatient: Customer, stream: bool, changes: dict[str, Any]
) -> None:
    late = impatient.body({"latency_ms": 1_500, "output_tokens": TOKENS}, stream=stream, **changes)
    late |= {"max_completion_tokens": 50}
    with web.client(base_url=impatient.server.url, headers=impatient.headers, timeout=20) as same:
        answer = same.post(CHAT, json=late)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_first_byte_timeout")
        assert answer.headers["x-should-retry"] == "false"
        assert same.post(CHAT, json=impatient.body(max_tokens=1)).status_code == 200  # the connection goes on meanwhile
    record = impatient.generation(answer.headers["x-request-id"])
    usage = impatient.finished(answer.headers["x-request-id"])["usage"]
    assert (record["usageSource"], record["outcome"]) == ("upstream", "client_gone")
    rates = ("0.25", "2") if changes else ("0.15", "0.6")
    due = usd_to_charge((usage["prompt_tokens"], rates[0]), (usage["completion_tokens"], rates[1]))
    assert int(record["chargedMillicredits"]) == due > 0


def test_a_late_error_costs_nothing(impatient: Customer) -> None:
    answer = impatient.post(impatient.body({"latency_ms": 1_500, "status": 500}, max_tokens=50))
    assert answer.status_code == 504
    assert impatient.has_no_charge(answer.headers["x-request-id"])


def test_silence_mid_stream_ends_in_an_error_and_costs_what_was_received(impatient: Customer) -> None:
    ended, record = run(
        impatient, impatient.body({"silent": {"after_chunks": 3}, "output_tokens": TOKENS}, max_tokens=50)
    )
    assert_no_clean_end(ended)
    served = impatient.finished(record["requestId"])
    assert (served["outcome"], served["usage"]["completion_tokens"]) == ("client_gone", 2)
    assert (record["outcome"], record["usageSource"], record["outputTokens"]) == ("upstream_cut", "counted", 2)
    assert int(record["chargedMillicredits"]) == usd_to_charge((served["usage"]["prompt_tokens"], "0.15"), (2, "0.6"))


def test_silence_inside_a_json_answer_is_a_504_that_costs_nothing(impatient: Customer) -> None:
    answer = impatient.post(impatient.body({"silent": {"after_chunks": 1}}, max_tokens=50))
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_idle_timeout")
    assert impatient.has_no_charge(answer.headers["x-request-id"])


def test_an_endless_stream_is_ended_at_the_total_timeout(impatient: Customer) -> None:
    body = impatient.body({"chunk_interval_ms": 50, "output_tokens": 2000}, max_tokens=2000)
    ended, record = run(impatient, body)
    assert_no_clean_end(ended)
    shown = sum(
        1 for event in events_of(ended.data) if event.get("choices") and event["choices"][0]["delta"].get("content")
    )
    assert 5 < shown < 1000
    assert (record["outcome"], record["usageSource"], record["outputTokens"]) == ("upstream_cut", "counted", shown)
    assert metric(impatient.server, "tollkeeper_upstream_errors_total", reason="total_timeout") >= 1


# -- an end that is none --------------------------------------------------------------------------


@pytest.mark.parametrize("events", [1, 2, 4])
def test_an_error_event_mid_stream_reaches_the_client_and_what_came_before_is_charged(
    customer: Customer, events: int
) -> None:
    ended, record = run(customer, customer.body({"error_after_chunks": events, "output_tokens": TOKENS}, max_tokens=50))
    found = events_of(ended.data)
    assert (len(found), found[-1]["error"]["type"]) == (events + 1, "server_error")
    served, shown = customer.finished(record["requestId"]), events - 1
    assert served["usage"]["completion_tokens"] == shown == record["outputTokens"]
    expected = usd_to_charge((served["usage"]["prompt_tokens"], "0.15"), (shown, "0.6")) if shown else 0
    assert (int(record["chargedMillicredits"]), record["usageSource"]) == (expected, "counted")
    assert record["outcome"] == ("upstream_error" if shown else "insured")


def test_a_stream_without_done_but_with_usage_is_a_whole_answer(customer: Customer) -> None:
    ended, record = run(customer, customer.body({"no_done": True, "output_tokens": TOKENS}, max_tokens=50, **ASKS))
    assert (ended.clean, events_of(ended.data)[-1]["usage"]["completion_tokens"]) == (True, TOKENS)
    assert (record["outcome"], record["usageSource"], record["outputTokens"]) == ("completed", "upstream", TOKENS)


def test_a_stream_without_done_and_without_usage_never_ends_cleanly(customer: Customer) -> None:
    ended, record = run(
        customer, customer.body({"no_done": True, "usage": None, "output_tokens": TOKENS}, max_tokens=50)
    )
    assert_no_clean_end(ended)
    assert (record["outcome"], record["usageSource"], record["outputTokens"]) == ("upstream_cut", "counted", TOKENS)


def test_without_the_insurance_an_answer_that_breaks_off_empty_costs_its_input(
    served: Serve, customer_of: CustomerOf
) -> None:
    customer = customer_of(served(TOLLKEEPER_METERING__ZERO_COMPLETION_INSURANCE="false"))
    ended, record = run(customer, customer.body({"cut": {"after_chunks": 1}}, model="gpt-4o", max_tokens=50))
    assert_no_clean_end(ended)
    prompt = customer.finished(record["requestId"])["usage"]["prompt_tokens"]
    assert (int(record["chargedMillicredits"]), record["outcome"]) == (usd_to_charge((prompt, "2.5")), "upstream_cut")


def test_an_empty_json_answer_that_ended_in_an_error_costs_nothing(customer: Customer, always: Always) -> None:
    always(text="", finish_reason="error")
    answer = customer.post(customer.body(model="gpt-4o", max_tokens=50))
    record = customer.generation(answer.headers["x-request-id"])
    assert (answer.headers["x-credits-charged"], record["outcome"], record["inputTokens"]) == ("0", "insured", PROMPT)


def test_an_empty_answer_that_ended_well_costs_its_input(customer: Customer, always: Always) -> None:
    always(text="")
    answer = customer.post(customer.body(model="gpt-4o", max_tokens=50))
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    assert answer.headers["x-credits-charged"] == "0.02"  # 8 x 2.5 = 20 millicredits


# -- usage that is odd ----------------------------------------------------------------------------

COUNTED = 60
"""gpt-4o: 8 x 2.5 + 4 x 10, the prompt and the answer as anyone can count them."""
BROKEN_USAGE = [
    None,
    {},
    [],
    "free",
    0,
    {"prompt_tokens": -8, "completion_tokens": 4, "total_tokens": -4},
    {"prompt_tokens": 8, "completion_tokens": -4, "total_tokens": 4},
    {"prompt_tokens": 10**12, "completion_tokens": 10**12, "total_tokens": 2 * 10**12},
    {"prompt_tokens": 8, "completion_tokens": 10**12, "total_tokens": 10**12 + 8},
    {"prompt_tokens": 10**30, "completion_tokens": 4, "total_tokens": 10**30},
    {"prompt_tokens": 8.0, "completion_tokens": 4.5, "total_tokens": 12.5},
    {"prompt_tokens": "8", "completion_tokens": "4", "total_tokens": "12"},
    {"prompt_tokens": True, "completion_tokens": True, "total_tokens": True},
    {"prompt_tokens": 8},
    {"completion_tokens": 4, "total_tokens": 4},
    {"prompt_tokens": 50, "completion_tokens": 10, "total_tokens": 20},
    {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12, "prompt_tokens_details": "none"},
]


@pytest.mark.parametrize("usage", BROKEN_USAGE, ids=json.dumps)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_usage_that_cannot_be_believed_is_counted(customer: Customer, always: Always, usage: Any, stream: bool) -> None:
    always(usage=usage, output_tokens=TOKENS)
    body = customer.body(model="gpt-4o", max_tokens=50)
    if stream:
        ended, record = run(customer, body)
        assert (ended.clean, ended.data.endswith(b"data: [DONE]\n\n")) == (True, True)
    else:
        answer = customer.post(body)
        assert answer.status_code == 200
        record = customer.generation(answer.headers["x-request-id"])
        assert answer.headers["x-credits-charged"] == str(COUNTED / 1000)
    assert (record["usageSource"], record["inputTokens"], record["outputTokens"]) == ("counted", PROMPT, TOKENS)
    assert (int(record["chargedMillicredits"]), record["outcome"]) == (COUNTED, "completed")


@pytest.mark.parametrize("asks", [True, False], ids=["asks for usage", "does not ask"])
@pytest.mark.parametrize("where", ["finish", "every", "last"])
def test_usage_is_taken_from_whichever_chunk_carries_it(
    customer: Customer, always: Always, where: str, asks: bool
) -> None:
    # 5 cached tokens, which nobody can count, prove that the upstream's own figures were used
    always(usage_on=where, output_tokens=TOKENS, usage_details={"cached_tokens": 5})
    ended, record = run(customer, customer.body(model="gpt-4o", max_tokens=50, **(ASKS if asks else {})))
    assert (ended.clean, ended.data.endswith(b"data: [DONE]\n\n")) == (True, True)
    # gpt-4o: 3 x 2.5 + 5 x 1.25 + 4 x 10 = 53.75
    assert (record["usageSource"], record["cachedTokens"], int(record["chargedMillicredits"])) == ("upstream", 5, 54)
    shown = sum(1 for event in events_of(ended.data) if isinstance(event, dict) and event["choices"])
    assert shown == EVENTS  # no chunk with output is ever hidden


def test_a_stream_that_breaks_after_its_usage_is_charged_by_it(customer: Customer) -> None:
    cut = {"cut": {"after_chunks": EVENTS - 1}, "usage_on": "every", "usage_details": {"cached_tokens": 5}}
    ended, record = run(customer, customer.body({**cut, "output_tokens": TOKENS}, model="gpt-4o", max_tokens=50))
    assert_no_clean_end(ended)
    assert (record["usageSource"], record["cachedTokens"], record["outputTokens"]) == ("upstream", 5, TOKENS)


def test_parts_of_usage_larger_than_the_whole_never_make_it_cheaper_than_free(
    customer: Customer, always: Always
) -> None:
    always(output_tokens=TOKENS, usage_details={"cached_tokens": 999, "cache_write_tokens": 999, "audio_tokens": -7})
    answer = customer.post(customer.body(model="gpt-4o", max_tokens=50))
    # all 8 are cached at most, and written at most; nothing is plain: 8 x 1.25 + 8 x 3.125 + 4 x 10 = 75
    assert answer.headers["x-credits-charged"] == "0.075"


def test_events_that_nobody_asked_for_are_passed_and_metered(customer: Customer, always: Always) -> None:
    always(replay="chat_stream_n2.sse")
    answer = customer.post(customer.body(model="gpt-4o", max_tokens=50))
    said = events_of((SAMPLES / "chat_stream_n2.sse").read_bytes())
    assert (answer.status_code, events_of(answer.content)) == (
        200,
        [*said[:-2], said[-1]],
    )  # its usage was not asked for
    record = customer.generation(answer.headers["x-request-id"])
    assert record["usageSource"] == "upstream"


# -- more than was agreed -------------------------------------------------------------------------


def over_the_cap(always: Always, customer: Customer, *, stream: bool) -> dict[str, Any]:
    """10 tokens are allowed, the upstream bills 100: gpt-4o 8 x 2.5 + 100 x 10 = 1,020 millicredits."""
    always(ignore_cap=True, output_tokens=100)
    body = customer.body(model="gpt-4o", max_tokens=10)
    if stream:
        return run(customer, body)[1]
    return customer.generation(customer.post(body).headers["x-request-id"])


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_output_above_the_cap_is_paid_where_there_is_money(customer: Customer, always: Always, stream: bool) -> None:
    record = over_the_cap(always, customer, stream=stream)
    assert (record["chargedMillicredits"], record["outputTokens"], record["usageSource"]) == ("1020", 100, "upstream")
    assert int(record["heldMillicredits"]) < 1020
    assert "platform_loss" not in customer.transfers(record["requestId"])


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_output_above_the_cap_empties_a_balance_and_the_rest_is_our_loss(
    served: Serve, new_customer: NewCustomer, always: Always, stream: bool
) -> None:
    server = served()
    loss_before = metric(server, "tollkeeper_platform_loss_credits_total")
    customer = new_customer(server, "0.8")
    record = over_the_cap(always, customer, stream=stream)
    assert record["chargedMillicredits"] == "800"
    assert (customer.balance(), customer.held()) == (0, 0)
    assert customer.transfers(record["requestId"]) == {
        "usage": (f"customer:{customer.account_id}", "revenue", 800),
        "platform_loss": ("platform_loss", "revenue", 220),
        "usage_cost": ("cogs", "payable:openai", 1020),
    }
    line = json.loads(wait_log(server, record["requestId"] + '","account'))
    assert (line["event"], line["account"], line["millicredits"]) == ("platform_loss", customer.account_id, 220)
    assert metric(server, "tollkeeper_platform_loss_credits_total") == pytest.approx(loss_before + 0.22)


def test_the_loss_never_takes_what_other_requests_hold(
    served: Serve, new_customer: NewCustomer, always: Always
) -> None:
    customer = new_customer(served(), "1.5")
    with customer.stream(customer.body({"silent": "after_headers"}, model="gpt-4o", max_tokens=10)) as other:
        held = int(1000 * float(str(other.header("x-credits-held"))))
        assert 1500 - 1020 < held < 1500
        record = over_the_cap(always, customer, stream=False)
        assert int(record["chargedMillicredits"]) == 1500 - held
        assert (customer.balance(), customer.held()) == (held, held)


# -- odd but right HTTP ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "directive",
    [
        {"informational": True},
        {"close_delimited": True},
        {"close_after": True},
        {"crlf_events": True},
        {"cr_events": True},
        *({"content_encoding": coding} for coding in ("gzip", "deflate")),
        {"content_encoding": "gzip", "split_bytes": 5, "cr_events": True},
        {"informational": True, "close_delimited": True, "crlf_events": True},
        *({"split_bytes": size} for size in range(1, 8)),
        {"split_bytes": 3, "crlf_events": True},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_odd_framing_changes_neither_bytes_nor_charge(
    customer: Customer, always: Always, directive: dict[str, Any], stream: bool
) -> None:
    always(output_tokens=TOKENS, usage_details={"cached_tokens": 5}, **directive)
    body = customer.body(model="gpt-4o", max_tokens=50)
    if stream:
        ended, record = run(customer, {**body, **ASKS})
        end = b"\r\n\r\n" if "crlf_events" in directive else b"\r\r" if "cr_events" in directive else b"\n\n"
        assert (ended.clean, ended.data.count(end)) == (True, EVENTS + 2)
        assert ended.data.endswith(b"data: [DONE]" + end)
        shown = text_of(ended.data)
    else:
        answer = customer.post(body)
        shown = answer.json()["choices"][0]["message"]["content"]
        record = customer.generation(answer.headers["x-request-id"])
    assert shown == customer.served(record["requestId"])["textSent"]
    assert (record["usageSource"], int(record["chargedMillicredits"])) == ("upstream", 54)


@pytest.mark.parametrize("size", [1, 5])
def test_the_usage_chunk_is_hidden_however_it_is_cut(customer: Customer, always: Always, size: int) -> None:
    always(output_tokens=TOKENS, split_bytes=size, crlf_events=True)
    ended, record = run(customer, customer.body(model="gpt-4o", max_tokens=50))
    assert (ended.clean, ended.data.count(b"\r\n\r\n"), b"prompt_tokens" in ended.data) == (True, EVENTS + 1, False)
    assert int(record["chargedMillicredits"]) == COUNTED
