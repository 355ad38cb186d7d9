"""What every exchange shares, and what it needs of the connection it answers on. No ASGI in here."""

from dataclasses import dataclass, field
from typing import Protocol

from billing.money.holds import Balances
from billing.money.pricing import PriceBook
from config.secrets import Secret
from config.settings import Settings
from proxy.gateway.authenticate import Authenticator
from proxy.gateway.bodies.tokenizer import Tokenizer
from proxy.gateway.upstream.pool import Interruption, UpstreamPool
from proxy.gateway.upstream.tenants import Tenants
from proxy.observability.log import RequestLog
from proxy.observability.metrics import Metrics
from proxy.observability.tracing import Tracing


class Live(Protocol):
    """A running exchange, as a shutdown sees it."""

    interruption: Interruption


class ClientSide(Protocol):
    """What an exchange needs of the connection it answers on; no ASGI in here."""

    async def read_body(self) -> bytes:
        """The whole request body, within its limits. Raises Rejection, Interrupted."""
        ...

    def let_go(self) -> None:
        """The request body is not needed any more."""
        ...

    async def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole response; its length is added. Raises Interrupted when the client never reads."""
        ...

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head of a streamed response."""
        ...

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Send body bytes; waits while the client reads slowly. Raises Interrupted when it never reads."""
        ...

    def write_now(self, data: bytes) -> None:
        """Send body bytes without waiting; look at `keeps_up` afterwards."""
        ...

    @property
    def keeps_up(self) -> bool:
        """False while the client reads more slowly than it is written to."""
        ...

    async def drained(self) -> None:
        """Wait until it keeps up. Raises Interrupted when it never reads."""
        ...

    @property
    def started(self) -> bool:
        """Whether a response has begun."""
        ...

    def abort(self) -> None:
        """Break the connection, so that the client cannot take what it has for a whole answer."""
        ...


@dataclass(slots=True)
class Services:
    """What every exchange shares; built once by the composition root."""

    settings: Settings
    prices: PriceBook
    balances: Balances
    authenticator: Authenticator
    tokenizer: Tokenizer
    tenants: Tenants
    upstream: UpstreamPool
    upstream_key: Secret
    metrics: Metrics
    log: RequestLog
    tracing: Tracing
    origin: str = ""
    """How this server is reached where portal.public_url does not say it; "" = unknown."""
    overloaded: str = ""
    live: "set[Live]" = field(default_factory=set)

    def absolute(self, url: str) -> str:
        """A link that works outside a page of ours: a path of this server gets its origin."""
        return (self.settings.portal.public_url or self.origin).rstrip("/") + url if url.startswith("/") else url
