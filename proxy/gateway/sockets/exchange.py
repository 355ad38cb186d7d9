"""One response on a WebSocket: its hold, the output that passed, its end in the books and in the log."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from billing.ledger.accounts import ApiKey
from billing.money.usage_record import Outcome
from billing.storage.database import now_ms
from proxy.gateway.access_log import log_request
from proxy.gateway.admission import admit
from proxy.gateway.answers.events import PassedEvents
from proxy.gateway.answers.report import Report
from proxy.gateway.answers.reports import items_report
from proxy.gateway.bodies.parsed import Parsed
from proxy.gateway.bodies.sound import DEFAULT_FORMAT, sound_tokens
from proxy.gateway.callers.labels import body_labels
from proxy.gateway.forwarding import repriced, serve_by
from proxy.gateway.plan import Plan
from proxy.gateway.request import RequestContext
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import PricingTerms, Services
from proxy.gateway.settlement import ObservedOutput
from proxy.gateway.upstream.member import Member
from proxy.gateway.upstream.route import Served, Try, shown_tries
from proxy.observability.tracing import Headers
from proxy.web.rejections import Rejection

OK, BAD_GATEWAY, CLIENT_LEFT = 200, 502, 0
PAYMENT_REQUIRED, TOO_MANY = 402, 429
ANOTHER_TRY = (PAYMENT_REQUIRED, TOO_MANY)
"""Refusals that a hold of the session's own may be the reason of."""


class Handshake(NamedTuple):
    """The opening of a socket, which each of its responses shares. `endpoint` as in proxy/gateway/endpoints.py.

    `socket` is among the living as long as its responses may be held for; `member`: the upstream behind it;
    `account_id`: whose it is, "" until that is known.
    """

    path: bytes
    headers: Headers
    endpoint: str
    socket: object | None = None
    member: Member | None = None
    account_id: str = ""


class SocketExchange:
    """A response on a socket. Each has a request id of its own in the books, and a line in the log."""

    __slots__ = ("_logged", "_others", "_services", "context", "hold", "media", "passed", "response_id")

    def __init__(self, services: Services, opened: Handshake, others: Sequence[PricingTerms] = ()) -> None:
        """Nothing is held yet; the terms are those in force now.

        `others`: terms of the upstreams that may come to be behind the socket in place of its first one.
        """
        self._services, self._others = services, list(others)
        self.context = RequestContext(services, "GET", opened.path, opened.headers, opened.endpoint)
        context, member = self.context, opened.member
        terms = _terms_at(services, opened.account_id, member, context.started_ms)
        served = None if member is None else Served(member.recorded)
        self.hold = RequestHold(
            services, terms, context.request_id, context.started_ms, context.started, opened.socket, served
        )
        self.response_id = ""
        self.passed = PassedEvents()
        self.media = 0
        self._logged = False

    def begin_at(self, member: Member, terms: Sequence[PricingTerms]) -> None:
        """Be served by another upstream, or one of several, the first one's `terms` first; nothing is held so far."""
        self.hold.terms, *self._others = terms
        self.hold.served = self.hold.told = Served(member.recorded)

    async def payer(self, key: ApiKey, parsed: Parsed) -> ApiKey:
        """Return a key as the end user has it whom a response names. Raises Rejection."""
        labels = self.hold.labels = body_labels(self.context.headers, parsed, key)
        if key.users is not None:
            key = await self._services.end_users.charged(key, labels)
        self.context.key = key
        return key

    async def hold_for(self, plan: Plan, key: ApiKey, *, wait: bool = True) -> Plan:
        """Hold for the plan at the dearest upstream; return the one that was held for, perhaps clamped.

        `wait`: a moment, for other holds in flight. Raises Rejection.
        """
        services, key = self._services, await self.payer(key, plan.parsed)
        free = admit(services.settings, key.home_id, services.overloaded)
        for terms in self._others:
            dearer = repriced(plan, terms.prices)
            if dearer is not None and dearer.ceiling.amount > plan.ceiling.amount:
                plan, self.hold.terms = dearer, terms
        plan = await self.hold.hold(plan, key, free=free, wait=wait)
        try:
            await self.hold.wait_persisted()
        except BaseException:
            await self.hold.release()  # nobody else knows of it yet
            raise
        return plan

    def expect_input(self, tokens: int, audio: int) -> None:
        """Estimate what it reads, `audio` tokens of it sound: that is charged where its usage never comes."""
        held = self.hold.plan
        self.hold.plan = held._replace(parsed=held.parsed._replace(estimated_input=tokens, estimated_audio=audio))

    def begin(self) -> None:
        """Begin the response that was held for in advance: it is asked for, or has begun, now."""
        self.context.started = self.hold.started = time.monotonic()

    async def mark_sent(self, *, at_work: bool) -> None:
        """Have it owed from here on, before anything that comes of it can be shown (I3).

        `at_work`: the upstream is already, so who leaves meanwhile owes it: the session, which knows of it, settles it
        at its end. Raises Rejection; then nothing is held.
        """
        self.hold.checkpoint_sent(at_once=True)
        try:
            await self.hold.wait_persisted()
        except BaseException as error:
            if isinstance(error, Rejection) or not at_work:
                await self.hold.release()
            raise

    async def settle(self, report: Report, outcome: Outcome = "completed") -> None:
        """Charge what the response used; when it does not say, the output that passed."""
        if not self.hold.is_open:
            return
        passed = self.passed
        errored = (report.status == "failed" or outcome == "upstream_cut") and not passed and not report.items
        media = self.media + sound_tokens(passed.sound_bytes, DEFAULT_FORMAT)
        observed = ObservedOutput(["".join(passed.texts)], media, errored=errored)
        decision = await self.hold.settle(report, observed, outcome, [], 0)
        self._log(OK, decision.outcome)

    async def abandon(self, outcome: Outcome, *, at_work: bool = False) -> None:
        """Charge a begun response by what passed, or release it: the socket ended, or the upstream refused.

        `at_work`: it was sent, and nothing is before it. Who leaves it owes its input, as over HTTP.
        """
        owed = at_work and outcome == "client_gone" and self.hold.sent_at
        if owed or self.response_id or self.passed or self.media:
            await self.settle(items_report(self.passed.items), outcome)
        else:
            await self.release(outcome)

    async def release(self, outcome: Outcome) -> None:
        """Charge nothing: no work of the upstream's came of it."""
        await self.hold.release()
        self._log(CLIENT_LEFT if outcome in ("client_gone", "shutdown") else BAD_GATEWAY, outcome)

    async def refuse(self, rejection: Rejection) -> None:
        """Nothing comes of it: what was held is released."""
        await self.hold.release()
        self._log(rejection.status, rejection.code)

    def _log(self, status: int, outcome: str) -> None:
        if not self._logged:
            self._logged, self.context.status, self.context.outcome = True, status, outcome
            log_request(self._services, self.context, self.hold)


class Begin:
    """Makes the next response on a socket. `members`: upstreams that may be behind it; the first one is, or will be."""

    def __init__(self, services: Services, opened: Handshake, members: Sequence[Member] = ()) -> None:
        """Take `opened`, which all responses share."""
        self._services, self._opened, self.members = services, opened, list(members)
        self._last: SocketExchange | None = None
        self.connected = False

    def __call__(self) -> SocketExchange:
        """Make it: nothing is held yet."""
        others = [self._terms_at(one) for one in self.members[1:]]
        exchange = self._last = SocketExchange(self._services, self._opened._replace(member=self.member), others)
        return exchange

    @property
    def member(self) -> Member | None:
        """The upstream behind the socket."""
        return self.members[0] if self.members else self._opened.member

    @property
    def terms(self) -> PricingTerms:
        """Terms of what begins now, at the upstream behind the socket."""
        return self._terms_at(self.member)

    def _terms_at(self, member: Member | None) -> PricingTerms:
        return _terms_at(self._services, self._opened.account_id, member, now_ms())

    def belongs_to(self, account_id: str) -> None:
        """Take note of whose the socket is, and so at whose prices what begins on it is held for."""
        self._opened = self._opened._replace(account_id=account_id)

    def choose(self, members: Sequence[Member]) -> None:
        """Have these behind a socket that is not connected yet; nothing is held for so far."""
        self.members = list(members)
        if self._last is not None:
            self._last.begin_at(self.members[0], [self._terms_at(one) for one in self.members])

    def let_serve(self, member: Member, tries: Sequence[Try]) -> bool:
        """Let an upstream take what is held for, at its terms; False where that may cost more than is held."""
        if self._last is None or not self._last.hold.is_open:
            return True
        return serve_by(self._last.hold, Served(member.recorded, shown_tries(tries)), self._terms_at(member))

    def move(self, member: Member) -> None:
        """Take note of which upstream is behind the socket now; `let_serve` comes first."""
        self.members, self.connected = [member], True
        if self._last is not None and self._last.hold.is_open and self._last.hold.sent_at:
            self._last.hold.checkpoint_sent(at_once=True)  # who finds it after a crash books it there


def _terms_at(services: Services, account_id: str, member: Member | None, at_ms: int) -> PricingTerms:
    """Terms of what an account begins at a time at an upstream; None: at the default one."""
    terms = services.terms if member is None else services.terms_by.get(member.name, services.terms)
    return services.sold_to(account_id, terms, at_ms)


async def hold_instead(
    before: SocketExchange | None, begin: Begin, hold: Callable[[SocketExchange, bool], Awaitable[None]]
) -> SocketExchange:
    """Hold anew in the place of what was held before, which is released. Raises Rejection; then neither is held.

    `hold` takes the exchange to hold for, and whether to wait for others. Where both together are too much, the one
    before is no other: it goes first.
    """
    exchange = begin()
    try:
        try:
            await hold(exchange, before is None)
        except Rejection as rejection:
            if before is None or rejection.status not in ANOTHER_TRY:
                raise
            await before.hold.release()
            exchange = begin()
            await hold(exchange, True)
        if before is not None:
            await before.hold.release()
    except BaseException:
        await exchange.hold.release()  # nobody else knows of it yet
        raise
    return exchange
