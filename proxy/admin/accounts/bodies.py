"""Bodies about accounts and their keys. A field that is not listed is refused."""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from billing.ledger.accounts import KeyBudget
from billing.money.amounts import Millicredits, MoneyError, millicredits, parse_credits
from proxy.admin.request_bodies import RequestBody
from proxy.web.rejections import invalid

KeyRole = Literal["owner", "member"]
"""Holder of a key: who has the account, or a member of their team."""
Limit = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class AccountRequest(RequestBody, frozen=True):
    """An account, and its first key unless `key` is false. The same external id again: the same account."""

    name: str
    external_id: str | None = None
    email: str | None = None
    metadata: dict[str, str] | None = None
    key: bool = True


class AccountPatch(RequestBody, frozen=True):
    """Changes of an account. null takes away: the field, or in `metadata` one key of it; the rest stays."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    external_id: str | msgspec.UnsetType | None = msgspec.UNSET
    email: str | msgspec.UnsetType | None = msgspec.UNSET
    metadata: dict[str, str | None] | msgspec.UnsetType | None = msgspec.UNSET
    reason: str = ""


class CloseRequest(RequestBody, frozen=True):
    """An end: what is left is kept, or what was paid for of it is refunded; what was stored at OpenAI goes too."""

    reason: str
    remainder: Literal["keep", "refund"] = "keep"
    forget_stored: bool = True


class WelcomeRequest(RequestBody, frozen=True):
    """Credits for a new account, as a decimal string (None: all that may be given)."""

    credits: str | None = None


class BlockRequest(RequestBody, frozen=True):
    """Block or unblock."""

    blocked: bool
    reason: str


class BudgetBody(RequestBody, frozen=True):
    """Credits that a key may be charged in a period, with models of these globs (None: all)."""

    credits: str
    period: str
    models: tuple[str, ...] | None = None


class EndUserRulesPatch(RequestBody, frozen=True):
    """Changes of what holds for end users that are not known; what is not named stays, `budgets` is replaced whole."""

    budgets: tuple[BudgetBody, ...] | None = None
    required: bool | None = None
    reason: str = ""


class EndUserPut(RequestBody, frozen=True):
    """Changes of what is said of an end user; what is not named stays, `budgets` is replaced whole."""

    end_user: str
    budgets: tuple[BudgetBody, ...] | None = None
    blocked: bool | None = None
    wallet: bool | None = None
    reason: str = ""


class EndUserRemoval(RequestBody, frozen=True):
    """An end user of whom nothing is said any more."""

    end_user: str
    reason: str = ""


class AccessTokenRequest(RequestBody, frozen=True):
    """A token for a browser or device. None: no bound but the account's and the end user's."""

    account_id: str
    end_user: str = ""
    minutes: Annotated[int, msgspec.Meta(ge=1, le=1_440)] = 60
    models: tuple[str, ...] | None = None
    ceiling_credits: str | None = None
    origins: tuple[str, ...] = ()
    buy: bool = False


class KeyRequest(RequestBody, frozen=True):
    """A key to be. The same reference again, for the same account: the same key."""

    name: str | None = None
    tags: tuple[str, ...] = ()
    reference: str | None = None
    models: tuple[str, ...] | None = None
    spend_limit_credits: str | None = None
    spend_period: str = "month"
    budgets: tuple[BudgetBody, ...] = ()
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrency: Limit | None = None
    expires_at: str | None = None
    role: KeyRole = "owner"


class KeyPatch(RequestBody, frozen=True):
    """Changes of a key; what is not named stays. null takes a limit or a name away; lists are replaced whole."""

    name: str | msgspec.UnsetType | None = msgspec.UNSET
    tags: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    models: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    spend_limit_credits: str | msgspec.UnsetType | None = msgspec.UNSET
    spend_period: str | msgspec.UnsetType = msgspec.UNSET
    budgets: tuple[BudgetBody, ...] | msgspec.UnsetType | None = msgspec.UNSET
    requests_per_minute: Limit | msgspec.UnsetType | None = msgspec.UNSET
    tokens_per_minute: Limit | msgspec.UnsetType | None = msgspec.UNSET
    concurrency: Limit | msgspec.UnsetType | None = msgspec.UNSET
    expires_at: str | msgspec.UnsetType | None = msgspec.UNSET
    role: KeyRole | msgspec.UnsetType = msgspec.UNSET
    reason: str = ""


class RotateRequest(RequestBody, frozen=True):
    """Another secret for a key; the one until now works on for so many seconds."""

    grace_seconds: Annotated[int, msgspec.Meta(ge=0, le=2_592_000)] = 86_400
    reason: str = ""


def read_budgets(asked: Sequence[BudgetBody]) -> tuple[KeyBudget, ...]:
    """Read budgets. Raises Rejection."""
    return tuple(
        KeyBudget(read_credits(body.credits, "budgets") or Millicredits(0), body.period, body.models) for body in asked
    )


def read_credits(text: str | None, field: str) -> Millicredits | None:
    """Read a limit in credits; None: none. Raises Rejection."""
    if text is None:
        return None
    try:
        amount = parse_credits(text)
    except MoneyError as error:
        raise invalid(f"`{field}` is not an amount: {error}", field) from None
    if amount < 0:
        raise invalid(f"`{field}` must not be negative.", field)
    return millicredits(amount)
