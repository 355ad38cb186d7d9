"""Bodies that the admin API takes. A field that is not listed is refused."""

from typing import Any

import msgspec


class RequestBody(msgspec.Struct, rename="camel", frozen=True, forbid_unknown_fields=True):
    """Base of every request body."""


class CreditsRequest(RequestBody, frozen=True):
    """Credits as a decimal string, until when they are good, and whether the customer reads the reason."""

    credits: str
    reason: str
    reference: str = ""
    expires_at: str | None = None
    show_reason: bool = False


class ReasonRequest(RequestBody, frozen=True):
    """A reason alone."""

    reason: str


class RefundRequest(RequestBody, frozen=True):
    """Amount of a payment that goes back, in dollars with its tax (None: all that is left), and the reason.

    `reference`: the caller's name for this refund, made once however often it is asked for.
    """

    reason: str
    usd: str | None = None
    reference: str = ""


class FlagRequest(RequestBody, frozen=True):
    """A flag's value, for how long, and why."""

    value: Any
    reason: str
    expires_at: str | None = None


class ActivationRequest(RequestBody, frozen=True):
    """A card, and the time from which it applies."""

    rate_card_id: str
    reason: str
    effective_at: str | None = None


class AdminKeyRequest(RequestBody, frozen=True):
    """An admin key to be."""

    name: str
    role: str
    expires_at: str | None = None
    reason: str = ""


class RoleRequest(RequestBody, frozen=True):
    """Another role for an admin key."""

    role: str
    reason: str
