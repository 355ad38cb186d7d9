"""Price plans in SQL: versions that are never edited, and who has which plan from when on."""

from typing import Any, NamedTuple

import msgspec
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change, take_turn
from billing.ledger.plans.in_force import Assignment, PlansInForce, PlanVersion
from billing.money.catalogue.price_plan import PLAN_ID, BadPricePlan, PlanDocument, PlanPrices, read_prices
from billing.money.errors import AccountNotFound, BillingError
from billing.storage.database import Database, now_ms
from billing.storage.tables.core import accounts
from billing.storage.tables.plans import plan_assignments, price_plans

MOST_ROWS = 10_000
"""Rows in one look; the next look goes on behind them."""


class PricePlanNotFound(BillingError):
    """There is no such price plan."""


class VersionRow(NamedTuple):
    """A version as it is kept; times in Unix milliseconds. `accounts`: how many have the plan now."""

    id: int
    plan_id: str
    version: int
    document: str
    starts_at: int
    ends_at: int | None
    created_at: int
    actor: str

    @property
    def version_id(self) -> str:
        """Name of the version, as snapshots of requests have it."""
        return version_id(self.plan_id, self.version)

    def read(self) -> PlanVersion:
        """Return it as requests use it."""
        prices = PlanPrices(self.version_id, msgspec.json.decode(self.document, type=PlanDocument))
        return PlanVersion(self.id, self.plan_id, self.version, self.starts_at, self.ends_at, prices)


class AssignmentRow(NamedTuple):
    """An assignment as it is kept."""

    id: int
    account_id: str
    plan_id: str | None
    starts_at: int
    ends_at: int | None
    created_at: int
    actor: str

    def read(self) -> Assignment:
        """Return it as requests use it."""
        return Assignment(self.id, self.account_id, self.plan_id, self.starts_at, self.ends_at)


class Validity(NamedTuple):
    """From when until when something applies (Unix milliseconds); None: from now on, and for good."""

    starts_at: int | None = None
    ends_at: int | None = None

    def since(self) -> int:
        """Return its start. Raises BadPricePlan when it ends before that."""
        start = now_ms() if self.starts_at is None else self.starts_at
        if self.ends_at is not None and self.ends_at <= start:
            raise BadPricePlan("the end must be after the start")
        return start


ALWAYS = Validity()


class PricePlans:
    """The plans of one database. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def add(
        self, plan_id: str, prices: Any, actor: str, who: Who | None = None, span: Validity = ALWAYS, reason: str = ""
    ) -> tuple[VersionRow, bool]:
        """Keep another version of a plan, its first where there is none; (the version, whether it is new).

        Prices and end like those of the newest version, from no other start: that one. Raises BadPricePlan.
        """
        if not PLAN_ID.match(plan_id):
            raise BadPricePlan("a plan's id is 1 to 40 small letters, digits, dashes or underscores")
        document = read_prices(prices)
        text = msgspec.json.encode(document, order="deterministic").decode()
        start = span.since()
        async with self._db.write() as connection:
            await take_turn(connection)
            newest = await self._newest(connection, plan_id)
            same = newest is not None and (newest.document, newest.ends_at) == (text, span.ends_at)
            if newest is not None and same and span.starts_at in (None, newest.starts_at):
                return newest, False
            values: dict[str, Any] = {
                "plan_id": plan_id,
                "version": newest.version + 1 if newest is not None else 1,
                "document": text,
                "starts_at": start,
                "ends_at": span.ends_at,
                "created_at": now_ms(),
                "actor": actor,
            }
            made = await connection.execute(insert(price_plans).values(**values).returning(price_plans.c.id))
            row = VersionRow(made.scalar_one(), **values)
            before = newest.version_id if newest is not None else None
            after = {"prices": msgspec.to_builtins(document), "startsAt": start, "endsAt": span.ends_at}
            await record_change(connection, who, Change("plans.add", row.version_id, before, after, reason))
        return row, True

    async def assign(
        self,
        account_id: str,
        plan_id: str | None,
        actor: str,
        who: Who | None = None,
        span: Validity = ALWAYS,
        reason: str = "",
    ) -> AssignmentRow:
        """Give an account a plan, or (None) everyone's prices; over whatever it was assigned to for that time.

        Raises AccountNotFound, PricePlanNotFound, BadPricePlan.
        """
        start = span.since()
        async with self._db.write() as connection:
            await take_turn(connection)
            found = select(accounts.c.id).where(accounts.c.id == account_id)
            if (await connection.execute(found)).first() is None:
                raise AccountNotFound(account_id)
            if plan_id is not None and await self._newest(connection, plan_id) is None:
                raise no_such_plan(plan_id)
            before = await self._assignments(connection, account_id)
            values: dict[str, Any] = {
                "account_id": account_id,
                "plan_id": plan_id,
                "starts_at": start,
                "ends_at": span.ends_at,
                "created_at": now_ms(),
                "actor": actor,
            }
            made = await connection.execute(insert(plan_assignments).values(**values).returning(plan_assignments.c.id))
            after = {"plan": plan_id, "startsAt": start, "endsAt": span.ends_at}
            was = before[-1].plan_id if before else None
            await record_change(connection, who, Change("plans.assign", account_id, was, after, reason))
            return AssignmentRow(made.scalar_one(), **values)

    async def versions(self, plan_id: str | None = None) -> list[VersionRow]:
        """Return every version, of one plan or all, in the order of their making."""
        query = select(price_plans).order_by(price_plans.c.id)
        if plan_id is not None:
            query = query.where(price_plans.c.plan_id == plan_id)
        async with self._db.read() as connection:
            return [VersionRow(*row) for row in await connection.execute(query)]

    async def version(self, version: str) -> PlanPrices:
        """Return how a version prices, by its name. Raises PricePlanNotFound."""
        plan_id, _, number = version.rpartition(".")
        query = select(price_plans).where(price_plans.c.plan_id == plan_id, price_plans.c.version == int(number))
        async with self._db.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise no_such_plan(version)
        return VersionRow(*row).read().prices

    async def assignments(self, account_id: str) -> list[AssignmentRow]:
        """Return every assignment of an account, oldest first."""
        async with self._db.read() as connection:
            return await self._assignments(connection, account_id)

    async def catch_up(self, known: PlansInForce) -> bool:
        """Take what is new since the last look; True when there was something."""
        versions = select(price_plans).where(price_plans.c.id > known.version_row).order_by(price_plans.c.id)
        given = select(plan_assignments).where(plan_assignments.c.id > known.assignment_row)
        async with self._db.read() as connection:
            made = [VersionRow(*row).read() for row in await connection.execute(versions.limit(MOST_ROWS))]
            rows = await connection.execute(given.order_by(plan_assignments.c.id).limit(MOST_ROWS))
            taken = [AssignmentRow(*row).read() for row in rows]
        known.take(made, taken)
        return bool(made or taken)

    async def all(self) -> PlansInForce:
        """Return everything that there is."""
        known = PlansInForce()
        while await self.catch_up(known):
            pass
        return known

    async def assigned(self) -> dict[str, int]:
        """Count the accounts that were assigned to each plan last, whether or not that applies now."""
        last = select(func.max(plan_assignments.c.id)).group_by(plan_assignments.c.account_id)
        query = (
            select(plan_assignments.c.plan_id, func.count())
            .where(plan_assignments.c.id.in_(last), plan_assignments.c.plan_id.is_not(None))
            .group_by(plan_assignments.c.plan_id)
        )
        async with self._db.read() as connection:
            return {row[0]: row[1] for row in await connection.execute(query)}

    @staticmethod
    async def _newest(connection: AsyncConnection, plan_id: str) -> VersionRow | None:
        query = select(price_plans).where(price_plans.c.plan_id == plan_id).order_by(price_plans.c.id.desc()).limit(1)
        row = (await connection.execute(query)).first()
        return None if row is None else VersionRow(*row)

    @staticmethod
    async def _assignments(connection: AsyncConnection, account_id: str) -> list[AssignmentRow]:
        query = select(plan_assignments).where(plan_assignments.c.account_id == account_id)
        rows = await connection.execute(query.order_by(plan_assignments.c.id))
        return [AssignmentRow(*row) for row in rows]


def version_id(plan_id: str, version: int) -> str:
    """Return the name of a version."""
    return f"{plan_id}.{version}"


def no_such_plan(plan_id: str) -> PricePlanNotFound:
    """Return the refusal of a plan that there is not."""
    return PricePlanNotFound(f"there is no price plan {plan_id!r}: `tollkeeper plan list` lists them")
