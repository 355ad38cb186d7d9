"""Actions on accounts, by API or on the page: each once, checked, booked and audited. No HTTP in here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing.accounting.daily_finance import day_of, span
from billing.ledger.accounts import AccountRow, Accounts, KeyRules
from billing.ledger.audit_log import AuditLog, Change
from billing.ledger.credits.welcome import PREFIX, REASON, Welcome, given_since, welcome_rule
from billing.ledger.customers.desk import KeyDesk
from billing.ledger.customers.end_users import EndUser
from billing.ledger.customers.search import AccountFilters, AccountSearch
from billing.ledger.customers.use import BudgetUse
from billing.ledger.ledger import Ledger
from billing.ledger.records.account_details import AccountDetails
from billing.money.amounts import MoneyError, millicredits, parse_credits
from billing.money.errors import AccountClosed, ReferenceTaken
from billing.money.postings import GrantTerms
from billing.payments.purchase import RefundedPart
from billing.storage.database import now_ms
from proxy.admin.auth import Caller
from proxy.admin.checked_text import check_reason, optional_reason
from proxy.admin.rows import account_row, end_user_row, key_row, opened_row, refunded_row
from proxy.customer_api.credits.expiring import expiring_rows
from proxy.customer_api.money_in import MoneyIn
from proxy.gateway.background.expiry import forget_stored
from proxy.gateway.services import Services
from proxy.web.rejections import Rejection, forbidden, invalid, unavailable


@dataclass(frozen=True, slots=True)
class AccountActions:
    """The parts. What billing refuses is raised as it is (AccountNotFound, AccountClosed, InvalidDetails ...)."""

    services: Services
    accounts: Accounts
    keys: KeyDesk
    accounts_search: AccountSearch
    ledger: Ledger
    money: MoneyIn
    audit: AuditLog

    async def account(self, account_id: str) -> dict[str, Any]:
        """One account with its balance, holds and keys."""
        row = await self.accounts.get(account_id)
        reading = await self.services.balances.read(account_id)
        posted, keys = await self.ledger.posted(account_id), await self.keys_of(account_id)
        return {
            **account_row(row._replace(posted_millicredits=posted.balance)),
            "balanceMillicredits": str(reading.balance),
            "heldMillicredits": str(reading.held),
            "availableMillicredits": str(reading.balance - reading.held),
            "expiringCredits": expiring_rows(await self.ledger.expiring(account_id)),
            "keys": keys,
        }

    async def keys_of(self, account_id: str) -> list[dict[str, Any]]:
        """Keys of an account with their use, oldest first."""
        rows = await self.accounts.keys_of(account_id)
        uses = await self.keys.uses.of(rows, now_ms())
        return [key_row(row, uses[row.id]) for row in rows]

    async def key(self, key_id: str) -> dict[str, Any]:
        """One key with its use."""
        row = await self.keys.changes.get(key_id)
        return key_row(row, (await self.keys.uses.of([row], now_ms()))[key_id])

    async def end_user(self, account_id: str, name: str) -> dict[str, Any]:
        """One end user with their use; of one who is not known, what holds for such."""
        rules = await self.keys.end_users.rules(account_id)
        known = await self.keys.end_users.find(account_id, name)
        user = known or EndUser(account_id, name, rules.budgets, blocked=False, created_at=0)
        (used,) = await self.end_users_used([user])
        return end_user_row(user, used)

    async def end_users_used(self, users: Sequence[EndUser]) -> list[tuple[BudgetUse, ...]]:
        """Use of each of these end users' budgets."""
        return await self.keys.uses.of_end_users(users, now_ms())

    async def search(self, filters: AccountFilters, limit: int) -> list[AccountRow]:
        """Accounts that fit; the newest when nothing is asked for."""
        return await self.accounts_search.find(filters, limit)

    async def create(self, caller: Caller, details: AccountDetails, *, key: bool) -> dict[str, Any]:
        """Create an account, with a first key for whoever may make keys: nobody gets at one by making accounts."""
        rules = KeyRules() if key and caller.may("keys.create") else None
        welcome = Welcome(welcome_rule(self.services.settings), details.external_id, caller.who)
        also = await welcome.prepared(self.ledger.database)
        return opened_row(await self.accounts.open(details, rules, caller.who, also), welcome.given)

    async def update(
        self, caller: Caller, account_id: str, changes: Mapping[str, Any], reason: str = ""
    ) -> dict[str, Any]:
        """Change what is said of an account."""
        reason = optional_reason(reason)
        return account_row(await self.accounts.update(account_id, changes, caller.who, reason))

    async def block(self, caller: Caller, account_id: str, reason: str, *, blocked: bool) -> dict[str, Any]:
        """Block or unblock."""
        status = "blocked" if blocked else "active"
        await self.accounts.set_status(account_id, status, caller.who, check_reason(reason))
        return {"accountId": account_id, "status": status}

    async def welcome(self, caller: Caller, account_id: str, amount_text: str | None) -> dict[str, Any]:
        """Give a new account its welcome credits: once, however often it is asked. Raises Rejection."""
        conf = self.services.settings.admin
        most = conf.welcome_credits * 1_000
        try:
            amount = most if amount_text is None else parse_credits(amount_text)
        except MoneyError as error:
            raise invalid(f"`credits` is not an amount: {error}", "credits") from None
        if not 0 < amount <= most:
            limit = f"at most {conf.welcome_credits} credits an account" if most else "switched off"
            raise forbidden(f"Welcome credits are {limit} (admin.welcome_credits).", "grant_over_cap", "credits")
        if (await self.accounts.get(account_id)).closed_at is not None:
            raise AccountClosed(account_id)

        async def check(connection: AsyncConnection) -> None:
            given = await given_since(connection, span(day_of(now_ms()))[0])
            if given > conf.welcome_credits_a_day * 1_000:
                message = f"At most {conf.welcome_credits_a_day} welcome credits a day (admin.welcome_credits_a_day)."
                raise forbidden(message, "grant_over_cap")

        reference = f"{PREFIX}{account_id}"
        terms = GrantTerms(reason_shown=True, source="welcome")
        try:
            new = await self.ledger.grant(
                account_id, millicredits(amount), reference, caller.who.actor, REASON, caller.who, check, terms
            )
        except ReferenceTaken as error:
            raise Rejection(409, "reference_taken", f"Not booked: {error}.", param="credits") from None
        posted = await self.ledger.posted(account_id)
        return {
            "accountId": account_id,
            "bookedMillicredits": str(amount if new else 0),
            "reference": reference,
            "postedMillicredits": str(posted.balance),
        }

    async def close(
        self, caller: Caller, account_id: str, reason: str, *, refund: bool, forget: bool
    ) -> dict[str, Any]:
        """Close an account for good, then give back what is left, and forget what it stored.

        May be repeated: what could not be given back or forgotten is tried again. Raises Rejection.
        """
        reason = check_reason(reason)
        if refund:
            caller.require("purchases.refund")
            if self.money.keys is None:
                raise unavailable("Stripe is not configured here.", "stripe_not_configured")
        keys = await self.accounts.close(account_id, caller.who, reason)
        parts = await self._refund_rest(caller, account_id, reason) if refund else []
        stored = await self._forget(caller, account_id, reason) if forget else None
        reading = await self.services.balances.read(account_id)
        return {
            "accountId": account_id,
            "status": "closed",
            "keysRevoked": keys,
            "refunds": [refunded_row(part) for part in parts],
            "balanceMillicredits": str(reading.balance),
            "heldMillicredits": str(reading.held),
            "storedDeleted": stored[0] if stored else 0,
            "storedLeft": stored[1] if stored else None,
        }

    async def erase(self, caller: Caller, account_id: str, reason: str) -> dict[str, Any]:
        """Replace the personal data of a closed account; what it stored at OpenAI goes first."""
        reason = check_reason(reason)
        row = await self.accounts.get(account_id)
        if row.closed_at is not None:
            _, left = await self._forget(caller, account_id, reason)
            if left:
                message = f"{left} or more stored objects cannot be deleted at OpenAI right now. Try again later."
                raise unavailable(message, "stored_objects_left")
        await self.accounts.erase(account_id, caller.who, reason)
        await self.money.inbox.erase_account(account_id)
        return account_row(await self.accounts.get(account_id))

    async def _refund_rest(self, caller: Caller, account_id: str, reason: str) -> list[RefundedPart]:
        """Give back what no running request holds. Raises Rejection while money that moved is not in the balance yet.

        A refund just made would be counted as left, and be made again by whoever repeats the closing.
        """
        reading = await self.services.balances.read(account_id)
        if (await self.ledger.posted(account_id)).sequence != reading.sequence:
            message = "Money of this account has just moved, and its balance does not show it yet. Try again shortly."
            raise unavailable(message, "balance_not_current")
        refunds = (await self.money.parts()).refunds
        return await refunds.refund_rest(account_id, reading.balance - reading.held, caller.who, reason)

    async def _forget(self, caller: Caller, account_id: str, reason: str) -> tuple[int, int]:
        services = self.services
        gone, left = await forget_stored(services.tenants.objects, services.upstreams.client, account_id)
        if gone:
            change = Change("account.forget_stored", account_id, None, f"{gone} deleted", reason)
            await self.audit.write(caller.who, change)
        return gone, left
