"""Vector stores in SQL: what upstream says that they take, the days that are owed for, and who cannot pay.

A day (UTC) costs by what each store took most on it, as far as upstream said so: at requests of its owner's, and when
it is asked each hour. A day of which nothing was said is like the last one before. What a day costs is decided once, a
row an account and day, and the row stays open until its charge is seen in the ledger: whoever dies in between, the
next one finds it open, and the charge's id is the row's (I4).
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, and_, case, cast, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.ledger import PARTS_OF_A_CHARGE
from billing.ledger.notices import Notice, NoticeQueue
from billing.storage.database import Database, now_ms
from billing.storage.tables.core import end_users, transfers, upstream_objects
from billing.storage.tables.vector_stores import storage_days, storage_standing, store_sizes

DAY_MS = 86_400_000
KIND = "vector_store"
ID_BATCH = 500


class StoreSize(NamedTuple):
    """Size of a store, as upstream says it. `working`: files of it are still being read, and will take more."""

    store_id: str
    bytes: int
    working: bool


class StoredDay(NamedTuple):
    """Bytes that an account's stores at one upstream took on a day."""

    account_id: str
    day: int
    bytes: int
    upstream: str = ""


class OwedDay(NamedTuple):
    """A day at one upstream as it was decided. `record`: its usage row as JSON, "" where nothing is owed."""

    account_id: str
    day: int
    charge_id: str
    bytes: int
    due_millicredits: int
    record: str
    created_at: int
    upstream: str = ""


class PaidDay(NamedTuple):
    """A day whose charge is in the ledger: `loss` millicredits of it nobody paid."""

    owed: OwedDay
    loss: int


class StorageDebt(NamedTuple):
    """An account that was told that its credits run out, or that could not pay a day."""

    account_id: str
    low_day: int | None
    unpaid_day: int | None
    remove_at: int | None


class VectorStores:
    """Sizes of stores, and the days owed for them. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    # -- what they take ---------------------------------------------------------------------------

    async def saw(self, sizes: Sequence[StoreSize]) -> None:
        """Write down what upstream says that stores take now."""
        now, table = now_ms(), upstream_objects.c
        dialect = sqlite if self._db.is_sqlite else postgresql
        async with self._db.write() as connection:
            for one in sorted(sizes):
                inserted = dialect.insert(store_sizes).values(store_id=one.store_id, day=now // DAY_MS, bytes=one.bytes)
                more = inserted.excluded.bytes > store_sizes.c.bytes
                await connection.execute(
                    inserted.on_conflict_do_update(
                        index_elements=["store_id", "day"], set_={"bytes": inserted.excluded.bytes}, where=more
                    )
                )
                grown = case((func.coalesce(table.size_bytes, 0) > one.bytes, table.size_bytes), else_=one.bytes)
                await connection.execute(
                    update(upstream_objects)
                    .where(table.id == one.store_id, table.kind == KIND)
                    .values(seen_at=now, size_bytes=grown if one.working else one.bytes)
                )

    async def expect(self, store_id: str, size_bytes: int, chunk_tokens: int) -> None:
        """Count files before they are put into a store: so much more it may take, in chunks of at most so many
        tokens.
        """
        table = upstream_objects.c
        larger = case((func.coalesce(table.context_tokens, 0) < chunk_tokens, chunk_tokens), else_=table.context_tokens)
        values = {"size_bytes": func.coalesce(table.size_bytes, 0) + size_bytes, "context_tokens": larger}
        async with self._db.write() as connection:
            await connection.execute(update(upstream_objects).where(table.id == store_id).values(values))

    async def unseen_since(self, time_ms: int, limit: int) -> list[str]:
        """Return stores of which upstream said nothing since that time, first those not heard of for longest."""
        table = upstream_objects.c
        late = or_(table.seen_at.is_(None), table.seen_at < time_ms)
        query = select(table.id).where(table.kind == KIND, table.deleted_at.is_(None), late)
        query = query.order_by(func.coalesce(table.seen_at, 0), table.id).limit(limit)
        async with self._db.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def ask_again(self, store_id: str, seen_ms: int) -> None:
        """Have a store, of which upstream said nothing now, count as heard of at that time: others come first."""
        mine = and_(upstream_objects.c.id == store_id, upstream_objects.c.kind == KIND)
        async with self._db.write() as connection:
            await connection.execute(update(upstream_objects).where(mine).values(seen_at=seen_ms))

    # -- what a day costs -------------------------------------------------------------------------

    async def undecided(self, until_day: int, limit: int) -> list[StoredDay]:
        """Days up to this one that are not decided, of so many accounts at most, oldest first.

        Of days without bytes only the last one: it says up to where they are decided.
        """
        table = upstream_objects.c
        last = select(storage_days.c.account_id, func.max(storage_days.c.day).label("day"))
        decided = last.group_by(storage_days.c.account_id).subquery()
        begins = (cast(func.coalesce(decided.c.day, -1), BigInteger) + 1) * DAY_MS
        alive = and_(
            table.kind == KIND,
            table.created_at < (until_day + 1) * DAY_MS,
            or_(table.deleted_at.is_(None), table.deleted_at >= begins),
            func.coalesce(decided.c.day, -1) < until_day,
        )
        joined = upstream_objects.outerjoin(decided, decided.c.account_id == table.account_id)
        accounts = select(table.account_id).select_from(joined).where(alive).distinct().order_by(table.account_id)
        decided_day = func.coalesce(decided.c.day, -1)
        columns = (table.account_id, table.upstream, table.id, table.created_at, table.deleted_at, decided_day)
        async with self._db.read() as connection:
            chosen = list((await connection.execute(accounts.limit(limit))).scalars())
            query = select(*columns).select_from(joined).where(alive, table.account_id.in_(chosen))
            stores = [tuple(row) for row in await connection.execute(query)]
            seen = await self._sizes(connection, [row[2] for row in stores], until_day)
        taken: defaultdict[tuple[str, int, str], int] = defaultdict(int)
        for account_id, upstream, store_id, created_at, deleted_at, known_day in stores:
            first = max(created_at // DAY_MS, known_day + 1)
            final = until_day if deleted_at is None else min(until_day, deleted_at // DAY_MS)
            for day in range(first, final + 1):
                size = next((size for on, size in seen[store_id] if on <= day), 0)
                taken[account_id, day, upstream] += size
        days = [StoredDay(account_id, day, size, place) for (account_id, day, place), size in taken.items() if size]
        said = {one.account_id for one in days if one.day == until_day}
        return sorted(
            (*days, *(StoredDay(account_id, until_day, 0) for account_id in chosen if account_id not in said))
        )

    async def homes_of(self, account_ids: Collection[str]) -> dict[str, str]:
        """Return the account above each of these that is an end user's wallet: by its prices the wallet pays."""
        query = select(end_users.c.wallet_id, end_users.c.account_id).where(end_users.c.wallet_id.in_(account_ids))
        async with self._db.read() as connection:
            return {row[0]: row[1] for row in await connection.execute(query)}

    @staticmethod
    async def _sizes(connection: Any, store_ids: list[str], until_day: int) -> dict[str, list[tuple[int, int]]]:
        """Store → (day, bytes) up to a day, newest first."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        table = store_sizes.c
        for start in range(0, len(store_ids), ID_BATCH):
            part = table.store_id.in_(store_ids[start : start + ID_BATCH])
            query = select(table.store_id, table.day, table.bytes).where(part, table.day <= until_day)
            for store_id, day, size in await connection.execute(query.order_by(table.day.desc())):
                found[store_id].append((day, size))
        return found

    async def decide(self, days: Sequence[OwedDay]) -> None:
        """Write down what days cost; one that is decided stays as it is. What owes nothing is settled at once."""
        rows = [{**day._asdict(), "settled_at": None if day.record else day.created_at} for day in days]
        if not rows:
            return
        dialect = sqlite if self._db.is_sqlite else postgresql
        async with self._db.write() as connection:
            await connection.execute(dialect.insert(storage_days).on_conflict_do_nothing(), rows)

    async def open(self, limit: int, after: tuple[int, str] = (0, "")) -> list[OwedDay]:
        """Days that are decided and whose charge was not seen in the ledger, oldest first; those behind `after`, a
        (created_at, charge_id).
        """
        table = storage_days.c
        columns = [getattr(table, name) for name in OwedDay._fields]
        behind = or_(table.created_at > after[0], and_(table.created_at == after[0], table.charge_id > after[1]))
        query = select(*columns).where(table.settled_at.is_(None), behind)
        query = query.order_by(table.created_at, table.charge_id).limit(limit)
        async with self._db.read() as connection:
            return [OwedDay(*row) for row in await connection.execute(query)]

    async def claim(self, charge_id: str, for_ms: int) -> bool:
        """Take a day that is open for this process alone, for so long by the database's clock; False when another has
        it.
        """
        table = storage_days.c
        async with self._db.write() as connection:
            now = await self._db.clock_ms(connection)
            free = or_(table.claimed_until.is_(None), table.claimed_until < now)
            taken = update(storage_days).where(table.charge_id == charge_id, table.settled_at.is_(None), free)
            return (await connection.execute(taken.values(claimed_until=now + for_ms))).rowcount == 1

    async def booked(self, days: Sequence[OwedDay]) -> list[PaidDay]:
        """Return those of these days whose charge is in the ledger (its transfers: usage detail may be dropped)."""
        by_id = {day.charge_id: day for day in days}
        losses: dict[str, int] = {}
        table, ids = transfers.c, sorted(by_id)
        async with self._db.read() as connection:
            for start in range(0, len(ids), ID_BATCH):
                part = (table.kind.in_(PARTS_OF_A_CHARGE), table.reference_id.in_(ids[start : start + ID_BATCH]))
                query = select(table.reference_id, table.kind, table.amount_millicredits).where(*part)
                for charge_id, kind, amount in await connection.execute(query):
                    losses[charge_id] = losses.get(charge_id, 0) + (amount if kind == "platform_loss" else 0)
        return sorted(PaidDay(by_id[charge_id], loss) for charge_id, loss in losses.items())

    # -- who cannot pay ---------------------------------------------------------------------------

    async def settle(
        self, paid: PaidDay, available: int, daily: int, low_days: int, grace_ms: int, notices: NoticeQueue
    ) -> None:
        """Mark a day as settled, and tell its owner when credits run out or ran out: once, until they are back.

        They run out where less than `low_days` times `daily` millicredits are available. What is stored may be removed
        `grace_ms` after the first day that was not paid.
        """
        account_id, charge_id = paid.owed.account_id, paid.owed.charge_id
        settled = update(storage_days).where(storage_days.c.charge_id == charge_id, storage_days.c.settled_at.is_(None))
        async with self._db.write() as connection:
            if (await connection.execute(settled.values(settled_at=now_ms()))).rowcount != 1:
                return
            query = select(storage_standing).where(storage_standing.c.account_id == account_id)
            before = (await connection.execute(query)).first()
            standing = StorageDebt(*before) if before is not None else StorageDebt(account_id, None, None, None)
            after, told = _standing_after(standing, paid, available, (daily, low_days), grace_ms)
            if after != standing:
                dialect = sqlite if self._db.is_sqlite else postgresql
                changes = after._asdict()
                statement = dialect.insert(storage_standing).values(changes)
                await connection.execute(statement.on_conflict_do_update(index_elements=["account_id"], set_=changes))
            await notices.write(connection, told)

    async def to_remove(self, limit: int) -> list[StorageDebt]:
        """Return the accounts whose grace is over, the longest over first."""
        table = storage_standing.c
        query = select(storage_standing).where(table.remove_at <= now_ms()).order_by(table.remove_at).limit(limit)
        async with self._db.read() as connection:
            return [StorageDebt(*row) for row in await connection.execute(query)]

    async def stores_of(self, account_id: str) -> list[str]:
        """Return the account's stores that are not deleted."""
        table = upstream_objects.c
        query = select(table.id).where(table.account_id == account_id, table.kind == KIND, table.deleted_at.is_(None))
        async with self._db.read() as connection:
            return list((await connection.execute(query.order_by(table.id))).scalars())

    async def last_due(self, account_id: str) -> int:
        """Return the millicredits of the newest day that was decided, at all upstreams; 0 for none."""
        table = storage_days.c
        query = select(func.sum(table.due_millicredits)).where(table.account_id == account_id)
        query = query.group_by(table.day).order_by(table.day.desc()).limit(1)
        async with self._db.read() as connection:
            found = (await connection.execute(query)).scalar_one_or_none()
        return int(found or 0)

    async def begin_removal(
        self, standing: StorageDebt, store_ids: Sequence[str], again_ms: int, notices: NoticeQueue
    ) -> None:
        """Write down that these stores are removed now, and when it is tried again where that does not succeed."""
        account_id, before = standing.account_id, {"vectorStores": list(store_ids)}
        reason = "storage was not paid, and its grace is over"
        async with self._db.write() as connection:
            later = update(storage_standing).where(storage_standing.c.account_id == account_id)
            await connection.execute(later.values(remove_at=now_ms() + again_ms))
            change = Change("storage.remove", account_id, before, None, reason)
            await record_change(connection, Who("system", "system"), change)
            notice_id = f"storage_removed:{account_id}:{standing.unpaid_day}"
            await notices.write(connection, [Notice(notice_id, account_id, "storage.removed", before)])

    async def end_grace(self, account_id: str) -> None:
        """End a grace: all is removed, or the account can pay again."""
        async with self._db.write() as connection:
            await connection.execute(delete(storage_standing).where(storage_standing.c.account_id == account_id))


def _standing_after(
    standing: StorageDebt, paid: PaidDay, available: int, low: tuple[int, int], grace_ms: int
) -> tuple[StorageDebt, list[Notice]]:
    """(standing, what is told) after a day was settled; `low`: (millicredits a day, days a balance should last)."""
    low_below = low[0] * low[1]
    account_id, day, due = paid.owed.account_id, paid.owed.day, str(paid.owed.due_millicredits)
    told: list[Notice] = []
    if paid.loss:
        if standing.unpaid_day is None:
            standing = standing._replace(unpaid_day=day, remove_at=now_ms() + grace_ms)
            data = {"dueMillicredits": due, "unpaidMillicredits": str(paid.loss), "removedAtMs": standing.remove_at}
            told.append(Notice(f"storage_unpaid:{account_id}:{day}", account_id, "storage.unpaid", data))
        return standing, told
    if standing.unpaid_day is not None and day > standing.unpaid_day:
        standing = standing._replace(unpaid_day=None, remove_at=None)
    if available >= low_below:
        return standing._replace(low_day=None), told
    if standing.low_day is None:
        standing = standing._replace(low_day=day)
        data = {
            "balanceMillicredits": str(available),
            "thresholdMillicredits": str(low_below),
            "dailyMillicredits": str(low[0]),
        }
        told.append(Notice(f"storage_low:{account_id}:{day}", account_id, "balance.low", data))
    return standing, told
