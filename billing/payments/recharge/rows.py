"""Rows of auto_recharges: an account's settings, and where its automatic recharge stands."""

from datetime import UTC, datetime
from typing import Literal, NamedTuple, TypedDict

import msgspec
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.storage.tables.payments import auto_recharges

RechargeState = Literal["ready", "paying", "waiting", "action_needed", "stopped", "ceiling", "disputed"]


class RechargeSettings(NamedTuple):
    """An account's own settings. Amounts in millicredits and cents."""

    enabled: bool
    threshold: int
    package_code: str
    monthly_ceiling_cents: int


class Recharge(msgspec.Struct, frozen=True, kw_only=True):
    """A row of auto_recharges. Times in Unix milliseconds."""

    account_id: str
    enabled: bool
    threshold_millicredits: int
    package_code: str
    monthly_ceiling_cents: int
    below: bool
    crossing: int
    attempt: int
    failures: int
    next_try_at: int | None
    state: RechargeState
    message: str
    action_url: str
    purchase_id: str | None
    updated_at: int
    agreed_price_cents: int | None
    agreed_millicredits: int | None
    agreed_tax: bool

    @property
    def settings(self) -> RechargeSettings:
        """The account's own part of the row."""
        return RechargeSettings(
            self.enabled, self.threshold_millicredits, self.package_code, self.monthly_ceiling_cents
        )


def key_of(account_id: str, crossing: int, attempt: int) -> str:
    """Return the idempotency key of an attempt: the same crossing's same attempt is one payment at Stripe (I4)."""
    return f"auto:{account_id}:{crossing}:{attempt}"


def month_start_ms(now: int) -> int:
    """Return the start of the UTC month of a time (Unix ms)."""
    moment = datetime.fromtimestamp(now // 1_000, UTC)
    return int(datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp()) * 1_000


def next_month_ms(now: int) -> int:
    """Return the start of the UTC month after a time (Unix ms)."""
    moment = datetime.fromtimestamp(now // 1_000, UTC)
    year, month = divmod(moment.year * 12 + moment.month, 12)
    return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp()) * 1_000


class RechargeChange(TypedDict, total=False):
    """Columns of auto_recharges that change."""

    enabled: bool
    threshold_millicredits: int
    package_code: str
    monthly_ceiling_cents: int
    agreed_price_cents: int
    agreed_millicredits: int
    agreed_tax: bool
    below: bool
    crossing: int
    attempt: int
    failures: int
    next_try_at: int | None
    state: RechargeState
    message: str
    action_url: str
    purchase_id: str
    updated_at: int


async def lock_recharge(connection: AsyncConnection, account_id: str) -> Recharge | None:
    """Lock an account's row until the transaction ends, and return it; None when it has none."""
    query = select(auto_recharges).where(auto_recharges.c.account_id == account_id).with_for_update()
    row = (await connection.execute(query)).mappings().first()
    return Recharge(**row) if row is not None else None


async def change_recharge(connection: AsyncConnection, account_id: str, change: RechargeChange) -> None:
    """Change an account's row."""
    await connection.execute(update(auto_recharges).where(auto_recharges.c.account_id == account_id).values(**change))
