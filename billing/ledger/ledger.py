"""The SQL ledger: posting batches of charges, moving admins' money, and reading all of it back.

I4: a charge id is booked once, whatever is replayed. I5: rows of `transfers` are only added. I6: a customer's posted
balance moves in the transaction of the transfer that it follows from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Select, bindparam, func, or_, select, union_all, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Check, Who, record_change
from billing.ledger.credits.grants import book_grant
from billing.ledger.credits.lots import LotRow, expiring_of
from billing.ledger.events.kinds import BY_CHOICE
from billing.ledger.notices import NoticeQueue
from billing.ledger.summaries.reading import Whose, asked_sums
from billing.ledger.summaries.usage_days import DAY_MS, add_to_days
from billing.ledger.transfers import TransferRow, charge_values
from billing.ledger.usage_rows import HAS_USER, UsageFilters, charged_notices, of_account, usage_values
from billing.money.amounts import Millicredits, millicredits
from billing.money.errors import AccountNotFound, InvariantBroken, NotBooked
from billing.money.holds import Budget, Entry, HoldRequest
from billing.money.model_rates import fits_any
from billing.money.postings import (
    CUSTOMER,
    PLAIN,
    GrantTerms,
    Posting,
    charge_postings,
    customer,
    effect_on,
    grant_posting,
)
from billing.money.spend_periods import period_start_ms
from billing.money.usage_record import UsageRecord, UsageRow, decode_record
from billing.storage.bulk import add_to_each, insert_all, insert_new
from billing.storage.database import Database, Readable, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.core import balances, buckets, outbox, transfers, usage
from billing.storage.tables.payments import claims

ID_BATCH = 500
LANES = 2
"""On PostgreSQL: one is got ready here while the other is written there. More would wait for this process."""
ABOVE_EVERY_ID = 2**63 - 1
CLAIMS = ("refund", "dispute")
"""Types of references that name what takes a purchase back."""
PARTS_OF_A_CHARGE = ("usage", "usage_cost", "platform_loss")
TRANSFER_COLUMNS = columns_of(transfers, TransferRow._fields[:-2])
"""Of the two fields behind them, one is computed and one is another table's."""

OnBooked = Callable[[Sequence[Entry]], None]
"""Told of charges after the commit that booked them."""


class PostedBalance(NamedTuple):
    """An account's balance in SQL, in millicredits, and the last outbox row included in it."""

    account_id: str
    balance: int
    sequence: int


class OutboxRow(NamedTuple):
    """Money that moved in SQL and must reach the balance store."""

    row_id: int
    account_id: str
    sequence: int
    delta: Millicredits


class Ledger:
    """Reads and writes transfers, usage, balances and the outbox. Raises StoreUnavailable when SQL is away."""

    def __init__(
        self,
        database: Database,
        on_booked: OnBooked | None = None,
        notices: NoticeQueue | None = None,
        shown_from: Readable | None = None,
    ) -> None:
        """`database` must be migrated; pages of usage may be read from a replica of it, `shown_from`.

        `on_booked` is told of every charge that this object books, once, after its commit; `notices` take those charges
        for whoever listens to them.
        """
        self.database = self._db = database
        self._shown = shown_from or database
        self._on_booked, self._notices = on_booked, notices

    @property
    def lanes(self) -> int:
        """Number of transactions that may book charges of different buckets at a time."""
        return 1 if self._db.is_sqlite else LANES

    async def post(self, entries: Sequence[Entry]) -> int:
        """Book settled charges: usage rows, transfers and balances in one transaction; return how many were new.

        I4, idempotent by charge id: what SQL already has is left alone, so any prefix may be replayed.
        """
        if not entries:
            return 0
        async with self._db.write() as connection:
            new = await self._book(connection, entries)
        self._report(new)
        return len(new)

    async def post_current(self, entries: Sequence[Entry]) -> list[Entry]:
        """`post`, but only what was read under its bucket's newest epoch; return those.

        The others were overtaken by a rebuilding, which has read balances from SQL without them: their owners settle
        them again. The row lock keeps `fence` waiting until a flush that began before it has committed. Raises
        NotBooked, and then none is booked, when a charge among them cannot be.
        """
        try:
            return await self._post_current(entries)
        except (DBAPIError, msgspec.MsgspecError, InvariantBroken, OverflowError) as error:
            raise NotBooked(str(getattr(error, "orig", error))) from error

    async def post_bookable(self, entries: Sequence[Entry]) -> tuple[list[Entry], dict[str, str]]:
        """`post_current`, with what cannot be booked left out: (what was booked, position → why not).

        Halves the batch until a charge that cannot be booked stands alone, so that it keeps no other out of the ledger.
        """
        try:
            return (await self.post_current(entries) if entries else []), {}
        except NotBooked as error:
            if len(entries) == 1:
                return [], {entries[0].position: str(error)}
        half = len(entries) // 2
        left, right = await self.post_bookable(entries[:half]), await self.post_bookable(entries[half:])
        return left[0] + right[0], left[1] | right[1]

    async def _post_current(self, entries: Sequence[Entry]) -> list[Entry]:
        async with self._db.write() as connection:
            query = select(buckets.c.bucket, buckets.c.epoch).where(
                buckets.c.bucket.in_({entry.bucket for entry in entries})
            )
            newest = {
                row[0]: row[1]
                for row in await connection.execute(query.order_by(buckets.c.bucket).with_for_update(read=True))
            }
            current = [entry for entry in entries if not entry.epoch or newest.get(entry.bucket) == entry.epoch]
            new = await self._book(connection, current) if current else []
        self._report(new)
        return current

    async def fence(self, bucket: int, epoch: str) -> None:
        """From now on only charges read under `epoch` are booked for this bucket."""
        dialect = sqlite if self._db.is_sqlite else postgresql
        statement = dialect.insert(buckets).values(bucket=bucket, epoch=epoch)
        async with self._db.write() as connection:
            await connection.execute(statement.on_conflict_do_update(index_elements=["bucket"], set_={"epoch": epoch}))

    async def reach(self) -> None:
        """Take a lock that booking begins with, and let it go. Raises where charges cannot be booked: StoreUnavailable
        without an answer, DBAPIError where it is refused, as by a server that was the primary.
        """
        async with self._db.write() as connection:
            await connection.execute(select(buckets.c.bucket).limit(1).with_for_update(read=True))

    async def epochs(self) -> dict[int, str]:
        """Return the epoch under which each bucket's charges are booked; those that were ever rebuilt."""
        async with self._db.read() as connection:
            return {row[0]: row[1] for row in await connection.execute(select(buckets.c.bucket, buckets.c.epoch))}

    def _report(self, new: Sequence[Entry]) -> None:
        if new and self._on_booked is not None:
            self._on_booked(new)

    async def _book(self, connection: AsyncConnection, entries: Sequence[Entry]) -> list[Entry]:
        """Book what is new of these, and return that."""
        charges = {record.charge_id: (entry, record) for entry in entries for record in (decode_record(entry.record),)}
        # in sorted order, as the accounts below: two flushers with overlapping batches wait for each other, never
        # crosswise
        for charge_id in await self._dropped(connection, charges):
            del charges[charge_id]
        rows = {charge_id: usage_values(*charges[charge_id]) for charge_id in sorted(charges)}
        new, at = sorted(await insert_new(connection, usage, list(rows.values()), "charge_id")), now_ms()
        await _post(connection, [p for charge_id in new for p in _postings(*charges[charge_id], at)])
        await add_to_days(connection, ((rows[charge_id], charges[charge_id][0].bucket) for charge_id in new), at)
        if new and self._notices is not None:
            make = partial(charged_notices, [rows[charge_id] for charge_id in new])
            await self._notices.write_if_heard(connection, BY_CHOICE, make)
        return [charges[charge_id][0] for charge_id in new]

    async def _dropped(
        self, connection: AsyncConnection, charges: Mapping[str, tuple[Entry, UsageRecord]]
    ) -> list[str]:
        """Of charges so old that retention may have dropped their rows: those that were booked."""
        latest = now_ms() - DAY_MS
        old = sorted(charge_id for charge_id, (_, record) in charges.items() if record.created_at < latest)
        if not old:
            return []
        query = (
            select(transfers.c.reference_id)
            .where(transfers.c.kind.in_(PARTS_OF_A_CHARGE), transfers.c.reference_id.in_(old))
            .distinct()
        )
        return list((await connection.execute(query)).scalars())

    async def grant(
        self,
        account_id: str,
        amount: Millicredits,
        reference_id: str,
        actor: str,
        reason: str,
        who: Who | None = None,
        check: Check | None = None,
        terms: GrantTerms = PLAIN,
    ) -> bool:
        """Move an admin's money through the ledger and the outbox; False when `reference_id` was booked before.

        `who` for the audit log; `check` may raise to stop it. What is taken away is taken of what expires first.
        Raises AccountNotFound, and ReferenceTaken when what was booked under it is something else.
        """
        posting = grant_posting(account_id, amount, reference_id, now_ms(), actor, reason, terms)
        async with self._db.write() as connection:
            if not await book_grant(connection, posting, account_id, amount):
                return False
            booked: dict[str, Any] = {"millicredits": str(amount), "reference": reference_id}
            if terms.expires_at is not None:
                booked["expiresAtMs"] = terms.expires_at
            await record_change(connection, who, Change("money.grant", account_id, None, booked, reason))
            if check is not None:
                await check(connection)
        return True

    async def granted_by(self, connection: AsyncConnection, identity: str, since_ms: int) -> Millicredits:
        """Return the millicredits that somebody has granted since a time, to whatever accounts.

        In the transaction of a grant; `identity` as in Admin.
        """
        actor = transfers.c.actor
        query = select(func.coalesce(func.sum(transfers.c.amount_millicredits), 0)).where(
            transfers.c.kind == "adjustment",
            transfers.c.credit_account.startswith(customer("")),
            or_(actor == identity, actor.startswith(f"{identity} (", autoescape=True)),
            transfers.c.created_at >= since_ms,
        )
        return millicredits(int((await connection.execute(query)).scalar_one()))

    async def posted(self, account_id: str) -> PostedBalance:
        """Return the account's balance as the ledger has it. Raises AccountNotFound."""
        async with self._db.read() as connection:
            found = (await connection.execute(_posted_query().where(balances.c.account_id == account_id))).first()
        if found is None:
            raise AccountNotFound(account_id)
        return PostedBalance(*found)

    async def expiring(self, account_id: str) -> list[LotRow]:
        """Return what of an account's credits expires, the next first."""
        return await expiring_of(self._db, account_id)

    async def number_of_accounts(self) -> int:
        """Return how many accounts have a balance, be it zero."""
        async with self._db.read() as connection:
            return int((await connection.execute(select(func.count()).select_from(balances))).scalar_one())

    async def posted_in(self, bucket: int, after: str, limit: int) -> list[PostedBalance]:
        """Return the balances of at most `limit` accounts of a bucket, by account id, of those behind `after`."""
        query = _posted_query().where(balances.c.bucket == bucket, balances.c.account_id > after)
        async with self._db.read() as connection:
            rows = await connection.execute(query.order_by(balances.c.account_id).limit(limit))
            return [PostedBalance(*row) for row in rows]

    async def charged_ids(self, charge_ids: Iterable[str]) -> set[str]:
        """Return those of these charges that are in SQL."""
        wanted = list(charge_ids)
        found: set[str] = set()
        async with self._db.read() as connection:
            for start in range(0, len(wanted), ID_BATCH):
                batch = wanted[start : start + ID_BATCH]
                rows = await connection.execute(select(usage.c.charge_id).where(usage.c.charge_id.in_(batch)))
                found.update(rows.scalars())
        return found

    async def budget_spent(self, request: HoldRequest, budget: Budget) -> Millicredits:
        """Return the millicredits of a request's budget that were charged in its period."""
        since = period_start_ms(budget.period)
        if budget.end_user:
            found = await self.end_users_spent(request.account_id, [budget.end_user], since, budget.models)
            return found[budget.end_user]
        return (await self.keys_spent([request.key_id], since, budget.models))[request.key_id]

    async def end_users_spent(
        self, account_id: str, names: Sequence[str], since_ms: int, models: tuple[str, ...] | None = None
    ) -> dict[str, Millicredits]:
        """Return the millicredits that an account was charged for each of these end users since a time, for models
        that fit these globs. Not older than the rows of single requests are.
        """
        query = (
            select(usage.c.end_user, usage.c.model, func.sum(usage.c.charged_millicredits))
            .where(usage.c.account_id == account_id, usage.c.end_user.in_(names), HAS_USER)
            .where(usage.c.created_at >= since_ms)
            .group_by(usage.c.end_user, usage.c.model)
        )
        spent = dict.fromkeys(names, 0)
        async with self._db.read() as connection:
            for name, model, part in await connection.execute(query):
                if models is None or fits_any(model, models):
                    spent[name] += int(part)
        return {name: millicredits(total) for name, total in spent.items()}

    async def keys_spent(
        self, key_ids: Sequence[str], since_ms: int, models: tuple[str, ...] | None = None
    ) -> dict[str, Millicredits]:
        """Return the millicredits that each of these keys was charged since a time, for models that fit these globs."""
        spent = dict.fromkeys(key_ids, 0)
        async with self._db.read() as connection:
            whose = Whose(key_ids=list(key_ids))
            query = await asked_sums(connection, ("key", "model"), UsageFilters(since_ms=since_ms), whose)
            for row in await connection.execute(query):
                if models is None or fits_any(row.model, models):
                    spent[row.key] += int(row.charged)
        return {key_id: millicredits(total) for key_id, total in spent.items()}

    async def outbox_pending(self, limit: int, after: int = 0) -> list[OutboxRow]:
        """Return rows not yet applied to the balance store, oldest first; those past the row `after`."""
        columns = (outbox.c.id, outbox.c.account_id, outbox.c.sequence, outbox.c.delta_millicredits)
        waiting = select(*columns).where(outbox.c.applied_at.is_(None), outbox.c.id > after)
        query = waiting.order_by(outbox.c.id).limit(limit)
        async with self._db.read() as connection:
            return [OutboxRow(*row) for row in await connection.execute(query)]

    async def outbox_applied(self, row_ids: Sequence[int]) -> None:
        """Mark rows that reached the balance store."""
        async with self._db.write() as connection:
            await connection.execute(
                update(outbox).where(outbox.c.id == bindparam("row_id")).values(applied_at=now_ms()),
                [{"row_id": row_id} for row_id in row_ids],
            )

    async def transfers_of(self, account_id: str, limit: int, before_id: int | None = None) -> list[TransferRow]:
        """Return a customer's ledger rows, newest first."""
        name = customer(account_id)
        # each side by its own index, from where the page begins: one condition on both would read the whole account
        sides = [
            select(*TRANSFER_COLUMNS).where(
                side == name, transfers.c.id < (ABOVE_EVERY_ID if before_id is None else before_id)
            )
            for side in (transfers.c.debit_account, transfers.c.credit_account)
        ]
        newest = [select(side.order_by(transfers.c.id.desc()).limit(limit).subquery()) for side in sides]
        rows_of_both = union_all(*newest).subquery()
        query = select(rows_of_both).order_by(rows_of_both.c.id.desc()).limit(limit)
        async with self._db.read() as connection:
            found = await connection.execute(query)
            rows = [TransferRow._make((*row, 0, None)) for row in found]
            claimed = {_claim_id(row.reference_id): None for row in rows if row.reference_type in CLAIMS}
            of_claims = select(claims.c.id, claims.c.purchase_id).where(claims.c.id.in_(claimed))
            bought = {row[0]: row[1] for row in await connection.execute(of_claims)} if claimed else {}
        return [
            row._replace(
                effect=row.amount_millicredits * (1 if row.credit_account == name else -1),
                purchase_id=row.reference_id
                if row.reference_type == "purchase"
                else bought.get(_claim_id(row.reference_id)),
            )
            for row in rows
        ]

    async def usage_of(self, account_id: str, limit: int, filters: UsageFilters | None = None) -> list[UsageRow]:
        """Return a customer's usage rows, newest first; one that is asked for by its id, as soon as it is booked."""
        filters = filters or UsageFilters()
        query = select(*columns_of(usage, UsageRow._fields))
        query = query.where(of_account(account_id, filters), *filters.conditions())
        query = query.order_by(usage.c.created_at.desc(), usage.c.charge_id.desc()).limit(limit)
        database = self._shown if filters.request_id is None else self._db
        async with database.read() as connection:
            return [UsageRow(*row) for row in await connection.execute(query)]

    async def usage_named(self, account_id: str, request_ids: Sequence[str]) -> list[UsageRow]:
        """Return the usage rows of these requests, as far as they are the customer's and still kept."""
        if not request_ids:
            return []
        mine = (usage.c.account_id == account_id, usage.c.charge_id.in_(request_ids))
        async with self._db.read() as connection:
            found = await connection.execute(select(*columns_of(usage, UsageRow._fields)).where(*mine))
            return [UsageRow(*row) for row in found]


def _claim_id(reference: str) -> str:
    """Return a refund's or dispute's own id; a reference has the number of its booking behind it."""
    return reference.rpartition(":")[0]


def _posted_query() -> Select[Any]:
    return select(balances.c.account_id, balances.c.posted_millicredits, balances.c.outbox_sequence)


def _postings(entry: Entry, record: UsageRecord, at: int) -> list[Posting]:
    cost = record.cost_millicredits
    return charge_postings(record.charge_id, record.account_id, entry.charged, entry.loss, cost, at, record.upstream)


async def _post(connection: AsyncConnection, postings: Sequence[Posting]) -> None:
    """Insert transfers and move the customers' posted balances, accounts in sorted order so that no two deadlock."""
    if not postings:
        return
    await insert_all(connection, transfers, [charge_values(posting) for posting in postings])
    effects: dict[str, int] = {}
    for posting in postings:
        if posting.debit.startswith(CUSTOMER):
            account_id = posting.debit.removeprefix(CUSTOMER)
            effects[account_id] = effects.get(account_id, 0) + effect_on(posting.debit, posting)
    taken, more = balances.c.posted_millicredits, balances.c.charged_millicredits
    await add_to_each(connection, balances.c.account_id, taken, effects, less=more)
