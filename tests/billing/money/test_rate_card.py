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


TEXT: dict[str, Any] = {"default": {"short": {"input": "1", "output": "2"}}}


def one_model(**row: Any) -> str:
    """A card of one model."""
    facts = {
        "endpoints": [],
        "reasoning": False,
        "contextWindow": None,
        "maxInputTokens": None,
        "maxOutputTokens": None,
    }
    model = {"mode": "chat", "rates": TEXT, **facts, **row}
    return json.dumps({"catalogueId": "c", "effectiveFrom": "2026-12-01", "tools": {}, "models": {"m": model}})


@pytest.mark.parametrize(
    ("mode", "parts", "units", "missing"),
    [
        ("embedding", ["input"], {}, ""),
        ("embedding", ["output"], {}, "embedding needs input"),
        ("moderation", ["input"], {}, ""),
        ("moderation", ["output"], {}, "moderation needs input"),
        ("image_generation", ["input", "image_output"], {}, ""),
        ("image_generation", ["image_output"], {}, "image_generation needs image_output and input"),
        ("audio_speech", ["input", "output"], {}, ""),
        ("audio_speech", [], {"per_character": "1"}, ""),
        ("audio_speech", ["input"], {"per_character": "1"}, ""),
        ("audio_speech", ["output"], {}, "audio_speech needs input and output or per_character"),
        ("audio_speech", [], {"per_second": "1"}, "audio_speech cannot be sold by the per_second alone"),
        ("audio_transcription", ["input", "output"], {}, ""),
        ("audio_transcription", [], {"per_second": "1"}, ""),
        ("audio_transcription", ["input"], {}, "audio_transcription needs input and output or per_second"),
        ("realtime", ["input", "output"], {}, ""),
        ("realtime", [], {"per_second": "1"}, ""),
        ("realtime", ["output"], {}, "realtime needs input and output or per_second"),
        ("video_generation", [], {"per_second": "1"}, ""),
        ("video_generation", ["input", "output"], {}, "video_generation needs per_second"),
        ("chat", ["input", "output"], {}, ""),
        ("chat", ["input"], {"per_second": "1"}, "chat needs input and output"),
        (
            "chat",
            [],
            {"per_second": "1", "per_character": "1"},
            "chat cannot be sold by the per_character/per_second alone",
        ),
    ],
)
def test_every_kind_of_model_needs_its_own_prices(mode: str, parts: list[str], units: Any, missing: str) -> None:
    rates = {"default": {"short": dict.fromkeys(parts, "1")}} if parts else {}
    text = one_model(mode=mode, rates=rates, **units)
    if not missing:
        assert read_card(text)["models"]["m"]["mode"] == mode
        return
    with pytest.raises(BadRateCard, match=missing):
        read_card(text)


def test_what_is_listed_without_a_price_is_left_alone() -> None:
    assert read_card(one_model(mode="video_generation", rates={}))["models"]["m"]["rates"] == {}


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"golden": TEXT["default"]}, "models.m.rates.golden: there is no such service tier"),
        ({"flex": TEXT["default"]}, "models.m.rates has no default tier"),
        ({"default": {"long": {"input": "1", "output": "1"}}}, "models.m.rates.default must have `short`"),
        ({"default": {**TEXT["default"], "longer": {"input": "1", "output": "1"}}}, "models.m.rates.default must have"),
        ({"default": {**TEXT["default"], "long": {"input": "1"}}}, "models.m.rates.default.long lacks a price"),
        ({**TEXT, "flex": {"short": {"output": "1"}}}, "models.m.rates.flex.short lacks a price"),
        ({"default": {"short": {"input": "1234567890", "output": "1"}}}, "regex"),
        ({"default": {"short": {"input": "1.0000000000000001", "output": "1"}}}, "regex"),
        ({"default": {"short": {"input": "1.0.0", "output": "1"}}}, "regex"),
    ],
)
def test_tiers_and_contexts_are_whole(rates: Any, said: str) -> None:
    with pytest.raises(BadRateCard, match=re.escape(said)):
        read_card(one_model(rates=rates))


def test_every_tier_may_be_sold_with_both_contexts() -> None:
    both = {"short": {"input": "1", "output": "2"}, "long": {"input": "123456789", "output": "0.000000000000001"}}
    tiers = ("default", "flex", "priority", "ultrafast", "batch")
    assert read_card(one_model(rates=dict.fromkeys(tiers, both)))["models"]["m"]["rates"]["batch"] == both


@pytest.mark.parametrize("card_id", ["a", "A.b_c-9", "9" + "x" * 79])
def test_an_id_that_may_be(card_id: str) -> None:
    assert read_card(json.dumps({**json.loads(one_model()), "catalogueId": card_id}))["catalogueId"] == card_id


@pytest.mark.parametrize("card_id", ["", ".a", "a b", "x" * 81, "é"])
def test_an_id_that_may_not_be(card_id: str) -> None:
    with pytest.raises(BadRateCard, match="catalogueId must be"):
        read_card(json.dumps({**json.loads(one_model()), "catalogueId": card_id}))


@pytest.mark.parametrize(
    "change",
    [
        {"effectiveFrom": "12-2026-01"},
        {"effectiveFrom": "2026-12-01T00"},
        {"tools": {"file_search": "x"}},
        {"models": {"a b": {}}},
        {"models": {"x" * 121: {}}},
        {"prices": {"models": {"": {}}}},
        {"prices": {"models": {"m": {"markup": "1", "more": 1}}}},
    ],
)
def test_what_is_written_otherwise_is_refused(change: Any) -> None:
    with pytest.raises(BadRateCard, match="the rate card is not complete"):
        read_card(json.dumps({**json.loads(one_model()), **change}))


def test_only_a_mistake_in_sale_prices_is_answered_with_their_shape() -> None:
    with pytest.raises(BadRateCard) as caught:
        read_card(json.dumps({**json.loads(one_model()), "tools": {"file_search": "x"}}))
    assert str(caught.value).endswith(" - at `$.tools[...]`")


def test_a_card_that_cannot_be_read_or_used_says_so() -> None:
    for text in ("{", "[" * 100_000, '{"a": 1.5}'):
        with pytest.raises(BadRateCard, match="the rate card cannot be read"):
            read_card(text)
    finest = one_model(rates={"default": {"short": {"input": "0.000000000000001", "output": "1"}}})
    assert read_card(finest)
    coarse = {**json.loads(finest), "prices": {"markup": "1"}, "tools": {"vector_store_gb_day": "0.0000000000001"}}
    with pytest.raises(BadRateCard, match=r"the rate card cannot be used: .*0\.0000000000001"):
        read_card(json.dumps(coarse))


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"default": {"short": {"output": "1"}}}, "default.short lacks a price: `input`"),
        ({"default": {}}, "default must have `short`"),
        ({"golden": {"short": {"input": "1"}}}, "golden: there is no such service tier"),
        ({"default": {"short": {"inptu": "1", "input": "1"}}}, "default.short: there is no 'inptu' to price"),
        ({"default": {"short": {"input": "2"}, "long": {"input": "1"}}}, "default.long is cheaper than short"),
    ],
)
def test_explicit_sale_prices_of_a_card_are_whole_as_those_of_a_plan_are(rates: Any, said: str) -> None:
    """A price left out would be nothing: customers had such input for free."""
    prices = {"models": {"m*": {"rates": rates}}}
    with pytest.raises(BadRateCard, match=re.escape(f"prices.models.m*.rates.{said}")):
        read_card(json.dumps({**json.loads(one_model()), "prices": prices}))


def test_a_card_that_was_taken_before_stays_what_it_is() -> None:
    prices = {"models": {"m*": {"rates": {"default": {"short": {"output": "1"}}}}}}
    text = json.dumps({**json.loads(one_model()), "prices": prices})
    assert read_card(text, new=False)["prices"] == prices


@pytest.mark.parametrize("unit", ["per_second", "per_character"])
def test_a_unit_that_is_null_is_refused_and_where_it_stands(unit: str) -> None:
    with pytest.raises(BadRateCard, match=rf"models\.m: .*`\$\.{unit}`"):
        read_card(one_model(**{unit: None}))


def test_a_difference_names_every_price_of_a_card_by_its_path() -> None:
    row = {
        "rates": TEXT,
        "per_second": "3",
        "per_character": "4",
        "per_call": {"web_search": "5"},
        "ends": "2027-01-01",
        "successor": "n",
    }
    prices = {"markup": "8", "models": {"g*": {"markup": "9", "rates": {"flex": {"long": {"input": "7"}}}}}}
    empty: dict[str, Any] = {"tools": {}, "models": {}}
    full = {"tools": {"file_search": "6"}, "models": {"m": row}, "prices": prices}
    expected = {
        "m.default.short.input": "1",
        "m.default.short.output": "2",
        "m.ends": "2027-01-01",
        "m.per_call.web_search": "5",
        "m.per_character": "4",
        "m.per_second": "3",
        "m.successor": "n",
        "prices.g*.flex.long.input": "7",
        "prices.g*.markup": "9",
        "prices.markup": "8",
        "tools.file_search": "6",
    }
    assert difference(empty, full) == [{"price": name, "before": None, "after": to} for name, to in expected.items()]
    assert difference(full, empty) == [{"price": name, "before": to, "after": None} for name, to in expected.items()]
    bare = {"tools": {}, "models": {"m": {"rates": {}, "ends": None}}, "prices": {"models": {"g*": {}}}}
    assert difference(empty, bare) == []


def test_a_card_that_says_no_more_than_the_newer_catalogue_has_its_id() -> None:
    def tiny(name: str, **more: Any) -> dict[str, Any]:
        return {"catalogueId": name, "models": {"m": 1}, "tools": {"t": "1"}, **more}

    assert refreshed(tiny("old"), tiny("new")) == tiny("new")
    assert refreshed(tiny("old", tools={"u": "1"}), tiny("new")) == tiny("new.old", tools={"u": "1", "t": "1"})
    assert refreshed(tiny("old", models={"m": 0, "n": 2}), tiny("new")) == tiny("new.old", models={"m": 1, "n": 2})
    sale = {"markup": "2"}
    assert refreshed(tiny("old", prices=sale), tiny("new")) == tiny("new.old", prices=sale)
    assert refreshed(tiny("old", prices=sale), tiny("new", prices={})) == tiny("new", prices={})
    assert refreshed(tiny("old", kept="no"), tiny("new"), "mine") == tiny("mine")


@pytest.mark.parametrize(
    "prices",
    [None, {"models": {"gpt-4.1": {"markup": None}}}, {"models": {"gpt-4.1": {"rates": None}}}, {"models": None}],
    ids=["prices", "a markup", "rates", "models"],
)
def test_sale_prices_that_are_null_are_refused_in_words(prices: Any) -> None:
    with pytest.raises(BadRateCard, match=r"got `null` - at `\$\.prices"):
        read_card(json.dumps({**card("c"), "prices": prices}))
