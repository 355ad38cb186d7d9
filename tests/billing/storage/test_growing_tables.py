"""Large tables: indexes are built beside writers, and each filter and each part of an account's money has one."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from billing.accounting.daily_finance import Finance, day_of
from billing.accounting.statements import Statements
from billing.accounting.usage_summary import UsageSummaries
from billing.ledger.customers.search import AccountFilters, AccountSearch
from billing.ledger.usage_rows import UsageFilters
from billing.payments.purchase_store import PurchaseStore
from billing.storage.database import Database
from billing.storage.migrate import SCRIPTS, current_revision, migrate, newest_revision
from tests.support.charges import NOW, settled
from tests.support.stores import Books, close_books, open_books

BEFORE = "0025"
INDEXES = ("ix_usage_model", "ix_usage_endpoint", "ix_usage_user", "ix_usage_tags")
USED = """
INSERT INTO usage (charge_id, created_at, account_id, key_id, endpoint, model, billed_model, service_tier, stream, free,
  usage_source, outcome, status, input_tokens, output_tokens, cached_tokens, cache_write_tokens, reasoning_tokens,
  audio_input_tokens, audio_output_tokens, web_searches, held_millicredits, charged_millicredits, loss_millicredits,
  cost_millicredits, rates, upstream_request_id, upstream_id, first_byte_ms, duration_ms)
VALUES ('c1', 1, 'a', 'k', '/v1', 'm', 'm', '', true, false, '', '', 200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '', '', '', 0, 0)
"""


def _upgrade_to(connection: Connection, revision: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def test_indexes_of_large_tables_are_built_beside_writers(empty_postgres: str) -> None:
    """Each partition's by itself, one that was left half-built anew; the migration then only takes them over."""
    database = Database(empty_postgres, 2, 10)
    async with database.write() as connection:
        await connection.run_sync(_upgrade_to, BEFORE)
        await connection.execute(text("SELECT keep_usage_month('move', 2026, 11)"))
        await connection.execute(text(USED))
        await connection.execute(text("CREATE INDEX ix_usage_model_usage_default ON usage_default (model)"))
        await connection.execute(
            text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_usage_model_usage_default'::regclass")
        )
    said: list[str] = []
    for engine in (database.reader, database.engine):
        event.listen(
            engine.sync_engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, *_: said.append(statement),
        )
    assert await migrate(database) == await current_revision(database) == newest_revision()
    built = [one for one in said if one.startswith("CREATE INDEX CONCURRENTLY")]
    assert len(built) == 2 * len(INDEXES) + 2, "two partitions of usage, and the transfers"
    assert "DROP INDEX CONCURRENTLY ix_usage_model_usage_default" in said
    async with database.read() as connection:
        valid = (
            "SELECT bool_and(i.indisvalid), count(*) FROM pg_index i JOIN pg_inherits h ON h.inhrelid = i.indexrelid"
        )
        for name in INDEXES:
            found = (await connection.execute(text(f"{valid} WHERE h.inhparent = '{name}'::regclass"))).one()  # noqa: S608
            assert tuple(found) == (True, 2), name
        parts = (
            "SELECT count(*) FROM pg_indexes WHERE tablename = 'usage_2026_11' AND indexdef LIKE '%endpoint, created%'"
        )
        assert (await connection.execute(text(parts))).scalar_one() == 1, "it was taken over and not built once more"
        since = (await connection.execute(text("SELECT since_day FROM summaries"))).scalar_one()
    assert since > day_of(NOW).toordinal() - day_of(0).toordinal(), "servers of before may book for a day without sums"
    await database.close()


READS: dict[str, tuple[Callable[[Books, str], Awaitable[Any]], list[str]]] = {
    "usage of a model": (
        lambda books, account: books.ledger.usage_of(account, 5, UsageFilters(model="none")),
        ["SEARCH usage USING INDEX ix_usage_model (account_id=? AND model=?)"],
    ),
    "usage of an endpoint, a deep page": (
        lambda books, account: books.ledger.usage_of(account, 5, UsageFilters(endpoint="/v1", before=(NOW, "c"))),
        ["SEARCH usage USING INDEX ix_usage_endpoint (account_id=? AND endpoint=? AND (created_at,charge_id)<(?,?))"],
    ),
    "usage of a key": (
        lambda books, account: books.ledger.usage_of(account, 5, UsageFilters(key_id="key_9")),
        ["SEARCH usage USING INDEX ix_usage_key (key_id=?)"],
    ),
    "usage of an end user": (
        lambda books, account: books.ledger.usage_of(account, 5, UsageFilters(end_user="ann")),
        ["SEARCH usage USING INDEX ix_usage_user (account_id=? AND end_user=?)"],
    ),
    "30 days of the Credits page": (
        lambda books, account: UsageSummaries(books.database).sums(
            UsageFilters(since_ms=20_000 * 86_400_000), ("day", "model"), account
        ),
        ["SEARCH usage_days USING INDEX sqlite_autoindex_usage_days_1 (account_id=? AND booked_day>?)"],
    ),
    "what a key spent": (
        lambda books, _: books.ledger.keys_spent(["key_1"], 20_000 * 86_400_000),
        ["SEARCH usage_days USING INDEX ix_usage_days_key (key_id=? AND asked_day>?)"],
    ),
    "the models of the ops page": (
        lambda books, _: Finance(books.database).top_models(20_000 * 86_400_000, 5),
        ["SEARCH model_days USING INDEX sqlite_autoindex_model_days_1 (asked_day>?)"],
    ),
    "a day of finance": (
        lambda books, _: Finance(books.database).compute(day_of(NOW)),
        [
            "SEARCH transfers USING INDEX ix_transfers_created (created_at>? AND created_at<?)",
            "SEARCH usage USING INDEX sqlite_autoindex_usage_1 (charge_id=? AND created_at>? AND created_at<?)",
            "SEARCH transfers USING INDEX ix_transfers_created (created_at>? AND created_at<?)",
            "SEARCH usage USING COVERING INDEX ix_usage_created (created_at>? AND created_at<?)",
            "SEARCH transfers USING INDEX ix_transfers_created (created_at>?)",
            "SEARCH transfers USING INDEX ix_transfers_created (created_at>?)",
        ],
    ),
    "purchases, a deep page": (
        lambda books, account: PurchaseStore(books.database).of_account(account, 5, (NOW, "p")),
        ["SEARCH purchases USING INDEX ix_purchases_account (account_id=? AND (created_at,id)<(?,?))"],
    ),
}
STATEMENT = {
    "SEARCH transfers USING INDEX sqlite_autoindex_transfers_1 (kind=? AND reference_id=?)",
    "SEARCH transfers USING INDEX ix_transfers_credit (credit_account=?)",
    "SEARCH transfers USING INDEX ix_transfers_moved (debit_account=?)",
    "SEARCH usage_days USING INDEX sqlite_autoindex_usage_days_1 (account_id=? AND booked_day>? AND booked_day<?)",
}


async def plans(books: Books, read: Callable[[], Awaitable[Any]]) -> list[str]:
    """What SQLite says it does of what this reads: where it begins, and what it goes through from end to end."""
    seen: list[tuple[str, Any]] = []

    def keep(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: bool) -> None:
        seen.append((statement, values))

    engine = books.database.reader.sync_engine
    event.listen(engine, "before_cursor_execute", keep)
    await read()
    event.remove(engine, "before_cursor_execute", keep)
    found = []
    async with books.database.read() as connection:
        for statement, values in seen:
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
            found += [row[3] for row in plan]
    return found


@pytest.fixture
async def lite(folder: Path) -> AsyncIterator[Books]:
    """A ledger on SQLite, which says what it does whatever the size."""
    books = await open_books(folder, "")
    yield books
    await close_books(books)


@pytest.mark.parametrize("name", READS)
async def test_a_page_begins_in_an_index_and_sorts_nothing(name: str, lite: Books) -> None:
    read, steps = READS[name]
    found = await plans(lite, lambda: read(lite, "acct_1"))
    tables = ("usage", "usage_days", "model_days", "purchases", "transfers")
    looked = [one for one in found if one.split()[0] in ("SEARCH", "SCAN") and one.split()[1] in tables]
    assert looked == steps
    assert "USE TEMP B-TREE FOR ORDER BY" not in found


async def test_a_statement_reads_no_row_of_a_charge(lite: Books) -> None:
    account = await lite.account(10_000)
    await lite.ledger.post([settled("c1", account, NOW)])
    found = await plans(lite, lambda: Statements(lite.database).read(account, "2026-11"))
    looked = {
        one for one in found if one.split()[0] == "SEARCH" and one.split()[1] in ("usage", "usage_days", "transfers")
    }
    assert looked == STATEMENT


async def test_an_account_is_found_by_an_id_without_reading_all(lite: Books) -> None:
    account = await lite.account()
    found = await plans(lite, lambda: AccountSearch(lite.database).find(AccountFilters(account), 5))
    assert [one for one in found if one.startswith("SCAN") and "CONSTANT" not in one and "SUBQUERY" not in one] == []
    (row,) = await AccountSearch(lite.database).find(AccountFilters(account), 5)
    assert row.id == account
