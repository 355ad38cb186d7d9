"""The services that every request shares, and the connection it answers on. No ASGI in here."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import NamedTuple, Protocol

from billing.balances.hold_queue import HoldQueue
from billing.balances.open_holds import OpenHolds
from billing.ledger.plans.in_force import PlansInForce
from billing.money.holds import Balances
from billing.money.pricing import PriceBook
from billing.storage.database import now_ms
from billing.storage.replica import Replica
from config.settings import Settings
from config.upstreams import default_of, entries_of
from proxy.gateway.answers.redact import ResponseRedactor
from proxy.gateway.authenticate import Authenticator
from proxy.gateway.callers.end_users import EndUserTable
from proxy.gateway.callers.origins import TokenOrigins
from proxy.gateway.counting.tokenizer import Tokenizer
from proxy.gateway.upstream.interruption import Interruption
from proxy.gateway.upstream.tenants import Tenants
from proxy.gateway.upstream.upstreams import Upstreams
from proxy.gateway.workload.body_reader import BodyReader
from proxy.gateway.workload.list_turns import ListTurns
from proxy.gateway.workload.socket_seats import SocketSeats
from proxy.observability.log import RequestLog
from proxy.observability.metrics import Metrics
from proxy.observability.tracing import Tracing
from proxy.web.rate_headers import KnownRates

log = logging.getLogger("tollkeeper.holds")


class PricingTerms(NamedTuple):
    """The prices that a request begins under and ends under, whatever changes meanwhile.

    `insurance`: whether an answer that failed before any output is free.
    """

    prices: PriceBook
    insurance: bool


Books = Mapping[str, PriceBook]
"""Price books by the name of the upstream; equal ones are one object."""
TermsBy = Mapping[str, PricingTerms]


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

    def write_now(self, data: bytes) -> bool:
        """Send body bytes without waiting; True while the client keeps up (see `keeps_up`)."""
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


def utc_today() -> date:
    """Return the present day in UTC."""
    return datetime.now(UTC).date()


@dataclass(slots=True)
class Services:
    """Shared by every request; built once by the composition root."""

    settings: Settings
    books: Books
    balances: Balances
    authenticator: Authenticator
    end_users: EndUserTable
    token_origins: TokenOrigins
    tokenizer: Tokenizer
    tenants: Tenants
    upstreams: Upstreams
    metrics: Metrics
    log: RequestLog
    tracing: Tracing
    origin: str = ""
    """Address of this server where portal.public_url does not say it; "" = unknown."""
    today: Callable[[], date] = utc_today
    """The clock by which models end."""
    overloaded: str = ""
    booked_until: int = 0
    """What was charged until then (Unix milliseconds) is in the ledger, as the last look at the journal found it."""
    replica: Replica | None = None
    """What only shows may be read from it."""
    live: "set[Live]" = field(default_factory=set)
    hold_queue: HoldQueue = field(default_factory=HoldQueue)
    open_holds: OpenHolds = field(default_factory=OpenHolds)
    bodies: BodyReader = field(default_factory=BodyReader)
    seats: SocketSeats = field(default_factory=SocketSeats)
    list_turns: ListTurns = field(default_factory=ListTurns)
    rates: KnownRates = field(default_factory=KnownRates)
    price_plans: PlansInForce = field(default_factory=PlansInForce)
    """Price plans of accounts; empty where nobody has one."""
    planned: "dict[tuple[PricingTerms, str], PricingTerms]" = field(default_factory=dict)
    """Terms that were made of everyone's for a version of a price plan."""
    redactor: ResponseRedactor = field(init=False)
    prices: PriceBook = field(init=False)
    """What customers are shown: the default upstream's."""
    terms: PricingTerms = field(init=False)
    """Terms of whatever begins now at the default upstream."""
    terms_by: TermsBy = field(init=False)
    """Terms of whatever begins now, by the name of the upstream; equal ones are one object."""

    def __post_init__(self) -> None:
        """Put in force what it was made with."""
        self.redactor = self.upstreams.redactor
        self.put_in_force(self.settings, self.books)

    @property
    def shown_until(self) -> int:
        """Time (Unix milliseconds) until which pages of usage have everything that was charged; 0: not known yet."""
        return self.replica.booked_until if self.replica is not None and self.replica.used else self.booked_until

    def put_in_force(self, settings: Settings, books: Books) -> None:
        """Choose settings and prices for the requests that begin from now on: the one place where prices are chosen."""
        self.settings, self.books = settings, books
        self.planned = {}
        insurance = settings.metering.zero_completion_insurance
        made = {id(book): PricingTerms(book, insurance) for book in books.values()}
        self.terms_by = {name: made[id(book)] for name, book in books.items()}
        self.terms = self.terms_by[default_of(entries_of(settings)).name]
        self.prices = self.terms.prices

    def sold_to(self, account_id: str, terms: PricingTerms, at_ms: int) -> PricingTerms:
        """Return what these terms are for an account whose request begins at a time: by its price plan, if it has one.

        The same terms and plan give the same object.
        """
        if account_id not in self.price_plans.by_account:
            return terms
        plan = self.price_plans.prices_for(account_id, at_ms)
        if plan is None:
            return terms
        made = self.planned.get((terms, plan.version_id))
        if made is None:
            made = self.planned[terms, plan.version_id] = terms._replace(prices=terms.prices.under(plan))
        return made

    def all_sold_to(self, account_id: str, at_ms: int) -> TermsBy:
        """Return the terms of each upstream for an account; see sold_to."""
        if account_id not in self.price_plans.by_account:
            return self.terms_by
        return {name: self.sold_to(account_id, terms, at_ms) for name, terms in self.terms_by.items()}

    def prices_of(self, account_id: str) -> PriceBook:
        """Return the prices that an account is shown, and pays for what has no request: the default upstream's."""
        return self.sold_to(account_id, self.terms, now_ms()).prices

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
