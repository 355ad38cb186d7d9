"""Finding accounts: by what they are called, and by whatever of theirs somebody holds in their hand."""

from typing import NamedTuple

from sqlalchemy import ColumnElement, func, or_, select, tuple_

from billing.ledger.accounts import HINT_LENGTH, KEY_PREFIX, STATUS, AccountRow, account_rows, hash_key
from billing.ledger.records.account_details import metadata_pair
from billing.storage.database import Database
from billing.storage.tables.core import accounts, api_keys, background_responses, batches, usage
from billing.storage.tables.payments import purchases, stripe_customers

WHOLE_KEY = 40
"""Characters from which on words that begin like a key are one, and no beginning."""


class AccountFilters(NamedTuple):
    """Conditions of a listing; all that are set must fit. `before`: the (created_at, id) of the last row seen.

    `words`: a part of a name, an e-mail address or metadata, or the whole of an id: the account's, its app's, a key's,
    a request's, a purchase's, Stripe's; or how a key begins.
    """

    words: str = ""
    external_id: str | None = None
    email: str | None = None
    status: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    before: tuple[int, str] | None = None


class AccountSearch:
    """Searches of one database. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def find(self, filters: AccountFilters, limit: int) -> list[AccountRow]:
        """Return the accounts that fit, the newest first."""
        query = account_rows().where(*self._conditions(filters))
        query = query.order_by(accounts.c.created_at.desc(), accounts.c.id.desc()).limit(limit)
        async with self._db.read() as connection:
            return [AccountRow(*row) for row in await connection.execute(query)]

    def _conditions(self, filters: AccountFilters) -> list[ColumnElement[bool]]:
        table, found = accounts.c, list[ColumnElement[bool]]()
        if filters.words:
            found.append(_named_by(filters.words))
        if filters.external_id is not None:
            found.append(table.external_id == filters.external_id)
        if filters.email is not None:
            found.append(table.email == filters.email.strip().lower())
        if filters.status is not None:
            found.append(STATUS.element == filters.status)
        position = func.instr if self._db.is_sqlite else func.strpos
        found += [position(table.metadata, metadata_pair(key, value)) > 0 for key, value in filters.metadata]
        if filters.before is not None:
            found.append(tuple_(table.created_at, table.id) < tuple_(*filters.before))
        return found


def _named_by(words: str) -> ColumnElement[bool]:
    pattern = "%" + words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    texts = (accounts.c.name, accounts.c.email, accounts.c.external_id, accounts.c.metadata)
    ids = (
        select(api_keys.c.account_id).where(_is_key(words)),
        select(usage.c.account_id).where(usage.c.charge_id == words),
        select(background_responses.c.account_id).where(
            or_(background_responses.c.charge_id == words, background_responses.c.id == words)
        ),
        select(batches.c.account_id).where(or_(batches.c.charge_id == words, batches.c.batch_id == words)),
        select(purchases.c.account_id).where(
            or_(purchases.c.id == words, purchases.c.session_id == words, purchases.c.payment_intent_id == words)
        ),
        select(stripe_customers.c.account_id).where(stripe_customers.c.customer_id == words),
    )
    return or_(
        accounts.c.id == words,
        *(text.ilike(pattern, escape="\\") for text in texts),
        *(accounts.c.id.in_(query) for query in ids),
    )


def _is_key(words: str) -> ColumnElement[bool]:
    """Condition that a key has this id, begins like this, is shown like this, or is this one itself."""
    conditions = [api_keys.c.id == words, api_keys.c.hint == words, api_keys.c.name == words]
    if words.startswith(KEY_PREFIX) and len(words) > len(KEY_PREFIX) + 1:
        shown = words[:HINT_LENGTH]
        begins = func.substr(api_keys.c.hint, 1, len(shown)) == shown
        conditions.append(begins if len(words) < WHOLE_KEY else api_keys.c.hash == hash_key(words))
    return or_(*conditions)
