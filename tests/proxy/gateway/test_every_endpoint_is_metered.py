"""Of every row of the endpoint table: what it is asked for is bounded, counted when its usage is missing, and held for."""

import json
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from billing.money.pricing import PriceBook
from config.settings import Settings
from proxy.gateway.answers.report import NO_REPORT, Report
from proxy.gateway.endpoints import METERED, REALTIME
from proxy.gateway.plan import Plan, make_plan
from proxy.gateway.services import PricingTerms, Services
from proxy.gateway.settlement import ObservedOutput, decide_settlement
from proxy.observability.metrics import Metrics
from proxy.web.rejections import Rejection
from tests.support.counting import TOKENIZER
from tests.support.media import wav
from tests.support.plans import PRICES, TODAY, ending, key

HI = [{"role": "user", "content": "hi"}]


def form(**fields: str) -> tuple[bytes, bytes]:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + wav(10)
    return b"".join(parts) + file + b"\r\n--b--\r\n", b"multipart/form-data; boundary=b"


def body(**fields: object) -> tuple[bytes, bytes]:
    return json.dumps(fields).encode(), b"application/json"


DRAWN, SPOKEN, SAID = NO_REPORT._replace(pictures=1), ObservedOutput([], media=200), ObservedOutput(["hello there"])
CASES: dict[str, list[tuple[tuple[bytes, bytes], Report, ObservedOutput]]] = {
    "/v1/chat/completions": [
        (body(model="gpt-4.1", messages=HI, max_tokens=50), NO_REPORT, SAID),
        (body(model="gpt-5.1", messages=HI, max_completion_tokens=50), NO_REPORT, SAID),
        (body(model="gpt-audio", messages=HI, modalities=["text", "audio"], max_tokens=500), NO_REPORT, SPOKEN),
    ],
    "/v1/completions": [(body(model="gpt-3.5-turbo-instruct", prompt="hi", max_tokens=50), NO_REPORT, SAID)],
    "/v1/embeddings": [(body(model="text-embedding-3-small", input="hi " * 100), NO_REPORT, ObservedOutput([]))],
    "/v1/responses": [
        (body(model="gpt-4.1", input="hi", max_output_tokens=50), NO_REPORT, SAID),
        (
            body(model="gpt-4.1", input="hi", max_output_tokens=50, tools=[{"type": "web_search"}]),
            NO_REPORT._replace(calls=(("web_search", 1),)),
            SAID,
        ),
        (
            body(
                model="gpt-4.1",
                input="hi",
                max_output_tokens=50,
                tools=[{"type": "image_generation", "model": "gpt-image-2", "quality": "low"}],
            ),
            DRAWN,
            ObservedOutput([]),
        ),
    ],
    "/v1/responses/compact": [(body(model="gpt-4.1", input="hi"), NO_REPORT, SAID)],
    "/v1/responses/input_tokens": [(body(model="gpt-4.1", input="hi"), NO_REPORT, ObservedOutput([]))],
    "/v1/images/generations": [(body(model="gpt-image-2", prompt="x"), DRAWN, ObservedOutput([]))],
    "/v1/images/edits": [
        (body(model="gpt-image-2", prompt="x", images=[{"image_url": "data:,"}]), DRAWN, ObservedOutput([]))
    ],
    "/v1/audio/speech": [
        (body(model="gpt-4o-mini-tts", input="hello", voice="alloy"), NO_REPORT, SPOKEN),
        (body(model="tts-1", input="hello", voice="alloy"), NO_REPORT, ObservedOutput([], media=1)),
    ],
    "/v1/audio/transcriptions": [
        (form(model=model), NO_REPORT, SAID) for model in ("whisper-1", "gpt-4o-transcribe", "gpt-transcribe")
    ],
    "/v1/audio/translations": [(form(model="whisper-1"), NO_REPORT, SAID)],
    "/v1/moderations": [(body(input="hi"), NO_REPORT, ObservedOutput([]))],
    "/v1/decisions": [
        (
            body(model="gpt-decision-1", input="hi " * 100, questions=[{"question": "x"}]),
            NO_REPORT,
            ObservedOutput([]),
        )
    ],
}
"""A row's requests, and what passed of their answers before the usage did not come."""


def decision_model() -> str:
    return next(name for name in PRICES.names() if "/v1/decisions" in PRICES.find(name).endpoints)  # type: ignore[union-attr]


def planned(name: str, asked: tuple[bytes, bytes], prices: PriceBook = PRICES) -> Plan:
    endpoint = METERED["POST", name.encode()]
    raw = asked[0].replace(b"gpt-decision-1", decision_model().encode())
    settings = Settings(billing=Settings().billing)
    return make_plan(endpoint, endpoint.parse(raw, asked[1]), key(), prices, settings, today=TODAY)


ALL = [(name, number) for name, cases in CASES.items() for number in range(len(cases))]


def test_every_row_has_its_cases() -> None:
    rows = {endpoint.name for endpoint in METERED.values()} - {REALTIME.name}
    assert CASES.keys() == rows, "add a request of it, and what may have passed when its usage did not come"


@pytest.mark.parametrize(("name", "number"), ALL, ids=str)
async def test_what_passed_is_charged_without_usage_and_never_above_the_hold(name: str, number: int) -> None:
    asked, report, observed = CASES[name][number]
    plan = planned(name, asked)
    services = cast("Services", SimpleNamespace(metrics=Metrics(CollectorRegistry()), tokenizer=TOKENIZER))
    decision = await decide_settlement(
        services, PricingTerms(PRICES, True), plan, report, observed, "upstream_cut", held=plan.ceiling.amount
    )
    if plan.endpoint.free:
        assert decision.charge.amount == 0
        return
    assert 0 < decision.charge.amount <= plan.ceiling.amount
    assert decision.source == "counted"
    bound = plan.ceiling.amount
    assert decision.charge.amount < bound or plan.parsed.characters, "a bound is held for, and never charged"


@pytest.mark.parametrize(("name", "number"), ALL, ids=str)
async def test_an_error_before_anything_passed_is_free(name: str, number: int) -> None:
    asked, _, _ = CASES[name][number]
    services = cast("Services", SimpleNamespace(metrics=Metrics(CollectorRegistry()), tokenizer=TOKENIZER))
    nothing = ObservedOutput([], searched=False, errored=True)
    decision = await decide_settlement(
        services, PricingTerms(PRICES, True), planned(name, asked), NO_REPORT, nothing, "upstream_error"
    )
    assert (decision.charge.amount, decision.outcome) == (0, "insured")


@pytest.mark.parametrize(("name", "number"), ALL)
def test_a_model_that_has_ended_is_refused_at_every_endpoint(name: str, number: int) -> None:
    asked = CASES[name][number][0]
    assert planned(name, asked, ending(every="2026-07-01")), "its last day is today"
    with pytest.raises(Rejection, match="ended on 2026-06-30") as caught:
        planned(name, asked, ending(every="2026-06-30"))
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
