"""A customer's statement as CSV and PDF: the same bytes twice, no cell is a formula."""

import csv
import io
import re
import zlib
from pathlib import Path

import pytest
from PIL import Image

from billing.accounting.statements import (
    Statement,
    StatementEntry,
    StatementPurchase,
    StatementUsage,
)
from config.app import Logo, check_logo
from config.settings import App, Seller
from proxy.customer_api.lettering.faces import Faces
from proxy.customer_api.lettering.writing_order import base_level, levels
from proxy.customer_api.statement_csv import safe_cell, statement_csv
from proxy.customer_api.statement_file import statement_file
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


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (300, 90), (200, 10, 10)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_sellers_logo_stands_on_the_pdf_and_the_same_bytes_twice(kind: str) -> None:
    seller, app, logo = Seller(name="Acme GmbH"), App(name="Acme"), Logo(picture(kind), f"image/{kind.lower()}")
    made = statement_pdf(LONG, seller, app, logo)
    assert made == statement_pdf(LONG, seller, app, logo)
    assert b"/Subtype /Image" in made
    assert b"/Subtype /Image" not in statement_pdf(LONG, seller)


def test_a_logo_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no picture")
    (tmp_path / "logo.png").write_bytes(picture("PNG"))
    for name, there in (("none.png", False), ("no.png", False), ("logo.png", True)):
        body, media = statement_file(LONG, "pdf", Seller(), App(logo_file=str(tmp_path / name)))
        assert (media, b"/Subtype /Image" in body) == ("application/pdf", there), name


@pytest.mark.parametrize("letter", ["a", "W", "漢"])
def test_a_reason_of_any_length_fits_the_pdf(letter: str) -> None:
    entry = StatementEntry(1, "adjustment", "r", letter * 2_000, 5)
    assert statement_pdf(Statement("acct_1", "n", "2026-11", 0, 5, [], [entry], []), Seller()).startswith(b"%PDF")


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
    statement_pdf(statement, Seller())  # markup and odd characters do no harm there either


def test_a_pdf_pages_over_and_survives_markup() -> None:
    usage = [StatementUsage("2026-11-01", f"<b>model & {n}", 1, 1, 1, 1) for n in range(300)]
    statement = Statement("acct_1", "A <i>& B", "2026-11", 0, -300, [], [], usage)
    assert statement_pdf(statement, Seller()) == statement_pdf(statement, Seller())


def content_of(pdf: bytes) -> bytes:
    """The drawing of a PDF's pages."""
    streams = re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL)
    return b"\n".join(zlib.decompressobj().decompress(stream) for stream in streams)


def written_in(pdf: bytes) -> str:
    """The text of a PDF of ours, one string a line."""
    found = [re.sub(rb"\\([()\\])", rb"\1", text) for text in re.findall(rb"\(((?:\\.|[^\\)])*)\) Tj", content_of(pdf))]
    return "\n".join(text.decode("latin-1") for text in found)


def test_the_pdf_says_what_the_csv_says_with_totals_and_links() -> None:
    pdf = statement_pdf(LONG, Seller())
    assert pdf == statement_pdf(LONG, Seller())
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
    assert b"/URI" not in statement_pdf(Statement("acct_1", "n", "2026-11", 0, 1, [purchase], [], []), Seller())


@pytest.mark.parametrize("text", ['=HYPERLINK("http://evil")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_a_purchase_is_a_formula(text: str) -> None:
    statement = Statement("acct_1", "n", "2026-11", 0, 1, [StatementPurchase(1, text, text, 1, 0, 1, text)], [], [])
    (row,) = [row for row in rows_of(statement) if row["section"] == "purchase"]
    assert (row["item"], row["reference"], row["receipt"]) == ("'" + text,) * 3


def spoken_in(pdf: bytes) -> list[str]:
    """The lines that a PDF of ours draws and says in words beside."""
    found = re.findall(r"ActualText <FEFF([0-9A-F]*)>", content_of(pdf).decode("latin-1"))
    return [bytes.fromhex(line).decode("utf-16-be") for line in found]


NAMES = {
    "Chinese": "測試有限公司",
    "Japanese": "株式会社テスト",
    "Korean": "주식회사 테스트",
    "Arabic": "شركة الاختبار",
    "Persian": "می\u200cخواهم",
    "Hebrew": "חברת הבדיקה",
    "Devanagari": "परीक्षण कंपनी क्षि",
    "Bengali": "সোনার বাংলা",
    "Tamil": "தமிழ் நிறுவனம்",
    "Telugu": "తెలుగు కంపెనీ",
    "Thai": "บริษัท ทดสอบ",
    "Khmer": "ក្រុមហ៊ុន",
    "Cyrillic": "Тестовая компания",
    "Greek": "Ελληνική Εταιρεία",
    "Vietnamese": "Nguyễn Văn Ẩn",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_of_any_script_is_on_the_pdf(name: str) -> None:
    entry = StatementEntry(1, "adjustment", "grant_1", name, 5)
    statement = Statement("acct_1", name, "2026-11", 0, 5, [], [entry], [])
    pdf = statement_pdf(statement, Seller(name, (name,), ""))
    said = spoken_in(pdf)
    assert said[:3] == [name, name, f"{name} (acct_1)"]
    assert "".join(said[3:]).replace(" ", "") == f"Adjustment:{name}".replace(" ", ""), "in lines"
    assert pdf == statement_pdf(statement, Seller(name, (name,), ""))
    assert all(Faces().shape(run).glyphs for run in Faces().runs(name, levels(name, base_level(name))))


def test_the_product_and_its_logo_are_at_the_head_of_the_statement() -> None:
    picture = io.BytesIO()
    Image.new("RGB", (40, 20), "#0b5cad").save(picture, "PNG")
    app = App(name="Acme", url="https://app.test", support_url="mailto:help@app.test")
    made = statement_pdf(LONG, Seller(), app, check_logo(picture.getvalue()))
    assert "Acme, https://app.test, help@app.test" in written_in(made).splitlines()
    assert b"/Subtype /Image" in made
    assert made == statement_pdf(LONG, Seller(), app, check_logo(picture.getvalue())), "the same bytes again"
    broken = statement_pdf(LONG, Seller(), app, check_logo(picture.getvalue()[:20]))
    assert b"/Subtype /Image" not in broken


def test_a_seller_is_at_the_head_of_the_statement() -> None:
    seller = Seller("Example Ltd", ("1 Example Street", "Springfield"), "DE123456789")
    lines = written_in(statement_pdf(LONG, seller)).splitlines()
    start = lines.index("Example Ltd")
    assert lines[start : start + 4] == ["Example Ltd", "1 Example Street", "Springfield", "Tax id: DE123456789"]
    assert "Tax id" not in written_in(statement_pdf(LONG, Seller()))


def test_a_reason_longer_than_a_page_is_on_the_statement_whole() -> None:
    reason = "長い理由です。" * 285
    entry = StatementEntry(1, "adjustment", "grant_1", reason, 5)
    pdf = statement_pdf(Statement("acct_1", "n", "2026-11", 0, 5, [], [entry], []), Seller())
    assert "".join(spoken_in(pdf)) == f"Adjustment: {reason}"
    heights = [float(y) for y in re.findall(rb"BDC\n[-0-9.]+ ([-0-9.]+) m", content_of(pdf))]
    assert len(heights) == len(spoken_in(pdf)) > 200
    assert pdf.count(b"/Type /Page\n") > 2
