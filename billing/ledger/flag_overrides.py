"""Overrides of flags in SQL: set and cleared by people, with a reason, each change in the audit log."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change, take_turn
from billing.storage.database import Database, now_ms
from billing.storage.tables.operations import flag_overrides
from config.flags import full_name


class FlagOverride(NamedTuple):
    """A flag's value while it lasts. Times are Unix milliseconds; `expires_at` None = until it is cleared."""

    flag: str
    value: Any
    reason: str
    actor: str
    created_at: int
    expires_at: int | None

    def ended(self, at: int) -> bool:
        """Tell whether it counts no more."""
        return self.expires_at is not None and self.expires_at <= at


class FlagOverrides:
    """The overrides. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def all(self) -> tuple[FlagOverride, ...]:
        """Every override that was not cleared, ended ones too."""
        async with self._db.read() as connection:
            rows = (await connection.execute(select(flag_overrides).order_by(flag_overrides.c.flag))).all()
        return tuple(FlagOverride(row[0], msgspec.json.decode(row[1]), *row[2:]) for row in rows)

    async def set(self, flag: str, value: Any, reason: str, who: Who, expires_at: int | None = None) -> None:
        """Override a flag with a checked value, in place of what overrode it before."""
        now = now_ms()
        async with self._db.write() as connection:
            await take_turn(
                connection
            )  # before the first look: of two who set one flag, the second finds the first's row
            before = await _taken_out(connection, flag)
            await connection.execute(
                insert(flag_overrides).values(
                    flag=flag,
                    value=msgspec.json.encode(value).decode(),
                    reason=reason,
                    actor=who.actor[:120],
                    created_at=now,
                    expires_at=expires_at,
                )
            )
            after = {"value": value, "expiresAt": expires_at}
            await record_change(connection, who, Change("flag.set", full_name(flag), before, after, reason))

    async def clear(self, flag: str, reason: str, who: Who) -> bool:
        """Let the file decide again; False when nothing overrode it."""
        async with self._db.write() as connection:
            await take_turn(connection)
            before = await _taken_out(connection, flag)
            if before is None:
                return False
            await record_change(connection, who, Change("flag.clear", full_name(flag), before, None, reason))
        return True


async def _taken_out(connection: AsyncConnection, flag: str) -> dict[str, Any] | None:
    gone = (
        delete(flag_overrides)
        .where(flag_overrides.c.flag == flag)
        .returning(flag_overrides.c.value, flag_overrides.c.expires_at)
    )
    row = (await connection.execute(gone)).first()
    return None if row is None else {"value": msgspec.json.decode(row[0]), "expiresAt": row[1]}


def in_force(overrides: Sequence[FlagOverride], at: int) -> dict[str, Any]:
    """Flag → value, of those that have not ended."""
    return {row.flag: row.value for row in overrides if not row.ended(at)}
