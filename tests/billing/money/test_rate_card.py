"""Rate cards: complete or refused."""

import json
from typing import Any

import pytest

from billing.money.rate_card import BadRateCard, difference, read_card
from tests.support.rate_cards import SHIPPED, card


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"models/gpt-4o/rates/default/short/output": None}, "models.gpt-4o.rates.default.short lacks a price"),
        ({"models/gpt-image-2/rates/default/short/image_output": None}, "image_output"),
        ({"models/gpt-4o/rates/default/short/input": "-1"}, "models.gpt-4o: Expected `str` matching regex"),
        ({"models/gpt-4o/rates/default/short/input": 2.5}, "number, not a string"),
        ({"models/gpt-4o/rates/default/short/input": "1e3"}, "models.gpt-4o: Expected `str` matching regex"),
        ({"models/gpt-4o/rates/default": None}, "no default tier"),
        ({"models/gpt-4o/rates/golden": {"short": {"input": "1", "output": "1"}}}, "no such service tier"),
        ({"models/gpt-4o/mode": None}, "mode"),
        ({"catalogueId": "a b"}, "catalogueId"),
        ({"effectiveFrom": "soon"}, "effectiveFrom"),
        ({"prices": {"markup": "1.2", "modles": {}}}, "modles"),
        ({"prices": {"markup": "free"}}, "prices.markup"),
        ({"tools": None}, "tools"),
    ],
)
def test_an_incomplete_card_is_refused_and_says_where(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadRateCard, match=complaint.replace(".", r"\.")):
        read_card(json.dumps(card("new", **change)))


def test_no_json_is_no_card() -> None:
    with pytest.raises(BadRateCard):
        read_card("{")


def test_a_difference_names_every_price_that_changed() -> None:
    after = card(
        "after",
        **{
            "models/gpt-4o/rates/default/short/input": "2.6",
            "models/whisper-1/per_second": "0.0002",
            "tools/file_search": "0.003",
            "models/gpt-5": None,
            "prices": {"markup": "1.2", "models": {"gpt-4o*": {"markup": "1.5"}}},
        },
    )
    rows = {row["price"]: (row["before"], row["after"]) for row in difference(SHIPPED, after)}
    assert rows["gpt-4o.default.short.input"] == ("2.5", "2.6")
    assert rows["whisper-1.per_second"] == ("0.0001", "0.0002")
    assert rows["tools.file_search"] == ("0.0025", "0.003")
    assert rows["gpt-5.default.short.input"] == ("1.25", None)
    assert (rows["prices.markup"], rows["prices.gpt-4o*.markup"]) == ((None, "1.2"), (None, "1.5"))
    assert difference(SHIPPED, SHIPPED) == []
