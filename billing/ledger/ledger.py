"""The SQL ledger: posting batches of charges, moving admins' money, and reading all of it back."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    String,
    Table,
    and_,
    bindparam,
    func,
    insert,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Check, Who, note_by
from billing.ledger.recharge_blocks import use_up_crossing
from billing.money.amounts import Millicredits, millicredits
from billing.money.errors import AccountNotFound, InvariantBroken, NotBooked, ReferenceTaken
from billing.money.holds import Entry
from billing.money.postings import Posting, charge_postings, customer, effect_on, grant_posting
from billing.money.usage_record import UsageRecord, decode_record
from billing.storage.database import Database, now_ms
from billing.storage.tables.core import balances, buckets, outbox, transfers, usage, usage_daily
from billing.storage.tables.payments import claims

ID_BATCH = 500
DAY_MS = 86_400_000
TEXT_LENGTHS = {column.name: column.type.length or 1 << 30 for column in usage.c if isinstance(column.type, String)}
"""Text column of a usage row → characters it takes."""
COUNTS = tuple(
    column.name
    for column in usage.c
    if isinstance(column.type, BigInteger) and not column.name.endswith("_millicredits")
)
CLAIMS = ("refund", "dispute")
"""Types of references that name what takes a purchase back."""
MOST = 2**62


Noted = Callable[[Sequence[Entry]], None]
"""Told of what was booked."""


class Posted(NamedTuple):
    """What SQL says of an account: its balance in millicredits, and the last outbox row included in it."""

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

    def __init__(self, database: Database, noted: Noted | None = None) -> None:
        """`database` must be migrated.

        `noted` is told of every charge that this object books, once, after its commit.
        """
        self._db, self._noted = database, noted

    async def post(self, entries: Sequence[Entry]) -> int:
        """Book settled charges: usage rows, transfers and balances in one transaction; return how many were new.

        Idempotent by charge id: what SQL already has is left alone, so any prefix may be replayed.
        """
        if not entries:
            return 0
        async with self._db.write() as connection:
            new = await self._book(connection, entries)
        self._note(new)
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
        self._note(new)
        return current

    async def fence(self, bucket: int, epoch: str) -> None:
        """From now on only charges read under `epoch` are booked for this bucket."""
        dialect = sqlite if self._db.is_sqlite else postgresql
        statement = dialect.insert(buckets).values(bucket=bucket, epoch=epoch)
        async with self._db.write() as connection:
            await connection.execute(statement.on_conflict_do_update(index_elements=["bucket"], set_={"epoch": epoch}))

    def _note(self, new: Sequence[Entry]) -> None:
        if new and self._noted is not None:
            self._noted(new)

    async def _book(self, connection: AsyncConnection, entries: Sequence[Entry]) -> list[Entry]:
        """Book what is new of these, and return that."""
        charges = {record.charge_id: (entry, record) for entry in entries for record in (decode_record(entry.record),)}
        # in sorted order, as the accounts below: two flushers with overlapping batches wait for each other, never
        # crosswise
        for charge_id in await self._dropped(connection, charges):
            del charges[charge_id]
        rows = [_usage_row(*charges[charge_id]) for charge_id in sorted(charges)]
        new = await self._insert_new(connection, usage, rows, usage.c.charge_id) if rows else []
        postings = [p for charge_id in new for p in _postings(*charges[charge_id])]
        await _post(connection, postings)
        return [charges[charge_id][0] for charge_id in new]

    async def _dropped(
        self, connection: AsyncConnection, charges: Mapping[str, tuple[Entry, UsageRecord]]
    ) -> list[str]:
        """Of charges so old that retention may have dropped their rows: those that were booked."""
        latest = now_ms() - DAY_MS
        old = sorted(charge_id for charge_id, (_, record) in charges.items() if record.created_at < latest)
        if not old:
            return []
        kinds = ("usage", "usage_cost", "platform_loss")
        query = (
            select(transfers.c.reference_id)
            .where(transfers.c.kind.in_(kinds), transfers.c.reference_id.in_(old))
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
    ) -> bool:
        """Move an admin's money through the ledger and the outbox; False when `reference_id` was booked before.

        `who` for the audit log; `check` may raise to stop it. Raises AccountNotFound, and ReferenceTaken when what was
        booked under it is something else.
        """
        created = now_ms()
        posting = grant_posting(account_id, amount, reference_id, created, actor, reason)
        async with self._db.write() as connection:
            row = transfers_row(posting)
            if not await self._insert_new(connection, transfers, [row], transfers.c.id):
                await _must_be_the_same(connection, posting)
                return False
            moved = await connection.execute(
                update(balances)
                .where(balances.c.account_id == account_id)
                .values(
                    posted_millicredits=balances.c.posted_millicredits + amount,
                    outbox_sequence=balances.c.outbox_sequence + 1,
                )
                .returning(balances.c.outbox_sequence)
            )
            sequence = moved.scalar_one_or_none()
            if sequence is None:
                raise AccountNotFound(account_id)
            await connection.execute(
                insert(outbox).values(
                    account_id=account_id, sequence=sequence, delta_millicredits=amount, created_at=created
                )
            )
            if amount < 0:
                await use_up_crossing(connection, account_id)
            booked = {"millicredits": str(amount), "reference": reference_id}
            await note_by(connection, who, Change("money.grant", account_id, None, booked, reason))
            if check is not None:
                await check(connection)
        return True

    async def granted_by(self, connection: AsyncConnection, identity: str, since_ms: int) -> Millicredits:
        """What somebody has granted since a time, to whatever accounts, in the transaction of a grant.

        `identity` as in Admin.
        """
        actor = transfers.c.actor
        query = select(func.coalesce(func.sum(transfers.c.amount_millicredits), 0)).where(
            transfers.c.kind == "adjustment",
            transfers.c.credit_account.startswith(customer("")),
            or_(actor == identity, actor.startswith(f"{identity} (", autoescape=True)),
            transfers.c.created_at >= since_ms,
        )
        return millicredits(int((await connection.execute(query)).scalar_one()))

    async def posted(self, account_id: str) -> Posted:
        """The account's balance as the ledger has it. Raises AccountNotFound."""
        async with self._db.read() as connection:
            found = (await connection.execute(_posted_query().where(balances.c.account_id == account_id))).first()
        if found is None:
            raise AccountNotFound(account_id)
        return Posted(*found)

    async def posted_in(self, bucket: int | None = None) -> list[Posted]:
        """Every account's balance (of one bucket)."""
        query = _posted_query().order_by(balances.c.account_id)
        if bucket is not None:
            query = query.where(balances.c.bucket == bucket)
        async with self._db.read() as connection:
            return [Posted(*row) for row in await connection.execute(query)]

    async def charged_ids(self, charge_ids: Iterable[str]) -> set[str]:
        """Which of these charges are in SQL."""
        wanted = list(charge_ids)
        found: set[str] = set()
        async with self._db.read() as connection:
            for start in range(0, len(wanted), ID_BATCH):
                batch = wanted[start : start + ID_BATCH]
                rows = await connection.execute(select(usage.c.charge_id).where(usage.c.charge_id.in_(batch)))
                found.update(rows.scalars())
        return found

    async def key_spent(self, key_id: str, since_ms: int) -> Millicredits:
        """What a key was charged since a time."""
        detail = select(func.coalesce(func.sum(usage.c.charged_millicredits), 0)).where(
            usage.c.key_id == key_id, usage.c.created_at >= since_ms
        )
        # periods begin with a day, so the sums of dropped rows are wholly inside or outside
        sums = select(func.coalesce(func.sum(usage_daily.c.charged_millicredits), 0)).where(
            usage_daily.c.key_id == key_id, usage_daily.c.asked_day >= -(-since_ms // DAY_MS)
        )
        async with self._db.read() as connection:
            parts = (await connection.execute(union_all(detail, sums))).scalars()
            return millicredits(sum(int(part) for part in parts))

    async def outbox_pending(self, limit: int) -> list[OutboxRow]:
        """Rows not yet applied to the balance store, oldest first."""
        columns = (outbox.c.id, outbox.c.account_id, outbox.c.sequence, outbox.c.delta_millicredits)
        query = select(*columns).where(outbox.c.applied_at.is_(None)).order_by(outbox.c.id).limit(limit)
        async with self._db.read() as connection:
            return [OutboxRow(*row) for row in await connection.execute(query)]

    async def outbox_applied(self, row_ids: Sequence[int]) -> None:
        """Note that these rows reached the balance store."""
        async with self._db.write() as connection:
            await connection.execute(
                update(outbox).where(outbox.c.id == bindparam("row_id")).values(applied_at=now_ms()),
                [{"row_id": row_id} for row_id in row_ids],
            )

    async def transfers_of(self, account_id: str, limit: int, before_id: int | None = None) -> list[dict[str, Any]]:
        """A customer's ledger rows, newest first, each with its signed effect on the balance and the purchase it
        belongs to, if any.
        """
        name = customer(account_id)
        query = select(transfers).where(or_(transfers.c.debit_account == name, transfers.c.credit_account == name))
        if before_id is not None:
            query = query.where(transfers.c.id < before_id)
        async with self._db.read() as connection:
            rows = (await connection.execute(query.order_by(transfers.c.id.desc()).limit(limit))).mappings().all()
            claimed = {_claim_id(row["reference_id"]): None for row in rows if row["reference_type"] in CLAIMS}
            of_claims = select(claims.c.id, claims.c.purchase_id).where(claims.c.id.in_(claimed))
            bought = {row[0]: row[1] for row in await connection.execute(of_claims)} if claimed else {}
        return [
            {
                **row,
                "effect": row["amount_millicredits"] * (1 if row["credit_account"] == name else -1),
                "purchase_id": row["reference_id"]
                if row["reference_type"] == "purchase"
                else bought.get(_claim_id(row["reference_id"])),
            }
            for row in rows
        ]

    async def usage_of(
        self, account_id: str, limit: int, filters: "UsageFilters | None" = None
    ) -> list[dict[str, Any]]:
        """A customer's usage rows, newest first."""
        query = select(usage).where(usage.c.account_id == account_id, *(filters.conditions() if filters else ()))
        query = query.order_by(usage.c.created_at.desc(), usage.c.charge_id.desc()).limit(limit)
        async with self._db.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    async def _insert_new(
        self, connection: AsyncConnection, table: Table, rows: list[dict[str, Any]], key: ColumnElement[Any]
    ) -> list[Any]:
        """INSERT ... ON CONFLICT DO NOTHING; the keys of the rows that are new, sorted."""
        dialect = sqlite if self._db.is_sqlite else postgresql
        statement = dialect.insert(table).on_conflict_do_nothing().returning(key)
        return sorted((await connection.execute(statement, rows)).scalars())


def _claim_id(reference: str) -> str:
    """A refund's or dispute's own id; a reference has the number of its booking behind it."""
    return reference.rpartition(":")[0]


class UsageFilters(NamedTuple):
    """What a usage listing is narrowed to; `before` is the (created_at, charge_id) of the last row seen."""

    model: str | None = None
    key_id: str | None = None
    endpoint: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    request_id: str | None = None
    before: tuple[int, str] | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The SQL of the filters that are set."""
        found: list[ColumnElement[bool]] = []
        for column, value in (
            (usage.c.model, self.model),
            (usage.c.key_id, self.key_id),
            (usage.c.endpoint, self.endpoint),
        ):
            if value is not None:
                found.append(column == value)
        if self.request_id is not None:
            found.append(usage.c.charge_id == self.request_id)
        if self.since_ms is not None:
            found.append(usage.c.created_at >= self.since_ms)
        if self.until_ms is not None:
            found.append(usage.c.created_at < self.until_ms)
        if self.before is not None:
            at, charge_id = self.before
            found.append(or_(usage.c.created_at < at, and_(usage.c.created_at == at, usage.c.charge_id < charge_id)))
        return found


def transfers_row(posting: Posting) -> dict[str, Any]:
    """A posting as a row of `transfers`."""
    return {
        "debit_account": posting.debit,
        "credit_account": posting.credit,
        "amount_millicredits": posting.amount,
        "kind": posting.kind,
        "reference_type": posting.reference_type,
        "reference_id": posting.reference_id,
        "created_at": posting.created_at,
        "actor": posting.actor,
        "reason": posting.reason,
    }


def _posted_query() -> Any:
    return select(balances.c.account_id, balances.c.posted_millicredits, balances.c.outbox_sequence)


def _postings(entry: Entry, record: UsageRecord) -> list[Posting]:
    return charge_postings(
        record.charge_id, record.account_id, entry.charged, entry.loss, record.cost_millicredits, now_ms()
    )


async def _must_be_the_same(connection: AsyncConnection, posting: Posting) -> None:
    """Raises ReferenceTaken unless the row under this reference moves the same money."""
    columns = (transfers.c.debit_account, transfers.c.credit_account, transfers.c.amount_millicredits)
    query = select(*columns).where(transfers.c.kind == posting.kind, transfers.c.reference_id == posting.reference_id)
    debit, credit, amount = (await connection.execute(query)).one()
    if (debit, credit, amount) != (posting.debit, posting.credit, posting.amount):
        raise ReferenceTaken(posting.reference_id)


async def _post(connection: AsyncConnection, postings: Sequence[Posting]) -> None:
    """Insert transfers and move the customers' posted balances, accounts in sorted order so that no two deadlock."""
    if not postings:
        return
    await connection.execute(insert(transfers), [transfers_row(posting) for posting in postings])
    effects: dict[str, int] = {}
    for posting in postings:
        if posting.debit.startswith("customer:"):
            account_id = posting.debit.removeprefix("customer:")
            effects[account_id] = effects.get(account_id, 0) + effect_on(posting.debit, posting)
    if effects:
        await connection.execute(
            update(balances)
            .where(balances.c.account_id == bindparam("account"))
            .values(posted_millicredits=balances.c.posted_millicredits + bindparam("delta")),
            [{"account": account, "delta": effects[account]} for account in sorted(effects)],
        )


def _usage_row(entry: Entry, record: UsageRecord) -> dict[str, Any]:
    """The row, made to fit: whatever a request or an upstream said, it must not keep a batch out of the ledger."""
    row: dict[str, Any] = msgspec.structs.asdict(record)
    row["rates"] = bytes(record.rates).decode()
    row["billed_model"] = record.billed_model or record.model
    row["charged_millicredits"], row["loss_millicredits"] = entry.charged, entry.loss
    for name, length in TEXT_LENGTHS.items():
        if len(row[name]) > length or not row[name].isascii() or "\0" in row[name]:
            # PostgreSQL refuses a NUL, and what is no Unicode
            row[name] = row[name].replace("\0", "").encode(errors="replace").decode()[:length]
    for name in COUNTS:
        row[name] = min(row[name], MOST)
    return row
