"""Charges against figures worked out by hand from docs/openai.md (USD per million tokens = millicredits per token)."""

import json
from fractions import Fraction

import pytest

from billing.money.errors import UnpricedModel
from billing.money.pricing import Bounds, ModelUsage, PriceBook, load_catalogue, tier_of
from billing.money.usage import Usage
from tests.support.rate_cards import SHIPPED, card

BOOK = PriceBook(load_catalogue(), "1", "exact")


def charge(model: str, tier: str = "default", **tokens: int) -> int:
    found = BOOK.find(model)
    assert found is not None
    return BOOK.price(found, tier, Usage(**tokens).normalised()).amount


@pytest.mark.parametrize(
    ("model", "tier", "tokens", "amount"),
    [
        # 1,419 in of which 1,024 cached; 210 out: 395*0.75 + 1024*0.075 + 210*4.5 = 296.25 + 76.8 + 945 = 1,318.05
        ("gpt-5.4-mini", "default", {"input_tokens": 1419, "cached_tokens": 1024, "output_tokens": 210}, 1_319),
        # the same with 256 written; no write price is listed, so 1.25 x 0.75: 139*0.75 + 76.8 + 256*0.9375 + 945 = 1,366.05
        (
            "gpt-5.4-mini",
            "default",
            {"input_tokens": 1419, "cached_tokens": 1024, "cache_write_30m_tokens": 256, "output_tokens": 210},
            1_367,
        ),
        ("gpt-5.4-mini-2026-03-17", "priority", {"input_tokens": 10, "output_tokens": 10}, 105),  # 10*1.5 + 10*9
        (
            "gpt-6-astra",
            "default",
            {"input_tokens": 100, "cache_write_30m_tokens": 40, "output_tokens": 1},
            1_150,
        ),  # 60*10 + 40*12.5 + 50
        (
            "gpt-6-astra",
            "default",
            {"input_tokens": 100, "cache_write_12h_tokens": 40, "output_tokens": 1},
            1_650,
        ),  # 60*10 + 40*25 + 50
        ("gpt-6-astra", "flex", {"input_tokens": 100, "output_tokens": 2}, 550),  # 100*5 + 2*25
        ("gpt-6-astra", "ultrafast", {"input_tokens": 100, "output_tokens": 2}, 6_600),  # 100*60 + 2*300
        # exactly 272,000 is short; one more makes the whole request long: 2x in, 1.5x out
        ("gpt-6-sol", "default", {"input_tokens": 272_000, "output_tokens": 10}, 544_100),
        ("gpt-6-sol", "default", {"input_tokens": 272_001, "output_tokens": 10}, 1_088_154),
        # 13 text * 2.5 + 44 audio * 32 + 15 text out * 10 + 46 audio out * 64 = 32.5 + 1,408 + 150 + 2,944
        (
            "gpt-audio-1.5",
            "default",
            {"input_tokens": 57, "audio_input_tokens": 44, "output_tokens": 61, "audio_output_tokens": 46},
            4_535,
        ),
        # 19*1.25 + 10*10 = 123.75, and one search at 0.01 USD = 10,000 millicredits
        (
            "gpt-5-search-api-2025-10-14",
            "default",
            {"input_tokens": 19, "output_tokens": 10, "web_searches": 1},
            10_124,
        ),
        ("text-embedding-3-small", "default", {"input_tokens": 8}, 1),  # 0.16 rounds up
        ("gpt-3.5-turbo-instruct", "default", {"input_tokens": 5, "output_tokens": 2}, 12),  # 7.5 + 4 = 11.5
        ("gpt-4o-mini", "default", {"input_tokens": 0, "output_tokens": 0}, 0),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", "default", {"input_tokens": 10, "output_tokens": 10}, 15),  # 3 + 12
    ],
)
def test_charges(model: str, tier: str, tokens: dict[str, int], amount: int) -> None:
    assert charge(model, tier, **tokens) == amount


def test_no_price_is_an_error_never_zero() -> None:
    assert BOOK.find("gpt-99") is None
    assert BOOK.find("gpt-6.2-astra-law") is None
    model = BOOK.find("gpt-4o-mini")
    assert model is not None
    with pytest.raises(UnpricedModel):
        BOOK.price(model, "flex", Usage(input_tokens=1))


def test_markup_and_rounding_apply_once_at_the_end() -> None:
    usage = Usage(input_tokens=7, output_tokens=3)  # 7*0.15 + 3*0.6 = 2.85
    for markup, rounding, amount in (
        ("1", "exact", 3),
        ("1.3", "exact", 4),
        ("2", "exact", 6),
        ("1", "ceil", 1_000),
        ("400", "ceil", 2_000),
    ):
        book = PriceBook(load_catalogue(), markup, rounding)  # type: ignore[arg-type]
        model = book.find("gpt-4o-mini")
        assert model is not None
        priced = book.price(model, "default", usage)
        assert (priced.amount, priced.cost) == (amount, 3)


def test_the_ceiling_takes_the_dearest_rate_that_can_apply() -> None:
    model = BOOK.find("gpt-6-astra")
    assert model is not None
    assert BOOK.ceiling(model, "default", Bounds(100, 10)).amount == 100 * 12.5 + 500
    assert BOOK.ceiling(model, "default", Bounds(100, 10, cache_write_12h=True)).amount == 100 * 25 + 500
    assert BOOK.ceiling(model, "default", Bounds(272_001, 0)).amount == 272_001 * 25
    audio = BOOK.find("gpt-audio-1.5")
    assert audio is not None
    # 90 text tokens at 1.25 x 2.5 (a write without a listed price), 10 of audio at 32, output at the audio rate
    assert BOOK.ceiling(audio, "default", Bounds(100, 10, audio_input_tokens=10, audio_output=True)).amount == -(
        -(90 * 3_125 + 320_000 + 640_000) // 1000
    )


@pytest.mark.parametrize("budget", [0, 1, 60, 61, 1_000, 12_345, 999_999])
def test_affordable_output_is_the_most_that_fits(budget: int) -> None:
    model = BOOK.find("gpt-4o-mini")
    assert model is not None
    bounds = Bounds(100, 16_384)
    tokens = BOOK.affordable_output(model, "default", bounds, budget)
    fits = [
        n
        for n in range(max(0, tokens - 3), tokens + 4)
        if BOOK.ceiling(model, "default", bounds._replace(output_tokens=n)).amount <= budget
    ]
    assert tokens == (max(fits) if fits else 0)


def test_the_echoed_tier_prices() -> None:
    assert [tier_of(echo, "flex") for echo in ("default", "priority", "fast", None)] == [
        "default",
        "priority",
        "priority",
        "flex",
    ]


def test_what_customers_pay_is_by_model_and_what_it_costs_us_is_not() -> None:
    prices = {
        "markup": "1.2",
        "models": {
            "gpt-4o-mini": {"rates": {"default": {"short": {"input": "1", "output": "2"}}}},
            "gpt-4o*": {"markup": "1.5"},
            "gpt-free": {"markup": "0"},
        },
    }
    book = PriceBook(card("sale", prices=prices), "7", "exact")
    usage = Usage(input_tokens=1_000, output_tokens=100)

    def charge(name: str) -> tuple[int, int]:
        model = book.find(name)
        assert model is not None
        found = book.price(model, "default", usage)
        return found.amount, found.cost

    # cost by the catalogue: gpt-4o 2.5/10, gpt-4.1 2/8, gpt-4o-mini 0.15/0.6
    assert charge("gpt-4o") == (5_250, 3_500)  # x 1.5
    assert charge("gpt-4.1") == (3_360, 2_800)  # x 1.2
    assert charge("gpt-4o-mini") == (1_200, 210)  # its own price
    mini = book.find("gpt-4o-mini")
    assert mini is not None
    shown = json.loads(bytes(book.price(mini, "default", usage).rates))
    assert shown["customerUsdPerMillionTokens"] == {"input": "1", "output": "2"}
    assert shown["rateCardId"] == "sale"


def test_several_models_of_one_request_are_summed_before_the_one_rounding() -> None:
    book = PriceBook(SHIPPED, "1", "exact")
    luna, mini = book.find("gpt-6-luna"), book.find("gpt-4o-mini")
    assert luna is not None
    assert mini is not None
    # 0.1 x 3 + 0.15 x 3 = 0.75: one millicredit, not two
    assert (
        book.price(luna, "default", Usage(input_tokens=3), [ModelUsage(mini, "default", Usage(input_tokens=3))]).amount
        == 1
    )


def test_durations_are_exact_to_the_millisecond() -> None:
    book = PriceBook(SHIPPED, "1", "exact")
    realtime, whisper = book.find("gpt-realtime-whisper"), book.find("whisper-1")
    assert realtime is not None
    assert whisper is not None
    # $0.000283333333333 a second, 15 decimals in the source
    exact = Fraction("0.000283333333333") * 1_000_000 * 3600
    assert book.price(realtime, "default", Usage(milliseconds=3_600_000)).amount == -(
        -exact.numerator // exact.denominator
    )
    assert book.price(whisper, "default", Usage(milliseconds=8_470)).amount == 847
    assert book.price(whisper, "default", Usage(milliseconds=8_471)).amount == 848
