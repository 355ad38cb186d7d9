"""The rows of a request: what each of their parts is taken from."""

from typing import Any

import msgspec

from billing.money.amounts import Millicredits
from billing.money.pricing import Bounds, Charge
from billing.money.usage import Usage
from proxy.gateway.answers.report import NO_REPORT
from proxy.gateway.callers.labels import Labels
from proxy.gateway.settlement import SettlementDecision
from proxy.gateway.upstream.route import Served
from proxy.gateway.usage_rows import RequestFacts, checkpoint_charge, checkpoint_of, usage_record
from tests.support.plans import PRICES, key, plan

RATES = msgspec.Raw(b'{"a":1}')
FACTS = RequestFacts(
    "req_1",
    key(),
    plan({"stream": True, "max_tokens": 50}),
    900,
    1_000,
    20,
    30,
    Served("azure", "[1]", 7),
    Labels("u", "t"),
)
USAGE = Usage(
    input_tokens=101,
    output_tokens=102,
    cached_tokens=3,
    cache_write_30m_tokens=4,
    cache_write_12h_tokens=5,
    audio_input_tokens=6,
    image_input_tokens=7,
    audio_output_tokens=8,
    image_output_tokens=9,
    reasoning_tokens=10,
    web_searches=11,
    milliseconds=12,
    characters=13,
    calls=(("file_search", 2), ("lookup", 3)),
)
OF_THE_REQUEST = {
    "chargeId": "req_1",
    "accountId": "acct_1",
    "keyId": "key_1",
    "endpoint": FACTS.plan.endpoint.name,
    "model": "gpt-4o",
    "createdAt": 1_000,
    "heldMillicredits": 900,
    "stream": True,
    "endUser": "u",
    "tags": "t",
    "upstream": "azure",
    "tries": "[1]",
    "abandonedMillicredits": 7,
}


def row(decision: SettlementDecision, **more: Any) -> Any:
    asked = {"free": False, "head": [], **more}
    return msgspec.json.decode(usage_record(FACTS, decision, **asked))


def decided(**report: Any) -> SettlementDecision:
    charge = Charge(Millicredits(40), Millicredits(30), "flex", RATES)
    return SettlementDecision(USAGE, "counted", "client_gone", charge, NO_REPORT._replace(**report))


def test_a_row_has_every_part_of_the_request_and_of_how_it_ended() -> None:
    other = (("drawing", Usage(image_output_tokens=200)), ("more", Usage(image_output_tokens=50, input_tokens=1)))
    decision = decided(model="gpt-4o-2024-08-06", upstream_id="chatcmpl-1", more=other)
    assert row(decision, free=True, head=[(b"x-request-id", b"r1"), (b"date", b"now")]) == {
        **OF_THE_REQUEST,
        "billedModel": "gpt-4o-2024-08-06",
        "costMillicredits": 30,
        "usageSource": "counted",
        "outcome": "client_gone",
        "rates": {"a": 1},
        "serviceTier": "flex",
        "free": True,
        "inputTokens": 101,
        "outputTokens": 102,
        "cachedTokens": 3,
        "cacheWriteTokens": 9,
        "reasoningTokens": 10,
        "audioInputTokens": 6,
        "audioOutputTokens": 8,
        "imageInputTokens": 7,
        "imageOutputTokens": 259,
        "audioMilliseconds": 12,
        "characters": 13,
        "webSearches": 11,
        "toolCalls": '{"file_search":2,"lookup":3}',
        "upstreamRequestId": "r1",
        "upstreamId": "chatcmpl-1",
        "firstByteMs": 20,
        "durationMs": 30,
    }


def test_who_names_no_end_user_has_none() -> None:
    assert RequestFacts("req_1", key(), FACTS.plan, 0, 0, 0, 0, Served()).labels == ("", "")


def test_a_row_of_an_answer_that_says_nothing_of_itself() -> None:
    bare = row(decided()._replace(usage=Usage()))
    assert bare.keys() & {"billedModel", "toolCalls", "upstreamRequestId", "upstreamId", "imageOutputTokens"} == set()
    assert "free" not in bare


def test_names_of_an_answer_are_cut_and_made_plain() -> None:
    """PostgreSQL refuses a NUL and half a surrogate pair."""
    told = row(decided(model="m" * 130, upstream_id="a\0b\ud83dé" + "ü" * 130))
    assert told["billedModel"] == "m" * 120
    assert told["upstreamId"] == "ab?é" + "ü" * 116
    assert row(decided(model="a\0b"))["billedModel"] == "ab"
    assert row(decided(), head=[(b"x-request-id", b"\xe9")])["upstreamRequestId"] == "é"


def test_a_checkpoint_owes_the_bounded_input_and_what_was_streamed() -> None:
    bounded = FACTS._replace(plan=FACTS.plan._replace(bounds=Bounds(10, 50)))
    mark = checkpoint_of(bounded, PRICES, 7)
    # gpt-4o: a cache write at 1.25 x 2.5 a token, 10 a token of output
    assert (mark.hold_id, mark.account_id, mark.amount) == ("req_1", "acct_1", 32 + 70)
    found = msgspec.json.decode(mark.record)
    assert found.pop("rates")["usdPerMillionTokens"]["output"] == "10"
    assert found == {
        **OF_THE_REQUEST,
        "costMillicredits": 102,
        "usageSource": "bounded",
        "outcome": "orphaned",
        "serviceTier": "default",
        "inputTokens": 10,
        "outputTokens": 7,
    }
    assert checkpoint_charge(bounded.plan, PRICES, 51).amount == 32 + 500, "never more than its hold"
    assert checkpoint_charge(bounded.plan, PRICES, 50).amount == 32 + 500
