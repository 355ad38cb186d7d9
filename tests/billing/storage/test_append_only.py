"""Tables that only grow: no statement changes, deletes or replaces a row of theirs. Both databases."""

import hashlib
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from billing.ledger.audit_log import BEGINNING, AuditLog, Change, Who, hash_of
from billing.ledger.transfers import insert_missing, insert_once
from billing.money.errors import StoreUnavailable
from billing.money.postings import Posting
from billing.storage.tables.core import rate_activations, rate_cards, transfers
from billing.storage.tables.operations import audit_log
from billing.storage.tables.plans import plan_assignments, price_plans
from tests.support.charges import settled
from tests.support.copied_ledgers import filled_once
from tests.support.stores import Books

TABLES = {
    table.name: table for table in (transfers, audit_log, rate_cards, rate_activations, price_plans, plan_assignments)
}


async def filled(sql: Books) -> str:
    return await filled_once(sql, lambda: with_every_kind(sql), with_every_kind)


async def with_every_kind(sql: Books) -> str:
    """An account with a grant, a charge, audit rows and an active card."""
    account = await sql.account(1_000)
    await sql.ledger.post([settled("c1", account, 1)])
    log = AuditLog(sql.database)
    for number in range(3):
        await log.write(Who("ann", "owner"), Change("test", str(number), None, None))
    async with sql.database.write() as connection:
        await connection.execute(text("INSERT INTO rate_cards VALUES ('a card', '{}', 1, 'ann')"))
        await connection.execute(
            text(
                "INSERT INTO rate_activations (rate_card_id, effective_at, created_at, actor) VALUES ('a card',1,1,'x')"
            )
        )
        await connection.execute(text("INSERT INTO price_plans VALUES (1, 'gold', 1, '{}', 1, NULL, 1, 'ann')"))
        await connection.execute(
            text(f"INSERT INTO plan_assignments VALUES (1, '{account}', 'gold', 1, NULL, 1, 'ann')")
        )
    return account


async def everything(sql: Books) -> list[object]:
    async with sql.database.read() as connection:
        return [
            [tuple(row) for row in await connection.execute(table.select().order_by(table.c.id))]
            for table in TABLES.values()
        ]


REPLACES = {
    "OR REPLACE": "INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
    "REPLACE INTO": "REPLACE INTO {table} SELECT * FROM {table}",
    "UPSERT": "INSERT INTO {table} SELECT * FROM {table} WHERE true ON CONFLICT (id) DO UPDATE SET id = excluded.id",
    "UPDATE OR REPLACE": "UPDATE OR REPLACE {table} SET id = id",
    "UPDATE": "UPDATE {table} SET id = id",
    "DELETE": "DELETE FROM {table}",
}


@pytest.mark.parametrize("how", REPLACES)
@pytest.mark.parametrize("table", TABLES)
async def test_no_statement_replaces_a_row(how: str, table: str, sql: Books) -> None:
    if not sql.database.is_sqlite and "REPLACE" in how:
        return  # PostgreSQL has none
    await filled(sql)
    before = await everything(sql)
    with pytest.raises((DBAPIError, StoreUnavailable)):
        async with sql.database.write() as connection:
            await connection.execute(text(REPLACES[how].format(table=table)))
    assert await everything(sql) == before


CHANGED = {
    "by its number": "INSERT OR REPLACE INTO transfers SELECT id, debit_account, credit_account, 999999, kind, "
    "reference_type, 'another ' || id, created_at, actor, reason, expires_at, reason_shown FROM transfers",
    "by its reference": "INSERT OR REPLACE INTO transfers (debit_account, credit_account, amount_millicredits, kind, "
    "reference_type, reference_id, created_at) SELECT debit_account, credit_account, 999999, kind, reference_type, "
    "reference_id, created_at FROM transfers",
    "in the middle of new ones": "INSERT OR REPLACE INTO transfers (debit_account, credit_account, "
    "amount_millicredits, kind, reference_type, reference_id, created_at) SELECT debit_account, credit_account, 1, "
    "kind, reference_type, new, 1 FROM transfers JOIN (SELECT 'new' AS new UNION SELECT reference_id FROM transfers)",
    "a row of the log by the one before": "INSERT OR REPLACE INTO audit_log SELECT id + 100, created_at, 'eve', role, "
    "action, subject, before, after, reason, request_id, ip, previous_hash, hash FROM audit_log",
}


@pytest.mark.parametrize("what", CHANGED)
@pytest.mark.parametrize("recursive", ["ON", "OFF"])
async def test_whoever_may_write_the_file_replaces_nothing(what: str, recursive: str, folder: Path, sql: Books) -> None:
    """By a connection of somebody else's, which has not our settings."""
    if not sql.database.is_sqlite:
        return
    await filled(sql)
    before = await everything(sql)
    with sqlite3.connect(sql.folder / "ledger.db") as connection:
        connection.execute(f"PRAGMA recursive_triggers = {recursive}")
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            connection.execute(CHANGED[what])
    connection.close()
    assert await everything(sql) == before


async def test_a_log_written_anew_as_a_whole_is_found_by_the_head_that_was_kept(sql: Books) -> None:
    await filled(sql)
    log = AuditLog(sql.database)
    head = await log.head()
    assert head == (await log.verify()).head
    rows = [row async for row in log.rows()]
    async with sql.database.write() as connection:
        dropped = [f"DROP TRIGGER {name}" for name in ("audit_no_update", "audit_no_delete", "audit_log_no_replace")]
        for statement in dropped if sql.database.is_sqlite else ["ALTER TABLE audit_log DISABLE TRIGGER ALL"]:
            await connection.execute(text(statement))
        await connection.execute(text("DELETE FROM audit_log"))
        previous = BEGINNING
        for row in rows:
            forged = row._replace(actor="eve", previous_hash=previous)
            previous = hash_of(forged)
            await connection.execute(audit_log.insert().values(forged._replace(hash=previous)._asdict()))
    assert (await log.verify()).problem == ""
    assert "written anew" in (await log.verify([head.hash])).problem
    assert hashlib.sha256(b"").hexdigest() in (await log.verify([hashlib.sha256(b"").hexdigest()])).problem


async def test_what_may_have_been_booked_before_is_booked_once(sql: Books) -> None:
    """Triggers refuse what is there; these must not even try."""
    await filled(sql)
    async with sql.database.write() as connection:
        posting = Posting("cash", "promo", 5, "test", "test", "once", 1)
        assert await insert_once(connection, posting) is True
        assert await insert_once(connection, posting) is False
        await insert_missing(connection, [posting, posting._replace(reference_id="twice")])
        await insert_missing(connection, [posting, posting._replace(reference_id="twice")])
    async with sql.database.read() as connection:
        query = transfers.select().where(transfers.c.kind == "test").order_by(transfers.c.id)
        assert [row.reference_id for row in await connection.execute(query)] == ["once", "twice"]
