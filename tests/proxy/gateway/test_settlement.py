"""What an ending is charged by: the terms it began under, and nothing that may have changed since."""

from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from billing.money.usage import Usage
from config.settings import Billing, Settings
from proxy.gateway.answers.report import NO_REPORT, Report
from proxy.gateway.background.pending import decode_pending, pending_plan, pending_record
from proxy.gateway.bodies.parsed import Parsed
from proxy.gateway.endpoints import METERED
from proxy.gateway.plan import Plan, make_plan
from proxy.gateway.services import PricingTerms, Services
from proxy.gateway.settlement import ObservedOutput, SettlementDecision, count_input, decide_settlement
from proxy.gateway.upstream.route import Served
from proxy.gateway.usage_rows import RequestFacts, usage_record
from proxy.observability.metrics import Metrics
from tests.support.counting import TOKENIZER
from tests.support.plans import PRICES, TODAY, key, plan


@pytest.mark.parametrize("insurance", [True, False])
async def test_the_insurance_is_the_one_the_request_began_with(insurance: bool) -> None:
    # no settings at all: whoever asks for those in force fails here
    services = cast("Services", SimpleNamespace(metrics=Metrics(CollectorRegistry()), tokenizer=TOKENIZER))
    ending = await decide_settlement(
        services,
        PricingTerms(PRICES, insurance),
        plan(),
        NO_REPORT,
        ObservedOutput([], errored=True),
        "upstream_cut",
    )
    assert (ending.outcome, ending.charge.amount == 0) == (("insured", True) if insurance else ("upstream_cut", False))


async def settled(
    found: Plan, report: Report, observed: ObservedOutput, outcome: str = "completed"
) -> SettlementDecision:
    services = cast("Services", SimpleNamespace(metrics=Metrics(CollectorRegistry()), tokenizer=TOKENIZER))
    return await decide_settlement(services, PricingTerms(PRICES, True), found, report, observed, outcome)  # type: ignore[arg-type]


TEXT = "hello " * 1_000
SAID = ObservedOutput([TEXT])


@pytest.mark.parametrize(
    "usage", [Usage(), Usage(input_tokens=10), Usage(output_tokens=5)], ids=["zeros", "no output", "no input"]
)
async def test_a_report_of_less_than_what_plainly_passed_falls_to_the_count(usage: Usage) -> None:
    decision = await settled(plan({"max_tokens": 2_000}), NO_REPORT._replace(usage=usage), SAID)
    assert decision.usage.output_tokens >= 1_000
    assert decision.usage.input_tokens > 0
    assert decision.source == "counted"


@pytest.mark.slow
async def test_usage_in_the_middle_of_a_stream_that_did_not_end_is_a_lower_bound() -> None:
    early = NO_REPORT._replace(usage=Usage(input_tokens=10, output_tokens=1))
    left = await settled(plan({"max_tokens": 2_000}), early, SAID._replace(running=True), "client_gone")
    assert (left.usage.input_tokens, left.usage.output_tokens >= 1_000) == (10, True)
    whole = NO_REPORT._replace(usage=Usage(input_tokens=10, output_tokens=1_500))
    kept = await settled(plan({"max_tokens": 2_000}), whole, SAID._replace(running=True), "upstream_cut")
    assert (kept.usage.output_tokens, kept.source) == (1_500, "upstream")


async def test_usage_in_a_unit_without_a_price_falls_to_the_count() -> None:
    """whisper-1 is billed by the second; tokens of it would cost nothing."""
    endpoint = METERED["POST", b"/v1/audio/transcriptions"]
    parsed = Parsed(model="whisper-1", source=b"", milliseconds=90_000, estimated_milliseconds=70_000)
    asked = make_plan(endpoint, parsed, key(), PRICES, Settings(), today=TODAY)
    tokens = Usage(input_tokens=600, output_tokens=40)
    said = ObservedOutput(["hello"])
    told = await settled(asked, NO_REPORT._replace(usage=tokens, milliseconds=60_000), said)
    assert (told.usage, told.charge.amount) == (Usage(milliseconds=60_000), 6_000)
    guessed = await settled(asked, NO_REPORT._replace(usage=tokens), said)
    assert guessed.charge.amount == 7_000


async def test_a_picture_without_usage_beside_one_with_it_is_charged_as_well() -> None:
    endpoint = METERED["POST", b"/v1/images/generations"]
    body = b'{"model":"gpt-image-2","prompt":"x","n":2,"quality":"high","size":"1024x1024"}'
    asked = make_plan(endpoint, endpoint.parse(body, b""), key(), PRICES, Settings(), today=TODAY)
    one = Usage(input_tokens=10, output_tokens=4_160, image_output_tokens=4_160)
    decision = await settled(asked, NO_REPORT._replace(usage=one, pictures=1), ObservedOutput([]))
    # 10 at 5, twice 4,160 at 30
    assert decision.charge.amount == 50 + 2 * 4_160 * 30


async def test_a_name_with_half_a_surrogate_pair_is_booked() -> None:
    report = NO_REPORT._replace(usage=Usage(input_tokens=1, output_tokens=1), model="m\ud83d", upstream_id="r\ud83d")
    found = plan({"max_tokens": 10})
    decision = await settled(found, report, ObservedOutput([]))
    facts = RequestFacts("req_1", key(), found, 0, 0, 0, 0, Served())
    assert b"req_1" in usage_record(facts, decision, free=False, head=[])


async def test_a_background_response_that_is_gone_costs_its_input_counted() -> None:
    endpoint = METERED["POST", b"/v1/responses"]
    body = b'{"model":"gpt-4.1","input":"hi","background":true,"tools":[{"type":"web_search"}],"max_output_tokens":50}'
    settings = Settings(billing=Billing(allow_background=True))
    asked = make_plan(endpoint, endpoint.parse(body, b""), key(), PRICES, settings, today=TODAY)
    counted = await count_input(TOKENIZER, asked)
    facts = RequestFacts("req_1", key(), asked, asked.ceiling.amount, 0, 0, 0, Served())
    kept = pending_plan(decode_pending(pending_record(facts, PricingTerms(PRICES, True), counted)), PRICES)
    decision = await settled(kept, NO_REPORT, ObservedOutput([]))
    assert decision.charge.amount == counted * 2
