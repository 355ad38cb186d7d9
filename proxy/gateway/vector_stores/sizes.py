"""Sizes of vector stores, written down whenever upstream says them: a day is charged by them."""

import contextlib
import logging
from collections.abc import Iterable
from typing import Any

from billing.ledger.objects.vector_stores import StoreSize
from billing.money.errors import StoreUnavailable
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.services import Services
from proxy.gateway.upstream.interruption import Interruption, UpstreamError

log = logging.getLogger("tollkeeper.storage")

HEADERS = b"Accept: application/json\r\nX-Client-Request-Id: %s\r\n"
OK = 200
LONGEST = 1_048_576
"""Bytes of one store's object."""
MOST_BYTES = 2**53
"""More than any store takes."""


def size_in(found: dict[str, Any]) -> StoreSize | None:
    """Size that an object says, where it is a vector store's."""
    name, size = found.get("id"), found.get("usage_bytes")
    if found.get("object") != "vector_store" or not isinstance(name, str):
        return None
    if type(size) is not int or not 0 <= size < MOST_BYTES:
        log.error("upstream says no size of the vector store %s", name)
        return None
    counts = found.get("file_counts")
    working = isinstance(counts, dict) and bool(counts.get("in_progress"))
    return StoreSize(name, size, working or found.get("status") == "in_progress")


async def remember_sizes(services: Services, found: Iterable[dict[str, Any]]) -> None:
    """Write down the sizes that these objects say. Where that is not possible now, they are asked for again soon."""
    sizes = [size for one in found if (size := size_in(one)) is not None]
    if sizes:
        with contextlib.suppress(StoreUnavailable):
            await services.tenants.objects.stores.saw(sizes)


async def look_at(services: Services, store_id: str, request_id: str) -> None:
    """Ask upstream what a store takes, before it takes less: the day costs by the most.

    Where upstream does not say, what it said before counts.
    """
    kept_at = (await services.tenants.objects.kept_at([store_id])).get(store_id, "")
    with contextlib.suppress(UpstreamError):
        answer = await services.upstreams.kept_at(kept_at).pool.send(
            "GET", f"/vector_stores/{store_id}", HEADERS % request_id.encode(), b"", Interruption(), lambda: None
        )
        try:
            whole = await answer.collect(LONGEST)
        finally:
            answer.close()
        if answer.head.status == OK:
            await remember_sizes(services, [decode_object(whole) or {}])
