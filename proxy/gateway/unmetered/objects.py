"""Objects stored upstream: made, read, changed and deleted by the account that owns them, unmetered.

What they hold costs when a request reads it, and is held for then (Tenants.context). The line of one request:

    authenticate → find route → count → read body → owners → room → forward → owner in SQL → answer

The owner is in SQL before the id is shown (I8); another tenant's id is the 404 of an id that never was.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlencode

from billing.ledger.accounts import ApiKey
from billing.ledger.objects.upstream_objects import MadeObject
from billing.money.errors import StoreUnavailable
from proxy.gateway.access_log import report_account
from proxy.gateway.admission import is_free
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.events import RESPONSE_EVENTS, EventMeter
from proxy.gateway.answers.upstream_errors import masked_body
from proxy.gateway.batches.outputs import lines_of
from proxy.gateway.batches.shown import shown_bytes, shown_line
from proxy.gateway.bodies.parsed import Reference
from proxy.gateway.endpoints import refuse_beta
from proxy.gateway.forwarding import pinned_member
from proxy.gateway.limits.free_calls import count_free_call
from proxy.gateway.limits.standing import check_standing, unhurried
from proxy.gateway.request import GatewayRequest, read_beginning
from proxy.gateway.stream_relay import KeepAlive
from proxy.gateway.unmetered.object_bodies import ObjectBody
from proxy.gateway.unmetered.object_lists import answer_list
from proxy.gateway.unmetered.object_routes import OWNED_KINDS, PREFIXES, ObjectRoute, routes_of
from proxy.gateway.unmetered.room import parent_of, room_for
from proxy.gateway.upstream.answer import Answer
from proxy.gateway.upstream.interruption import UpstreamError
from proxy.gateway.upstream.judgement import failure_in, judge
from proxy.gateway.upstream.member import Member
from proxy.gateway.upstream.route import Needs
from proxy.gateway.upstream.tenants import CANNOT_KEEP, no_such_object
from proxy.gateway.vector_stores.sizes import look_at, remember_sizes
from proxy.gateway.workload.body_shape import is_heavy
from proxy.web.raw_request import first_header, query_pairs
from proxy.web.rejections import Rejection, invalid, unavailable

QUERY_VALUE = re.compile(r"^[A-Za-z0-9_.\[\]-]{0,120}$")
HEADERS = b"Content-Type: %s\r\nAccept: %s\r\nX-Client-Request-Id: %s\r\n"
OK, NOT_FOUND = 200, 404
HOMELY = ("file", "conversation")
"""Kinds that one request may name several of."""
MANY = ("file", "upload_part")
"""Kinds of which one body may name thousands: they are looked up together."""
NO_BODY = ObjectBody(b"")


def is_object_path(raw_path: bytes) -> bool:
    """Tell whether a path is one of stored objects."""
    return raw_path.startswith(PREFIXES) and bool(routes_of(raw_path)[0])


async def answer_object(request: GatewayRequest) -> None:
    """Answer one such request on the request's client. Never raises but for cancellation."""
    await request.answer_by(_answer(request))


async def _answer(request: GatewayRequest) -> None:
    services, method = request.services, request.method
    key = request.key = await services.authenticator.authenticate(request.headers, request.peer)
    routes, ids = routes_of(request.path)
    route = routes.get(method)
    if route is None:
        raise Rejection(405, "method_not_allowed", f"Not allowed to {method} here: use {', '.join(sorted(routes))}.")
    request.endpoint = route.path
    await count_free_call(services, key, request.request_id, request.started_ms)
    raw = await request.client.read_body()  # of a route without a body nothing is passed on
    if is_heavy(raw):
        free = is_free(request.settings, key.home_id)
        await check_standing(services, unhurried(key), request.request_id, request.started_ms, free=free)
    content_type = first_header(request.headers, b"content-type", b"application/json")
    body = NO_BODY if route.read is None else await services.bodies.read(raw, content_type, route.read)
    if body.texts and body.tokens is not None:
        counted = await services.tokenizer.count("", list(body.texts))
        body = body._replace(tokens=body.tokens + counted)
    kept_at = await _check_owners(request, ids, body, key.account_id)
    if route.lists:
        await answer_list(request, route, key.account_id)
        return
    if route.deletes and "response" in ids and await services.tenants.is_running(ids["response"]):
        # deleted, it could not be asked what it cost
        raise Rejection(
            409,
            "response_in_progress",
            "This response is still running: cancel it, or wait for its end, before deleting it.",
        )
    if route.grows:
        # counted before they are added: whoever reads the conversation meanwhile is held for them
        await services.tenants.objects.grow(ids["conversation"], body.tokens, pictures=body.pictures)
    if route.empties:
        await look_at(services, ids["vector_store"], request.request_id)
    stores = (route.makes and not route.made_in) or route.fills
    room = room_for(request, route, ids, key, body) if stores else contextlib.nullcontext()
    async with room:
        members = await _members(request, key, kept_at, brings=route.read is not None)
        status = await _forward(request, route, ids, body, members)
    if route.grows and status != OK and body.tokens:
        with contextlib.suppress(StoreUnavailable):  # it stays too large then, which holds more and costs nothing
            await services.tenants.objects.grow(ids["conversation"], -body.tokens)


async def _members(request: GatewayRequest, key: ApiKey, kept_at: frozenset[str], *, brings: bool) -> Sequence[Member]:
    """Find who is asked, in order: where the objects are kept; for a new one where the account's others are.

    `brings`: something new comes there. Raises Rejection.
    """
    upstreams = request.services.upstreams
    if kept_at:
        return (pinned_member(upstreams, kept_at, region=key.region if brings else ""),)
    if upstreams.alone is not None and not key.region:
        return (upstreams.alone,)
    found = upstreams.route(Needs(region=key.region, stores=True, home=key.account_id)).members
    kept = await request.services.tenants.objects.home_of(key.account_id, HOMELY)
    home = None if kept is None else upstreams.find(kept)
    return sorted(found, key=lambda member: (bool(member.circuit.reason), member is not home))


async def _check_owners(
    request: GatewayRequest, ids: dict[str, str], body: ObjectBody, account_id: str
) -> frozenset[str]:
    """Refuse every object of a path or a body that is not this account's own; return where they are kept.

    Raises Rejection.
    """
    tenants, storing = request.services.tenants, request.settings.billing.allow_store
    owned = [Reference(kind, name, f"{kind}_id") for kind, name in ids.items() if kind in OWNED_KINDS]
    kept_at = set[str]()
    for reference in (*owned, *(one for one in body.references if one.kind not in MANY)):
        found = await tenants.find_owned(account_id, reference)
        if found is None:
            raise no_such_object(reference, storing=storing)
        kept_at.add(found.upstream)
    many = [one for one in body.references if one.kind in MANY]
    foreign = await tenants.first_foreign(account_id, many) if many else None
    if foreign is not None:
        raise no_such_object(foreign, storing=storing)
    if many:
        kept_at.update((await tenants.objects.kept_at([one.id for one in many])).values())
    return frozenset(kept_at)


async def _forward(
    request: GatewayRequest, route: ObjectRoute, ids: dict[str, str], body: ObjectBody, members: Sequence[Member]
) -> int:
    """Ask upstream and pass its answer on; return its status. Raises Rejection, UpstreamError, Interrupted."""
    services = request.services
    query = _query(request.query, route)
    accept = b"text/event-stream" if "stream=true" in query else b"application/json"
    headers = HEADERS % (body.content_type, accept, request.request_id.encode()) + request.trace.lines
    path = request.path.decode().removeprefix("/v1") + query
    answer, member = await _ask(request, members, path, headers, body.source)
    status = answer.head.status
    try:
        if route.deletes and status in (OK, NOT_FOUND):
            # before the client hears of it, as what is made: it may ask for its list next, or leave
            with contextlib.suppress(StoreUnavailable):  # it is deleted all the same: the next list forgets it
                await services.tenants.objects.forget(next(iter(ids.values())))
        if status != OK:
            await request.pass_error(answer)
        elif answer.head.get(b"content-type").startswith(b"text/event-stream"):
            await _relay_events(request, answer)
        elif route.own_bytes:
            await _relay_bytes(request, answer, await _are_answers(request, ids["file"]))
        else:
            whole = await answer.collect()
            if request.method == "POST":
                await _record_made(request, route, ids, whole, body, member.recorded)
            if "vector_store" in ids or route.makes == "vector_store":
                await remember_sizes(services, [decode_object(whole) or {}])
            if "batch" in ids:
                whole = await shown_bytes(services.tenants.objects.batches, whole)
            await _pass_on(request, answer, whole)
    finally:
        answer.close()
    return status


async def _ask(
    request: GatewayRequest, members: Sequence[Member], path: str, headers: bytes, body: bytes
) -> tuple[Answer, Member]:
    """Ask one after the other while nothing is made by it. Raises UpstreamError, Interrupted."""
    left = list(members[: request.settings.failover.tries])
    while True:
        member = left.pop(0)
        try:
            answer = await member.pool.send(request.method, path, headers, body, request.interruption, lambda: None)
        except UpstreamError as error:
            _count_failed(request, member, error.reason)
            if error.reason != "busy":
                member.circuit.failed(error.reason, asyncio.get_running_loop().time())
            if error.sent or not left:
                raise
            continue
        try:
            reason = await _judged(request, member, answer)
        except BaseException:
            answer.close()
            raise
        if not reason or not left:
            return answer, member
        answer.close()


async def _judged(request: GatewayRequest, member: Member, answer: Answer) -> str:
    """Take note of what an answer says of its upstream; return why that does not serve, "" where it does."""
    status, services = answer.head.status, request.services
    if status < 400:
        member.circuit.served()
        return ""
    body = await read_beginning(answer)
    answer.put_back(body)
    reason = failure_in(status, body, services.redactor)
    judge(member, answer.head, reason, "", asyncio.get_running_loop().time())
    if reason:
        _count_failed(request, member, reason)
    return reason


def _count_failed(request: GatewayRequest, member: Member, reason: str) -> None:
    metrics = request.services.metrics
    metrics.upstreams.count_failed(metrics.count, member.name, reason, 0)


async def _record_made(
    request: GatewayRequest, route: ObjectRoute, ids: dict[str, str], whole: bytes, body: ObjectBody, upstream: str
) -> None:
    """Record the owner of what was made at an upstream, before anyone sees its id (I8). Raises Rejection."""
    said: dict[str, Any] = decode_object(whole) or {}
    made = []
    one: dict[str, Any] = said.get(route.made_in) or {} if route.made_in else said
    if route.makes and isinstance(one.get("id"), str):
        made.append(_made(route, ids, one, body))
    items = said.get("data") if "conversation" in ids else None
    named = [item.get("id") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    made += [
        MadeObject(name, "item", body.tokens, picture_extra=body.pictures)
        for name in named
        if isinstance(name, str) and name not in body.named  # an id that the client gave says nothing of whose it is
    ]
    if not made:
        return
    objects = request.services.tenants.objects
    try:
        owner = request.key.account_id if request.key is not None else ""
        await objects.record_owner(owner, request.request_id, made, upstream)
        if route.makes == "vector_store" and body.references:
            files = sorted({reference.id for reference in body.references})
            await objects.stores.expect(one["id"], await objects.size_of(files), body.chunk_tokens)
        if route.made_in:  # only now: what it took is counted until its file is
            await objects.forget(ids["upload"])
    except StoreUnavailable:
        raise unavailable(CANNOT_KEEP, "store_unavailable") from None


def _made(route: ObjectRoute, ids: dict[str, str], said: dict[str, Any], body: ObjectBody) -> MadeObject:
    """Object that upstream says it made; of a file that came in parts, its size by upstream's own word."""
    tokens, size = body.tokens, body.size_bytes
    if route.made_in:
        size = said["bytes"] if type(said.get("bytes")) is int else 0
    if route.fills:
        tokens = body.chunk_tokens
    parent = parent_of(route.makes, ids)
    return MadeObject(said["id"], route.makes, tokens, "", body.pictures, size_bytes=size, parent_id=parent)


async def _relay_events(request: GatewayRequest, answer: Answer) -> None:
    """Relay events of a response that was settled when it was made: what they cost is nobody's business here."""
    redactor, client = request.services.redactor, request.client
    request.status, request.outcome = OK, "completed"
    meter = EventMeter(RESPONSE_EVENTS, 1)
    headers = redactor.headers(answer.head.headers, request.request_id)
    await client.start(OK, [*headers, (b"cache-control", b"no-cache"), *request.own_headers()])
    try:
        with KeepAlive(client, answer, meter, request.settings.metering.keepalive_comment_seconds):
            while not meter.done and (data := await answer.read()):
                if passed := meter.feed(data):
                    await client.write(redactor.redact_key(passed))
    except UpstreamError:
        await client.write(redactor.redact_key(b"".join((*meter.tail, meter.rest()))))
        raise
    report_account(request.services, meter.account, OK, request.request_id)
    await client.write(redactor.redact_key(b"".join((*meter.tail, meter.rest()))), last=True)


async def _are_answers(request: GatewayRequest, file_id: str) -> bool:
    """Tell whether a batch made this file."""
    objects = request.services.tenants.objects
    found = await objects.find(file_id)
    return found is not None and await objects.batches.find(found.charge_id) is not None


async def _pieces(answer: Answer) -> AsyncIterator[bytes]:
    while data := await answer.read():
        yield data


async def _relay_bytes(request: GatewayRequest, answer: Answer, answers: bool) -> None:
    """Relay a file as it comes, however large. `answers`: of a batch, which may tell of our account where one failed;
    else nothing in it is a word of the upstream's.
    """
    redactor, client = request.services.redactor, request.client
    request.status, request.outcome = OK, "completed"
    headers = redactor.headers(answer.head.headers, request.request_id)
    await client.start(OK, [*headers, *request.own_headers()])
    if answers:
        async for line in lines_of(_pieces(answer)):
            await client.write(redactor.redact_key(shown_line(line)) + b"\n")
    else:
        async for data in _pieces(answer):
            await client.write(redactor.redact_key(data))
    await client.write(b"", last=True)


async def _pass_on(request: GatewayRequest, answer: Answer, whole: bytes) -> None:
    """Pass a whole answer on, without our key, and without what it says of our own account."""
    redactor = request.services.redactor
    request.status, request.outcome = OK, "completed"
    account, body = masked_body(redactor.redact_key(whole))
    report_account(request.services, account, OK, request.request_id)
    headers = redactor.headers(answer.head.headers, request.request_id) + request.own_headers()
    await request.client.respond(OK, headers, body)


def _query(raw: bytes, route: ObjectRoute) -> str:
    """Client's query, rebuilt from what is known. Raises Rejection."""
    pairs = query_pairs(raw)
    for name, value in pairs:
        if name == "beta":
            raise refuse_beta()
        if name not in route.query or not QUERY_VALUE.match(value):
            raise invalid(f"Unrecognized query parameter or value: {name[:40]}.", name[:40], "unknown_parameter")
    return f"?{urlencode(pairs)}" if pairs else ""
