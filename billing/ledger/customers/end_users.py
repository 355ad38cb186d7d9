"""End users of an account: what is said of them, and the wallets that pay for some. Changes are audited, without names.

An end user is whom an account's request is for, by the name that the account's app has for them. A wallet is an account
of its own in the bucket of the other, so that what a store counts of the key stays beside the balance that pays (I1).
"""

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.accounts import (
    STATUS,
    EndUserRules,
    EndUserTerms,
    KeyBudget,
    insert_balance,
    lock_open,
    read_budgets,
    written_budgets,
)
from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.customers.changes import dated
from billing.ledger.customers.rules import check_end_user_budgets, checked_end_user
from billing.ledger.records.api_keys import read_end_user_rules, written_end_user_rules
from billing.money.buckets import bucket_of
from billing.money.errors import AccountNotFound, InvalidDetails
from billing.storage.database import Database, now_ms
from billing.storage.tables.core import accounts, end_users


class EndUser(NamedTuple):
    """An end user of whom something is said. `wallet_*`: the account that pays for them, its status; "" for none."""

    account_id: str
    name: str
    budgets: tuple[KeyBudget, ...]
    blocked: bool
    created_at: int
    wallet_id: str = ""
    wallet_status: str = ""


class EndUserChange(NamedTuple):
    """Changes of what is said of an end user; None: as it is."""

    budgets: tuple[KeyBudget, ...] | None = None
    blocked: bool | None = None
    wallet: bool | None = None


def end_user_terms(account_id: str, name: str, budgets: tuple[KeyBudget, ...]) -> EndUserTerms:
    """Return whom a request is for."""
    return EndUserTerms(name, end_user_id(account_id, name), account_id, budgets)


def end_user_id(account_id: str, name: str) -> str:
    """Return what stands for an end user where their name must not, or cannot."""
    return "eu_" + hashlib.sha256(f"{account_id}\n{name}".encode()).hexdigest()[:24]


class EndUsers:
    """Keeps what is said of end users. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def rules(self, account_id: str) -> EndUserRules:
        """Return what holds for an account's end users that are not known. Raises AccountNotFound."""
        async with self._db.read() as connection:
            return await _rules(connection, account_id) or EndUserRules()

    async def set_rules(
        self,
        account_id: str,
        who: Who,
        budgets: tuple[KeyBudget, ...] | None = None,
        *,
        required: bool | None = None,
        reason: str = "",
    ) -> EndUserRules:
        """Change what holds for end users that are not known; None: as it is. In force everywhere within 5 s.

        Raises AccountNotFound, AccountClosed, InvalidDetails.
        """
        check_end_user_budgets(budgets or ())
        async with self._db.write() as connection:
            await lock_open(connection, account_id)
            before = await _rules(connection, account_id) or EndUserRules()
            after = before
            if budgets is not None:
                after = after._replace(budgets=dated(budgets, before.budgets, now_ms()))
            if required is not None:
                after = after._replace(required=required)
            await _write_rules(connection, account_id, after)
            change = Change("end-users.rules", account_id, _audited_rules(before), _audited_rules(after), reason)
            await record_change(connection, who, change)
        return after

    async def find(self, account_id: str, name: str) -> EndUser | None:
        """Return what is said of an end user; None: nothing."""
        found = await self._find(end_users.c.account_id == account_id, end_users.c.name == name)
        return found[0] if found else None

    async def listed(self, account_id: str, limit: int, after: str = "") -> list[EndUser]:
        """Return an account's known end users by name, from behind a name on."""
        return await self._find(end_users.c.account_id == account_id, end_users.c.name > after, limit=limit)

    async def put(
        self, account_id: str, name: str, change: EndUserChange, who: Who, reason: str = ""
    ) -> tuple[EndUser, bool]:
        """Say something of an end user; return (what is said now, whether they were not known before).

        A wallet is made when it is asked for, once. Raises AccountNotFound, AccountClosed, InvalidDetails.
        """
        name = checked_end_user(name)
        check_end_user_budgets(change.budgets or ())
        now, whose = now_ms(), (end_users.c.account_id == account_id, end_users.c.name == name)
        async with self._db.write() as connection:
            await lock_open(connection, account_id)
            found = await _read(connection, *whose)
            before = found[0] if found else EndUser(account_id, name, (), blocked=False, created_at=now)
            budgets = before.budgets if change.budgets is None else dated(change.budgets, before.budgets, now)
            values: dict[str, Any] = {
                "budgets": written_budgets(budgets),
                "blocked": before.blocked if change.blocked is None else change.blocked,
                "wallet_id": await _wallet(connection, before, change.wallet),
            }
            if found:
                await connection.execute(update(end_users).where(*whose).values(**values))
            else:
                row = {"account_id": account_id, "name": name, "created_at": now, **values}
                await connection.execute(insert(end_users).values(**row))
                if await _rules(connection, account_id) is None:  # from here on it is asked who a request is for
                    await _write_rules(connection, account_id, EndUserRules())
            (after,) = await _read(connection, *whose)
            was = _audited(before) if found else None
            said = Change("end-user.update", end_user_id(account_id, name), was, _audited(after), reason)
            await record_change(connection, who, said)
        return after, not found

    async def remove(self, account_id: str, name: str, who: Who, reason: str = "") -> bool:
        """Say nothing of an end user any more; False: nothing was said. Raises InvalidDetails while a wallet pays."""
        whose = (end_users.c.account_id == account_id, end_users.c.name == name)
        async with self._db.write() as connection:
            found = await _read(connection, *whose)
            if not found:
                return False
            if found[0].wallet_id and found[0].wallet_status != "closed":
                raise InvalidDetails("wallet", WALLET_STAYS)
            await connection.execute(delete(end_users).where(*whose))
            change = Change("end-user.remove", end_user_id(account_id, name), _audited(found[0]), None, reason)
            await record_change(connection, who, change)
        return True

    async def _find(self, *conditions: Any, limit: int = 1) -> list[EndUser]:
        async with self._db.read() as connection:
            return await _read(connection, *conditions, limit=limit)


WALLET_STAYS = "stay: it has credits of its own. Close its account first"


async def _read(connection: AsyncConnection, *conditions: Any, limit: int = 1) -> list[EndUser]:
    query = (
        select(end_users, STATUS)
        .outerjoin(accounts, accounts.c.id == end_users.c.wallet_id)
        .where(*conditions)
        .order_by(end_users.c.name)
        .limit(limit)
    )
    return [
        EndUser(
            row["account_id"],
            row["name"],
            read_budgets(row["budgets"]),
            row["blocked"],
            row["created_at"],
            row["wallet_id"] or "",
            row["status"] if row["wallet_id"] else "",
        )
        for row in (await connection.execute(query)).mappings()
    ]


async def _rules(connection: AsyncConnection, account_id: str) -> EndUserRules | None:
    row = (await connection.execute(select(accounts.c.end_user_rules).where(accounts.c.id == account_id))).first()
    if row is None:
        raise AccountNotFound(account_id)
    return read_end_user_rules(row[0])


async def _write_rules(connection: AsyncConnection, account_id: str, rules: EndUserRules) -> None:
    values = {"end_user_rules": written_end_user_rules(rules)}
    await connection.execute(update(accounts).where(accounts.c.id == account_id).values(**values))


async def _wallet(connection: AsyncConnection, user: EndUser, wanted: bool | None) -> str | None:
    """Return the id of a user's wallet, made if it is wanted and not there. Raises InvalidDetails."""
    open_now = user.wallet_id and user.wallet_status != "closed"
    if wanted is None or (wanted and open_now):
        return user.wallet_id or None
    if open_now:
        raise InvalidDetails("wallet", WALLET_STAYS)
    if not wanted:
        return None
    wallet_id = _id_beside(user.account_id)
    await connection.execute(insert(accounts).values(id=wallet_id, name=user.name, created_at=now_ms()))
    await insert_balance(connection, wallet_id)
    return wallet_id


def _id_beside(account_id: str) -> str:
    """Return the id of a new account in another's bucket."""
    while True:
        found = "acct_" + secrets.token_hex(12)
        if bucket_of(found) == bucket_of(account_id):
            return found


def _audited(user: EndUser) -> dict[str, Any]:
    return {
        "account": user.account_id,
        "budgets": _audited_budgets(user.budgets),
        "blocked": user.blocked,
        "wallet": user.wallet_id or None,
    }


def _audited_rules(rules: EndUserRules) -> dict[str, Any]:
    return {"budgets": _audited_budgets(rules.budgets), "required": rules.required}


def _audited_budgets(budgets: Sequence[KeyBudget]) -> Any:
    return msgspec.json.decode(written_budgets(tuple(budgets)) or "[]")
