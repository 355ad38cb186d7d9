"""Accounts and API keys. A key is 256 random bits behind a readable prefix; only its SHA-256 is stored.

What an account is called, its app's own id for it, its e-mail address and metadata are personal data: they stand in the
account's row and nowhere else, also not in the audit log, which says which of them changed. So `erase` can replace them
and leave the books as they are.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Select, case, delete, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.events.kinds import BY_CHOICE
from billing.ledger.recharge_blocks import stop_for_closing
from billing.ledger.records.account_details import ERASED_NAME, AccountDetails, checked_changes, checked_details, merged
from billing.ledger.records.api_keys import (
    HINT_LENGTH,
    KEY_PREFIX,
    NO_DETAILS,
    ApiKey,
    EndUserRules,
    EndUserTerms,
    KeyBudget,
    KeyDetails,
    KeyRow,
    KeyRules,
    TokenTerms,
    api_key,
    audited_rules,
    hash_key,
    new_secret,
    read_budgets,
    written_budgets,
)
from billing.money.buckets import bucket_of
from billing.money.errors import AccountClosed, AccountNotFound, ExternalIdTaken, KeyNotFound, NotClosed
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.core import accounts, api_keys, balances, end_users, usage
from billing.storage.tables.payments import notices, stripe_customers
from billing.storage.tables.portal import access_tokens, portal_tokens

__all__ = (
    "HINT_LENGTH",
    "KEY_PREFIX",
    "NO_DETAILS",
    "ApiKey",
    "EndUserRules",
    "EndUserTerms",
    "KeyBudget",
    "KeyDetails",
    "KeyRow",
    "KeyRules",
    "TokenTerms",
    "hash_key",
    "new_secret",
    "read_budgets",
    "written_budgets",
)
"""What is said of keys is defined in records/api_keys.py, and imported with the accounts that have them."""


class AccountRow(NamedTuple):
    """An account as SQL has it; `posted_millicredits` is its balance there.

    `status` is active, blocked or closed; `metadata` is JSON (None: none). Times in Unix milliseconds.
    """

    id: str
    name: str
    status: str
    created_at: int
    external_id: str | None
    email: str | None
    metadata: str | None
    closed_at: int | None
    erased_at: int | None
    posted_millicredits: int


class OpenedAccount(NamedTuple):
    """An account that was asked for. `created` False: it was there, and nothing was made; `secret` is shown once."""

    account: AccountRow
    created: bool
    key_id: str | None
    secret: str | None


OnMade = Callable[[AsyncConnection, str], Awaitable[None]]
"""What else is done for a new account (its id), in the transaction that makes it."""
STATUS = case((accounts.c.closed_at.is_not(None), "closed"), else_=accounts.c.status).label("status")
"""An account's status in words: active, blocked, closed."""


def account_rows() -> Select[Any]:
    """Return the query of account rows, to read as AccountRow."""
    fields = (STATUS if name == "status" else accounts.c[name] for name in AccountRow._fields[:-1])
    return select(*fields, balances.c.posted_millicredits).join(balances, balances.c.account_id == accounts.c.id)


class Accounts:
    """Creates, shows and blocks accounts and keys. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def create(self, name: str, who: Who | None = None) -> str:
        """Make an account with a zero balance; return its id. `who`: the admin for the audit log."""
        return (await self.open(AccountDetails(name), None, who)).account.id

    async def open(
        self, details: AccountDetails, rules: KeyRules | None, who: Who | None = None, also: OnMade | None = None
    ) -> OpenedAccount:
        """Make an account with a zero balance, and with `rules` its first key, all or nothing.

        Safe to repeat and under races where the details have an external id: the account that has it is returned as
        it is, without a key. `also` is done in the same transaction where one was made. Raises InvalidDetails.
        """
        kept = checked_details(details)
        account_id, key_id, secret = "acct_" + secrets.token_hex(12), None, None
        dialect = sqlite if self._db.is_sqlite else postgresql
        statement = dialect.insert(accounts).values(id=account_id, created_at=now_ms(), **kept)
        async with self._db.write() as connection:
            made = await connection.execute(statement.on_conflict_do_nothing(index_elements=["external_id"]))
            if made.rowcount == 1:
                await insert_balance(connection, account_id)
                named = sorted(name for name, value in kept.items() if value is not None)
                await record_change(connection, who, Change("account.create", account_id, None, {"fields": named}))
                if rules is not None:
                    key_id, secret = await insert_key(connection, account_id, rules, NO_DETAILS, who)
                if also is not None:
                    await also(connection, account_id)
            same = accounts.c.id == account_id if made.rowcount == 1 else accounts.c.external_id == kept["external_id"]
            row = (await connection.execute(account_rows().where(same))).one()
        return OpenedAccount(AccountRow(*row), made.rowcount == 1, key_id, secret)

    async def update(self, account_id: str, changes: Mapping[str, Any], who: Who, reason: str = "") -> AccountRow:
        """Change some of name, external_id, email and metadata; None takes one away, in metadata key by key.

        Raises AccountNotFound, AccountClosed once it is erased, InvalidDetails, ExternalIdTaken.
        """
        asked = checked_changes(changes)
        try:
            async with self._db.write() as connection:
                found = await _lock(connection, account_id)
                if found.erased_at is not None:
                    raise AccountClosed(account_id)
                values = {name: value for name, value in asked.items() if name != "metadata"}
                if "metadata" in asked:
                    values["metadata"] = merged(found.metadata, asked["metadata"])
                if values:
                    await connection.execute(update(accounts).where(accounts.c.id == account_id).values(**values))
                    change = Change("account.update", account_id, None, {"fields": sorted(values)}, reason)
                    await record_change(connection, who, change)
                row = (await connection.execute(account_rows().where(accounts.c.id == account_id))).one()
        except IntegrityError:
            raise ExternalIdTaken(str(asked.get("external_id"))) from None
        return AccountRow(*row)

    async def close(self, account_id: str, who: Who, reason: str = "") -> int:
        """Close an account for good; return how many keys died of it. Closed before: 0, and nothing is changed.

        Its keys, links and sessions end, and its card is charged no more. Credits and books stay. Raises
        AccountNotFound.
        """
        now = now_ms()
        live = (api_keys.c.account_id == account_id, api_keys.c.revoked_at.is_(None))
        async with self._db.write() as connection:
            found = await _lock(connection, account_id)
            if found.closed_at is not None:
                return 0
            ended = {"status": "blocked", "closed_at": now}
            await connection.execute(update(accounts).where(accounts.c.id == account_id).values(**ended))
            keys = (await connection.execute(update(api_keys).where(*live).values(revoked_at=now))).rowcount
            for table in (portal_tokens, access_tokens):
                await connection.execute(delete(table).where(table.c.account_id == account_id))
            await stop_for_closing(connection, account_id)
            change = Change("account.close", account_id, found.status, {"status": "closed", "keys": keys}, reason)
            await record_change(connection, who, change)
        return int(keys)

    async def erase(self, account_id: str, who: Who, reason: str = "") -> None:
        """Replace an account's personal data: names of it, its keys and end users, addresses, its card. The books stay.

        Erased before: nothing is changed. Raises AccountNotFound, NotClosed while it is open.
        """
        async with self._db.write() as connection:
            found = await _lock(connection, account_id)
            if found.closed_at is None:
                raise NotClosed(account_id)
            if found.erased_at is not None:
                return
            gone: dict[str, Any] = {
                "name": ERASED_NAME,
                "external_id": None,
                "email": None,
                "metadata": None,
                "end_user_rules": None,
            }
            gone["erased_at"] = now_ms()
            await connection.execute(update(accounts).where(accounts.c.id == account_id).values(**gone))
            names = update(api_keys).where(api_keys.c.account_id == account_id)
            await connection.execute(names.values(name=None, tags=None, reference=None))
            of_it = end_users.c.account_id == account_id
            wallets = select(end_users.c.wallet_id).where(of_it, end_users.c.wallet_id.is_not(None))
            named = update(accounts).where(accounts.c.id.in_(wallets))
            await connection.execute(named.values(name=ERASED_NAME))
            labels = update(usage).where(or_(usage.c.account_id == account_id, usage.c.account_id.in_(wallets)))
            await connection.execute(labels.values(end_user="", tags=""))
            paying = or_(notices.c.account_id == account_id, notices.c.account_id.in_(wallets))
            told = delete(notices).where(paying, notices.c.kind == BY_CHOICE)
            await connection.execute(told)  # they name end users
            await connection.execute(delete(end_users).where(of_it))
            card = update(stripe_customers).where(stripe_customers.c.account_id == account_id)
            await connection.execute(
                card.values(payment_method_id="", consented_at=None, method_brand="", method_last4="")
            )
            await record_change(connection, who, Change("account.erase", account_id, None, None, reason))

    async def everyone(self) -> list[AccountRow]:
        """Return every account, oldest first."""
        async with self._db.read() as connection:
            rows = await connection.execute(account_rows().order_by(accounts.c.created_at, accounts.c.id))
            return [AccountRow(*row) for row in rows]

    async def get(self, account_id: str) -> AccountRow:
        """Return one account. Raises AccountNotFound."""
        async with self._db.read() as connection:
            row = (await connection.execute(account_rows().where(accounts.c.id == account_id))).first()
        if row is None:
            raise AccountNotFound(account_id)
        return AccountRow(*row)

    async def set_status(self, account_id: str, status: str, who: Who | None = None, reason: str = "") -> None:
        """Make an account "active" or "blocked". Raises AccountNotFound, AccountClosed."""
        async with self._db.write() as connection:
            found = await _lock(connection, account_id)
            if found.closed_at is not None:
                raise AccountClosed(account_id)
            await connection.execute(update(accounts).where(accounts.c.id == account_id).values(status=status))
            await record_change(connection, who, Change("account.status", account_id, found.status, status, reason))

    async def set_region(self, account_id: str, region: str, who: Who | None = None, reason: str = "") -> None:
        """Bind an account to a region; "" to none. Raises AccountNotFound."""
        async with self._db.write() as connection:
            of_it = select(accounts.c.region).where(accounts.c.id == account_id)
            before = (await connection.execute(of_it)).scalar_one_or_none()
            if before is None:
                raise AccountNotFound(account_id)
            await connection.execute(update(accounts).where(accounts.c.id == account_id).values(region=region))
            await record_change(connection, who, Change("account.region", account_id, before, region, reason))

    async def create_key(self, account_id: str, rules: KeyRules, who: Who | None = None) -> tuple[str, str]:
        """Make a key; return (key id, the key itself — shown this once). Raises AccountNotFound, AccountClosed."""
        async with self._db.write() as connection:
            await lock_open(connection, account_id)
            return await insert_key(connection, account_id, rules, NO_DETAILS, who)

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

    async def find_key(self, key_hash: str) -> ApiKey | None:
        """Return the key of that hash, revoked and expired ones included."""
        return (await self.find_keys([key_hash])).get(key_hash)

    async def find_keys(self, hashes: Sequence[str]) -> dict[str, ApiKey]:
        """Return the keys of these hashes, by hash, in one look."""
        query = (
            select(api_keys, STATUS, accounts.c.region, accounts.c.end_user_rules)
            .join(accounts, accounts.c.id == api_keys.c.account_id)
            .where(or_(api_keys.c.hash.in_(hashes), api_keys.c.previous_hash.in_(hashes)))
        )
        async with self._db.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        wanted = frozenset(hashes)
        found = ((known, row) for row in rows for known in (row["hash"], row["previous_hash"]) if known in wanted)
        return {known: api_key(row, known) for known, row in found}


class _State(NamedTuple):
    """The part of an account that a change of it depends on."""

    status: str
    metadata: str | None
    closed_at: int | None
    erased_at: int | None


async def _lock(connection: AsyncConnection, account_id: str) -> _State:
    """Lock an account's row until the transaction ends; rows that refer to it may be written.

    Raises AccountNotFound.
    """
    query = select(*columns_of(accounts, _State._fields)).where(accounts.c.id == account_id)
    row = (await connection.execute(query.with_for_update(key_share=True))).first()
    if row is None:
        raise AccountNotFound(account_id)
    return _State(*row)


async def lock_open(connection: AsyncConnection, account_id: str) -> None:
    """Lock the row of an account that is not closed. Raises AccountNotFound, AccountClosed."""
    if (await _lock(connection, account_id)).closed_at is not None:
        raise AccountClosed(account_id)


async def insert_balance(connection: AsyncConnection, account_id: str) -> None:
    """Insert the balance of zero of an account that was just inserted."""
    figures = {"bucket": bucket_of(account_id), "posted_millicredits": 0, "outbox_sequence": 0}
    await connection.execute(insert(balances).values(account_id=account_id, **figures))


async def insert_key(
    connection: AsyncConnection, account_id: str, rules: KeyRules, details: KeyDetails, who: Who | None
) -> tuple[str, str]:
    """Insert a key of an account that is there; return (key id, the key itself)."""
    secret, known = new_secret()
    key_id = "key_" + secrets.token_hex(8)
    await connection.execute(
        insert(api_keys).values(
            id=key_id,
            account_id=account_id,
            **known,
            name=details.name,
            tags=msgspec.json.encode(details.tags).decode() if details.tags else None,
            reference=details.reference,
            budgets=written_budgets(rules.budgets),
            member=rules.member,
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
    await record_change(connection, who, Change("key.create", key_id, None, audited_rules(account_id, rules)))
    return key_id, secret
