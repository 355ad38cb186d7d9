"""Making API keys so that repeating it is safe, changing them, giving them another secret. Changes are audited."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.accounts import (
    KeyBudget,
    KeyDetails,
    KeyRow,
    KeyRules,
    insert_key,
    lock_open,
    new_secret,
    read_budgets,
    written_budgets,
)
from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.customers.rules import LONGEST_GRACE_MS, check_rules, checked_key
from billing.money.amounts import Millicredits
from billing.money.errors import InvalidDetails, KeyNotFound
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.core import api_keys

COLUMN = {"spend_limit": "spend_limit_millicredits"}
"""Field of KeyRules → its column, where they differ."""


class MadeKey(NamedTuple):
    """A key that was asked for. `secret` None: the reference was used before, and nothing was made."""

    key_id: str
    secret: str | None


class KeyChanges:
    """Creates, changes and rotates keys. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def create(self, account_id: str, rules: KeyRules, details: KeyDetails, who: Who | None = None) -> MadeKey:
        """Make a key; with a reference that the account used before, the key that it made.

        Raises AccountNotFound, AccountClosed, InvalidDetails.
        """
        details = checked_key(details)
        check_rules(rules)
        async with self._db.write() as connection:
            await lock_open(connection, account_id)  # one key at a time, so that a repeat finds the first
            if details.reference is not None:
                same = (api_keys.c.account_id == account_id, api_keys.c.reference == details.reference)
                found = (await connection.execute(select(api_keys.c.id).where(*same))).scalar_one_or_none()
                if found is not None:
                    return MadeKey(str(found), None)
            return MadeKey(*await insert_key(connection, account_id, rules, details, who))

    async def get(self, key_id: str) -> KeyRow:
        """Return a key, revoked or not. Raises KeyNotFound."""
        async with self._db.read() as connection:
            return await _row(connection, key_id)

    async def change(self, key_id: str, changes: Mapping[str, Any], who: Who, reason: str = "") -> KeyRow:
        """Change fields of KeyRules and of KeyDetails (but the reference); what is not named stays.

        In force everywhere within 5 s, for requests that begin then. Raises KeyNotFound, InvalidDetails.
        """
        async with self._db.write() as connection:
            before = await _row(connection, key_id, alive=True)
            rules, details = rules_of(before), KeyDetails(before.name, tags_of(before))
            rules = rules._replace(**{name: value for name, value in changes.items() if name in KeyRules._fields})
            if rules.spend_limit is None:
                rules = rules._replace(spend_period=None)
            elif rules.spend_period is None:
                rules = rules._replace(spend_period="month")
            details = details._replace(**{name: value for name, value in changes.items() if name in ("name", "tags")})
            details = checked_key(details)
            check_rules(rules)
            rules = _dated(rules, rules_of(before).all_budgets, now_ms())
            values = {**_columns(rules), "name": details.name, "tags": _json(details.tags)}
            await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(**values))
            said = [name for name, old in (("name", before.name), ("tags", before.tags)) if old != values[name]]
            was, now = rules_of(before)._asdict(), rules._asdict()
            changed = {name for name in now if now[name] != was[name] and name != "spend_since"}
            audited = [{name: _plain(side[name]) for name in sorted(changed)} for side in (was, now)]
            after = {**audited[1], "fields": said} if said else audited[1]
            await record_change(connection, who, Change("key.update", key_id, audited[0], after, reason))
            return await _row(connection, key_id)

    async def rotate(self, key_id: str, grace_ms: int, who: Who, reason: str = "") -> str:
        """Give a key another secret, and return it; the one until now works for `grace_ms` more, no other does.

        Raises KeyNotFound, InvalidDetails.
        """
        if not 0 <= grace_ms <= LONGEST_GRACE_MS:
            raise InvalidDetails("graceSeconds", f"be 0 to {LONGEST_GRACE_MS // 1_000}")
        secret, known = new_secret()
        async with self._db.write() as connection:
            await _row(connection, key_id, alive=True)
            old = select(api_keys.c.hash).where(api_keys.c.id == key_id)
            replaced = (await connection.execute(old)).scalar_one()
            until = now_ms() + grace_ms
            values = {**known, "previous_hash": replaced, "previous_until": until}
            await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(**values))
            await record_change(connection, who, Change("key.rotate", key_id, None, {"oldUntil": until}, reason))
        return secret


def rules_of(row: KeyRow) -> KeyRules:
    """Return the rules of a key's row."""
    limit = row.spend_limit_millicredits
    return KeyRules(
        models=None if row.models is None else msgspec.json.decode(row.models, type=tuple[str, ...]),
        spend_limit=None if limit is None else Millicredits(limit),
        spend_period=row.spend_period,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        concurrency=row.concurrency,
        expires_at=row.expires_at,
        budgets=read_budgets(row.budgets),
        spend_since=row.spend_since or 0,
        member=row.member,
    )


def dated(budgets: Sequence[KeyBudget], before: Sequence[KeyBudget], now: int) -> tuple[KeyBudget, ...]:
    """Return budgets that say since when: as before where they were there, now where they were not."""
    known = {budget.subject: budget.since for budget in before}
    return tuple(budget._replace(since=known.get(budget.subject, now)) for budget in budgets)


def _dated(rules: KeyRules, before: Sequence[KeyBudget], now: int) -> KeyRules:
    """Return rules whose budgets say since when, and so does the spend limit."""
    main = dated(rules.all_budgets[:1], before, now)[0].since if rules.spend_limit is not None else 0
    return rules._replace(budgets=dated(rules.budgets, before, now), spend_since=main)


def tags_of(row: KeyRow) -> tuple[str, ...]:
    """Return the tags of a key's row."""
    return msgspec.json.decode(row.tags, type=tuple[str, ...]) if row.tags else ()


async def _row(connection: AsyncConnection, key_id: str, *, alive: bool = False) -> KeyRow:
    """Return a key; `alive`: one that is not revoked, locked. Raises KeyNotFound."""
    query = select(*columns_of(api_keys, KeyRow._fields)).where(api_keys.c.id == key_id)
    if alive:
        query = query.where(api_keys.c.revoked_at.is_(None)).with_for_update()
    row = (await connection.execute(query)).first()
    if row is None:
        raise KeyNotFound(key_id)
    return KeyRow(*row)


def _columns(rules: KeyRules) -> dict[str, Any]:
    found = {COLUMN.get(name, name): value for name, value in rules._asdict().items()}
    models = None if rules.models is None else msgspec.json.encode(rules.models).decode()  # of no models: no request
    return {**found, "models": models, "budgets": written_budgets(rules.budgets)}


def _json(texts: tuple[str, ...] | None) -> str | None:
    return msgspec.json.encode(texts).decode() if texts else None


def _plain(value: Any) -> Any:
    """Return a rule as JSON has it."""
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return [budget._asdict() for budget in value]
    return value
