"""Room for what is stored: how much one account may keep, by count, by bytes, and by what it can pay for."""

import contextlib
from collections.abc import AsyncIterator

from billing.ledger.accounts import ApiKey
from billing.money.errors import StoreUnavailable
from proxy.gateway.admission import admit
from proxy.gateway.request import GatewayRequest
from proxy.gateway.unmetered.object_bodies import ObjectBody
from proxy.gateway.unmetered.object_routes import ObjectRoute
from proxy.gateway.vector_stores.storage_price import check_funds, refuse_unpriced
from proxy.web.rejections import forbidden, invalid

STORE = "vector_store"
FILES = ("file", "upload")
"""Kinds that are counted together: an upload is to become a file."""
PARENTS = {"upload_part": "upload", "file_batch": STORE}
"""Kinds that are counted in what they belong to → its kind."""
NAMES = {"batch": "batches", "file_batch": "file batches"}


def parent_of(kind: str, ids: dict[str, str]) -> str:
    """Return the id of what an object of this kind belongs to, as the path names it; "" for none."""
    return ids.get(PARENTS.get(kind, ""), "")


@contextlib.asynccontextmanager
async def room_for(
    request: GatewayRequest, route: ObjectRoute, ids: dict[str, str], key: ApiKey, body: ObjectBody
) -> AsyncIterator[None]:
    """Keep room for what a request is about to store, while it does.

    Raises Rejection for what would not be stored here, and for more than one account may keep, or can pay for;
    StoreUnavailable. Bytes are claimed before they are looked at: of many at once none sees less than there will be.
    """
    if not request.settings.billing.allow_store:
        raise forbidden(
            "Nothing is stored here: the operator has switched `billing.allow_store` off.", "storing_is_off"
        )
    account_id, free = key.account_id, admit(request.settings, key.home_id, request.services.overloaded)
    objects = request.services.tenants.objects
    if route.makes:
        await _check_count(request, route.makes, parent_of(route.makes, ids), account_id)
    if route.makes == "upload_part":
        await _check_parts(request, ids["upload"], account_id, body)
    kind, size = "", 0
    if route.fills:
        refuse_unpriced(request.services.prices)
        kind, size = STORE, await objects.size_of(sorted({reference.id for reference in body.references}))
    elif route.makes in FILES:
        kind, size = route.makes, body.size_bytes
    if not kind:
        yield
        return
    await objects.claim_room(account_id, request.request_id, kind, size)
    try:
        taken = await _check_bytes(request, FILES if kind in FILES else (STORE,), account_id, size)
        if kind == STORE and not free:
            await check_funds(request.services, key, taken)
        if STORE in ids:  # it counts in the store itself from now on
            await objects.stores.expect(ids[STORE], size, body.chunk_tokens)
            await objects.free_room(request.request_id)
        yield
    finally:
        with contextlib.suppress(StoreUnavailable):  # it lapses
            await objects.free_room(request.request_id)


async def _check_count(request: GatewayRequest, kind: str, parent_id: str, account_id: str) -> None:
    most = request.settings.storage.max_objects
    kinds = FILES if kind in FILES else (kind,)
    count, _ = await request.services.tenants.objects.totals(account_id, *kinds, parent_id=parent_id)
    if count >= most:
        whose = "It" if parent_id else "This account"
        plural = NAMES.get(kind, f"{kind.replace('_', ' ')}s")
        raise forbidden(
            f"{whose} has {count} {plural}, and at most {most} may be kept: delete some.", "too_many_objects"
        )


async def _check_parts(request: GatewayRequest, upload: str, account_id: str, body: ObjectBody) -> None:
    """Refuse parts beyond the size that was announced, for which there was room."""
    objects = request.services.tenants.objects
    _, sent = await objects.totals(account_id, "upload_part", parent_id=upload)
    announced = await objects.size_of([upload])
    if sent + body.size_bytes > announced:
        message = f"The parts have {sent + body.size_bytes} bytes, and {announced} were announced: cancel the upload."
        raise invalid(message, "data", "too_many_bytes")


async def _check_bytes(request: GatewayRequest, kinds: tuple[str, ...], account_id: str, claimed: int) -> int:
    """Refuse more bytes than one account may keep; return those that it has, with what is claimed for this request."""
    _, size = await request.services.tenants.objects.totals(account_id, *kinds)
    most = request.settings.storage.max_bytes
    if size > most:
        what = "vector stores" if STORE in kinds else "files"
        raise forbidden(
            f"This account's {what} take {size - claimed} bytes, and at most {most} may be kept: delete some.",
            "too_many_bytes",
        )
    return size
