"""A row of usage priced again from itself: to amounts worked out by hand, or passed over for the reason that it has."""

import json
from typing import Any

import pytest

from billing.money.errors import InvariantBroken
from billing.money.repricing import Priced, reprice
from billing.money.usage_record import UsageRow

TEXT = {"input": "2", "cached_input": "0.5", "output": "8"}
TOOLS = {"web_search": "0.01", "file_search": "0.0025", "vector_store_gb_day": "0.1"}
NUMBERS = frozenset(UsageRow._fields) - {"charge_id", "usage_source", "rates", "tool_calls"}


def rates_of(per_million: dict[str, str] = TEXT, units: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    snapshot = {"tier": "default", "context": "short", "usdPerMillionTokens": per_million, "usdPerUnit": units or {}}
    return {**snapshot, **more}


def row(rates: Any, *, calls: dict[str, int] | None = None, source: str = "upstream", **counts: Any) -> UsageRow:
    said = {
        "charge_id": "req_1",
        "usage_source": source,
        "rates": rates if isinstance(rates, str) else json.dumps(rates),
    }
    called = {"tool_calls": json.dumps(calls) if calls else ""}
    return UsageRow(**{**dict.fromkeys(NUMBERS, 0), **said, **called, **counts})  # type: ignore[arg-type]


def amounts(found: object) -> set[tuple[int, int]]:
    assert isinstance(found, Priced), found
    return set(found.options)


# $1 is 1,000,000 millicredits, so $1 a million tokens is one millicredit a token
@pytest.mark.parametrize(
    ("made", "expected"),
    [
        # 800 x 2 + 200 x 0.5 + 10 x 8 = 1,780; rounded to a whole credit that is 2,000
        (row(rates_of(), input_tokens=1_000, cached_tokens=200, output_tokens=10), {(1_780, 1_780), (1_780, 2_000)}),
        (row(rates_of(), input_tokens=500), {(1_000, 1_000)}),
        # 1,780 x 1.5 = 2,670
        (
            row(rates_of(markup="1.5"), input_tokens=1_000, cached_tokens=200, output_tokens=10),
            {(1_780, 2_670), (1_780, 3_000)},
        ),
        # 7 x 0.1 = 0.7: a millicredit begun is one; 0.7 x 1.3 = 0.91
        (row(rates_of({"input": "0.1"}, markup="1.3"), input_tokens=7), {(1, 1), (1, 1_000)}),
        # reasoning is in the output already
        (row(rates_of(), output_tokens=10, reasoning_tokens=10), {(80, 80), (80, 1_000)}),
        # two searches at $0.01, three at $0.0025: 27,500
        (row(rates_of(), calls={"web_search": 2, "file_search": 3}), {(27_500, 27_500), (27_500, 28_000)}),
        # half a GB for a day: what is counted of storage is bytes
        (row(rates_of(), calls={"vector_store_gb_day": 500_000_000}), {(50_000, 50_000)}),
        # marked up as the tokens are: (100 x 2 + 20,000) x 1.1 = 22,220
        (
            row(rates_of(markup="1.1"), input_tokens=100, calls={"web_search": 2}),
            {(20_200, 22_220), (20_200, 23_000)},
        ),
        # searches of the model's own, seconds and characters by the unit: 30,000 + 6,000 + 45
        (
            row(
                rates_of({}, {"web_search": "0.01", "per_second": "0.0001", "per_character": "0.000015"}),
                web_searches=3,
                audio_milliseconds=60_000,
                characters=3,
            ),
            {(36_045, 36_045), (36_045, 37_000)},
        ),
        # sound and pictures at prices of their own: 100 x 2 + 30 x 40 + 20 x 10; out 5 x 8 + 4 x 80 + 3 x 30
        (
            row(
                rates_of(
                    {**TEXT, "audio_input": "40", "image_input": "10", "audio_output": "80", "image_output": "30"}
                ),
                input_tokens=150,
                audio_input_tokens=30,
                image_input_tokens=20,
                output_tokens=12,
                audio_output_tokens=4,
                image_output_tokens=3,
            ),
            {(2_050, 2_050), (2_050, 3_000)},
        ),
    ],
)
def test_a_row_is_what_its_own_rates_make_of_it(made: UsageRow, expected: set[tuple[int, int]]) -> None:
    assert amounts(reprice(made, TOOLS)) == expected


def test_what_was_written_to_the_cache_may_have_had_either_price() -> None:
    """100 of 300 were written: 200 x 2 + 100 x 2.5 (for half an hour: a quarter more), or 100 x 5 (for twelve)."""
    made = row(rates_of(), input_tokens=300, cache_write_tokens=100)
    assert amounts(reprice(made, {})) == {(650, 650), (650, 1_000), (900, 900), (900, 1_000)}


def test_sale_prices_of_their_own_are_of_tokens_and_units_by_whose_they_are() -> None:
    counts = {"input_tokens": 1_000, "output_tokens": 10, "audio_milliseconds": 1_000}
    card = rates_of(TEXT, {"per_second": "0.0001"}, customerUsdPerMillionTokens={"input": "3", "output": "9"})
    # cost 2,000 + 80 + 100; sold at 3,000 + 90, and the card's own second
    assert amounts(reprice(row(card, **counts), {})) == {(2_180, 3_190), (2_180, 4_000)}
    plan = {**card, "markup": "1.5", "customerUsdPerUnit": {"per_second": "0.0005"}}
    assert amounts(reprice(row(plan, **counts), {})) == {(2_180, 3_590), (2_180, 4_000)}
    # of a plan, tools are marked up: 10,000 x 1.5
    called = row(plan, **counts, calls={"web_search": 1})
    assert amounts(reprice(called, TOOLS)) == {(12_180, 18_590), (12_180, 19_000)}


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (row(rates_of(), source="bounded"), "bounded"),
        (row(rates_of(), charge_id="req_1-rest"), "rest"),
        (row(rates_of(more=[])), "other models"),
        (row(rates_of(), calls={"code_interpreter": 1}), "tool price"),
        (row(rates_of(), calls={"web_search": 1, "code_interpreter": 1}), "tool price"),
        (row(rates_of(customerUsdPerMillionTokens=TEXT), calls={"web_search": 1}), "tool price"),
        (row(rates_of({**TEXT, "audio_input": "40"}), cached_tokens=1, audio_input_tokens=1), "cached media"),
        (row(rates_of({**TEXT, "image_input": "40"}), cached_tokens=1, image_input_tokens=1), "cached media"),
    ],
)
def test_what_a_row_does_not_hold_is_passed_over_by_name(made: UsageRow, why: str) -> None:
    assert reprice(made, TOOLS) == why


@pytest.mark.parametrize(
    "made",
    [
        row(rates_of(TEXT), cached_tokens=1, audio_input_tokens=1, image_input_tokens=1, input_tokens=2),
        row(rates_of({**TEXT, "audio_input": "40"}), cached_tokens=1, image_input_tokens=1, input_tokens=2),
        row(rates_of({**TEXT, "image_input": "40"}), cached_tokens=1, audio_input_tokens=1, input_tokens=2),
    ],
)
def test_cached_media_that_cost_as_text_does_are_priced(made: UsageRow) -> None:
    assert amounts(reprice(made, {})) == {(3, 3), (3, 1_000)}  # 2 + 0.5, and a millicredit begun is one


@pytest.mark.parametrize(
    "rates",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"usdPerMillionTokens": {}}',
        '{"usdPerUnit": {}}',
        '{"usdPerMillionTokens": 1, "usdPerUnit": {}}',
    ],
)
def test_a_row_without_rates_stops_by_its_name(rates: str) -> None:
    with pytest.raises(InvariantBroken, match=r"^usage row req_1 has no rates$"):
        reprice(row(rates), {})


@pytest.mark.parametrize("price", ["cheap", None, "-1", ["2"]])
def test_rates_that_hold_no_price_stop(price: object) -> None:
    with pytest.raises(InvariantBroken):
        reprice(row(rates_of({"input": price})), {})  # type: ignore[dict-item]


def test_what_is_no_number_is_told_as_such() -> None:
    for price in ("cheap", None):
        with pytest.raises(InvariantBroken, match=r"^the rates hold something that is no price$"):
            reprice(row(rates_of({"input": price})), {})  # type: ignore[dict-item]


def test_a_card_that_has_the_tools_that_were_called_and_no_other_prices_them() -> None:
    assert amounts(reprice(row(rates_of(), calls={"web_search": 1}), {"web_search": "0.01"})) == {(10_000, 10_000)}
