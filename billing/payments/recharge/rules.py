"""Automatic recharges: a balance falls below its threshold, and the saved card buys a package.

    ready ──crossing──▶ paying ──credited──▶ ready        one payment in flight per account (a unique index says so),
      ▲                   ├──declined──▶ waiting           one per crossing (its number is in the idempotency key)
      │                   │                 └─ 1 h, 6 h, 24 h later ──▶ paying; then ▶ stopped
      │                   ├──needs the buyer──▶ action_needed (a link to pay on)
      │                   └──needs a person──▶ stopped     disputed: a purchase is disputed ──▶ stopped
      └──above again──────────────────────────┘            ceiling: next month, or when an hour has fewer payments

While a payment is in flight crossings are not looked at: it is concluded first. Credits that are taken back (a refund,
an adjustment) use a crossing up instead of making one (billing/ledger/recharge_blocks.py); accounts that are blocked
are never charged.

Driven from the ledger's balances, after charges are booked: requests neither wait for it nor know of it. Written to SQL
before Stripe is asked, so that dying anywhere asks Stripe for the same payment again, never for another.
"""

from typing import Unpack

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.notices import Notice, NoticeQueue
from billing.ledger.recharge_blocks import STOPPED_FOR, TAKEN_BACK, taken_back_since
from billing.payments.purchase import UNSETTLED, Offer
from billing.payments.purchase_store import Purchase, insert_purchase, purchase_of
from billing.payments.recharge.rows import (
    Recharge,
    RechargeChange,
    RechargeSettings,
    change_recharge,
    key_of,
    lock_recharge,
    month_start_ms,
    next_month_ms,
)
from billing.payments.recharge.terms import LINK_MS, NO_CARD, UNBOUNDED, RechargeBounds, Terms, objection
from billing.payments.stripe.objects import DECLINED_FOR_GOOD, NEEDS_BUYER
from billing.storage.database import Database, now_ms
from billing.storage.tables.core import accounts, balances
from billing.storage.tables.payments import auto_recharges, purchases, stripe_customers

HOUR_MS = 3_600_000
BACK_OFF_MS = (HOUR_MS, 6 * HOUR_MS, 24 * HOUR_MS)
AS_NEW: RechargeChange = {
    "below": False,
    "failures": 0,
    "message": "",
    "action_url": "",
    "state": "ready",
    "next_try_at": None,
}

REFUSED = "refused: "
"""Beginning of the problem of a payment that Stripe would not even try: that is no decline of the card."""
NOT_ASKED = "not_asked"
"""Code of a payment that ended because Stripe never heard of it: nobody declined anything."""
NOT_ASKED_PAUSE_MS = 300_000
OVER_CEILING = "over_ceiling"
"""Code of a payment that was not asked for because with its tax it is beyond the month's ceiling."""
AT_CEILING = "The monthly ceiling of automatic recharges is reached."
IN_REVIEW = "A payment needs a look by a person, so automatic recharge is off until then."


class Recharges:
    """The table and its transitions. Raises StoreUnavailable."""

    def __init__(self, database: Database, notices: NoticeQueue) -> None:
        """`notices` take what the buyer should know."""
        self._db, self._notices = database, notices

    async def get(self, account_id: str) -> Recharge | None:
        """Return an account's row."""
        async with self._db.read() as connection:
            query = select(auto_recharges).where(auto_recharges.c.account_id == account_id)
            row = (await connection.execute(query)).mappings().first()
        return Recharge(**row) if row is not None else None

    async def put(self, account_id: str, settings: RechargeSettings, terms: Terms, who: Who) -> None:
        """Change them; `who` consents to them and to `terms` (an audit row says so). A stopped one starts again.

        Switched on, a balance already below counts as a crossing, once. Saving again what is on already, or is waiting
        after a decline, changes only the figures: it must not become a way to try a declined card again and again.
        """
        now = now_ms()
        asked: RechargeChange = {
            "enabled": settings.enabled,
            "threshold_millicredits": settings.threshold,
            "package_code": settings.package_code,
            "monthly_ceiling_cents": settings.monthly_ceiling_cents,
            "agreed_price_cents": terms.price_cents,
            "agreed_millicredits": terms.millicredits,
            "agreed_tax": terms.taxed,
            "updated_at": now,
        }
        fresh = {**asked, **AS_NEW}
        async with self._db.write() as connection:
            row = await lock_recharge(connection, account_id)
            if row is None:
                dialect = sqlite if self._db.is_sqlite else postgresql
                statement = dialect.insert(auto_recharges).values(account_id=account_id, **fresh)
                await connection.execute(statement.on_conflict_do_update(index_elements=["account_id"], set_=asked))
            else:
                await change_recharge(
                    connection, account_id, await self._changed(connection, row, settings, now) | asked
                )
            before = None if row is None else _audited(row.settings, *_agreed(row))
            after = _audited(settings, *terms)
            await record_change(connection, who, Change("auto_recharge.set", account_id, before, after))

    async def switch_off(self, account_id: str, who: Who) -> None:
        """Charge nothing any more, whatever the other settings are worth by now. What is in flight is concluded."""
        async with self._db.write() as connection:
            row = await lock_recharge(connection, account_id)
            if row is not None and row.enabled:
                await change_recharge(connection, account_id, {"enabled": False, "updated_at": now_ms()})
                await record_change(
                    connection, who, Change("auto_recharge.set", account_id, {"enabled": True}, {"enabled": False})
                )

    async def _changed(
        self, connection: AsyncConnection, row: Recharge, settings: RechargeSettings, now: int
    ) -> RechargeChange:
        """Return what new settings change of where it stands."""
        if row.state == "paying" or not settings.enabled:
            return {}
        buyer = select(stripe_customers.c.payment_method_id).where(stripe_customers.c.account_id == row.account_id)
        last = select(purchases.c.payment_method_id).where(purchases.c.id == row.purchase_id)
        another_card = (await connection.execute(buyer)).scalar() != (await connection.execute(last)).scalar()
        if row.state == "ceiling" and settings.monthly_ceiling_cents > row.monthly_ceiling_cents:
            return {"next_try_at": now} if row.enabled else AS_NEW
        gone = row.state == "action_needed" and row.action_url and row.updated_at <= now - LINK_MS
        tried = row.state in ("waiting", "action_needed") and (row.enabled or row.state == "waiting")
        if tried and not another_card and not gone:
            return {}
        if row.enabled and row.state in ("ready", "ceiling"):
            return {}
        return AS_NEW

    async def watch(self) -> int:
        """Record crossings both ways, and disputes; return how many accounts fell below."""
        posted = (
            select(balances.c.posted_millicredits)
            .where(balances.c.account_id == auto_recharges.c.account_id)
            .scalar_subquery()
        )
        above, under = (
            posted >= auto_recharges.c.threshold_millicredits,
            posted < auto_recharges.c.threshold_millicredits,
        )
        settled = auto_recharges.c.state != "paying"
        rises, falls = (
            and_(auto_recharges.c.below, above, settled),
            and_(auto_recharges.c.enabled, ~auto_recharges.c.below, under, settled),
        )
        disputed = auto_recharges.c.state == "disputed"
        async with self._db.read() as connection:
            if (
                await connection.execute(
                    select(auto_recharges.c.account_id).where(or_(rises, falls, disputed)).limit(1)
                )
            ).first() is None:
                return 0
        await self._tell_of_disputes()
        cured = {"below": False, "next_try_at": None, "updated_at": now_ms()}
        ended = auto_recharges.c.state.in_(("stopped", "disputed"))
        async with self._db.write() as connection:
            await connection.execute(update(auto_recharges).where(rises, ended).values(**cured))
            await connection.execute(update(auto_recharges).where(rises, ~ended).values(**{**cured, **AS_NEW}))
            crossing = {"below": True, "crossing": auto_recharges.c.crossing + 1, "attempt": 0, "next_try_at": now_ms()}
            return (await connection.execute(update(auto_recharges).where(falls).values(**crossing))).rowcount

    async def due(self, limit: int = 100) -> list[str]:
        """Return accounts that may start a payment now; a blocked one never."""
        table = auto_recharges.c
        query = (
            select(table.account_id)
            .join(accounts, accounts.c.id == table.account_id)
            .where(
                accounts.c.status == "active",
                table.enabled,
                table.below,
                table.state.in_(("ready", "waiting", "ceiling")),
                table.next_try_at <= now_ms(),
            )
        )
        async with self._db.read() as connection:
            return list((await connection.execute(query.order_by(table.next_try_at).limit(limit))).scalars())

    async def begin(
        self, account_id: str, offer: Offer | None, *, livemode: bool, bounds: RechargeBounds = UNBOUNDED
    ) -> Purchase | None:
        """Commit the purchase of this crossing's next attempt; None when there is none to make. Stripe is asked
        afterwards.
        """
        now = now_ms()
        try:
            async with self._db.write() as connection:
                row = await lock_recharge(connection, account_id)
                if row is None or not _may_begin(row, now):
                    return None
                active = select(accounts.c.id).where(accounts.c.id == account_id, accounts.c.status == "active")
                is_active = (await connection.execute(active)).first() is not None
                posted = await _posted(connection, account_id)
                if not is_active or posted >= row.threshold_millicredits:
                    return None  # blocked, or cured meanwhile; watch() arms it again
                refusal = await self._refusal(connection, row, offer, bounds, now)
                if refusal is not None:
                    await self._end(connection, row, **refusal)
                    return None
                return await self._insert(connection, row, offer, livemode=livemode)
        except IntegrityError:
            return None  # another payment of this account is in flight: the unique index says so

    async def fits_ceiling(self, account_id: str, bounds: RechargeBounds) -> bool:
        """Tell whether what was begun this month, with the tax that is due on it, is within the account's ceiling."""
        async with self._db.read() as connection:
            query = select(auto_recharges.c.monthly_ceiling_cents).where(auto_recharges.c.account_id == account_id)
            ceiling = (await connection.execute(query)).scalar_one()
            return await _spent(connection, account_id, now_ms()) <= min(int(ceiling), bounds.month_cents)

    async def concluded(self) -> list[tuple[Recharge, Purchase]]:
        """Return accounts whose payment has ended, each with it."""
        ended = purchases.c.id.in_(
            select(auto_recharges.c.purchase_id).where(
                auto_recharges.c.state == "paying", auto_recharges.c.purchase_id.is_not(None)
            )
        )
        query = select(purchases).where(ended, purchases.c.state.not_in(UNSETTLED))
        found = []
        async with self._db.read() as connection:
            for purchase in (await connection.execute(query)).mappings().all():
                query_row = select(auto_recharges).where(
                    auto_recharges.c.purchase_id == purchase["id"], auto_recharges.c.state == "paying"
                )
                row = (await connection.execute(query_row)).mappings().first()
                if row is not None:
                    found.append((Recharge(**row), purchase_of(purchase)))
        return found

    async def _tell_of_disputes(self) -> None:
        """Stop those that a dispute has ended, and tell them once."""
        query = select(auto_recharges.c.account_id).where(auto_recharges.c.state == "disputed")
        async with self._db.read() as connection:
            ended = list((await connection.execute(query)).scalars())
        for account_id in ended:
            async with self._db.write() as connection:
                row = await lock_recharge(connection, account_id)
                if row is not None and row.state == "disputed":
                    await self._end(connection, row, state="stopped", message=row.message)

    async def credited(self, row: Recharge, purchase: Purchase) -> None:
        """Be ready for the next crossing: the payment arrived.

        A balance that usage keeps below the threshold all the same is the next crossing by itself, for it will not
        cross again; the ceiling bounds how often.
        """
        async with self._db.write() as connection:
            if await self._still(connection, row):
                values: RechargeChange = {
                    "state": "ready",
                    "failures": 0,
                    "message": "",
                    "action_url": "",
                    "next_try_at": None,
                }
                now = now_ms()
                missing = row.threshold_millicredits - await _posted(connection, row.account_id)
                if missing > 0 and missing > await taken_back_since(connection, row.account_id, purchase.created_at):
                    values |= {"crossing": row.crossing + 1, "attempt": 0, "next_try_at": now}
                elif missing > 0:
                    values["message"] = TAKEN_BACK
                await change_recharge(connection, row.account_id, {**values, "updated_at": now})

    async def reviewed(self, row: Recharge) -> None:
        """Stop: the payment came and is not what was asked for; no other is tried before a person has looked."""
        async with self._db.write() as connection:
            if await self._still(connection, row):
                await self._end(connection, row, state="stopped", message=IN_REVIEW, enabled=False)

    async def failed(self, row: Recharge, code: str, action_url: str = "") -> None:
        """Wait, ask the buyer or stop: the payment was declined, was never asked for (NOT_ASKED), or needs the buyer.

        `action_url`: where the buyer can pay.
        """
        async with self._db.write() as connection:
            if not await self._still(connection, row):
                return
            if code == NOT_ASKED:
                # not at once: whoever asked Stripe in the very moment that the sweeper gave up is heard of first, and
                # begin() looks at the balance again, so that one crossing is not paid twice
                again = now_ms() + NOT_ASKED_PAUSE_MS
                await change_recharge(
                    connection, row.account_id, {"state": "ready", "next_try_at": again, "updated_at": now_ms()}
                )
                return
            if code == NEEDS_BUYER:
                text = "Your bank wants you to confirm the payment."
                await self._end(connection, row, state="action_needed", message=text, action_url=action_url)
                return
            if code == OVER_CEILING:
                again = next_month_ms(now_ms())
                await self._end(connection, row, state="ceiling", message=AT_CEILING, next_try_at=again)
                return
            if code.startswith(REFUSED):
                text = "The saved card cannot be charged any more. Buy once and save it again."
                await self._end(connection, row, state="action_needed", message=text, action_url=action_url)
                return
            if code == DECLINED_FOR_GOOD:
                text = "Your card was declined and is not tried again. Automatic recharge is off: save another card."
                await self._end(connection, row, state="stopped", message=text, enabled=False)
                return
            failures = row.failures + 1
            if failures > len(BACK_OFF_MS):
                text = (
                    f"Your card was declined {failures} times ({code}). "
                    "Automatic recharge is off: check the card, then switch it on."
                )
                await self._end(connection, row, state="stopped", message=text, failures=failures, enabled=False)
                return
            again = now_ms() + BACK_OFF_MS[failures - 1]
            text = f"Your card was declined ({code}). It is tried again later."
            await self._end(connection, row, state="waiting", message=text, failures=failures, next_try_at=again)

    async def _insert(
        self, connection: AsyncConnection, row: Recharge, offer: Offer | None, *, livemode: bool
    ) -> Purchase:
        buyer = (
            (await connection.execute(select(stripe_customers).where(stripe_customers.c.account_id == row.account_id)))
            .mappings()
            .one()
        )
        if offer is None:
            raise ValueError("no offer")  # _refusal has looked
        purchase = await insert_purchase(
            connection,
            row.account_id,
            offer,
            "auto",
            livemode=livemode,
            save_method=False,
            key=key_of(row.account_id, row.crossing, row.attempt + 1),
            customer_id=buyer["customer_id"],
            payment_method_id=buyer["payment_method_id"],
        )
        values: RechargeChange = {
            "state": "paying",
            "attempt": row.attempt + 1,
            "next_try_at": None,
            "purchase_id": purchase.id,
            "updated_at": now_ms(),
        }
        await change_recharge(connection, row.account_id, values)
        return purchase

    async def _refusal(
        self, connection: AsyncConnection, row: Recharge, offer: Offer | None, bounds: RechargeBounds, now: int
    ) -> RechargeChange | None:
        """Return why this attempt is not made, as the state it leads to; None: it is made."""
        problem = objection(row, offer)
        if offer is None or problem:
            return {"state": "stopped", "enabled": False, "message": problem}
        query = select(stripe_customers.c.payment_method_id).where(stripe_customers.c.account_id == row.account_id)
        if not (await connection.execute(query)).scalar_one_or_none():
            return {"state": "action_needed", "message": NO_CARD}
        ceiling = min(row.monthly_ceiling_cents, bounds.month_cents)
        if await _spent(connection, row.account_id, now) + offer.price_cents > ceiling:
            return {"state": "ceiling", "message": AT_CEILING, "next_try_at": next_month_ms(now)}
        lately = select(purchases.c.created_at).where(*_own(row.account_id), purchases.c.created_at > now - HOUR_MS)
        newest = lately.order_by(purchases.c.created_at.desc()).limit(1).offset(bounds.hour_payments - 1)
        last = (await connection.execute(newest)).scalar()
        if last is not None:
            text = f"{bounds.hour_payments} automatic recharges within an hour: the next one waits until it has passed."
            return {"state": "ceiling", "message": text, "next_try_at": last + HOUR_MS + 1}
        return None

    async def _still(self, connection: AsyncConnection, row: Recharge) -> bool:
        """Return True while the row waits for this very attempt.

        One that was disputed meanwhile is stopped, however the attempt ended.
        """
        now = await lock_recharge(connection, row.account_id)
        if now is None or (now.state, now.purchase_id) != ("paying", row.purchase_id):
            return False
        if now.message in STOPPED_FOR and not now.enabled:
            await self._end(connection, now, state="stopped", message=now.message)
            return False
        return True

    async def _end(self, connection: AsyncConnection, row: Recharge, **values: Unpack[RechargeChange]) -> None:
        now = now_ms()
        fixed: RechargeChange = {"next_try_at": None, "action_url": "", **values, "updated_at": now}
        await change_recharge(connection, row.account_id, fixed)
        state = values["state"]
        data = {
            "state": state,
            "message": values["message"],
            "actionUrl": fixed["action_url"] or None,
            "packageCode": row.package_code,
        }
        # once each time that it ends: switched on again, it may end in the same way without another attempt
        notice_id = f"auto_recharge:{row.account_id}:{row.crossing}:{row.attempt}:{state}:{now}"
        await self._notices.write(connection, [Notice(notice_id, row.account_id, f"auto_recharge.{state}", data)])


def _own(account_id: str) -> tuple[ColumnElement[bool], ...]:
    """Return the condition of the automatic payments of an account that were made, or may yet be."""
    made = purchases.c.state.in_((*UNSETTLED, "credited", "review"))
    return purchases.c.account_id == account_id, purchases.c.origin == "auto", made


async def _spent(connection: AsyncConnection, account_id: str, now: int) -> int:
    """Return the cents of this month's automatic payments, with the tax on them."""
    total = func.coalesce(func.sum(purchases.c.price_cents + purchases.c.due_tax_cents), 0)
    query = select(total).where(*_own(account_id), purchases.c.created_at >= month_start_ms(now))
    return int((await connection.execute(query)).scalar_one())


async def _posted(connection: AsyncConnection, account_id: str) -> int:
    """Return an account's booked balance in millicredits."""
    query = select(balances.c.posted_millicredits).where(balances.c.account_id == account_id)
    return int((await connection.execute(query)).scalar() or 0)


def _agreed(row: Recharge) -> tuple[int | None, int | None, bool]:
    return row.agreed_price_cents, row.agreed_millicredits, row.agreed_tax


def _audited(
    settings: RechargeSettings, price_cents: int | None, millicredits: int | None, taxed: bool
) -> dict[str, object]:
    """Return what was agreed to, as the audit log keeps it."""
    amount = None if millicredits is None else str(millicredits)
    return {**settings._asdict(), "price_cents": price_cents, "millicredits": amount, "tax_on_top": taxed}


def _may_begin(row: Recharge, now: int) -> bool:
    due = row.next_try_at is not None and row.next_try_at <= now
    return row.enabled and row.below and row.state in ("ready", "waiting", "ceiling") and due
