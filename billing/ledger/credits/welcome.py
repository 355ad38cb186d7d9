"""Welcome credits by rule: given in the transaction that makes an account, once an external id, whatever became of it.

The external id of an account that was closed and erased may come again with a new account: its keyed hash stays, and
nothing is given twice. The reference is the account's, as it is where the operator's app gives them itself (POST
.../welcome), so that no account gets both.
"""

import hashlib
import hmac
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.accounts import OnMade
from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.credits.grants import book_grant
from billing.ledger.records.account_details import kept_external_id
from billing.money.amounts import Millicredits, parse_credits
from billing.money.postings import GrantTerms, customer, grant_posting
from billing.storage.database import Database, now_ms
from billing.storage.installation import event_secret
from billing.storage.rows import insert_if_new
from billing.storage.tables.core import transfers
from billing.storage.tables.credits import welcomed
from config.settings import Settings

DAY_MS = 86_400_000
PREFIX, REASON = "welcome:", "Welcome credits"
"""How references of welcome credits begin, the account's id behind it; what customers read."""


class WelcomeRule(NamedTuple):
    """Rule of the configuration: millicredits (0: none), days after which they expire (0: never), most of a UTC day."""

    amount: Millicredits
    days: int
    most_a_day: int


def welcome_rule(settings: Settings) -> WelcomeRule:
    """Return the rule of a configuration."""
    given = settings.credits
    most = settings.admin.welcome_credits_a_day * 1_000
    return WelcomeRule(parse_credits(given.welcome_credits), given.welcome_days, most)


class Welcome:
    """The rule, for one account that is about to be made. `given` millicredits, once it was."""

    def __init__(self, rule: WelcomeRule, external_id: str | None, who: Who) -> None:
        """`external_id` as somebody wrote it; it counts as the account has it."""
        kept = None if external_id is None else kept_external_id(external_id)
        self._rule, self._external_id, self._who = rule, kept, who
        self._root = b""
        self.given = 0

    async def prepared(self, database: Database) -> OnMade | None:
        """Return what to do when the account is made; None where there is no rule. Raises StoreUnavailable."""
        if not self._rule.amount:
            return None
        if self._external_id is not None:
            self._root = await event_secret(database)
        return self._give

    async def _give(self, connection: AsyncConnection, account_id: str) -> None:
        now, rule = now_ms(), self._rule
        if await given_since(connection, now - now % DAY_MS) + rule.amount > rule.most_a_day:
            return
        if self._external_id is not None:
            mark = hmac.new(self._root, f"welcome:{self._external_id}".encode(), hashlib.sha256).hexdigest()
            row = {"mark": mark, "account_id": account_id, "created_at": now}
            if not await insert_if_new(connection, welcomed, row, ("mark",)):
                return
        reference = f"{PREFIX}{account_id}"
        ends = now + rule.days * DAY_MS if rule.days else None
        terms = GrantTerms(ends, reason_shown=True, source="welcome")
        posting = grant_posting(account_id, rule.amount, reference, now, self._who.actor[:80], REASON, terms)
        if await book_grant(connection, posting, account_id, rule.amount):
            self.given = rule.amount
            booked = {"millicredits": str(rule.amount), "reference": reference}
            await record_change(connection, self._who, Change("money.grant", account_id, None, booked, REASON))


async def given_since(connection: AsyncConnection, since_ms: int) -> int:
    """Return the millicredits of welcome credits that were given since a time, to whatever accounts."""
    query = select(func.coalesce(func.sum(transfers.c.amount_millicredits), 0)).where(
        transfers.c.kind == "adjustment",
        transfers.c.credit_account.startswith(customer("")),
        transfers.c.reference_id.startswith(PREFIX, autoescape=True),
        transfers.c.created_at >= since_ms,
    )
    return int((await connection.execute(query)).scalar_one())
