"""From a request to what is held for it and sent for it; prices by hand."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.ledger.accounts import KeyBudget
from billing.ledger.objects.upstream_objects import OwnedObject
from billing.money.amounts import Millicredits
from billing.money.holds import Budget, KeyLimits
from billing.money.usage import Usage
from config.settings import Billing, Holds, Limits, Settings
from proxy.gateway.admission import key_limits
from proxy.gateway.answers.report import NO_REPORT, Report
from proxy.gateway.bodies.parsed import StoredContext
from proxy.gateway.endpoints import METERED, find_endpoint
from proxy.gateway.limits.affordable import clamped, smallest
from proxy.gateway.plan import Plan, held_amount, make_plan, with_counted_input
from proxy.gateway.settlement import is_worth_counting, price_usage
from proxy.gateway.upstream.request_body import body_to_send
from proxy.gateway.usage_rows import checkpoint_charge
from proxy.web.rejections import Rejection
from tests.support.plans import EMBEDDINGS, LEGACY, PRICES, TODAY, key, plan


def sent_by(found: Plan) -> bytes:
    return body_to_send(found, Billing(), lambda value: "tk_" + value.decode().strip('"'))


def echo(model: str, tier: str) -> Report:
    return NO_REPORT._replace(model=model, service_tier=tier)


def refused(*arguments: Any, **named: Any) -> Rejection:
    with pytest.raises(Rejection) as caught:
        plan(*arguments, **named)
    return caught.value


def test_the_hold_is_the_dearest_the_request_can_be() -> None:
    found = plan({"max_tokens": 10})
    size = len(found.parsed.source) + 64
    # gpt-4o 2.5 / 10, and 1.25 x 2.5 = 3.125 should its prompt be written to the cache
    assert found.ceiling.amount == -(-(size * 3125 + 10 * 10_000) // 1000)
    # 12 hours in the cache are 2.5 x 2.5 = 6.25
    dear = plan({"max_tokens": 10, "prompt_cache_retention": "24h"})
    assert dear.ceiling.amount == -(-((len(dear.parsed.source) + 64) * 6250 + 10 * 10_000) // 1000)
    assert held_amount(found, free=True) == 0
    assert held_amount(found, free=False) == found.ceiling.amount


def test_a_long_text_is_not_counted_where_counting_cannot_help() -> None:
    def long(words: int, **fields: Any) -> Plan:
        return plan({"messages": [{"role": "user", "content": "word " * words}], "max_tokens": 16, **fields})

    rich = 10**9
    assert is_worth_counting(long(100), 0, PRICES)  # a short one always is
    assert is_worth_counting(long(100_000), rich, PRICES)
    assert not is_worth_counting(long(300_000), rich, PRICES)  # 187,500 tokens of 8 bytes, of a window of 128,000
    cheapest = smallest(with_counted_input(long(100_000), 500_000 // 8, PRICES), 1, PRICES).ceiling.amount
    assert is_worth_counting(long(100_000), cheapest + 100, PRICES)
    assert not is_worth_counting(long(100_000), cheapest - 100, PRICES)
    assert not is_worth_counting(with_counted_input(long(100), 100, PRICES), rich, PRICES)


def kept_by(context: int | None, there: int | None = None, **fields: Any) -> Plan:
    endpoint = METERED["POST", b"/v1/responses"]
    body = {"model": "gpt-4o-mini", "input": "hello", "max_output_tokens": 100, **fields}
    thread = None if there is None else OwnedObject("conversation", "acct_1", "req_1", there, deleted=False)
    stored = StoredContext(context, frozenset(), thread)
    parsed = endpoint.parse(json.dumps(body).encode(), b"")
    return make_plan(endpoint, parsed, key(), PRICES, Settings(), stored, today=TODAY)


def test_what_was_truncated_is_read_whole_by_a_model_with_a_larger_window() -> None:
    """gpt-4o-mini reads 128,000 tokens: what its answer reports is not all that there is."""
    found = kept_by(500_000, truncation="auto")
    assert found.kept_tokens(100_000) == 500_000 + found.text + 100
    assert kept_by(None, truncation="auto").kept_tokens(100_000) is None
    assert kept_by(100_000, truncation="auto").kept_tokens(90_000) == 90_000  # nothing can have been left out
    for truncation in (None, "disabled"):
        assert kept_by(500_000, truncation=truncation).kept_tokens(100_000) == 100_000


@pytest.mark.parametrize("truncation", ["auto", None])
@pytest.mark.parametrize("there", [0, 1_000, 127_950, 2_000_000])
def test_a_request_never_adds_less_than_it_says_to_its_conversation(there: int, truncation: str | None) -> None:
    found = kept_by(there, there, conversation="conv_1", truncation=truncation)
    assert found.most_added == found.text + 100


def test_long_context_is_held_for_once_the_bound_crosses_it() -> None:
    text = "x" * 272_000
    found = plan({"model": "gpt-5.5", "messages": [{"role": "user", "content": text}], "max_completion_tokens": 10})
    # gpt-5.5 above 272,000: 10 / 45, a write 12.5
    size = len(found.parsed.source) + 64
    assert found.ceiling.amount == -(-(size * 12_500 + 10 * 45_000) // 1000)
    counted = with_counted_input(found, 1_000, PRICES)
    # short again: 5 / 30, a write 6.25
    assert counted.ceiling.amount == -(-(1_000 * 6_250 + 10 * 30_000) // 1000)


def test_counting_never_raises_a_bound() -> None:
    found = plan({"max_tokens": 10})
    assert with_counted_input(found, 10**6, PRICES).bounds.input_tokens == found.bounds.input_tokens


@settings(max_examples=200, deadline=None)
@given(
    budget=st.integers(0, 400_000),
    choices=st.integers(1, 5),
    model=st.sampled_from(["gpt-4o", "gpt-4o-mini", "gpt-5-mini", "gpt-6-astra"]),
)
def test_a_clamp_fits_its_budget_and_wastes_little_of_it(budget: int, choices: int, model: str) -> None:
    found = plan({"model": model, "n": choices})
    lower = clamped(found, budget, 16, PRICES)
    if lower is None:
        assert smallest(found, 16, PRICES).ceiling.amount > budget
        return
    assert 16 <= lower.cap <= found.cap
    assert lower.ceiling.amount <= max(budget, found.ceiling.amount if lower.cap == found.cap else 0)
    if lower.cap < found.cap:
        # a hundredth more would not have fitted
        more = lower.cap + lower.cap // 100 + 2
        rates = PRICES.ceiling(found.model, found.tier, found.bounds._replace(output_tokens=more * choices))
        assert rates.amount > budget
    assert json.loads(sent_by(lower)).get("max_completion_tokens", found.cap) == lower.cap


def test_an_explicit_maximum_is_never_clamped() -> None:
    assert clamped(plan({"max_tokens": 1000}), 5_000, 16, PRICES) is None
    assert plan({"max_tokens": 1000}).cap_is_ours is False
    assert "max_completion_tokens" not in json.loads(sent_by(plan({"max_tokens": 1000})))


def test_a_legacy_request_keeps_its_own_default() -> None:
    found = plan(endpoint=LEGACY)
    assert (found.cap, found.cap_is_ours) == (16, False)
    assert json.loads(sent_by(found)) == json.loads(found.parsed.source)


def test_the_operators_default_cap_is_sent() -> None:
    found = plan(section=Holds(default_max_output_tokens=500))
    assert (found.cap, json.loads(sent_by(found))["max_completion_tokens"]) == (500, 500)
    assert plan({"max_tokens": 900}, Holds(default_max_output_tokens=500)).cap == 900
    # a default above the model's maximum is the model's maximum, which need not be sent
    whole = plan(section=Holds(default_max_output_tokens=10**6))
    assert (whole.cap, "max_completion_tokens" in json.loads(sent_by(whole))) == (16_384, False)


@pytest.mark.parametrize(
    ("asked", "billing", "tier", "sent"),
    [
        (None, {}, "default", "default"),
        (None, {"service_tier": "priority"}, "priority", "priority"),
        (None, {"service_tier": "flex"}, "default", "default"),  # gpt-4o is not sold in flex
        ("auto", {}, "default", "default"),
        ("default", {"service_tier": "priority"}, "default", "default"),
        ("priority", {}, "priority", "priority"),
        ("fast", {}, "priority", "fast"),
    ],
)
def test_the_tier_that_is_priced_is_the_tier_that_is_sent(
    asked: str | None, billing: dict[str, Any], tier: str, sent: str
) -> None:
    found = plan({} if asked is None else {"service_tier": asked}, Billing(**billing))
    assert (found.tier, json.loads(sent_by(found))["service_tier"]) == (tier, sent)


def test_a_stream_always_asks_for_usage() -> None:
    for options in (
        {},
        {"stream_options": None},
        {"stream_options": {"include_usage": False}},
        {"stream_options": {"include_usage": True}},
    ):
        sent = json.loads(sent_by(plan({"stream": True, **options})))
        assert sent["stream_options"]["include_usage"] is True
    assert "stream_options" not in json.loads(sent_by(plan({"stream": False})))


def test_endpoints_without_tiers_get_none() -> None:
    for endpoint in (LEGACY, EMBEDDINGS):
        assert "service_tier" not in json.loads(sent_by(plan(endpoint=endpoint)))


@pytest.mark.parametrize(
    ("fields", "billing", "rules", "status", "code"),
    [
        ({"model": "gpt-99"}, {}, {}, 404, "model_not_found"),
        ({"model": "text-embedding-3-small"}, {}, {}, 404, "model_not_found"),
        ({}, {"model_allowlist": ("gpt-5*",)}, {}, 404, "model_not_found"),
        ({}, {}, {"models": ("gpt-4o-mini",)}, 404, "model_not_found"),
        ({"store": True}, {"allow_store": False}, {}, 400, "unsupported_parameter"),
        ({"service_tier": "flex"}, {}, {}, 400, "invalid_value"),
        ({"service_tier": "ultrafast"}, {}, {}, 403, "service_tier_not_allowed"),
        ({"service_tier": "scale"}, {}, {}, 400, "invalid_value"),
        ({"max_tokens": 16_385}, {}, {}, 400, "invalid_value"),
        ({"web_search_options": {}}, {}, {}, 400, "unsupported_parameter"),  # gpt-4o has no search price
    ],
)
def test_what_is_refused(
    fields: dict[str, Any], billing: dict[str, Any], rules: dict[str, Any], status: int, code: str
) -> None:
    found = refused(fields, Billing(**billing), **rules)
    assert (found.status, found.code) == (status, code)


def test_a_model_of_another_endpoint_is_sent_there_and_a_hidden_one_is_not_told_of() -> None:
    assert refused({"model": "text-embedding-3-small"}).message.endswith("Use /v1/embeddings.")
    hidden = refused({"model": "text-embedding-3-small"}, Billing(model_allowlist=("gpt-*",)))
    assert hidden.message == refused({"model": "gpt-99"}).message.replace("gpt-99", "text-embedding-3-small")


def test_a_chat_that_asks_to_be_stored_is_kept_and_only_then() -> None:
    assert plan({"store": True}).keeps
    assert not plan().keeps
    assert not plan({"store": False}).keeps


def test_searches_are_held_for() -> None:
    found = plan({"model": "gpt-5-search-api", "max_completion_tokens": 10})
    with_two = plan({"model": "gpt-5-search-api", "max_completion_tokens": 10, "n": 2})
    assert (found.searches, with_two.searches) == (1, 2)
    # $0.01 a search is 10,000 millicredits
    assert found.ceiling.amount > 10_000
    assert with_two.ceiling.amount > 20_000


def test_what_a_search_brings_is_held_for_when_the_text_is_counted() -> None:
    """Pages that a search finds are input as well: 20,000 tokens of them, beside what the client wrote."""
    found = plan({"model": "gpt-5-search-api", "messages": [{"role": "user", "content": "x" * 30_000}]})
    assert with_counted_input(found, 3, PRICES).bounds.input_tokens == 20_003


def test_an_echo_without_a_price_is_priced_as_asked() -> None:
    found, usage = plan({"max_tokens": 10}), Usage(input_tokens=8, output_tokens=10)
    # gpt-4o 8 x 2.5 + 10 x 10 = 120; gpt-4o-mini 8 x 0.15 + 10 x 0.6 = 7.2; priority 8 x 4.25 + 10 x 17 = 204
    assert price_usage(found, PRICES, usage, echo("", "default")).amount == 120
    assert price_usage(found, PRICES, usage, echo("gpt-4o-2024-11-20", "default")).amount == 120
    assert price_usage(found, PRICES, usage, echo("gpt-4o-mini", "default")).amount == 8
    assert price_usage(found, PRICES, usage, echo("gpt-99", "default")).amount == 120
    assert price_usage(found, PRICES, usage, echo("gpt-4o", "priority")).amount == 204
    assert price_usage(found, PRICES, usage, echo("gpt-4o", "platinum")).amount == 120


def test_an_orphan_is_never_charged_more_than_its_hold() -> None:
    found = plan({"max_tokens": 10})
    assert checkpoint_charge(found, PRICES, 10**6).amount == found.ceiling.amount
    assert checkpoint_charge(found, PRICES, 0).amount == found.ceiling.amount - 100


def test_a_keys_limits_and_the_operators_defaults() -> None:
    assert not key_limits(key(), Limits(), 0, ("gpt-4o",)).any
    assert key_limits(key(), Limits(requests_per_minute=7), 0, ("gpt-4o",)).requests_per_minute == 7
    own = key(requests_per_minute=3, concurrency=0, spend_limit=Millicredits(5), spend_period="month")
    found = key_limits(own, Limits(requests_per_minute=7, concurrency=9), 1_795_000_000_000, ("gpt-4o",))
    spend_limit = Budget(f"{own.key_id}:month", "2026-11", Millicredits(5))
    assert found == KeyLimits(3, 0, 0, (spend_limit,))


def test_a_budget_counts_only_the_models_that_it_names() -> None:
    both = (KeyBudget(Millicredits(9), "day", ("gpt-4o*",)), KeyBudget(Millicredits(7), "month", ("o3", "gpt-6*")))
    own = key(budgets=both)
    limits = [key_limits(own, Limits(), 1_795_000_000_000, models).budgets for models in (("gpt-4o-mini",), ("o3",))]
    assert [[budget.limit for budget in budgets] for budgets in limits] == [[9], [7]]
    assert len(key_limits(own, Limits(), 0, ("gpt-4o", "gpt-6")).budgets) == 2
    assert key_limits(own, Limits(), 0, ("gpt-5",)).budgets == ()
    assert len({budget.scope("key_1") for budget in (*both, *(one._replace(models=None) for one in both))}) == 4


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", b"/v1/models", 405),
        ("POST", b"/v1/fine_tuning/jobs", 403),
        ("POST", b"/v1/skills", 403),
        ("PUT", b"/v1/responses", 405),
        ("POST", b"/v1/chat/completions/", 404),
        ("POST", b"/v1//chat/completions", 404),
        ("POST", b"/v1/chat/../chat/completions", 404),
        ("POST", b"/v1/%63hat/completions", 404),
        ("POST", b"/V1/chat/completions", 404),
    ],
)
def test_only_the_tables_own_paths_exist(method: str, path: bytes, status: int) -> None:
    with pytest.raises(Rejection) as caught:
        find_endpoint(method, path)
    assert caught.value.status == status


@pytest.mark.parametrize("name", ["web_search", "web_search_2025_08_26"])
def test_a_dated_name_of_a_tool_is_priced_as_the_tool(name: str) -> None:
    """Two searches on a model that does not reason: 10 credits each, held for and charged by one name."""
    endpoint = METERED["POST", b"/v1/responses"]
    body = json.dumps(
        {"model": "gpt-4.1", "max_output_tokens": 50, "max_tool_calls": 2, "input": "hi", "tools": [{"type": name}]}
    )
    allowed = msgspec.structs.replace(Settings(), billing=Billing(allowed_tools=(name,)))
    found = make_plan(endpoint, endpoint.parse(body.encode(), b""), key(), PRICES, allowed, today=TODAY)
    assert (found.tools.search, found.tools.dearest) == ("web_search", "web_search")
    assert PRICES.call_price("web_search") < PRICES.call_price("web_search_preview_non_reasoning")
