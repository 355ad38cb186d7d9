"""Bodies that the admin API takes. A field that is not listed is refused."""

from typing import Annotated, Any

import msgspec

Limit = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class RequestBody(msgspec.Struct, rename="camel", frozen=True, forbid_unknown_fields=True):
    """Base of every request body."""


class AccountRequest(RequestBody, frozen=True):
    """An account and its first key."""

    name: str


class CreditsRequest(RequestBody, frozen=True):
    """Credits as a decimal string."""

    credits: str
    reason: str
    reference: str = ""


class BlockRequest(RequestBody, frozen=True):
    """Block or unblock."""

    blocked: bool
    reason: str


class KeyRequest(RequestBody, frozen=True):
    """Rules of a key to be."""

    models: tuple[str, ...] | None = None
    spend_limit_credits: str | None = None
    spend_period: str = "month"
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrency: Limit | None = None
    expires_at: str | None = None


class ReasonRequest(RequestBody, frozen=True):
    """A reason alone."""

    reason: str


class RefundRequest(RequestBody, frozen=True):
    """Amount of a payment that goes back, in dollars with its tax (None: all that is left), and the reason."""

    reason: str
    usd: str | None = None


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
