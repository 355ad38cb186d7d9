"""Owners of what was made in the shared upstream account (I8), and responses that go on there after their request was
answered.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import and_, case, delete, func, insert, not_, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from billing.ledger.objects.batches import Batches
from billing.ledger.objects.vector_stores import VectorStores
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.core import background_responses, upstream_objects

CONTAINER_SESSION_MS = 20 * 60 * 1_000
"""A container is billed once per session.

A session ends 20 minutes after its last use (docs/openai.md#hosted-tools).
"""


ID_BATCH = 500
UPLOAD_MS = 3_600_000
"""An upload that is not complete after this ends by itself upstream. Milliseconds."""
CLAIM = "claim:"
"""Kind of a row that stands for bytes which are on their way: this, and the kind that they are to be."""
CLAIM_MS = 900_000
"""A claim that is older belongs to a process that died. Milliseconds."""
LONGEST_REQUEST_MS = 25 * 3_600_000
"""A background response may take a day; what is reserved for longer belongs to a process that died. Milliseconds."""


class OwnedObject(NamedTuple):
    """An object and its owner. `context_tokens`: what a request that refers to it re-reads; None = not known.

    `picture_extra`: how much more with a model that counts pictures by another rule than `model`. `tools`: hosted tools
    that its items carry, with blanks between. `reserved`: tokens that running requests may add, the newest since
    `reserved_at`. `upstream`: where it is kept, "" the default one.
    """

    kind: str
    account_id: str
    charge_id: str
    context_tokens: int | None
    deleted: bool
    model: str = ""
    picture_extra: int = 0
    tools: str = ""
    reserved: int = 0
    reserved_at: int = 0
    upstream: str = ""

    @property
    def is_quiet(self) -> bool:
        """True when no request is running that may still add to it: what is reserved outlived every request."""
        return not self.reserved or self.reserved_at < now_ms() - LONGEST_REQUEST_MS

    @property
    def most_tokens(self) -> int | None:
        """Tokens that a request reads of it at most, now or when all that is running has ended; None = not known."""
        return None if self.context_tokens is None else self.context_tokens + self.reserved


class MadeObject(NamedTuple):
    """An object to be recorded. `parent_id`: the object that it is a part of, where that counts; `gone_at`: Unix
    milliseconds at which upstream drops it by itself, 0 = it does not.
    """

    object_id: str
    kind: str
    context_tokens: int | None = None
    model: str = ""
    picture_extra: int = 0
    tools: str = ""
    size_bytes: int = 0
    parent_id: str = ""
    gone_at: int = 0


class BackgroundResponse(NamedTuple):
    """A background response that is not settled yet; `record` is what its settling needs, as JSON."""

    response_id: str
    charge_id: str
    account_id: str
    record: str
    created_at: int
    upstream: str = ""


class UpstreamObjects:
    """The owners. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database
        self.batches, self.stores = Batches(database), VectorStores(database)

    async def record_owner(
        self, account_id: str, charge_id: str, made: Sequence[MadeObject], upstream: str = ""
    ) -> None:
        """Record the owner of these, and where they are kept: the first one stays (I8), what a later record knows
        better is updated. What a request brought is known when it begins, and stays where its end says nothing of it.
        """
        dialect = sqlite if self._db.is_sqlite else postgresql
        statement = dialect.insert(upstream_objects)
        same_owner = upstream_objects.c.account_id == statement.excluded.account_id
        better: dict[str, Any] = {"context_tokens": statement.excluded.context_tokens}
        for name in ("model", "tools"):
            kept, new = upstream_objects.c[name], statement.excluded[name]
            better[name] = case((new == "", kept), else_=new)
        kept, new = upstream_objects.c.picture_extra, statement.excluded.picture_extra
        better["picture_extra"] = case((new < func.coalesce(kept, 0), kept), else_=new)
        better["deleted_at"] = func.coalesce(upstream_objects.c.deleted_at, statement.excluded.deleted_at)
        statement = statement.on_conflict_do_update(index_elements=["id"], set_=better, where=same_owner)
        rows = [
            {
                "id": one.object_id,
                "kind": one.kind,
                "account_id": account_id,
                "charge_id": charge_id,
                "context_tokens": one.context_tokens,
                "model": one.model,
                "picture_extra": one.picture_extra,
                "tools": one.tools,
                "size_bytes": one.size_bytes,
                "parent_id": one.parent_id or None,
                "created_at": now_ms(),
                "upstream": upstream,
                "deleted_at": one.gone_at or None,
            }
            for one in sorted(made)
        ]
        async with self._db.write() as connection:
            await connection.execute(statement, rows)

    async def find(self, object_id: str) -> OwnedObject | None:
        """Return the object of that id, deleted ones included."""
        table = upstream_objects.c
        query = select(
            table.kind,
            table.account_id,
            table.charge_id,
            table.context_tokens,
            table.deleted_at,
            table.model,
            table.picture_extra,
            table.tools,
            table.reserved_tokens,
            table.reserved_at,
            table.upstream,
        ).where(table.id == object_id)
        async with self._db.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        kept = (row[5] or "", row[6] or 0, row[7] or "", row[8] or 0, row[9] or 0, row[10])
        gone = row[4] is not None and row[4] <= now_ms()
        return OwnedObject(row[0], row[1], row[2], row[3], gone, *kept)

    async def reserve(self, object_id: str, seen: OwnedObject, tokens: int, pictures: int, tools: str = "") -> bool:
        """Count what a request may add to a conversation, if it is still as it was seen; returns whether it was.

        `tools`: all that its items carry from then on, with blanks between.
        """
        table = upstream_objects.c
        same = (table.id == object_id, table.context_tokens == seen.context_tokens)
        query = update(upstream_objects).where(*same, func.coalesce(table.reserved_tokens, 0) == seen.reserved)
        changes: dict[str, Any] = {"reserved_tokens": seen.reserved + tokens, "reserved_at": now_ms()}
        if seen.is_quiet:  # whoever died may have added what it reserved, and nobody will say how much it was
            changes |= {"context_tokens": seen.most_tokens, "reserved_tokens": tokens}
        if pictures:
            changes["picture_extra"] = func.coalesce(table.picture_extra, 0) + pictures
        if tools:
            changes["tools"] = tools
        async with self._db.write() as connection:
            return (await connection.execute(query.values(changes))).rowcount == 1

    async def add_reserved(self, object_id: str, tokens: int, added: int, alone: tuple[int, int] | None = None) -> None:
        """End a reservation of so many tokens, of which `added` are in the conversation now at most.

        `alone`: (its tokens when it was seen, those that it has now by the answer's report), for a request that began
        with nobody else's running: exact, if nobody else came since.
        """
        table = upstream_objects.c
        reserved = func.coalesce(table.reserved_tokens, 0)
        grown: Any = table.context_tokens + added
        if alone is not None:
            undisturbed = and_(table.context_tokens == alone[0], reserved == tokens)
            grown = case((undisturbed, alone[1]), else_=grown)
        left = case((reserved > tokens, reserved - tokens), else_=0)
        query = update(upstream_objects).where(table.id == object_id)
        async with self._db.write() as connection:
            await connection.execute(query.values(context_tokens=grown, reserved_tokens=left))

    async def grow(self, object_id: str, tokens: int | None, *, pictures: int = 0, tools: str = "") -> None:
        """Add to what a request that refers to this object re-reads; None: it is not known from now on.

        `pictures`: what pictures in it may take more of; `tools`: all that its items carry from then on.
        """
        table = upstream_objects.c
        query = update(upstream_objects).where(table.id == object_id)
        changes: dict[str, Any] = {"context_tokens": None if tokens is None else table.context_tokens + tokens}
        if pictures:
            changes["picture_extra"] = func.coalesce(table.picture_extra, 0) + pictures
        if tools:
            changes["tools"] = tools
        async with self._db.write() as connection:
            await connection.execute(query.values(changes))

    async def page(
        self, account_id: str, kind: str, limit: int, after: str = "", *, newest_first: bool = True
    ) -> list[tuple[str, str]]:
        """(id, upstream) of an account's objects of a kind that are not deleted, those after `after` in that order."""
        table = upstream_objects.c
        place = (table.created_at, table.id)
        mine = (table.account_id == account_id, table.kind == kind, table.deleted_at.is_(None))
        query = select(table.id, table.upstream).where(*mine)
        if after:
            of_it = select(*place).where(table.id == after, table.account_id == account_id).subquery()
            earlier = tuple_(*place) < tuple_(of_it.c.created_at, of_it.c.id)
            query = query.where(earlier if newest_first else tuple_(*place) > tuple_(of_it.c.created_at, of_it.c.id))
        query = query.order_by(*(column.desc() if newest_first else column.asc() for column in place)).limit(limit)
        async with self._db.read() as connection:
            return [(row[0], row[1]) for row in await connection.execute(query)]

    async def kept_at(self, object_ids: Sequence[str]) -> dict[str, str]:
        """Return the upstream of each of these objects."""
        query = select(upstream_objects.c.id, upstream_objects.c.upstream)
        async with self._db.read() as connection:
            rows = await connection.execute(query.where(upstream_objects.c.id.in_(object_ids)))
            return {row[0]: row[1] for row in rows}

    async def home_of(self, account_id: str, kinds: Sequence[str]) -> str | None:
        """Return the upstream of the newest of an account's objects of these kinds; None where there is none."""
        table = upstream_objects.c
        mine = (table.account_id == account_id, table.kind.in_(kinds), table.deleted_at.is_(None))
        query = select(table.upstream).where(*mine).order_by(table.created_at.desc(), table.id.desc()).limit(1)
        async with self._db.read() as connection:
            found: str | None = (await connection.execute(query)).scalar_one_or_none()
        return found

    async def totals(self, account_id: str, *kinds: str, parent_id: str = "") -> tuple[int, int]:
        """(objects of these kinds that an account has, their bytes together and those on their way), of one parent or
        at all.

        Uploads that have ended by themselves are none.
        """
        table = upstream_objects.c
        claims = [CLAIM + kind for kind in kinds]
        count = func.coalesce(func.sum(case((table.kind.in_(claims), 0), else_=1)), 0)
        query = select(count, func.coalesce(func.sum(table.size_bytes), 0)).where(
            table.account_id == account_id, table.kind.in_((*kinds, *claims)), table.deleted_at.is_(None)
        )
        if parent_id:
            query = query.where(table.parent_id == parent_id)
        async with self._db.read() as connection:
            now = await self._db.clock_ms(connection)
            ended = and_(table.kind == "upload", table.created_at < now - UPLOAD_MS)
            lapsed = and_(table.kind.in_(claims), table.created_at < now - CLAIM_MS)
            count, size = (await connection.execute(query.where(not_(or_(ended, lapsed))))).one()
        return int(count), int(size)

    async def claim_room(self, account_id: str, request_id: str, kind: str, size_bytes: int) -> None:
        """Count bytes of a kind as an account's before they are there: whoever looks from now on sees them.

        They count until `free_room`, or until CLAIM_MS are over by the database's clock.
        """
        table = upstream_objects.c
        mine = and_(table.account_id == account_id, table.kind == CLAIM + kind)
        claim = {"id": CLAIM + request_id, "kind": CLAIM + kind, "account_id": account_id, "charge_id": request_id}
        async with self._db.write() as connection:
            now = await self._db.clock_ms(connection)
            await connection.execute(delete(upstream_objects).where(mine, table.created_at < now - CLAIM_MS))
            await connection.execute(
                insert(upstream_objects).values(**claim, size_bytes=size_bytes, created_at=now, upstream="")
            )

    async def free_room(self, request_id: str) -> None:
        """End a claim: what it stood for is there, or will not come."""
        async with self._db.write() as connection:
            await connection.execute(delete(upstream_objects).where(upstream_objects.c.id == CLAIM + request_id))

    async def size_of(self, ids: Sequence[str]) -> int:
        """Sum of the bytes of these objects, each once."""
        total = 0
        async with self._db.read() as connection:
            for start in range(0, len(ids), ID_BATCH):
                part = upstream_objects.c.id.in_(ids[start : start + ID_BATCH])
                query = select(func.coalesce(func.sum(upstream_objects.c.size_bytes), 0)).where(part)
                total += int((await connection.execute(query)).scalar_one())
        return total

    async def owned_among(self, account_id: str, kind: str, ids: Sequence[str]) -> set[str]:
        """Return those of these ids that are objects of this kind of the account's, not deleted."""
        table, found = upstream_objects.c, set[str]()
        async with self._db.read() as connection:
            for start in range(0, len(ids), ID_BATCH):
                query = select(table.id).where(
                    table.id.in_(ids[start : start + ID_BATCH]),
                    table.account_id == account_id,
                    table.kind == kind,
                    or_(table.deleted_at.is_(None), table.deleted_at > now_ms()),
                )
                found.update((await connection.execute(query)).scalars())
        return found

    async def made_before(
        self, time_ms: int, kinds: Sequence[str], limit: int, account_id: str = "", *, skip: int = 0
    ) -> list[tuple[str, str]]:
        """(id, kind) of the oldest objects of these kinds that are not deleted and older than that, of one account or
        of all, behind the first `skip`.
        """
        table = upstream_objects.c
        query = (
            select(table.id, table.kind)
            .where(table.created_at < time_ms, table.kind.in_(kinds), table.deleted_at.is_(None))
            .order_by(table.created_at, table.id)
            .offset(skip)
            .limit(limit)
        )
        if account_id:
            query = query.where(table.account_id == account_id)
        async with self._db.read() as connection:
            return [(row[0], row[1]) for row in await connection.execute(query)]

    async def forget(self, object_id: str) -> None:
        """Mark it as deleted by its owner."""
        async with self._db.write() as connection:
            await connection.execute(
                update(upstream_objects).where(upstream_objects.c.id == object_id).values(deleted_at=now_ms())
            )

    async def new_sessions(self, account_id: str, charge_id: str, containers: Sequence[str]) -> int:
        """Count those of these containers that were not used in the last 20 minutes; they are used now."""
        new, now = 0, now_ms()
        async with self._db.write() as connection:
            for container in sorted(set(containers)):
                seen = (
                    await connection.execute(
                        select(upstream_objects.c.created_at).where(upstream_objects.c.id == container)
                    )
                ).scalar_one_or_none()
                new += seen is None or seen < now - CONTAINER_SESSION_MS
                if seen is None:
                    await connection.execute(
                        insert(upstream_objects).values(
                            id=container, kind="container", account_id=account_id, charge_id=charge_id, created_at=now
                        )
                    )
                else:
                    await connection.execute(
                        update(upstream_objects)
                        .where(upstream_objects.c.id == container, upstream_objects.c.account_id == account_id)
                        .values(created_at=now)
                    )
        return new

    async def begin_background(
        self, response_id: str, charge_id: str, account_id: str, record: str, upstream: str = ""
    ) -> None:
        """Insert a response that goes on at `upstream` without its request; its hold stays until `end_background`."""
        async with self._db.write() as connection:
            await connection.execute(
                insert(background_responses).values(
                    id=response_id,
                    charge_id=charge_id,
                    account_id=account_id,
                    record=record,
                    created_at=now_ms(),
                    upstream=upstream,
                )
            )

    async def open_background(self, limit: int) -> list[BackgroundResponse]:
        """Background responses that are not settled, oldest first."""
        table = background_responses.c
        columns = (table.id, *columns_of(background_responses, BackgroundResponse._fields[1:]))
        query = select(*columns).where(table.settled_at.is_(None)).order_by(table.created_at).limit(limit)
        async with self._db.read() as connection:
            return [BackgroundResponse(*row) for row in await connection.execute(query)]

    async def is_running(self, response_id: str) -> bool:
        """Tell whether it is a background response that is not settled yet."""
        table = background_responses.c
        query = select(table.id).where(table.id == response_id, table.settled_at.is_(None))
        async with self._db.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def end_background(self, response_id: str) -> bool:
        """Mark it as settled; False when it was, so that of two processes one settles it."""
        table = background_responses.c
        query = update(background_responses).where(table.id == response_id, table.settled_at.is_(None))
        async with self._db.write() as connection:
            return (await connection.execute(query.values(settled_at=now_ms()))).rowcount == 1
