"""Every refusal of ours, as OpenAI-shaped JSON. The one place where reasons become status codes.

The body is OpenAI's `{"error": {message, type, param, code}}`; a 402 repeats its figures at the top level,
because users were promised them there while SDKs show only the inner object (docs/openai.md#errors-and-retries).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from billing.money.amounts import display_credits


class Rejection(Exception):
    """A request that we answer ourselves. Raise it anywhere before an answer has begun."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after_ms: int | None = None,
        extra: dict[str, Any] | None = None,
        final: bool = False,
    ) -> None:
        """`message` says what to do; `retry_after_ms` becomes Retry-After; `extra` joins both levels of the body.

        `final`: asking again changes nothing or costs again, whatever the status says.
        """
        super().__init__(message)
        self.status, self.code, self.message, self.kind, self.param = status, code, message, kind, param
        self.retry_after_ms, self.extra, self.final = retry_after_ms, extra or {}, final

    def body(self) -> bytes:
        """Return the JSON."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code, **self.extra}
        return msgspec.json.encode({"error": error, **self.extra})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Retry advice; SDKs obey x-should-retry before the status."""
        found = []
        if self.retry_after_ms is not None:
            found.append((b"retry-after", str(-(-self.retry_after_ms // 1_000)).encode()))
            found.append((b"retry-after-ms", str(self.retry_after_ms).encode()))
        if self.status in (402, 403) or self.code == "key_expired" or self.final:
            found.append((b"x-should-retry", b"false"))
        return found


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> Rejection:
    """400: the request itself is wrong."""
    return Rejection(400, code, message, param=param)


def too_large(limit: int) -> Rejection:
    """413: the body is over the limit."""
    return Rejection(413, "request_too_large", f"The request body is larger than {limit} bytes.")


def bad_request(message: str) -> Rejection:
    """400 for what is wrong with the HTTP itself."""
    return invalid(message, code="bad_request")


def unauthorized(message: str, code: str = "invalid_api_key") -> Rejection:
    """401: no key, or one we do not accept. The same words for unknown and revoked keys."""
    return Rejection(401, code, message, kind="authentication_error")


def forbidden(message: str, code: str, param: str | None = None) -> Rejection:
    """403: the key or account may not do this."""
    return Rejection(403, code, message, kind="permission_error", param=param)


def not_found(message: str, code: str, param: str | None = None) -> Rejection:
    """404: there is no such thing here."""
    return Rejection(404, code, message, param=param)


def too_many(message: str, code: str, retry_after_ms: int) -> Rejection:
    """429: one of the key's own limits."""
    return Rejection(429, code, message, kind="rate_limit_error", retry_after_ms=max(1, retry_after_ms))


def unavailable(message: str, code: str, retry_after_ms: int = 1_000) -> Rejection:
    """503: not now; fail closed."""
    return Rejection(503, code, message, kind="server_error", retry_after_ms=retry_after_ms)


def bad_gateway(message: str, code: str, status: int = 502, *, worked_on: bool = False) -> Rejection:
    """502/504: the upstream did not answer as it should; nothing was charged.

    `worked_on`: it may have begun to work for this, so asking again would cost again.
    """
    return Rejection(status, code, message, kind="server_error", final=worked_on)


LimitOwner = Literal["key", "token", "end_user"]


class KeyLimit(NamedTuple):
    """A budget of a key, or of whom it is used for: what it leaves, in millicredits, and when it starts anew (ISO 8601;
    None = never).
    """

    left: int
    resets_at: str | None
    limit: int = 0
    period: str = "total"
    whose: LimitOwner = "key"

    @property
    def said(self) -> str:
        """Words for who has met the limit."""
        left = display_credits(max(0, self.left))
        anew = "" if self.resets_at is None else f" It starts anew at {self.resets_at}."
        if self.whose == "token":
            return f"this token's ceiling of {display_credits(self.limit)} credits leaves {left}."
        if self.whose == "key":
            advice = "Use another key or raise the limit: your provider can do both."
            return f"this API key's spend limit leaves {left}. {advice}{anew}"
        window = "" if self.period == "total" else f" a {self.period}"
        return f"this end user's limit of {display_credits(self.limit)} credits{window} leaves {left}.{anew}"

    def figures(self) -> dict[str, Any]:
        """Members of the answer."""
        left = display_credits(max(0, self.left))
        if self.whose != "end_user":
            return {"keyLimitRemainingCredits": left, "keyLimitResetsAt": self.resets_at}
        return {
            "endUserLimitCredits": display_credits(self.limit),
            "endUserLimitPeriod": self.period,
            "endUserLimitRemainingCredits": left,
            "endUserLimitResetsAt": self.resets_at,
        }


def insufficient_credits(
    source: str,
    required: int,
    balance: int,
    held: int,
    affordable: int | None,
    top_up_url: str,
    retry_after_ms: int | None,
    key_limit: KeyLimit | None = None,
    ways: Mapping[str, str] = MappingProxyType({}),
) -> Rejection:
    """402. All amounts in millicredits; shown as credits. `key_limit` when that is what is in the way.

    `ways`: more members, of the ways back to the operator's app.

    Most clients show the message and nothing else, so it ends with `top_up_url` where that is an address to follow.
    """
    more: dict[str, Any] = {}
    available = balance - held
    need, have = display_credits(required), display_credits(available)
    link = top_up_url if top_up_url.startswith(("https://", "http://")) else ""
    last = f"Top up: {link}" if link else ""
    if source == "in_flight":
        message = (
            f"This request needs up to {need} credits. You have {display_credits(balance)}, but "
            f"{display_credits(held)} are held by requests in flight: retry when they finish, or top up."
        )
    elif key_limit is not None:
        message = f"This request needs up to {need} credits; {key_limit.said}"
        last = f"The account's credits: {link}" if link and key_limit.whose == "key" else ""
        more = key_limit.figures()
    else:
        message = f"This request needs up to {need} credits and {have} are available."
        last = last or "Top up to continue."
    if affordable:
        message += f" With what is available, up to {affordable} output tokens are affordable: set a lower maximum."
    message = f"{message} {last}".rstrip()
    return Rejection(
        402,
        "insufficient_credits",
        message,
        kind="insufficient_credits",
        retry_after_ms=retry_after_ms,
        extra={
            "requiredCredits": need,
            "currentCredits": display_credits(balance),
            "heldCredits": display_credits(held),
            "availableCredits": have,
            "limitSource": source,
            "affordableOutputTokens": affordable or 0,
            "topUpUrl": top_up_url,
            **ways,
            **more,
        },
    )
