"""Stored objects at the end of their time: deleted upstream, then forgotten here.

Two reasons: the operator keeps nothing for longer than `storage.keep_days`, and an account that goes takes what it
stored with it. What upstream does not delete now is tried again the next time; nothing is forgotten here that may still
be there.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

import httpx

from billing.ledger.flush import repeat, while_leading
from billing.ledger.objects.upstream_objects import UpstreamObjects
from billing.storage.database import now_ms
from proxy.gateway.services import Services

log = logging.getLogger("tollkeeper.storage")

PATHS = {
    "response": "/responses",
    "chat_completion": "/chat/completions",
    "conversation": "/conversations",
    "vector_store": "/vector_stores",
    "file": "/files",
    "batch_input": "/files",
}
"""Kinds that can be deleted → where; an item goes with the response or the conversation that it stands in."""
EXPIRY_SECONDS = 60.0
AT_ONCE = 200
"""Objects deleted by one step at most."""
DAY_MS = 86_400_000
GONE = (httpx.codes.OK, httpx.codes.NO_CONTENT, httpx.codes.NOT_FOUND)


ClientOf = Callable[[str], httpx.AsyncClient]
"""Finds the client of an upstream by its name in records. Raises httpx.HTTPError when it is gone."""


async def delete_upstream(objects: UpstreamObjects, client_of: ClientOf, rows: Sequence[tuple[str, str]]) -> int:
    """Delete these (id, kind) upstream, and forget them here; return how many are gone. Raises StoreUnavailable.

    What still runs in the background, and what a batch still reads, is left: deleted, it could not be asked what it
    cost. An upstream that does not answer keeps nothing from being deleted at the others.
    """
    gone, kept_at = 0, await objects.kept_at([row[0] for row in rows])
    away = set[str]()
    for object_id, kind in rows:
        where = kept_at[object_id]
        if where in away:
            continue
        if kind == "response" and await objects.is_running(object_id):
            continue
        if kind == "batch_input" and await objects.batches.is_read(object_id):
            continue
        try:
            answer = await client_of(where).delete(f"{PATHS[kind]}/{object_id}")
        except httpx.HTTPError as error:
            log.warning("upstream deletes nothing now (%s); tried again later", type(error).__name__)
            away.add(where)
            continue
        if answer.status_code not in GONE:
            log.warning("upstream did not delete a stored %s (status %d)", kind, answer.status_code)
            continue
        await objects.forget(object_id)
        gone += 1
    return gone


async def forget_stored(objects: UpstreamObjects, client_of: ClientOf, account_id: str) -> tuple[int, int]:
    """Delete all that an account stored; return (how many are gone, how many are left, of these at most AT_ONCE).

    Raises StoreUnavailable.
    """
    gone = 0
    while rows := await objects.made_before(now_ms(), tuple(PATHS), AT_ONCE, account_id):
        deleted = await delete_upstream(objects, client_of, rows)
        gone += deleted
        if not deleted:
            break
    return gone, len(await objects.made_before(now_ms(), tuple(PATHS), AT_ONCE, account_id))


class ObjectExpiry:
    """The one that deletes what is older than `storage.keep_days`; run it where the jobs run."""

    def __init__(self, services: Services) -> None:
        """Take the services of this process."""
        self._services = services
        self._left = 0
        """Old objects that could not be deleted in this round: the next step begins behind them."""

    async def step(self) -> int:
        """Delete some of the oldest; return how many. Raises StoreUnavailable."""
        days = self._services.settings.storage.keep_days
        if not days:
            return 0
        objects = self._services.tenants.objects
        rows = await objects.made_before(now_ms() - days * DAY_MS, tuple(PATHS), AT_ONCE, skip=self._left)
        gone = await delete_upstream(objects, self._services.upstreams.client, rows)
        self._left = self._left + len(rows) - gone if len(rows) == AT_ONCE else 0
        return gone


async def follow_expiry(expiry: ObjectExpiry, leads: Callable[[], Awaitable[bool]]) -> None:
    """Delete for ever, wherever `leads()` says that this process is the one to do so."""
    await repeat(while_leading(leads, expiry.step), EXPIRY_SECONDS, "deleting what was stored")
