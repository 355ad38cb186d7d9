"""What an account's month says to an accountant: columns that add up, money apart from credits, a PDF that says the same."""

import csv
import io
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing.accounting.statements import (
    Statements,
    month_bounds,
)
from billing.payments.purchase import offer
from config.settings import Seller
from proxy.customer_api.statement_csv import statement_csv
from proxy.customer_api.statement_pdf import statement_pdf
from tests.support.shop import ADA, PRO, STARTER, Shop, today, use
from tests.support.statements import rows_of

PLUS = offer("plus", "49.99", "5")
MONEY = ("paidUsd", "paidTaxUsd", "returnedUsd", "returnedTaxUsd")


def total(rows: list[dict[str, str]], column: str) -> Decimal:
    return sum((Decimal(row[column] or "0") for row in rows), Decimal(0))


def this_month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")


async def history(shop: Shop) -> str:
    """Every way in which credits come and go, after a month that ended with a balance."""
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr("billing.ledger.ledger.now_ms", lambda: month_bounds(this_month())[0] - 1)
        account = await shop.books.account(7_000_500)
    bonus, taxed, whole, failed, won, lost = [await shop.paid(account, what, tax=tax) for what, tax in BOUGHT]
    shop.stripe.give_back(bonus.payment_intent_id or "", 1_234)  # a part of one with a bonus
    shop.stripe.give_back(taxed.payment_intent_id or "", 333)  # a part of one with tax
    shop.stripe.give_back(whole.payment_intent_id or "", whole.total_cents)
    refund = shop.stripe.give_back(failed.payment_intent_id or "", 500)
    opened = [shop.stripe.open_dispute(one.payment_intent_id or "") for one in (won, lost)]
    await shop.deliver()
    shop.stripe.change_refund(refund.id, "failed")
    for dispute, end in zip(opened, ("won", "lost"), strict=True):
        shop.stripe.close_dispute(dispute.id, end)
    await shop.deliver()
    await shop.books.correct(account, 1_000_001)
    await shop.books.correct(account, -2_500)
    await use(shop, account, 1_234_567, 1)
    return account


BOUGHT = ((PLUS, 0), (STARTER, 79), (PRO, 500), (PRO, 0), (PLUS, 413), (PRO, 825))


async def test_every_column_beside_a_balance_adds_up_to_the_closing_one(shop: Shop) -> None:
    account = await history(shop)
    statement = await Statements(shop.books.database).read(account, this_month())
    rows = rows_of(statement)
    assert (rows[0]["item"], rows[-1]["item"], len(rows)) == (
        "opening",
        "closing",
        2 + len(BOUGHT) + len(statement.entries) + 1,
    )
    assert rows[0]["credits"] == "7000.500"
    for column in ("credits", "creditsUsd"):
        assert total(rows[:-1], column) == Decimal(rows[-1][column]), column
    assert Decimal(rows[-1]["credits"]) * 1_000 == await shop.balance(account)
    for row in rows:
        assert Decimal(row["creditsUsd"]) * 1_000 == Decimal(row["credits"]), "one rate for all"
        assert row["section"] != "balance" or not any(row[column] for column in MONEY), "money has no balance"
    bonus = next(row for row in rows if row["item"] == "plus" and row["paidTaxUsd"] == "0.00")
    assert (bonus["credits"], bonus["creditsUsd"], bonus["paidUsd"]) == ("52489.500", "52.489500", "49.99")


async def test_what_was_paid_and_went_back_is_what_stripe_has(shop: Shop) -> None:
    account = await history(shop)
    rows = rows_of(await Statements(shop.books.database).read(account, this_month()))
    cents = [what.price_cents + tax for what, tax in BOUGHT]
    assert total(rows, "paidUsd") * 100 == sum(cents)
    assert total(rows, "paidTaxUsd") * 100 == sum(tax for _, tax in BOUGHT)
    assert total(rows, "returnedUsd") * 100 == 1_234 + 333 + cents[2] + cents[5]
    assert (
        total(rows, "returnedTaxUsd") * 10_000 * 100 == 240_000 + 5_000_000 + 8_250_000
    )  # 79 * 333 / 1078 = 24.4 cents
    assert sum(1 for row in rows if row["returnedUsd"].startswith("-")) == 2, (
        "the refund that failed, and the dispute that was won"
    )
    kept = -await shop.ledger_of("cash") - await shop.ledger_of("fees")
    assert (total(rows, "paidUsd") - total(rows, "returnedUsd")) * 1_000_000 == kept
    assert (
        await shop.ledger_of("payable:tax") == (total(rows, "paidTaxUsd") - total(rows, "returnedTaxUsd")) * 1_000_000
    )


async def test_money_that_took_no_credits_along_is_on_the_statement(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    for _ in range(2):  # both in whole: the second one is our loss
        shop.stripe.give_back(purchase.payment_intent_id or "", 999)
        await shop.deliver()
    statement = await Statements(shop.books.database).read(account, this_month())
    assert [(entry.kind, entry.millicredits, entry.returned) for entry in statement.entries] == [
        ("refund", -9_990_000, 9_990_000),
        ("refund", 0, 9_990_000),
    ]


async def test_the_next_month_opens_with_what_this_one_closed_with_and_has_no_money(shop: Shop) -> None:
    account = await history(shop)
    year, number = divmod(datetime.now(UTC).year * 12 + datetime.now(UTC).month, 12)
    rows = rows_of(await Statements(shop.books.database).read(account, f"{year}-{number + 1:02}"))
    assert [row["item"] for row in rows] == ["opening", "closing"]
    assert Decimal(rows[0]["credits"]) == Decimal(rows[1]["credits"]) > 0
    statement_pdf(await Statements(shop.books.database).read(account, f"{year}-{number + 1:02}"), Seller())


@pytest.fixture
async def month() -> AsyncIterator[str]:
    yield time.strftime("%Y-%m", time.gmtime())


async def test_a_statement_says_what_was_paid_and_the_tax_in_it(shop: Shop, month: str) -> None:
    account = await shop.books.account()
    accepted = await shop.buy(account)
    shop.stripe.pay(accepted.session_id or "", amount_subtotal=5_000, amount_total=5_000)
    await shop.deliver()
    await shop.sync.accept(accepted.id, ADA, "x")
    await shop.paid(account, STARTER, tax=190)
    statement = await Statements(shop.books.database).read(account, month)
    rows = [
        row for row in csv.DictReader(io.StringIO(statement_csv(statement).decode())) if row["section"] == "purchase"
    ]
    assert sorted((row["paidUsd"], row["paidTaxUsd"]) for row in rows) == [("11.89", "1.90"), ("50.00", "0.00")]
    assert statement_pdf(statement, Seller()) == statement_pdf(statement, Seller())


async def test_a_statement_adds_up_and_is_the_same_bytes_twice(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account(77)
    purchase = await shop.paid(account, PRO)
    await use(shop, account, 1_234, 1)
    await use(shop, account, 766, 2)
    await use(shop, other, 50, 3)
    shop.stripe.give_back(purchase.payment_intent_id or "", 999)
    await shop.deliver()
    month = today().isoformat()[:7]
    statement = await Statements(shop.books.database).read(account, month)
    assert (statement.opening, statement.closing) == (0, await shop.balance(account))
    ((day, model, requests, _, _, amount),) = statement.usage
    assert (day, model, requests, amount) == (today().isoformat(), "gpt-4o-mini", 2, 2_000)
    assert [row.kind for row in statement.entries] == ["refund", "refund_bonus"]
    assert statement.purchases[0].receipt_url == purchase.receipt_url
    year, number = divmod(int(month[:4]) * 12 + int(month[5:]), 12)
    following = await Statements(shop.books.database).read(account, f"{year}-{number + 1:02d}")
    assert (following.opening, following.closing, following.usage) == (statement.closing, statement.closing, [])
    again = await Statements(shop.books.database).read(account, month)
    assert statement_csv(again) == statement_csv(statement)
    pdf = statement_pdf(statement, Seller())
    assert pdf == statement_pdf(again, Seller())
    assert pdf.startswith(b"%PDF-")
    rows = list(csv.DictReader(io.StringIO(statement_csv(statement).decode())))
    assert rows[0]["item"] == "opening"
    total = sum(round(float(row["credits"]) * 1_000) for row in rows[:-1])
    assert round(float(rows[-1]["credits"]) * 1_000) == total


def test_months_are_bounded() -> None:
    assert month_bounds("2026-12") == (1_796_083_200_000, 1_798_761_600_000)
    for wrong in ("2026-13", "2026-1", "26-01", "2026-01-01", "", "../etc"):
        with pytest.raises(ValueError):
            month_bounds(wrong)
