"""Bodies of the /__stripe/ paths."""

from typing import Any

import msgspec

from sandbox.stripe.checkout import sessions


class PayOrder(sessions.Payment, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /__stripe/sessions/:id/pay."""

    outcome: str = "succeed"
    payment_method: str | None = None
    """pm_… or pm_card_… instead of what `outcome` would take."""


class RefundOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /__stripe/refunds."""

    payment_intent: str | None = None
    charge: str | None = None
    session: str | None = None
    amount: int | None = None
    reason: str | None = None
    status: str | None = None
    """pending or requires_action instead of what the card does."""


class DisputeOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /__stripe/disputes."""

    payment_intent: str | None = None
    charge: str | None = None
    session: str | None = None
    reason: str = "fraudulent"
    amount: int | None = None
    inquiry: bool = False
    status: str | None = None
    withdraw: bool = True


class RefundStep(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /__stripe/refunds/:id."""

    action: str
    reason: str = "unknown"


class DisputeStep(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /__stripe/disputes/:id."""

    action: str | None = None
    """One of disputes.ACTIONS."""
    status: str | None = None
    """Any status instead of an action: also one that Stripe has yet to invent."""


class EventOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An event of any type about any object, known or made up."""

    type: str
    object: dict[str, Any] | str = {}
    """The object itself, or the id of one that exists."""
    fields: dict[str, Any] = {}
    """Laid over the object."""


class RawSending(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Raw bytes to one endpoint, signed as the settings say: thin events, broken JSON."""

    body: str
    endpoint: str | None = None
    """we_…; the first one when absent."""


class ClockChange(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of PUT /__stripe/clock."""

    offset_s: float | None = None
    advance_s: float = 0.0


class EndpointOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /__stripe/endpoints."""

    url: str
    secret: str | None = None
    enabled_events: tuple[str, ...] = ("*",)
    api_version: str | None = None


class SecretRoll(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /__stripe/endpoints/:id/roll."""

    secret: str | None = None
    overlap_s: float = 86_400.0


class MethodChange(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /__stripe/payment_methods/:id."""

    decline: str | None = None
    """Key of cards.DECLINES that later payments meet; "" lets them succeed again."""
    detach: bool = False
    new_card: bool = False
    """The network's card updater replaces number and expiry."""


class SettleOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /__stripe/settle."""

    payment_intent: str | None = None
    session: str | None = None
    fail: str | None = None
    """Key of cards.DECLINES; "": the money arrives; null: as the account number says."""


class AuthenticateOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /__stripe/authenticate."""

    intent: str
    passed: bool = True


class DrainOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /__stripe/drain."""

    timeout_s: float = 30.0
