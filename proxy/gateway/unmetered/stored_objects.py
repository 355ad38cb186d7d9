"""Routes under a stored response's id: for the account that made it, unmetered, as it was settled when made."""

import re
from urllib.parse import parse_qsl, urlencode

from proxy.gateway.bodies.parsed import Reference
from proxy.gateway.endpoints import OBJECT_PATH, OBJECT_ROUTES
from proxy.gateway.request import GatewayRequest
from proxy.gateway.upstream.answer import MAX_RESPONSE_BYTES, Answer
from proxy.gateway.upstream.interruption import Interrupted, UpstreamError
from proxy.gateway.upstream.tenants import no_such_object
from proxy.web.rejections import Rejection, bad_gateway, invalid

QUERY = {"stream", "starting_after", "include", "include[]", "include_obfuscation", "limit", "after", "order"}
QUERY_VALUE = re.compile(r"^[A-Za-z0-9_.\[\]-]{0,120}$")
HEADERS = b"Accept: %s\r\nX-Client-Request-Id: %s\r\n"
ERROR_LIMIT = 65_536


def is_object_path(raw_path: bytes, method: str) -> bool:
    """Tell whether a request is for a stored response."""
    found = OBJECT_PATH.match(raw_path)
    return found is not None and (method != "POST" or found[2] is not None)


async def answer_object(request: GatewayRequest) -> None:
    """Answer one such request on the request's client. Never raises but for cancellation."""
    request.services.live.add(request)
    try:
        await _answer(request)
    except Rejection as rejection:
        await request.reject(rejection)
    except UpstreamError as error:
        request.services.metrics.count(request.services.metrics.upstream_errors, error.reason)
        if request.client.started:
            request.client.abort()
        else:
            await request.reject(
                bad_gateway("The upstream could not be reached or broke off. Try again.", f"upstream_{error.reason}")
            )
    except Interrupted:
        request.client.abort()
    finally:
        request.services.live.discard(request)
        request.client.let_go()
        request.log()


async def _answer(request: GatewayRequest) -> None:
    services, method = request.services, request.method
    key = request.key = await services.authenticator.authenticate(request.headers, request.peer)
    found = OBJECT_PATH.match(request.path)
    response_id, verb = (found[1].decode(), (found[2] or b"").decode()) if found else ("", "")
    if (verb, method) not in OBJECT_ROUTES:
        offered = ", ".join(allowed for known, allowed in OBJECT_ROUTES if known == verb)
        raise Rejection(405, "method_not_allowed", f"Not allowed to {method} here: use {offered}.")
    await request.client.read_body()  # nothing of it is passed on
    reference = Reference("response", response_id, "response_id")
    if await services.tenants.find_owned(key.account_id, reference) is None:
        raise no_such_object(reference)
    if method == "DELETE" and await services.tenants.is_running(response_id):
        # deleted, it could not be asked what it cost
        raise Rejection(
            409,
            "response_in_progress",
            "This response is still running: cancel it, or wait for its end, before deleting it.",
        )
    query = _query(request.query)
    accept = b"text/event-stream" if "stream=true" in query else b"application/json"
    path = f"/responses/{response_id}{verb}{query}"
    headers = HEADERS % (accept, request.request_id.encode()) + request.trace.lines
    answer = await services.upstream.send(method, path, headers, b"", request.interruption, lambda: None)
    try:
        await _pass_on(request, answer)
    finally:
        answer.close()
    if method == "DELETE" and answer.head.status in (200, 404):
        await services.tenants.objects.forget(response_id)


async def _pass_on(request: GatewayRequest, answer: Answer) -> None:
    """Upstream's answer as it comes; errors without our account's identity."""
    redactor, client, status = request.services.redactor, request.client, answer.head.status
    request.status, request.outcome = status, "completed" if status == 200 else "upstream_error"
    if answer.head.get(b"content-type").startswith(b"text/event-stream"):
        await client.start(
            status, [*redactor.headers(answer.head.headers, request.request_id), (b"cache-control", b"no-cache")]
        )
        while data := await answer.read():
            await client.write(redactor.redact_key(data))
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
    body = redactor.redact_key(body) if status == 200 else redactor.redact_identity(body)
    await client.respond(status, redactor.headers(answer.head.headers, request.request_id), body)


def _query(raw: bytes) -> str:
    """Client's query, rebuilt from what is known. Raises Rejection."""
    pairs = parse_qsl(raw.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=32)
    for name, value in pairs:
        if name not in QUERY or not QUERY_VALUE.match(value):
            raise invalid(f"Unrecognized query parameter or value: {name[:40]}.", name[:40], "unknown_parameter")
    return f"?{urlencode(pairs)}" if pairs else ""
