"""Promo codes: so many uses in all, once an account, for a term. Made and ended by admins, redeemed by customers.

K uses are K redemptions, however many ask at once: the use is counted by one UPDATE whose condition SQL decides on the
locked row, in the transaction that books the credits. An account's redemptions take turns on its row, and a second one
of the same code finds the first.
"""

import re
import secrets
from typing import NamedTuple

from sqlalchemy import insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.accounts import lock_open
from billing.ledger.audit_log import Change, Who, record_change, take_turn
from billing.ledger.credits.grants import book_grant
from billing.ledger.notices import Notice, NoticeQueue
from billing.money.errors import BillingError
from billing.money.postings import GrantTerms, grant_posting
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.credits import promo_codes, promo_redemptions

DAY_MS = 86_400_000
CODE = re.compile(r"[A-Z0-9][A-Z0-9-]{2,31}")
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
"""Of a code that we make: none that is taken for another."""


class PromoNotFound(BillingError):
    """There is no such code."""


class PromoTaken(BillingError):
    """There is a code of that name with other terms."""


class PromoOver(BillingError):
    """A code that cannot be redeemed now: not yet, not any more, or all its uses are used up (`used_up`)."""

    def __init__(self, words: str, *, used_up: bool = False) -> None:
        """`words` complete "This code ..."."""
        super().__init__(f"This code {words}")
        self.used_up = used_up


class BadPromo(BillingError):
    """A code that cannot be: `field` says of what."""

    def __init__(self, field: str, rule: str) -> None:
        """`rule` completes "must"."""
        super().__init__(f"`{field}` must {rule}")
        self.field = field


class PromoTerms(NamedTuple):
    """Terms of a code: millicredits of each use, uses in all (None: any), its term, days that the credits are good for.

    Times in Unix milliseconds; `starts_at` None: now, `ends_at` None: for good, `credit_days` None: for good.
    """

    amount: int
    most_uses: int | None = None
    starts_at: int | None = None
    ends_at: int | None = None
    credit_days: int | None = None


class PromoRow(NamedTuple):
    """A code as it is kept; times in Unix milliseconds. `ended_at`: when somebody ended it before its term."""

    code: str
    amount_millicredits: int
    most_uses: int | None
    uses: int
    credit_days: int | None
    starts_at: int
    ends_at: int | None
    ended_at: int | None
    created_at: int
    actor: str


class Redemption(NamedTuple):
    """Credits that a code gave an account, in millicredits; `again`: it had them before, and got nothing now."""

    code: str
    amount: int
    expires_at: int | None
    again: bool


COLUMNS = columns_of(promo_codes, PromoRow._fields)


def read_code(text: str) -> str:
    """Return a code as it is kept, whatever its case and blanks; "" for what cannot be one."""
    found = "".join(text.upper().split())
    return found if CODE.fullmatch(found) else ""


class Promos:
    """The codes of one database. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database, notices: NoticeQueue) -> None:
        """`database` must be migrated; `notices` take what is told."""
        self._db, self._notices = database, notices

    async def add(self, code: str, terms: PromoTerms, who: Who, reason: str = "") -> tuple[PromoRow, bool]:
        """Make a code ("": one that is made up); (it, whether it is new). The same terms again: nothing is made.

        Raises BadPromo, PromoTaken.
        """
        name = read_code(code) if code else "".join(secrets.choice(LETTERS) for _ in range(12))
        now = now_ms()
        _check(name, terms, now)
        asked = (terms.amount, terms.most_uses, terms.ends_at, terms.credit_days)
        row = PromoRow(
            name,
            terms.amount,
            terms.most_uses,
            0,
            terms.credit_days,
            now if terms.starts_at is None else terms.starts_at,
            terms.ends_at,
            None,
            now,
            who.actor[:120],
        )
        async with self._db.write() as connection:
            await take_turn(connection)  # of two with one name the second finds the first
            known = await _find(connection, name)
            if known is not None:
                same = (known.amount_millicredits, known.most_uses, known.ends_at, known.credit_days) == asked
                if not same or known.ended_at is not None or terms.starts_at not in (None, known.starts_at):
                    raise PromoTaken(f"the code {name} was made before, with other terms or ended")
                return known, False
            await connection.execute(insert(promo_codes).values(row._asdict()))
            await record_change(connection, who, Change("promos.add", name, None, _audited(row), reason))
        return row, True

    async def listed(self) -> list[PromoRow]:
        """Return every code, newest first."""
        query = select(*COLUMNS).order_by(promo_codes.c.created_at.desc(), promo_codes.c.code)
        async with self._db.read() as connection:
            return [PromoRow(*row) for row in await connection.execute(query)]

    async def end(self, code: str, who: Who, reason: str) -> PromoRow:
        """Let nobody redeem a code any more; what it gave stays. Safe to repeat. Raises PromoNotFound."""
        name, now = read_code(code), now_ms()
        async with self._db.write() as connection:
            ended = update(promo_codes).where(promo_codes.c.code == name, promo_codes.c.ended_at.is_(None))
            changed = (await connection.execute(ended.values(ended_at=now))).rowcount
            row = await _find(connection, name)
            if row is None:
                raise PromoNotFound(f"there is no code {code[:40]!r}")
            if changed:
                change = Change("promos.end", name, {"ended": False}, {"ended": True, "uses": row.uses}, reason)
                await record_change(connection, who, change)
        return row

    async def redeem(self, account_id: str, code: str, who: Who) -> Redemption:
        """Give an account what a code gives, once. Raises PromoNotFound, PromoOver, AccountNotFound, AccountClosed."""
        name, now = read_code(code), now_ms()
        async with self._db.write() as connection:
            await lock_open(connection, account_id)
            before = await _redeemed(connection, name, account_id)
            if before is not None:
                return before
            row = await _use(connection, name, now)
            ends = None if row.credit_days is None else now + row.credit_days * DAY_MS
            given = {"amount_millicredits": row.amount_millicredits, "expires_at": ends, "created_at": now}
            await connection.execute(insert(promo_redemptions).values(code=name, account_id=account_id, **given))
            terms, reference = GrantTerms(ends, reason_shown=True, source="promo"), f"promo:{name}:{account_id}"
            amount, reason = row.amount_millicredits, f"Promo code {name}"
            posting = grant_posting(account_id, amount, reference, now, who.actor[:80], reason, terms)
            await book_grant(connection, posting, account_id, amount)
            booked = {"millicredits": str(amount), "reference": reference}
            await record_change(connection, who, Change("promos.redeem", account_id, None, booked, reason))
            told = {"code": name, "millicredits": str(amount), "expiresAtMs": ends}
            notice = Notice(f"promo:{name}:{account_id}", account_id, "promo.redeemed", told)
            await self._notices.write(connection, [notice])
        return Redemption(name, amount, ends, again=False)


async def _use(connection: AsyncConnection, name: str, now: int) -> PromoRow:
    """Count one use of a code that may be used now. Raises PromoNotFound, PromoOver."""
    table = promo_codes.c
    open_now = (
        table.code == name,
        table.ended_at.is_(None),
        table.starts_at <= now,
        or_(table.ends_at.is_(None), table.ends_at > now),
        or_(table.most_uses.is_(None), table.uses < table.most_uses),
    )
    counted = update(promo_codes).where(*open_now).values(uses=table.uses + 1).returning(*COLUMNS)
    found = (await connection.execute(counted)).first()
    if found is not None:
        return PromoRow(*found)
    row = await _find(connection, name)
    if row is None:
        raise PromoNotFound("there is no such code")
    if row.starts_at > now:
        raise PromoOver("cannot be used yet.")
    if row.ended_at is not None or (row.ends_at is not None and row.ends_at <= now):
        raise PromoOver("has ended.")
    raise PromoOver("has been used as often as it may be.", used_up=True)


async def _find(connection: AsyncConnection, name: str) -> PromoRow | None:
    row = (await connection.execute(select(*COLUMNS).where(promo_codes.c.code == name))).first()
    return PromoRow(*row) if row is not None else None


async def _redeemed(connection: AsyncConnection, name: str, account_id: str) -> Redemption | None:
    table = promo_redemptions.c
    query = select(table.amount_millicredits, table.expires_at)
    row = (await connection.execute(query.where(table.code == name, table.account_id == account_id))).first()
    return Redemption(name, row[0], row[1], again=True) if row is not None else None


def _check(name: str, terms: PromoTerms, now: int) -> None:
    if not name:
        raise BadPromo("code", "be 3 to 32 letters A to Z, digits and dashes")
    if terms.amount <= 0:
        raise BadPromo("credits", "be above 0")
    if terms.most_uses is not None and not 1 <= terms.most_uses < 2**31:
        raise BadPromo("uses", "be 1 or more")
    if terms.credit_days is not None and not 1 <= terms.credit_days <= 3_650:
        raise BadPromo("creditDays", "be 1 to 3650")
    if terms.ends_at is not None and terms.ends_at <= max(now, terms.starts_at or now):
        raise BadPromo("endsAt", "be after now, and after it starts")


def _audited(row: PromoRow) -> dict[str, object]:
    return {
        "millicredits": str(row.amount_millicredits),
        "uses": row.most_uses,
        "startsAtMs": row.starts_at,
        "endsAtMs": row.ends_at,
        "creditDays": row.credit_days,
    }
