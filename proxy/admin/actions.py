"""Actions of admins, by API or on the page: each once, checked, booked and audited. No HTTP in here."""

import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing.accounting.daily_finance import DAY_MS, Finance, day_of, span
from billing.accounting.journal import JournalLine
from billing.accounting.upstream_spend import UpstreamSpend
from billing.accounting.usage_summary import UsageSummaries
from billing.jobs.runs import Runs
from billing.jobs.schedule import Scheduler
from billing.ledger.admins import Admins
from billing.ledger.audit_log import AuditLog
from billing.ledger.flag_overrides import FlagOverrides
from billing.ledger.ledger import Ledger
from billing.ledger.rate_cards import RateCards
from billing.money.amounts import MoneyError, display_credits, display_usd, millicredits, parse_credits
from billing.money.errors import AccountNotFound, NotYet, ReferenceTaken, StripeRefused
from billing.money.postings import GrantTerms
from billing.payments.purchase import NotAcceptable, NotRefundable, RefundInDoubt, refund_cents
from billing.payments.stripe.inbox import Inbox
from billing.storage.database import now_ms
from config.errors import ConfigError
from config.flags import DRAIN, flag_named, full_name, value_of
from config.settings import Settings
from proxy.admin.accounts.actions import AccountActions
from proxy.admin.auth import Caller
from proxy.admin.checked_text import check_reason, check_text
from proxy.admin.flags import check_override, list_flags, set_override
from proxy.admin.rate_cards import list_rate_cards
from proxy.admin.rows import job_row, review_row, run_row
from proxy.admin.upstreams import check_may_drain, check_may_serve, list_upstreams
from proxy.customer_api.money_in import MoneyIn
from proxy.customer_api.rows import refund_row
from proxy.gateway.services import Services
from proxy.observability.upstream_metrics import read_series
from proxy.web.rejections import Rejection, forbidden, invalid, not_found, unavailable
from proxy.web.times import iso_time

log = logging.getLogger("tollkeeper.admin")

MOST_CREDITS = 1_000_000_000
LONGEST_REFERENCE = 200
TOP_MODELS = 10
OVERVIEW_DAYS = 14

Journal = Callable[[date, date], Awaitable[list[JournalLine]]]
"""The books' journal of these days. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class AdminActions:
    """The parts. `file_settings`: what the file says, without overrides."""

    services: Services
    customers: AccountActions
    ledger: Ledger
    summaries: UsageSummaries
    admins: Admins
    overrides: FlagOverrides
    rates: RateCards
    finance: Finance
    runs: Runs
    jobs: Scheduler
    money: MoneyIn
    inbox: Inbox
    audit: AuditLog
    journal: Journal
    spend: UpstreamSpend
    file_settings: Callable[[], Settings]

    # -- money ------------------------------------------------------------------------------------

    async def move(
        self,
        caller: Caller,
        account_id: str,
        amount_text: str,
        reason: str,
        reference: str,
        terms: GrantTerms,
        *,
        adjust: bool,
    ) -> dict[str, Any]:
        """Grant credits, or adjust by credits either way. The same reference is booked once. Raises Rejection."""
        try:
            amount = parse_credits(amount_text)
        except MoneyError as error:
            raise invalid(f"`credits` is not an amount: {error}", "credits") from None
        if not amount or abs(amount) > MOST_CREDITS * 1_000 or (amount < 0 and not adjust):
            raise invalid(
                f"`credits` must be {'not 0' if adjust else 'above 0'} and at most {MOST_CREDITS}.", "credits"
            )
        if amount < 0 and terms.expires_at is not None:
            raise invalid("Only credits that are given expire: leave `expiresAt` out.", "expiresAt")
        if not caller.may("money.grant_any" if not adjust else "money.adjust"):
            self._within_cap(caller, amount)
        reference = check_text(reference or "grant_" + secrets.token_hex(12), "reference", 80)

        async def check(connection: AsyncConnection) -> None:
            if not caller.may("money.grant_any"):
                since = span(day_of(now_ms()))[0]
                self._within_cap(caller, await self.ledger.granted_by(connection, caller.admin.identity, since))

        try:
            new = await self.ledger.grant(
                account_id,
                millicredits(amount),
                reference,
                caller.who.actor,
                check_reason(reason),
                caller.who,
                check,
                terms,
            )
        except AccountNotFound:
            raise account_missing() from None
        except ReferenceTaken as error:
            raise reference_taken(error) from None
        posted = await self.ledger.posted(account_id)
        return {
            "accountId": account_id,
            "bookedMillicredits": str(amount if new else 0),
            "reference": reference,
            "expiresAt": iso_time(terms.expires_at) if terms.expires_at is not None else None,
            "postedMillicredits": str(posted.balance),
        }

    def _within_cap(self, caller: Caller, amount: int) -> None:
        cap = self.services.settings.admin.support_grant_credits
        if amount > cap * 1_000:
            message = (
                f"The role {caller.admin.role!r} may grant at most {cap} credits a day, over all accounts; "
                "ask someone in finance."
            )
            raise forbidden(message, "grant_over_cap")

    # -- payments in review -----------------------------------------------------------------------

    async def in_review(self) -> list[dict[str, Any]]:
        """List payments not credited, about which a person must decide. Oldest first."""
        return [review_row(row) for row in await self.money.purchases.in_review()]

    async def accept(self, caller: Caller, purchase_id: str, reason: str) -> dict[str, Any]:
        """Credit a payment in review, once. Raises Rejection, StoreUnavailable."""
        reason = check_reason(reason)
        if await self.money.purchases.get(purchase_id) is None:
            raise not_found("There is no such purchase.", "purchase_not_found")
        if self.money.keys is None:
            raise unavailable(
                "Stripe is not configured here, so its record of the payment cannot be read.", "stripe_not_configured"
            )
        try:
            applied = await (await self.money.parts()).sync.accept(purchase_id, caller.who, reason)
        except (NotAcceptable, StripeRefused, NotYet) as refused:
            raise Rejection(409, "not_acceptable", f"{refused}.") from None
        return {"id": purchase_id, "state": applied.state, "creditedMillicredits": str(applied.credited)}

    async def refund(
        self, caller: Caller, purchase_id: str, usd: str | None, reason: str, reference: str
    ) -> dict[str, Any]:
        """Ask Stripe to give a payment back, in dollars or (None) all that is left; once for a reference ("": none).

        Raises Rejection, StoreUnavailable.
        """
        reason = check_reason(reason)
        if reference:
            reference = check_text(reference, "reference", LONGEST_REFERENCE)
        try:
            cents = None if usd is None else refund_cents(usd)
        except MoneyError as error:
            raise invalid(f"`usd` is not an amount: {error}", "usd") from None
        if await self.money.purchases.get(purchase_id) is None:
            raise not_found("There is no such purchase.", "purchase_not_found")
        if self.money.keys is None:
            raise unavailable("Stripe is not configured here.", "stripe_not_configured")
        try:
            made = await (await self.money.parts()).refunds.refund(purchase_id, cents, caller.who, reason, reference)
        except (NotRefundable, StripeRefused) as refused:
            raise Rejection(409, "not_refundable", f"{refused}.") from None
        except ReferenceTaken as error:
            raise reference_taken(error) from None
        except RefundInDoubt as lost:
            log.error("%s", lost)  # noqa: TRY400 - Stripe's silence is no fault with a traceback
            raise unavailable(f"No answer came: {str(lost).partition(': ')[2]}.", "refund_in_doubt", 5_000) from None
        return refund_row(purchase_id, made)

    async def dismiss(self, caller: Caller, purchase_id: str, reason: str) -> dict[str, Any]:
        """Close a payment in review for which nothing is to be credited. Raises Rejection, StoreUnavailable."""
        reason = check_reason(reason)
        if await self.money.purchases.get(purchase_id) is None:
            raise not_found("There is no such purchase.", "purchase_not_found")
        try:
            await self.money.crediting.dismiss(purchase_id, caller.who, reason)
        except NotAcceptable as refused:
            raise Rejection(409, "not_in_review", f"{refused}.") from None
        return {"id": purchase_id, "state": "dismissed"}

    # -- flags ------------------------------------------------------------------------------------

    async def flags(self) -> list[dict[str, Any]]:
        """Every flag: the file's value, the one in force, and its override."""
        return await list_flags(self.overrides, self.file_settings())

    async def set_flag(
        self, caller: Caller, name: str, value: Any, reason: str, expires_at: int | None
    ) -> dict[str, Any]:
        """Override a flag. Raises Rejection."""
        if expires_at is not None and expires_at <= now_ms():
            raise invalid("`expiresAt` is in the past.", "expiresAt")
        flag, file = self._flag(name), self.file_settings()
        try:
            await check_override(self.overrides, file, flag, value)
        except ConfigError as error:
            raise invalid(str(error), "value") from None
        return await set_override(self.overrides, flag, value, check_reason(reason), caller.who, expires_at)

    async def clear_flag(self, caller: Caller, name: str, reason: str) -> dict[str, Any]:
        """Let the file decide again. Raises Rejection."""
        flag = self._flag(name)
        if not await self.overrides.clear(flag, check_reason(reason), caller.who):
            raise not_found(f"Nothing overrides {full_name(flag)}.", "no_override")
        return {"flag": full_name(flag), "value": value_of(self.file_settings(), flag), "expiresAt": None}

    @staticmethod
    def _flag(name: str) -> str:
        try:
            return flag_named(name)
        except ConfigError as error:
            raise not_found(str(error), "no_such_flag") from None

    # -- upstreams --------------------------------------------------------------------------------

    async def upstreams(self) -> list[dict[str, Any]]:
        """List upstreams: health, what is in flight, errors, spend."""
        series = read_series(self.services.metrics.exposition().decode())
        return await list_upstreams(self.services.settings, self.spend, series)

    async def drain(self, caller: Caller, name: str, reason: str) -> dict[str, Any]:
        """Give an upstream nothing new, until `undrain`. Raises Rejection."""
        reason, file = check_reason(reason), self.file_settings()
        check_may_drain(self.services.settings, name)
        if not next(entry.draining for entry in file.upstreams if entry.name == name):
            await self.overrides.set(DRAIN + name, True, reason, caller.who)
        return {"upstream": name, "draining": True}

    async def undrain(self, caller: Caller, name: str, reason: str) -> dict[str, Any]:
        """Let an upstream serve again what it was drained of by `drain`. Raises Rejection."""
        reason = check_reason(reason)
        check_may_serve(self.file_settings(), name)
        if not await self.overrides.clear(DRAIN + name, reason, caller.who):
            raise not_found(f"Nobody has drained {name} here.", "not_drained")
        return {"upstream": name, "draining": False}

    # -- what is going on -------------------------------------------------------------------------

    async def overview(self) -> dict[str, Any]:
        """Margin, liability, top models, by what was rolled up last."""
        now = now_ms()
        days = await self.finance.days(OVERVIEW_DAYS)
        paid = (
            await self.finance.paid(date.fromisoformat(days[-1].day), date.fromisoformat(days[0].day)) if days else {}
        )
        models = await self.finance.top_models(now - 6 * DAY_MS, TOP_MODELS)
        liability = await self.finance.owed(now)
        return {
            "liabilityMillicredits": str(liability),
            "liabilityUsd": display_usd(liability),
            "days": [
                {
                    "day": day.day,
                    "purchasedCredits": display_credits(day.purchased),
                    "paidNetUsd": display_usd(paid.get(day.day, 0)),
                    "deductedCredits": display_credits(day.deducted),
                    "costUsd": display_usd(day.cost),
                    "givenAwayUsd": display_usd(day.given_away),
                    "lossCredits": display_credits(day.loss),
                    "marginUsd": display_usd(day.margin),
                    "liabilityUsd": display_usd(day.liability),
                    "requests": day.requests,
                }
                for day in days
            ],
            "topModels": [
                {
                    "model": row.model,
                    "requests": row.requests,
                    "inputTokens": row.input_tokens,
                    "outputTokens": row.output_tokens,
                    "chargedCredits": display_credits(row.charged),
                    "costUsd": display_usd(row.cost),
                }
                for row in models
            ],
        }

    async def reconciliation(self, limit: int) -> dict[str, Any]:
        """Return the last runs of jobs (clean ones of `finance` left out), the last reconciliation, and its findings.

        A run that could not be done, or only in part, takes back nothing of what one before it found.
        """
        rows = await self.runs.notable("finance", limit)
        last = await self.runs.latest("reconcile", 1)
        found = await self.runs.standing_findings("reconcile")
        return {
            "runs": [run_row(row) for row in rows],
            "lastReconciliation": run_row(last[0]) if last else None,
            "findings": [
                {
                    "check": row.check,
                    "subject": row.subject,
                    "expected": str(row.expected),
                    "found": str(row.found),
                }
                for row in found
            ],
        }

    async def job_list(self) -> list[dict[str, Any]]:
        """Every job: its schedule, its last run, whether it runs now."""
        return [job_row(status) for status in await self.jobs.status()]

    async def run_job(self, caller: Caller, name: str, reason: str) -> dict[str, Any]:
        """Have a job run now by the process that runs the jobs. Raises Rejection."""
        if name not in self.jobs.jobs:
            names = ", ".join(sorted(self.jobs.jobs))
            raise not_found(f"There is no such job with this configuration. There are: {names}.", "job_not_found")
        await self.jobs.request(name, caller.who, check_reason(reason))
        return {"job": name, "requested": True}

    async def webhooks(self, state: str | None, limit: int) -> dict[str, Any]:
        """Inbox of Stripe's events."""
        depth = await self.inbox.depth()
        rows = await self.inbox.listing(state, limit)
        return {
            "waiting": depth.waiting,
            "oldestSeconds": depth.oldest_ms // 1_000,
            "data": [
                {
                    "eventId": row.event_id,
                    "type": row.type,
                    "objectId": row.object_id,
                    "state": row.state,
                    "attempts": row.attempts,
                    "receivedAt": iso_time(row.received_at),
                    "handledAt": iso_time(row.handled_at) if row.handled_at else None,
                    "outcome": row.outcome,
                }
                for row in rows
            ],
        }

    async def replay(self, caller: Caller, event_id: str, reason: str = "") -> dict[str, Any]:
        """Have an event handled again by the worker. Raises EventNotFound."""
        await self.inbox.replay(event_id, caller.who, reason)
        return {"eventId": event_id, "state": "pending"}

    async def ignore(self, caller: Caller, event_id: str, reason: str) -> dict[str, Any]:
        """Stop trying an event that waits. Raises Rejection, EventNotFound when none of that id waits."""
        await self.inbox.ignore(event_id, check_reason(reason), caller.who)
        return {"eventId": event_id, "state": "ignored"}

    async def rate_cards(self) -> dict[str, Any]:
        """Every card, and the times from which they apply."""
        return await list_rate_cards(self.rates)


def reference_taken(error: ReferenceTaken) -> Rejection:
    """Rejection with 409."""
    return Rejection(409, "reference_taken", f"Not booked: {error}.", param="reference")


def account_missing() -> Rejection:
    """Rejection with 404."""
    return not_found("There is no such account.", "account_not_found")
