"""What an account's month says to an accountant: columns that add up, money apart from credits, a PDF that says the same."""

import csv
import io
import re
import zlib
from base64 import a85decode
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing.accounting.statements import (
    Statement,
    StatementEntry,
    StatementPurchase,
    Statements,
    StatementUsage,
    month_bounds,
)
from billing.payments.purchase import offer
from proxy.customer_api.statement_csv import statement_csv
from proxy.customer_api.statement_pdf import statement_pdf
from tests.support.shop import PRO, STARTER, Shop, use

PLUS = offer("plus", "49.99", "5")
MONEY = ("paidUsd", "paidTaxUsd", "returnedUsd", "returnedTaxUsd")


def rows_of(statement: Statement) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(statement_csv(statement).decode())))


def total(rows: list[dict[str, str]], column: str) -> Decimal:
    return sum((Decimal(row[column] or "0") for row in rows), Decimal(0))


def written_in(pdf: bytes) -> str:
    """The text of a PDF of ours, one string a line."""
    streams = re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL)
    plain = [zlib.decompress(a85decode(b"<~" + stream.strip(), adobe=True)) for stream in streams]
    found = [
        re.sub(rb"\\([()\\])", rb"\1", text)
        for page in plain
        for text in re.findall(rb"\(((?:\\.|[^\\)])*)\) Tj", page)
    ]
    return "\n".join(text.decode("latin-1") for text in found)


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
    assert total(rows, "returnedTaxUsd") * 10_000 * 100 == 790_000 * 333 // 1_078 + 5_000_000 + 8_250_000
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
    statement_pdf(await Statements(shop.books.database).read(account, f"{year}-{number + 1:02}"))


LONG = Statement(
    "acct_0123456789abcdef01234567",
    "Ada's works",
    "2026-11",
    5_000_000,
    1_161_232_766,
    [
        StatementPurchase(
            1_794_000_000_000,
            "pur_0123456789abcdef01234567",
            "enterprise",
            107_999,
            8_000,
            1_099_989_000,
            "https://pay.stripe.com/receipts/a?b=1&c=2",
        ),
        StatementPurchase(
            1_794_086_400_000,
            "pur_89abcdef0123456701234567",
            "plus",
            4_999,
            0,
            52_489_500,
            "http://127.0.0.1:12111/receipt/1",
        ),
        StatementPurchase(
            1_794_086_500_000, "pur_ffffffffffffffffffffffff", "plus", 4_999, 0, 52_489_500, "javascript:alert(1)"
        ),
    ],
    [
        StatementEntry(
            1_794_172_800_000, "refund", "re_3SxAbcDEFghiJKLmno0pQrStUv:1", "", -47_500_000, 50_000_000, 2_500_000
        ),
        StatementEntry(1_794_172_800_000, "refund_bonus", "re_3SxAbcDEFghiJKLmno0pQrStUv:1", "", -1_000_000),
        StatementEntry(
            1_794_172_900_000,
            "adjustment",
            "grant_0123456789abcdef01234567",
            "an apology for the outage of last week",
            1_000_000,
        ),
    ],
    [
        StatementUsage(
            "2026-11-02",
            "ft:gpt-4o-mini-2024-07-18:the-customers-organisation::AbCdEfGh",
            1_234,
            12_345_678,
            987_654,
            1_235_234,
        )
    ],
)


def test_the_pdf_says_what_the_csv_says_with_totals_and_links() -> None:
    pdf = statement_pdf(LONG)
    assert pdf == statement_pdf(LONG)
    text = written_in(pdf).splitlines()
    for amount in (
        "1,161,232.766",
        "$1,161.232766",
        "1,099,989.000",
        "$1,079.99",
        "$80.00",
        "$0.00",
        "12,345,678",
        "-1,235.234",
        "-$1.235234",
    ):
        assert amount in text, amount
    assert [line for line in text if line == "receipt"] == ["receipt"] * 2
    assert re.findall(rb"/URI \(([^)]*)\)", pdf) == [
        b"https://pay.stripe.com/receipts/a?b=1&c=2",
        b"http://127.0.0.1:12111/receipt/1",
    ]
    totals = text[text.index("Paid less returned") :][:3]
    assert totals == ["Paid less returned", "$1,129.97", "$77.50"]
    for reference in (
        "pur_0123456789abcdef01234567",
        "re_3SxAbcDEFghiJKLmno0pQrStUv:1",
        "grant_0123456789abcdef01234567",
    ):
        assert reference in text, "whole, on one line"
    model = [line for line in text if "gpt-4o" in line or "organisation" in line]
    assert all(line.endswith(("-", ":")) or "AbCdEfGh" in line for line in model), model


@pytest.mark.parametrize("url", ["", "javascript:alert(1)", "ftp://x", ' https://x"y'])
def test_only_an_address_on_the_web_is_a_link(url: str) -> None:
    purchase = StatementPurchase(1, "pur_1", "p", 1, 0, 1, url)
    assert b"/URI" not in statement_pdf(Statement("acct_1", "n", "2026-11", 0, 1, [purchase], [], []))


@pytest.mark.parametrize("text", ['=HYPERLINK("http://evil")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_a_purchase_is_a_formula(text: str) -> None:
    statement = Statement("acct_1", "n", "2026-11", 0, 1, [StatementPurchase(1, text, text, 1, 0, 1, text)], [], [])
    (row,) = [row for row in rows_of(statement) if row["section"] == "purchase"]
    assert (row["item"], row["reference"], row["receipt"]) == ("'" + text,) * 3
