"""A statement as a PDF: the same figures as the CSV, for people, with totals.

Pure: the same statement is the same bytes.
"""

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from reportlab import rl_config
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.platypus import CondPageBreak, Flowable, Image, Paragraph, SimpleDocTemplate, Spacer, Table

from billing.accounting.statements import Statement, StatementEntry, StatementPurchase, StatementUsage
from billing.money.amounts import written_usd
from billing.payments.purchase import MILLICREDITS_PER_CENT
from config.app import Logo
from config.settings import App, Seller
from proxy.customer_api.lettering.any_script import AnyScript
from proxy.customer_api.lettering.faces import Faces
from proxy.customer_api.statement_csv import date_of, title_of

MARGIN = 15 * mm
NO_APP = App()
rl_config.useA85 = 0  # nobody sends a PDF by a way that takes 7 bits only: a fifth smaller, and a third quicker to make
DRAWN = ("image/png", "image/jpeg")
LOGO_HEIGHT, LOGO_WIDTH = 12 * mm, 60 * mm
PADDING = 3
STYLES = getSampleStyleSheet()
SMALL = STYLES["BodyText"].clone("small", fontSize=8, leading=9.5, spaceBefore=0, spaceAfter=0)
CODE = SMALL.clone("code", fontSize=7)
LINK = SMALL.clone("link", textColor=colors.HexColor("#0645ad"), underlineProportion=0)
QUOTED = {'"': "%22"}
PIECE = re.compile(r"[^\s_:/.-]*[\s_:/.-]+|[^\s_:/.-]+")
"""Where an id may be broken: behind what separates its parts, never within one."""
ABOUT = (
    "Dates are UTC. 1,000 credits = $1.00; “value” is credits at that rate. "
    "What was paid and returned is money (US dollars, tax included): it is no part of the balance."
)


class StatementTable(NamedTuple):
    """Columns as (title, width in mm), the place of the first that is a number, the rows, and the totals below."""

    title: str
    columns: Sequence[tuple[str, int]]
    numbers_from: int
    rows: list[list[Any]]
    totals: list[Any]


def statement_pdf(statement: Statement, seller: Seller, app: App = NO_APP, logo: Logo | None = None) -> bytes:
    """A4, paged; reportlab's `invariant` leaves out times and random ids."""
    out, faces = io.BytesIO(), Faces()
    document = SimpleDocTemplate(
        out,
        pagesize=A4,
        invariant=1,
        title=f"Statement {statement.month}",
        author=seller.name or app.name or "Tollkeeper",
        leftMargin=MARGIN,
        rightMargin=MARGIN,
        topMargin=MARGIN,
        bottomMargin=MARGIN,
    )
    sold_by = [seller.name, *seller.address, *([f"Tax id: {seller.tax_id}"] if seller.tax_id else [])]
    ways = [app.name, app.url, app.support_url.removeprefix("mailto:")]
    lines = [line for line in (*sold_by, ", ".join(filter(None, ways))) if line]
    story: list[Any] = [*_picture(logo), *(_text(line, faces) for line in lines)]
    story += [Paragraph(f"Statement {statement.month}", STYLES["Title"])]
    story += [_text(f"{statement.name} ({statement.account_id})", faces), _text(ABOUT, faces)]
    for table in (
        _balance(statement),
        _money(statement),
        _purchases(statement),
        _entries(statement, faces),
        _usage(statement),
    ):
        story += [Spacer(1, 5 * mm), CondPageBreak(35 * mm), Paragraph(table.title, STYLES["Heading3"])]
        story.append(_table(table) if table.rows else _text("None.", faces))

    def foot(canvas: Any, _: Any) -> None:
        canvas.setFont("Helvetica", 7)
        canvas.drawString(MARGIN, 8 * mm, f"Statement {statement.month}, {statement.account_id}")
        canvas.drawRightString(A4[0] - MARGIN, 8 * mm, f"Page {canvas.getPageNumber()}")

    document.build(story, onFirstPage=foot, onLaterPages=foot)
    return out.getvalue()


def _balance(statement: Statement) -> StatementTable:
    bought, moved = (
        sum(row.millicredits for row in statement.purchases),
        sum(row.millicredits for row in statement.entries),
    )
    lines = (
        ("Opening balance", statement.opening),
        ("Purchases", bought),
        ("Refunds, disputes, adjustments", moved),
        ("Usage", -statement.usage_total),
    )
    columns = (("", 110), ("Credits", 35), ("Value", 35))
    return StatementTable(
        "Balance",
        columns,
        1,
        [[name, *_both(amount)] for name, amount in lines],
        ["Closing balance", *_both(statement.closing)],
    )


def _money(statement: Statement) -> StatementTable:
    paid, paid_tax = _paid(statement.purchases)
    back, back_tax = _returned(statement.entries)
    rows = [["Paid", _usd(paid), _usd(paid_tax)], ["Returned: refunds and disputes", _usd(back), _usd(back_tax)]]
    totals = ["Paid less returned", _usd(paid - back), _usd(paid_tax - back_tax)]
    return StatementTable("Money", (("", 110), ("US dollars", 35), ("of it tax", 35)), 1, rows, totals)


def _purchases(statement: Statement) -> StatementTable:
    columns = (
        ("Date", 18),
        ("Package", 20),
        ("Purchase", 43),
        ("Receipt", 14),
        ("Paid", 20),
        ("of it tax", 15),
        ("Credits", 25),
        ("Value", 25),
    )
    rows = [
        [
            date_of(row.at),
            _code(row.package_code, 20),
            _code(row.purchase_id, 43),
            _receipt(row.receipt_url),
            _usd(row.paid_cents * MILLICREDITS_PER_CENT),
            _usd(row.tax_cents * MILLICREDITS_PER_CENT),
            *_both(row.millicredits),
        ]
        for row in statement.purchases
    ]
    totals = [
        "Total",
        "",
        "",
        "",
        *map(_usd, _paid(statement.purchases)),
        *_both(sum(row.millicredits for row in statement.purchases)),
    ]
    return StatementTable("Purchases", columns, 4, rows, totals)


def _entries(statement: Statement, faces: Faces) -> StatementTable:
    columns = (
        ("Date", 18),
        ("What", 32),
        ("Reference", 46),
        ("Returned", 19),
        ("of it tax", 15),
        ("Credits", 25),
        ("Value", 25),
    )
    rows = [
        [
            date_of(row.at),
            _text(title_of(row), faces),
            _code(row.reference, 46),
            *([_usd(row.returned), _usd(row.returned_tax)] if row.returned else ["", ""]),
            *_both(row.millicredits),
        ]
        for row in statement.entries
    ]
    totals = [
        "Total",
        "",
        "",
        *map(_usd, _returned(statement.entries)),
        *_both(sum(row.millicredits for row in statement.entries)),
    ]
    return StatementTable("Refunds, disputes, adjustments", columns, 3, rows, totals)


def _usage(statement: Statement) -> StatementTable:
    columns = (
        ("Date", 18),
        ("Model", 46),
        ("Requests", 18),
        ("Input tokens", 24),
        ("Output tokens", 24),
        ("Credits", 25),
        ("Value", 25),
    )

    def counts(row: StatementUsage) -> list[str]:
        return [f"{number:,}" for number in (row.requests, row.input_tokens, row.output_tokens)]

    rows = [[row.day, _code(row.model, 46), *counts(row), *_both(-row.millicredits)] for row in statement.usage]
    numbers = [(row.requests, row.input_tokens, row.output_tokens) for row in statement.usage]
    totals = [
        "Total",
        "",
        *(f"{sum(column):,}" for column in zip(*numbers, strict=True)),
        *_both(-statement.usage_total),
    ]
    return StatementTable("Usage", columns, 2, rows, totals)


def _table(table: StatementTable) -> Table:
    """Numbers to the right, totals under a line.

    A row may be longer than a page: a reason of 2,000 characters in a narrow column.
    """
    style = [
        ("FONT", (0, 0), (-1, -1), "Helvetica", 8),
        ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", 8),
        ("FONT", (0, -1), (-1, -1), "Helvetica-Bold", 8),
        ("LINEBELOW", (0, 0), (-1, 0), 0.5, colors.black),
        ("LINEABOVE", (0, -1), (-1, -1), 0.5, colors.black),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("ALIGN", (table.numbers_from, 0), (-1, -1), "RIGHT"),
        ("LEFTPADDING", (0, 0), (-1, -1), PADDING),
        ("LEFTPADDING", (0, 0), (0, -1), 6),  # in line with the headings
        ("RIGHTPADDING", (0, 0), (-1, -1), PADDING),
        ("TOPPADDING", (0, 0), (-1, -1), 2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
    ]
    body = [[title for title, _ in table.columns], *table.rows, table.totals]
    return Table(body, colWidths=[width * mm for _, width in table.columns], repeatRows=1, style=style, splitInRow=1)


def _picture(logo: Logo | None) -> list[Flowable]:
    """Draw a logo that a PDF can hold; nothing of any other."""
    if logo is None or logo.media_type not in DRAWN:
        return []
    try:
        width, height = ImageReader(io.BytesIO(logo.body)).getSize()
    except (OSError, ValueError, SyntaxError):  # it begins like a picture, and is none
        return []
    scale = min(LOGO_HEIGHT / height, LOGO_WIDTH / width)
    picture = Image(io.BytesIO(logo.body), width * scale, height * scale, lazy=0)
    picture.hAlign = "LEFT"
    return [picture, Spacer(1, 3 * mm)]


def _text(value: str, faces: Faces) -> Flowable:
    """Set text in Helvetica, which every reader has, where that has all of its characters."""
    try:
        value.encode("cp1252")
    except UnicodeEncodeError:
        return AnyScript(value, faces, SMALL.fontSize, SMALL.leading)
    return Paragraph(escape(value), SMALL)


def _code(value: str, width: int) -> Paragraph:
    """Set an id in a column so many mm wide, broken where it may be.

    A part that is too long for a line is broken anywhere.
    """
    room, lines = width * mm - 2 * PADDING, [""]
    for piece in PIECE.findall(value):
        if lines[-1] and stringWidth(lines[-1] + piece, CODE.fontName, CODE.fontSize) > room:
            lines.append("")
        lines[-1] += piece
    return Paragraph("<br/>".join(map(escape, lines)), CODE)


def _receipt(url: str) -> Any:
    """Link to an address on the web; nothing for anything else that a reader would follow."""
    if not url.startswith(("https://", "http://")):
        return ""
    return Paragraph(f'<link href="{escape(url, QUOTED)}"><u>receipt</u></link>', LINK)


def _both(millicredits: int) -> list[str]:
    """Credits and their value, exact, in places that line up."""
    sign, amount = "-" if millicredits < 0 else "", abs(millicredits)
    return [f"{sign}{amount // 1_000:,}.{amount % 1_000:03}", f"{sign}${amount // 1_000_000:,}.{amount % 1_000_000:06}"]


def _usd(amount: int) -> str:
    """Money in millionths of a dollar: "-$1,234.50"."""
    return f"{'-' if amount < 0 else ''}${written_usd(abs(amount))}"


def _paid(rows: Iterable[StatementPurchase]) -> tuple[int, int]:
    """Sum of the payments and the tax in it, in millionths of a dollar."""
    found = [(row.paid_cents * MILLICREDITS_PER_CENT, row.tax_cents * MILLICREDITS_PER_CENT) for row in rows]
    return sum(paid for paid, _ in found), sum(tax for _, tax in found)


def _returned(rows: Iterable[StatementEntry]) -> tuple[int, int]:
    """Sum of the returns and the tax in it, in millionths of a dollar."""
    found = [(row.returned, row.returned_tax) for row in rows]
    return sum(money for money, _ in found), sum(tax for _, tax in found)
