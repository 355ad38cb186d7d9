"""Admin keys and sign-ins of the ops page.

A key is 256 random bits behind a prefix of its own; only hashes are stored.
"""

import secrets
from typing import NamedTuple

from sqlalchemy import delete, insert, select, update

from billing.ledger.accounts import HINT_LENGTH, STATUS, ApiKey, KeyRules, hash_key
from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.records.api_keys import read_end_user_rules
from billing.money.errors import KeyNotFound
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.core import accounts
from billing.storage.tables.operations import admin_keys, admin_sessions

ADMIN_PREFIX = "tka-"
SERVICE = "service"
"""The role of the operator's own app, which may act for accounts."""

LONGEST_ACTOR = 80
"""Characters of `transfers.actor`, the narrowest column that says who did something."""
LONGEST_NAME = 57
"""With the id of its key, in brackets behind it, a name of this length fits there."""


def actor_of(name: str, key_id: str) -> str:
    """Return what rows call the holder of a key. A name from before there was a limit is cut; the id stays whole."""
    behind = f" ({key_id})"
    return name[: LONGEST_ACTOR - len(behind)] + behind


class Admin(NamedTuple):
    """Somebody who may administer: what the audit log calls them, and their role."""

    actor: str
    role: str
    key_id: str | None
    expires_at: int | None = None

    @property
    def identity(self) -> str:
        """The part of `actor` that stays: an identity provider's subject without the e-mail address beside it."""
        return self.actor.partition(" (")[0] if self.actor.startswith("oidc:") else self.actor


class AdminRow(NamedTuple):
    """An admin key without its hash. Times in Unix milliseconds."""

    id: str
    hint: str
    name: str
    role: str
    created_at: int
    created_by: str
    expires_at: int | None
    revoked_at: int | None


class Admins:
    """Creates, lists, finds and revokes. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def create(
        self, name: str, role: str, who: Who, expires_at: int | None = None, reason: str = ""
    ) -> tuple[str, str]:
        """Make a key; return (its id, the key itself - shown this once). `name`: at most LONGEST_NAME characters."""
        secret, key_id = ADMIN_PREFIX + secrets.token_urlsafe(32), "adm_" + secrets.token_hex(8)
        row = {
            "id": key_id,
            "hash": hash_key(secret),
            "hint": f"{secret[:HINT_LENGTH]}…{secret[-4:]}",
            "name": name,
            "role": role,
            "created_at": now_ms(),
            "created_by": who.actor[:120],
            "expires_at": expires_at,
        }
        async with self._db.write() as connection:
            await connection.execute(insert(admin_keys).values(**row))
            after = {"name": name, "role": role, "expiresAt": expires_at}
            await record_change(connection, who, Change("admin.create", key_id, None, after, reason))
        return key_id, secret

    async def everyone(self) -> list[AdminRow]:
        """Return every key, oldest first."""
        query = select(*columns_of(admin_keys, AdminRow._fields))
        async with self._db.read() as connection:
            rows = await connection.execute(query.order_by(admin_keys.c.created_at, admin_keys.c.id))
            return [AdminRow(*row) for row in rows]

    async def revoke(self, key_id: str, who: Who, reason: str = "") -> None:
        """Revoke a key and every sign-in made with it. Raises KeyNotFound."""
        live = (admin_keys.c.id == key_id, admin_keys.c.revoked_at.is_(None))
        async with self._db.write() as connection:
            changed = await connection.execute(update(admin_keys).where(*live).values(revoked_at=now_ms()))
            if changed.rowcount != 1:
                raise KeyNotFound(key_id)
            await connection.execute(delete(admin_sessions).where(admin_sessions.c.key_id == key_id))
            await record_change(
                connection, who, Change("admin.revoke", key_id, {"revoked": False}, {"revoked": True}, reason)
            )

    async def change_role(self, key_id: str, role: str, who: Who, reason: str = "") -> None:
        """Give a key another role, in force at once; whoever is signed in with it signs in anew. Raises KeyNotFound."""
        live = (admin_keys.c.id == key_id, admin_keys.c.revoked_at.is_(None))
        async with self._db.write() as connection:
            before = (await connection.execute(select(admin_keys.c.role).where(*live))).scalar_one_or_none()
            if before is None:
                raise KeyNotFound(key_id)
            await connection.execute(update(admin_keys).where(*live).values(role=role))
            await connection.execute(delete(admin_sessions).where(admin_sessions.c.key_id == key_id))
            await record_change(connection, who, Change("admin.role", key_id, {"role": before}, {"role": role}, reason))

    async def find(self, key_hash: str) -> Admin | None:
        """Whose key this is; None when it is nobody's, revoked or expired."""
        async with self._db.read() as connection:
            row = (await connection.execute(select(admin_keys).where(admin_keys.c.hash == key_hash))).mappings().first()
        if (
            row is None
            or row["revoked_at"] is not None
            or (row["expires_at"] is not None and row["expires_at"] <= now_ms())
        ):
            return None
        return Admin(actor_of(row["name"], row["id"]), row["role"], row["id"], row["expires_at"])

    async def acting_for(self, key_hash: str, account_id: str) -> ApiKey | None:
        """Return an account's key as the operator's own app holds it: no limits but the defaults.

        None when either is unknown.
        """
        both = admin_keys.join(accounts, accounts.c.id == account_id)
        query = (
            select(admin_keys, STATUS, accounts.c.region, accounts.c.end_user_rules)
            .select_from(both)
            .where(admin_keys.c.hash == key_hash, admin_keys.c.role == SERVICE)
        )
        async with self._db.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            return None
        return ApiKey(
            row["id"],
            account_id,
            row["status"],
            KeyRules(expires_at=row["expires_at"]),
            row["revoked_at"],
            acted_for=True,
            region=row["region"],
            users=read_end_user_rules(row["end_user_rules"]),
        )

    async def sign_in(self, admin: Admin, who: Who, minutes: int) -> str:
        """Open a session of the ops page; its token. It never outlives the key or token that opened it."""
        token, now = secrets.token_urlsafe(32), now_ms()
        ends = min(now + minutes * 60_000, admin.expires_at or 2**53)
        async with self._db.write() as connection:
            await connection.execute(delete(admin_sessions).where(admin_sessions.c.expires_at <= now))
            await connection.execute(
                insert(admin_sessions).values(
                    hash=hash_key(token),
                    actor=admin.actor,
                    role=admin.role,
                    key_id=admin.key_id,
                    created_at=now,
                    expires_at=ends,
                )
            )
            await record_change(connection, who, Change("admin.sign-in", admin.key_id or admin.actor, None, None))
        return token

    async def session(self, token: str) -> Admin | None:
        """Return the admin whom this token signs in; None when nobody is any more."""
        async with self._db.read() as connection:
            # the key is asked, not only the session: a sign-in that was on its way when the key was revoked left one
            # behind
            query = (
                select(admin_sessions, admin_keys.c.revoked_at)
                .outerjoin(admin_keys, admin_keys.c.id == admin_sessions.c.key_id)
                .where(admin_sessions.c.hash == hash_key(token))
            )
            row = (await connection.execute(query)).mappings().first()
        if row is None or row["expires_at"] <= now_ms() or row["revoked_at"] is not None:
            return None
        return Admin(row["actor"], row["role"], row["key_id"], row["expires_at"])

    async def sign_out(self, token: str) -> None:
        """End a session."""
        async with self._db.write() as connection:
            await connection.execute(delete(admin_sessions).where(admin_sessions.c.hash == hash_key(token)))
