"""What packages leave, by the prices in force: bonuses, fees and the worst model."""

from fractions import Fraction
from typing import Any

import pytest

from billing.accounting.margins import cheapest, package_margins, selling_below
from billing.money.pricing import PriceBook, load_catalogue
from billing.payments.purchase import offer
from config.load import load_settings
from proxy.customer_api.money_in import offers_of
from tests.support.servers import ROOT

PACKAGES = [offer("starter", "9.99", "0"), offer("plus", "49.99", "5"), offer("pro", "99.99", "10")]


def book(of_settings: str, **sale: Any) -> PriceBook:
    return PriceBook(load_catalogue() | ({"prices": sale} if sale else {}), of_settings, "exact")


def test_a_package_leaves_its_price_less_fee_and_cost() -> None:
    starter, _, pro = package_margins(PACKAGES, Fraction(1))
    # 999 cents, of which 58.971 are Stripe's and 999 OpenAI's
    assert starter.percent == Fraction(-58_971, 9_990)
    assert str(starter) == "starter leaves -5.9 %"
    # 9,999 cents, of which 319.971 are Stripe's and 10,998.9 OpenAI's
    assert str(pro) == "pro leaves -13.2 %"
    assert str(package_margins(PACKAGES, Fraction(6, 5))[2]) == "pro leaves 5.1 %"
    assert str(package_margins(PACKAGES, Fraction(0))[0]) == "starter leaves nothing"


@pytest.mark.parametrize(
    ("made", "lowest"),
    [
        (book("1.5"), "3/2"),
        (book("2", markup="0.5", models={}), "1/2"),
        (book("2", markup="1.5", models={"gpt-4.1": {"markup": "1.1"}}), "11/10"),
        (book("0.5", markup="2", models={}), "2"),
    ],
    ids=["the settings", "the card", "one model", "wrong in the other direction"],
)
def test_the_card_that_applies_wins_over_the_settings(made: PriceBook, lowest: str) -> None:
    found = cheapest(made)
    assert found is not None
    assert found.markup == Fraction(lowest)
    words, below = selling_below(made, PACKAGES)
    assert below == (Fraction(lowest) < Fraction("1.13"))
    assert all(package.code in words for package in PACKAGES)


def test_explicit_prices_count_by_their_lowest_part() -> None:
    own = load_catalogue()["models"]["gpt-4.1"]["rates"]["default"]["short"]
    rates = {"default": {"short": own | {"output": "0.01"}}}
    found = cheapest(book("2", markup="2", models={"gpt-4.1": {"rates": rates}}))
    assert found is not None
    assert (found.model, found.markup < Fraction(1, 100)) == ("gpt-4.1", True)


def test_what_is_shipped_leaves_a_margin() -> None:
    settings = load_settings(ROOT / "proxy.toml", {})
    words, below = selling_below(book(settings.billing.markup), offers_of(settings))
    assert not below, words
    assert selling_below(book("1"), offers_of(settings))[1]
