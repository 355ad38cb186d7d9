"""A customer's statement as CSV and PDF: the same bytes twice, no cell is a formula."""

import csv
import io
import re
import zlib
from base64 import a85decode

import pytest

from billing.accounting.statements import (
    Statement,
    StatementEntry,
    StatementPurchase,
    StatementUsage,
)
from proxy.customer_api.statement_csv import safe_cell, statement_csv
from proxy.customer_api.statement_pdf import statement_pdf
from tests.support.statements import rows_of

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


@pytest.mark.parametrize("letter", ["a", "W", "漢"])
def test_a_reason_of_any_length_fits_the_pdf(letter: str) -> None:
    entry = StatementEntry(1, "adjustment", "r", letter * 2_000, 5)
    assert statement_pdf(Statement("acct_1", "n", "2026-11", 0, 5, [], [entry], [])).startswith(b"%PDF")


@pytest.mark.parametrize(
    "text", ['=HYPERLINK("http://evil")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0"]
)
def test_no_cell_is_a_formula(text: str) -> None:
    statement = Statement(
        "acct_1",
        text,
        "2026-11",
        0,
        -5,
        [],
        [StatementEntry(1, "x", text, text, 5)],
        [StatementUsage("2026-11-01", text, 1, 1, 1, 10)],
    )
    for row in csv.reader(io.StringIO(statement_csv(statement).decode())):
        for cell in row:
            assert not cell.startswith(("=", "+", "@", "\t", "\r")), cell
            assert not cell.startswith("-") or cell.lstrip("-").replace(".", "", 1).isdigit(), cell
    assert safe_cell("-12.500") == "-12.500"
    statement_pdf(statement)  # markup and odd characters do no harm there either


def test_a_pdf_pages_over_and_survives_markup() -> None:
    usage = [StatementUsage("2026-11-01", f"<b>model & {n}", 1, 1, 1, 1) for n in range(300)]
    statement = Statement("acct_1", "A <i>& B", "2026-11", 0, -300, [], [], usage)
    assert statement_pdf(statement) == statement_pdf(statement)


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
