"""Entry to the Credits page: one-time links made by the operator's app, and the sessions they open.

Only hashes are stored.
"""

import hashlib
import secrets
from collections import defaultdict
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, delete, exists, insert, or_, select, update

from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.summaries.reading import Whose, asked_sums
from billing.ledger.usage_rows import UsageFilters
from billing.money.errors import AccountNotFound
from billing.storage.database import Database, now_ms
from billing.storage.tables.core import accounts
from billing.storage.tables.operations import admin_keys
from billing.storage.tables.portal import portal_tokens

LINK_MS = 10 * 60 * 1_000
SESSION_MS = 12 * 3_600 * 1_000
STAFF_SESSION_MS = 3_600 * 1_000
"""Of a person of the operator's, whose leave to look may end sooner than a customer's."""
DAY_MS = 86_400_000


class Staff(NamedTuple):
    """A person of the operator's who looks at a customer's page.

    `key_id` None: they came with an identity provider's token.
    """

    actor: str
    role: str
    key_id: str | None


class Link(NamedTuple):
    """The page that a link opens, and for whom; `staff` None: for the customer.

    `blocked`: the account is, so that it opens nothing now.
    """

    account_id: str
    blocked: bool
    staff: Staff | None


class PortalSession(NamedTuple):
    """An open session; `expires_at` in Unix milliseconds; `staff` None: the customer's own."""

    account_id: str
    expires_at: int
    staff: Staff | None = None


class DaySpend(NamedTuple):
    """Cost of one model for an account on one UTC day (days since 1970), in millicredits."""

    day: int
    model: str
    millicredits: int


class PortalTokens:
    """Links, sessions, and what the page's chart shows. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def link(self, account_id: str, who: Who | None = None, staff: Staff | None = None) -> tuple[str, int]:
        """Make (a token that opens one session within 10 minutes, when it expires). Raises AccountNotFound.

        `who`: the admin for the audit log; None for the operator's app, which makes one whenever a customer goes to
        their page. `staff`: who will look at the page in the customer's place.
        """
        async with self._db.read() as connection:
            if (await connection.execute(select(accounts.c.id).where(accounts.c.id == account_id))).first() is None:
                raise AccountNotFound(account_id)
        return await self._make(account_id, "link", LINK_MS, staff, who)

    async def opens(self, token: str) -> Link | None:
        """Return what a link's token would open now. Spends nothing."""
        query = select(accounts.c.status, *_OF_TOKEN).join(accounts, accounts.c.id == portal_tokens.c.account_id)
        async with self._db.read() as connection:
            row = (await connection.execute(query.where(*_is_good_link(token)))).first()
        return None if row is None else Link(row[1], row[0] != "active", _staff(*row[3:]))

    async def open(self, token: str) -> tuple[str, PortalSession] | None:
        """Return (a session's token, the session) for a link's token.

        None when it is unknown, used or too old, or its account is blocked.
        """
        active = exists().where(accounts.c.id == portal_tokens.c.account_id, accounts.c.status == "active")
        use = update(portal_tokens).where(*_is_good_link(token), active).values(used_at=now_ms()).returning(*_OF_TOKEN)
        async with self._db.write() as connection:
            row = (await connection.execute(use)).first()
        if row is None:
            return None
        account_id, staff = row[0], _staff(*row[2:])
        lifetime = SESSION_MS if staff is None else STAFF_SESSION_MS
        session, expires_at = await self._make(account_id, "session", lifetime, staff)
        return session, PortalSession(account_id, expires_at, staff)

    async def session(self, token: str) -> PortalSession | None:
        """Return the session of that token.

        None when it ended or never was, its account is blocked, or who opened it lost their key.
        """
        table = portal_tokens.c
        query = (
            select(*_OF_TOKEN)
            .join(accounts, accounts.c.id == table.account_id)
            .where(
                table.hash == _hash(token),
                table.kind == "session",
                table.expires_at > now_ms(),
                accounts.c.status == "active",
            )
            .where(_key_is_good())
        )
        async with self._db.read() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else PortalSession(row[0], row[1], _staff(*row[2:]))

    async def close(self, token: str) -> None:
        """End a session."""
        async with self._db.write() as connection:
            await connection.execute(delete(portal_tokens).where(portal_tokens.c.hash == _hash(token)))

    async def spend(self, account_id: str, since_day: int) -> list[DaySpend]:
        """Sum what was charged by day and model since a day, oldest first."""
        found: defaultdict[tuple[int, str], int] = defaultdict(int)
        async with self._db.read() as connection:
            since = UsageFilters(since_ms=since_day * DAY_MS)
            query = await asked_sums(connection, ("day", "model"), since, Whose(account_id))
            for row in await connection.execute(query):
                found[int(row.day), row.model] += int(row.charged)
        return [DaySpend(number, model, found[number, model]) for number, model in sorted(found)]

    async def _make(
        self, account_id: str, kind: str, lifetime_ms: int, staff: Staff | None, who: Who | None = None
    ) -> tuple[str, int]:
        token, now = secrets.token_urlsafe(32), now_ms()
        row = {
            "hash": _hash(token),
            "kind": kind,
            "account_id": account_id,
            "created_at": now,
            "expires_at": now + lifetime_ms,
        }
        if staff is not None:
            row |= {"staff_actor": staff.actor[:120], "staff_role": staff.role, "staff_key_id": staff.key_id}
        async with self._db.write() as connection:
            await connection.execute(delete(portal_tokens).where(portal_tokens.c.expires_at < now - DAY_MS))
            await connection.execute(insert(portal_tokens).values(**row))
            await record_change(
                connection, who, Change("portal.link", account_id, None, {"expiresAt": now + lifetime_ms})
            )
        return token, now + lifetime_ms


_TABLE = portal_tokens.c
_OF_TOKEN = (_TABLE.account_id, _TABLE.expires_at, _TABLE.staff_actor, _TABLE.staff_role, _TABLE.staff_key_id)
"""Columns of what is known of a token."""


def _staff(actor: str | None, role: str | None, key_id: str | None) -> Staff | None:
    return None if actor is None or role is None else Staff(actor, role, key_id)


def _is_good_link(token: str) -> tuple[ColumnElement[bool], ...]:
    """Conditions that a row is this link's, not used, not too old, and not of somebody whose key has ended."""
    return (
        _TABLE.hash == _hash(token),
        _TABLE.kind == "link",
        _TABLE.used_at.is_(None),
        _TABLE.expires_at > now_ms(),
        _key_is_good(),
    )


def _key_is_good() -> ColumnElement[bool]:
    """Condition that the admin key by which somebody opened it, if one did, is neither revoked nor expired."""
    key = admin_keys.c
    lasts = or_(key.expires_at.is_(None), key.expires_at > now_ms())
    return or_(
        _TABLE.staff_key_id.is_(None),
        exists().where(and_(key.id == _TABLE.staff_key_id, key.revoked_at.is_(None), lasts)),
    )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
