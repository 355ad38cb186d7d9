"""The money of one request: hold, note, settle or release. Every hold made here is resolved here, once."""

import time

from billing.ledger.accounts import ApiKey
from billing.money.amounts import Millicredits
from billing.money.errors import AccountNotFound, StoreUnavailable
from billing.money.holds import Checkpoint, Held, HoldRequest, Refused, Settled
from billing.money.pricing import PriceBook
from billing.money.spend_periods import period_end_ms
from billing.money.usage import Usage
from proxy.gateway.admission import is_free
from proxy.gateway.plan import Plan, checkpoint_charge, clamped, held_amount, key_limits, smallest, with_counted_input
from proxy.gateway.services import Services
from proxy.gateway.settlement import Ending
from proxy.gateway.usage_rows import Facts, orphan_record, usage_record
from proxy.web.rejections import KeyLimit, Rejection, insufficient_credits, too_many, unavailable
from proxy.web.times import iso_time

HOLD_TRIES = 3
NO_USAGE = Usage()


class Holding:
    """One hold and what becomes of it. Amounts are millicredits.

    `marked_at` is when it was last noted what is owed, `sent_at` when the request went upstream (both monotonic
    seconds).
    """

    __slots__ = (
        "_key",
        "_prices",
        "_request_id",
        "_services",
        "_settings",
        "_started_ms",
        "amount",
        "charged",
        "free",
        "holding",
        "input_owed",
        "marked_at",
        "sent_at",
        "usage",
    )

    def __init__(self, services: Services, prices: PriceBook, request_id: str, started_ms: int) -> None:
        """Nothing is held yet."""
        self._services, self._prices, self._request_id, self._started_ms = services, prices, request_id, started_ms
        self._settings = services.settings  # what a request begins under, it ends under
        self.free = False
        self._key: ApiKey | None = None
        self.amount = self.input_owed = Millicredits(0)
        self.charged = 0
        self.usage = NO_USAGE
        self.holding = False
        self.marked_at = self.sent_at = 0.0

    @property
    def key(self) -> ApiKey:
        """The key that is charged. Only after `hold`."""
        if self._key is None:
            raise RuntimeError("nothing was held")
        return self._key

    def facts(self, plan: Plan, first_byte_ms: int = 0, elapsed_ms: int = 0) -> Facts:
        """What the request's rows say of it."""
        return Facts(self._request_id, self.key, plan, self.amount, self._started_ms, first_byte_ms, elapsed_ms)

    async def hold(self, plan: Plan, key: ApiKey) -> Plan:
        """Hold the worst case by bytes; where money is short count tokens, then clamp.

        Raises Rejection (402, 429, 503).
        """
        self._key, self.free = key, is_free(self._settings, key.account_id)
        services, holds = self._services, self._settings.holds
        counted, tries = False, 0
        while True:
            result = await self._try_hold(plan, key)
            tries += 1
            if isinstance(result, Held):
                self.holding = True
                return plan
            if result.source not in ("balance", "in_flight", "key_limit"):
                raise self._limited(result)
            budget = result.key_available if result.source == "key_limit" else result.balance - result.held
            if not counted and plan.endpoint.texts is not None:
                counted = True
                texts, framing = plan.endpoint.texts(plan.parsed.source)
                tokens = framing + await services.tokenizer.count(plan.parsed.model, texts)
                plan = with_counted_input(plan, tokens, self._prices)
            if tries == HOLD_TRIES:
                raise self._insufficient(plan, result, budget)
            if plan.ceiling.amount > budget:
                lower = clamped(plan, budget, holds.min_output_tokens, self._prices)
                if lower is None:
                    raise self._insufficient(plan, result, budget)
                plan = lower

    async def _try_hold(self, plan: Plan, key: ApiKey) -> Held | Refused:
        services = self._services
        self.amount = held_amount(plan, free=self.free)
        bounds, owed = plan.bounds, checkpoint_charge(plan, self._prices, 0)
        self.input_owed = owed.amount
        request = HoldRequest(
            self._request_id,
            key.account_id,
            key.key_id,
            self.amount,
            bounds.input_tokens + bounds.output_tokens,
            self._settings.advanced.hold_lease_seconds * 1_000,
            key_limits(key, self._settings.limits, self._started_ms),
            orphan_record(self.facts(plan), owed, 0),
        )
        try:
            return await services.balances.hold(request)
        except StoreUnavailable as error:
            services.metrics.count(services.metrics.store_errors, error.store)
            raise unavailable(
                "Your balance cannot be read right now, so nothing was served or charged. Try again shortly.",
                "store_unavailable",
            ) from None
        except AccountNotFound:
            raise unavailable(
                "Your account cannot be read right now. Try again shortly.", "store_unavailable"
            ) from None

    @staticmethod
    def _limited(result: Refused) -> Rejection:
        if result.source == "concurrency":
            return too_many(
                "Too many requests of this key are in flight. Wait for one to finish.",
                "concurrency_limit_exceeded",
                result.retry_after_ms,
            )
        unit = "requests" if result.source == "requests_per_minute" else "tokens"
        message = f"Rate limit reached for {unit} per minute of this API key. Try again in {result.retry_after_ms / 1000:.1f}s."
        return too_many(message, "rate_limit_exceeded", result.retry_after_ms)

    def _insufficient(self, plan: Plan, result: Refused, budget: int) -> Rejection:
        prices = self._prices
        needed = smallest(plan, self._settings.holds.min_output_tokens, prices).ceiling.amount
        affordable = None
        if plan.parsed.choices:
            affordable = max(
                0, prices.affordable_output(plan.model, plan.tier, plan.bounds, budget) - plan.parsed.extra_output
            )
            affordable //= plan.parsed.choices
        source = result.source
        if source != "key_limit":
            source = "in_flight" if result.balance >= needed else "balance"
        self._services.metrics.count(self._services.metrics.insufficient, source)
        retry = 1_000 if source == "in_flight" else None
        limit = None
        if source == "key_limit":
            ends = period_end_ms(self.key.rules.spend_period or "total", self._started_ms)
            limit = KeyLimit(result.key_available, iso_time(ends) if ends is not None else None)
        return insufficient_credits(
            source,
            needed,
            result.balance,
            result.held,
            affordable,
            self._services.absolute(self._settings.purchases.top_up_url),
            retry,
            limit,
        )

    async def durable(self) -> None:
        """No byte of a paid answer before its hold is on disk. Raises Rejection when that cannot be."""
        try:
            await self._services.balances.durable(self._request_id)
        except StoreUnavailable:
            raise unavailable(
                "Your balance cannot be written right now. Nothing was charged; try again shortly.", "store_unavailable"
            ) from None

    def hand_over(self) -> None:
        """The request goes on without us: whoever polls it takes the hold on."""
        self._services.balances.hand_over(self._request_id, self.key.account_id)
        self.holding = False

    async def settle(
        self, plan: Plan, ending: Ending, head: list[tuple[bytes, bytes]], first_byte_ms: int, elapsed_ms: int
    ) -> Settled | None:
        """Charge, once. None when the store does not answer now: it has queued the charge and will deliver it."""
        services, key = self._services, self.key
        due = Millicredits(0) if self.free else ending.charge.amount
        record = usage_record(self.facts(plan, first_byte_ms, elapsed_ms), ending, free=self.free, head=head)
        used = ending.usage.input_tokens + ending.usage.output_tokens
        self.charged, self.usage = due, ending.usage
        self.holding = False
        try:
            settled = await services.balances.settle(self._request_id, key.account_id, due, record, used)
        except StoreUnavailable as error:
            services.metrics.count(services.metrics.store_errors, error.store)
            settled = None
        if isinstance(settled, Settled):
            self.charged = settled.charged
            if settled.loss:
                services.log.loss(self._request_id, key.account_id, settled.loss)
        services.metrics.metered(plan.model.name, self.amount, self.charged, ending.usage, ending.source)
        return settled if isinstance(settled, Settled) else None

    async def settle_as_orphan(self, plan: Plan, tokens_out: int) -> None:
        """Something was shown and then everything went wrong: charge what an orphan would owe, its input and what was
        shown.
        """
        charge = checkpoint_charge(plan, self._prices, tokens_out)
        record = orphan_record(self.facts(plan), charge, tokens_out)
        due = charge.amount if self.amount else Millicredits(0)
        self.holding = False
        try:
            await self._services.balances.settle(self._request_id, self.key.account_id, due, record)
        except StoreUnavailable as error:
            self._services.metrics.count(self._services.metrics.store_errors, error.store)

    async def release(self) -> None:
        """Give the money back, if it is still held."""
        if not self.holding:
            return
        self.holding = False
        try:
            await self._services.balances.release(self._request_id, self.key.account_id)
        except StoreUnavailable as error:
            self._services.metrics.count(self._services.metrics.store_errors, error.store)

    def mark_sent(self) -> None:
        """The request is about to be written: from here on the upstream works for it, and an orphan owes its input."""
        self.marked_at = self.sent_at = time.monotonic()
        if self.amount:
            self._services.balances.checkpoint(Checkpoint(self._request_id, self.key.account_id, self.input_owed, b""))

    def mark_shown(self, plan: Plan, tokens_out: int) -> None:
        """Note what we would be owed if we died now, with the output that was shown so far."""
        self.marked_at = time.monotonic()
        if self.amount:
            charge = checkpoint_charge(plan, self._prices, tokens_out)
            record = orphan_record(self.facts(plan), charge, tokens_out)
            self._services.balances.checkpoint(Checkpoint(self._request_id, self.key.account_id, charge.amount, record))
