"""The books at the ends of months, kept so that an export need not begin with the first day of all.

Derived like the journal itself: the lots of each account that moved since its row before, and the position of all
accounts together. A day is kept once it is over for an hour, as nothing is booked on it any more, and is never changed;
its row of `books_days` is written behind those of its accounts, so that a run that was killed leaves nothing to read.
`check_books` proves them against the ledger (I6).
"""

import secrets
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import func, select, union_all
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.accounting.journal import AccountBooks, number_of, plus
from billing.accounting.journal_source import (
    BookedDays,
    KeptDay,
    accounts_moved,
    kept_before,
    moves,
    owners_of_claims,
    used_by_day,
)
from billing.ledger.summaries.usage_days import DAY_MS, since_day
from billing.money.findings import Finding
from billing.storage.database import Database
from billing.storage.tables.core import balances, transfers
from billing.storage.tables.summaries import books_accounts, books_days

CLOSE_AFTER_MS = 3_600_000
AT_FIRST = 2
"""Months kept where none is: the export of the last thirty days begins before the newest."""
SAMPLE = 100
EVER = 2**31 - 1


async def keep_books(database: Database, now: int) -> list[date]:
    """Keep the books of months that are over and not kept yet; return their last days. Raises StoreUnavailable."""
    began = select(transfers.c.created_at).order_by(transfers.c.id).limit(1)
    async with database.read() as connection:
        first = (await connection.execute(began)).scalar_one_or_none()
        newest = (await kept_before(connection, EVER)).day
    done = list[date]()
    if first is None:
        return done
    for day in _month_ends(newest, now):
        if number_of(day) < first // DAY_MS:
            continue  # nothing was booked yet
        await _keep(database, number_of(day), now)
        done.append(day)
    return done


async def _keep(database: Database, day: int, now: int) -> None:
    dialect = sqlite if database.is_sqlite else postgresql
    statement = dialect.insert(books_accounts)
    # of a run that was killed there may be rows of this day, which nothing has read
    replaced = statement.on_conflict_do_update(
        index_elements=["account_id", "day"], set_={"state": statement.excluded.state}
    )
    async with database.snapshot() as connection:
        before = await kept_before(connection, day)
        owners, total = await owners_of_claims(connection), before.at
        days = BookedDays(before.day + 1, day + 1, await since_day(connection))
        async for batch in accounts_moved(connection, days):
            rows = []
            for account_id, state, movements in batch:
                account = AccountBooks.read(state)
                began = account.at
                account.follow(movements, owners)
                total = plus(total, (new - old for new, old in zip(account.at, began, strict=True)))
                rows.append({"account_id": account_id, "day": day, "state": account.written()})
            async with database.write() as writing:
                await writing.execute(replaced, rows)
    async with database.write() as writing:
        values = {"day": day, **total._asdict(), "made_at": now}
        await writing.execute(dialect.insert(books_days).values(values).on_conflict_do_nothing())


def _month_ends(newest: int, now: int) -> Iterator[date]:
    """Yield the last days of months that are over, behind the newest that is kept; the last two where none is."""
    closed = datetime.fromtimestamp((now - CLOSE_AFTER_MS) / 1_000, UTC).date().replace(day=1) - timedelta(days=1)
    ends, day = [closed], closed
    while (number_of(day) > newest) if newest >= 0 else len(ends) < AT_FIRST:
        day = day.replace(day=1) - timedelta(days=1)
        ends.append(day)
    yield from (end for end in reversed(ends) if number_of(end) > newest)


async def check_books(database: Database) -> list[Finding]:
    """Compare kept books with the ledger: every day's total, and the lots of some accounts. Raises StoreUnavailable."""
    async with database.snapshot() as connection:
        newest = await kept_before(connection, EVER)
        if newest.day < 0:
            return []
        return await _totals(connection) + await _sample(connection, newest)


async def _totals(connection: AsyncConnection) -> list[Finding]:
    """Compare what customers held at the end of each kept day with what the ledger had moved by then."""
    days = BookedDays(0, EVER, await since_day(connection))
    used, moved = used_by_day(days).subquery(), moves(days).subquery()
    effects = union_all(
        select(used.c.day.label("day"), (-used.c.amount).label("effect")),
        select((moved.c.created_at - moved.c.created_at % DAY_MS) // DAY_MS, moved.c.effect),
    ).subquery()
    query = select(effects.c.day, func.sum(effects.c.effect)).group_by(effects.c.day)
    by_day: defaultdict[int, int] = defaultdict(int)
    for day, effect in await connection.execute(query):
        by_day[int(day)] += int(effect)
    table, found = books_days.c, []
    for day, outstanding, overdrawn in await connection.execute(
        select(table.day, table.outstanding, table.overdrawn).order_by(table.day)
    ):
        expected = sum(effect for booked, effect in by_day.items() if booked <= day)
        if expected != outstanding - overdrawn:
            name = date.fromordinal(day + date(1970, 1, 1).toordinal()).isoformat()
            found.append(Finding("kept books of a day vs the ledger", name, expected, outstanding - overdrawn, 0))
    return found


async def _sample(connection: AsyncConnection, newest: KeptDay) -> list[Finding]:
    """Follow some accounts from their first day, and compare where that leads to with what is kept."""
    table, some = books_accounts.c, set[str]()
    for column in (balances.c.account_id, table.account_id):
        ids, start = select(column).distinct().order_by(column).limit(SAMPLE), f"acct_{secrets.token_hex(12)}"
        here = list((await connection.execute(ids.where(column >= start))).scalars())
        if len(here) < SAMPLE:  # behind the last ones come the first
            here += (await connection.execute(ids)).scalars()
        some.update(here)
    kept_rows = select(table.account_id, table.state).where(table.account_id.in_(some), table.day <= newest.day)
    kept = {row[0]: row[1] for row in await connection.execute(kept_rows.order_by(table.day))}
    days, owners = BookedDays(0, newest.day + 1, await since_day(connection)), await owners_of_claims(connection)
    found = []
    async for batch in accounts_moved(connection, days, sorted(some)):
        for account_id, _, movements in batch:
            account = AccountBooks()
            account.follow(movements, owners)
            if kept.pop(account_id, None) != account.written():
                found.append(Finding("kept books of an account vs the ledger", account_id, 1, 0, 0))
    found += [Finding("kept books of an account that has none", account_id, 0, 1, 0) for account_id in sorted(kept)]
    return found
