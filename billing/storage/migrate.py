"""Bring the database to the newest schema, and tell whether it is there.

Alembic is imported only to migrate: a serving worker looks at the revision and saves its memory.
"""

import asyncio
from functools import cache
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.money.errors import StoreUnavailable
from billing.storage.database import Database

SCRIPTS = Path(__file__).parent / "migrations"
SQLITE_HAS_VERSION = "select 1 from sqlite_master where type = 'table' and name = 'alembic_version'"
POSTGRESQL_HAS_VERSION = "select 1 from pg_catalog.pg_class where oid = to_regclass('alembic_version')"
EXISTING = "select 1 from pg_class where oid = to_regclass(:name)"
PARTITIONS = """
select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
 where i.inhparent = to_regclass(:parent) order by c.relname
"""
BEING_BUILT = "select 1 from pg_stat_progress_create_index where relid = to_regclass(:table)"
HALF_BUILT = "select 1 from pg_index where indexrelid = to_regclass(:name) and not indisvalid"
LOOK_SECONDS = 1.0
ADVISORY_LOCK = 7_305_001
"""PostgreSQL advisory lock: two machines that start together migrate one after the other."""


async def migrate(database: Database) -> str:
    """Run every missing migration; return the revision reached. Raises StoreUnavailable.

    On PostgreSQL the large tables' new indexes are built before, beside writers, so that the transaction of the
    migrations is a short one.
    """
    if not database.is_sqlite:
        await _build_ahead(database)
    async with database.write() as connection:
        if not database.is_sqlite:
            await connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        await connection.run_sync(_upgrade)
    return newest_revision()


async def current_revision(database: Database) -> str | None:
    """Return the revision the database is at; None when it was never migrated. Raises StoreUnavailable."""
    try:
        async with database.read() as connection:
            found: str | None = (
                await connection.execute(text("select version_num from alembic_version"))
            ).scalar_one_or_none()
            return found
    except (ProgrammingError, StoreUnavailable):  # SQLite says of a missing table what it says of a broken file
        if await _has_versions(database):
            raise
        return None


async def _has_versions(database: Database) -> bool:
    exists = SQLITE_HAS_VERSION if database.is_sqlite else POSTGRESQL_HAS_VERSION
    async with database.read() as connection:
        return (await connection.execute(text(exists))).scalar_one_or_none() is not None


@cache
def newest_revision() -> str:
    """Return the revision this code needs: migrations are numbered, 0001_foundation.py is revision 0001."""
    return max(path.name.partition("_")[0] for path in (SCRIPTS / "versions").glob("[0-9]*_*.py"))


async def _build_ahead(database: Database) -> None:
    """Build the indexes that missing migrations say they want, of each partition by itself.

    A migration that then makes an index of the whole table takes over those of its partitions.
    """
    reached = await current_revision(database)
    if reached is None:
        return
    async with database.read() as connection:
        for name, table, what in _wanted(reached):
            whole = (await connection.execute(text(EXISTING), {"name": name})).first()
            parts = [row[0] for row in await connection.execute(text(PARTITIONS), {"parent": table})]
            for part in [] if whole else parts or [table]:
                await _build_index(connection, name if part == table else f"{name}_{part}"[:63], part, what)


async def _build_index(connection: AsyncConnection, name: str, table: str, what: str) -> None:
    """Build an index while rows are written. One that a process left half-built is of no use, and is made again."""
    being_built = {"table": table}
    while (await connection.execute(text(BEING_BUILT), being_built)).first():  # noqa: ASYNC110 - by another machine
        await asyncio.sleep(LOOK_SECONDS)
    if (await connection.execute(text(HALF_BUILT), {"name": name})).first() is not None:
        await connection.execute(text(f"DROP INDEX CONCURRENTLY {name}"))
    await connection.execute(text(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {table} {what}"))


def _wanted(reached: str) -> list[tuple[str, str, str]]:
    """Return the indexes of migrations behind this one: (name, table, what of it)."""
    from alembic.script import ScriptDirectory

    behind = [one for one in ScriptDirectory(str(SCRIPTS)).walk_revisions() if one.revision > reached]
    return [index for one in reversed(behind) for index in getattr(one.module, "AHEAD", ())]


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
