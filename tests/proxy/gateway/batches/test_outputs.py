"""What a batch costs by its output file, whatever stands in it."""

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from billing.money.pricing import BookOrigin
from config.settings import Settings
from proxy.gateway.batches.outputs import BatchCost, BatchSettlement, FileGone, lines_of
from proxy.gateway.batches.record import BatchRecord
from proxy.gateway.services import PricingTerms, Services
from proxy.observability.metrics import Metrics
from tests.support.counting import TOKENIZER
from tests.support.plans import PRICES

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
LINE = 100 * 1 + 10 * 4  # gpt-4.1 in batches: 1 / 4
SENT = "file-sent"
OUTPUT = "file-out"


def sent(*names: str, **body: Any) -> bytes:
    full = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 50, **body}
    rows = [{"custom_id": name, "method": "POST", "url": CHAT, "body": full} for name in names]
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def answer(name: str, usage: Any = USAGE, status: int = 200, **body: Any) -> bytes:
    message = {"role": "assistant", "content": "one two three"}
    full = {"id": "chatcmpl-1", "model": "gpt-4.1", "choices": [{"index": 0, "message": message}], "usage": usage}
    row = {"custom_id": name, "response": {"status_code": status, "body": {**full, **body}}, "error": None}
    return msgspec.json.encode(row) + b"\n"


async def cost(given: bytes | None, output: bytes | None) -> BatchCost:
    """Cost of a batch whose files are these; None: that file is gone."""
    files = {SENT: given, OUTPUT: output}

    def handle(request: httpx.Request) -> httpx.Response:
        data = files[request.url.path.split("/")[-2]]
        return httpx.Response(404) if data is None else httpx.Response(200, content=data)

    services = SimpleNamespace(settings=Settings(), metrics=Metrics(CollectorRegistry()), tokenizer=TOKENIZER)
    record = BatchRecord("key_1", CHAT, "gpt-4.1", 10_000, False, 0, 1, BookOrigin("x", "1", "exact"), True)
    settlement = BatchSettlement(cast("Services", services), PricingTerms(PRICES, True), record, "acct_1")
    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://upstream/v1") as client:
        await settlement.read(client, SENT, OUTPUT)
    return settlement.cost("batch_1")


def charged(found: BatchCost) -> int:
    return found.charge.amount if found.charge is not None else 0


async def test_each_answered_line_is_charged_by_its_usage() -> None:
    found = await cost(sent("a", "b"), answer("b") + answer("a"))
    assert (charged(found), found.source, found.usage.input_tokens, found.usage.output_tokens) == (
        2 * LINE,
        "upstream",
        200,
        20,
    )
    assert (found.report.model, found.report.upstream_id) == ("gpt-4.1", "batch_1")


async def test_a_line_that_failed_and_one_that_was_not_sent_cost_nothing() -> None:
    failed = msgspec.json.encode({"custom_id": "b", "response": None, "error": {"code": "batch_expired"}}) + b"\n"
    output = answer("a") + answer("c", status=500) + failed + answer("of nobody") + b"{broken\n\n"
    assert charged(await cost(sent("a", "b", "c"), output)) == LINE


async def test_half_of_a_surrogate_pair_in_an_answer_or_a_request_leaves_it_charged() -> None:
    """The answer was cut in the middle of an emoji: strict parsers refuse it, and clients do not."""
    cut = answer("a").replace(b"one two three", rb"one two \ud83d")
    assert cut != answer("a")
    assert charged(await cost(sent("a"), cut)) == LINE
    assert charged(await cost(sent("a").replace(b"hello", rb"hello \ud83d"), answer("a"))) == LINE


@pytest.mark.parametrize(
    ("said", "oddly"),
    [
        (b'"choices"', b'"logprob":NaN,"choices"'),
        (b'"choices"', b'"logprob":-Infinity,"choices"'),
        (b"one two three", b"one\ttwo three"),
        (b'{"custom_id"', b'\xef\xbb\xbf{"custom_id"'),
        (b'"status_code":200', b'"status_code":200.0'),
        (b'"custom_id":"a"', b'"custom_id":1,"custom_id":"a"'),
        (b'"error":null', b'"error":null,"request_id":"\xff"'),
    ],
    ids=["NaN", "-Infinity", "a raw tab", "a byte order mark", "a number with a point", "a name twice", "no UTF-8"],
)
async def test_a_line_that_only_strict_parsers_refuse_is_charged(said: bytes, oddly: bytes) -> None:
    line = answer("a")
    assert said in line
    found = await cost(sent("a", "b"), line.replace(said, oddly) + answer("b"))
    assert (charged(found), found.source) == (2 * LINE, "upstream")


async def test_a_line_that_is_told_twice_is_charged_once() -> None:
    assert charged(await cost(sent("a"), answer("a") * 2)) == LINE


@pytest.mark.parametrize("tier", ["default", "priority", "flex", None])
async def test_the_price_is_the_batchs_whatever_tier_an_answer_echoes(tier: str | None) -> None:
    assert charged(await cost(sent("a"), answer("a", service_tier=tier))) == LINE


async def test_a_model_that_is_echoed_has_its_own_price_if_it_has_one_in_batches() -> None:
    dated = await cost(sent("a"), answer("a", model="gpt-4.1-2025-04-14"))
    cheaper = await cost(sent("a"), answer("a", model="gpt-4.1-nano"))
    unknown = await cost(sent("a"), answer("a", model="gpt-audio-1.5"))
    elsewhere = await cost(sent("a"), answer("a", model="text-embedding-3-small"))
    assert (charged(dated), charged(unknown), charged(elsewhere)) == (LINE, LINE, LINE)
    assert charged(cheaper) < LINE


async def test_usage_that_is_missing_or_not_believable_is_counted() -> None:
    for usage in (
        None,
        {"prompt_tokens": -1},
        {"prompt_tokens": 10**9, "completion_tokens": 1, "total_tokens": 2 * 10**9},
    ):
        found = await cost(sent("a"), answer("a", usage))
        assert found.source == "counted"
        assert 0 < charged(found) < LINE


async def test_a_report_that_cannot_be_counted_after_costs_no_more_than_was_held_for() -> None:
    """What a model thought cannot be counted: its line's own ceiling is the most."""
    huge = {"prompt_tokens": 10**9, "completion_tokens": 10**9, "total_tokens": 2 * 10**9}
    found = await cost(sent("a", model="gpt-5.4-mini"), answer("a", huge, model="gpt-5.4-mini"))
    assert found.source == "bounded"
    assert 50 * 2 < charged(found) < 50 * 2.25 + 400 * 0.5


async def test_an_answer_that_is_an_error_costs_nothing() -> None:
    row = {"custom_id": "a", "response": {"status_code": 200, "body": {"error": {"message": "no"}}}}
    assert (await cost(sent("a"), msgspec.json.encode(row))).charge is None


async def test_without_the_sent_file_answers_speak_for_themselves() -> None:
    assert charged(await cost(None, answer("a") + answer("b"))) == 2 * LINE


async def test_an_output_that_is_gone_is_told() -> None:
    with pytest.raises(FileGone):
        await cost(sent("a"), None)


async def test_nothing_in_the_output_is_no_charge() -> None:
    assert (await cost(sent("a"), b"")).charge is None


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
async def test_lines_are_whole_however_they_arrive(size: int) -> None:
    data = json.dumps({"text": "a\u2028b"}, ensure_ascii=False).encode() + b"\n\nlast"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    assert [line async for line in lines_of(pieces())] == data.split(b"\n")
