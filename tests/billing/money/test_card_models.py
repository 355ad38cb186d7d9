"""Models of a card: what a row says of one, how it is sold, and which name is priced by which."""

import json
from datetime import date
from fractions import Fraction
from typing import Any

import pytest

from billing.money.catalogue.models import Model, family
from billing.money.errors import InvariantBroken, UnpricedModel
from billing.money.model_rates import Adjustment
from billing.money.pricing import (
    BookOrigin,
    Bounds,
    ModelUsage,
    PriceBook,
    load_catalogue,
    read_catalogue,
    tier_of,
)
from billing.money.usage import MAX_TOKENS, Usage

ROW: dict[str, Any] = {
    "mode": "chat",
    "endpoints": ["/v1/chat/completions", "/v1/responses"],
    "reasoning": True,
    "contextWindow": 1_000,
    "maxInputTokens": 900,
    "maxOutputTokens": 100,
    "rates": {
        "default": {
            "short": {"input": "2", "output": "8"},
            "long": {"input": "4", "output": "12"},
        },
        "batch": {"short": {"input": "1", "output": "4"}},
    },
}
SOUND = {**ROW, "mode": "audio_transcription", "rates": {}, "per_second": "0.0001"}
SPOKEN = {**ROW, "mode": "audio_speech", "rates": {}, "per_character": "0.000015"}


def book(markup: str = "1", rounding: Any = "exact", sale: Any = None, **rows: Any) -> PriceBook:
    """A book of a card with the model m and these others."""
    card: dict[str, Any] = {
        "catalogueId": "c1",
        "effectiveFrom": "2026-12-01",
        "tools": {"file_search": "0.0025", "web_search": "0.01"},
        "models": {"m": ROW, **rows},
    }
    return PriceBook(card if sale is None else {**card, "prices": sale}, markup, rounding)


def found(prices: PriceBook, name: str = "m") -> Model:
    model = prices.find(name)
    assert model is not None
    return model


def snapshot(raw: Any) -> Any:
    return json.loads(bytes(raw))


def test_a_model_is_what_its_row_says() -> None:
    model = found(book("1.2"))
    assert (model.name, model.mode, model.reasoning) == ("m", "chat", True)
    assert model.endpoints == frozenset(("/v1/chat/completions", "/v1/responses"))
    assert (model.context_window, model.max_input_tokens, model.max_output_tokens) == (1_000, 900, 100)
    assert (model.searches_each_call, model.ends, model.successor) == (False, None, "")
    assert (model.markup, model.sale, sorted(model.tiers)) == (Fraction("1.2"), {}, ["batch", "default"])
    assert model.tiers["batch"].long is None
    told = {**ROW, "webSearchIncluded": True, "ends": "2027-01-14", "successor": "m2"}
    model = found(book(told=told), "told")
    assert (model.searches_each_call, model.ends, model.successor) == (True, date(2027, 1, 14), "m2")
    model = found(book(told={**ROW, "ends": None, "successor": None}), "told")
    assert (model.ends, model.successor) == (None, "")


def test_a_model_is_over_after_its_last_day() -> None:
    model = found(book(told={**ROW, "ends": "2027-01-14"}), "told")
    assert [model.has_ended(date(2027, 1, day)) for day in (13, 14, 15)] == [False, False, True]
    assert found(book()).has_ended(date(9999, 1, 1)) is False


def test_the_snapshot_of_a_price_says_by_which_card_and_how_it_was_made() -> None:
    model = found(book("1.20"))
    told = {"rateCardId": "c1", "tier": "default", "usdPerUnit": {}, "markup": "1.20"}
    assert model.tiers["default"].long is not None
    assert snapshot(model.tiers["default"].long.snapshot) == {
        **told,
        "context": "long",
        "usdPerMillionTokens": {"input": "4", "output": "12"},
    }
    short = model.tiers["default"].short
    assert (short.tier, short.context) == ("default", "short")
    assert snapshot(short.snapshot) == {
        **told,
        "context": "short",
        "usdPerMillionTokens": {"input": "2", "output": "8"},
    }
    units = {"told": {**ROW, "per_second": "0.1", "per_character": "0.2", "per_call": {"web_search": "0.01"}}}
    told_units = snapshot(found(book(**units), "told").tiers["default"].short.snapshot)["usdPerUnit"]
    assert told_units == {"per_second": "0.1", "per_character": "0.2", "web_search": "0.01"}
    other = found(book(told={**ROW, "per_call": {"other": "1"}}), "told")
    assert snapshot(other.tiers["default"].short.snapshot)["usdPerUnit"] == {}


def test_a_model_of_units_alone_has_a_default_tier() -> None:
    prices = book(sound=SOUND, spoken=SPOKEN)
    assert sorted(found(prices, "sound").tiers) == ["default"]
    # 1,500 ms at $0.0001 a second are 150 millicredits; 3 characters at $0.000015 are 45
    assert prices.price(found(prices, "sound"), "default", Usage(milliseconds=1_500)).amount == 150
    assert prices.price(found(prices, "spoken"), "default", Usage(characters=3)).amount == 45


def test_what_has_no_price_is_no_model() -> None:
    prices = book(free={**ROW, "rates": {}}, sound=SOUND, spoken=SPOKEN)
    assert prices.names() == ["m", "sound", "spoken"]
    assert prices.find("free") is None


def test_a_service_is_a_model_of_no_endpoint_that_costs_its_calls() -> None:
    prices = book("2")
    for name in ("vector_store_search", "vector_store_storage"):
        service = prices.service(name)
        assert (service.name, service.mode, service.endpoints, service.reasoning) == (
            name,
            "service",
            frozenset(),
            False,
        )
        assert (service.context_window, service.max_input_tokens, service.max_output_tokens) == (None, None, None)
        charge = prices.price(service, "default", Usage(input_tokens=10**6, calls=(("file_search", 1),)))
        assert (charge.amount, charge.cost) == (5_000, 2_500)
    with pytest.raises(KeyError):
        prices.service("m")


EXPLICIT = {
    "markup": "3",
    "rates": {"default": {"short": {"input": "7", "output": "9"}, "long": {"input": "11", "output": "13"}}},
}


def test_the_first_rule_that_fits_sells_a_model_and_others_have_the_cards_markup() -> None:
    sale = {"markup": "5", "models": {"a*": {"markup": "2"}, "ab": {"markup": "4"}}}
    prices = book("9", sale=sale, ab=ROW, b=ROW)
    assert [found(prices, name).markup for name in ("ab", "b")] == [2, 5]
    assert found(book("9", sale={"models": {}})).markup == 9
    assert book("9", sale=sale).origin == BookOrigin("c1", "5", "exact", Adjustment(), "")
    assert book("9").origin.markup == "9"


def test_explicit_prices_are_charged_in_their_tiers_and_the_markup_elsewhere() -> None:
    prices = book(sale={"models": {"m": EXPLICIT}})
    model, used = found(prices), Usage(input_tokens=10, output_tokens=1)
    charge = prices.price(model, "default", used)
    assert (charge.amount, charge.cost) == (79, 28)  # 10 x 7 + 9; 10 x 2 + 8
    assert prices.price(model, "batch", used).amount == 3 * 14
    long = prices.price(model, "default", Usage(input_tokens=272_001, output_tokens=1))
    assert (long.amount, long.cost) == (272_001 * 11 + 13, 272_001 * 4 + 12)
    called = Usage(input_tokens=10, output_tokens=1, calls=(("file_search", 2), ("web_search", 1)))
    charge = prices.price(model, "default", called)
    assert (charge.amount, charge.cost) == (79 + 3 * 15_000, 28 + 15_000)
    told = snapshot(charge.rates)
    assert told["customerUsdPerMillionTokens"] == {"input": "7", "output": "9"}
    assert "markup" not in told
    assert snapshot(long.rates)["customerUsdPerMillionTokens"] == {"input": "11", "output": "13"}
    assert snapshot(prices.price(model, "batch", used).rates)["markup"] == "3"


def test_explicit_prices_of_the_short_context_stand_for_the_long_one() -> None:
    rule = {"rates": {"default": {"short": {"input": "7", "output": "9"}}}}
    prices = book(sale={"models": {"m": rule}})
    long = prices.price(found(prices), "default", Usage(input_tokens=272_001, output_tokens=1))
    assert long.amount == 272_001 * 7 + 9
    assert snapshot(long.rates)["customerUsdPerMillionTokens"] == {"input": "7", "output": "9"}


def test_a_bound_is_held_at_explicit_prices_with_its_calls_at_the_markup() -> None:
    prices = book(sale={"models": {"m": EXPLICIT}})
    bounds = Bounds(10, 1, calls=(("file_search", 2), ("web_search", 1)))
    charge = prices.ceiling(found(prices), "default", bounds)
    # a cache write at 1.25 of 7, and of 2: 87.5 + 9, and 25 + 8
    assert (charge.amount, charge.cost) == (97 + 45_000, 33 + 15_000)
    charge = prices.ceiling(found(prices), "batch", bounds)
    assert charge.amount == 50 + 45_000  # 3 x (12.5 + 4) = 49.5
    assert prices.ceiling(found(prices), "default", Bounds(272_001, 0)).amount == -(-272_001 * 11 * 5 // 4)


def test_other_models_of_a_request_are_priced_and_held_by_their_own_cards() -> None:
    other = {**ROW, "rates": {"default": {"short": {"input": "0.5", "output": "1"}, "long": {"input": "3"}}}}
    prices = book("2", o=other)
    model, second = found(prices), found(prices, "o")
    more = [
        ModelUsage(second, "default", Usage(input_tokens=3, calls=(("file_search", 1),))),
        ModelUsage(second, "default", Usage(input_tokens=272_001)),
    ]
    charge = prices.price(model, "default", Usage(input_tokens=1, output_tokens=1), more)
    cost = Fraction(10) + Fraction(3, 2) + 2_500 + 272_001 * 3
    assert (charge.amount, charge.cost) == (2 * cost, -(-cost.numerator // cost.denominator))
    assert charge.tier == "default"
    told = snapshot(charge.rates)
    assert told["usdPerMillionTokens"] == {"input": "2", "output": "8"}
    assert [one["context"] for one in told["more"]] == ["short", "long"]
    bounds = Bounds(
        1,
        1,
        more=((second, "default", Bounds(4, 2, calls=(("web_search", 1),))), (second, "default", Bounds(272_001, 0))),
    )
    held = prices.ceiling(model, "default", bounds)
    # 2.5 + 8, 4 x 0.625 + 2 + 10,000, 272,001 x 3.75
    most = Fraction(21, 2) + Fraction(9, 2) + 10_000 + 272_001 * Fraction(15, 4)
    assert (held.amount, held.cost) == (
        -(-(2 * most).numerator // (2 * most).denominator),
        -(-most.numerator // most.denominator),
    )
    assert [one["context"] for one in snapshot(held.rates)["more"]] == ["short", "long"]


def test_other_models_with_explicit_prices_are_charged_and_held_for_by_them_in_their_tier() -> None:
    rule = {"markup": "3", "rates": {"batch": {"short": {"input": "7", "output": "9"}}}}
    prices = book(sale={"models": {"o": rule}}, o=ROW)
    model, other = found(prices), found(prices, "o")
    used = Usage(input_tokens=10, output_tokens=1)
    charge = prices.price(model, "default", used, [ModelUsage(other, "batch", used)])
    assert (charge.amount, charge.cost) == (28 + 79, 28 + 14)
    _, cost, due = prices.exact(ModelUsage(other, "batch", used))
    assert (cost, due) == (14 * 10**15, 79 * 10**15)
    held = prices.ceiling(model, "default", Bounds(8, 1, more=((other, "batch", Bounds(8, 1)),)))
    assert (held.amount, held.cost) == (28 + 79, 28 + 14)  # 8 x 2.5 + 8, 8 x 8.75 + 9; 8 x 1.25 + 4


@pytest.mark.parametrize("markup", ["1", "1.5"])
def test_a_charge_says_its_tier_and_its_rates(markup: str) -> None:
    prices = book(markup)
    model = found(prices)
    for charge in (
        prices.price(model, "batch", Usage(input_tokens=1)),
        prices.ceiling(model, "batch", Bounds(1, 1)),
    ):
        assert (charge.tier, charge.rates) == ("batch", model.tiers["batch"].short.snapshot)


def test_sums_that_are_rounded_together_name_their_first_card() -> None:
    prices = book("1.5")
    card, cost, due = prices.exact(
        ModelUsage(found(prices), "batch", Usage(input_tokens=1, calls=(("file_search", 1),)))
    )
    assert (card.tier, cost, due) == ("batch", 2_501 * 10**15, Fraction(3, 2) * 2_501 * 10**15)
    long, _, _ = prices.exact(ModelUsage(found(prices), "default", Usage(input_tokens=272_001)))
    charge = prices.rounded([card, long], cost, Fraction(due))
    assert (charge.amount, charge.cost, charge.tier) == (3_752, 2_501, "batch")
    assert [one["context"] for one in snapshot(charge.rates)["more"]] == ["long"]
    assert "more" not in snapshot(prices.rounded([card], cost, Fraction(due)).rates)


def test_a_markup_of_one_is_rounded_up_to_the_credit_where_the_book_does_so() -> None:
    prices = book("1", "ceil")
    charge = prices.price(found(prices), "default", Usage(input_tokens=600))
    assert (charge.amount, charge.cost) == (2_000, 1_200)
    charge = prices.price(found(prices), "default", Usage(input_tokens=600), [])
    assert (charge.amount, charge.cost) == (2_000, 1_200)
    assert prices.origin.rounding == "ceil"


def test_a_call_without_a_price_is_an_error() -> None:
    prices = book()
    assert (prices.prices_call("file_search"), prices.prices_call("lookup")) == (True, False)
    assert prices.call_price("web_search") == 10_000 * 10**15
    for fails in (
        lambda: prices.call_price("lookup"),
        lambda: prices.price(found(prices), "default", Usage(calls=(("lookup", 1),))),
        lambda: prices.ceiling(found(prices), "default", Bounds(0, 0, calls=(("lookup", 1),))),
        lambda: found(prices).tier("golden"),
    ):
        with pytest.raises(UnpricedModel):
            fails()


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("m", "m"),
        ("m-2026-01-02", "m"),
        ("m-2026-01-2", None),
        ("xm-2026-01-02", None),
        ("ft:b-2026-01-02:acme::x", "ft:b-2026-01-02"),
        ("ft:b-2026-03-04:acme::x", "ft:b"),
        ("ft:b:acme::x", "ft:b"),
        ("ft:m:acme::x", None),
        ("ft:b", "ft:b"),
        ("dated-2026-01-02", "dated-2026-01-02"),
    ],
)
def test_a_name_is_priced_by_itself_or_by_what_it_is_a_snapshot_of(name: str, by: str | None) -> None:
    prices = book(**{"ft:b": ROW, "ft:b-2026-01-02": ROW, "dated": ROW, "dated-2026-01-02": ROW})
    model = prices.find(name)
    assert (None if model is None else model.name) == by


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("m", "m"),
        ("m-2026-01-02", "m"),
        ("ft:m:acme::x", "ft:m"),
        ("ft:m-2026-01-02:acme::x", "ft:m"),
        ("m-2026-01-2", "m-2026-01-2"),
    ],
)
def test_figures_of_a_model_stand_under_its_name_without_date_and_owner(name: str, shown: str) -> None:
    assert family(name) == shown


def test_what_customers_are_shown_is_what_they_pay() -> None:
    prices = book("2", sale={"markup": "2", "models": {"sold": EXPLICIT}}, sold=ROW)
    plain = snapshot(prices.customer_price(found(prices), "default"))
    assert plain == {
        "unit": "credits",
        "service_tier": "default",
        "per_million_tokens": {"input": 4_000, "output": 16_000},
        "per_million_tokens_above_272k_input": {"input": 8_000, "output": 24_000},
    }
    sold = snapshot(prices.customer_price(found(prices, "sold"), "default"))
    assert sold["per_million_tokens"] == {"input": 7_000, "output": 9_000}
    assert sold["per_million_tokens_above_272k_input"] == {"input": 11_000, "output": 13_000}
    batch = snapshot(prices.customer_price(found(prices, "sold"), "batch"))
    assert (batch["service_tier"], batch["per_million_tokens"]) == ("batch", {"input": 3_000, "output": 12_000})
    assert b'"input":4000,' in bytes(prices.customer_price(found(prices), "default")), "as people write it, not 4E+3"
    assert prices.customer_price(found(prices), "default") is prices.customer_price(found(prices), "default")


def test_output_that_a_budget_pays_for_is_counted_to_the_token() -> None:
    prices = book()
    model, bounds = found(prices), Bounds(10, 999)  # 10 x 2.5 = 25, and 8 a token
    budgets = (0, 32, 33, 40, 41, 25 + 8 * 1_000)
    assert [prices.affordable_output(model, "default", bounds, budget) for budget in budgets] == [0, 0, 1, 1, 2, 1_000]
    assert prices.affordable_output(model, "batch", bounds, 13 + 4) == 1
    assert prices.affordable_output(model, "default", bounds, 10**18) == MAX_TOKENS
    mute = book(o={**ROW, "rates": {"default": {"short": {"input": "2"}}}})
    assert mute.affordable_output(found(mute, "o"), "default", bounds, 10**9) == 0


def test_the_echoed_tier_is_read_as_openai_names_it() -> None:
    echoes = ("default", "standard", "auto", "fast", "flex", "golden", None)
    tiers = [tier_of(echo, "batch") for echo in echoes]
    assert tiers == ["default", "default", "default", "priority", "flex", "golden", "batch"]


def test_what_is_not_said_of_bounds_and_of_a_book_is_nothing() -> None:
    assert Bounds(1, 2) == Bounds(1, 2, 0, False, False, 0, 0, 0, (), ())
    assert BookOrigin("c1", "1", "exact") == ("c1", "1", "exact", Adjustment("1", ""), "")


def test_a_catalogue_is_read_whole_and_without_numbers() -> None:
    assert read_catalogue('{"a": "1.5", "b": 2}') == {"a": "1.5", "b": 2}
    with pytest.raises(InvariantBroken, match=r"1\.5"):
        read_catalogue('{"a": 1.5}')
    assert (book().catalogue_id, book().effective_from) == ("c1", "2026-12-01")
    assert load_catalogue()["catalogueId"] == PriceBook(load_catalogue(), "1", "exact").catalogue_id


@pytest.mark.parametrize(
    ("tokens", "tier", "cost"),
    [(272_000, "default", 272_000 * 2 * 3), (272_001, "default", 272_001 * 4 * 3), (272_001, "batch", 272_001 * 1 * 3)],
    ids=["short", "long", "no long price"],
)
def test_an_input_that_is_left_out_is_sold_at_the_markup_on_its_own_contexts_cost(
    tokens: int, tier: str, cost: int
) -> None:
    """Where a tier has no price of its own for a long one, that is what a short one costs."""
    left_out = {"short": {"output": "1"}, "long": {"output": "1"}}
    sale = {"markup": "3", "models": {"m": {"rates": {"default": left_out, "batch": left_out}}}}
    prices = book(sale=sale)
    assert prices.price(found(prices), tier, Usage(input_tokens=tokens)).amount == cost
