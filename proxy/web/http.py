"""What every JSON handler shares: bodies in, answers and refusals out, pages of a list."""

import base64
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from billing.money.errors import AccountNotFound, StoreUnavailable
from billing.storage.database import now_ms
from proxy.web.rejections import Rejection, invalid, too_large, unavailable
from proxy.web.times import read_time

DEFAULT_LIMIT = 50


MAX_LIMIT = 200


CURSOR = re.compile(rb"([0-9]{1,15}):([!-~]{1,80})")


Handler = Callable[[Request], Awaitable[Response]]


def answering(handler: Handler) -> Handler:
    """A handler whose refusals and store failures become OpenAI-shaped answers."""

    async def wrapped(request: Request) -> Response:
        try:
            check_parameters(request)
            return await handler(request)
        except Rejection as rejection:
            return rejected(rejection)
        except (StoreUnavailable, AccountNotFound):
            return rejected(unavailable("This cannot be read right now. Try again shortly.", "store_unavailable"))

    return wrapped


def check_parameters(request: Request) -> None:
    """Raises Rejection for a NUL character in the path or the query: PostgreSQL cannot compare it, and nothing of ours
    is called so.
    """
    for name, value in (*request.path_params.items(), *request.query_params.multi_items()):
        if "\0" in name or "\0" in value:
            shown = name.replace("\0", "")
            raise invalid(f"`{shown}` holds a NUL character.", shown)


def rejected(rejection: Rejection) -> Response:
    """A refusal as a response."""
    headers = {name.decode(): value.decode() for name, value in rejection.headers()}
    return Response(rejection.body(), rejection.status, headers, "application/json")


def json_response(value: Any, status: int = 200) -> Response:
    """JSON that no cache keeps."""
    return Response(msgspec.json.encode(value), status, {"cache-control": "no-store"}, "application/json")


def page_limit(request: Request) -> int:
    """How many rows a page has. Raises Rejection."""
    raw = request.query_params.get("limit")
    limit = DEFAULT_LIMIT if raw is None else whole_number(raw, "limit")
    if not 1 <= limit <= MAX_LIMIT:
        raise invalid(f"`limit` must be between 1 and {MAX_LIMIT}.", "limit")
    return limit


def whole_number(raw: str, name: str) -> int:
    """A number of a query. Raises Rejection."""
    if not raw.isascii() or not raw.isdigit() or len(raw) > 18:
        raise invalid(f"`{name}` must be a whole number.", name)
    return int(raw)


def asked_time(raw: str | None, name: str) -> int | None:
    """A time in ISO 8601 (UTC unless it says otherwise) in Unix milliseconds. Raises Rejection."""
    if raw is None:
        return None
    try:
        return read_time(raw)
    except ValueError:
        raise invalid(f"`{name}` must be an ISO 8601 time such as 2026-11-23T12:00:00Z.", name) from None


def asked_end(raw: str | None, name: str) -> int | None:
    """When something is to end, in Unix milliseconds; None: never. Raises Rejection, also for what is over already."""
    ends = asked_time(raw, name)
    if ends is not None and ends <= now_ms():
        raise invalid(f"`{name}` is in the past.", name)
    return ends


def page_cursor_of(created_at: int, row_id: str) -> str:
    """Where the next page begins: after this row."""
    return base64.urlsafe_b64encode(f"{created_at}:{row_id}".encode()).decode().rstrip("=")


def page_cursor(raw: str | None) -> tuple[int, str] | None:
    """The (created_at, id) of the last row seen. Raises Rejection."""
    if raw is None:
        return None
    try:
        found = CURSOR.fullmatch(base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)))
    except ValueError:
        found = None
    if found is None:
        raise invalid("`cursor` is not one of ours: pass `nextCursor` of the page before.", "cursor")
    return int(found[1]), found[2].decode()


MAX_JSON_BYTES = 16_384


TOO_LARGE = 413


NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""As JSON writes it, behind no backslash that takes its meaning away. PostgreSQL neither keeps nor compares it."""


Body = TypeVar("Body")


async def capped_body(request: Request, limit: int) -> bytes:
    """The raw body.

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
    """The body as JSON of a shape. Raises Rejection (400, 413)."""
    raw = await capped_body(request, MAX_JSON_BYTES)
    if NUL.search(raw):
        raise invalid("The body holds a NUL character, which no text here has.", code="invalid_body")
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"The body is not the JSON this path takes: {error}", code="invalid_body") from None
