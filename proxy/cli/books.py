"""`tollkeeper books` and `tollkeeper notices`: what an accountant and an operator ask for."""

import argparse
import itertools
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from billing.accounting.journal import Books
from billing.ledger.notices import NoticeQueue
from config.errors import ConfigError
from proxy.cli.context import WHOLE_TABLES_SECONDS, Add, Context, Result, not_negative, open_database, table, who
from proxy.customer_api.statement_csv import exact_credits, exact_usd, journal_csv, rows_csv
from proxy.web.times import iso_time

MOST_DAYS = 3_700
UNITS = {"Credits": exact_credits, "Usd": exact_usd}
FIGURES = (
    ("purchased", "Credits", "purchased"),
    ("takenBack", "Credits", "taken_back"),
    ("paidNet", "Usd", "paid"),
    ("taxNet", "Usd", "tax"),
    ("deducted", "Usd", "deducted"),
    ("recognised", "Usd", "recognised"),
    ("adjusted", "Usd", "adjusted"),
    ("cogs", "Usd", "cogs"),
    ("fees", "Usd", "fees"),
    ("margin", "Usd", "margin"),
    ("profit", "Usd", "profit"),
    ("loss", "Usd", "platform_loss"),
    ("liability", "Usd", "liability"),
    ("overdrawn", "Usd", "overdrawn"),
    ("deferred", "Usd", "deferred"),
)
"""`books days`: a figure's name, the unit of its column, and what of billing.books.Day it is. docs/stripe.md says what
each means.
"""


def register(commands: Any, add: Add) -> None:
    """Add the groups to the parser."""
    books = commands.add_parser("books", help="Journal, liability and margin by day (UTC).").add_subparsers(
        dest="verb", required=True
    )
    for name, run, text in (
        ("journal", _journal, "Dr/Cr per day as CSV; every day sums to zero."),
        (
            "days",
            _days,
            (
                "Purchases, what was paid, deductions, revenue, costs, margin and liability by day; "
                "nothing before the first booking."
            ),
        ),
    ):
        export = add(books, name, run, text)
        export.add_argument("--from", dest="first", type=_date, help="YYYY-MM-DD; default: 30 days ago")
        export.add_argument("--to", dest="last", type=_date, help="YYYY-MM-DD; default: today")
        export.add_argument("--output", type=Path, help="write the CSV there instead of printing it")
    told = add(commands, "notices", _notices, "What the operator's app was told; exit 1 while some are dead.")
    told.add_argument("--state", choices=["pending", "sent", "dead"])
    told.add_argument("--limit", type=not_negative, default=50)
    told.add_argument("--revive", metavar="ID", help="deliver this one again")


async def _journal(context: Context) -> Result:
    first, last = _span(context.arguments)
    async with open_database(context.settings, WHOLE_TABLES_SECONDS) as database:
        lines = await Books(database).journal(first, last)
    data = [
        {
            "day": line.day,
            "account": line.account,
            "debitMillicredits": str(line.debit),
            "creditMillicredits": str(line.credit),
        }
        for line in lines
    ]
    return {"data": data}, _written(context.arguments, journal_csv(lines)), 0


async def _days(context: Context) -> Result:
    first, last = _span(context.arguments)
    async with open_database(context.settings, WHOLE_TABLES_SECONDS) as database:
        days = await Books(database).days(first, last)
    shown = list(itertools.dropwhile(lambda day: not any(day[1:]), days))  # nothing was booked before
    data = [
        {"day": day.day, **{f"{name}Millicredits": str(getattr(day, of)) for name, _, of in FIGURES}} for day in shown
    ]
    head = ["day", *(f"{name}{unit}" for name, unit, _ in FIGURES)]
    rows = [[day.day, *(UNITS[unit](getattr(day, of)) for _, unit, of in FIGURES)] for day in shown]
    return {"data": data}, _written(context.arguments, rows_csv(head, rows)), 0


async def _notices(context: Context) -> Result:
    notices, given = NoticeQueue(context.database, wanted=False), context.arguments
    if given.revive:
        await notices.revive(given.revive, who())
    rows = await notices.listing(given.state, given.limit)
    dead = await notices.listing("dead", 1)
    data = [
        {
            "id": row.id,
            "accountId": row.account_id,
            "kind": row.kind,
            "state": row.state,
            "attempts": row.attempts,
            "lastError": row.last_error,
            "createdAt": iso_time(row.created_at),
            "sentAt": iso_time(row.sent_at) if row.sent_at else None,
        }
        for row in rows
    ]
    shown = [(iso_time(row.created_at), row.state, str(row.attempts), row.id, row.last_error or "") for row in rows]
    return (
        {"data": data},
        table("time state >attempts notice last-error", shown) or "There are no notices.",
        1 if dead else 0,
    )


def _span(given: argparse.Namespace) -> tuple[date, date]:
    last = given.last or datetime.now(UTC).date()
    first = given.first or last - timedelta(days=30)
    if not 0 <= (last - first).days <= MOST_DAYS:
        raise ConfigError("command line", "--from", f"is not 0 to {MOST_DAYS} days before --to", "name an earlier day")
    return first, last


def _written(given: argparse.Namespace, table: str) -> str:
    if given.output is None:
        return table.rstrip("\r\n")
    given.output.write_text(table, encoding="utf-8", newline="")
    return f"Wrote {given.output}."


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a day such as 2026-11-23") from None
