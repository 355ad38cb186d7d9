"""Every chat, completion and embedding sample goes through untouched and costs what docs/openai.md's prices say.

The prices below are written down by hand, apart from the catalogue, in USD per million tokens, which is
millicredits per token; the token counts from the samples. Charges are rounded up once.
"""

import re
from typing import Any, NamedTuple

import pytest

from tests.support.served import Customer, usd_to_charge
from tests.support.servers import SAMPLES
from tests.support.wire import Ended, events_of

USAGE_CHUNK = re.compile(rb'data: \{[^\n]*"choices":\[\],"usage":\{[^\n]*\n\n')
ASKS_FOR_USAGE = {"stream_options": {"include_usage": True}}


class Sample(NamedTuple):
    name: str
    model: str
    charge: int
    """Millicredits, worked out by hand."""


JSON_SAMPLES = [
    # gpt-5.4-mini 0.75 / cached 0.075 / out 4.5; it has no cache write price, so writes are 1.25 x 0.75 = 0.9375:
    # (1419 - 1024 - 256) x 0.75 + 1024 x 0.075 + 256 x 0.9375 + 210 x 4.5 = 104.25 + 76.8 + 240 + 945 = 1366.05
    Sample("chat_nonstream.json", "gpt-5.4-mini", 1367),
    # gpt-audio-1.5 2.5 text / 32 audio in, 10 text / 64 audio out: 13 x 2.5 + 44 x 32 + 15 x 10 + 46 x 64 = 4534.5
    Sample("chat_nonstream_audio.json", "gpt-audio-1.5", 4535),
    # gpt-5-search-api 1.25 / 10 and one search of $0.01: 19 x 1.25 + 10 x 10 + 10000 = 10123.75
    Sample("chat_nonstream_web_search.json", "gpt-5-search-api", 10124),
]
STREAM_SAMPLES = [
    # gpt-5.4-mini 0.75 / 4.5: 19 x 0.75 + 10 x 4.5 = 59.25
    Sample("chat_stream_include_usage.sse", "gpt-5.4-mini", 60),
    # 19 x 0.75 + 4 x 4.5 = 32.25
    Sample("chat_stream_n2.sse", "gpt-5.4-mini", 33),
    # 19 x 0.75 + 10 x 4.5 = 59.25
    Sample("chat_stream_refusal_logprobs.sse", "gpt-5.4-mini", 60),
    # 61 x 0.75 + 16 x 4.5 = 117.75
    Sample("chat_stream_tool_calls.sse", "gpt-5.4-mini", 118),
]


def replay(customer: Customer, name: str, model: str, **fields: Any) -> tuple[Ended, dict[str, Any], dict[str, Any]]:
    """(the body the client got, the ledger's record, the upstream's record)."""
    body = customer.body({"replay": name}, model=model, max_completion_tokens=300, **fields)
    with customer.stream(body) as wire:
        assert wire.answer.status == 200
        ended = wire.read_all()
        return ended, customer.generation(wire.request_id), customer.served(wire.request_id)


def test_every_chat_completion_and_embedding_sample_is_tried() -> None:
    names = {path.name for pattern in ("chat_*", "completions_*", "embeddings*") for path in SAMPLES.glob(pattern)}
    here = {sample.name for sample in JSON_SAMPLES + STREAM_SAMPLES}
    assert names == here | {
        "chat_stream_no_usage_option.sse",
        "chat_stream_truncated_no_final_usage.sse",
        "chat_stream_midstream_error.sse",
        "completions_legacy_stream_include_usage.sse",
        "embeddings.json",
    }


@pytest.mark.parametrize("sample", JSON_SAMPLES, ids=lambda sample: sample.name)
def test_a_json_sample_arrives_byte_exact_at_the_right_charge(customer: Customer, sample: Sample) -> None:
    before = customer.balance()
    answer = customer.post(customer.body({"replay": sample.name}, model=sample.model, max_completion_tokens=300))
    assert answer.content == (SAMPLES / sample.name).read_bytes()
    assert answer.headers["x-credits-charged"] == str(sample.charge / 1000)
    assert customer.charged(answer.headers["x-request-id"]) == sample.charge
    assert before - customer.balance() == sample.charge


@pytest.mark.parametrize("sample", STREAM_SAMPLES, ids=lambda sample: sample.name)
def test_a_streamed_sample_arrives_byte_exact_at_a_client_that_asked_for_usage(
    customer: Customer, sample: Sample
) -> None:
    ended, record, _ = replay(customer, sample.name, sample.model, **ASKS_FOR_USAGE)
    assert ended == Ended((SAMPLES / sample.name).read_bytes(), clean=True)
    assert (int(record["chargedMillicredits"]), record["usageSource"], record["outcome"]) == (
        sample.charge,
        "upstream",
        "completed",
    )


@pytest.mark.parametrize("sample", STREAM_SAMPLES, ids=lambda sample: sample.name)
def test_only_the_usage_chunk_is_hidden_from_a_client_that_did_not_ask(customer: Customer, sample: Sample) -> None:
    original = (SAMPLES / sample.name).read_bytes()
    without, cut_out = USAGE_CHUNK.subn(b"", original)
    assert cut_out == 1
    ended, record, _ = replay(customer, sample.name, sample.model)
    assert ended == Ended(without, clean=True)
    assert int(record["chargedMillicredits"]) == sample.charge


def test_a_sample_without_usage_arrives_byte_exact_and_is_counted(customer: Customer) -> None:
    name = "chat_stream_no_usage_option.sse"
    ended, record, served = replay(customer, name, "gpt-5.4-mini")
    assert ended == Ended((SAMPLES / name).read_bytes(), clean=True)
    # "Blue", " whale", "." are three tokens; what the prompt has is the upstream's own count
    assert served["usage"]["completion_tokens"] == 3
    expected = usd_to_charge((served["usage"]["prompt_tokens"], "0.75"), (3, "4.5"))
    assert (int(record["chargedMillicredits"]), record["usageSource"], record["outputTokens"]) == (
        expected,
        "counted",
        3,
    )


def test_a_truncated_sample_is_passed_as_far_as_it_goes_and_never_ends_cleanly(customer: Customer) -> None:
    name = "chat_stream_truncated_no_final_usage.sse"
    original = (SAMPLES / name).read_bytes()
    assert not original.endswith(b"\n\n")  # it stops inside an event
    ended, record, served = replay(customer, name, "gpt-5.4-mini")
    assert ended == Ended(original, clean=False)
    expected = usd_to_charge((served["usage"]["prompt_tokens"], "0.75"), (record["outputTokens"], "4.5"))
    assert record["outputTokens"] == 3  # "Blue", " wh", "a"
    assert (int(record["chargedMillicredits"]), record["usageSource"], record["outcome"]) == (
        expected,
        "counted",
        "upstream_cut",
    )


def test_a_sample_that_breaks_off_with_an_error_event_shows_the_error_and_no_end(customer: Customer) -> None:
    name = "chat_stream_midstream_error.sse"
    ended, record, served = replay(customer, name, "gpt-5.4-mini")
    assert ended.data == (SAMPLES / name).read_bytes()
    assert events_of(ended.data)[-1]["error"]["type"] == "server_error"
    assert b"[DONE]" not in ended.data
    expected = usd_to_charge((served["usage"]["prompt_tokens"], "0.75"), (record["outputTokens"], "4.5"))
    assert record["outputTokens"] == 1  # "Blu" is one token, as the sandbox says too
    assert served["usage"]["completion_tokens"] == 1
    assert (int(record["chargedMillicredits"]), record["usageSource"], record["outcome"]) == (
        expected,
        "counted",
        "upstream_error",
    )


@pytest.mark.parametrize("asks", [True, False])
def test_the_legacy_sample_arrives_byte_exact_at_the_right_charge(customer: Customer, asks: bool) -> None:
    name = "completions_legacy_stream_include_usage.sse"
    original = (SAMPLES / name).read_bytes()
    body: dict[str, Any] = {
        "model": "gpt-3.5-turbo-instruct",
        "prompt": f'[[sandbox {{"replay": "{name}"}}]]',
        "max_tokens": 20,
    }
    with customer.stream({**body, **(ASKS_FOR_USAGE if asks else {})}, "/v1/completions") as wire:
        ended, request_id = wire.read_all(), wire.request_id
    assert ended == Ended(original if asks else USAGE_CHUNK.sub(b"", original), clean=True)
    # gpt-3.5-turbo-instruct 1.5 / 2: 5 x 1.5 + 2 x 2 = 11.5
    assert customer.charged(request_id) == 12


def test_the_embeddings_sample_arrives_byte_exact_at_the_right_charge(customer: Customer) -> None:
    answer = customer.post(
        {"model": "text-embedding-3-small", "input": '[[sandbox {"replay": "embeddings.json"}]]'}, path="/v1/embeddings"
    )
    assert answer.content == (SAMPLES / "embeddings.json").read_bytes()
    # text-embedding-3-small 0.02: 8 x 0.02 = 0.16
    assert customer.charged(answer.headers["x-request-id"]) == 1
