"""The upstreams of this process: one as ever, or several; swapped while serving, asked for health, read for new keys.

With a single one nothing is chosen: `alone` is its route, made once.
"""

import asyncio
import logging
from collections.abc import Mapping

import httpx

from config.errors import ConfigError
from config.secrets import Secret, upstream_keys
from config.settings import Settings
from config.upstreams import DEFAULT_NAME, default_of, entries_of
from proxy.gateway.answers.redact import PASSED_HEADERS, TELL_WHO_SERVED, ResponseRedactor
from proxy.gateway.upstream.control import UpstreamGone, control_client
from proxy.gateway.upstream.interruption import Interruption, UpstreamError
from proxy.gateway.upstream.member import Member
from proxy.gateway.upstream.route import Needs, Route, Served, in_order, serves_all
from proxy.observability.upstream_metrics import UpstreamState
from proxy.web.rejections import Rejection, unavailable

log = logging.getLogger("tollkeeper.upstreams")

PROBE_SECONDS = 5.0
LOOK_SECONDS = 0.5
PROBE = b"Accept: application/json\r\n"
MOST_BYTES = 4_194_304
WELL = (200, 404, 405)
"""Answers to a question for the list of models: a server that has none is well, too."""


class Upstreams:
    """The pool's members by name. Call `close` at the end."""

    def __init__(self, settings: Settings, keys: Mapping[str, Secret], user_agent: str) -> None:
        """`keys` by name, as config.secrets.upstream_keys has them."""
        self._user_agent = user_agent
        self._settings = settings
        self._members: dict[str, Member] = {}
        self._retired: list[Member] = []
        self._clients: dict[str, httpx.AsyncClient] = {}
        self._clock = 0.0
        """Share of who was chosen last: shares are compared from there on."""
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, asyncio.Task[bool]] = {}
        self.redactor = ResponseRedactor(())
        self.served = Served()
        """Who serves what begins now, where nothing is chosen."""
        self.alone: Member | None = None
        """The only one, where it serves everything: then nothing is chosen, and nothing else is there to be tried."""
        self.change(settings, keys)

    # -- who there is ---------------------------------------------------------------------------------

    @property
    def members(self) -> list[Member]:
        """Each of them, as the settings name them."""
        return list(self._members.values())

    @property
    def default(self) -> Member:
        """The one whose prices customers are shown."""
        return self._members[default_of(entries_of(self._settings)).name]

    def alone_with(self, kept_at: frozenset[str]) -> Member | None:
        """Return `alone`, where nothing that a request refers to is kept elsewhere: at one that was removed."""
        alone = self.alone
        return alone if alone is None or not kept_at or kept_at == {alone.recorded} else None

    def find(self, recorded: str) -> Member | None:
        """Return the member of a record's name; None for one that is not configured any more."""
        return self._members.get(recorded or DEFAULT_NAME)

    def kept_at(self, recorded: str) -> Member:
        """Return the member that an object is kept at. Raises Rejection (503)."""
        member = self.find(recorded)
        if member is None:
            log.error("something is kept at upstream %r, which is not configured any more", recorded)
            raise unavailable("What this request refers to cannot be reached right now.", "upstream_not_configured")
        return member

    def route(self, needs: Needs) -> Route:
        """Choose who is asked, in order. Raises Rejection when nobody may serve it."""
        found = in_order(self.members, needs, asyncio.get_running_loop().time())
        if not found:
            raise nobody(needs)
        first = found[0]
        # who was away, or is new, has served little: it gets its share from now on, and has nothing to make up for
        first.share = max(first.share, self._clock)
        if not needs.home and first.entry.weight:
            self._clock = first.share
        return Route(found)

    # -- while serving --------------------------------------------------------------------------------

    def change(self, settings: Settings, keys: Mapping[str, Secret]) -> None:
        """Put other entries or keys in force for what begins from now on; what runs comes to its end where it is."""
        entries = entries_of(settings)
        before, members = self._members, dict[str, Member]()
        for entry in entries:
            key, member = keys[entry.name], before.get(entry.name)
            if member is None:
                member = Member(settings.upstream, entry, key, self._user_agent)
            else:
                member.change(settings.upstream, entry, key)
            members[entry.name] = member
            self.redactor.hide(key)
        for name in before.keys() - members.keys():
            before[name].pool.retire()
            self._retired.append(before[name])
        self._settings, self._members = settings, members
        self.served = Served(self.default.recorded)
        self._retired = [member for member in self._retired if member.pool.connections[0]]
        only = members[entries[0].name]
        self.alone = only if len(members) == 1 and serves_all(only) else None
        shown = len(members) == 1 or settings.failover.show_upstream
        self.redactor.passed = PASSED_HEADERS if shown else PASSED_HEADERS - TELL_WHO_SERVED

    async def look(self) -> int:
        """Read keys that changed in their files, and ask who does not serve whether it does again."""
        self._read_keys()
        now = asyncio.get_running_loop().time()
        for member in self._members.values():
            running = self._probes.get(member.name)
            if self.alone is None and member.circuit.wants_probe(now) and (running is None or running.done()):
                self._probes[member.name] = asyncio.create_task(self._probe(member))
        return 0

    def _read_keys(self) -> None:
        if not any(entry.api_key_file for entry in entries_of(self._settings)):
            return
        try:
            keys = upstream_keys(self._settings)
        except ConfigError as error:
            log.warning("the keys in force stay: %s", error)
            return
        for name, key in keys.items():
            member = self._members[name]
            if key and key.reveal() != member.key.reveal():
                member.change(self._settings.upstream, member.entry, key)
                self.redactor.hide(key)
                log.info("upstream %s has another key from now on", name)

    async def answers(self, member: Member) -> bool:
        """Ask for the list of models, which costs nothing; tell whether it answered. All that ask at once are
        told the same.
        """
        asked = self._asked.get(member.name)
        if asked is None or asked.done():
            asked = self._asked[member.name] = asyncio.create_task(self._ask(member))
        await asyncio.wait((asked,))
        return asked.result()

    async def _ask(self, member: Member) -> bool:
        interruption, answered = Interruption(), False
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                answer = await member.pool.send("GET", "/models", PROBE, b"", interruption, lambda: None)
                try:
                    answered = answer.head.status in WELL
                    await answer.collect(MOST_BYTES)
                finally:
                    answer.close()
        except (UpstreamError, TimeoutError):
            return False
        return answered

    async def _probe(self, member: Member) -> None:
        answered = await self.answers(member)
        was = member.circuit.reason
        member.circuit.probed(asyncio.get_running_loop().time(), answered=answered)
        if answered:
            log.info("upstream %s answers again after %s: it is on trial", member.name, was)

    def client(self, recorded: str) -> httpx.AsyncClient:
        """Return the client for our own questions to an upstream. Raises UpstreamGone."""
        member = self.find(recorded)
        if member is None:
            raise UpstreamGone(f"upstream {recorded!r} is not configured any more")
        client = self._clients.get(member.name)
        if client is None:
            client = self._clients[member.name] = control_client(member.settings, {})
        client.base_url = httpx.URL(member.settings.base_url)
        client.headers = httpx.Headers(member.headers())  # without those of an entry before
        return client

    @property
    def connections(self) -> tuple[int, int]:
        """(open, idle) connections to all of them."""
        pools = [member.pool.connections for member in (*self._members.values(), *self._retired)]
        return sum(one[0] for one in pools), sum(one[1] for one in pools)

    def states(self) -> list[UpstreamState]:
        """Tell how each does, as this process sees it."""
        return [UpstreamState(one.name, not one.circuit.reason, one.in_flight) for one in self._members.values()]

    async def close(self) -> None:
        """Close every connection."""
        for task in (*self._probes.values(), *self._asked.values()):
            task.cancel()
        for member in (*self._members.values(), *self._retired):
            await member.pool.close()
        for client in self._clients.values():
            await client.aclose()


def nobody(needs: Needs) -> Rejection:
    """Refuse what no upstream may serve, in words that name none."""
    if needs.region:
        message = f"Nothing serves this in the region {needs.region!r}, which this account is bound to."
        return unavailable(message, "region_unavailable")
    if needs.tier or needs.stores or needs.socket:
        message = "Nobody serves this model with what the request asks for (a service tier, storing, a socket)."
        return unavailable(message, "upstream_unavailable")
    return Rejection(404, "model_not_found", f"The model {needs.model!r} is not served here.", param="model")
