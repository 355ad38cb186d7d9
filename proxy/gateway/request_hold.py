"""The money of one request, over HTTP, on a socket or in the background: hold, checkpoint, then settle or release.

    hold ──▶ open ──settle────────────▶ charged what the answer cost, by one decision (settlement.py)
              │  ──settle_abandoned───▶ charged its checkpoint: something was streamed and then everything went wrong
              │  ──release────────────▶ nothing is charged
              └──detach───────────────▶ another process takes it on by `resume`, with the same id (background responses)

Every hold made here is resolved here, once (I4); a process that dies leaves it to the store's reaper, which books the
last checkpoint (I3).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

from billing.ledger.accounts import ApiKey
from billing.money.amounts import Millicredits
from billing.money.errors import AccountNotFound, StoreUnavailable
from billing.money.holds import Checkpoint, Held, HoldRequest, KeyLimits, Refused, Settled
from billing.money.spend_periods import period_end_ms, period_name
from billing.money.usage import Usage
from billing.money.usage_record import Outcome
from config.settings import Limits
from proxy.gateway.answers.report import Report
from proxy.gateway.checkpoint import checkpoint_of
from proxy.gateway.plan import Plan, affordable_cap, clamped, smallest, usual, with_counted_input
from proxy.gateway.services import PricingTerms, Services
from proxy.gateway.settlement import ObservedOutput, SettlementDecision, decide_settlement
from proxy.gateway.usage_rows import RequestFacts, usage_record
from proxy.web.rejections import KeyLimit, Rejection, insufficient_credits, too_many, unavailable
from proxy.web.times import iso_time

HOLD_TRIES = 3
RESUME_TRIES = 3
SHARE = 4
"""Requests of an account that our own caps leave room for side by side."""
SHRINK_FROM = 100_000
"""Millicredits ($0.10): smaller holds are not worth a tokenizer's time."""
NO_USAGE = Usage()
NO_LIMITS = KeyLimits()
UNLIMITED = (None, None, None, None)


class RequestHold:
    """One hold and its end. Amounts are millicredits.

    `plan` is what it was held for, clamped or counted since; `checkpointed_at` is when the store was last told what is
    owed, `sent_at` when the request went upstream (both monotonic seconds).
    """

    __slots__ = (
        "_key",
        "_services",
        "_settings",
        "amount",
        "charged",
        "checkpointed_at",
        "free",
        "input_owed",
        "is_open",
        "owner",
        "plan",
        "request_id",
        "sent_at",
        "settled",
        "started",
        "started_ms",
        "terms",
        "usage",
    )

    def __init__(
        self,
        services: Services,
        terms: PricingTerms,
        request_id: str,
        started_ms: int,
        started: int | float,
        owner: object | None = None,
    ) -> None:
        """Nothing is held yet. `request_id` is hold id and charge id too; `owner` lives as long as it may be open.

        `started_ms` in Unix milliseconds, `started` in monotonic seconds.
        """
        self._services, self.terms, self.request_id = services, terms, request_id
        self.started_ms, self.started = started_ms, started
        self._settings = services.settings  # what a request begins under, it ends under
        self._key: ApiKey | None = None
        self.owner = owner
        self.plan: Plan | None = None
        self.free = self.is_open = False
        self.amount = self.input_owed = Millicredits(0)
        self.charged = 0
        self.usage = NO_USAGE
        self.settled: Settled | None = None
        self.checkpointed_at = self.sent_at = 0.0

    @property
    def key(self) -> ApiKey:
        """The key that is charged. Only after `hold`."""
        if self._key is None:
            raise RuntimeError("nothing was held")
        return self._key

    @property
    def held_plan(self) -> Plan:
        """The plan that is held for. Only after `hold`."""
        if self.plan is None:
            raise RuntimeError("nothing was held")
        return self.plan

    def facts(self, plan: Plan, first_byte_ms: int = 0) -> RequestFacts:
        """Facts for the request's rows."""
        elapsed_ms = round((time.monotonic() - self.started) * 1_000)
        return RequestFacts(self.request_id, self.key, plan, self.amount, self.started_ms, first_byte_ms, elapsed_ms)

    # -- holding ----------------------------------------------------------------------------------

    async def hold(self, plan: Plan, key: ApiKey, *, free: bool, wait: bool = True) -> Plan:
        """Hold the worst case by bytes; where money is short count tokens, then clamp, then wait a moment for others.

        `free`: see admission.admit; `wait`: for others. Raises Rejection (402, 429, 503).
        """
        self._key, self.free = key, free
        plan, result = await self._attempt(plan, key, patient=True)
        if isinstance(result, Refused) and wait and self._may_wait(plan, result):
            plan, result = await self._wait_for_others(plan, key, result)
        if isinstance(result, Refused):
            budget = result.key_available if result.source == "key_limit" else result.balance - result.held
            raise self._insufficient(plan, result, budget)
        self.is_open, self.plan = True, plan
        self._services.open_holds.by_id[self.request_id] = self
        return self._leave_room(plan, result)

    async def _attempt(self, plan: Plan, key: ApiKey, *, patient: bool) -> tuple[Plan, Held | Refused]:
        """Try; where money is short count the tokens and lower our own cap, and try again.

        `patient`: rather than to a shorter answer than usual it comes to a refusal while others hold. Raises Rejection
        for other limits.
        """
        services, prices, tries = self._services, self.terms.prices, 0
        while True:
            result = await self._try_hold(plan, key)
            tries += 1
            if isinstance(result, Held):
                return plan, result
            if result.source not in ("balance", "in_flight", "key_limit"):
                raise _limited(result)
            budget = result.key_available if result.source == "key_limit" else result.balance - result.held
            if not plan.input_is_counted and plan.endpoint.texts is not None:
                texts, framing = plan.endpoint.texts(plan.parsed.source)
                tokens = framing + await services.tokenizer.count(plan.parsed.model, texts)
                plan = with_counted_input(plan, tokens, prices)
            if tries == HOLD_TRIES:
                return plan, result
            if plan.ceiling.amount > budget:
                enough = usual(plan, prices).ceiling.amount
                if patient and plan.cap_is_ours and result.held and enough > budget and result.source != "key_limit":
                    return plan, result
                lower = clamped(plan, _share(budget, enough), self._settings.holds.min_output_tokens, prices)
                if lower is None:
                    return plan, result
                plan = lower

    def _may_wait(self, plan: Plan, result: Refused) -> bool:
        """Tell whether only holds in flight are in the way."""
        least = smallest(plan, self._settings.holds.min_output_tokens, self.terms.prices).ceiling.amount
        return result.source != "key_limit" and result.held > 0 and result.balance >= least

    async def _wait_for_others(self, plan: Plan, key: ApiKey, result: Refused) -> tuple[Plan, Held | Refused]:
        """Try again as holds of the account end; when the time is over, take what is left."""
        found: Held | Refused = result
        turns = self._services.hold_queue.turns(key.account_id, self._settings.holds.in_flight_wait_seconds)
        async with contextlib.aclosing(turns):
            async for _ in turns:
                plan, found = await self._attempt(plan, key, patient=True)
                if isinstance(found, Held) or not self._may_wait(plan, found):
                    return plan, found
        return await self._attempt(plan, key, patient=False)

    def _leave_room(self, plan: Plan, result: Held) -> Plan:
        """Lower our own cap where this hold takes more than its share of what was available."""
        before = result.balance - result.held + self.amount
        enough = usual(plan, self.terms.prices).ceiling.amount if plan.cap_is_ours and self.amount else 0
        if self.amount <= max(before // SHARE, enough) or not enough:
            return plan
        lower = clamped(plan, _share(before, enough), self._settings.holds.min_output_tokens, self.terms.prices)
        if lower is None or lower.ceiling.amount >= self.amount:
            return plan
        self.plan, self.amount = lower, lower.ceiling.amount
        self.input_owed = checkpoint_of(self.facts(lower), self.terms.prices, 0).amount
        self._services.balances.shrink(self.request_id, self.key.account_id, self.amount)
        return lower

    async def _try_hold(self, plan: Plan, key: ApiKey) -> Held | Refused:
        services = self._services
        self.amount = held_amount(plan, free=self.free)
        limits = key_limits(key, self._settings.limits, self.started_ms)
        bounds, checkpoint = plan.bounds, checkpoint_of(self.facts(plan), self.terms.prices, 0)
        self.input_owed = checkpoint.amount
        request = HoldRequest(
            self.request_id,
            key.account_id,
            key.key_id,
            self.amount,
            bounds.input_tokens + bounds.output_tokens,
            self._settings.advanced.hold_lease_seconds * 1_000,
            limits,
            checkpoint.record,
        )
        try:
            return await services.balances.hold(request)
        except StoreUnavailable as error:
            services.metrics.count(services.metrics.store_errors, error.store)
            message = "Your balance cannot be read right now, so nothing was served or charged. Try again shortly."
            raise unavailable(message, "store_unavailable") from None
        except AccountNotFound:
            message = "Your account cannot be read right now. Try again shortly."
            raise unavailable(message, "store_unavailable") from None

    async def resume(self, plan: Plan, key: ApiKey, amount: Millicredits, *, free: bool) -> bool:
        """Take on what another process detached, or make this hold live on; False when the account has nothing left.

        `amount` was held when it began. Where the hold was lost with all processes and the money is spent meanwhile,
        what is left is held and the rest is our loss. Raises StoreUnavailable.
        """
        self._key, self.plan, self.amount, self.free = key, plan, amount, free
        lease_ms = self._settings.advanced.hold_lease_seconds * 1_000
        for _ in range(RESUME_TRIES):
            record = checkpoint_of(self.facts(plan), self.terms.prices, 0).record
            request = HoldRequest(
                self.request_id, key.account_id, key.key_id, self.amount, 0, lease_ms, NO_LIMITS, record
            )
            result = await self._services.balances.hold(request)
            if isinstance(result, Held):
                self.is_open = True
                self._services.open_holds.by_id[self.request_id] = self
                return True
            self.amount = Millicredits(max(0, min(self.amount, result.balance - result.held)))
        self.amount = amount  # the next try begins with all of it
        return False

    def _insufficient(self, plan: Plan, result: Refused, budget: int) -> Rejection:
        """402, with what is needed, what is there and what is affordable."""
        prices = self.terms.prices
        needed = smallest(plan, self._settings.holds.min_output_tokens, prices).ceiling.amount
        affordable = None
        if plan.parsed.choices:
            affordable = affordable_cap(plan, budget, prices)
        source = result.source
        if source != "key_limit":
            source = "in_flight" if result.balance >= needed else "balance"
        self._services.metrics.count(self._services.metrics.insufficient, source)
        retry = 1_000 if source == "in_flight" else None
        limit = None
        if source == "key_limit":
            ends = period_end_ms(self.key.rules.spend_period or "total", self.started_ms)
            limit = KeyLimit(result.key_available, iso_time(ends) if ends is not None else None)
        top_up = self._services.absolute(self._settings.purchases.top_up_url)
        return insufficient_credits(source, needed, result.balance, result.held, affordable, top_up, retry, limit)

    async def wait_persisted(self) -> None:
        """Wait until the hold is on disk: no byte of a paid answer before it is (I3). Raises Rejection."""
        try:
            await self._services.balances.wait_persisted(self.request_id)
        except StoreUnavailable:
            message = "Your balance cannot be written right now. Nothing was charged; try again shortly."
            raise unavailable(message, "store_unavailable") from None

    # -- while it runs ----------------------------------------------------------------------------

    def checkpoint_sent(self) -> None:
        """Tell the store that the request goes out: from here on an orphan owes its input."""
        self.checkpointed_at = self.sent_at = time.monotonic()
        if self.amount:
            self._services.balances.checkpoint(Checkpoint(self.request_id, self.key.account_id, self.input_owed, b""))

    def checkpoint_streamed(self, tokens_out: int) -> None:
        """Tell the store what is owed if we die now, with the output that was streamed so far."""
        self.checkpointed_at = time.monotonic()
        if self.amount:
            facts = self.facts(self.held_plan)
            self._services.balances.checkpoint(checkpoint_of(facts, self.terms.prices, tokens_out))

    def start_shrinking(self, streamed: Callable[[], int]) -> "asyncio.Task[None] | None":
        """Count the input of a large hold that is mostly bytes while the answer streams, and hold only that.

        Bytes over-hold English text about fivefold, which would refuse the account's next requests for no reason.
        `streamed`: output tokens that the client has seen so far.
        """
        plan = self.held_plan
        if self.amount < SHRINK_FROM or self.input_owed * 2 < self.amount:
            return None
        if plan.input_is_counted or plan.endpoint.texts is None:
            return None
        return asyncio.create_task(self._shrink(plan, streamed))

    async def _shrink(self, plan: Plan, streamed: Callable[[], int]) -> None:
        texts, framing = plan.endpoint.texts(plan.parsed.source) if plan.endpoint.texts is not None else ([], 0)
        tokens = framing + await self._services.tokenizer.count(plan.parsed.model, texts)
        counted = with_counted_input(plan, tokens, self.terms.prices)
        if counted.ceiling.amount < self.amount:
            self.plan = counted
            # an orphan owes no more than the hold: first the one, then the other
            self.checkpoint_streamed(streamed())
            self._services.balances.shrink(self.request_id, self.key.account_id, counted.ceiling.amount)

    # -- ends -------------------------------------------------------------------------------------

    async def settle(
        self,
        report: Report,
        observed: ObservedOutput,
        outcome: Outcome,
        head: list[tuple[bytes, bytes]],
        first_byte_ms: int,
    ) -> SettlementDecision:
        """Decide what the answer costs, charge it once, and keep whose its objects are. `head`: upstream's headers."""
        keeps, parsed = self.held_plan.keeps, self.held_plan.parsed
        decision = await self.decide(report, observed, outcome)
        await self.charge(decision, head, first_byte_ms)
        if keeps:
            tenants = self._services.tenants
            await tenants.record_made(self.key.account_id, self.request_id, report, decision.usage, parsed)
        return decision

    async def decide(self, report: Report, observed: ObservedOutput, outcome: Outcome) -> SettlementDecision:
        """Decide what the answer costs, by the terms and the plan it was held under."""
        services, sessions = self._services, 0
        if report.containers:
            sessions = await services.tenants.sessions(self.key.account_id, self.request_id, report.containers)
        return await decide_settlement(
            services, self.terms, self.held_plan, report, observed, outcome, sessions, self.amount
        )

    async def charge(self, decision: SettlementDecision, head: list[tuple[bytes, bytes]], first_byte_ms: int) -> None:
        """Charge, once. `settled` stays None when the store does not answer now: it has queued the charge."""
        services, plan, account_id = self._services, self.held_plan, self.key.account_id
        due = self._due(decision)
        record = usage_record(self.facts(plan, first_byte_ms), decision, free=self.free, head=head)
        used = decision.usage.input_tokens + decision.usage.output_tokens
        self.charged, self.usage = due, decision.usage
        self._close()
        try:
            settled = await services.balances.settle(self.request_id, account_id, due, record, used)
        except StoreUnavailable as error:
            services.metrics.count(services.metrics.store_errors, error.store)
            settled = None
        if account_id in services.hold_queue.waiting:
            services.hold_queue.ended(account_id)
        if isinstance(settled, Settled):
            self.settled, self.charged = settled, settled.charged
            if settled.loss:
                services.log.loss(self.request_id, account_id, settled.loss)
        services.metrics.count_charge(plan.model.name, self.amount, self.charged, decision.usage, decision.source)

    def checkpoint_decided(self, decision: SettlementDecision) -> None:
        """Tell the store the final charge: who finds this hold after a crash books exactly that."""
        record = usage_record(self.facts(self.held_plan), decision, free=self.free, head=[])
        checkpoint = Checkpoint(self.request_id, self.key.account_id, self._due(decision), record)
        self._services.balances.checkpoint(checkpoint)

    def _due(self, decision: SettlementDecision) -> Millicredits:
        return Millicredits(0) if self.free else decision.charge.amount

    async def settle_abandoned(self, tokens_out: int) -> None:
        """Something was streamed and then everything went wrong: charge it as an orphan, by its checkpoint."""
        owed = checkpoint_of(self.facts(self.held_plan), self.terms.prices, tokens_out)
        due = owed.amount if self.amount else Millicredits(0)
        self._close()
        try:
            await self._services.balances.settle(owed.hold_id, owed.account_id, due, owed.record)
        except StoreUnavailable as error:
            self._services.metrics.count(self._services.metrics.store_errors, error.store)

    async def release(self) -> None:
        """Give the money back, if it is still held."""
        if not self.is_open:
            return
        self._close()
        try:
            await self._services.balances.release(self.request_id, self.key.account_id)
        except StoreUnavailable as error:
            self._services.metrics.count(self._services.metrics.store_errors, error.store)
        if self.key.account_id in self._services.hold_queue.waiting:
            self._services.hold_queue.ended(self.key.account_id)

    def detach(self) -> None:
        """Let go of the hold: the request goes on without us, and whoever polls it resumes it."""
        self._services.balances.detach(self.request_id, self.key.account_id)
        self._close()

    async def settle_stray(self) -> None:
        """See OpenHold: its input is owed once it went upstream."""
        if self.is_open and self.sent_at:
            await self.settle_abandoned(0)
        else:
            await self.release()

    def _close(self) -> None:
        self.is_open = False
        self._services.open_holds.by_id.pop(self.request_id, None)


def _share(budget: int, enough: int) -> int:
    """Part of what is available that our own cap may take, so that others find some: not less than what is usual."""
    return min(budget, max(budget // SHARE, enough))


def held_amount(plan: Plan, *, free: bool) -> Millicredits:
    """Ceiling, or nothing while charging is off."""
    return Millicredits(0) if free or plan.endpoint.free else plan.ceiling.amount


def key_limits(key: ApiKey, defaults: Limits, now_ms: int) -> KeyLimits:
    """Key's limits, the operator's defaults where it names none."""
    rules = key.rules
    own = (rules.spend_limit, rules.requests_per_minute, rules.tokens_per_minute, rules.concurrency)
    if own == UNLIMITED and not (defaults.requests_per_minute or defaults.tokens_per_minute or defaults.concurrency):
        return NO_LIMITS
    return KeyLimits(
        spend_limit=rules.spend_limit,
        period=period_name(rules.spend_period or "total", now_ms),
        requests_per_minute=_either(rules.requests_per_minute, defaults.requests_per_minute),
        tokens_per_minute=_either(rules.tokens_per_minute, defaults.tokens_per_minute),
        concurrency=_either(rules.concurrency, defaults.concurrency),
    )


def _either(own: int | None, default: int) -> int:
    return default if own is None else own


def _limited(result: Refused) -> Rejection:
    """429 of one of the key's rates."""
    if result.source == "concurrency":
        return too_many(
            "Too many requests of this key are in flight. Wait for one to finish.",
            "concurrency_limit_exceeded",
            result.retry_after_ms,
        )
    unit = "requests" if result.source == "requests_per_minute" else "tokens"
    again = f"Try again in {result.retry_after_ms / 1000:.1f}s."
    message = f"Rate limit reached for {unit} per minute of this API key. {again}"
    return too_many(message, "rate_limit_exceeded", result.retry_after_ms)
