"""Rates: every count times its own, exactly; and which price stands for which where a card does not say it."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import pytest

from billing.money.errors import InvariantBroken
from billing.money.model_rates import (
    Adjustment,
    ModelRates,
    adjusted,
    call_rate,
    complete_prices,
    customer_price,
    exact_rate,
    fits_any,
    model_rates,
    regional_uplifts,
    scaled_cost,
)
from billing.money.pricing import Bounds, PriceBook, _scaled_ceiling
from billing.money.usage import Usage
from tests.support.rate_cards import card

RAW = msgspec.Raw(b"{}")
APART = ModelRates(
    tier="default",
    context="short",
    input=10**2,
    cached_input=10**4,
    cache_write_30m=10**6,
    cache_write_12h=10**8,
    output=10**10,
    audio_input=10**12,
    cached_audio_input=10**14,
    audio_output=10**16,
    image_input=10**18,
    cached_image_input=10**20,
    image_output=10**22,
    web_search=10**24,
    millisecond=10**26,
    character=10**28,
    snapshot=RAW,
)
"""Each rate has two digits of a charge by itself: what a charge is made of can be read off it."""


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        # 100 in, of which 20 of sound and 30 pictures: 50 of text, of which 8 cached, 3 and 4 written
        (
            Usage(
                input_tokens=100,
                output_tokens=60,
                cached_tokens=15,
                cache_write_30m_tokens=3,
                cache_write_12h_tokens=4,
                audio_input_tokens=20,
                image_input_tokens=30,
                cached_audio_tokens=5,
                cached_image_tokens=2,
                audio_output_tokens=11,
                image_output_tokens=9,
                web_searches=6,
                milliseconds=7,
                characters=13,
            ),
            {
                "input": 35,
                "cached_input": 8,
                "cache_write_30m": 3,
                "cache_write_12h": 4,
                "output": 40,
                "audio_input": 15,
                "cached_audio_input": 5,
                "audio_output": 11,
                "image_input": 28,
                "cached_image_input": 2,
                "image_output": 9,
                "web_search": 6,
                "millisecond": 7,
                "character": 13,
            },
        ),
        # 20 cached, 10 of text at most: the other 10 are sound
        (
            Usage(input_tokens=50, cached_tokens=20, audio_input_tokens=25, image_input_tokens=15),
            {"cached_input": 10, "audio_input": 15, "cached_audio_input": 10, "image_input": 15},
        ),
        # 45 cached: 10 of text, all 25 of sound, and 10 of the pictures
        (
            Usage(input_tokens=50, cached_tokens=45, audio_input_tokens=25, image_input_tokens=15),
            {"cached_input": 10, "cached_audio_input": 25, "image_input": 5, "cached_image_input": 10},
        ),
        # as many were cached as there is text: none of the sound was
        (
            Usage(input_tokens=50, cached_tokens=10, audio_input_tokens=25, image_input_tokens=15),
            {"cached_input": 10, "audio_input": 25, "image_input": 15},
        ),
        # the split says 6 of sound and nothing of the other 20, of which 10 are text at most
        (
            Usage(
                input_tokens=50, cached_tokens=26, audio_input_tokens=25, image_input_tokens=15, cached_audio_tokens=6
            ),
            {"cached_input": 10, "audio_input": 9, "cached_audio_input": 16, "image_input": 15},
        ),
        # cached and written more than there is: each as it says, and nothing plain
        (
            Usage(input_tokens=10, cached_tokens=8, cache_write_30m_tokens=4, cache_write_12h_tokens=5),
            {"cached_input": 8, "cache_write_30m": 4, "cache_write_12h": 5},
        ),
    ],
)
def test_every_token_is_charged_once_by_the_rate_of_its_kind(usage: Usage, tokens: dict[str, int]) -> None:
    assert scaled_cost(APART, usage) == sum(number * getattr(APART, rate) for rate, number in tokens.items())


def test_sound_and_pictures_at_the_price_of_text_are_text() -> None:
    alike = APART._replace(audio_input=APART.input, image_input=APART.input)
    usage = Usage(
        input_tokens=50,
        cached_tokens=30,
        audio_input_tokens=25,
        image_input_tokens=15,
        cached_audio_tokens=20,
        cached_image_tokens=10,
    )
    assert scaled_cost(alike, usage) == 20 * 10**2 + 30 * 10**4
    assert scaled_cost(alike._replace(image_input=7), usage) == 15 * 10**2 + 20 * 10**4 + 5 * 7 + 10 * 10**20
    assert scaled_cost(alike._replace(audio_input=7), usage) == 15 * 10**2 + 10 * 10**4 + 5 * 7 + 20 * 10**14


UNIT = 10**15
"""A millicredit a token, or a dollar a million tokens."""


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        (
            {"input": "2"},
            {
                "input": 2 * UNIT,
                "cached_input": 2 * UNIT,
                "cache_write_30m": 5 * UNIT // 2,
                "cache_write_12h": 5 * UNIT,
                "audio_input": 2 * UNIT,
                "cached_audio_input": 2 * UNIT,
                "image_input": 2 * UNIT,
                "cached_image_input": 2 * UNIT,
            },
        ),
        ({"output": "3"}, {"output": 3 * UNIT, "audio_output": 3 * UNIT, "image_output": 3 * UNIT}),
        ({"image_output": "4"}, {"output": 4 * UNIT, "audio_output": 4 * UNIT, "image_output": 4 * UNIT}),
        (
            {"output": "3", "image_output": "4", "audio_output": "5"},
            {"output": 3 * UNIT, "audio_output": 5 * UNIT, "image_output": 4 * UNIT},
        ),
        ({"audio_input": "6"}, {"audio_input": 6 * UNIT, "cached_audio_input": 6 * UNIT}),
        (
            {"audio_input": "6", "cached_audio_input": "1"},
            {"audio_input": 6 * UNIT, "cached_audio_input": UNIT},
        ),
        ({"image_input": "6"}, {"image_input": 6 * UNIT, "cached_image_input": 6 * UNIT}),
        (
            {"image_input": "6", "cached_image_input": "1"},
            {"image_input": 6 * UNIT, "cached_image_input": UNIT},
        ),
        ({"cached_input": "1"}, {"cached_input": UNIT}),
        ({"cache_write_30m": "1"}, {"cache_write_30m": UNIT}),
        ({"cache_write_12h": "1"}, {"cache_write_12h": UNIT}),
        # five quarters of 0.000000000001 are rounded up to the finest rate there is
        (
            {"input": "0.000000000000001", "cached_input": "0", "audio_input": "0", "image_input": "0"},
            {"input": 1, "cache_write_30m": 2, "cache_write_12h": 3},
        ),
    ],
)
def test_a_price_that_is_not_listed_is_that_of_what_it_is_a_kind_of(
    prices: dict[str, str], expected: dict[str, int]
) -> None:
    made = model_rates("flex", "long", prices, {}, RAW)
    nothing = dict.fromkeys(ModelRates.__struct_fields__, 0)
    assert msgspec.structs.asdict(made) == {**nothing, "tier": "flex", "context": "long", "snapshot": RAW, **expected}


def test_units_are_usd_each_and_a_second_has_a_thousand_milliseconds() -> None:
    units = {"per_second": "0.000000000000002", "per_character": "0.000015", "web_search": "0.01"}
    made = model_rates("default", "short", {}, units, RAW)
    # 0.000015 USD are 15 millicredits, 0.01 USD are 10,000
    assert (made.millisecond, made.character, made.web_search) == (2_000, 15 * UNIT, 10_000 * UNIT)
    with pytest.raises(InvariantBroken):
        model_rates("default", "short", {}, {"per_second": "0.0000000000000000005"}, RAW)


def test_a_price_is_exact_and_not_negative() -> None:
    assert (exact_rate("0.001", 1_000), exact_rate("0", 10)) == (1, 0)
    for price in ("0.0001", "-1"):
        with pytest.raises(InvariantBroken):
            exact_rate(price, 1_000)


def test_storage_is_sold_by_the_byte_and_calls_by_the_call() -> None:
    # $0.10 for 1,000,000,000 bytes a day: a ten-billionth of a dollar, a ten-thousandth of a millicredit
    assert call_rate("vector_store_gb_day", "0.1") == 10**11
    assert call_rate("file_search", "0.0025") == 2_500 * UNIT


@pytest.mark.parametrize(
    ("globs", "fits"),
    [
        ([], False),
        (["*"], True),
        (["gpt-6*"], True),
        (["gpt-5*", "gpt-6-sol"], True),
        (["gpt-5*"], False),
        (["GPT*"], False),
    ],
)
def test_a_name_fits_globs(globs: list[str], fits: bool) -> None:
    assert fits_any("gpt-6-sol", globs) is fits


def test_the_uplift_of_a_region_is_openais_by_model_and_only_there() -> None:
    assert (regional_uplifts("eu")["gpt-6-sol"], regional_uplifts("atlantis")) == ("1.1", {})
    assert Adjustment(region="eu").of("gpt-6-sol") == Decimal("1.1")
    assert Adjustment(region="eu").of("gpt-4.1") == 1
    assert Adjustment().of("gpt-6-sol") == 1
    assert Adjustment() == ("1", "")
    assert Adjustment("0.5", "eu").of("gpt-6-sol") == Decimal("0.55")
    assert Adjustment("0.5").of("gpt-6-sol") == Decimal("0.5")


def test_prices_are_adjusted_exactly_and_written_without_exponents() -> None:
    listed = {"input": "1.50", "output": "1000"}
    assert adjusted(listed, 1) == listed
    assert adjusted(listed, Decimal("1.1")) == {"input": "1.65", "output": "1100"}
    assert adjusted({"input": "0.0000001"}, Decimal("0.1")) == {"input": "0.00000001"}


def test_an_adjusted_book_costs_more_per_token_and_second_and_the_same_per_call() -> None:
    book = PriceBook(card("there"), "1", "exact", Adjustment("2", "eu"))

    def cost(name: str, **usage: Any) -> int:
        model = book.find(name)
        assert model is not None
        return book.price(model, "default", Usage(**usage)).cost

    assert cost("gpt-6-sol", input_tokens=100) == 440  # 2 x 2 x 1.1
    assert cost("whisper-1", milliseconds=10_000) == 2_000  # 0.0001 a second, twice
    assert cost("tts-1", characters=10) == 300
    assert cost("gpt-5-search-api", web_searches=1, calls=(("file_search", 1),)) == 10_000 + 2_500
    assert book.origin.adjustment == Adjustment("2", "eu")


def shown(short: dict[str, Any], long: dict[str, Any] | None, markup: str) -> Any:
    def made(prices: dict[str, Any]) -> ModelRates:
        return APART._replace(snapshot=msgspec.Raw(msgspec.json.encode(prices)))

    price = customer_price("flex", made(short), None if long is None else made(long), Fraction(markup))
    return msgspec.json.decode(price)


def test_customers_see_credits_a_million_tokens_and_a_unit_with_the_markup() -> None:
    short = {"usdPerMillionTokens": {"input": "2", "output": "0.0005"}, "usdPerUnit": {"per_second": "0.0001"}}
    # $2 are 2,000 credits
    expected = {
        "unit": "credits",
        "service_tier": "flex",
        "per_million_tokens": {"input": 2_400, "output": 0.6},
        "per_second": 0.12,
    }
    assert shown(short, None, "1.2") == expected
    long = {"usdPerMillionTokens": {"input": "4"}, "usdPerUnit": {"per_second": "9"}}
    assert shown(short, long, "1.2") == {**expected, "per_million_tokens_above_272k_input": {"input": 4_800}}


@pytest.mark.parametrize(
    ("bounds", "dearest"),
    [
        (Bounds(7, 0), 7 * 10**20),  # pictures that were cached
        (Bounds(7, 0, cache_write_12h=True), 7 * 10**20),
        (Bounds(7, 0, audio_input_tokens=2), 7 * 10**20),
        (Bounds(0, 7), 7 * 10**22),
        (Bounds(0, 7, audio_output=True), 7 * 10**22),
        (Bounds(0, 0, web_searches=7), 7 * 10**24),
        (Bounds(0, 0, milliseconds=7), 7 * 10**26),
        (Bounds(0, 0, characters=7), 7 * 10**28),
    ],
)
def test_a_bound_is_held_at_the_dearest_rate_of_its_kind(bounds: Bounds, dearest: int) -> None:
    assert ceiling(APART, bounds) == dearest


@pytest.mark.parametrize("rate", ["input", "cached_input", "cache_write_30m", "image_input", "cached_image_input"])
def test_any_kind_of_input_may_be_the_dearest(rate: str) -> None:
    low = APART._replace(**dict.fromkeys(INPUTS, 1), audio_input=2, cached_audio_input=3, cache_write_12h=4)
    assert ceiling(low._replace(**{rate: 9}), Bounds(10, 0)) == 90
    assert ceiling(low._replace(**{rate: 9}), Bounds(10, 0, audio_input_tokens=4)) == 90
    assert ceiling(low, Bounds(10, 0, audio_input_tokens=4)) == 6 * 1 + 4 * 3
    assert ceiling(low._replace(audio_input=5), Bounds(10, 0, audio_input_tokens=4)) == 6 * 1 + 4 * 5
    assert ceiling(low, Bounds(10, 0, audio_input_tokens=4, cache_write_12h=True)) == 10 * 4


def test_any_kind_of_output_may_be_the_dearest() -> None:
    low = APART._replace(output=1, image_output=2, audio_output=3)
    assert (ceiling(low, Bounds(0, 10)), ceiling(low, Bounds(0, 10, audio_output=True))) == (20, 30)
    assert ceiling(low._replace(output=4), Bounds(0, 10, audio_output=True)) == 40


INPUTS = ("input", "cached_input", "cache_write_30m", "image_input", "cached_image_input")


def ceiling(rates: ModelRates, bounds: Bounds) -> int:
    """Return the bound of a card, in its rates."""
    return _scaled_ceiling(rates, bounds)


COSTS = {"input": "1", "output": "2", "image_output": "4", "audio_output": "8"}


@pytest.mark.parametrize(
    ("explicit", "added"),
    [
        ({"input": "9", "output": "9"}, {}),
        ({"input": "9", "image_output": "9"}, {}),
        ({"output": "9"}, {"input": "3"}),
        ({"input": "9"}, {"output": "6", "image_output": "12", "audio_output": "24"}),
        ({"input": "9", "audio_output": "9"}, {"output": "6", "image_output": "12"}),
        ({}, {"input": "3", "output": "6", "image_output": "12", "audio_output": "24"}),
    ],
)
def test_what_explicit_prices_leave_out_is_sold_at_the_markup(explicit: dict[str, str], added: dict[str, str]) -> None:
    """A price of texts or pictures stands for the other outputs, too; what is there stays as it is."""
    assert complete_prices(explicit, COSTS, Fraction(3)) == {**explicit, **added}
    no_output = {"input": "1"}
    assert complete_prices({"input": "9"}, no_output, Fraction(3)) == {"input": "9"}, (
        "what costs us nothing has no price"
    )


def test_a_marked_up_price_is_rounded_up_at_its_last_place() -> None:
    found = complete_prices({"output": "1"}, {"input": "1"}, Fraction(1, 3))
    assert found["input"] == "0.333333333333334"
    exact = complete_prices({"output": "1"}, {"input": "1.000000000000001"}, Fraction(1))
    assert exact["input"] == "1.000000000000001"
