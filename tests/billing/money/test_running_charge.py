"""Charges that are added up line by line: each by its own card, all of them rounded once."""

import msgspec
import pytest

from billing.money.pricing import ModelUsage, PriceBook, load_catalogue
from billing.money.usage import Usage
from tests.support.rate_cards import SHIPPED

BOOK = PriceBook(load_catalogue(), "1", "exact")
DEAR = PriceBook(load_catalogue(), "1.1", "ceil")


def batch(book: PriceBook, *lines: tuple[str, Usage]) -> tuple[int, int, bytes]:
    """(due, cost, snapshot) of usages by model, in batches."""
    running, total = book.running(), Usage()
    for name, usage in lines:
        model = book.find(name)
        assert model is not None
        running.add(ModelUsage(model, "batch", usage))
        fields = ("input_tokens", "output_tokens", "cached_tokens")
        total = msgspec.structs.replace(total, **{one: getattr(total, one) + getattr(usage, one) for one in fields})
    charge = running.charge(total)
    assert charge is not None
    return charge.amount, charge.cost, bytes(charge.rates)


def test_lines_are_rounded_together() -> None:
    # gpt-5.4-mini in batches 0.375 / 2.25: 3 x (1*0.375 + 1*2.25) = 7.875, and 3 x 3 if each were rounded
    due, cost, rates = batch(BOOK, *[("gpt-5.4-mini", Usage(input_tokens=1, output_tokens=1))] * 3)
    assert (due, cost) == (8, 8)
    assert b'"more"' not in rates


def test_what_customers_pay_is_rounded_as_the_book_rounds() -> None:
    # 1.1 x 1,000 x 0.375 = 412.5 millicredits, up to the whole credit
    assert batch(DEAR, ("gpt-5.4-mini", Usage(input_tokens=1_000)))[:2] == (1_000, 375)


def test_every_line_has_the_card_of_its_own_length() -> None:
    """Two prompts of 200,000 tokens are no long context, though they are longer together."""
    model = BOOK.find("gpt-5.4")
    assert model is not None
    assert model.tiers["batch"].long is not None
    due, _, rates = batch(BOOK, *[("gpt-5.4", Usage(input_tokens=200_000))] * 2)
    assert due == 2 * BOOK.price(model, "batch", Usage(input_tokens=200_000)).amount
    assert b'"context":"short"' in rates


def test_several_cards_are_all_in_the_snapshot() -> None:
    usage = Usage(input_tokens=100)
    rates = batch(BOOK, ("text-embedding-3-small", usage), ("text-embedding-3-large", usage))[2]
    assert len(msgspec.json.decode(rates)["more"]) == 1


def test_calls_of_a_tool_cost_the_same_whatever_the_tier_and_leave_one_card() -> None:
    """A row with one card is priced again by reconciliation, calls and all."""
    model, running = BOOK.find("gpt-5.4-mini"), BOOK.running()
    assert model is not None
    usage = Usage(input_tokens=100, calls=(("file_search", 2),))
    for _ in range(2):
        running.add(ModelUsage(model, "batch", usage))
    charge = running.charge(Usage(input_tokens=200, calls=(("file_search", 4),)))
    assert charge is not None
    assert charge.amount == 75 + 4 * 2_500  # 200 tokens at 0.375, four calls at $2.50 a thousand
    assert b'"more"' not in bytes(charge.rates)


def test_a_total_that_cannot_be_priced_again_says_so() -> None:
    """A report with more cached than read: its line costs more than the row's sums would."""
    odd = Usage(input_tokens=10, cached_tokens=50)
    rates = batch(BOOK, ("gpt-5.4-mini", odd), ("gpt-5.4-mini", Usage(input_tokens=100)))[2]
    assert len(msgspec.json.decode(rates)["more"]) == 1


def test_nothing_added_is_no_charge() -> None:
    assert BOOK.running().charge(Usage()) is None


@pytest.mark.parametrize("name", sorted(name for name, row in SHIPPED["models"].items() if "batch" in row["rates"]))
def test_one_line_costs_what_a_request_of_that_tier_would(name: str) -> None:
    model, usage = BOOK.find(name), Usage(input_tokens=1_234, output_tokens=77)
    assert model is not None
    assert batch(BOOK, (name, usage))[0] == BOOK.price(model, "batch", usage).amount
