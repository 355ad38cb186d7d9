"""Holds: the state machine of money in flight. Pure: no I/O, no clock of its own.

    hold ──settle──▶ settled      charged min(due, hold + available), the rest is the platform's loss
      │  ──release─▶ released     nothing charged
      └──(lease over)─▶ expired   charged its checkpoint; released when it never got one

A hold resolves exactly once: whoever comes second finds it gone. `available = balance - held` and a hold
is admitted only while available covers it, so settling can never break the bound (I1 and I2 of docs/architecture.md).

`Book` is these rules in memory; it is what the embedded store runs on, and what lua/*.lua does in Redis.
One conformance suite (tests/billing/balances/test_conformance.py) holds both to the same behaviour.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from billing.money.amounts import Millicredits, millicredits

MINUTE_US = 60_000_000
RefusalSource = Literal["balance", "in_flight", "key_limit", "requests_per_minute", "tokens_per_minute", "concurrency"]


class KeyLimits(NamedTuple):
    """The limits of one API key; None or 0 = none. `period` names the running spend period, e.g. "2026-11"."""

    spend_limit: Millicredits | None = None
    period: str = ""
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0

    @property
    def any(self) -> bool:
        """True when the key is limited at all."""
        return bool(
            self.requests_per_minute or self.tokens_per_minute or self.concurrency or self.spend_limit is not None
        )


class HoldRequest(NamedTuple):
    """Everything a store needs to hold money for one request. `hold_id` = request id = charge id."""

    hold_id: str
    account_id: str
    key_id: str
    amount: Millicredits
    tokens: int
    lease_ms: int
    limits: KeyLimits
    record: bytes


class Held(NamedTuple):
    """The hold stands; figures are after it, in millicredits."""

    balance: int
    held: int


class Refused(NamedTuple):
    """The hold was not made. `key_available` is what the key's own spend limit leaves (key_limit only)."""

    source: RefusalSource
    balance: int
    held: int
    key_available: int = 0
    retry_after_ms: int = 0


class Settled(NamedTuple):
    """The hold was resolved; `charged` from the customer, `loss` by the platform, both millicredits."""

    charged: int
    loss: int
    balance: int
    held: int


class Gone(NamedTuple):
    """The hold had been resolved before (a repeat, or the reaper came first)."""

    balance: int
    held: int


class Outstanding(NamedTuple):
    """All holds of a store: how many, millicredits in them, and the age of the oldest in ms."""

    holds: int
    amount: int
    oldest_ms: int


class Reading(NamedTuple):
    """An account's figures in millicredits; `sequence` is the last outbox row applied."""

    balance: int
    held: int
    sequence: int


class Checkpoint(NamedTuple):
    """The charge of a hold if it were orphaned now, in millicredits, and the usage record to book it with.

    An empty record keeps the one that the hold was made with.
    """

    hold_id: str
    account_id: str
    amount: Millicredits
    record: bytes


class Entry(NamedTuple):
    """One settled charge on its way to the ledger. `position` is the journal's own mark for acknowledging.

    `bucket` and `epoch` say under which rebuilding of a Redis bucket it was read ("" = there is no such thing here).
    """

    position: str
    charged: int
    loss: int
    record: bytes
    bucket: int = 0
    epoch: str = ""


class Balances(Protocol):
    """The balance store. Every method is idempotent by id and raises StoreUnavailable within its bound."""

    async def hold(self, request: HoldRequest) -> Held | Refused:
        """Admit or refuse; durable when it returns, unless `wait_persisted()` says to wait."""
        ...

    async def wait_persisted(self, hold_id: str) -> None:
        """Return once the hold is on disk: before the first byte of a paid answer reaches the client."""
        ...

    async def settle(
        self, hold_id: str, account_id: str, due: Millicredits, record: bytes, tokens: int = -1
    ) -> Settled | Gone:
        """Charge the hold's request and journal it, in one atomic step.

        `tokens` used correct the key's rate (-1: unknown).
        """
        ...

    async def release(self, hold_id: str, account_id: str) -> Settled | Gone:
        """Undo the hold; nothing is charged."""
        ...

    def checkpoint(self, mark: Checkpoint) -> None:
        """Remember what an orphan would be charged (I3); sent soon, never awaited."""
        ...

    def shrink(self, hold_id: str, account_id: str, amount: Millicredits) -> None:
        """Lower a hold to `amount` (never below its checkpoint, never raise it); sent soon, never awaited."""
        ...

    def detach(self, hold_id: str, account_id: str) -> None:
        """Let go of a hold without resolving it: another process takes it on by `hold()`, with the same id, within its
        lease.

        As an orphan it would be released: what it owes is only known to the one that takes it on.
        """
        ...

    async def credit(self, account_id: str, sequence: int, delta: Millicredits) -> bool:
        """Apply one outbox row; True when it is applied (now or before), False when earlier rows are missing."""
        ...

    async def read(self, account_id: str) -> Reading:
        """Return the account's figures."""
        ...


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
    period: str
    since_ms: int
    expires_ms: int
    checkpoint: Millicredits
    record: bytes


@dataclass(slots=True)
class AccountState:
    """One account's figures and its live holds' total."""

    balance: int
    held: int
    sequence: int


@dataclass(slots=True)
class KeyState:
    """Use of a limited key. `*_tat_us`: GCRA's theoretical arrival times of its minute buckets."""

    period: str = ""
    spent: int = 0
    held: int = 0
    inflight: int = 0
    request_tat_us: int = 0
    token_tat_us: int = 0


@dataclass(slots=True)
class Book:
    """All accounts, keys and holds of one process. Times are milliseconds of any one clock."""

    accounts: dict[str, AccountState] = field(default_factory=dict)
    keys: dict[str, KeyState] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)

    def hold(self, request: HoldRequest, now_ms: int) -> Held | Refused:
        """Admit if limits and available allow. The account (and a limited key) must be loaded."""
        account = self.accounts[request.account_id]
        if request.hold_id in self.holds:
            return Held(account.balance, account.held)
        limits = request.limits
        if limits.any:
            # a request that began before the period ended counts in the one that runs: a period never goes back
            limits = limits._replace(period=max(limits.period, self.keys[request.key_id].period))
            request = request._replace(limits=limits)
            refusal = self._check_key(request, account, now_ms)
            if refusal:
                return refusal
        if request.amount and account.balance - account.held < request.amount:
            source: RefusalSource = "in_flight" if account.balance >= request.amount else "balance"
            return Refused(source, account.balance, account.held)
        if limits.any:
            self._take_key(request, now_ms)
        account.held = millicredits(account.held + request.amount)
        self.holds[request.hold_id] = Hold(
            request.hold_id,
            request.account_id,
            request.key_id,
            request.amount,
            request.tokens,
            limits.tokens_per_minute,
            limits.any,
            limits.period if limits.any else "",
            now_ms,
            now_ms + request.lease_ms,
            Millicredits(0),
            request.record,
        )
        return Held(account.balance, account.held)

    def settle(self, hold_id: str, account_id: str, due: Millicredits, tokens: int | None = None) -> Settled | Gone:
        """Resolve a hold with `due` millicredits; `tokens` corrects the tokens-per-minute estimate."""
        account = self.accounts[account_id]
        hold = self.holds.pop(hold_id, None)
        if hold is None:
            return Gone(account.balance, account.held)
        available = account.balance - account.held
        charged = min(due, hold.amount + max(0, available))
        account.balance = millicredits(account.balance - charged)
        account.held = millicredits(account.held - hold.amount)
        if hold.limited:
            self._settle_key(hold, charged, tokens)
        return Settled(charged, due - charged, account.balance, account.held)

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
        if hold.limited:
            self.keys[hold.key_id].held -= less
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

    def _check_key(self, request: HoldRequest, account: AccountState, now_ms: int) -> Refused | None:
        limits, key = request.limits, self.keys[request.key_id]

        def refuse(source: RefusalSource, *, retry_ms: int = 0, left: int = 0) -> Refused:
            return Refused(source, account.balance, account.held, left, retry_ms)

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
        if limits.spend_limit is not None:
            spent = key.spent if key.period == limits.period else 0
            left = limits.spend_limit - spent - key.held
            if left < request.amount:
                return refuse("key_limit", left=left)
        return None

    def _take_key(self, request: HoldRequest, now_ms: int) -> None:
        limits, key = request.limits, self.keys[request.key_id]
        if key.period != limits.period:
            key.period, key.spent = limits.period, 0
        key.held += request.amount
        key.inflight += 1
        if limits.requests_per_minute:
            key.request_tat_us = max(key.request_tat_us, now_ms * 1_000) + MINUTE_US // limits.requests_per_minute
        if limits.tokens_per_minute:
            key.token_tat_us = max(key.token_tat_us, now_ms * 1_000) + _token_cost_us(request.tokens, limits)

    def _settle_key(self, hold: Hold, charged: int, tokens: int | None) -> None:
        key = self.keys[hold.key_id]
        key.held -= hold.amount
        key.inflight -= 1
        if key.period == hold.period:
            key.spent += charged
        if tokens is not None and hold.tokens_per_minute:
            key.token_tat_us -= max(0, hold.tokens - tokens) * MINUTE_US // hold.tokens_per_minute


def _token_cost_us(tokens: int, limits: KeyLimits) -> int:
    return tokens * MINUTE_US // limits.tokens_per_minute
