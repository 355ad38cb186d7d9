"""Compaction of a context while it is answered, and checks of its texts: bounded, priced, refused where unknown."""

import json
from typing import Any

import pytest

from billing.money.usage import Usage
from config.settings import Billing, Settings
from proxy.gateway.background.pending import decode_pending
from proxy.gateway.bodies.parsed import StoredContext
from proxy.gateway.endpoints import METERED
from proxy.gateway.limits.affordable import affordable_cap
from proxy.gateway.plan import Plan, make_plan, with_counted_input
from proxy.gateway.settlement import is_plausible
from proxy.gateway.upstream.request_body import body_to_send
from proxy.web.rejections import Rejection
from tests.support.plans import PRICES, TODAY, key

RESPONSES, CHAT = METERED["POST", b"/v1/responses"], METERED["POST", b"/v1/chat/completions"]
MODEL = "gpt-4.1"  # 2 and 8 USD per million tokens, a window of 1,047,576, an output of 32,768


def planned(settings: Settings | None = None, context: int | None = 0, **fields: Any) -> Plan:
    body = json.dumps({"model": MODEL, "input": "x" * 10_000, "max_output_tokens": 100, **fields}).encode()
    return make_plan(
        RESPONSES,
        RESPONSES.parse(body, b""),
        key(),
        PRICES,
        settings or Settings(),
        StoredContext(context),
        today=TODAY,
    )


def compacted(threshold: Any = None, **more: Any) -> dict[str, Any]:
    return {"context_management": [{"type": "compaction", "compact_threshold": threshold}], **more}


def test_a_context_that_cannot_reach_its_threshold_costs_nothing_more() -> None:
    plain, managed = planned(), planned(**compacted(200_000))
    assert managed.bounds == plain.bounds._replace(input_tokens=managed.bounds.input_tokens)
    assert managed.bounds.input_tokens - plain.bounds.input_tokens < 100  # the member's own bytes


@pytest.mark.parametrize("threshold", [None, 1, 1_000, 5_000.0, 1e4])
def test_a_context_that_may_be_compacted_is_held_for_once_more_with_its_summary(threshold: Any) -> None:
    managed = planned(**compacted(threshold))
    once = managed.text
    # before its turn, and behind it with what was said, after which it goes on
    assert managed.bounds.input_tokens == once + once + 2 * (once + 100)
    assert managed.bounds.output_tokens == 100 + once + (once + 100)


def test_a_trigger_in_the_input_is_a_compaction() -> None:
    items = [{"role": "user", "content": "x" * 10_000}, {"type": "compaction_trigger"}]
    assert planned(input=items).bounds.output_tokens > 20_000
    assert planned(input=items[:1]).bounds.output_tokens == 100


def test_every_turn_of_a_hosted_tool_may_be_compacted() -> None:
    tools: dict[str, Any] = {"tools": [{"type": "web_search"}], "max_tool_calls": 3}
    plain, managed = planned(**tools), planned(**tools, **compacted(1_000))
    assert managed.bounds.input_tokens > 2 * plain.bounds.input_tokens
    assert managed.bounds.calls == plain.bounds.calls


def test_a_summary_is_no_longer_than_the_models_output_and_reads_no_more_than_its_window() -> None:
    managed = planned(context=None, **compacted())
    assert managed.bounds.input_tokens == 4 * 1_047_576
    assert managed.bounds.output_tokens == 100 + 2 * 32_768


def test_counted_input_counts_for_compactions_too() -> None:
    managed = planned(**compacted(5_000))
    counted = with_counted_input(managed, 1_300, PRICES)
    assert counted.bounds.output_tokens == 100
    assert counted.bounds.input_tokens == 1_300


def test_the_affordable_cap_pays_for_compactions() -> None:
    managed = planned(max_output_tokens=None, **compacted(1_000))
    budget = managed.ceiling.amount // 2
    cap = affordable_cap(managed, budget, PRICES)
    assert 0 < cap < managed.cap


def test_a_usage_of_several_readings_is_believed_where_there_may_have_been_some() -> None:
    usage = Usage(input_tokens=3_000_000, output_tokens=100_000)
    for plan, believed in ((planned(), False), (planned(**compacted()), True)):
        assert is_plausible(usage, plan.model, plan.parsed) is believed


def test_left_by_its_client_it_is_read_on() -> None:
    assert planned(**compacted()).is_read_on
    assert not planned().is_read_on


@pytest.mark.parametrize(
    "given",
    [
        [{"type": "clear_tool_uses"}],
        [{}],
        [7],
        "compaction",
        {"type": 4},
        [{"type": "compaction", "compact_threshold": 1.5}],
    ],
)
def test_other_management_is_refused(given: Any) -> None:
    with pytest.raises(Rejection) as refused:
        planned(context_management=given)
    assert (refused.value.status, refused.value.param) == (400, "context_management")


@pytest.mark.parametrize("path", [b"/v1/responses/compact", b"/v1/responses/input_tokens"])
@pytest.mark.parametrize("name", ["context_management", "moderation"])
def test_only_a_response_has_them(path: bytes, name: str) -> None:
    body = json.dumps({"model": MODEL, "input": "x", name: [{"type": "compaction"}]}).encode()
    with pytest.raises(Rejection) as refused:
        METERED["POST", path].parse(body, b"")
    assert (refused.value.status, refused.value.param) == (400, name)


# -- moderation ---------------------------------------------------------------------------------------

CHECKED: dict[str, Any] = {
    "moderation": {
        "model": "omni-moderation-latest",
        "policy": {"input": {"mode": "score"}, "output": {"mode": "block"}},
    }
}


def chat(settings: Settings | None = None, models: tuple[str, ...] | None = None, **fields: Any) -> Plan:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}], **fields}).encode()
    return make_plan(CHAT, CHAT.parse(body, b""), key(models=models), PRICES, settings or Settings(), today=TODAY)


@pytest.mark.parametrize("plan_of", [planned, chat])
def test_texts_may_be_checked_for_nothing_by_a_model_that_is_free(plan_of: Any) -> None:
    plain, checked = plan_of(), plan_of(**CHECKED)
    assert checked.bounds._replace(input_tokens=plain.bounds.input_tokens) == plain.bounds
    sent = body_to_send(checked, Settings().billing, lambda name: name.decode())
    assert json.loads(sent)["moderation"] == CHECKED["moderation"]
    assert plan_of(moderation=None).parsed.moderator == ""


@pytest.mark.parametrize("plan_of", [planned, chat])
@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"model": "gpt-4.1"}, 404),
        ({"model": "moderator-of-tomorrow"}, 404),
        ({}, 400),
        ("x", 400),
        ({"model": 5}, 400),
    ],
)
def test_no_other_model_checks_texts(plan_of: Any, given: Any, status: int) -> None:
    with pytest.raises(Rejection) as refused:
        plan_of(moderation=given)
    assert refused.value.status == status


def test_a_model_that_may_not_be_used_checks_nothing() -> None:
    with pytest.raises(Rejection):
        planned(Settings(billing=Billing(model_allowlist=("gpt-*",))), **CHECKED)
    with pytest.raises(Rejection):
        chat(models=("gpt-4.1",), **CHECKED)


# -- programs -----------------------------------------------------------------------------------------


def test_programs_cost_tokens_and_are_bounded_as_calls() -> None:
    tools = [
        {"type": "programmatic_tool_calling"},
        {"type": "function", "name": "f", "allowed_callers": ["programmatic"]},
    ]
    plain, programs = planned(tools=tools[1:]), planned(tools=tools)
    calls = Settings().holds.max_tool_calls
    assert programs.bounds.calls == ()
    assert programs.bounds.input_tokens > (calls + 1) * plain.bounds.input_tokens
    sent = json.loads(body_to_send(programs, Settings().billing, lambda name: name.decode()))
    assert (sent["tools"], sent["max_tool_calls"]) == (tools, calls)
    with pytest.raises(Rejection) as refused:
        planned(Settings(billing=Billing(allowed_tools=())), tools=tools)
    assert refused.value.code == "tool_not_allowed"


def test_a_record_of_an_older_version_has_no_compaction() -> None:
    fields = {
        **dict.fromkeys(("key_id", "endpoint", "model", "tier", "search", "image_model"), ""),
        **dict.fromkeys(("held", "started_ms", "cap", "input_tokens", "output_tokens", "calls"), 0),
    }
    record = decode_pending(json.dumps({**fields, "cache_write_12h": False, "context": None}))
    assert record.compact_at is None
