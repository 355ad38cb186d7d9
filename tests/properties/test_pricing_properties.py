"""Pricing against an independent, straightforward calculation in Fractions from the catalogue's strings."""

import json
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.money.pricing import Bounds, PriceBook, load_catalogue
from billing.money.usage import Usage
from tests.support.servers import ROOT

CATALOGUE = json.loads((ROOT / "config" / "prices" / "catalogue.json").read_text())
CHAT = sorted(
    name for name, row in CATALOGUE["models"].items() if row["mode"] in ("chat", "completion") and row["rates"]
)
BOOK = PriceBook(load_catalogue(), "1", "exact")

tokens = st.integers(0, 600_000)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    whole_in, whole_out = draw(tokens), draw(st.integers(0, 130_000))
    cached = draw(st.integers(0, whole_in))
    written = draw(st.integers(0, whole_in - cached))
    long = draw(st.integers(0, written))
    return Usage(
        input_tokens=whole_in,
        output_tokens=whole_out,
        cached_tokens=cached,
        cache_write_30m_tokens=written - long,
        cache_write_12h_tokens=long,
    )


def plainly(name: str, tier: str, usage: Usage) -> int:
    """The formula of docs/openai.md, in Fractions."""
    block = CATALOGUE["models"][name]["rates"][tier]
    rates = {
        part: Fraction(price)
        for part, price in block["long" if usage.input_tokens > 272_000 and "long" in block else "short"].items()
    }
    plain = usage.input_tokens - usage.cached_tokens - usage.cache_write_30m_tokens - usage.cache_write_12h_tokens
    total = plain * rates["input"]
    total += usage.cached_tokens * rates.get("cached_input", rates["input"])
    total += usage.cache_write_30m_tokens * rates.get("cache_write_30m", rates["input"] * Fraction(5, 4))
    total += usage.cache_write_12h_tokens * rates.get("cache_write_12h", rates["input"] * Fraction(5, 2))
    total += usage.output_tokens * rates.get("output", Fraction(0))
    return ceil(total)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(CHAT), usage=usages(), data=st.data())
def test_every_charge_is_what_the_formula_says(name: str, usage: Usage, data: st.DataObject) -> None:
    tier = data.draw(st.sampled_from(sorted(CATALOGUE["models"][name]["rates"])))
    model = BOOK.find(name)
    assert model is not None
    assert BOOK.price(model, tier, usage).amount == plainly(name, tier, usage)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(CHAT),
    usage=usages(),
    spare_in=st.integers(0, 1_000),
    spare_out=st.integers(0, 1_000),
    data=st.data(),
)
def test_no_usage_within_its_bounds_costs_more_than_its_hold(
    name: str, usage: Usage, spare_in: int, spare_out: int, data: st.DataObject
) -> None:
    tier = data.draw(st.sampled_from(sorted(CATALOGUE["models"][name]["rates"])))
    model = BOOK.find(name)
    assert model is not None
    bounds = Bounds(
        usage.input_tokens + spare_in, usage.output_tokens + spare_out, cache_write_12h=usage.cache_write_12h_tokens > 0
    )
    assert BOOK.price(model, tier, usage).amount <= BOOK.ceiling(model, tier, bounds).amount


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(CHAT), tokens_in=tokens, budget=st.integers(0, 10_000_000), extra=st.integers(0, 5))
def test_affordable_output_fits_and_one_more_does_not(name: str, tokens_in: int, budget: int, extra: int) -> None:
    model = BOOK.find(name)
    assert model is not None
    tier = min(model.tiers)
    bounds = Bounds(tokens_in, 0, web_searches=extra % 2)
    affordable = BOOK.affordable_output(model, tier, bounds, budget)
    if affordable:
        assert BOOK.ceiling(model, tier, bounds._replace(output_tokens=affordable)).amount <= budget
    if BOOK.ceiling(model, tier, bounds._replace(output_tokens=1)).amount <= budget and model.tier(tier).short.output:
        assert BOOK.ceiling(model, tier, bounds._replace(output_tokens=affordable + 1)).amount > budget
