"""Browser voice in SQL: the secrets that open calls, whose a call is, and who meters it now.

A secret is ours (OpenAI's own would open unmetered access) and opens nothing but calls, a few of them, until it
expires. A call runs under a lease that whoever meters it renews; one whose lease has run out is metered by nobody, and
is hung up by whoever finds it. The lease goes by the database's clock: by their own, machines whose clocks differ would
hang up each other's calls.
"""

import hashlib
import secrets
from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import delete, insert, select, update

from billing.storage.database import Database, now_ms
from billing.storage.tables.realtime import realtime_calls, realtime_secrets

SECRET_PREFIX = "ek_"  # noqa: S105 - a prefix
MOST_CALLS = 20
"""Calls that one secret opens, so that one that leaks opens no more."""
KEPT_MS = 24 * 3_600 * 1_000
"""Time that what has ended is still known."""
AT_ONCE = 100


class OpenedSecret(NamedTuple):
    """Contents of a secret: the key that calls are opened by, and their session (JSON)."""

    account_id: str
    key_digest: str
    session: str


class RealtimeCalls:
    """Secrets and calls. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def mint(self, account_id: str, key_digest: str, session: str, lifetime_ms: int) -> tuple[str, int]:
        """Make (a secret, when it expires) for a key of that digest; what has long expired goes."""
        secret, now = SECRET_PREFIX + secrets.token_urlsafe(32), now_ms()
        row = {
            "hash": _hash(secret),
            "account_id": account_id,
            "key_digest": key_digest,
            "session": session,
            "calls": 0,
            "created_at": now,
            "expires_at": now + lifetime_ms,
        }
        async with self._db.write() as connection:
            await connection.execute(delete(realtime_secrets).where(realtime_secrets.c.expires_at < now - KEPT_MS))
            await connection.execute(insert(realtime_secrets).values(**row))
        return secret, now + lifetime_ms

    async def open(self, secret: str) -> OpenedSecret | None:
        """Use a secret for one more call; None when it is unknown, expired or used up."""
        table = realtime_secrets.c
        used = (
            update(realtime_secrets)
            .where(table.hash == _hash(secret), table.expires_at > now_ms(), table.calls < MOST_CALLS)
            .values(calls=table.calls + 1)
            .returning(table.account_id, table.key_digest, table.session)
        )
        async with self._db.write() as connection:
            row = (await connection.execute(used)).first()
        return None if row is None else OpenedSecret(*row)

    async def begin(self, call_id: str, account_id: str, lease_ms: int, upstream: str = "") -> bool:
        """Record whose a call is, and where it runs, before anybody hears of it; False when that id has an owner."""
        async with self._db.write() as connection:
            now = await self._db.clock_ms(connection)
            await connection.execute(delete(realtime_calls).where(realtime_calls.c.ended_at < now - KEPT_MS))
            known = select(realtime_calls.c.id).where(realtime_calls.c.id == call_id)
            if (await connection.execute(known)).first() is not None:
                return False
            row = {"id": call_id, "account_id": account_id, "created_at": now, "leased_until": now + lease_ms}
            row["upstream"] = upstream
            await connection.execute(insert(realtime_calls).values(**row))
        return True

    async def renew(self, call_ids: Collection[str], lease_ms: int) -> None:
        """Say that these are metered for a while longer."""
        if not call_ids:
            return
        mine = (realtime_calls.c.id.in_(sorted(call_ids)), realtime_calls.c.ended_at.is_(None))
        async with self._db.write() as connection:
            until = await self._db.clock_ms(connection) + lease_ms
            await connection.execute(update(realtime_calls).where(*mine).values(leased_until=until))

    async def owner(self, call_id: str) -> str | None:
        """Return the account whose call it is; None for one that never was, or ended long ago."""
        query = select(realtime_calls.c.account_id).where(realtime_calls.c.id == call_id)
        async with self._db.read() as connection:
            found: str | None = (await connection.execute(query)).scalar_one_or_none()
        return found

    async def upstream_of(self, call_id: str) -> str:
        """Return where a call runs; "" is the default upstream."""
        query = select(realtime_calls.c.upstream).where(realtime_calls.c.id == call_id)
        async with self._db.read() as connection:
            found: str | None = (await connection.execute(query)).scalar_one_or_none()
        return found or ""

    async def abandoned(self) -> list[str]:
        """Return the calls that run and are metered by nobody, longest first."""
        table = realtime_calls.c
        async with self._db.read() as connection:
            over = table.leased_until < await self._db.clock_ms(connection)
            query = select(table.id).where(table.ended_at.is_(None), over).order_by(table.leased_until).limit(AT_ONCE)
            return list((await connection.execute(query)).scalars())

    async def ended(self, call_ids: Collection[str]) -> list[str]:
        """Return those of these calls that somebody has ended."""
        table = realtime_calls.c
        query = select(table.id).where(table.id.in_(sorted(call_ids)), table.ended_at.is_not(None))
        async with self._db.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def end(self, call_id: str) -> None:
        """Record that a call does not run any more."""
        running = (realtime_calls.c.id == call_id, realtime_calls.c.ended_at.is_(None))
        async with self._db.write() as connection:
            now = await self._db.clock_ms(connection)
            await connection.execute(update(realtime_calls).where(*running).values(ended_at=now))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
