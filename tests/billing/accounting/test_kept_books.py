"""Books kept at the ends of months: an export is the same with them and without, and begins with them."""

import random
from collections.abc import Callable
from datetime import UTC, date, datetime

import pytest

import billing.accounting.journal_source
from billing.accounting.journal import Books as Journal
from billing.accounting.kept_books import check_books, keep_books
from billing.ledger.credits.lots import take_expired
from billing.ledger.transfers import move
from billing.money.amounts import Millicredits
from billing.money.credits.expiring import mark_of
from billing.money.postings import PLAIN, GrantTerms, expiry_posting, purchase_postings
from tests.support.charges import MODELS, run_sql, settled
from tests.support.copied_ledgers import filled_once
from tests.support.stores import Books

DAY = 86_400_000
BEGAN = date(2026, 7, 3)
LAST = date(2026, 11, 23)


def at(day: date, hour: int = 12) -> int:
    return int(datetime(day.year, day.month, day.day, hour, tzinfo=UTC).timestamp()) * 1_000


async def history(books: Books, clock: Callable[[int], None]) -> list[str]:
    accounts = await filled_once(books, lambda: five_months(books, clock), five_months)
    clock(at(LAST))
    return accounts


async def five_months(books: Books, clock: Callable[[int], None]) -> list[str]:
    """Five months of six accounts: bought with a bonus, granted, taken by hand, used, also below zero."""
    rng = random.Random(3)
    clock(at(BEGAN))
    accounts = [await books.account() for _ in range(6)]
    days = sorted(rng.randrange((LAST - BEGAN).days) for _ in range(90))
    for number, day in enumerate(days):
        now, account = at(BEGAN) + day * DAY, rng.choice(accounts)
        clock(now)
        kind = rng.randrange(4)
        if kind == 0:
            async with books.database.write() as connection:
                await move(connection, purchase_postings(f"pur_{number}", account, 5_000, 700, 0, now))
        elif kind == 1:
            amount = Millicredits(rng.choice((900, -1_300)))
            terms = GrantTerms(now + 40 * DAY) if amount > 0 and number % 2 else PLAIN
            await books.ledger.grant(account, amount, f"hand {number}", "test", "by hand", terms=terms)
            gone = [lot for lot in await books.ledger.expiring(account) if lot.remaining_millicredits > 100]
            if gone:  # a part of a lot that expires is taken, as the job does
                lost = expiry_posting(account, 100, f"{mark_of(gone[0].lot_id)}:{number}", now)
                async with books.database.write() as connection:
                    await take_expired(connection, gone[0], 100)
                    await move(connection, [lost])
        else:
            await books.ledger.post(
                [settled(f"c{number}", account, now, rng.choice(MODELS), (rng.randrange(9_000), 9))]
            )
    clock(at(LAST))
    return accounts


SPANS = [(BEGAN, LAST), (date(2026, 11, 1), LAST), (date(2026, 10, 31), LAST), (date(2026, 10, 2), date(2026, 10, 5))]


async def exports(books: Books) -> list[object]:
    journal = Journal(books.database)
    return [part for span in SPANS for part in (await journal.journal(*span), await journal.days(*span))]


async def test_an_export_is_the_same_from_kept_books(
    sql: Books, clock: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    await history(sql, clock)
    before = await exports(sql)
    monkeypatch.setattr(billing.accounting.journal_source, "PAGE", 4)  # an account's rows are in several pages
    monkeypatch.setattr(billing.accounting.journal_source, "BATCH", 2)
    assert await exports(sql) == before
    assert await keep_books(sql.database, at(date(2026, 10, 1), 0) + 1) == [date(2026, 7, 31), date(2026, 8, 31)], (
        "September is over for less than an hour"
    )
    assert await exports(sql) == before
    assert await keep_books(sql.database, at(LAST)) == [date(2026, 9, 30), date(2026, 10, 31)]
    assert await keep_books(sql.database, at(LAST)) == []
    assert await exports(sql) == before
    assert await check_books(sql.database) == []


async def test_what_is_before_kept_books_is_not_read(sql: Books, clock: Callable[[int], None]) -> None:
    await history(sql, clock)
    await keep_books(sql.database, at(LAST))
    journal, last_month = Journal(sql.database), (date(2026, 11, 1), LAST)
    before = await journal.journal(*last_month), await journal.days(*last_month)
    october = at(date(2026, 10, 31), 0) + DAY
    await run_sql(
        sql,
        f"DELETE FROM transfers WHERE created_at < {october}",
        f"DELETE FROM usage_days WHERE booked_day < {october // DAY}",
    )
    assert (await journal.journal(*last_month), await journal.days(*last_month)) == before
    assert {one.check for one in await check_books(sql.database)} >= {"kept books of a day vs the ledger"}


async def test_rows_of_a_run_that_was_killed_are_not_read(sql: Books, clock: Callable[[int], None]) -> None:
    await history(sql, clock)
    before = await exports(sql)
    await keep_books(sql.database, at(LAST))
    newest = (date(2026, 10, 31) - date(1970, 1, 1)).days
    await run_sql(
        sql,
        f"DELETE FROM books_days WHERE day = {newest}",
        f"UPDATE books_accounts SET state = '[[],9,[],[]]' WHERE day = {newest}",
    )
    assert await exports(sql) == before
    assert await keep_books(sql.database, at(LAST)) == [date(2026, 10, 31)]
    assert await exports(sql) == before
    assert await check_books(sql.database) == []


@pytest.mark.parametrize(
    ("statement", "check"),
    [
        ("UPDATE books_days SET outstanding = outstanding + 1", "kept books of a day vs the ledger"),
        ("UPDATE books_accounts SET state = '[[],9,[],[]]'", "kept books of an account vs the ledger"),
        (
            "DELETE FROM books_accounts WHERE account_id = (SELECT min(account_id) FROM books_accounts)",
            "kept books of an account vs the ledger",
        ),
        (
            "INSERT INTO books_accounts VALUES ('acct_0', 20000, '[[],0,[],[]]')",
            "kept books of an account that has none",
        ),
    ],
)
async def test_wrong_books_are_found(sql: Books, clock: Callable[[int], None], statement: str, check: str) -> None:
    await history(sql, clock)
    await keep_books(sql.database, at(LAST))
    assert await check_books(sql.database) == []
    await run_sql(sql, statement)
    assert check in {one.check for one in await check_books(sql.database)}
