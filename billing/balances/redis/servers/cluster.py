"""A cluster: the nodes that serve the buckets, and a connection to each; nobody follows a single command.

A bucket's slot has moved (MOVED), is on its way (ASK, TRYAGAIN) or has no node (CLUSTERDOWN): each of these answers
only tells that the map is old. It is looked up anew, the bucket is closed, and entered where it is now (epochs.py). ASK
is not followed: while a slot is on its way half of its keys are here and half there, and no node runs a script on both.

All nodes that we are connected to are asked. Where they differ, the claim with the greatest configuration epoch counts,
as it does among the nodes: a master that was frozen or cut off still claims the slots that its replica has taken over.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from billing.balances.redis.servers.address import NodeAddress, addresses_of, ask_once
from billing.balances.redis.servers.connection import RedisConnection
from billing.balances.redis.servers.serving import LOOK_SECONDS, Servers
from billing.money.buckets import BUCKETS, bucket_of, slot_of_bucket
from billing.money.errors import StoreUnavailable
from config.store_urls import RedisPlace

log = logging.getLogger("tollkeeper.redis")

TROUBLE_SECONDS = 0.1
"""How often the map is looked up while a bucket has no node, or was not where it was asked for."""
MAP = (("CLUSTER", "SLOTS"), ("CLUSTER", "NODES"))

Place = tuple[str, int]
"""Host and port of a node."""


class SlotClaim(NamedTuple):
    """A node's claim to serve slots, under its configuration epoch."""

    epoch: int
    first: int
    last: int
    node: Place


class ClusterView(NamedTuple):
    """The cluster as one node sees it: who serves, and all nodes."""

    claims: list[SlotClaim]
    nodes: set[Place]


def read_view(slots: Any, nodes: bytes, asked: Place) -> ClusterView:
    """Read the answers to MAP. A node without a host, or "?", is the one that was asked."""
    epochs = {}
    for line in nodes.decode().splitlines():
        name, _, _, _, _, _, epoch, *_ = line.split(" ")
        epochs[name] = int(epoch)
    claims, places = list[SlotClaim](), set[Place]()
    for first, last, *serving in slots:
        found = []
        for host, port, name, *_ in serving:
            spoken = (host or b"").decode()
            found.append(((asked[0] if spoken in ("", "?") else spoken, int(port)), name.decode()))
        place, name = found[0]
        claims.append(SlotClaim(epochs.get(name, 0), int(first), int(last), place))
        places.update(place for place, _ in found)
    return ClusterView(claims, places)


def serving_nodes(views: Iterable[ClusterView]) -> list[Place | None]:
    """Return the node of each bucket, by the newest claim to its slot; None where nobody claims it."""
    claims = sorted(claim for view in views for claim in view.claims)
    found: list[Place | None] = [None] * BUCKETS
    for bucket in range(BUCKETS):
        slot = slot_of_bucket(bucket)
        for claim in claims:  # the newest comes last
            if claim.first <= slot <= claim.last:
                found[bucket] = claim.node
    return found


async def _nowhere() -> NodeAddress:
    raise StoreUnavailable("redis", "no node of the cluster serves the bucket")


class ClusterServers(Servers):
    """The nodes of a cluster that serve a bucket."""

    divided = True

    def __init__(
        self,
        place: RedisPlace,
        timeout_seconds: int | float,
        on_connect: Callable[[RedisConnection], None],
        on_moved: Callable[[list[int]], None],
    ) -> None:
        """`on_moved` is told of buckets that another node serves now. Raises OSError for files that cannot be read."""
        super().__init__(_nowhere, timeout_seconds, on_connect)  # of buckets whose node is not known
        self._on_moved = on_moved
        self._seeds = addresses_of(place)
        self._nodes: set[Place] = set()
        """All that the map named last; the URL's may be gone one day."""
        self._by_place: dict[Place, RedisConnection] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._trouble = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._problem = ""

    def start(self) -> None:
        """See Servers."""
        self._following = asyncio.create_task(self._follow(), name="redis-cluster")

    async def close(self) -> None:
        """See Servers."""
        if self._following:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
        await asyncio.gather(*(one.close() for one in self._by_place.values()), *self._leaving)

    @property
    def failure(self) -> str:
        """See Servers."""
        return self._problem or super().failure

    def lease_of(self, name: str) -> tuple[RedisConnection, str]:
        """See Servers. Beside the keys of its own bucket, or the next one whose node is there, so that jobs go on.

        Where processes differ on that, two lead for a moment, as after a leader that hung: jobs are safe with that.
        """
        home = bucket_of(name)
        buckets = [(home + step) % BUCKETS for step in range(BUCKETS)]
        bucket = next((one for one in buckets if self.of[one].ready), home)
        return self.of[bucket], f"{{b{bucket}}}:lease:{name}"

    def heard_elsewhere(self) -> None:
        """See Servers: look the map up now."""
        self._trouble.set()

    async def _follow(self) -> None:
        while True:
            self._trouble.clear()
            try:
                self._assign(serving_nodes(await self._views()))
                self._problem = ""
            except StoreUnavailable as error:
                if not self._problem:
                    log.warning("the cluster's map cannot be read: %s", error)
                self._problem = str(error).removeprefix("redis: ")
            whole = all(connection.ready for connection in self.of)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS if whole else TROUBLE_SECONDS):
                    await self._trouble.wait()
                    await asyncio.sleep(TROUBLE_SECONDS / 2)  # all that are told so at once share a look

    async def _views(self) -> list[ClusterView]:
        """Return the views of the nodes that we are connected to; of any, where there is none."""
        ready = [(place, one) for place, one in self._by_place.items() if one.ready]
        views = await asyncio.gather(*(self._view_of(*one) for one in ready), return_exceptions=True)
        found = [view for view in views if isinstance(view, ClusterView)]
        if not found:
            found, failures = await self._views_of_strangers()
            if not found:
                raise StoreUnavailable("redis", f"no node of the cluster tells who serves: {'; '.join(failures)}")
        self._nodes = {place for view in found for place in view.nodes}
        return found

    async def _view_of(self, place: Place, connection: RedisConnection) -> ClusterView:
        slots, nodes = await asyncio.gather(*(connection.call(*command) for command in MAP))
        return read_view(slots, nodes, place)

    async def _views_of_strangers(self) -> tuple[list[ClusterView], list[str]]:
        """Return the views of nodes that we are not connected to, and why others have none."""
        places = dict.fromkeys([*((one.host, one.port) for one in self._seeds), *sorted(self._nodes)])
        asked = await asyncio.gather(*(self._ask(place) for place in places), return_exceptions=True)
        views = [one for one in asked if isinstance(one, ClusterView)]
        return views, [str(one).removeprefix("redis: ") for one in asked if isinstance(one, BaseException)]

    async def _ask(self, place: Place) -> ClusterView:
        slots, nodes = await ask_once(self._seeds[0].at(*place), self._timeout, *MAP)
        return read_view(slots, nodes, place)

    def _assign(self, nodes: list[Place | None]) -> None:
        """Connect to the nodes that serve, leave those that serve no longer, and tell which buckets have moved."""
        moved = []
        for bucket, place in enumerate(nodes):
            if place is None:
                continue  # it is where it was, or nowhere yet
            connection = self._by_place.get(place) or self._connect(place)
            if self.of[bucket] is not connection:
                self.of[bucket] = connection
                moved.append(bucket)
        for place, connection in list(self._by_place.items()):
            if connection not in self.of:
                del self._by_place[place]
                leaving = asyncio.create_task(connection.close())
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)
        if moved:
            self._on_moved(moved)

    def _connect(self, place: Place) -> RedisConnection:
        address = self._seeds[0].at(*place)

        async def here() -> NodeAddress:
            return address

        connection = RedisConnection(here, self._timeout, self._on_connect, self.heard_elsewhere)
        self._by_place[place] = connection
        connection.start()
        return connection
