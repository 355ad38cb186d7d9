"""Bring the database to the newest schema, and tell whether it is there.

Alembic is imported only to migrate: a serving worker looks at the revision and saves its memory.
"""

from functools import cache
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from billing.money.errors import StoreUnavailable
from billing.storage.database import Database

SCRIPTS = Path(__file__).parent / "migrations"
SQLITE_HAS_VERSION = "select 1 from sqlite_master where type = 'table' and name = 'alembic_version'"
POSTGRESQL_HAS_VERSION = "select 1 from pg_catalog.pg_class where oid = to_regclass('alembic_version')"
ADVISORY_LOCK = 7_305_001
"""PostgreSQL advisory lock: two machines that start together migrate one after the other."""


async def migrate(database: Database) -> str:
    """Run every missing migration; return the revision reached. Raises StoreUnavailable."""
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


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
