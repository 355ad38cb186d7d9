"""The services that every request shares, and the connection it answers on. No ASGI in here."""

import logging
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from billing.balances.hold_queue import HoldQueue
from billing.balances.open_holds import OpenHolds
from billing.money.holds import Balances
from billing.money.pricing import PriceBook
from config.secrets import Secret
from config.settings import Settings
from proxy.gateway.answers.redact import ResponseRedactor
from proxy.gateway.authenticate import Authenticator
from proxy.gateway.bodies.tokenizer import Tokenizer
from proxy.gateway.upstream.interruption import Interruption
from proxy.gateway.upstream.pool import UpstreamPool
from proxy.gateway.upstream.tenants import Tenants
from proxy.observability.log import RequestLog
from proxy.observability.metrics import Metrics
from proxy.observability.tracing import Tracing

log = logging.getLogger("tollkeeper.holds")


class PricingTerms(NamedTuple):
    """The prices that a request begins under and ends under, whatever changes meanwhile.

    `insurance`: whether an answer that failed before any output is free.
    """

    prices: PriceBook
    insurance: bool


class Live(Protocol):
    """A running request, as a shutdown sees it."""

    interruption: Interruption


class ClientSide(Protocol):
    """The connection that a request is answered on."""

    async def read_body(self) -> bytes:
        """Read the whole request body, within its limits. Raises Rejection, Interrupted."""
        ...

    def let_go(self) -> None:
        """Let the request body go: it is not needed any more."""
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
        """True once a response has begun."""
        ...

    def abort(self) -> None:
        """Break the connection, so that the client cannot take what it has for a whole answer."""
        ...


@dataclass(slots=True)
class Services:
    """Shared by every request; built once by the composition root."""

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
    """Address of this server where portal.public_url does not say it; "" = unknown."""
    overloaded: str = ""
    live: "set[Live]" = field(default_factory=set)
    hold_queue: HoldQueue = field(default_factory=HoldQueue)
    open_holds: OpenHolds = field(default_factory=OpenHolds)
    redactor: ResponseRedactor = field(init=False)
    terms: PricingTerms = field(init=False)
    """Terms of whatever begins now."""

    def __post_init__(self) -> None:
        """Put in force what it was made with."""
        self.redactor = ResponseRedactor(self.upstream_key)
        self.put_in_force(self.settings, self.prices)

    def put_in_force(self, settings: Settings, prices: PriceBook) -> None:
        """Choose settings and prices for the requests that begin from now on: the one place where prices are chosen."""
        self.settings, self.prices = settings, prices
        self.terms = PricingTerms(prices, settings.metering.zero_completion_insurance)

    async def settle_stray_holds(self) -> int:
        """Resolve the holds that outlived their requests; return how many there were. There should be none."""
        stray = self.open_holds.stray(self.live)
        for hold in stray:
            self.metrics.count(self.metrics.stray_holds)
            log.error("hold %s outlived its request; it is settled now", hold.request_id)
            await hold.settle_stray()
        return len(stray)

    def absolute(self, url: str) -> str:
        """Make a link that works outside a page of ours: a path of this server gets its origin."""
        return (self.settings.portal.public_url or self.origin).rstrip("/") + url if url.startswith("/") else url
