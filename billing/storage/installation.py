"""Secrets of the installation itself: made once, kept in SQL, never shown."""

import secrets

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from billing.storage.database import Database, now_ms
from billing.storage.tables.operations import installation_secrets

TENANT_NAMES = "tenant_names"
"""Name of the secret that tenants' names are made with."""
EVENTS = "events"
"""Name of the secret that the secrets of endpoints are made of."""


async def tenant_secret(database: Database, otherwise: bytes | None = None) -> bytes:
    """Return the secret that tenants' names are made with; where there is none yet, keep `otherwise`, or a random one.

    Raises StoreUnavailable.
    """
    return await _secret(database, TENANT_NAMES, otherwise)


async def event_secret(database: Database) -> bytes:
    """Return the secret that those of event endpoints are made of. Raises StoreUnavailable."""
    return await _secret(database, EVENTS)


async def _secret(database: Database, name: str, otherwise: bytes | None = None) -> bytes:
    table = installation_secrets.c
    query = select(table.value).where(table.name == name)
    async with database.read() as connection:
        found = (await connection.execute(query)).scalar_one_or_none()
    if found is None:
        dialect = sqlite if database.is_sqlite else postgresql
        value = (otherwise or secrets.token_bytes(32)).hex()
        row = {"name": name, "value": value, "created_at": now_ms()}
        async with database.write() as connection:
            # processes that start together agree on the first one's
            await connection.execute(dialect.insert(installation_secrets).values(row).on_conflict_do_nothing())
            found = (await connection.execute(query)).scalar_one()
    return bytes.fromhex(found)
