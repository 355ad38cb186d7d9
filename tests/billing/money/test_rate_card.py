"""Rate cards: complete or refused."""

import json
import re
from typing import Any

import pytest

from billing.money.rate_card import BadRateCard, difference, read_card, refreshed
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
        ({"models/gpt-4o/ends": "soon"}, "models.gpt-4o"),
        ({"models/gpt-4o/ends": "2027-02-30"}, "models.gpt-4o"),
        ({"models/gpt-4o/ends": 20270114}, "models.gpt-4o"),
    ],
)
def test_an_incomplete_card_is_refused_and_says_where(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadRateCard, match=complaint.replace(".", r"\.")):
        read_card(json.dumps(card("new", **change)))


@pytest.mark.parametrize("prices", [{"gpt-4.1": {"markup": "2"}}, {"models": {"gpt-4.1": "2"}}, []])
def test_sale_prices_of_another_shape_are_shown_theirs(prices: object) -> None:
    with pytest.raises(BadRateCard) as caught:
        read_card(json.dumps({**card("own"), "prices": prices}))
    shape = re.search(r"\{.*\}", str(caught.value))
    assert shape is not None
    assert read_card(json.dumps({**card("own"), **json.loads(shape[0])}))["prices"]["markup"] == "1.2"


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


def test_a_difference_names_ends_and_successors() -> None:
    rows = {row["price"]: (row["before"], row["after"]) for row in difference(forever(), SHIPPED)}
    assert rows["gpt-4o.ends"] == (None, "2027-01-14")
    assert "gpt-4o.successor" not in rows
    moved = card("moved", **{"models/gpt-4o/ends": "2027-03-01", "models/gpt-4o/successor": "gpt-6-sol"})
    assert difference(SHIPPED, moved) == [
        {"price": "gpt-4o.ends", "before": "2027-01-14", "after": "2027-03-01"},
        {"price": "gpt-4o.successor", "before": "gpt-6-luna", "after": "gpt-6-sol"},
    ]


def forever() -> dict[str, Any]:
    """The shipped card without ends."""
    return {**SHIPPED, "models": {name: {**row, "ends": None} for name, row in SHIPPED["models"].items()}}


def test_a_refreshed_card_is_the_newer_catalogue() -> None:
    assert refreshed(card("before", **{"models/gpt-4o/ends": "2027-03-01"}), SHIPPED) == SHIPPED


def test_a_refreshed_card_keeps_what_only_the_active_one_has() -> None:
    own = {"mode": "chat", "endpoints": ["/v1/chat/completions"]}
    sale = {"markup": "1.2", "models": {"gpt-6*": {"markup": "1.5"}}}
    active = card("acme", **{"models/acme-1": own, "tools/lookup": "0.01", "prices": sale})
    active["models"]["gpt-4o"] = {**active["models"]["gpt-4o"], "ends": "2027-03-01"}
    made = refreshed(active, SHIPPED)
    assert (made["models"]["acme-1"], made["tools"]["lookup"], made["prices"]) == (own, "0.01", sale)
    assert made["models"]["gpt-4o"]["ends"] == "2027-01-14", "the newer catalogue's word; the difference shows it"
    assert made["catalogueId"] == f"{SHIPPED['catalogueId']}.acme", "not the shipped card, so not its id"
    assert refreshed(active, SHIPPED, "acme-2")["catalogueId"] == "acme-2"
    assert len(refreshed({**active, "catalogueId": "a" * 80}, SHIPPED)["catalogueId"]) == 80
    newer = {**SHIPPED, "prices": {"markup": "3"}}
    assert refreshed(active, newer)["prices"] == {"markup": "3"}, "what was written into the newer one is meant"
