"""Settings of the simulator: those of its start, and those that may change while it runs."""

from pathlib import Path
from typing import Any, Final, Literal

import msgspec

API_VERSION: Final = "2026-10-28.endive"
"""The version pinned by stripe 16.1.0; objects have its shape, whatever Stripe-Version a client sends."""

Signature = Literal["valid", "wrong_secret", "missing", "malformed", "v0_only"]


def _check(*checks: tuple[bool, str]) -> None:
    for holds, complaint in checks:
        if not holds:
            raise ValueError(complaint)


class Delivery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Delivery of events to webhook endpoints; holds for attempts that begin later."""

    paused: bool = False
    """Events are kept, and sent when this becomes false."""
    copies_min: int = 1
    copies_max: int = 1
    """Each event is sent at random between copies_min and copies_max times (1 to 5)."""
    shuffle_ms: float = 0.0
    """Each copy waits a random time up to this, so that events overtake each other."""
    delay_ms: float = 0.0
    drop: float = 0.0
    """Share of events, 0 to 1, that are never sent to an endpoint: only the event list shows them."""
    cut: float = 0.0
    """Share of attempts, 0 to 1, whose connection is cut after the request, the answer unread; they are retried."""
    cut_after_ms: float = 0.0
    parallel: int = 16
    """Requests under way at once."""
    timeout_s: float = 10.0
    retry_scale: float = 0.01
    """Factor on Stripe's back-off of 1 min, 5 min, 30 min, 2 h, 5 h, 10 h, 12 h…; 0 retries at once."""
    max_attempts: int = 10
    timestamp_offset_s: int = 0
    """Added to the `t` that is signed; negative makes it old."""
    signature: Signature = "valid"
    livemode: bool | None = None
    """Replaces the event's livemode."""
    api_version: str | None = None
    """Replaces the event's api_version."""
    seed: int = 0
    """Begins the random sequence anew whenever the settings are put."""

    def __post_init__(self) -> None:
        """Refuse values that no delivery could follow."""
        _check(
            (
                1 <= self.copies_min <= self.copies_max <= 5,
                "copies must lie between 1 and 5, copies_min not above copies_max",
            ),
            (0 <= self.drop <= 1, "drop must lie between 0 and 1"),
            (0 <= self.cut <= 1, "cut must lie between 0 and 1"),
            (self.shuffle_ms >= 0 and self.delay_ms >= 0 and self.cut_after_ms >= 0, "times must be at least 0"),
            (self.parallel >= 1, "parallel must be at least 1"),
            (self.timeout_s > 0, "timeout_s must be above 0"),
            (self.retry_scale >= 0, "retry_scale must be at least 0"),
            (self.max_attempts >= 1, "max_attempts must be at least 1"),
        )


class Live(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The part GET/PUT /__stripe/settings shows and changes; times are in seconds of the simulator's clock."""

    delivery: Delivery = msgspec.field(default_factory=Delivery)
    api_latency_ms: float = 0.0
    """Pause before each API call does its work."""
    fee_permille: int = 29
    fee_fixed: int = 30
    """Stripe's fee on a charge: fee_permille of the amount plus fee_fixed cents."""
    dispute_fee: int = 1500
    dispute_fee_returned: bool = False
    """A won dispute returns its fee."""
    balance_delay_s: float = 0.0
    """Until a charge gets its balance transaction (a charge.updated event); never in charge.succeeded itself."""
    async_delay_s: float | None = 2.0
    """Until a bank debit has arrived or failed; null waits for POST /__stripe/settle."""
    dispute_delay_s: float = 0.0
    """From the payment with a dispute card to the dispute."""
    refund_delay_s: float = 1.0
    """Until a refund of the cards for failing and pending refunds changes its status."""
    tax_permille: int = 0
    """Exclusive tax on sessions with automatic_tax[enabled]."""
    dynamic_payment_methods: list[str] = msgspec.field(default_factory=lambda: ["card", "us_bank_account"])
    """Types that the account has enabled; a session may narrow it by allowed_ or excluded_payment_method_types."""

    def __post_init__(self) -> None:
        """Refuse values that no payment could follow."""
        _check(
            (self.api_latency_ms >= 0, "api_latency_ms must be at least 0"),
            (
                min(self.fee_permille, self.fee_fixed, self.dispute_fee, self.tax_permille) >= 0,
                "fees and taxes must be at least 0",
            ),
            (bool(self.dynamic_payment_methods), "dynamic_payment_methods must name at least one"),
        )


class Webhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An endpoint that exists from the start."""

    url: str
    secret: str | None = None
    enabled_events: list[str] = msgspec.field(default_factory=lambda: ["*"])
    api_version: str | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings at the start, fixed until the end."""

    host: str = "127.0.0.1"
    port: int = 0
    """TCP port; 0 takes a free one."""
    api_key: str = "sk_test_sandbox"
    """The only key that is accepted."""
    public_url: str | None = None
    """Base of the URLs of hosted pages; None: the address listened on."""
    record: Path | None = None
    """File that receives the record of money as JSON lines; None keeps it in memory only."""
    state: Path | None = None
    """File in which everything is kept over restarts, the port as well; None forgets it."""
    account_api_version: str = API_VERSION
    """The version of events, and of requests without a Stripe-Version header."""
    webhooks: tuple[Webhook, ...] = ()
    seed: int | None = None
    """Makes ids repeatable; None: they differ from run to run."""
    live: Live = msgspec.field(default_factory=Live)


def merged(live: Live, given: dict[str, Any]) -> Live:
    """Lay the given keys over the settings, also inside `delivery`. Raises msgspec.ValidationError."""
    present: dict[str, Any] = msgspec.to_builtins(live)
    inner = given.get("delivery", {})
    if isinstance(inner, dict):
        given = given | {"delivery": present["delivery"] | inner}
    return msgspec.convert(present | given, Live)
