"""Routes under a stored response's id: for the account that made it, unmetered, since it was settled when it was made."""

import re
from urllib.parse import parse_qsl, urlencode

from billing.money.errors import StoreUnavailable
from proxy.gateway.bodies.chat import Reference
from proxy.gateway.endpoints import OBJECT_PATH, OBJECT_ROUTES
from proxy.gateway.exchange import Exchange
from proxy.gateway.upstream.pool import MAX_RESPONSE_BYTES, Answer, Interrupted, UpstreamError
from proxy.gateway.upstream.tenants import no_such_object
from proxy.web.rejections import Rejection, bad_gateway, invalid, unavailable

QUERY = {"stream", "starting_after", "include", "include[]", "include_obfuscation", "limit", "after", "order"}
QUERY_VALUE = re.compile(r"^[A-Za-z0-9_.\[\]-]{0,120}$")
HEADERS = b"Accept: %s\r\nX-Client-Request-Id: %s\r\n"
ERROR_LIMIT = 65_536


def is_object_path(raw_path: bytes, method: str) -> bool:
    """Whether a request is for a stored response."""
    found = OBJECT_PATH.match(raw_path)
    return found is not None and (method != "POST" or found[2] is not None)


async def answer_object(exchange: Exchange) -> None:
    """Answer one such request on the exchange's client. Never raises but for cancellation."""
    exchange.services.live.add(exchange)
    try:
        await _answer(exchange)
    except Rejection as rejection:
        await exchange.reject(rejection)
    except UpstreamError as error:
        exchange.services.metrics.count(exchange.services.metrics.upstream_errors, error.reason)
        if exchange.client.started:
            exchange.client.abort()
        else:
            await exchange.reject(
                bad_gateway("The upstream could not be reached or broke off. Try again.", f"upstream_{error.reason}")
            )
    except Interrupted:
        exchange.client.abort()
    finally:
        exchange.services.live.discard(exchange)
        exchange.client.let_go()
        exchange.account()


async def _answer(exchange: Exchange) -> None:
    services, method = exchange.services, exchange.method
    key = exchange.key = await services.authenticator.authenticate(exchange.headers, exchange.peer)
    found = OBJECT_PATH.match(exchange.path)
    response_id, verb = (found[1].decode(), (found[2] or b"").decode()) if found else ("", "")
    if (verb, method) not in OBJECT_ROUTES:
        offered = ", ".join(allowed for known, allowed in OBJECT_ROUTES if known == verb)
        raise Rejection(405, "method_not_allowed", f"Not allowed to {method} here: use {offered}.")
    await exchange.client.read_body()  # nothing of it is passed on
    try:
        owned = await services.tenants.owned(key.account_id, "response", response_id)
        running = owned is not None and method == "DELETE" and await services.tenants.objects.is_running(response_id)
    except StoreUnavailable:
        raise unavailable(
            "What this refers to cannot be looked up right now. Try again shortly.", "store_unavailable"
        ) from None
    if owned is None:
        raise no_such_object(Reference("response", response_id, "response_id"))
    if running:  # deleted, it could not be asked what it cost
        raise Rejection(
            409,
            "response_in_progress",
            "This response is still running: cancel it, or wait for its end, before deleting it.",
        )
    query = _query(exchange.query)
    accept = b"text/event-stream" if "stream=true" in query else b"application/json"
    path = f"/responses/{response_id}{verb}{query}"
    headers = HEADERS % (accept, exchange.request_id.encode()) + exchange.trace.lines
    answer = await services.upstream.send(method, path, headers, b"", exchange.interruption, lambda: None)
    try:
        await _pass_on(exchange, answer)
    finally:
        answer.close()
    if method == "DELETE" and answer.head.status in (200, 404):
        await services.tenants.objects.forget(response_id)


async def _pass_on(exchange: Exchange, answer: Answer) -> None:
    """The upstream's answer as it comes; errors without our account's identity."""
    passing, client, status = exchange.passing, exchange.client, answer.head.status
    exchange.status, exchange.outcome = status, "completed" if status == 200 else "upstream_error"
    if answer.head.get(b"content-type").startswith(b"text/event-stream"):
        await client.start(status, [*passing.headers(answer.head.headers), (b"cache-control", b"no-cache")])
        while data := await answer.read():
            await client.write(passing.without_key(data))
        await client.write(b"", last=True)
        return
    limit = MAX_RESPONSE_BYTES if status == 200 else ERROR_LIMIT
    parts, size = [], 0
    while data := await answer.read():
        parts.append(data)
        size += len(data)
        if size > limit:
            raise UpstreamError("too_large", sent=True)
    body = b"".join(parts)
    body = passing.without_key(body) if status == 200 else passing.without_identity(body)
    await client.respond(status, passing.headers(answer.head.headers), body)


def _query(raw: bytes) -> str:
    """The client's query, rebuilt from what is known. Raises Rejection."""
    pairs = parse_qsl(raw.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=32)
    for name, value in pairs:
        if name not in QUERY or not QUERY_VALUE.match(value):
            raise invalid(f"Unrecognized query parameter or value: {name[:40]}.", name[:40], "unknown_parameter")
    return f"?{urlencode(pairs)}" if pairs else ""
