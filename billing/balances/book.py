"""The rules of holds in memory: what the embedded store runs on. Pure: no I/O, no clock of its own.

The states stand at the head of billing/money/holds.py; lua/*.lua is the same in Redis.
"""

from dataclasses import dataclass, field

from billing.money.amounts import Millicredits, millicredits
from billing.money.holds import (
    MINUTE_US,
    NO_LEADS,
    Budget,
    Checkpoint,
    Gone,
    Held,
    HoldRequest,
    KeyLimits,
    Leads,
    RefusalSource,
    Refused,
    Settled,
)

MOST_ENDED = 10_000


@dataclass(slots=True)
class Hold:
    """A pending hold."""

    hold_id: str
    account_id: str
    key_id: str
    amount: Millicredits
    tokens: int
    tokens_per_minute: int
    limited: bool
    budgets: tuple[tuple[str, str], ...]  # (scope, period) of each that it is held from
    since_ms: int
    expires_ms: int
    checkpoint: Millicredits
    record: bytes
    resumed: bool = False


@dataclass(slots=True)
class AccountState:
    """One account's figures and its live holds' total."""

    balance: int
    held: int
    sequence: int


@dataclass(slots=True)
class KeyState:
    """Use of a limited key, last at `used_ms`. `*_tat_us`: GCRA's theoretical arrival times of its minute buckets."""

    inflight: int = 0
    request_tat_us: int = 0
    token_tat_us: int = 0
    used_ms: int = 0


@dataclass(slots=True)
class BudgetState:
    """Millicredits charged in a budget's running period, and those held from it; last at `used_ms`."""

    period: str
    spent: int
    held: int = 0
    used_ms: int = 0


@dataclass(slots=True)
class Book:
    """All accounts, keys and holds of one process. Times are milliseconds of any one clock."""

    accounts: dict[str, AccountState] = field(default_factory=dict)
    keys: dict[str, KeyState] = field(default_factory=dict)
    budgets: dict[str, BudgetState] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    ended: dict[str, None] = field(default_factory=dict)
    """The last holds that were resolved after they had been taken on again."""

    def hold(self, request: HoldRequest, now_ms: int) -> Held | Refused:
        """Admit if limits and available allow. The account (of a limited key: it and its budgets) must be loaded."""
        account = self.accounts[request.account_id]
        if request.hold_id in self.holds:
            return Held(account.balance, account.held)
        refusal = self._refusal(request, account, now_ms)
        if refusal:
            return refusal
        limits, leads, budgets = request.limits, NO_LEADS, tuple[tuple[str, str], ...]()
        if limits.any:
            budgets, leads = self._take_key(request, now_ms), _leads(limits, self.keys[request.key_id], now_ms)
        account.held = millicredits(account.held + request.amount)
        self.holds[request.hold_id] = Hold(
            request.hold_id,
            request.account_id,
            request.key_id,
            request.amount,
            request.tokens,
            limits.tokens_per_minute,
            limits.any,
            budgets,
            now_ms,
            now_ms + request.lease_ms,
            Millicredits(0),
            request.record,
        )
        return Held(account.balance, account.held, leads)

    def look(self, request: HoldRequest, now_ms: int) -> Refused | None:
        """Return why `hold` would refuse now; nothing changes. The account (and a limited key) must be loaded."""
        return self._refusal(request, self.accounts[request.account_id], now_ms)

    def resume(self, request: HoldRequest, now_ms: int) -> Held | Refused | Gone:
        """Take a hold on again, or make it anew; Gone once it was resolved by who had taken it on."""
        if request.hold_id in self.ended:
            account = self.accounts[request.account_id]
            return Gone(account.balance, account.held)
        result = self.hold(request, now_ms)
        if isinstance(result, Held):
            self.holds[request.hold_id].resumed = True
        return result

    def settle(self, hold_id: str, account_id: str, due: Millicredits, tokens: int | None = None) -> Settled | Gone:
        """Resolve a hold with `due` millicredits; `tokens` corrects the tokens-per-minute estimate."""
        account = self.accounts[account_id]
        hold = self.holds.pop(hold_id, None)
        if hold is None:
            return Gone(account.balance, account.held)
        if hold.resumed:
            self._remember_end(hold_id)
        available = account.balance - account.held
        charged = min(due, hold.amount + max(0, available))
        account.balance = millicredits(account.balance - charged)
        account.held = millicredits(account.held - hold.amount)
        if hold.limited:
            self._settle_key(hold, charged, tokens)
        return Settled(charged, due - charged, account.balance, account.held)

    def _remember_end(self, hold_id: str) -> None:
        self.ended[hold_id] = None
        if len(self.ended) > MOST_ENDED:
            del self.ended[next(iter(self.ended))]

    def mark(self, mark: Checkpoint) -> bool:
        """Remember what an orphan would be charged (never more than the hold: I2); False when the hold is gone."""
        hold = self.holds.get(mark.hold_id)
        if hold is None:
            return False
        hold.checkpoint = Millicredits(min(mark.amount, hold.amount))
        hold.record = mark.record or hold.record
        return True

    def shrink(self, hold_id: str, amount: Millicredits) -> bool:
        """Lower a hold, not below its checkpoint; False when it is gone or not larger."""
        hold = self.holds.get(hold_id)
        if hold is None:
            return False
        less = hold.amount - max(amount, hold.checkpoint)
        if less <= 0:
            return False
        hold.amount = millicredits(hold.amount - less)
        account = self.accounts[hold.account_id]
        account.held = millicredits(account.held - less)
        for scope, _ in hold.budgets:
            self.budgets[scope].held -= less
        return True

    def credit(self, account_id: str, sequence: int, delta: Millicredits) -> bool:
        """Apply outbox row `sequence`; True when applied now or before, False on a gap."""
        account = self.accounts[account_id]
        if sequence <= account.sequence:
            return True
        if sequence != account.sequence + 1:
            return False
        account.balance = millicredits(account.balance + delta)
        account.sequence = sequence
        return True

    def forget_unused(self, since_ms: int) -> None:
        """Forget counts that nothing is held from and that were not used since a time. SQL must have all of them."""
        for scope in [scope for scope, one in self.budgets.items() if not one.held and one.used_ms < since_ms]:
            del self.budgets[scope]
        for key_id in [key_id for key_id, one in self.keys.items() if not one.inflight and one.used_ms < since_ms]:
            del self.keys[key_id]

    def _refusal(self, request: HoldRequest, account: AccountState, now_ms: int) -> Refused | None:
        limits = request.limits
        if limits.any and (refusal := self._check_key(request, account, now_ms)):
            return refusal
        if not request.amount or account.balance - account.held >= request.amount:
            return None
        source: RefusalSource = "in_flight" if account.balance >= request.amount else "balance"
        leads = _leads(limits, self.keys[request.key_id], now_ms) if limits.any else NO_LEADS
        return Refused(source, account.balance, account.held, leads=leads)

    def _check_key(self, request: HoldRequest, account: AccountState, now_ms: int) -> Refused | None:
        limits, key = request.limits, self.keys[request.key_id]

        def refuse(source: RefusalSource, *, retry_ms: int = 0, left: int = 0) -> Refused:
            return Refused(source, account.balance, account.held, left, retry_ms, _leads(limits, key, now_ms))

        if limits.concurrency and key.inflight >= limits.concurrency:
            return refuse("concurrency", retry_ms=1_000)
        if limits.requests_per_minute:
            wait_us = (
                max(key.request_tat_us, now_ms * 1_000)
                + MINUTE_US // limits.requests_per_minute
                - MINUTE_US
                - now_ms * 1_000
            )
            if wait_us > 0:
                return refuse("requests_per_minute", retry_ms=-(-wait_us // 1_000))
        if limits.tokens_per_minute:
            wait_us = (
                max(key.token_tat_us, now_ms * 1_000)
                + _token_cost_us(request.tokens, limits)
                - MINUTE_US
                - now_ms * 1_000
            )
            if wait_us > 0:
                return refuse("tokens_per_minute", retry_ms=-(-wait_us // 1_000))
        left, place = min(((self._left(one), place) for place, one in enumerate(limits.budgets)), default=(None, 0))
        if left is not None and left < request.amount:
            return refuse("key_limit", left=left)._replace(budget=place)
        return None

    def _left(self, budget: Budget) -> int:
        """Return what a budget leaves. What was held in the period before is still held."""
        state = self.budgets[budget.scope]
        return budget.limit - (state.spent if budget.period <= state.period else 0) - state.held

    def _take_key(self, request: HoldRequest, now_ms: int) -> tuple[tuple[str, str], ...]:
        """Count a request in; return the budgets that it is held from, each with its period, which never goes back."""
        limits, key = request.limits, self.keys[request.key_id]
        for budget in limits.budgets:
            state = self.budgets[budget.scope]
            if budget.period > state.period:
                state.period, state.spent = budget.period, 0
            state.held += request.amount
        key.inflight += 1
        if limits.requests_per_minute:
            key.request_tat_us = max(key.request_tat_us, now_ms * 1_000) + MINUTE_US // limits.requests_per_minute
        if limits.tokens_per_minute:
            key.token_tat_us = max(key.token_tat_us, now_ms * 1_000) + _token_cost_us(request.tokens, limits)
        return tuple((budget.scope, self.budgets[budget.scope].period) for budget in limits.budgets)

    def _settle_key(self, hold: Hold, charged: int, tokens: int | None) -> None:
        key = self.keys[hold.key_id]
        for scope, period in hold.budgets:
            state = self.budgets[scope]
            state.held -= hold.amount
            if state.period == period:
                state.spent += charged
        key.inflight -= 1
        if tokens is not None and hold.tokens_per_minute:
            key.token_tat_us -= max(0, hold.tokens - tokens) * MINUTE_US // hold.tokens_per_minute


def _leads(limits: KeyLimits, key: KeyState, now_ms: int) -> Leads:
    requests_us, tokens_us = key.request_tat_us - now_ms * 1_000, key.token_tat_us - now_ms * 1_000
    return Leads(
        max(0, requests_us) if limits.requests_per_minute else 0, max(0, tokens_us) if limits.tokens_per_minute else 0
    )


def _token_cost_us(tokens: int, limits: KeyLimits) -> int:
    return tokens * MINUTE_US // limits.tokens_per_minute
