"""Who may see the Credits page: one-time links made by the operator's app, and the sessions they open. Only hashes are stored."""

import hashlib
import secrets
from collections import defaultdict
from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, func, insert, select, union_all, update

from billing.audit import Change, Who, note_by
from billing.database import Database, now_ms
from billing.errors import AccountNotFound
from billing.portal_tables import portal_tokens
from billing.tables import accounts, usage, usage_daily

LINK_MS = 10 * 60 * 1_000
SESSION_MS = 12 * 3_600 * 1_000
DAY_MS = 86_400_000


class Session(NamedTuple):
    """An open session; `expires_at` in Unix milliseconds."""

    account_id: str
    expires_at: int


class DaySpend(NamedTuple):
    """What one model cost an account on one UTC day (days since 1970), in millicredits."""

    day: int
    model: str
    millicredits: int


class Portal:
    """Links, sessions, and what the page's chart shows. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def link(self, account_id: str, who: Who | None = None) -> tuple[str, int]:
        """(a token that opens one session within 10 minutes, when it expires). Raises AccountNotFound.

        `who`: the admin for the audit log; None for the operator's app, which makes one whenever a customer goes to their page.
        """
        async with self._db.read() as connection:
            if (await connection.execute(select(accounts.c.id).where(accounts.c.id == account_id))).first() is None:
                raise AccountNotFound(account_id)
        return await self._make(account_id, "link", LINK_MS, who)

    async def opens(self, token: str) -> str | None:
        """The account whose page a link's token would open now. Spends nothing."""
        query = select(portal_tokens.c.account_id).where(*_is_good_link(token))
        async with self._db.read() as connection:
            found: str | None = (await connection.execute(query)).scalar_one_or_none()
        return found

    async def open(self, token: str) -> tuple[str, Session] | None:
        """(a session's token, the session) for a link's token; None when it is unknown, used or too old."""
        use = update(portal_tokens).where(*_is_good_link(token)).values(used_at=now_ms()).returning(portal_tokens.c.account_id)
        async with self._db.write() as connection:
            account_id: str | None = (await connection.execute(use)).scalar_one_or_none()
        if account_id is None:
            return None
        session, expires_at = await self._make(account_id, "session", SESSION_MS)
        return session, Session(account_id, expires_at)

    async def session(self, token: str) -> Session | None:
        """The session of that token; None when it ended or never was, or its account is blocked."""
        table = portal_tokens.c
        query = (
            select(table.account_id, table.expires_at)
            .join(accounts, accounts.c.id == table.account_id)
            .where(table.hash == _hash(token), table.kind == "session", table.expires_at > now_ms(), accounts.c.status == "active")
        )
        async with self._db.read() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else Session(row[0], row[1])

    async def close(self, token: str) -> None:
        """End a session."""
        async with self._db.write() as connection:
            await connection.execute(delete(portal_tokens).where(portal_tokens.c.hash == _hash(token)))

    async def spend(self, account_id: str, since_day: int) -> list[DaySpend]:
        """What was charged by day and model since a day, oldest first."""
        day, kept = (usage.c.created_at // DAY_MS).label("day"), usage_daily.c
        detail = (
            select(day, usage.c.model, func.sum(usage.c.charged_millicredits))
            .where(usage.c.account_id == account_id, usage.c.created_at >= since_day * DAY_MS)
            .group_by(day, usage.c.model)
        )
        sums = (
            select(kept.asked_day, kept.model, func.sum(kept.charged_millicredits))
            .where(kept.account_id == account_id, kept.asked_day >= since_day)
            .group_by(kept.asked_day, kept.model)
        )
        found: defaultdict[tuple[int, str], int] = defaultdict(int)
        async with self._db.read() as connection:
            for number, model, amount in await connection.execute(union_all(detail, sums)):
                found[int(number), model] += int(amount)
        return [DaySpend(number, model, found[number, model]) for number, model in sorted(found)]

    async def _make(self, account_id: str, kind: str, lifetime_ms: int, who: Who | None = None) -> tuple[str, int]:
        token, now = secrets.token_urlsafe(32), now_ms()
        async with self._db.write() as connection:
            await connection.execute(delete(portal_tokens).where(portal_tokens.c.expires_at < now - DAY_MS))
            await connection.execute(
                insert(portal_tokens).values(
                    hash=_hash(token), kind=kind, account_id=account_id, created_at=now, expires_at=now + lifetime_ms
                )
            )
            await note_by(connection, who, Change("portal.link", account_id, None, {"expiresAt": now + lifetime_ms}))
        return token, now + lifetime_ms


def _is_good_link(token: str) -> tuple[ColumnElement[bool], ...]:
    """That a row is this link's, not used, and not too old."""
    table = portal_tokens.c
    return table.hash == _hash(token), table.kind == "link", table.used_at.is_(None), table.expires_at > now_ms()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
