"""Accounts as Stripe customers, and the payment method each has agreed to be charged with while away."""

from typing import NamedTuple

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite

from billing.ledger.audit_log import Change, Who, record_change
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.payments import stripe_customers

LONGEST_BRAND, LONGEST_LAST4 = 40, 8
NO_METHOD = {"payment_method_id": "", "method_brand": "", "method_last4": ""}


class SavedMethod(NamedTuple):
    """A payment method to keep, and by what its owner knows it: brand or bank, last four characters ("": not said)."""

    id: str
    brand: str = ""
    last4: str = ""


class StripeCustomer(NamedTuple):
    """A Stripe customer; `payment_method_id` is "" without a saved method. Times in Unix milliseconds."""

    account_id: str
    customer_id: str
    payment_method_id: str
    consented_at: int | None
    method_brand: str
    method_last4: str


class StripeCustomers:
    """The table stripe_customers. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def find(self, account_id: str) -> StripeCustomer | None:
        """Return the account's customer, if Stripe has one."""
        columns = columns_of(stripe_customers, StripeCustomer._fields)
        async with self._db.read() as connection:
            row = (
                await connection.execute(select(*columns).where(stripe_customers.c.account_id == account_id))
            ).first()
        return StripeCustomer(*row) if row is not None else None

    async def insert(self, account_id: str, customer_id: str) -> str:
        """Insert an account's customer; the first one stays, and is returned."""
        dialect = sqlite if self._db.is_sqlite else postgresql
        statement = dialect.insert(stripe_customers).values(
            account_id=account_id, customer_id=customer_id, created_at=now_ms()
        )
        async with self._db.write() as connection:
            await connection.execute(statement.on_conflict_do_nothing())
            query = select(stripe_customers.c.customer_id).where(stripe_customers.c.account_id == account_id)
            return str((await connection.execute(query)).scalar_one())

    async def replace(self, account_id: str, customer_id: str) -> None:
        """Put another customer in the place of the account's, without a saved method."""
        values = {"customer_id": customer_id, **NO_METHOD, "consented_at": None}
        async with self._db.write() as connection:
            await connection.execute(
                update(stripe_customers).where(stripe_customers.c.account_id == account_id).values(**values)
            )

    async def save_method(self, account_id: str, customer_id: str, method: SavedMethod, consented_at: int) -> None:
        """Keep the method of a purchase whose buyer agreed to be charged again, unless that was another customer of
        Stripe's.
        """
        values = {
            "payment_method_id": method.id,
            "method_brand": method.brand[:LONGEST_BRAND],
            "method_last4": method.last4[:LONGEST_LAST4],
            "consented_at": consented_at,
        }
        newer = stripe_customers.c.consented_at.is_(None) | (stripe_customers.c.consented_at < consented_at)
        async with self._db.write() as connection:
            same = (stripe_customers.c.account_id == account_id, stripe_customers.c.customer_id == customer_id)
            await connection.execute(update(stripe_customers).where(*same, newer).values(**values))

    async def forget_method(self, payment_method_id: str) -> bool:
        """Forget a method that was removed; False when it was none of ours."""
        statement = update(stripe_customers).where(stripe_customers.c.payment_method_id == payment_method_id)
        async with self._db.write() as connection:
            return (await connection.execute(statement.values(**NO_METHOD))).rowcount > 0

    async def remove_method(self, account_id: str, payment_method_id: str, who: Who) -> None:
        """Forget the method that its owner removed here; a row in the audit log unless it was gone already."""
        mine = (stripe_customers.c.account_id == account_id, stripe_customers.c.payment_method_id == payment_method_id)
        async with self._db.write() as connection:
            changed = await connection.execute(update(stripe_customers).where(*mine).values(**NO_METHOD))
            if changed.rowcount:
                await record_change(connection, who, Change("card.remove", account_id, None, None))
