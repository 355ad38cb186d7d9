"""Pages of transfers and of usage: whole and in order, read from where they begin, whatever lies before and behind."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from billing.ledger.usage_rows import UsageFilters
from billing.money.holds import Entry
from tests.support.stores import Books, close_books, open_books, record

BEGAN = 1_795_000_000_000
ROWS = 25
"""Charges of one millisecond share it by three."""


async def filled(books: Books) -> str:
    """An account with transfers on both sides, and charges of which several share a millisecond."""
    account, other = await books.account(1_000), await books.account(1_000)
    for number in range(ROWS):
        mine = Entry(str(number), 10, 0, record(f"c{number:02}", account, 3, BEGAN + number // 3))
        theirs = Entry(f"o{number}", 10, 0, record(f"o{number:02}", other, 3, BEGAN + number // 3))
        await books.ledger.post([mine, theirs])
        if number % 5 == 0:
            await books.correct(account, 7)
    return account


async def pages(read: Callable[[Any], Awaitable[list[Any]]], last: Callable[[Any], Any]) -> list[Any]:
    """Every row, four at a time."""
    found: list[Any] = []
    while page := await read(last(found[-1]) if found else None):
        assert len(page) <= 4
        found += page
    return found


async def test_pages_of_transfers_are_whole_and_in_order(sql: Books) -> None:
    account = await filled(sql)
    rows = await pages(lambda before: sql.ledger.transfers_of(account, 4, before), lambda row: row.id)
    assert [row.id for row in rows] == sorted((row.id for row in rows), reverse=True)
    assert [row.effect for row in reversed(rows)] == [1_000] + [
        effect for number in range(ROWS) for effect in ([-10, 7] if number % 5 == 0 else [-10])
    ]


async def test_pages_of_usage_are_whole_and_in_order(sql: Books) -> None:
    account = await filled(sql)
    rows = await pages(
        lambda before: sql.ledger.usage_of(account, 4, UsageFilters(before=before)),
        lambda row: (row.created_at, row.charge_id),
    )
    assert [row.charge_id for row in rows] == [f"c{number:02}" for number in reversed(range(ROWS))]


@contextmanager
def statements(books: Books) -> Iterator[list[tuple[str, Any]]]:
    """Every statement that is read meanwhile, and its values."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: bool) -> None:
        seen.append((statement, values))

    engine = books.database.reader.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (
            "transfers",
            [
                "SEARCH transfers USING INDEX ix_transfers_debit (debit_account=? AND id<?)",
                "SEARCH transfers USING INDEX ix_transfers_credit (credit_account=? AND id<?)",
            ],
        ),
        ("usage", ["SEARCH usage USING INDEX ix_usage_account (account_id=? AND (created_at,charge_id)<(?,?))"]),
    ],
)
async def test_a_deep_page_starts_in_the_index(kind: str, steps: list[str], folder: Path) -> None:
    """By SQLite's own plan: neither the rows before the page nor other accounts' are read, and no more are sorted."""
    books = await open_books(folder, "")
    account = await filled(books)
    with statements(books) as seen:
        if kind == "transfers":
            await books.ledger.transfers_of(account, 4, 30)
        else:
            await books.ledger.usage_of(account, 4, UsageFilters(before=(BEGAN + 4, "c12")))
    statement, values = seen[0]
    async with books.database.read() as connection:
        plan = [row[3] for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert [step for step in plan if step.startswith(("SEARCH", "SCAN " + kind))] == steps
    await close_books(books)
