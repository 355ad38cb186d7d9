"""Charges by a price plan against an independent calculation in Fractions, from the catalogue's and the plan's strings."""

import json
from fnmatch import fnmatchcase
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.money.catalogue.price_plan import PlanPrices, read_prices
from billing.money.pricing import Bounds, PriceBook, load_catalogue
from billing.money.usage import Usage
from tests.support.servers import ROOT

CATALOGUE = json.loads((ROOT / "config" / "prices" / "catalogue.json").read_text())
CHAT = sorted(
    name for name, row in CATALOGUE["models"].items() if row["mode"] in ("chat", "completion") and row["rates"]
)
EVERYONE = "1.2"
BASE = PriceBook(load_catalogue(), EVERYONE, "exact")
CALLS = ("file_search", "web_search")

markups = st.decimals("0", "9", places=3).map(str)
prices = st.decimals("0.001", "90", places=4).map(str)
block = st.fixed_dictionaries({"input": prices, "output": prices}, optional={"cached_input": prices})


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    found: dict[str, Any] = {"models": {}}
    if draw(st.booleans()):
        found["markup"] = draw(markups)
    patterns = draw(
        st.lists(st.sampled_from(["gpt-4*", "gpt-5*", "gpt-6*", "o*", "*mini*", *CHAT]), unique=True, max_size=4)
    )
    for pattern in patterns:
        rule: dict[str, Any] = {}
        if draw(st.booleans()):
            rule["markup"] = draw(markups)
        if not rule or draw(st.booleans()):
            rule["rates"] = {
                tier: {"short": draw(block)}
                for tier in draw(st.sets(st.sampled_from(["default", "batch"]), min_size=1))
            }
        found["models"][pattern] = rule
    if not found["models"] and "markup" not in found:
        found["markup"] = draw(markups)
    return found


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    whole_in, whole_out = draw(st.integers(0, 600_000)), draw(st.integers(0, 130_000))
    cached = draw(st.integers(0, whole_in))
    calls = draw(st.dictionaries(st.sampled_from(CALLS), st.integers(1, 9), max_size=2))
    return Usage(input_tokens=whole_in, output_tokens=whole_out, cached_tokens=cached, calls=tuple(calls.items()))


def by_hand(plan: dict[str, Any], name: str, tier: str, usage: Usage) -> int:
    """The rule as docs/operations.md has it: find how it is sold, sum, round up once."""
    rule = next((rule for pattern, rule in plan["models"].items() if fnmatchcase(name, pattern)), {})
    markup = Fraction(rule.get("markup", plan.get("markup", EVERYONE)))
    calls = sum(Fraction(CATALOGUE["tools"][tool]) * 1_000_000 * number for tool, number in usage.calls)
    explicit = rule.get("rates", {}).get(tier)
    row = CATALOGUE["models"][name]["rates"][tier]
    book = row if explicit is None else explicit
    rates = book["long" if usage.input_tokens > 272_000 and "long" in book else "short"]
    tokens = (usage.input_tokens - usage.cached_tokens) * Fraction(rates["input"])
    tokens += usage.cached_tokens * Fraction(rates.get("cached_input", rates["input"]))
    tokens += usage.output_tokens * Fraction(rates.get("output", "0"))
    return ceil((tokens + calls) * markup if explicit is None else tokens + calls * markup)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(plan=plans(), name=st.sampled_from(CHAT), usage=usages(), data=st.data())
def test_a_charge_by_plan_is_what_its_formula_says(
    plan: dict[str, Any], name: str, usage: Usage, data: st.DataObject
) -> None:
    tier = data.draw(st.sampled_from(sorted(CATALOGUE["models"][name]["rates"])))
    book = BASE.under(PlanPrices("p.1", read_prices(plan)))
    model = book.find(name)
    assert model is not None
    charge = book.price(model, tier, usage)
    assert charge.amount == by_hand(plan, name, tier, usage)
    everyone = BASE.find(name)
    assert everyone is not None
    assert charge.cost == BASE.price(everyone, tier, usage).cost, "what it costs us is no matter of a plan's"


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(plan=plans(), name=st.sampled_from(CHAT), usage=usages(), spare=st.integers(0, 1_000), data=st.data())
def test_no_usage_within_its_bounds_costs_more_by_plan_than_its_hold(
    plan: dict[str, Any], name: str, usage: Usage, spare: int, data: st.DataObject
) -> None:
    tier = data.draw(st.sampled_from(sorted(CATALOGUE["models"][name]["rates"])))
    book = BASE.under(PlanPrices("p.1", read_prices(plan)))
    model = book.find(name)
    assert model is not None
    bounds = Bounds(usage.input_tokens + spare, usage.output_tokens + spare, calls=usage.calls)
    assert book.price(model, tier, usage).amount <= book.ceiling(model, tier, bounds).amount


def test_what_is_cached_may_be_sold_above_what_is_not() -> None:
    """Nobody does so on purpose; the hold covers it all the same."""
    rates = {"default": {"short": {"input": "1", "output": "1", "cached_input": "5"}}}
    book = BASE.under(PlanPrices("p.1", read_prices({"models": {"gpt-4.1": {"rates": rates}}})))
    model = book.find("gpt-4.1")
    assert model is not None
    assert book.price(model, "default", Usage(input_tokens=4, cached_tokens=4)).amount == 20
    assert book.ceiling(model, "default", Bounds(4, 0)).amount == 20
