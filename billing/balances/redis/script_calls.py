"""The script calls about one hold: keys and arguments as lua/*.lua wants them, and what a process knows of it. Pure."""

from typing import Any, NamedTuple

from billing.money.amounts import Millicredits
from billing.money.holds import KEPT_SECONDS, Budget, Held, HoldRequest, KeyLimits, Leads, Refused
from billing.money.usage_record import rest_of

HOLD, RESUME, LOOK = range(3)
"""Modes of lua/hold.lua."""
Call = tuple[str, tuple[str, ...], tuple[Any, ...]]
"""(script, keys, arguments)."""


class LiveHold(NamedTuple):
    """A hold this process lives by since a time (monotonic seconds), and what it would be charged if we died now.

    `told`: the server was sent that.
    """

    request: HoldRequest
    checkpoint: int
    record: bytes
    since: float
    told: bool = True


class Resolution(NamedTuple):
    """A resolution this process has decided: kept until SQL is known to have it, or until it is delivered.

    `late`: there is no hold to take it from any more, it takes what is available.
    """

    request: HoldRequest
    due: Millicredits
    record: bytes
    tokens: int
    late: bool = False


def release_of(request: HoldRequest) -> Resolution:
    """Return the resolution that charges nothing."""
    return Resolution(request, Millicredits(0), b"", 0)


def rest_after_reaping(wanted: Resolution, charged: int, booked: bytes) -> Resolution | None:
    """Return what is still due after the reaper charged `charged` millicredits with the row `booked`; None: nothing.

    It took our hold for an orphan's: the rest is charged once, under an id of its own (ADR 13).
    """
    if not wanted.record or wanted.due <= charged:
        return None
    hold_id, record = wanted.request.hold_id, wanted.record
    if booked:  # the reaper's row has the request's own id
        hold_id, record = rest_of(record, booked)
    request = wanted.request._replace(hold_id=hold_id, amount=Millicredits(0))
    return Resolution(request, Millicredits(wanted.due - charged), record, -1, late=True)


def hold_call(prefix: str, token: str, request: HoldRequest, mode: int = HOLD) -> Call:
    """Make a hold; by `mode` take it on again, where it comes to that, or only look whether it would be made."""
    limits = request.limits
    keys: tuple[str, ...] = (*_hold_keys(prefix, request), f"{prefix}leases", f"{prefix}t:{request.hold_id}")
    made: tuple[Any, ...] = (
        token,
        request.hold_id,
        request.amount,
        request.lease_ms,
        request.record,
        request.account_id,
        mode,
    )
    if limits.any:
        keys += (f"{prefix}k:{request.key_id}", *(budget_key(prefix, budget) for budget in limits.budgets))
        made += (
            request.key_id,
            request.tokens,
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.concurrency,
            KEPT_SECONDS if limits.passing else 0,
            *(part for budget in limits.budgets for part in (*budget[:3], kept_seconds(limits, budget))),
        )
    return "hold", keys, made


def budget_key(prefix: str, budget: Budget) -> str:
    """Return where what was spent of a budget is kept."""
    return f"{prefix}s:{budget.scope}"


def kept_seconds(limits: KeyLimits, budget: Budget) -> int:
    """Return for how long a budget is kept in Redis since its last use; 0: for ever."""
    return KEPT_SECONDS if limits.passing or budget.end_user else 0


def packed_budgets(request: HoldRequest) -> str:
    """Return a request's budgets as a hold in Redis names them."""
    return ";".join(f"{budget.scope}={budget.period}" for budget in request.limits.budgets)


def held_reply(reply: Any) -> Held:
    """Read the answer `ok` to a hold."""
    return Held(int(reply[1]), int(reply[2]), Leads(int(reply[3]), int(reply[4])))


def refused_reply(reply: Any) -> Refused:
    """Read the answer `refused` to a hold."""
    balance, held, left, retry_ms, *leads = map(int, reply[2:])
    return Refused(reply[1].decode(), balance, held, left, retry_ms, Leads(*leads[:2]), sum(leads[2:]))


def settle_call(prefix: str, token: str, wanted: Resolution) -> Call:
    """Resolve a hold."""
    request = wanted.request
    if wanted.late:
        return resettle_call(prefix, token, wanted)
    return (
        "settle",
        _resolving_keys(prefix, request),
        (token, request.hold_id, wanted.due, wanted.record, wanted.tokens),
    )


def resettle_call(prefix: str, token: str, wanted: Resolution) -> Call:
    """Resolve a hold that may not be there any more."""
    request, budgets = wanted.request, packed_budgets(wanted.request)
    limited = 1 if request.limits.any else 0
    return (
        "resettle",
        _resolving_keys(prefix, request),
        (token, request.hold_id, wanted.due, wanted.record, request.amount, limited, request.key_id, budgets),
    )


def rehold_call(prefix: str, token: str, live: LiveHold) -> Call:
    """Put a hold back."""
    request, limits = live.request, live.request.limits
    keys = (
        *_hold_keys(prefix, request),
        f"{prefix}leases",
        f"{prefix}k:{request.key_id}",
        f"{prefix}t:{request.hold_id}",
    )
    return (
        "rehold",
        keys,
        (
            token,
            request.hold_id,
            request.amount,
            request.lease_ms,
            live.record,
            request.account_id,
            request.key_id,
            request.tokens,
            1 if limits.any else 0,
            limits.tokens_per_minute,
            packed_budgets(request),
            live.checkpoint,
        ),
    )


def reap_call(prefix: str, token: str, account_id: str, hold_id: str) -> Call:
    """Resolve a hold whose owner is gone."""
    keys = _resolving_keys_of(prefix, account_id, hold_id)
    return "reap", keys, (token, hold_id)


def _hold_keys(prefix: str, request: HoldRequest) -> tuple[str, str, str]:
    return f"{prefix}epoch", f"{prefix}a:{request.account_id}", f"{prefix}h:{request.hold_id}"


def _resolving_keys(prefix: str, request: HoldRequest) -> tuple[str, ...]:
    return _resolving_keys_of(prefix, request.account_id, request.hold_id)


def _resolving_keys_of(prefix: str, account_id: str, hold_id: str) -> tuple[str, ...]:
    return (
        f"{prefix}epoch",
        f"{prefix}a:{account_id}",
        f"{prefix}h:{hold_id}",
        f"{prefix}leases",
        f"{prefix}log",
        f"{prefix}k:",
        f"{prefix}t:{hold_id}",
    )
