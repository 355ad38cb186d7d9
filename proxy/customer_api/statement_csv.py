"""A statement as CSV. Pure: the same statement is the same bytes, today and in a year."""

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from billing.accounting.journal import JournalLine
from billing.accounting.statements import Statement, StatementEntry
from billing.money.amounts import written_usd
from billing.payments.purchase import MILLICREDITS_PER_CENT

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A spreadsheet takes a cell that begins like this for a formula (also behind its own quoting); signs of full width in
some locales."""

HEAD = (
    *("section", "date", "item", "reference", "requests", "inputTokens", "outputTokens", "credits", "creditsUsd"),
    *("paidUsd", "paidTaxUsd", "returnedUsd", "returnedTaxUsd", "receipt"),
)
"""`credits`, and `creditsUsd` at 1,000 = $1.00, sum from opening to closing. What was paid, the tax in it, what of
payments went back (negative: came again), and the tax in that are money: they have no balance."""
KINDS = {
    "refund": "Refund",
    "refund_bonus": "Refund, bonus credits",
    "dispute": "Dispute",
    "dispute_bonus": "Dispute, bonus credits",
    "adjustment": "Adjustment",
    "welcome": "Welcome credits",
    "promo": "Promo code",
    "expiry": "Expired credits",
}


def safe_cell(value: str) -> str:
    """Text that no spreadsheet executes. Plain numbers stay numbers."""
    text = value.replace("\0", "")
    if text.startswith(FORMULA) and not _is_number(text):
        return "'" + text
    return text


def statement_csv(statement: Statement) -> bytes:
    """Write a statement as RFC 4180 in UTF-8."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(HEAD)
    for row in _rows(statement):
        writer.writerow([safe_cell(cell) for cell in row])
    return out.getvalue().encode()


def rows_csv(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write any table, its cells safe."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(head)
    writer.writerows([safe_cell(cell) for cell in row] for row in rows)
    return out.getvalue()


def journal_csv(lines: Iterable[JournalLine]) -> str:
    """Write the journal, debit and credit in exact USD."""
    rows = [(line.day, line.account, exact_usd(line.debit), exact_usd(line.credit)) for line in lines]
    return rows_csv(("day", "account", "debitUsd", "creditUsd"), rows)


def _rows(statement: Statement) -> list[tuple[str, ...]]:
    who, unused = statement.account_id, ("", "", "")
    rows = [_row(("balance", f"{statement.month}-01", "opening", who), unused, statement.opening)]
    for bought in statement.purchases:
        money = (
            plain_usd(bought.paid_cents * MILLICREDITS_PER_CENT),
            plain_usd(bought.tax_cents * MILLICREDITS_PER_CENT),
            "",
            "",
        )
        what = ("purchase", date_of(bought.at), bought.package_code, bought.purchase_id)
        rows.append(_row(what, unused, bought.millicredits, money, bought.receipt_url))
    for entry in statement.entries:
        back = (plain_usd(entry.returned), plain_usd(entry.returned_tax)) if entry.returned else ("", "")
        what = (
            "adjustment",
            date_of(entry.at),
            title_of(entry),
            entry.reference,
        )
        rows.append(_row(what, unused, entry.millicredits, ("", "", *back)))
    for used in statement.usage:
        counts = (str(used.requests), str(used.input_tokens), str(used.output_tokens))
        rows.append(_row(("usage", used.day, used.model, ""), counts, -used.millicredits))
    return [*rows, _row(("balance", "", "closing", who), unused, statement.closing)]


def _row(
    what: tuple[str, ...],
    counts: tuple[str, ...],
    millicredits: int,
    money: tuple[str, ...] = ("", "", "", ""),
    receipt: str = "",
) -> tuple[str, ...]:
    """JournalLine under HEAD."""
    return (*what, *counts, exact_credits(millicredits), exact_usd(millicredits), *money, receipt)


def kind_of(entry: StatementEntry) -> str:
    """Name of an entry's kind."""
    return KINDS.get(entry.kind, entry.kind)


def title_of(entry: StatementEntry) -> str:
    """Kind of an entry, and why it was booked, once where that says both."""
    kind = kind_of(entry)
    if not entry.reason or entry.reason.startswith(kind):
        return entry.reason or kind
    return f"{kind}: {entry.reason}"


def exact_credits(millicredits: int) -> str:
    """Exact, three decimals: "-12.005"."""
    sign, whole = ("-" if millicredits < 0 else ""), abs(millicredits)
    return f"{sign}{whole // 1_000}.{whole % 1_000:03d}"


def exact_usd(millicredits: int) -> str:
    """Dollars of millicredits, exact, six decimals."""
    sign, whole = ("-" if millicredits < 0 else ""), abs(millicredits)
    return f"{sign}{whole // 1_000_000}.{whole % 1_000_000:06d}"


def plain_usd(amount: int) -> str:
    """Dollars of money in millionths of one, exact, with cents and no needless places: "1234.50"."""
    return written_usd(amount).replace(",", "")


def date_of(at: int) -> str:
    """UTC day of a time in Unix milliseconds."""
    return datetime.fromtimestamp(at // 1_000, UTC).date().isoformat()


def _is_number(text: str) -> bool:
    body = text.removeprefix("-").removeprefix("+")
    return body.replace(".", "", 1).isdigit() and body.isascii()
