"""Finding accounts: by what they are called, and by whatever of theirs somebody holds in their hand."""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, or_, select, true, tuple_, union
from sqlalchemy.sql.selectable import CompoundSelect

from billing.ledger.accounts import HINT_LENGTH, KEY_PREFIX, STATUS, AccountRow, account_rows, hash_key
from billing.ledger.records.account_details import kept_external_id, metadata_pair
from billing.storage.database import Readable
from billing.storage.tables.core import accounts, api_keys, background_responses, batches, usage
from billing.storage.tables.payments import purchases, stripe_customers

IDS = ("acct_", "key_", "req_", "pur_", "resp_", "batch_", "cs_", "pi_", "cus_")
"""Beginnings of ids: ours, OpenAI's and Stripe's."""
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

    def __init__(self, database: Readable, shown_from: Readable | None = None) -> None:
        """`database` must be migrated. Words that are no id may be looked for in a replica of it."""
        self._db, self._shown = database, shown_from or database

    async def find(self, filters: AccountFilters, limit: int) -> list[AccountRow]:
        """Return the accounts that fit, the newest first. Words that are the whole of an id find whose it is alone.

        An app finds the account that it has just made by its id, or without words: all pages of a list are of one
        place, as one of the past behind one of now would leave out what lies between.
        """
        words = filters.words
        if words.startswith(IDS) and (
            rows := await self._rows(self._db, accounts.c.id.in_(_owners(words)), filters, limit)
        ):
            return rows
        if words:  # what has an id is found by indexes; a part of a name only by reading all of them
            return await self._rows(self._shown, _named_by(words), filters, limit)
        return await self._rows(self._db, true(), filters, limit)

    async def _rows(
        self, database: Readable, fits: ColumnElement[bool], filters: AccountFilters, limit: int
    ) -> list[AccountRow]:
        query = account_rows().where(fits, *self._conditions(filters))
        query = query.order_by(accounts.c.created_at.desc(), accounts.c.id.desc()).limit(limit)
        async with database.read() as connection:
            return [AccountRow(*row) for row in await connection.execute(query)]

    def _conditions(self, filters: AccountFilters) -> list[ColumnElement[bool]]:
        table, found = accounts.c, list[ColumnElement[bool]]()
        if filters.external_id is not None:
            found.append(table.external_id == kept_external_id(filters.external_id))
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
    return or_(
        *(text.ilike(pattern, escape="\\") for text in texts),
        accounts.c.id.in_(select(api_keys.c.account_id).where(_is_key(words))),
        accounts.c.id.in_(_owners(words)),
    )


def _owners(words: str) -> CompoundSelect[Any]:
    """Select the accounts that the whole of an id leads to; each way by its own index."""
    return union(
        select(accounts.c.id).where(accounts.c.id == words),
        select(api_keys.c.account_id).where(api_keys.c.id == words),
        select(usage.c.account_id).where(usage.c.charge_id == words),
        *(
            select(column.table.c.account_id).where(column == words)
            for column in (
                *(background_responses.c.charge_id, background_responses.c.id, batches.c.charge_id, batches.c.batch_id),
                *(purchases.c.id, purchases.c.session_id, purchases.c.payment_intent_id),
                stripe_customers.c.customer_id,
            )
        ),
    )


def _is_key(words: str) -> ColumnElement[bool]:
    """Condition that a key has this id, begins like this, is shown like this, or is this one itself."""
    conditions = [api_keys.c.id == words, api_keys.c.hint == words, api_keys.c.name == words]
    if words.startswith(KEY_PREFIX) and len(words) > len(KEY_PREFIX) + 1:
        shown = words[:HINT_LENGTH]
        begins = func.substr(api_keys.c.hint, 1, len(shown)) == shown
        conditions.append(begins if len(words) < WHOLE_KEY else api_keys.c.hash == hash_key(words))
    return or_(*conditions)
