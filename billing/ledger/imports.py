"""Customers of another gateway become ours: accounts, hashes of keys and balances, in one transaction.

Ids are made of what the other gateway calls its accounts, and balances are booked under references made of it, so that
the same file a second time does nothing.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.accounts import insert_balance
from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.transfers import change_balance, insert_once
from billing.money.amounts import millicredits
from billing.money.errors import BillingError, ReferenceTaken
from billing.money.postings import grant_posting
from billing.storage.database import Database, now_ms
from billing.storage.tables.core import accounts, api_keys


class KeyToImport(Protocol):
    """A key by its hash. `line`: of the file; `hint`: what its owner knows it by."""

    line: int
    sha256: str
    hint: str


class CustomerToImport(Protocol):
    """An account under the name that the other gateway has for it, with its keys and its balance (None: none said)."""

    line: int
    account: str
    name: str
    millicredits: int | None

    @property
    def keys(self) -> Sequence[KeyToImport]:
        """Its keys."""
        ...


class ImportRefused(BillingError):
    """Customers that do not fit what is here; nothing was changed."""


class Imported(NamedTuple):
    """Numbers of what was new."""

    accounts: int
    keys: int
    balances: int
    millicredits: int


class _DryRun(Exception):
    """Ends a transaction that was only tried."""


def imported_id(account: str) -> str:
    """Return the id that an account of the other gateway has here."""
    return "acct_" + hashlib.sha256(f"import:{account}".encode()).hexdigest()[:24]


async def import_customers(
    database: Database, customers: Sequence[CustomerToImport], actor: str, reason: str, who: Who, *, dry_run: bool
) -> Imported:
    """Make what is not there yet, all of it or nothing; with `dry_run` nothing, after having tried.

    Raises ImportRefused with every complaint.
    """
    counts, complaints = [0, 0, 0, 0], list[str]()
    with contextlib.suppress(_DryRun):
        async with database.write() as connection:
            for customer in customers:
                account_id = imported_id(customer.account)
                counts[0] += await _account(connection, account_id, customer, who)
                for key in customer.keys:
                    counts[1] += await _key(connection, account_id, key, who, complaints)
                booked = await _balance(connection, account_id, customer, (actor, reason, who), complaints)
                counts[2] += bool(booked)
                counts[3] += booked
            _leave(complaints, dry_run=dry_run)
    return Imported(*counts)


def _leave(complaints: Sequence[str], *, dry_run: bool) -> None:
    """Leave the transaction without a commit, where there is to be none."""
    if complaints:
        raise ImportRefused("\n".join(complaints))
    if dry_run:
        raise _DryRun


async def _account(connection: AsyncConnection, account_id: str, customer: CustomerToImport, who: Who) -> bool:
    if (await connection.execute(select(accounts.c.id).where(accounts.c.id == account_id))).first():
        return False
    await connection.execute(insert(accounts).values(id=account_id, name=customer.name, created_at=now_ms()))
    await insert_balance(connection, account_id)
    said = {"name": customer.name, "imported": customer.account}
    await record_change(connection, who, Change("account.create", account_id, None, said))
    return True


async def _key(connection: AsyncConnection, account_id: str, key: KeyToImport, who: Who, complaints: list[str]) -> bool:
    query = select(api_keys.c.account_id).where(api_keys.c.hash == key.sha256)
    owner = (await connection.execute(query)).scalar_one_or_none()
    if owner is not None:
        if owner != account_id:
            complaints.append(f"line {key.line}: this key is another account's here ({owner})")
        return False
    key_id = f"key_{key.sha256[:16]}"
    row = {"id": key_id, "account_id": account_id, "hash": key.sha256, "hint": key.hint, "created_at": now_ms()}
    await connection.execute(insert(api_keys).values(**row))
    said = {"account": account_id, "imported": True}
    await record_change(connection, who, Change("key.create", key_id, None, said))
    return True


async def _balance(
    connection: AsyncConnection,
    account_id: str,
    customer: CustomerToImport,
    by: tuple[str, str, Who],
    complaints: list[str],
) -> int:
    """Book the balance once; return the millicredits that were booked now."""
    if not customer.millicredits:
        return 0
    actor, reason, who = by
    amount, now, reference = millicredits(customer.millicredits), now_ms(), f"import:{account_id}"
    try:
        if not await insert_once(connection, grant_posting(account_id, amount, reference, now, actor, reason)):
            return 0
    except ReferenceTaken:
        complaints.append(f"line {customer.line}: {customer.account!r} was imported before with another balance")
        return 0
    await change_balance(connection, account_id, amount, now)
    booked = {"millicredits": str(amount), "reference": reference}
    await record_change(connection, who, Change("money.grant", account_id, None, booked, reason))
    return amount
