"""Lists of an account's own objects: which they are is known in SQL, what each says is asked upstream.

Upstream's own lists are those of the whole shared account, so none of them is ever asked for.
"""

import asyncio
import re
from typing import Any

import msgspec

from proxy.gateway.answers.decode import decode_object
from proxy.gateway.batches.shown import shown_batch
from proxy.gateway.endpoints import refuse_beta
from proxy.gateway.request import GatewayRequest
from proxy.gateway.unmetered.object_routes import ObjectRoute
from proxy.gateway.upstream.interruption import Interruption, UpstreamError
from proxy.gateway.vector_stores.sizes import remember_sizes
from proxy.web.raw_request import query_pairs
from proxy.web.rejections import invalid

MOST_LISTED = 100
"""Objects on one page, however many were asked for: each is asked for by itself. `has_more` says that there are more,
and clients turn the page.
"""
AT_ONCE = 8
"""Objects that are asked for side by side, for one list."""
MOST_LOOKED_AT = 500
"""Objects that one list asks for at most, where a filter leaves most of them out."""
OK, NOT_FOUND = 200, 404
LONGEST = 1_048_576
"""Bytes of one object."""
HEADERS = b"Accept: application/json\r\nX-Client-Request-Id: %s\r\n"
LIMIT = re.compile(r"[0-9]{1,6}")
METADATA = re.compile(r"metadata\[([^\]]{1,64})\]")


class _Asked:
    """Query of a list. Raises Rejection for what is no parameter of it."""

    def __init__(self, raw: bytes, route: ObjectRoute) -> None:
        self.limit, self.after, self.newest_first = min(route.limits[0], MOST_LISTED), "", True
        self.before = ""
        self.wanted: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        for name, value in query_pairs(raw):
            self._take(name, value, route)

    def _take(self, name: str, value: str, route: ObjectRoute) -> None:
        member = METADATA.fullmatch(name)
        if name == "limit":
            most = route.limits[1]
            if not LIMIT.fullmatch(value) or not 1 <= int(value) <= most:
                raise invalid(f"`limit` must be between 1 and {most}.", "limit")
            self.limit = min(int(value), MOST_LISTED)
        elif name == "after":
            self.after = value[:120].replace("\0", "")
        elif name == "before" and name in route.query:
            self.before = value[:120].replace("\0", "")
        elif name == "order":
            if value not in ("asc", "desc"):
                raise invalid("`order` must be asc or desc.", "order")
            self.newest_first = value == "desc"
        elif name in route.filters and name != "metadata":
            self.wanted[name] = value
        elif member and "metadata" in route.filters:
            self.metadata[member[1]] = value
        elif name == "beta":
            raise refuse_beta()
        else:
            raise invalid(f"Unrecognized query parameter: {name[:40]}.", name[:40], "unknown_parameter")

    def fits(self, found: dict[str, Any]) -> bool:
        """Tell whether an object is what the filters ask for."""
        metadata = found.get("metadata")
        said: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
        return all(found.get(name) == value for name, value in self.wanted.items()) and all(
            said.get(name) == value for name, value in self.metadata.items()
        )


async def answer_list(request: GatewayRequest, route: ObjectRoute, account_id: str) -> None:
    """Answer with a page of the account's own objects. Raises Rejection, UpstreamError, StoreUnavailable."""
    asked = _Asked(request.query, route)
    async with request.services.list_turns.turn(account_id):
        await _answer_page(request, route, account_id, asked)


async def _answer_page(request: GatewayRequest, route: ObjectRoute, account_id: str, asked: _Asked) -> None:
    backwards = bool(asked.before and not asked.after)
    if backwards:  # the nearest before it come first, and are turned round
        asked.after, asked.newest_first = asked.before, not asked.newest_first
    found: list[dict[str, Any]] = []
    after, looked_at, more = asked.after, 0, True
    while more and len(found) <= asked.limit and looked_at < MOST_LOOKED_AT:
        page = await _page(request, account_id, route.lists, asked, after)
        more = len(page) > asked.limit
        page = page[: asked.limit]
        looked_at += len(page)
        after = page[-1][0] if page else after
        found += [one for one in await _fetch_all(request, route.path, page) if asked.fits(one)]
    if route.lists == "batch":
        batches = request.services.tenants.objects.batches
        found = [await shown_batch(batches, one) for one in found]
    if route.lists == "vector_store":
        await remember_sizes(request.services, found)
    shown = found[: asked.limit]
    if backwards:
        shown.reverse()
    body = {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": more or len(found) > asked.limit,
    }
    await request.answer_json(msgspec.json.encode(body))


async def _page(
    request: GatewayRequest, account_id: str, kind: str, asked: _Asked, after: str
) -> list[tuple[str, str]]:
    """(id, where it is kept) of one page, and one more if there is one."""
    objects = request.services.tenants.objects
    return await objects.page(account_id, kind, asked.limit + 1, after, newest_first=asked.newest_first)


async def _fetch_all(request: GatewayRequest, path: str, page: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Ask for each, a few side by side; what is gone upstream is forgotten here."""
    found: list[dict[str, Any]] = []
    for start in range(0, len(page), AT_ONCE):
        answers = await asyncio.gather(
            *(_fetch(request, path, one, kept_at) for one, kept_at in page[start : start + AT_ONCE])
        )
        found += [one for one in answers if one is not None]
    return found


async def _fetch(request: GatewayRequest, path: str, object_id: str, kept_at: str) -> dict[str, Any] | None:
    services = request.services
    headers = HEADERS % request.request_id.encode()
    target = f"{path.removeprefix('/v1')}/{object_id}"
    # an interruption of its own: one request cannot wake several readers
    pool = services.upstreams.kept_at(kept_at).pool
    answer = await pool.send("GET", target, headers, b"", Interruption(), lambda: None)
    try:
        whole = await answer.collect(LONGEST)
    finally:
        answer.close()
    if answer.head.status == NOT_FOUND:
        await services.tenants.objects.forget(object_id)
        return None
    if answer.head.status != OK:
        raise UpstreamError(f"status_{answer.head.status // 100}xx", sent=True)
    return decode_object(services.redactor.redact_key(whole))
