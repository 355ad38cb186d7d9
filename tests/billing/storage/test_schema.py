"""The migrated schema is the tables' schema, on both databases."""

import importlib
import pkgutil

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from billing.storage import tables
from billing.storage.migrate import current_revision, migrate, newest_revision
from billing.storage.tables.operations import audit_log
from billing.storage.tables.payments import purchases
from billing.storage.tables.realtime import realtime_calls
from tests.support.stores import Books


async def test_migrations_make_the_tables(sql: Books) -> None:
    def differences(connection: Connection) -> list[object]:
        found = compare_metadata(MigrationContext.configure(connection), purchases.metadata)
        # PostgreSQL's default partition of `usage` is made by hand, with indexes that its parent gives it
        return [change for change in found if "usage_default" not in str(change)]

    for module in pkgutil.iter_modules(tables.__path__):  # also those that nothing here has needed yet
        importlib.import_module(f"{tables.__name__}.{module.name}")
    assert audit_log.metadata is realtime_calls.metadata is purchases.metadata
    assert await current_revision(sql.database) == newest_revision()
    async with sql.database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_the_schema_is_current_and_migrating_again_does_nothing(sql: Books) -> None:
    assert await current_revision(sql.database) == newest_revision()
    assert await migrate(sql.database) == newest_revision()
