"""Holds: the state machine of money in flight. Pure: no I/O, no clock of its own.

    hold ──settle──▶ settled      charged min(due, hold + available), the rest is the platform's loss
      │  ──release─▶ released     nothing charged
      └──(lease over)─▶ expired   charged its checkpoint; released when it never got one

A hold resolves exactly once: whoever comes second finds it gone. `available = balance - held` and a hold
is admitted only while available covers it, so settling can never break the bound (I1 and I2 of docs/architecture.md).

What a store is asked and answers stands here. `Book` (billing/balances/book.py) is these rules in memory: what the
embedded store runs on, and what lua/*.lua does in Redis. One conformance suite
(tests/billing/balances/test_conformance.py) holds both to the same behaviour.
"""

from typing import Literal, NamedTuple, Protocol

from billing.money.amounts import Millicredits
from billing.money.usage import Value

MINUTE_US = 60_000_000
KEPT_SECONDS = 7 * 86_400
"""Seconds for which a store keeps what it counts of end users and of passing keys, from its last use on: longer than
any hold, so that nobody gives back to a count that was read anew. SQL says the rest.
"""
RefusalSource = Literal["balance", "in_flight", "key_limit", "requests_per_minute", "tokens_per_minute", "concurrency"]


class Budget(NamedTuple):
    """Limit of one period ("2026-11"; they sort by name) for some models' globs; `scope`: whose and what, for ever.

    `end_user`: of that end user of the account that pays, whatever the key; "": of the key.
    """

    scope: str
    period: str
    limit: Millicredits
    models: tuple[str, ...] | None = None
    end_user: str = ""


class KeyLimits(NamedTuple):
    """The limits of one API key, and of who uses it; 0 = none. Of `budgets` every one must leave enough.

    `passing`: the key is one of many that come and go.
    """

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0
    budgets: tuple[Budget, ...] = ()
    passing: bool = False

    @property
    def any(self) -> bool:
        """True when the key is limited at all."""
        return bool(self.requests_per_minute or self.tokens_per_minute or self.concurrency or self.budgets)


class HoldRequest(Value, frozen=True):
    """Everything a store needs to hold money for one request. `hold_id` = request id = charge id."""

    hold_id: str
    account_id: str
    key_id: str
    amount: Millicredits
    tokens: int
    lease_ms: int
    limits: KeyLimits
    record: bytes


class Leads(Value, frozen=True):
    """How far a key's minute buckets are ahead of now, in microseconds: 0 = full, 60,000,000 = empty.

    0 too where the key has no such limit, or the hold was made before.
    """

    requests_us: int = 0
    tokens_us: int = 0


NO_LEADS = Leads()


class Held(Value, frozen=True):
    """The hold stands; figures are after it, in millicredits."""

    balance: int
    held: int
    leads: Leads = NO_LEADS


class Refused(Value, frozen=True):
    """The hold was not made. With key_limit: what the key's tightest budget leaves, and its place among them."""

    source: RefusalSource
    balance: int
    held: int
    key_available: int = 0
    retry_after_ms: int = 0
    leads: Leads = NO_LEADS
    budget: int = 0


class Settled(Value, frozen=True):
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


class Checkpoint(Value, frozen=True):
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

    async def look(self, request: HoldRequest) -> Refused | None:
        """Return why a hold would be refused now, None where it would be made; nothing is held or counted."""
        ...

    async def resume(self, request: HoldRequest) -> Held | Refused | Gone:
        """Take on a hold that another process detached, or make it again where it was lost; Gone once one that had
        taken it on resolved it: several may, and it is charged once (I4).
        """
        ...

    async def wait_persisted(self, hold_id: str) -> None:
        """Return once the hold is on disk and its last checkpoint on the way there, whatever becomes of this process:
        before the first byte of a paid answer reaches the client.
        """
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

    def checkpoint(self, mark: Checkpoint, *, at_once: bool = False) -> None:
        """Remember what an orphan would be charged (I3); sent soon, or `at_once`; never awaited."""
        ...

    def shrink(self, hold_id: str, account_id: str, amount: Millicredits) -> None:
        """Lower a hold to `amount` (never below its checkpoint, never raise it); sent soon, never awaited."""
        ...

    def detach(self, hold_id: str, account_id: str) -> None:
        """Let go of a hold without resolving it: another process takes it on by `resume()`, with the same id,
        within its lease.

        As an orphan it would be released: what it owes is only known to the one that takes it on.
        """
        ...

    def forget(self, hold_id: str) -> None:
        """Live no longer by a hold that another process has taken on and resolves."""
        ...

    async def credit(self, account_id: str, sequence: int, delta: Millicredits) -> bool:
        """Apply one outbox row; True when it is applied (now or before), False when earlier rows are missing."""
        ...

    async def read(self, account_id: str) -> Reading:
        """Return the account's figures."""
        ...
