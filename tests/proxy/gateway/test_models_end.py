"""Models that end: until when they are sold, what is said then, and who may go on."""

import json
from datetime import date

import msgspec
import pytest

from billing.money.pricing import PriceBook, load_catalogue
from config.settings import Billing, Settings
from proxy.gateway.admission import models_ending, models_on_sale
from proxy.gateway.endpoints import METERED
from proxy.gateway.plan import make_plan, sold_model
from proxy.web.rejections import Rejection
from tests.support.plans import ending, key

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
LAST = date(2026, 7, 1)
AFTER = date(2026, 7, 2)


def refused(
    name: str,
    prices: PriceBook,
    today: date = AFTER,
    endpoint: str = CHAT,
    billing: Billing | None = None,
    models: tuple[str, ...] | None = None,
) -> str:
    """The words of the refusal; "" when it is sold."""
    try:
        sold_model(name, endpoint, key(models=models), prices, billing or Billing(), today)
    except Rejection as rejection:
        assert (rejection.status, rejection.code, rejection.param) == (404, "model_not_found", "model")
        return rejection.message
    return ""


@pytest.mark.parametrize(("today", "sold"), [(date(2026, 6, 30), True), (LAST, True), (AFTER, False)])
def test_a_model_is_sold_to_the_end_of_its_last_day(today: date, sold: bool) -> None:
    prices = ending(gpt_4o="2026-07-01")
    assert (refused("gpt-4o", prices, today) == "") is sold
    assert ("gpt-4o" in {model.name for model in models_on_sale(prices, Billing(), today)}) is sold


def test_the_refusal_says_when_it_ended_and_what_to_use() -> None:
    said = refused("gpt-4o", ending(gpt_4o="2026-07-01"))
    assert said == "The model 'gpt-4o' ended on 2026-07-01 and is no longer served. Use 'gpt-6-luna' instead."


@pytest.mark.parametrize("name", ["gpt-4o-2031-01-01", "ft:gpt-4o-2024-08-06:acme::1", "ft:gpt-4o-2024-08-06"])
def test_names_that_fall_back_end_with_what_they_fall_back_to(name: str) -> None:
    prices = ending(gpt_4o="2026-07-01", **{"ft:gpt_4o_2024_08_06": "2026-07-01"})
    assert refused(name, prices).startswith(f"The model {name!r} ended on 2026-07-01")
    assert refused(name, prices, LAST) == ""


@pytest.mark.parametrize(
    ("allowed", "models"), [(("gpt-4*",), None), (("*",), ("gpt-4*",)), (("gpt-4*",), ("gpt-4o",))]
)
def test_a_successor_that_may_not_be_used_is_not_named(
    allowed: tuple[str, ...], models: tuple[str, ...] | None
) -> None:
    said = refused("gpt-4o", ending(gpt_4o="2026-07-01"), billing=Billing(model_allowlist=allowed), models=models)
    assert said == "The model 'gpt-4o' ended on 2026-07-01 and is no longer served."


def test_of_a_line_of_successors_the_first_that_is_served_is_named() -> None:
    line = ending(gpt_4o="2026-07-01", gpt_6_luna="2026-07-01")
    assert refused("gpt-4o", line).endswith("is no longer served."), "gpt-6-luna names no successor"
    shipped = load_catalogue()
    for name, successor in (("gpt-4o", "gpt-5"), ("gpt-5", "gpt-5.5-pro"), ("gpt-5.5-pro", "gpt-6-sol")):
        shipped["models"][name] |= {"ends": "2026-07-01", "successor": successor}
    prices = PriceBook(shipped, "1", "exact")
    assert refused("gpt-4o", prices).endswith("Use 'gpt-6-sol' instead.")
    shipped["models"]["gpt-5.5-pro"]["ends"] = None
    prices = PriceBook(shipped, "1", "exact")
    assert refused("gpt-4o", prices).endswith("Use 'gpt-6-sol' instead."), "gpt-5.5-pro is not served at this endpoint"
    assert refused("gpt-4o", prices, endpoint=RESPONSES).endswith("Use 'gpt-5.5-pro' instead.")


def test_successors_in_a_circle_end() -> None:
    shipped = load_catalogue()
    for name, successor in (("gpt-4o", "gpt-5"), ("gpt-5", "gpt-4o")):
        shipped["models"][name] |= {"ends": "2026-07-01", "successor": successor}
    assert refused("gpt-4o", PriceBook(shipped, "1", "exact")).endswith("no longer served.")


def test_a_model_that_is_not_allowed_is_not_known_whether_it_ended_or_not() -> None:
    said = refused("gpt-4o", ending(gpt_4o="2026-07-01"), billing=Billing(model_allowlist=("gpt-6*",)))
    assert said == "The model 'gpt-4o' does not exist or you do not have access to it."


@pytest.mark.parametrize("allowed", ["gpt-4o", "*"])
def test_the_allowlist_alone_does_not_bring_it_back_but_extended_models_do(allowed: str) -> None:
    prices = ending(gpt_4o="2026-07-01")
    assert refused("gpt-4o", prices, billing=Billing(model_allowlist=(allowed,)))
    extended = Billing(model_allowlist=(allowed,), extended_models=("gpt-4o*",))
    assert refused("gpt-4o", prices, billing=extended) == ""
    assert refused("gpt-4o-2031-01-01", prices, billing=Billing(extended_models=("gpt-4o*",))) == ""
    assert refused("gpt-4o", prices, billing=Billing(extended_models=("gpt-4",))) != ""


def test_a_card_without_an_end_sells_on() -> None:
    assert refused("gpt-4", ending(gpt_4=None), date(2099, 1, 1)) == ""


@pytest.mark.parametrize("tool", [{"type": "image_generation", "model": "gpt-image-1.5"}, {"type": "image_generation"}])
def test_the_model_of_a_tool_ends_as_well(tool: dict[str, str]) -> None:
    endpoint = METERED["POST", RESPONSES.encode()]
    body = {"model": "gpt-6-luna", "input": "a cat", "tools": [tool], "max_output_tokens": 100}
    parsed = endpoint.parse(json.dumps(body).encode(), b"")
    prices = ending(gpt_image_1_5="2026-07-01", gpt_image_2_6_sunburst="2026-07-01")
    assert make_plan(endpoint, parsed, key(), prices, Settings(), today=LAST).tools.image is not None
    with pytest.raises(Rejection, match=r"gpt-image-.* ended on 2026-07-01"):
        make_plan(endpoint, parsed, key(), prices, Settings(), today=AFTER)


@pytest.mark.parametrize(
    ("today", "found"),
    [
        (date(2026, 6, 15), []),
        (date(2026, 6, 16), ["gpt-4o"]),
        (date(2026, 7, 16), ["gpt-4o"]),
        (date(2026, 7, 17), []),
    ],
)
def test_a_model_is_reported_from_30_days_before_its_last_day_to_it(today: date, found: list[str]) -> None:
    prices = ending(every=None, gpt_4o="2026-07-16")
    assert [model.name for model, _ in models_ending(prices, Billing(), today)] == found


def test_only_what_is_sold_here_is_reported_soonest_first() -> None:
    prices = ending(every=None, gpt_4o="2026-07-16", gpt_4="2026-07-15", o3="2026-07-16", sora_2="2026-07-16")
    assert [model.name for model, _ in models_ending(prices, Billing(), AFTER)] == ["gpt-4", "gpt-4o", "o3"]
    narrow = Billing(model_allowlist=("gpt-4*",), extended_models=("gpt-4",))
    assert [model.name for model, _ in models_ending(prices, narrow, AFTER)] == ["gpt-4o"]


def test_on_sale_is_what_works_at_an_endpoint_of_ours() -> None:
    sold = {model.name for model in models_on_sale(ending(every=None), Billing(), AFTER)}
    assert {"gpt-6-luna", "gpt-realtime-2.1", "whisper-1", "omni-moderation-latest"} <= sold
    assert not {"sora-2", "gpt-live-1", "gpt-realtime-translate"} & sold


def price(model: str, tier: str = "default", markup: str = "1", **prices: object) -> dict[str, object]:
    book = PriceBook({**load_catalogue(), **({"prices": prices} if prices else {})}, markup, "exact")
    found = book.find(model)
    assert found is not None
    shown: dict[str, object] = msgspec.json.decode(book.customer_price(found, tier))
    assert book.customer_price(found, tier) is book.customer_price(found, tier), "made once"
    return shown


def test_a_price_is_shown_in_credits_as_it_is_charged() -> None:
    assert price("gpt-4o-mini") == {
        "unit": "credits",
        "service_tier": "default",
        "per_million_tokens": {"input": 150, "cached_input": 75, "output": 600},
        "web_search": 25,
    }
    assert price("gpt-4o-mini", markup="1.25")["per_million_tokens"] == {
        "input": 187.5,
        "cached_input": 93.75,
        "output": 750,
    }
    assert price("gpt-4o-mini", "priority")["per_million_tokens"] == {"input": 250, "cached_input": 125, "output": 1000}
    assert price("tts-1") == {
        "unit": "credits",
        "service_tier": "default",
        "per_million_tokens": {},
        "per_character": 0.015,
    }
    assert price("whisper-1")["per_second"] == 0.1
    long = price("gpt-5.4")["per_million_tokens_above_272k_input"]
    assert isinstance(long, dict)
    assert (long["input"], long["output"]) == (5000, 22500)


def test_a_price_of_the_cards_own_is_shown_without_the_markup() -> None:
    own = {"gpt-4o-mini": {"rates": {"default": {"short": {"input": "1", "output": "2"}}}}}
    assert price("gpt-4o-mini", markup="3", models=own)["per_million_tokens"] == {"input": 1000, "output": 2000}
