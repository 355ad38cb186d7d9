"""Rate cards: complete or refused, never edited, active from their time on."""

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from billing.ledger.rate_cards import RateCardError, RateCards
from billing.money.errors import StoreUnavailable
from billing.money.pricing import ModelUsage, PriceBook, load_catalogue
from billing.money.rate_card import BadRateCard, difference, read_card
from billing.money.usage import Usage
from tests.billing.stores import Books, close_books, open_books

SHIPPED = load_catalogue()


@pytest.fixture(params=["sqlite", "postgresql"])
async def sql(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Books]:
    url = request.getfixturevalue("fresh_postgres") if request.param == "postgresql" else ""
    opened = await open_books(folder, "", url)
    yield opened
    await close_books(opened)


def card(name: str, **changes: Any) -> dict[str, Any]:
    """The shipped card under another name, with changes at a dotted path."""
    document = copy.deepcopy(SHIPPED)
    document["catalogueId"] = name
    for path, value in changes.items():
        *inside, last = path.split("/")
        place = document
        for step in inside:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return document


async def test_the_latest_activation_in_effect_applies(sql: Books) -> None:
    cards = RateCards(sql.database)
    await cards.begin_with_shipped()
    await cards.begin_with_shipped()
    assert await cards.active_id() == SHIPPED["catalogueId"]
    for name in ("a", "b", "c"):
        assert await cards.add(card(name), "test")
    now = time.time_ns() // 1_000_000
    await cards.activate("a", now - 1_000, "test")
    await cards.activate("c", now + 60_000, "test")
    assert await cards.active_id() == "a"
    await cards.activate("b", now - 2_000, "test")  # from before `a`: it does not push it out
    assert await cards.active_id() == "a"
    await cards.activate("b", now - 1_000, "test")  # of the same time: the one made last
    assert await cards.active_id() == "b"
    assert [row.card_id for row in await cards.activations()] == [SHIPPED["catalogueId"], "a", "c", "b", "b"]


async def test_workers_that_start_at_once_begin_with_the_shipped_card_together(sql: Books) -> None:
    """As after a `migrate` that was killed before it laid the card, or when two machines meet an empty database."""
    await asyncio.gather(*(RateCards(sql.database).begin_with_shipped() for _ in range(4)))
    assert await RateCards(sql.database).active_id() == SHIPPED["catalogueId"]
    assert len(await RateCards(sql.database).cards()) == 1


async def test_a_card_is_never_edited(sql: Books) -> None:
    cards = RateCards(sql.database)
    assert await cards.add(card("a"), "test")
    assert not await cards.add(card("a"), "test")
    with pytest.raises(RateCardError, match="never edited"):
        await cards.add(card("a", **{"models/gpt-4o/rates/default/short/input": "1"}), "test")
    with pytest.raises(RateCardError, match="no rate card"):
        await cards.activate("missing", 0, "test")
    for statement in ("UPDATE rate_cards SET document = '{}'", "DELETE FROM rate_cards"):
        with pytest.raises((DBAPIError, StoreUnavailable), match="never changed"):
            async with sql.database.write() as connection:
                await connection.execute(text(statement))


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
