"""Short-lived tokens for browsers and devices: made by the operator's app, bounded, revocable, shown once.

Only their SHA-256 is kept. A token is gone a day after its end; what it was used for stays in the books, by its id.
"""

import secrets
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import delete, func, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from billing.ledger.accounts import STATUS, ApiKey, EndUserRules, KeyRules, TokenTerms, hash_key, lock_open
from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.customers.end_users import end_user_id
from billing.ledger.customers.rules import check_rules, checked_end_user
from billing.ledger.records.api_keys import read_end_user_rules
from billing.money.amounts import Millicredits
from billing.money.errors import InvalidDetails, KeyNotFound
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.core import accounts
from billing.storage.tables.portal import access_tokens, token_origins

TOKEN_PREFIX = "tkt-"  # noqa: S105 - a prefix
HINT_LENGTH = 8
MINUTE_MS, DAY_MS = 60_000, 86_400_000
MOST_MINUTES, MOST_ORIGINS, LONGEST_ORIGIN = 1_440, 10, 255
MOST_KNOWN_ORIGINS = 10_000


class TokenRequest(NamedTuple):
    """A token to be; None: no such bound but the account's."""

    minutes: int
    terms: TokenTerms = TokenTerms()
    models: tuple[str, ...] | None = None
    ceiling: Millicredits | None = None


class TokenRow(NamedTuple):
    """A token without its secret; `models` and `origins` are JSON. Times in Unix milliseconds."""

    id: str
    account_id: str
    hint: str
    end_user: str
    models: str | None
    ceiling_millicredits: int | None
    origins: str
    buys: bool
    made_by: str
    created_at: int
    expires_at: int
    revoked_at: int | None


class AccessTokens:
    """Makes, finds, lists and revokes tokens. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def mint(self, account_id: str, asked: TokenRequest, who: Who) -> tuple[TokenRow, str]:
        """Make a token; return (it, its secret, shown this once). What ended a day ago goes.

        Raises AccountNotFound, AccountClosed, InvalidDetails.
        """
        _check(asked)
        secret, now = TOKEN_PREFIX + secrets.token_urlsafe(32), now_ms()
        terms, origins = asked.terms, tuple(dict.fromkeys(asked.terms.origins))
        row = TokenRow(
            "tok_" + secrets.token_hex(12),
            account_id,
            f"{secret[:HINT_LENGTH]}…{secret[-4:]}",
            terms.end_user,
            None if asked.models is None else msgspec.json.encode(asked.models).decode(),
            asked.ceiling,
            msgspec.json.encode(origins).decode(),
            terms.buys,
            who.actor[:120],
            now,
            now + asked.minutes * MINUTE_MS,
            None,
        )
        async with self._db.write() as connection:
            await lock_open(connection, account_id)
            for table, end in ((access_tokens, access_tokens.c.expires_at), (token_origins, token_origins.c.until)):
                await connection.execute(delete(table).where(end < now - DAY_MS))
            await connection.execute(insert(access_tokens).values(hash=hash_key(secret), **row._asdict()))
            dialect = sqlite if self._db.is_sqlite else postgresql
            for origin in sorted(origins):  # in one order, so that two at once do not wait for each other
                known = dialect.insert(token_origins).values(origin=origin, until=row.expires_at)
                later = func.max if self._db.is_sqlite else func.greatest
                until = later(token_origins.c.until, known.excluded.until)
                await connection.execute(known.on_conflict_do_update(index_elements=["origin"], set_={"until": until}))
            await record_change(connection, who, Change("token.create", row.id, None, _audited(row)))
        return row, secret

    async def find(self, secret_hash: str) -> ApiKey | None:
        """Return what a token may do, as a key; revoked and expired ones included, while they are kept."""
        query = (
            select(access_tokens, STATUS, accounts.c.region, accounts.c.end_user_rules)
            .join(accounts, accounts.c.id == access_tokens.c.account_id)
            .where(access_tokens.c.hash == secret_hash)
        )
        async with self._db.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            return None
        ceiling = row["ceiling_millicredits"]
        rules = KeyRules(
            models=None if row["models"] is None else msgspec.json.decode(row["models"], type=tuple[str, ...]),
            spend_limit=ceiling,
            spend_period=None if ceiling is None else "total",
            expires_at=row["expires_at"],
        )
        users = read_end_user_rules(row["end_user_rules"])
        return ApiKey(
            row["id"],
            row["account_id"],
            row["status"],
            rules,
            row["revoked_at"],
            region=row["region"],
            users=users or (EndUserRules() if row["end_user"] else None),
            token=TokenTerms(
                row["end_user"], msgspec.json.decode(row["origins"], type=tuple[str, ...]), bool(row["buys"])
            ),
        )

    async def listed(self, account_id: str, limit: int, before: tuple[int, str] | None = None) -> list[TokenRow]:
        """Return an account's tokens, the newest first, also those that ended less than a day ago."""
        table = access_tokens.c
        query = select(*columns_of(access_tokens, TokenRow._fields)).where(table.account_id == account_id)
        if before is not None:
            query = query.where(tuple_(table.created_at, table.id) < tuple_(*before))
        async with self._db.read() as connection:
            rows = await connection.execute(query.order_by(table.created_at.desc(), table.id.desc()).limit(limit))
            return [TokenRow(*row) for row in rows]

    async def revoke(self, token_id: str, who: Who, reason: str = "", account_id: str | None = None) -> None:
        """Revoke a token, of that account if one is named; everywhere within 5 s. Raises KeyNotFound."""
        live = [access_tokens.c.id == token_id, access_tokens.c.revoked_at.is_(None)]
        if account_id is not None:
            live.append(access_tokens.c.account_id == account_id)
        async with self._db.write() as connection:
            changed = await connection.execute(update(access_tokens).where(*live).values(revoked_at=now_ms()))
            if changed.rowcount != 1:
                raise KeyNotFound(token_id)
            change = Change("token.revoke", token_id, {"revoked": False}, {"revoked": True}, reason)
            await record_change(connection, who, change)

    async def origins(self) -> frozenset[str]:
        """Return the origins that some token is used from now."""
        query = select(token_origins.c.origin).where(token_origins.c.until > now_ms()).limit(MOST_KNOWN_ORIGINS)
        async with self._db.read() as connection:
            return frozenset((await connection.execute(query)).scalars())


def _check(asked: TokenRequest) -> None:
    """Raise InvalidDetails unless such a token can be made and held to."""
    if not 1 <= asked.minutes <= MOST_MINUTES:
        raise InvalidDetails("minutes", f"be 1 to {MOST_MINUTES}")
    if asked.terms.end_user:
        checked_end_user(asked.terms.end_user)
    check_rules(KeyRules(models=asked.models))
    if asked.ceiling is not None and asked.ceiling < 0:
        raise InvalidDetails("ceilingCredits", "not be negative")
    if len(asked.terms.origins) > MOST_ORIGINS or not all(map(_is_origin, asked.terms.origins)):
        rule = f"be at most {MOST_ORIGINS} origins, as browsers name them: https://app.example.com"
        raise InvalidDetails("origins", rule)


def _is_origin(text: str) -> bool:
    """Tell whether a text is a web page's origin, in the one spelling that browsers send."""
    if not text.isascii() or not text.isprintable() or len(text) > LONGEST_ORIGIN or "*" in text:
        return False
    try:
        parts = urlsplit(text)
        named, port = parts.hostname, parts.port
    except ValueError:
        return False
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    if not named or usual is None or port == usual:
        return False
    host = f"[{named}]" if ":" in named else named
    return text == f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def _audited(row: TokenRow) -> dict[str, object]:
    found = {**row._asdict(), "end_user": end_user_id(row.account_id, row.end_user) if row.end_user else None}
    return {name: found[name] for name in AUDITED}


AUDITED = ("account_id", "end_user", "models", "ceiling_millicredits", "origins", "buys", "expires_at")
"""Fields of a token in the audit log; of its end user what stands for their name."""
