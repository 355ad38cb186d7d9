"""One upstream of the pool: where it is, how it is spoken to, its health, and what is in flight there."""

from fnmatch import fnmatchcase
from urllib.parse import SplitResult, urlsplit

import msgspec

from config.secrets import Secret
from config.settings import Upstream, UpstreamEntry
from config.upstreams import keeps_objects, recorded_name, takes_tier, takes_usage_option
from proxy.gateway.upstream.circuit import Circuit
from proxy.gateway.upstream.control import headers_for
from proxy.gateway.upstream.pool import UpstreamPool

SPARE = 1e-6
"""Weight of one that serves only when no other can, for counting its share."""


class Member:
    """An upstream. `share`: what it has served, in units of its weight; `plain`: it takes whatever OpenAI does."""

    __slots__ = (
        "_user_agent",
        "circuit",
        "entry",
        "in_flight",
        "keeps",
        "key",
        "name",
        "plain",
        "pool",
        "recorded",
        "settings",
        "share",
        "tiers",
    )

    def __init__(self, shared: Upstream, entry: UpstreamEntry, key: Secret, user_agent: str) -> None:
        """`shared`: bounds of its connections. Call `close` at the end."""
        self.name, self.recorded = entry.name, recorded_name(entry.name)
        self._user_agent = user_agent
        self.circuit = Circuit()
        self.in_flight = 0
        self.share = 0.0
        self._take(shared, entry, key)
        self.pool = UpstreamPool(self.settings, self.credentials(), user_agent)

    def _take(self, shared: Upstream, entry: UpstreamEntry, key: Secret) -> None:
        self.entry, self.key = entry, key
        self.settings = msgspec.structs.replace(shared, base_url=entry.base_url)
        self.keeps, self.tiers = keeps_objects(entry), takes_tier(entry)
        self.plain = entry.dialect == "openai" and self.keeps and self.tiers and takes_usage_option(entry)

    def change(self, shared: Upstream, entry: UpstreamEntry, key: Secret) -> None:
        """Serve what begins from now on by another entry of the same name, or with another key."""
        moved = entry.base_url != self.entry.base_url
        if key.reveal() != self.key.reveal() or entry != self.entry:
            self.circuit = Circuit()  # what was refused may be welcome now
        self._take(shared, entry, key)
        if moved:
            self.pool.retire()
            self.pool = UpstreamPool(self.settings, self.credentials(), self._user_agent)
        else:
            self.pool.use(self.credentials())

    @property
    def place(self) -> SplitResult:
        """Its address."""
        return urlsplit(self.entry.base_url)

    def headers(self) -> dict[str, str]:
        """Return the headers that say to it who we are."""
        return headers_for(self.entry, self.key)

    def credentials(self) -> bytes:
        """Return these headers as lines."""
        return "".join(f"{name}: {value}\r\n" for name, value in self.headers().items()).encode()

    def serves(self, model: str) -> bool:
        """Tell whether a model is one of those that it is for."""
        return any(glob == "*" or fnmatchcase(model, glob) for glob in self.entry.models)

    @property
    def load(self) -> float:
        """Requests served and in flight there, by its weight: who has the least comes first."""
        return self.share + self.in_flight / (self.entry.weight or SPARE)

    def begin(self) -> None:
        """Take note of a request that is sent there."""
        self.in_flight += 1
        self.share += 1 / (self.entry.weight or SPARE)

    def end(self) -> None:
        """Take note that one of them has ended."""
        self.in_flight -= 1
