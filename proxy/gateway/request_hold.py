"""The money of one request, over HTTP, on a socket or in the background: hold, checkpoint, then settle or release.

    hold ──▶ open ──settle────────────▶ charged what the answer cost, by one decision (settlement.py)
              │  ──settle_abandoned───▶ charged its checkpoint: something was streamed and then everything went wrong
              │  ──release────────────▶ nothing is charged
              └──detach───────────────▶ another process takes it on by `resume`, with the same id (background responses,
                                        batches); of several that do, the one that notes its end charges it

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
from billing.money.holds import MINUTE_US, Checkpoint, Gone, Held, HoldRequest, KeyLimits, Refused, Settled
from billing.money.usage import Usage
from billing.money.usage_record import Outcome
from proxy.gateway.admission import NO_LIMITS, over_limit
from proxy.gateway.answers.report import Report
from proxy.gateway.callers.labels import NO_LABELS
from proxy.gateway.limits.affordable import clamped, share_of, smallest, usual
from proxy.gateway.limits.free_calls import limits_for
from proxy.gateway.limits.standing import CANNOT_READ, short_for, short_of_money
from proxy.gateway.plan import Plan, held_amount
from proxy.gateway.services import PricingTerms, Services
from proxy.gateway.settlement import (
    ObservedOutput,
    SettlementDecision,
    counted_plan,
    decide_settlement,
    is_worth_counting,
)
from proxy.gateway.upstream.route import Served
from proxy.gateway.upstream.tenants import ALL_RESERVED, ConversationShare
from proxy.gateway.usage_rows import RequestFacts, checkpoint_of, usage_record
from proxy.web.rejections import unavailable

HOLD_TRIES = 3
SHRINK_FROM = 100_000
"""Millicredits ($0.10): smaller holds are not worth a tokenizer's time."""
NO_USAGE = Usage()


class RequestHold:
    """One hold and its end. Amounts are millicredits.

    `checkpointed_at` is when the store was last told what is owed, `sent_at` when the request went upstream (both
    monotonic seconds); `told` is who serves it by its record. `unowned`: ids that nobody may see (I8); `model`: the
    name that is asked for, "" before anything is held.
    """

    key: ApiKey
    """The key that is charged. Only from `hold` or `resume` on, as `plan`."""
    plan: Plan
    """What it is held for, clamped or counted since."""

    __slots__ = (
        "_rated",
        "_services",
        "_settings",
        "amount",
        "charged",
        "checkpointed_at",
        "free",
        "input_owed",
        "is_open",
        "key",
        "labels",
        "model",
        "owner",
        "plan",
        "request_id",
        "sent_at",
        "served",
        "settled",
        "share",
        "started",
        "started_ms",
        "terms",
        "told",
        "unowned",
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
        served: Served | None = None,
    ) -> None:
        """Nothing is held yet. `request_id` is hold id and charge id too; `owner` lives as long as it may be open.

        `terms` are those at the upstream that it is `served` by. `started_ms` is Unix, `started` monotonic seconds.
        """
        self._services, self.terms, self.request_id = services, terms, request_id
        self.started_ms, self.started = started_ms, started
        self._settings = services.settings  # what a request begins under, it ends under
        self._rated = (0, 0)  # tokens that a minute of the key was asked for, and how many one has
        self.owner = owner
        self.served = self.told = served or services.upstreams.served
        self.model = ""
        self.free = self.is_open = False
        self.amount = self.input_owed = Millicredits(0)
        self.charged = 0
        self.usage = NO_USAGE
        self.settled: Settled | None = None
        self.share: ConversationShare | None = None
        self.labels, self.unowned = NO_LABELS, tuple[str, ...]()
        self.checkpointed_at = self.sent_at = 0.0

    def facts(self, plan: Plan, first_byte_ms: int = 0) -> RequestFacts:
        """Facts for the request's rows."""
        times = (self.started_ms, first_byte_ms, round((time.monotonic() - self.started) * 1_000))
        return RequestFacts(self.request_id, self.key, plan, self.amount, *times, self.served, self.labels)

    # -- holding ----------------------------------------------------------------------------------

    async def hold(self, plan: Plan, key: ApiKey, *, free: bool, wait: bool = True) -> Plan:
        """Hold the worst case by bytes; where money is short count tokens, then clamp, then wait a moment for others.

        `free`: see admission.admit; `wait`: for others. Raises Rejection (402, 429, 503).
        """
        self.key, self.free = key, free
        plan, result = await self._attempt(plan, key, patient=True)
        if isinstance(result, Refused) and wait and self._may_wait(plan, result):
            plan, result = await self._wait_for_others(plan, key, result)
        if isinstance(result, Refused):
            limits = limits_for(plan, key, self._settings.limits, self.started_ms)
            raise short_for(self._services, self._settings, key, limits, (plan, self.terms.prices), result)
        self.is_open, self.plan, self.model = True, plan, plan.parsed.model
        self._services.open_holds.by_id[self.request_id] = self
        if plan.endpoint.free and not free and result.balance <= 0:  # free for customers, not for everybody
            await self.release()
            refused = Refused("balance", result.balance, result.held)
            raise short_of_money(self._services, self._settings, NO_LIMITS, refused, 1, key=key)
        plan = self._leave_room(plan, result)
        if plan.parsed.conversation:
            await self._reserve_conversation(plan)
        return plan

    async def _reserve_conversation(self, plan: Plan) -> None:
        """Count what the request can add to its conversation. Raises Rejection; then nothing is held."""
        try:
            self.share = await self._services.tenants.reserve(plan.parsed, plan.conversation, plan.most_added)
        except BaseException:
            await self.release()
            raise

    async def _attempt(self, plan: Plan, key: ApiKey, *, patient: bool) -> tuple[Plan, Held | Refused]:
        """Try; where money is short count the tokens and lower our own cap, and try again.

        `patient`: rather than to a shorter answer than usual it comes to a refusal while others hold. Raises Rejection
        for other limits.
        """
        prices, tries = self.terms.prices, 0
        while True:
            result = await self._try_hold(plan, key)
            tries += 1
            if isinstance(result, Held):
                return plan, result
            if result.source not in ("balance", "in_flight", "key_limit"):
                raise over_limit(result)
            budget = result.key_available if result.source == "key_limit" else result.balance - result.held
            if is_worth_counting(plan, budget, prices):
                plan = await counted_plan(self._services.tokenizer, plan, prices)
            if tries == HOLD_TRIES:
                return plan, result
            if plan.ceiling.amount > budget:
                enough = usual(plan, prices).ceiling.amount
                if patient and plan.cap_is_ours and result.held and enough > budget and result.source != "key_limit":
                    return plan, result
                lower = clamped(plan, share_of(budget, enough), self._settings.holds.min_output_tokens, prices)
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
        if not plan.cap_is_ours or not self.amount:
            return plan
        before = result.balance - result.held + self.amount
        enough = usual(plan, self.terms.prices).ceiling.amount
        if self.amount <= share_of(before, enough) or not enough:
            return plan
        lower = clamped(plan, share_of(before, enough), self._settings.holds.min_output_tokens, self.terms.prices)
        if lower is None or lower.ceiling.amount >= self.amount:
            return plan
        self.plan, self.amount = lower, lower.ceiling.amount
        self.input_owed = checkpoint_of(self.facts(lower), self.terms.prices, 0).amount
        self._services.balances.shrink(self.request_id, self.key.account_id, self.amount)
        return lower

    async def _try_hold(self, plan: Plan, key: ApiKey) -> Held | Refused:
        services = self._services
        self.amount = held_amount(plan, free=self.free)
        limits = limits_for(plan, key, self._settings.limits, self.started_ms)
        bounds, checkpoint = plan.bounds, checkpoint_of(self.facts(plan), self.terms.prices, 0)
        self.input_owed = checkpoint.amount
        request = self._asked(key, bounds.input_tokens + bounds.output_tokens, limits, checkpoint.record)
        try:
            result = await services.balances.hold(request)
        except StoreUnavailable as error:
            services.metrics.count(services.metrics.store_errors, error.store)
            raise unavailable(CANNOT_READ, "store_unavailable") from None
        except AccountNotFound:
            message = "Your account cannot be read right now. Try again shortly."
            raise unavailable(message, "store_unavailable") from None
        if limits.requests_per_minute or limits.tokens_per_minute:
            services.rates.remember(key.key_id, result.leads)
            self._rated = (request.tokens, limits.tokens_per_minute)
        return result

    def _asked(self, key: ApiKey, tokens: int, limits: KeyLimits, record: bytes) -> HoldRequest:
        lease_ms, ids = self._settings.advanced.hold_lease_seconds * 1_000, (key.account_id, key.key_id)
        return HoldRequest(self.request_id, *ids, self.amount, tokens, lease_ms, limits, record)

    async def resume(self, plan: Plan, key: ApiKey, amount: Millicredits, *, free: bool) -> bool:
        """Take on what another process detached, or make this hold live on; False when the account has nothing left, or
        another process has resolved it.

        `amount` was held when it began. Where the hold was lost with all processes and the money is spent meanwhile,
        what is left is held and the rest is our loss. Raises StoreUnavailable.
        """
        self.key, self.amount, self.free = key, amount, free
        self.plan, self.model = plan, plan.parsed.model
        for _ in range(HOLD_TRIES):
            record = checkpoint_of(self.facts(plan), self.terms.prices, 0).record
            result = await self._services.balances.resume(self._asked(key, 0, NO_LIMITS, record))
            if isinstance(result, Held):
                self.is_open = True
                self._services.open_holds.by_id[self.request_id] = self
                return True
            if isinstance(result, Gone):
                break
            self.amount = Millicredits(max(0, min(self.amount, result.balance - result.held)))
        self.amount = amount  # the next try begins with all of it
        return False

    async def wait_persisted(self) -> None:
        """Wait until an orphan of it would be charged: no byte of a paid answer before (I3). Raises Rejection."""
        try:
            await self._services.balances.wait_persisted(self.request_id)
        except StoreUnavailable:
            message = "Your balance cannot be written right now. Nothing was charged; try again shortly."
            raise unavailable(message, "store_unavailable") from None

    # -- while it runs ----------------------------------------------------------------------------

    def checkpoint_sent(self, *, at_once: bool = False) -> None:
        """Tell the store that the request goes out: from here on an orphan owes its input.

        `at_once` where nothing waits until it is persisted before output is shown: on a socket, in a call.
        """
        self.checkpointed_at = time.monotonic()
        self.sent_at = self.sent_at or self.checkpointed_at
        if self.amount:
            retold = self.served != self.told
            record = checkpoint_of(self.facts(self.plan), self.terms.prices, 0).record if retold else b""
            self.told = self.served
            sent = Checkpoint(self.request_id, self.key.account_id, self.input_owed, record)
            self._services.balances.checkpoint(sent, at_once=at_once)

    def checkpoint_streamed(self, tokens_out: int) -> None:
        """Tell the store what is owed if we die now, with the output that was streamed so far."""
        self.checkpointed_at = time.monotonic()
        if self.amount:
            facts = self.facts(self.plan)
            self._services.balances.checkpoint(checkpoint_of(facts, self.terms.prices, tokens_out))

    def start_shrinking(self, streamed: Callable[[], int]) -> "asyncio.Task[None] | None":
        """Count the input of a large hold that is mostly bytes while the answer streams, and hold only that.

        Bytes over-hold English text about fivefold, which would refuse the account's next requests for no reason.
        `streamed`: output tokens that the client has seen so far.
        """
        plan = self.plan
        if self.amount < SHRINK_FROM or self.input_owed * 2 < self.amount:
            return None
        if not is_worth_counting(plan, self.amount, self.terms.prices):
            return None
        return asyncio.create_task(self._shrink(plan, streamed))

    async def _shrink(self, plan: Plan, streamed: Callable[[], int]) -> None:
        counted = await counted_plan(self._services.tokenizer, plan, self.terms.prices)
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
        plan = self.plan
        decision = await self.decide(report, observed, outcome)
        await self.charge(decision, head, first_byte_ms)
        if report.sounds:
            most = decision.usage.output_tokens if decision.source == "upstream" else plan.bounds.output_tokens
            made = (self.key.account_id, self.request_id, report.sounds, most, self.served.upstream)
            self.unowned += await self._services.tenants.record_sounds(*made)
        if plan.keeps:
            self.unowned += await self.record_made(report, decision)
            await self.correct_share(decision)
        return decision

    async def record_made(self, report: Report, decision: SettlementDecision) -> tuple[str, ...]:
        """Keep whose its objects are, and how much of them a later request reads; return the ids that nobody owns."""
        plan, usage, tenants = self.plan, decision.usage, self._services.tenants
        made = (report, usage, plan.parsed, plan.endpoint.makes, self.served.upstream)
        kept = plan.kept_tokens(usage.total_tokens)
        return await tenants.record_made(self.key.account_id, self.request_id, *made, kept=kept)

    async def correct_share(self, decision: SettlementDecision) -> None:
        """Correct what was reserved in the conversation by what upstream says that was read and written."""
        used, drawn = decision.usage.total_tokens, decision.report.drawn
        known = decision.source == "upstream" and self.plan.kept_tokens(used) == used
        await self._end_share(used if known else ALL_RESERVED, drawn)

    async def _end_share(self, actual: int, drawn: int = 0) -> None:
        if self.share is not None:
            await self._services.tenants.end_share(self.share, actual, self.plan.parsed.model, drawn)

    async def decide(self, report: Report, observed: ObservedOutput, outcome: Outcome) -> SettlementDecision:
        """Decide what the answer costs, by the terms and the plan it was held under."""
        services, tenants = self._services, self._services.tenants
        sessions = 0
        if report.containers:
            sessions, unowned = await tenants.sessions(self.key.account_id, self.request_id, report.containers)
            self.unowned += unowned
        seen = (report, observed, outcome)
        return await decide_settlement(services, self.terms, self.plan, *seen, sessions, self.amount)

    async def charge(self, decision: SettlementDecision, head: list[tuple[bytes, bytes]], first_byte_ms: int) -> None:
        """Charge, once. `settled` stays None when the store does not answer now: it has queued the charge."""
        services, plan, account_id = self._services, self.plan, self.key.account_id
        due = self._due(decision)
        record = usage_record(self.facts(plan, first_byte_ms), decision, free=self.free, head=head)
        used = decision.usage.total_tokens
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
            self._give_back_rate(used)
            self.settled, self.charged = settled, settled.charged
            if settled.loss:
                services.log.loss(self.request_id, account_id, settled.loss)
        services.metrics.count_charge(plan.model.name, self.amount, self.charged, decision.usage, decision.source)

    async def checkpoint_decided(self, decision: SettlementDecision) -> None:
        """Tell the store the final charge: who finds this hold after a crash books exactly that (StoreUnavailable)."""
        record = usage_record(self.facts(self.plan), decision, free=self.free, head=[])
        balances = self._services.balances
        decided = Checkpoint(self.request_id, self.key.account_id, self._due(decision), record)
        balances.checkpoint(decided, at_once=True)
        await balances.wait_persisted(self.request_id)

    def _due(self, decision: SettlementDecision) -> Millicredits:
        return Millicredits(0) if self.free else decision.charge.amount

    async def settle_abandoned(self, tokens_out: int) -> None:
        """Something was streamed and then everything went wrong: charge it as an orphan, by its checkpoint."""
        owed = checkpoint_of(self.facts(self.plan), self.terms.prices, tokens_out)
        due = owed.amount if self.amount else Millicredits(0)
        self._close()
        try:
            await self._services.balances.settle(owed.hold_id, owed.account_id, due, owed.record)
            await self._end_share(ALL_RESERVED)
        except StoreUnavailable as error:
            self._services.metrics.count(self._services.metrics.store_errors, error.store)

    async def release(self, *, refused: bool = False) -> None:
        """Give the money back, if it is still held. `refused`: upstream said that nothing came of it."""
        if not self.is_open:
            return
        self._close()
        try:
            await self._services.balances.release(self.request_id, self.key.account_id)
            self._give_back_rate(0)
        except StoreUnavailable as error:
            self._services.metrics.count(self._services.metrics.store_errors, error.store)
        await self._end_share(0 if refused or not self.sent_at else ALL_RESERVED)
        if self.key.account_id in self._services.hold_queue.waiting:
            self._services.hold_queue.ended(self.key.account_id)

    def detach(self) -> None:
        """Let go of the hold: the request goes on without us, and whoever polls it resumes it."""
        self._services.balances.detach(self.request_id, self.key.account_id)
        self._close()

    def forget(self) -> None:
        """Leave the hold to another process that has taken it on as well, and ends it."""
        self._services.balances.forget(self.request_id)
        self._close()

    async def settle_stray(self) -> None:
        """See OpenHold: its input is owed once it went upstream."""
        if self.is_open and self.sent_at:
            await self.settle_abandoned(0)
        else:
            await self.release()

    def _give_back_rate(self, used: int) -> None:
        """Note that the store gave the key's minute what was not used of the tokens held for."""
        tokens, per_minute = self._rated
        if per_minute and tokens > used:
            self._services.rates.give_back(self.key.key_id, (tokens - used) * MINUTE_US // per_minute)

    def _close(self) -> None:
        self.is_open = False
        self._services.open_holds.by_id.pop(self.request_id, None)
