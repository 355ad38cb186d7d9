"""A statement as CSV and as PDF. Pure: the same statement is the same bytes, today and in a year."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from billing.books import Line
from billing.statements import Statement

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A spreadsheet takes a cell that begins like this for a formula (also behind its own quoting)."""

HEAD = ("section", "date", "item", "reference", "requests", "inputTokens", "outputTokens", "credits", "usd", "receipt", "usdTax")
"""`usd` of a purchase is what was paid, `usdTax` the tax in it."""
KINDS = {
    "refund": "Refund",
    "refund_bonus": "Refund, bonus credits",
    "dispute": "Dispute",
    "dispute_bonus": "Dispute, bonus credits",
    "adjustment": "Adjustment",
}


def safe_cell(value: str) -> str:
    """Text that no spreadsheet executes. Plain numbers stay numbers."""
    text = value.replace("\0", "")
    if text.startswith(FORMULA) and not _is_number(text):
        return "'" + text
    return text


def statement_csv(statement: Statement) -> bytes:
    """RFC 4180 in UTF-8."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(HEAD)
    for row in _rows(statement):
        writer.writerow([safe_cell(cell) for cell in row])
    return out.getvalue().encode()


def rows_csv(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Any table, its cells safe."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(head)
    writer.writerows([safe_cell(cell) for cell in row] for row in rows)
    return out.getvalue()


def journal_csv(lines: Iterable[Line]) -> str:
    """The journal, debit and credit in exact USD."""
    rows = [(line.day, line.account, exact_usd(line.debit), exact_usd(line.credit)) for line in lines]
    return rows_csv(("day", "account", "debitUsd", "creditUsd"), rows)


def statement_pdf(statement: Statement) -> bytes:
    """A4, paged; reportlab's `invariant` leaves out times and random ids."""
    from reportlab.lib import colors
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.lib.units import mm
    from reportlab.platypus import Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

    styles = getSampleStyleSheet()
    out = io.BytesIO()
    document = SimpleDocTemplate(
        out,
        pagesize=A4,
        invariant=1,
        title=f"Statement {statement.month}",
        author="Tollkeeper",
        leftMargin=15 * mm,
        rightMargin=15 * mm,
        topMargin=15 * mm,
        bottomMargin=15 * mm,
    )
    plain = TableStyle(
        [
            ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", 8),
            ("FONT", (0, 1), (-1, -1), "Helvetica", 8),
            ("LINEBELOW", (0, 0), (-1, 0), 0.5, colors.black),
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
            ("ALIGN", (-1, 0), (-1, -1), "RIGHT"),
        ]
    )

    def table(head: list[str], rows: list[list[Any]], widths: list[int]) -> Table:
        # a row may be longer than a page: a reason of 2,000 characters in a narrow column
        return Table([head, *rows], colWidths=[width * mm for width in widths], repeatRows=1, style=plain, splitInRow=1)

    small = styles["BodyText"].clone("small", fontSize=8, leading=9)

    def text(value: str) -> Paragraph:
        return Paragraph(_escaped(value), small)

    story: list[Any] = [
        Paragraph(f"Statement {statement.month}", styles["Title"]),
        text(f"{statement.name} ({statement.account_id})"),
        text("1,000 credits = $1.00. Dates are UTC."),
        Spacer(1, 4 * mm),
        table(
            ["Balance", "Credits"],
            [["Opening", exact_credits(statement.opening)], ["Closing", exact_credits(statement.closing)]],
            [130, 50],
        ),
    ]
    for title, head, rows, widths in _sections(statement, text, lambda url: _receipt(url, small)):
        story += [Spacer(1, 5 * mm), Paragraph(title, styles["Heading3"])]
        story.append(table(head, rows, widths) if rows else text("None."))
    document.build(story)
    return out.getvalue()


def _sections(
    statement: Statement, text: Callable[[str], Any], receipt: Callable[[str], Any]
) -> list[tuple[str, list[str], list[list[Any]], list[int]]]:
    """(title, head, rows, widths in mm) of each table."""
    bought = [
        [
            _date(row.at),
            row.package_code,
            text(row.purchase_id),
            receipt(row.receipt_url),
            _cents(row.paid_cents),
            _cents(row.tax_cents) if row.tax_cents else "",
            exact_credits(row.millicredits),
        ]
        for row in statement.purchases
    ]
    other = [
        [_date(row.at), KINDS.get(row.kind, row.kind), text(row.reference), text(row.reason), exact_credits(row.millicredits)]
        for row in statement.entries
    ]
    used = [
        [row.day, text(row.model), str(row.requests), str(row.input_tokens), str(row.output_tokens), exact_credits(-row.millicredits)]
        for row in statement.usage
    ]
    return [
        ("Purchases", ["Date", "Package", "Purchase", "Receipt", "Paid", "of it tax", "Credits"], bought, [22, 22, 54, 18, 20, 18, 26]),
        ("Refunds and adjustments", ["Date", "Kind", "Reference", "Reason", "Credits"], other, [22, 35, 48, 45, 30]),
        ("Usage", ["Date", "Model", "Requests", "Input tokens", "Output tokens", "Credits"], used, [22, 50, 22, 28, 28, 30]),
    ]


def _rows(statement: Statement) -> list[tuple[str, ...]]:
    opening = (exact_credits(statement.opening), exact_usd(statement.opening))
    rows: list[tuple[str, ...]] = [("balance", f"{statement.month}-01", "opening", statement.account_id, "", "", "", *opening, "", "")]
    for bought in statement.purchases:
        money, tax = _cents(bought.paid_cents).removeprefix("$"), _cents(bought.tax_cents).removeprefix("$")
        what = (bought.package_code, bought.purchase_id, "", "", "", exact_credits(bought.millicredits))
        rows.append(("purchase", _date(bought.at), *what, money, bought.receipt_url, tax))
    for entry in statement.entries:
        label = f"{KINDS.get(entry.kind, entry.kind)}: {entry.reason}" if entry.reason else KINDS.get(entry.kind, entry.kind)
        amounts = (exact_credits(entry.millicredits), exact_usd(entry.millicredits))
        rows.append(("adjustment", _date(entry.at), label, entry.reference, "", "", "", *amounts, "", ""))
    for used in statement.usage:
        counts = (str(used.requests), str(used.input_tokens), str(used.output_tokens))
        rows.append(("usage", used.day, used.model, "", *counts, exact_credits(-used.millicredits), exact_usd(-used.millicredits), "", ""))
    last = (exact_credits(statement.closing), exact_usd(statement.closing))
    rows.append(("balance", "", "closing", statement.account_id, "", "", "", *last, "", ""))
    return rows


def exact_credits(millicredits: int) -> str:
    """Exact, three decimals: "-12.005"."""
    sign, whole = ("-" if millicredits < 0 else ""), abs(millicredits)
    return f"{sign}{whole // 1_000}.{whole % 1_000:03d}"


def exact_usd(millicredits: int) -> str:
    """Dollars of millicredits, exact, six decimals."""
    sign, whole = ("-" if millicredits < 0 else ""), abs(millicredits)
    return f"{sign}{whole // 1_000_000}.{whole % 1_000_000:06d}"


def _cents(cents: int) -> str:
    return f"${cents // 100}.{cents % 100:02d}"


def _date(at: int) -> str:
    return datetime.fromtimestamp(at // 1_000, UTC).date().isoformat()


def _is_number(text: str) -> bool:
    body = text.removeprefix("-").removeprefix("+")
    return body.replace(".", "", 1).isdigit() and body.isascii()


def _escaped(text: str) -> str:
    """For reportlab's paragraphs, which read XML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _receipt(url: str, style: Any) -> Any:
    from reportlab.platypus import Paragraph

    if not url.startswith("https://"):
        return ""
    return Paragraph(f'<link href="{_escaped(url).replace(chr(34), "%22")}" color="blue">receipt</link>', style)
