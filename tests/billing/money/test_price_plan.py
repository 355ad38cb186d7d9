"""Price plans: what makes a document one, how each model is sold by it, and that a row says how it was."""

from fractions import Fraction
from typing import Any

import msgspec
import pytest

from billing.money.catalogue.models import STORAGE
from billing.money.catalogue.price_plan import PLAN_ID, BadPricePlan, PlanPrices, read_prices
from billing.money.pricing import Bounds, PriceBook
from billing.money.repricing import Priced, reprice
from billing.money.usage import Usage
from billing.money.usage_record import UsageRow
from tests.support.rate_cards import SHIPPED, card

BASE = PriceBook(SHIPPED, "1.2", "exact")
MILLION = Usage(input_tokens=200_000, output_tokens=100_000)
EXPLICIT = {"default": {"short": {"input": "1.80", "output": "7.50"}}}


def sold(prices: dict[str, Any], base: PriceBook = BASE) -> PriceBook:
    return base.under(PlanPrices("gold.1", read_prices(prices)))


def amount(book: PriceBook, name: str, usage: Usage = MILLION, tier: str = "default") -> int:
    model = book.find(name)
    assert model is not None
    return book.price(model, tier, usage).amount


def test_the_first_pattern_that_fits_says_how_a_model_is_sold_and_everything_else_has_the_plans_markup() -> None:
    book = sold({"markup": "1.1", "models": {"gpt-4o-mini": {"markup": "2"}, "gpt-4o*": {"rates": EXPLICIT}}})
    # gpt-4o-mini costs $0.15 and $0.60 a million tokens, gpt-4.1 $2 and $8
    assert amount(book, "gpt-4o-mini") == 2 * (30_000 + 60_000)
    assert amount(book, "gpt-4o") == 360_000 + 750_000
    assert amount(book, "gpt-4.1") == 11 * (400_000 + 800_000) // 10
    assert amount(BASE, "gpt-4o-mini") == 12 * (30_000 + 60_000) // 10, "everyone's prices are as they were"


def test_without_a_markup_what_the_plan_does_not_name_is_sold_as_to_everyone() -> None:
    book = sold({"models": {"gpt-4o": {"rates": EXPLICIT}}})
    assert amount(book, "gpt-4.1") == amount(BASE, "gpt-4.1")
    assert amount(book, "gpt-4o", tier="priority") == amount(BASE, "gpt-4o", tier="priority")


def test_a_plan_wins_over_the_cards_own_prices() -> None:
    dear = card("dear", prices={"markup": "3", "models": {"gpt-4.1": {"rates": EXPLICIT}}})
    book = sold({"markup": "1"}, PriceBook(dear, "1", "exact"))
    assert amount(book, "gpt-4.1") == 400_000 + 800_000
    assert amount(book, "gpt-4o-mini") == 30_000 + 60_000


def test_a_dated_snapshot_of_a_model_and_what_has_no_model_are_sold_by_the_plan() -> None:
    book = sold({"markup": "2", "models": {"vector_store_storage": {"markup": "3"}}})
    assert amount(book, "gpt-4.1-2025-04-14") == 2 * (400_000 + 800_000)
    day = Usage(calls=(("vector_store_gb_day", 10**9),))
    at_cost = PriceBook(SHIPPED, "1", "exact")
    one = at_cost.price(at_cost.service(STORAGE), "default", day).amount
    assert book.price(book.service(STORAGE), "default", day).amount == 3 * one


def test_calls_and_units_beside_explicit_prices_have_the_markup_of_their_rule() -> None:
    book = sold({"markup": "1.1", "models": {"gpt-4.1": {"rates": EXPLICIT, "markup": "1.5"}}})
    used = Usage(input_tokens=200_000, output_tokens=100_000, calls=(("file_search", 2),))
    # $2.50 for a thousand calls of file search: 2,500 millicredits each
    assert amount(book, "gpt-4.1", used) == 360_000 + 750_000 + 15 * 2 * 2_500 // 10


def test_a_held_for_request_is_priced_at_the_plans_dearest_rate() -> None:
    book = sold({"models": {"gpt-4.1": {"rates": {"default": {"short": {"input": "9", "output": "90"}}}}}})
    model = book.find("gpt-4.1")
    assert model is not None
    # a cache write costs 1.25 of what input does, unless the prices say another thing
    assert book.ceiling(model, "default", Bounds(1_000, 100)).amount == 9 * 1_250 + 9_000


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        ({}, "no price"),
        ({"markup": 1.1}, "quotes"),
        ({"markup": "1.1234567"}, "6 decimals"),
        ({"markup": "-1"}, "quotes"),
        ({"gpt-4.1": {"markup": "1"}}, "prices are written"),
        ({"models": {"gpt-4.1": {}}}, "neither a markup nor rates"),
        ({"models": {"gpt-4.1": {"rates": {"fast": {"short": {"input": "1"}}}}}}, "no such service tier"),
        ({"models": {"gpt-4.1": {"rates": {"default": {"long": {"input": "1"}}}}}}, "must have `short`"),
        ({"models": {"gpt-4.1": {"rates": {"default": {"short": {"inptu": "1"}}}}}}, "no 'inptu'"),
        ({"models": {"gpt-4.1": {"rates": {"default": {"short": {"output": "1"}}}}}}, "`input`"),
        (
            {"models": {"m": {"rates": {"default": {"short": {"input": "2"}, "long": {"input": "1"}}}}}},
            "cheaper than short",
        ),
    ],
)
def test_what_cannot_be_a_plan_is_refused_with_what_is_wrong(prices: dict[str, Any], said: str) -> None:
    with pytest.raises(BadPricePlan, match=said):
        read_prices(prices)


def row_of(book: PriceBook, name: str, usage: Usage, tool_calls: str = "") -> UsageRow:
    model = book.find(name)
    assert model is not None
    charge = book.price(model, "default", usage)
    blank = {field: 0 for field in UsageRow._fields}
    text = {
        "usage_source": "upstream",
        "charge_id": "c1",
        "tool_calls": tool_calls,
        "rates": bytes(charge.rates).decode(),
    }
    counts = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    more = {
        "audio_milliseconds": usage.milliseconds,
        "characters": usage.characters,
        "web_searches": usage.web_searches,
    }
    return UsageRow(**{**blank, **text, **counts, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "usage", "calls"),
    [
        ("gpt-4.1", MILLION, ""),
        ("gpt-4o", MILLION, ""),
        ("gpt-4o", Usage(input_tokens=7, calls=(("file_search", 2),)), '{"file_search":2}'),
        ("gpt-4o-mini-search-preview", Usage(input_tokens=7, output_tokens=3, web_searches=1), ""),
        ("whisper-1", Usage(milliseconds=61_000), ""),
    ],
)
def test_a_row_says_by_which_version_it_was_priced_and_can_be_priced_again(name: str, usage: Usage, calls: str) -> None:
    named = {"*search*": {"rates": EXPLICIT, "markup": "1.7"}, "gpt-4o": {"rates": EXPLICIT, "markup": "1.5"}}
    book = sold({"markup": "1.1", "models": named})
    row, model = row_of(book, name, usage, calls), book.find(name)
    assert model is not None
    assert msgspec.json.decode(row.rates)["pricePlan"] == "gold.1"
    charge = book.price(model, "default", usage)
    again = reprice(row, SHIPPED["tools"])
    assert isinstance(again, Priced), again
    assert (charge.cost, charge.amount) in again.options


def test_customers_are_shown_what_the_plan_makes_them_pay() -> None:
    book = sold({"markup": "1.5", "models": {"gpt-4o": {"rates": EXPLICIT}}})
    shown = {}
    for name in ("gpt-4.1", "gpt-4o"):
        model = book.find(name)
        assert model is not None
        shown[name] = msgspec.json.decode(book.customer_price(model, "default"))["per_million_tokens"]
    assert shown["gpt-4.1"]["input"] == 3_000
    assert shown["gpt-4o"] == {"input": 1_800, "output": 7_500}


def test_a_book_says_by_which_version_it_sells_so_that_it_can_be_made_again() -> None:
    assert sold({"markup": "1"}).origin == BASE.origin._replace(plan="gold.1")
    assert (BASE.origin.plan, BASE.plan_id) == ("", "")


def test_a_unit_of_more_decimals_than_there_are_is_never_sold_below_its_price() -> None:
    odd = card("odd", **{"models/whisper-1/per_second": "0.000000000000001"})
    prices = {"models": {"whisper-1": {"markup": "1.000001", "rates": {"default": {"short": {"input": "0"}}}}}}
    model = sold(prices, PriceBook(odd, "1", "exact")).find("whisper-1")
    assert model is not None
    assert model.sale["default"].short.millisecond >= Fraction("1.000001") * model.tiers["default"].short.millisecond


LONG: dict[str, Any] = {
    "mode": "chat",
    "endpoints": [],
    "reasoning": False,
    "contextWindow": None,
    "maxInputTokens": None,
    "maxOutputTokens": None,
    "per_second": "0.0001",
    "per_character": "0.00002",
    "per_call": {"web_search": "0.01"},
    "rates": {
        "default": {"short": {"input": "2", "output": "8"}, "long": {"input": "4", "output": "12"}},
        "batch": {"short": {"input": "1", "output": "4"}},
    },
}
BOTH = {"short": {"input": "3", "output": "9"}, "long": {"input": "5", "output": "13", "cached_input": "6"}}


def long_model(prices: dict[str, Any], everyone: str = "1.2") -> Any:
    """The model m, with a long context and every unit, as a plan sells it."""
    tools = {"file_search": "0.0025"}
    document = {"catalogueId": "c", "effectiveFrom": "2026-12-01", "tools": tools, "models": {"m": LONG, "n": LONG}}
    return sold(prices, PriceBook(document, everyone, "exact")).find("m")


def told(rates: Any) -> Any:
    return msgspec.json.decode(rates.snapshot)


def test_a_markup_is_written_as_people_write_it() -> None:
    assert told(long_model({"markup": "100"}).tiers["default"].short)["markup"] == "100"


@pytest.mark.parametrize("part", ["tier", "context", "web_search", "millisecond", "character", "snapshot"])
def test_what_is_no_part_of_a_token_price_cannot_be_one(part: str) -> None:
    with pytest.raises(BadPricePlan, match=f"there is no '{part}' to price"):
        read_prices({"models": {"m": {"rates": {"default": {"short": {"input": "1", part: "1"}}}}}})


def test_the_snapshot_says_the_plan_and_the_markup() -> None:
    model = long_model({"markup": "1.50"})
    assert (model.markup, model.sale) == (Fraction(3, 2), {})
    for rates, tier, context in (
        (model.tiers["default"].short, "default", "short"),
        (model.tiers["default"].long, "default", "long"),
        (model.tiers["batch"].short, "batch", "short"),
    ):
        assert told(rates) == {
            "rateCardId": "c",
            "tier": tier,
            "context": context,
            "usdPerMillionTokens": LONG["rates"][tier][context],
            "usdPerUnit": {"per_second": "0.0001", "per_character": "0.00002", "web_search": "0.01"},
            "markup": "1.5",
            "pricePlan": "gold.1",
        }
    assert model.tiers["batch"].long is None
    assert model.tiers["default"].long.input == 4 * 10**15


def test_a_model_that_the_plan_leaves_alone_is_everyones_under_the_plans_name() -> None:
    model = long_model({"models": {"other": {"markup": "9"}}})
    assert (model.markup, model.sale) == (Fraction("1.2"), {})
    shown = told(model.tiers["default"].long)
    assert (shown["markup"], shown["pricePlan"], shown["context"]) == ("1.2", "gold.1", "long")
    assert model.tiers["batch"].long is None
    assert told(model.tiers["batch"].short)["pricePlan"] == "gold.1"


def test_explicit_prices_have_a_card_of_their_own_with_units_at_the_markup() -> None:
    model = long_model({"models": {"m": {"rates": {"default": BOTH}, "markup": "1.5"}}})
    assert sorted(model.sale) == ["default"]
    short, long = model.sale["default"].short, model.sale["default"].long
    one = 10**15
    assert (short.tier, short.context, short.input, short.output) == ("default", "short", 3 * one, 9 * one)
    assert (long.tier, long.context, long.input, long.cached_input) == ("default", "long", 5 * one, 6 * one)
    # $0.0001 a second is a tenth of a millicredit a millisecond; $0.00002 are 20, $0.01 are 10,000: all of it x 1.5
    assert (short.millisecond, short.character, short.web_search) == (3 * one // 20, 30 * one, 15_000 * one)
    units = {"per_second": "0.00015", "per_character": "0.00003", "web_search": "0.015"}
    assert told(short) == {"usdPerMillionTokens": BOTH["short"], "usdPerUnit": units}
    assert told(long) == {"usdPerMillionTokens": BOTH["long"], "usdPerUnit": units}
    for cost, context in ((model.tiers["default"].short, "short"), (model.tiers["default"].long, "long")):
        shown = told(cost)
        assert shown["customerUsdPerMillionTokens"] == BOTH[context]
        assert (shown["customerUsdPerUnit"], shown["markup"]) == (units, "1.5")
        assert shown["usdPerMillionTokens"] == LONG["rates"]["default"][context]
    assert model.tiers["default"].short.input == 2 * one, "what it costs us stays"
    assert "customerUsdPerMillionTokens" not in told(model.tiers["batch"].short)
    assert told(model.tiers["batch"].short)["markup"] == "1.5"


def test_explicit_prices_without_a_markup_have_everyones_for_units_and_the_short_ones_for_long_requests() -> None:
    model = long_model({"models": {"m": {"rates": {"default": {"short": BOTH["short"]}}}}})
    assert model.markup == Fraction("1.2")
    assert model.sale["default"].long.input == 3 * 10**15
    assert model.sale["default"].short.web_search == 12_000 * 10**15
    model = long_model({"markup": "2", "models": {"m": {"rates": {"batch": {"short": BOTH["short"]}}}}})
    assert (model.markup, sorted(model.sale), model.sale["batch"].long) == (2, ["batch"], None)


def test_the_cards_own_explicit_prices_go_where_a_plan_sells() -> None:
    tools = {"file_search": "0.0025"}
    sale = {"models": {"m": {"rates": {"default": {"short": {"input": "7", "output": "7"}}}}}}
    document = {
        "catalogueId": "c",
        "effectiveFrom": "2026-12-01",
        "tools": tools,
        "models": {"m": LONG},
        "prices": sale,
    }
    model = sold({"markup": "2"}, PriceBook(document, "1", "exact")).find("m")
    assert model is not None
    shown = told(model.tiers["default"].short)
    assert ("customerUsdPerMillionTokens" in shown, shown["markup"]) == (False, "2")


def test_a_units_price_has_the_markup_exactly() -> None:
    model = long_model({"models": {"m": {"rates": {"default": BOTH}, "markup": "1.000001"}}})
    # $0.00002 a character are 20 millicredits
    assert model.sale["default"].short.character == 20 * 1_000_001 * 10**9


def test_models_by_plan_are_as_many_as_there_are_and_each_is_made_once() -> None:
    book = sold({"markup": "2"})
    assert book.names() == BASE.names()
    assert len(book._models) == len(BASE._models)
    assert book.find("gpt-4.1") is book.find("gpt-4.1")
    assert book.find("gpt-99") is None
    assert (book.plan_id, book.origin.plan) == ("gold.1", "gold.1")


@pytest.mark.parametrize(
    "prices",
    [
        {"markup": "0"},
        {"markup": "9999.123456"},
        {"models": {"m": {"markup": "1"}}},
        {"models": {"!~": {"markup": "1"}}},
        {"models": {"m" * 120: {"markup": "1"}}},
        {"models": {"m": {"rates": {}}}},
        {"models": {"m": {"rates": {"default": {"short": {"input": "999999999.123456789012"}}}}}},
        {"models": {"m": {"rates": {"default": {"short": {"input": "1"}, "long": {"input": "1"}}}}}},
        {"models": {"m": {"rates": dict.fromkeys(("default", "flex", "priority", "ultrafast", "batch"), BOTH)}}},
        {"models": {f"m{number}": {"markup": "1"} for number in range(500)}},
    ],
)
def test_what_may_be_a_plan_is_read_as_it_is_written(prices: dict[str, Any]) -> None:
    assert msgspec.to_builtins(read_prices(prices)) == prices


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        ({"markup": "10000"}, "regex"),
        ({"markup": "1."}, "regex"),
        ({"markup": "1x"}, "regex"),
        ({"markup": "1", "modles": {}}, "modles"),
        ({"models": {"": {"markup": "1"}}}, "prices cannot be read"),
        ({"models": {"a b": {"markup": "1"}}}, "prices cannot be read"),
        ({"models": {"m" * 121: {"markup": "1"}}}, "prices cannot be read"),
        ({"models": {"m": {"markup": "1", "more": 1}}}, "more"),
        ({"models": {"m": {"rates": {"default": {"short": {"input": "1234567890"}}}}}}, "regex"),
        ({"models": {"m": {"rates": {"default": {"short": {"input": "1.1234567890123"}}}}}}, "regex"),
        ({"models": {"m": {"rates": {"default": {"short": {"input": "1.0.0"}}}}}}, "regex"),
        ({"models": {f"m{number}": {"markup": "1"} for number in range(501)}}, "at most 500"),
        ({"models": {"m": {"rates": {"default": {"short": {"input": "1"}, "longer": {}}}}}}, "may have `long`"),
        ({"models": {"m": {"rates": {"default": {"short": {"input": "1", "b": "1", "a": "1"}}}}}}, "no 'a' to"),
        ({"models": {"m": {"rates": {"default": {"short": {"input": "1", "web_search": "1"}}}}}}, "no 'web_search'"),
        ({"models": {"m": {"rates": {"default": {"short": {"input": "1"}, "long": {"output": "1"}}}}}}, "long lacks"),
        (
            {"models": {"m": {"rates": {"flex": {"short": {"input": "1", "output": "2"}, "long": {"input": "1"}}}}}},
            "models.m.rates.flex.long is cheaper",
        ),
    ],
)
def test_what_is_no_plan_is_refused_and_where(prices: dict[str, Any], said: str) -> None:
    with pytest.raises(BadPricePlan, match=said):
        read_prices(prices)


@pytest.mark.parametrize(
    ("name", "fits"),
    [("gold", True), ("0_-", True), ("g" * 40, True), ("", False), ("g" * 41, False), ("-g", False), ("Gold", False)],
)
def test_a_plan_has_a_short_plain_name(name: str, fits: bool) -> None:
    assert (PLAN_ID.match(name) is not None) is fits


INPUT_ALONE = {"default": {"short": {"input": "1.80"}}}
DEARER_WHEN_SHORT = {"default": {"short": {"input": "10", "output": "10"}, "long": {"input": "1", "output": "1"}}}


# I7
def test_an_output_that_explicit_prices_leave_out_is_sold_at_the_markup_and_never_for_nothing() -> None:
    by_plan = sold({"markup": "1.5", "models": {"*": {"rates": INPUT_ALONE}}})
    by_card = PriceBook(card("c", prices={"markup": "1.5", "models": {"*": {"rates": INPUT_ALONE}}}), "1", "exact")
    for book in (by_plan, by_card):
        # 200,000 at $1.80 a million; 100,000 at one and a half times what they cost: $8 of gpt-4.1, $0.60 of gpt-4o-mini
        assert amount(book, "gpt-4.1") == 360_000 + 1_200_000
        assert amount(book, "gpt-4o-mini") == 360_000 + 90_000
        assert amount(book, "text-embedding-3-small", Usage(input_tokens=200_000)) == 360_000
        model = book.find("gpt-4.1")
        assert model is not None
        assert book.ceiling(model, "default", Bounds(200_000, 100_000)).amount >= 360_000 + 1_200_000
        row = book.price(model, "default", MILLION)
        assert msgspec.json.decode(row.rates)["customerUsdPerMillionTokens"] == {"input": "1.80", "output": "12"}
        assert msgspec.json.decode(book.customer_price(model, "default"))["per_million_tokens"]["output"] == 12_000


def test_an_input_that_a_card_of_before_left_out_is_sold_at_the_markup() -> None:
    """Such a card is refused today; one that was taken is in a ledger."""
    prices = {"markup": "1.5", "models": {"gpt-4.1": {"rates": {"default": {"short": {"output": "7.50"}}}}}}
    book = PriceBook(card("c", prices=prices), "1", "exact")
    assert amount(book, "gpt-4.1") == 600_000 + 750_000  # 200,000 at one and a half times $2 a million


def test_an_output_that_is_given_away_in_words_is_free() -> None:
    book = sold({"models": {"gpt-4.1": {"rates": {"default": {"short": {"input": "1.80", "output": "0"}}}}}})
    assert amount(book, "gpt-4.1") == 360_000


def test_a_markup_of_many_places_on_an_output_is_rounded_up_and_exact() -> None:
    book = sold({"markup": "1.000001", "models": {"gpt-4.1": {"rates": INPUT_ALONE}}})
    assert amount(book, "gpt-4.1", Usage(input_tokens=1, output_tokens=1_000_000)) == 2 + 8_000_008


# I2
@pytest.mark.parametrize("ours", [True, False], ids=["cost", "sale"])
def test_what_is_held_for_a_long_request_covers_one_that_turns_out_short(ours: bool) -> None:
    plain = {"default": {"short": {"input": "1", "output": "1"}, "long": {"input": "1", "output": "1"}}}
    row = {**SHIPPED["models"]["gpt-4.1"], "rates": DEARER_WHEN_SHORT if ours else plain}
    prices = {} if ours else {"prices": {"models": {"m": {"rates": DEARER_WHEN_SHORT}}}}
    book = PriceBook({**SHIPPED, "catalogueId": "c", "models": {"m": row}, **prices}, "1", "exact")
    model = book.find("m")
    assert model is not None
    # it may have read exactly the 272,000 tokens that are short still: at $10 a million, as its 1,000 of output
    assert amount(book, "m", Usage(input_tokens=272_000, output_tokens=1_000)) == 2_730_000
    assert book.ceiling(model, "default", Bounds(300_000, 1_000)).amount >= 2_730_000
