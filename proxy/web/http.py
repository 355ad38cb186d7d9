"""Bodies, answers and refusals of the JSON handlers."""

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from billing.money.errors import AccountNotFound, StoreUnavailable
from proxy.web.query import check_parameters
from proxy.web.rejections import Rejection, invalid, too_large, unavailable

log = logging.getLogger("tollkeeper.web")

MAX_JSON_BYTES = 16_384
TOO_LARGE = 413
NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""As JSON writes it, behind no backslash that takes its meaning away. PostgreSQL neither keeps nor compares it."""

Handler = Callable[[Request], Awaitable[Response]]
Body = TypeVar("Body")


def json_handler(handler: Handler) -> Handler:
    """Wrap a handler so that its refusals and store failures become OpenAI-shaped answers."""

    async def wrapped(request: Request) -> Response:
        try:
            check_parameters(request)
            return await handler(request)
        except Rejection as rejection:
            return rejection_response(rejection)
        except StoreUnavailable as away:
            if away.store != "stripe":
                return rejection_response(cannot_read())
            log.error("%s %s: %s", request.method, request.url.path, away)  # noqa: TRY400 - an answer that never came
            text = "The payment provider does not answer right now. Try again shortly."
            return rejection_response(unavailable(text, "payment_provider_unavailable"))
        except AccountNotFound:
            return rejection_response(cannot_read())

    return wrapped


def cannot_read() -> Rejection:
    """Rejection with 503."""
    return unavailable("This cannot be read right now. Try again shortly.", "store_unavailable")


def rejection_response(rejection: Rejection) -> Response:
    """Return a refusal as a response."""
    headers = {name.decode(): value.decode() for name, value in rejection.headers()}
    return Response(rejection.body(), rejection.status, headers, "application/json")


def json_response(value: Any, status: int = 200) -> Response:
    """JSON that no cache keeps."""
    return Response(msgspec.json.encode(value), status, {"cache-control": "no-store"}, "application/json")


async def capped_body(request: Request, limit: int) -> bytes:
    """Read the raw body.

    Raises Rejection: 413 once it is larger, without reading on; 400 when the client left, whom no fault of ours met.
    """
    received = bytearray()
    try:
        async for part in request.stream():
            received += part
            if len(received) > limit:
                raise too_large(limit)
    except ClientDisconnect:
        raise invalid("The body ended before its end.", code="incomplete_body") from None
    return bytes(received)


async def json_body(request: Request, kind: type[Body]) -> Body:
    """Read the body as JSON of a shape. Raises Rejection (400, 413)."""
    raw = await capped_body(request, MAX_JSON_BYTES)
    if NUL.search(raw):
        raise invalid("The body holds a NUL character, which no text here has.", code="invalid_body")
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"The body is not the JSON this path takes: {error}", code="invalid_body") from None
