"""Accounts and API keys. A key is 256 random bits behind a readable prefix; only its SHA-256 is stored."""

import hashlib
import secrets
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Select, insert, or_, select, update

from billing.ledger.audit_log import Change, Who, record_change
from billing.money.amounts import Millicredits
from billing.money.buckets import bucket_of
from billing.money.errors import AccountNotFound, KeyNotFound
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.core import accounts, api_keys, balances

KEY_PREFIX = "tk-"
HINT_LENGTH = 8


class KeyRules(NamedTuple):
    """Permissions and limits of a key; None = the default of [limits], or no limit."""

    models: tuple[str, ...] | None = None
    spend_limit: Millicredits | None = None
    spend_period: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    expires_at: int | None = None


class ApiKey(NamedTuple):
    """A key as the data path needs it. Times are Unix milliseconds."""

    key_id: str
    account_id: str
    account_status: str
    rules: KeyRules
    revoked_at: int | None
    acted_for: bool = False
    """True: the operator's own app acts for the account, and no key of the account's."""


class AccountRow(NamedTuple):
    """An account as SQL has it; `posted_millicredits` is its balance there. `created_at` in Unix milliseconds."""

    id: str
    name: str
    status: str
    created_at: int
    posted_millicredits: int


class KeyRow(NamedTuple):
    """A key as its owner sees it, without its hash; `models` is a JSON list (None: all). Times in Unix milliseconds."""

    id: str
    account_id: str
    hint: str
    models: str | None
    spend_limit_millicredits: int | None
    spend_period: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    expires_at: int | None
    revoked_at: int | None
    created_at: int


def _listed() -> Select[Any]:
    """Return the query of account rows."""
    columns = (*columns_of(accounts, AccountRow._fields[:-1]), balances.c.posted_millicredits)
    return select(*columns).join(balances, balances.c.account_id == accounts.c.id)


class Accounts:
    """Creates, shows and blocks accounts and keys. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def create(self, name: str, who: Who | None = None) -> str:
        """Make an account with a zero balance; return its id. `who`: the admin for the audit log."""
        account_id = "acct_" + secrets.token_hex(12)
        async with self._db.write() as connection:
            await connection.execute(insert(accounts).values(id=account_id, name=name, created_at=now_ms()))
            await connection.execute(
                insert(balances).values(
                    account_id=account_id, bucket=bucket_of(account_id), posted_millicredits=0, outbox_sequence=0
                )
            )
            await record_change(connection, who, Change("account.create", account_id, None, {"name": name}))
        return account_id

    async def everyone(self) -> list[AccountRow]:
        """Return every account, oldest first."""
        async with self._db.read() as connection:
            rows = await connection.execute(_listed().order_by(accounts.c.created_at, accounts.c.id))
            return [AccountRow(*row) for row in rows]

    async def get(self, account_id: str) -> AccountRow:
        """Return one account. Raises AccountNotFound."""
        async with self._db.read() as connection:
            row = (await connection.execute(_listed().where(accounts.c.id == account_id))).first()
        if row is None:
            raise AccountNotFound(account_id)
        return AccountRow(*row)

    async def set_status(self, account_id: str, status: str, who: Who | None = None, reason: str = "") -> None:
        """Make an account "active" or "blocked". Raises AccountNotFound."""
        async with self._db.write() as connection:
            before = (
                await connection.execute(select(accounts.c.status).where(accounts.c.id == account_id))
            ).scalar_one_or_none()
            changed = await connection.execute(
                update(accounts).where(accounts.c.id == account_id).values(status=status)
            )
            if changed.rowcount != 1:
                raise AccountNotFound(account_id)
            await record_change(connection, who, Change("account.status", account_id, before, status, reason))

    async def create_key(self, account_id: str, rules: KeyRules, who: Who | None = None) -> tuple[str, str]:
        """Make a key; return (key id, the key itself — shown this once). Raises AccountNotFound."""
        await self.get(account_id)
        secret = KEY_PREFIX + secrets.token_urlsafe(32)
        key_id = "key_" + secrets.token_hex(8)
        async with self._db.write() as connection:
            await connection.execute(
                insert(api_keys).values(
                    id=key_id,
                    account_id=account_id,
                    hash=hash_key(secret),
                    hint=f"{secret[:HINT_LENGTH]}…{secret[-4:]}",
                    models=msgspec.json.encode(rules.models).decode() if rules.models is not None else None,
                    spend_limit_millicredits=rules.spend_limit,
                    spend_period=rules.spend_period,
                    requests_per_minute=rules.requests_per_minute,
                    tokens_per_minute=rules.tokens_per_minute,
                    concurrency=rules.concurrency,
                    expires_at=rules.expires_at,
                    created_at=now_ms(),
                )
            )
            await record_change(
                connection, who, Change("key.create", key_id, None, {"account": account_id, **rules._asdict()})
            )
        return key_id, secret

    async def keys_of(self, account_id: str) -> list[KeyRow]:
        """Return an account's keys. Raises AccountNotFound."""
        await self.get(account_id)
        query = select(*columns_of(api_keys, KeyRow._fields)).where(api_keys.c.account_id == account_id)
        async with self._db.read() as connection:
            rows = await connection.execute(query.order_by(api_keys.c.created_at, api_keys.c.id))
            return [KeyRow(*row) for row in rows]

    async def revoke_key(self, key_id: str, who: Who | None = None, reason: str = "") -> None:
        """Revoke a key; it stays listed. Raises KeyNotFound."""
        async with self._db.write() as connection:
            changed = await connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=now_ms())
            )
            if changed.rowcount != 1:
                raise KeyNotFound(key_id)
            await record_change(
                connection, who, Change("key.revoke", key_id, {"revoked": False}, {"revoked": True}, reason)
            )

    async def search(self, words: str, limit: int) -> list[AccountRow]:
        """Return accounts by id, by part of their name, or by the id of one of their keys; the newest first."""
        pattern = "%" + words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        of_key = select(api_keys.c.account_id).where(api_keys.c.id == words)
        query = (
            _listed()
            .where(or_(accounts.c.id == words, accounts.c.name.ilike(pattern, escape="\\"), accounts.c.id.in_(of_key)))
            .order_by(accounts.c.created_at.desc(), accounts.c.id)
            .limit(limit)
        )
        async with self._db.read() as connection:
            return [AccountRow(*row) for row in await connection.execute(query)]

    async def find_key(self, key_hash: str) -> ApiKey | None:
        """Return the key of that hash, revoked and expired ones included."""
        query = (
            select(api_keys, accounts.c.status)
            .join(accounts, accounts.c.id == api_keys.c.account_id)
            .where(api_keys.c.hash == key_hash)
        )
        async with self._db.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            return None
        rules = KeyRules(
            models=msgspec.json.decode(row["models"], type=tuple[str, ...]) if row["models"] is not None else None,
            spend_limit=row["spend_limit_millicredits"],
            spend_period=row["spend_period"],
            requests_per_minute=row["requests_per_minute"],
            tokens_per_minute=row["tokens_per_minute"],
            concurrency=row["concurrency"],
            expires_at=row["expires_at"],
        )
        return ApiKey(row["id"], row["account_id"], row["status"], rules, row["revoked_at"])


def hash_key(secret: str) -> str:
    """SHA-256, hex. Enough for a 256-bit random key: there is nothing to guess."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
