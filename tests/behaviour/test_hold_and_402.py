"""What is held, what is sent upstream, what is refused and in which words. Amounts are worked out by hand.

`hello` to a chat model is a prompt of 8 tokens. gpt-4o costs 2.5 / 10 USD per million tokens, which is millicredits per
token; it has no price for cache writes, so a write would be 1.25 x 2.5 = 3.125, and that is what a prompt is held at.
N output tokens for `hello` are held at 25 + 10 x N millicredits once the prompt is counted, at (bytes of the body + 64)
x 3.125 + 10 x N while it is bounded by its bytes, and charged 20 + 10 x N.
"""

import base64
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.bodies import TEXT
from tests.support.served import Customer, metric, usd_to_charge
from tests.support.servers import Sandbox, Serve, Tollkeeper, sandbox_says, wait_until
from tests.support.wire import events_of

CustomerOf = Callable[[Tollkeeper], Customer]
NewCustomer = Callable[..., Customer]
Always = Callable[..., None]


def hello(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], **fields}


def sent_upstream(customer: Customer, answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(customer.served(answer.headers["x-request-id"])["requestBodyBase64"])


def refused(answer: httpx.Response) -> dict[str, Any]:
    """The error of a 402, after checking that both levels say the same."""
    assert answer.status_code == 402, answer.text
    body = answer.json()
    assert set(body) - {"error"} == {
        *(
            "requiredCredits",
            "currentCredits",
            "heldCredits",
            "availableCredits",
            "limitSource",
            "affordableOutputTokens",
            "topUpUrl",
        ),
        *(("keyLimitRemainingCredits", "keyLimitResetsAt") if body["limitSource"] == "key_limit" else ()),
    }
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"} | (set(body) - {"error"})
    assert (error["type"], error["param"], error["code"]) == ("insufficient_credits", None, "insufficient_credits")
    assert {name: error[name] for name in set(body) - {"error"}} == {name: body[name] for name in set(body) - {"error"}}
    assert (answer.headers["x-should-retry"], answer.headers["content-type"]) == ("false", "application/json")
    assert answer.headers["x-request-id"].startswith("req_")
    found: dict[str, Any] = error
    return found


# -- 402 ------------------------------------------------------------------------------------------


def test_a_402_says_what_is_needed_there_and_affordable(served: Serve, new_customer: NewCustomer, sandbox: Any) -> None:
    customer = new_customer(served(), "1")
    before = metric(customer.server, "billing_402_insufficient_credits_total", source="balance")
    answer = customer.post(hello(max_tokens=5000))
    error = refused(answer)
    assert {name: value for name, value in answer.json().items() if name != "error"} == {
        "requiredCredits": 50.025,  # 25 + 10 x 5000 = 50,025 millicredits
        "currentCredits": 1,
        "heldCredits": 0,
        "availableCredits": 1,
        "limitSource": "balance",
        "affordableOutputTokens": 97,  # (1000 - 25) / 10
        "topUpUrl": f"{customer.server.url}/credits",  # a link that works where it is shown
    }
    assert "50.025 credits" in error["message"]
    assert "97 output tokens" in error["message"]
    assert error["message"].endswith(f" Top up: {customer.server.url}/credits")
    assert "retry-after" not in answer.headers
    assert sandbox.record() == []
    wait_until(
        lambda: metric(customer.server, "billing_402_insufficient_credits_total", source="balance") == before + 1,
        5,
        "counted",
    )


@pytest.mark.parametrize(
    "fields", [{}, {"n": 3}, {"prediction": {"type": "content", "content": "a b c"}}], ids=["plain", "n", "prediction"]
)
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini", "gpt-5-mini"])
def test_what_a_402_calls_affordable_is_then_served(
    served: Serve, new_customer: NewCustomer, sandbox: Any, model: str, fields: dict[str, Any]
) -> None:
    customer = new_customer(served(), "1")
    first = refused(customer.post(hello(model=model, max_completion_tokens=15_000, **fields)))
    affordable = first["affordableOutputTokens"]
    assert affordable > 20
    # a hundredth more is too dear: the figure is not a guess to be safe with
    refused(customer.post(hello(model=model, max_completion_tokens=affordable + affordable // 100 + 2, **fields)))
    assert sandbox.record() == []
    answer = customer.post(hello(model=model, max_completion_tokens=affordable, **fields))
    assert answer.status_code == 200, answer.text
    assert json.loads(sent_upstream(customer, answer))["max_completion_tokens"] == affordable


def test_a_402_blames_holds_in_flight_when_only_they_are_in_the_way(
    served: Serve, new_customer: NewCustomer, sandbox: Any
) -> None:
    customer = new_customer(served(), "2")
    with customer.stream(customer.body({"silent": "after_headers"}, model="gpt-4o", max_tokens=50)) as first:
        held = int(1000 * float(str(first.header("x-credits-held"))))
        assert customer.held() == held
        answer = customer.post(hello(max_tokens=180))  # 1,825 of 2,000
        error = refused(answer)
        assert (error["limitSource"], error["requiredCredits"]) == ("in_flight", 1.825)
        assert (error["currentCredits"], error["heldCredits"], error["availableCredits"]) == (
            2,
            held / 1000,
            (2000 - held) / 1000,
        )
        assert error["affordableOutputTokens"] == (2000 - held - 25) // 10
        assert "in flight" in error["message"]
        assert int(answer.headers["retry-after"]) >= 1
        refused(customer.post(hello(max_tokens=500)))  # 5,025: no waiting would help
        answer = customer.post(hello(max_tokens=500))
        assert (refused(answer)["limitSource"], "retry-after" in answer.headers) == ("balance", False)
    wait_until(lambda: customer.held() == 0, 5, "the first has ended")
    assert customer.balance() >= 1825
    assert customer.post(hello(max_tokens=180)).status_code == 200


def test_a_402_blames_the_keys_own_limit(served: Serve, new_customer: NewCustomer, sandbox: Any) -> None:
    customer = new_customer(served(), "100", spend_limit=500, spend_period="month")
    answer = customer.post(hello(max_tokens=200))  # 2,025
    error = refused(answer)
    assert (error["limitSource"], error["requiredCredits"], error["currentCredits"]) == ("key_limit", 2.025, 100)
    assert error["affordableOutputTokens"] == 47  # (500 - 25) / 10
    assert error["keyLimitRemainingCredits"] == 0.5
    resets = datetime.fromisoformat(error["keyLimitResetsAt"])
    assert (resets.day, resets.hour, resets.minute, resets.second) == (1, 0, 0, 0)
    assert timedelta(0) < resets - datetime.now(UTC) <= timedelta(days=31)
    assert "retry-after" not in answer.headers
    assert customer.post(hello(max_tokens=47)).status_code == 200


def test_an_empty_account_affords_nothing(served: Serve, new_customer: NewCustomer, sandbox: Any) -> None:
    customer = new_customer(served(), "0")
    error = refused(customer.post(hello()))
    assert (error["affordableOutputTokens"], error["currentCredits"], error["limitSource"]) == (0, 0, "balance")
    assert error["requiredCredits"] == 0.185  # the least that would be served: 25 + 10 x 16
    refused(customer.post({"model": "text-embedding-3-small", "input": "hello"}, path="/v1/embeddings"))
    assert sandbox.record() == []


# -- clamping -------------------------------------------------------------------------------------


def test_without_a_maximum_the_answer_is_clamped_to_what_is_affordable(
    served: Serve, new_customer: NewCustomer, always: Always
) -> None:
    always(output_tokens=500)
    customer = new_customer(served(), "1")
    answer = customer.post(hello())
    sent = json.loads(sent_upstream(customer, answer))
    assert sent["max_completion_tokens"] == 97  # (1000 - 25) / 10
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert (answer.headers["x-credits-charged"], answer.headers["x-credits-remaining"]) == ("0.99", "0.01")
    assert answer.headers["x-credits-output-cap"] == "97"  # nobody has to guess why it is short
    assert customer.balance() == 10  # 20 + 97 x 10 were charged


def test_the_clamp_is_per_choice(served: Serve, new_customer: NewCustomer, sandbox: Any) -> None:
    customer = new_customer(served(), "1")
    answer = customer.post(hello(n=4))
    assert json.loads(sent_upstream(customer, answer))["max_completion_tokens"] == 24  # 97 / 4


def test_the_clamp_stops_at_min_output_tokens(served: Serve, new_customer: NewCustomer, sandbox: Any) -> None:
    customer = new_customer(served(), "0.184")  # 16 tokens are 185
    error = refused(customer.post(hello()))
    assert (error["requiredCredits"], error["affordableOutputTokens"]) == (0.185, 15)
    assert sandbox.record() == []
    # whoever asks for so few explicitly gets them
    assert customer.post(hello(max_tokens=15)).status_code == 200
    exact = new_customer(served(), "0.185")
    assert json.loads(sent_upstream(exact, exact.post(hello())))["max_completion_tokens"] == 16


def test_the_clamp_keeps_to_the_keys_limit_as_well(served: Serve, new_customer: NewCustomer, sandbox: Any) -> None:
    customer = new_customer(served(), "100", spend_limit=1000, spend_period="total")
    assert json.loads(sent_upstream(customer, customer.post(hello())))["max_completion_tokens"] == 97


def test_where_there_is_money_nothing_is_clamped(customer: Customer) -> None:
    answer = customer.post(hello())
    assert not {"max_completion_tokens", "max_tokens"} & set(json.loads(sent_upstream(customer, answer)))
    assert "x-credits-output-cap" not in answer.headers
    # the whole maximum of gpt-4o was held for it: 16,384 tokens
    held = int(customer.generation(answer.headers["x-request-id"])["heldMillicredits"])
    assert held == usd_to_charge((len(answer.request.content) + 64, "3.125"), (16_384, "10"))


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_an_explicit_maximum_is_never_changed(
    served: Serve, new_customer: NewCustomer, sandbox: Any, field: str
) -> None:
    customer = new_customer(served(), "1")
    refused(customer.post(hello(**{field: 98})))
    assert sandbox.record() == []
    sent = json.loads(sent_upstream(customer, customer.post(hello(**{field: 97}))))
    assert {name: sent[name] for name in sent if name.startswith("max_")} == {field: 97}


def test_a_maximum_above_the_models_own_is_refused(customer: Customer) -> None:
    answer = customer.post(hello(max_tokens=16_385))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_completion_tokens")


# -- bounds ---------------------------------------------------------------------------------------


def held_for(customer: Customer, body: dict[str, Any], path: str = "/v1/chat/completions") -> tuple[int, int]:
    """(held millicredits, bytes of the body)."""
    answer = customer.post(body, path)
    assert answer.status_code == 200, answer.text
    record = customer.generation(answer.headers["x-request-id"])
    assert int(record["chargedMillicredits"]) <= int(record["heldMillicredits"])
    return int(record["heldMillicredits"]), len(answer.request.content)


def test_every_choice_is_held_for(customer: Customer) -> None:
    held, size = held_for(customer, hello(n=3, max_tokens=7))
    assert held == usd_to_charge((size + 64, "3.125"), (21, "10"))


def test_a_prediction_is_held_for_as_output(customer: Customer) -> None:
    prediction = {"type": "content", "content": "x" * 100}
    held, size = held_for(customer, hello(prediction=prediction, max_tokens=7))
    assert held >= usd_to_charge((size, "3.125"), (107, "10"))


def test_best_of_and_many_prompts_are_held_for(customer: Customer) -> None:
    body = {"model": "gpt-3.5-turbo-instruct", "prompt": ["a", "b"], "max_tokens": 5, "n": 2, "best_of": 4}
    held, size = held_for(customer, body, "/v1/completions")
    assert held == usd_to_charge((size + 64, "1.875"), (5 * 4 * 2, "2"))
    # max_tokens is 16 where it is absent
    held, size = held_for(customer, {"model": "gpt-3.5-turbo-instruct", "prompt": "a"}, "/v1/completions")
    assert held == usd_to_charge((size + 64, "1.875"), (16, "2"))


def test_many_embedding_inputs_are_charged_in_full_though_each_has_its_own_window(customer: Customer) -> None:
    # 30 inputs of 1,000 tokens: far above the 8,192 of one window
    body = {"model": "text-embedding-3-large", "input": [" hello" * 1000] * 30}
    answer = customer.post(body, path="/v1/embeddings")
    record = customer.generation(answer.headers["x-request-id"])
    assert answer.json()["usage"]["prompt_tokens"] == 30_000
    # text-embedding-3-large: 0.13
    assert (record["usageSource"], record["inputTokens"], record["chargedMillicredits"]) == ("upstream", 30_000, "3900")
    assert int(record["heldMillicredits"]) >= 3900


def test_many_legacy_prompts_are_charged_in_full(customer: Customer) -> None:
    body = {"model": "gpt-3.5-turbo-instruct", "prompt": [" hello" * 1000] * 12, "max_tokens": 1}
    answer = customer.post(body, path="/v1/completions")
    record = customer.generation(answer.headers["x-request-id"])
    assert (record["usageSource"], record["inputTokens"], record["outputTokens"]) == ("upstream", 12_000, 12)
    assert int(record["chargedMillicredits"]) == 18_024 <= int(record["heldMillicredits"])  # 12,000 x 1.5 + 12 x 2


TEXTS = {
    "ascii": "The quick brown fox. " * 50,
    "digits": "1234567890" * 80,
    "cjk": "漢字かな交じり文を数える。" * 60,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪" * 40,
    "one letter": "a" * 5000,
    "blanks": " " * 5000,
    "newlines": "\n\r\n\t" * 500,
    "escapes": '\\"\\n\u0000\u0007\u001b' * 200,
    "special tokens": "<|endoftext|><|im_start|>system<|im_end|>" * 40,
    "rare": "".join(map(chr, range(0x1F300, 0x1F600))),
    "combining": "e\u0301\u0302\u0303" * 300,
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("asked", [True, False], ids=["bytes", "counted"])
def test_the_hold_covers_what_the_upstream_bills(
    served: Serve, new_customer: NewCustomer, customer: Customer, name: str, asked: bool
) -> None:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": TEXTS[name]}], "max_tokens": 1}
    if not asked:
        # just enough for the counted prompt, not for its bytes: what the upstream counts is the upper bound to meet
        probe = customer.post(body).json()["usage"]["prompt_tokens"]
        customer = new_customer(served(), str((usd_to_charge((probe + 4, "3.125"), (1, "10"))) / 1000))
    answer = customer.post(body)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    record = customer.generation(answer.headers["x-request-id"])
    assert int(record["heldMillicredits"]) >= int(record["chargedMillicredits"])
    assert int(record["chargedMillicredits"]) == usd_to_charge(
        (usage["prompt_tokens"], "2.5"), (usage["completion_tokens"], "10")
    )


def test_the_hold_covers_tools_and_many_messages(customer: Customer) -> None:
    properties = {
        f"field_{i}": {"type": "string", "description": "what it is " * 3, "enum": ["a", "b"]} for i in range(20)
    }
    tool = {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": properties}},
    }
    messages = [{"role": role, "content": "x"} for role in ("system", "user", "assistant") * 100] + [
        {"role": "user", "content": ""}
    ]
    answer = customer.post({"model": "gpt-4o", "messages": messages, "tools": [tool] * 3, "max_tokens": 1})
    record = customer.generation(answer.headers["x-request-id"])
    assert int(record["heldMillicredits"]) >= usd_to_charge((answer.json()["usage"]["prompt_tokens"], "2.5"), (1, "10"))


@pytest.mark.parametrize(("tokens", "prices"), [(272_000, ("5", "30")), (272_001, ("10", "45"))])
def test_one_token_over_long_context_makes_the_whole_request_dear(
    customer: Customer, always: Always, tokens: int, prices: tuple[str, str]
) -> None:
    always(usage={"prompt_tokens": tokens, "completion_tokens": 10, "total_tokens": tokens + 10})
    answer = customer.post(hello(model="gpt-5.5", max_completion_tokens=20))
    assert float(answer.headers["x-credits-charged"]) * 1000 == usd_to_charge((tokens, prices[0]), (10, prices[1]))


# -- service tiers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "sent", "prices"),
    [
        (None, "default", ("0.15", "0.6")),
        ("auto", "default", ("0.15", "0.6")),
        ("default", "default", ("0.15", "0.6")),
        ("priority", "priority", ("0.25", "1")),
        ("fast", "fast", ("0.25", "1")),
    ],
)
def test_an_explicit_tier_is_always_sent_and_the_echo_priced(
    customer: Customer, asked: str | None, sent: str, prices: tuple[str, str]
) -> None:
    answer = customer.post(
        hello(model="gpt-4o-mini", max_tokens=9, **({} if asked is None else {"service_tier": asked}))
    )
    assert json.loads(sent_upstream(customer, answer))["service_tier"] == sent
    record, usage = customer.generation(answer.headers["x-request-id"]), answer.json()["usage"]
    assert int(record["chargedMillicredits"]) == usd_to_charge((8, prices[0]), (usage["completion_tokens"], prices[1]))
    assert record["serviceTier"] == answer.json()["service_tier"]


def test_a_downgrade_is_charged_at_the_lower_price(customer: Customer, always: Always) -> None:
    always(service_tier="default", output_tokens=9)
    answer = customer.post(hello(max_tokens=9, service_tier="priority"))
    assert answer.headers["x-credits-charged"] == "0.11"  # 20 + 90; priority would be 8 x 4.25 + 9 x 17


def test_an_unknown_tier_or_model_in_the_echo_is_charged_as_asked(customer: Customer, always: Always) -> None:
    always(service_tier="platinum", model="gpt-99", output_tokens=9)
    assert customer.post(hello(max_tokens=9)).headers["x-credits-charged"] == "0.11"


@pytest.mark.parametrize(("tier", "status"), [("flex", 400), ("scale", 400), ("ultrafast", 403), ("", 400), (7, 400)])
def test_a_tier_that_is_not_sold_is_refused_before_any_call(customer: Customer, tier: Any, status: int) -> None:
    answer = customer.post(hello(max_tokens=9, service_tier=tier))
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, "service_tier")
    assert customer.sandbox.record() == []


# -- bytes ----------------------------------------------------------------------------------------

ODD = (
    b'{ "messages" : [ {"role":"user", "content":"h\\u00e9llo \\ud83d\\ude00 \xc3\xa9", "name": "n"} ],\n\t"temperature":1.50e0,'
    b'"model":"gpt-4o" , "max_tokens" : 9, "metadata":{"b":"1","a":"2"},"stop":null%s}'
)


def test_a_body_that_lacks_nothing_goes_upstream_byte_for_byte(customer: Customer) -> None:
    body = ODD % b', "service_tier":"default"'
    assert sent_upstream(customer, customer.post(body)) == body
    streamed = body.replace(b'"stop":null', b'"stream":true,"stream_options":{"include_usage":true}')
    assert sent_upstream(customer, customer.post(streamed)) == streamed


def test_members_are_added_and_the_rest_stays_byte_for_byte(customer: Customer) -> None:
    body = ODD % b', "stream": true'
    sent = sent_upstream(customer, customer.post(body))
    assert sent.startswith(b"{")
    assert sent.endswith(body[1:])
    assert json.loads(sent) == {
        **json.loads(body),
        "service_tier": "default",
        "stream_options": {"include_usage": True},
    }


def test_a_member_that_must_change_leaves_the_others_values_byte_for_byte(customer: Customer) -> None:
    options = b'"stream_options": {"include_usage": false, "include_obfuscation" : false}'
    body = ODD % (b', "service_tier":"auto", "stream": true, ' + options)
    sent = sent_upstream(customer, customer.post(body))
    assert json.loads(sent) == {
        **json.loads(body),
        "service_tier": "default",
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    }
    for kept in (
        b'[ {"role":"user", "content":"h\\u00e9llo \\ud83d\\ude00 \xc3\xa9", "name": "n"} ]',
        b"1.50e0",
        b'{"b":"1","a":"2"}',
    ):
        assert kept in sent


def test_member_names_cannot_break_out_of_their_object(customer: Customer) -> None:
    name = 'a":1},"n":7,"store":true,"x":{"b'
    body = hello(max_tokens=9, stream=True, stream_options={name: 1})
    sent = json.loads(sent_upstream(customer, customer.post(body)))
    assert sent == {**body, "service_tier": "default", "stream_options": {"include_usage": True, name: 1}}


CHAT = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}],"max_tokens":9%s}'


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (CHAT % b',"max_tokens":1000', "max_tokens", "duplicate_parameter"),
        (CHAT % b', "model": "gpt-4o-mini"', "model", "duplicate_parameter"),
        (CHAT % b',"max_token\\u0073":1000', "max_tokens", "duplicate_parameter"),
        (CHAT % b',"stream":true,"stream":false', "stream", "duplicate_parameter"),
        (CHAT % b',"surprise":1', "surprise", "unknown_parameter"),
        (CHAT % b',"Max_Tokens":1', "Max_Tokens", "unknown_parameter"),
        (CHAT % b',"previous_response_id":"resp_1"', "previous_response_id", "unknown_parameter"),
        (CHAT % b',"n":"2"', "n", "invalid_type"),
        (CHAT % b',"n":2.5', "n", "invalid_type"),
        (CHAT % b',"n":true', "n", "invalid_type"),
        (CHAT % b',"n":0', "n", "invalid_value"),
        (CHAT % b',"n":-1', "n", "invalid_value"),
        (CHAT % b',"n":129', "n", "invalid_value"),
        (CHAT % b',"n":1000000000000000000000000000000', "n", "invalid_value"),
        (CHAT % b',"stream":"yes"', "stream", "invalid_type"),
        (CHAT % b',"tools":[{"type":"mcp","server_url":"x"}]', "tools", "invalid_value"),
        (CHAT % b',"tools":5', "tools", "invalid_type"),
        (CHAT.replace(b'"max_tokens":9', b'"max_tokens":0') % b"", "max_completion_tokens", "invalid_value"),
        (CHAT.replace(b'"max_tokens":9', b'"max_tokens":-9') % b"", "max_completion_tokens", "invalid_value"),
        (CHAT.replace(b'"gpt-4o"', b"7") % b"", "model", "invalid_type"),
        (CHAT.replace(b'"model":"gpt-4o",', b"") % b"", "model", "missing_required_parameter"),
        (CHAT.replace(b'{"role":"user","content":"hello"}', b"") % b"", "messages", "invalid_value"),
        (CHAT.replace(b'"hello"', b"7") % b"", "messages", "invalid_type"),
        (b"", None, "invalid_json"),
        (b"null", None, "invalid_json"),
        (b"[]", None, "invalid_json"),
        (b'"text"', None, "invalid_json"),
        (CHAT[:-3], None, "invalid_json"),
        (CHAT % b"" + b"{}", None, "invalid_json"),
        (CHAT % b',"temperature":NaN', None, "invalid_json"),
        ((CHAT % b"").replace(b"hello", b"\xff\xfe"), None, "invalid_json"),
        (b"[" * 100_000, None, "invalid_json"),
        (CHAT % (b',"metadata":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000), None, "invalid_json"),
    ],
    ids=lambda value: repr(value)[-60:],
)
def test_a_body_that_cannot_be_priced_is_refused_before_any_call(
    customer: Customer, body: bytes, param: str | None, code: str
) -> None:
    before = customer.balance()
    answer = customer.post(body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert len(error["message"]) < 1000
    assert (customer.sandbox.record(), customer.balance(), customer.held()) == ([], before, 0)


def test_an_object_of_the_shared_account_is_not_reachable(customer: Customer) -> None:
    for part in ({"type": "file", "file": {"file_id": "file-1"}},):
        answer = customer.post({"model": "gpt-4o", "messages": [{"role": "user", "content": [part]}], "max_tokens": 9})
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "messages")
    message = {"role": "assistant", "audio": {"id": "audio_1"}}
    assert customer.post({"model": "gpt-4o", "messages": [message], "max_tokens": 9}).status_code == 404
    assert customer.sandbox.record() == []


# -- models ---------------------------------------------------------------------------------------


def assert_no_such_model(customer: Customer, model: str, path: str = "/v1/chat/completions") -> None:
    body: dict[str, Any] = {"model": model, "max_tokens": 9}
    body |= {"messages": [{"role": "user", "content": "hello"}]} if "chat" in path else {"prompt": "hello"}
    answer = customer.post(body, path)
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]) == (
        404,
        "model_not_found",
        "model",
    )
    assert customer.sandbox.record() == []


@pytest.mark.parametrize(
    "model", ["gpt-99", "", "GPT-4O", "gpt-4o ", "../gpt-4o", "gpt-6.2-astra-law", "gpt-4o\u0000", "x" * 100_000]
)
def test_a_model_without_a_price_is_refused(customer: Customer, model: str) -> None:
    assert_no_such_model(customer, model)


def test_a_model_is_refused_where_its_price_does_not_hold(customer: Customer) -> None:
    assert_no_such_model(customer, "text-embedding-3-small")
    assert_no_such_model(customer, "gpt-4o", "/v1/completions")


def test_a_key_with_a_model_list_gets_those_and_no_others(
    served: Serve, new_customer: NewCustomer, sandbox: Any
) -> None:
    customer = new_customer(served(), "100", models=("gpt-4o-*", "gpt-5-mini"))
    assert_no_such_model(customer, "gpt-4o")
    assert customer.post(hello(model="gpt-4o-mini", max_tokens=9)).status_code == 200
    listed = web.get(f"{customer.server.v1}/models", headers=customer.headers, timeout=10).json()["data"]
    assert {"gpt-4o-mini", "gpt-5-mini"} <= {row["id"] for row in listed}
    assert all(row["id"].startswith("gpt-4o-") or row["id"] == "gpt-5-mini" for row in listed)


@pytest.fixture
def picky(served: Serve, customer_of: CustomerOf) -> Customer:
    """On a server with an allowlist that rounds up to whole credits."""
    return customer_of(
        served(TOLLKEEPER_BILLING__ROUNDING_MODE="ceil", TOLLKEEPER_BILLING__MODEL_ALLOWLIST='["gpt-4o", "gpt-4.1*"]')
    )


def test_a_model_outside_the_allowlist_is_refused(picky: Customer) -> None:
    assert_no_such_model(picky, "gpt-4o-mini")
    assert picky.post(hello(model="gpt-4.1-mini", max_tokens=9)).status_code == 200
    listed = web.get(f"{picky.server.v1}/models", headers=picky.headers, timeout=10).json()["data"]
    assert {row["id"] for row in listed} >= {"gpt-4o", "gpt-4.1", "gpt-4.1-mini"}
    assert "gpt-4o-mini" not in {row["id"] for row in listed}


# -- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "charged"), [(1, 1000), (98, 1000), (99, 2000), (198, 2000)])
def test_rounding_up_to_the_credit(picky: Customer, always: Always, tokens: int, charged: int) -> None:
    always(output_tokens=tokens)
    before = picky.balance()
    answer = picky.post(hello(max_tokens=500))
    assert answer.json()["usage"]["completion_tokens"] == tokens  # 20 + 10 x tokens
    assert answer.headers["x-credits-charged"] == str(charged // 1000)
    assert before - picky.balance() == charged


def test_charging_off_and_free_serves_records_and_charges_nothing(
    served: Serve, new_customer: NewCustomer, sandbox: Any
) -> None:
    server = served(TOLLKEEPER_BILLING__CHARGING_ENABLED="false", TOLLKEEPER_BILLING__CHARGING_DISABLED_MODE="free")
    customer = new_customer(server, "0")
    answer = customer.post(hello(max_tokens=500))
    assert (answer.status_code, answer.headers["x-credits-charged"]) == (200, "0")
    record = customer.generation(answer.headers["x-request-id"])
    assert (record["free"], record["chargedMillicredits"], record["usageSource"]) == (True, "0", "upstream")
    assert (record["inputTokens"], record["outputTokens"]) == (8, answer.json()["usage"]["completion_tokens"])
    assert "usage" not in customer.transfers(answer.headers["x-request-id"])
    with customer.stream(hello(max_tokens=500)) as wire:
        assert (wire.header("x-credits-held"), wire.read_all().clean) == ("0", True)
        assert customer.generation(wire.request_id)["free"]
    assert customer.balance() == 0


def test_charging_off_and_block_serves_nothing_and_says_so(served: Serve, customer_of: CustomerOf) -> None:
    customer = customer_of(
        served(TOLLKEEPER_BILLING__CHARGING_ENABLED="false", TOLLKEEPER_BILLING__CHARGING_DISABLED_MODE="block")
    )
    answer = customer.post(hello(max_tokens=500))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "charging_paused")
    assert "paused" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) > 0
    assert customer.sandbox.record() == []


# -- what an answer says of its cost --------------------------------------------------------------


def test_a_stream_says_up_front_what_is_held(customer: Customer) -> None:
    with customer.stream(customer.body({"silent": "after_headers"}, model="gpt-4o", max_tokens=9)) as wire:
        size = customer.only_upstream_request()["requestBodyBytes"]
        held = int(1000 * float(str(wire.header("x-credits-held"))))
        added = len(b'"service_tier":"default","stream_options":{"include_usage":true},')
        assert held == usd_to_charge((size - added + 64, "3.125"), (9, "10")) == customer.held()
        assert wire.request_id.startswith("req_")


def test_a_client_that_asks_gets_its_cost_in_the_last_usage_chunk(customer: Customer) -> None:
    body = hello(max_tokens=9, stream_options={"include_usage": True})
    with customer.stream(body, x_credits_usage="1") as wire:
        data, request_id = wire.read_all().data, wire.request_id
    *_, usage_chunk, done = events_of(data)
    assert done == "[DONE]"
    # 20 + 9 x 10 = 110 millicredits
    assert usage_chunk["usage"]["cost_credits"] == 0.11
    assert customer.charged(request_id) == 110
    assert {**usage_chunk["usage"], "cost_credits": None} == {
        **customer.served(request_id)["usageSent"],
        "cost_credits": None,
    }
    with customer.stream(body) as wire:
        assert b"cost_credits" not in wire.read_all().data


@pytest.mark.parametrize("where", ["every", "finish"])
def test_a_cost_in_the_stream_never_breaks_it(customer: Customer, where: str) -> None:
    text = "hello " + sandbox_says(usage_on=where)
    body = {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 9,
        "stream_options": {"include_usage": True},
    }
    with customer.stream(body, x_credits_usage="1") as wire:
        ended = wire.read_all()
    assert ended.clean
    assert events_of(ended.data)[-1] == "[DONE]"  # and every event before it was JSON


def test_an_answer_says_what_it_cost_what_remains_and_who_it_is(
    served: Serve, new_customer: NewCustomer, always: Always
) -> None:
    always(output_tokens=9)
    customer = new_customer(served(), "10")
    answer = customer.post(hello(max_tokens=9))
    assert (answer.headers["x-credits-charged"], answer.headers["x-credits-remaining"]) == ("0.11", "9.89")
    assert customer.balance() == 9_890
    request_id = answer.headers["x-request-id"]
    upstream = customer.served(request_id)
    record = customer.generation(request_id)
    expected = {
        "requestId": request_id,
        "endpoint": "/v1/chat/completions",
        "model": "gpt-4o",
        "billedModel": "gpt-4o",
        "serviceTier": "default",
        "stream": False,
        "inputTokens": 8,
        "outputTokens": 9,
        "cachedTokens": 0,
        "chargedMillicredits": "110",
        "chargedCredits": 0.11,
        "usageSource": "upstream",
        "outcome": "completed",
        "free": False,
        "status": 200,
        "upstreamId": answer.json()["id"],
    }
    assert {name: record[name] for name in expected} == expected
    assert record["rates"]["usdPerMillionTokens"] == {"input": "2.5", "cached_input": "1.25", "output": "10"}
    assert record["rates"]["rateCardId"].startswith("openai-")
    assert upstream["clientRequestId"] == request_id


def test_the_record_of_a_request_is_its_owners_alone(
    served: Serve, new_customer: NewCustomer, customer: Customer
) -> None:
    request_id = customer.post(hello(max_tokens=9)).headers["x-request-id"]
    customer.generation(request_id)
    other = new_customer(served(), "1")
    answer = web.get(f"{other.server.url}/api/billing/generations/{request_id}", headers=other.headers, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "request_not_found")


@pytest.mark.parametrize("text", ["data: " + TEXT, TEXT])
def test_a_poor_account_cannot_spend_beyond_its_credits(
    text: str, served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer]
) -> None:
    poor = new_customer(served(), "0.5")
    answer = poor.post(
        {"model": "gpt-4.1", "max_output_tokens": 16, "input": [{"role": "user", "content": text}]}, "/v1/responses"
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "insufficient_credits")
    assert poor.balance() == 500


@pytest.mark.parametrize(
    "model", ["ft:gpt-4o-mini-2024-07-18:acme\0::x", "gpt-4o\n", "gpt-4o mini", "ft:gpt-4o:ü::x", "g" * 121]
)
def test_a_model_name_is_plain_or_unknown(customer: Customer, sandbox: Sandbox, model: str) -> None:
    sandbox.clear()
    answer = customer.post({"model": model, "messages": [{"role": "user", "content": "hi"}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert sandbox.record() == []


# -- room for others ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("model", "credits"), [("gpt-4.1", "250"), ("gpt-5.1", "250"), ("gpt-5.4-mini", "996"), ("gpt-5.1", "996")]
)
def test_requests_without_a_cap_share_a_balance(
    served: Serve, new_customer: NewCustomer, model: str, credits: str, stream: bool
) -> None:
    """Each costs about two credits: four of them are served side by side, whatever the model's own maximum is."""
    customer = new_customer(served(), credits)
    body = customer.body({"output_tokens": 200, "latency_ms": 1_000}, model=model, stream=stream)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: customer.post(body), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4, [answer.text[:300] for answer in answers]
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")
    assert customer.balance() > 0


@pytest.mark.parametrize(("model", "credits"), [("gpt-5.1", "1000"), ("gpt-4.1", "998")])
def test_with_hosted_tools_our_own_cap_is_lowered_until_the_whole_plan_fits(
    served: Serve, new_customer: NewCustomer, model: str, credits: str
) -> None:
    customer = new_customer(served(), credits)
    answer = customer.post({"model": model, "input": "hi", "tools": [{"type": "web_search"}]}, "/v1/responses")
    assert answer.status_code == 200, answer.text
    assert int(answer.headers["x-credits-output-cap"]) >= 4_096
    record = customer.generation(answer.headers["x-request-id"])
    assert int(record["heldMillicredits"]) <= int(credits) * 1_000


@pytest.mark.parametrize("credits", ["40", "300"])
def test_what_a_402_with_hosted_tools_calls_affordable_is_then_served(
    served: Serve, new_customer: NewCustomer, credits: str
) -> None:
    customer = new_customer(served(), credits)
    asked = {"model": "gpt-4.1", "input": "hi", "tools": [{"type": "web_search"}]}
    first = refused(customer.post({**asked, "max_output_tokens": 32_000}, "/v1/responses"))
    affordable = first["affordableOutputTokens"]
    if affordable:
        assert customer.post({**asked, "max_output_tokens": affordable}, "/v1/responses").status_code == 200
        return
    refused(customer.post({**asked, "max_output_tokens": 16}, "/v1/responses"))


def test_a_hold_that_others_are_in_the_way_of_waits_for_them(served: Serve, new_customer: NewCustomer) -> None:
    """A thousand tokens are held for, ten are used: the second fits as soon as the first has ended."""
    customer = new_customer(served(), "12")
    body = customer.body({"output_tokens": 10, "latency_ms": 700}, model="gpt-4o", max_tokens=1_000)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: customer.post(body), range(3)))
    assert [answer.status_code for answer in answers] == [200] * 3


def test_a_wait_for_others_ends(served: Serve, new_customer: NewCustomer) -> None:
    customer = new_customer(served(), "2")
    with customer.stream(customer.body({"silent": "after_headers"}, model="gpt-4o", max_tokens=50)):
        started = time.monotonic()
        error = refused(customer.post(hello(max_tokens=180)))
        assert error["limitSource"] == "in_flight"
        assert 1.5 < time.monotonic() - started < 15
