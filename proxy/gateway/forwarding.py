"""A request on its way to the upstreams of its route: to the first, and to the next one where nothing is lost by it.

    not received     The connection failed, or is proven untouched: the next one is asked.
    refused free     429, 5xx, a refusal of our own key, a model that is missing there: the same.
    in doubt         It was sent, and nothing came: it may be at work. The next one is asked only if what the first may
                     have done leaves nothing behind. What it may bill for that is `abandoned`.
    anything else    Is the answer.

All under one hold and one request id, before a byte was shown. Whoever cannot be paid from the hold is passed over.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

from billing.ledger.accounts import ApiKey
from billing.money.errors import UnpricedModel
from billing.money.pricing import PriceBook
from proxy.gateway.access_log import report_account
from proxy.gateway.answers.identity import azures_refusal
from proxy.gateway.answers.sse import begins_events
from proxy.gateway.answers.upstream_errors import error_that_begins
from proxy.gateway.bodies.parsed import Parsed, StoredContext
from proxy.gateway.endpoints import Endpoint
from proxy.gateway.plan import Plan
from proxy.gateway.request import GatewayRequest, read_beginning
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import PricingTerms, Services, TermsBy
from proxy.gateway.upstream.answer import Answer, AnswerLate, Early
from proxy.gateway.upstream.interruption import Interrupted, UpstreamError
from proxy.gateway.upstream.judgement import OURS, failure_in, judge, neutral_error, rest_of_limits
from proxy.gateway.upstream.member import Member
from proxy.gateway.upstream.request_body import body_to_send
from proxy.gateway.upstream.route import Needs, Route, Served, Try, shown_tries
from proxy.gateway.upstream.upstreams import Upstreams, nobody
from proxy.gateway.usage_rows import checkpoint_charge
from proxy.web.rejections import Rejection

ANY_TIER = (None, "auto", "default")
BODY_BY_HEADERS = b"Content-Type: %s\r\nAccept: %s\r\nX-Client-Request-Id: %s\r\n"
OK = 200
FEWEST_BYTES_PER_TOKEN = 4
"""Of an answer that broke off, for what it may have cost."""


class Asked(NamedTuple):
    """A request as far as it decides who may serve it."""

    endpoint: Endpoint
    parsed: Parsed
    key: ApiKey
    allow_store: bool

    def needs(self) -> Needs:
        """Return what it needs of an upstream."""
        parsed, endpoint = self.parsed, self.endpoint
        wanted = parsed.store if parsed.store is not None else endpoint.stores
        stores = bool(endpoint.makes) and self.allow_store and (wanted or bool(parsed.conversation))
        return Needs(
            model=parsed.model,
            region=self.key.region,
            tier=parsed.asked_tier not in ANY_TIER,
            stores=stores,
            home=self.key.account_id if stores else "",
        )


def choose(
    services: Services,
    hold: RequestHold,
    asked: Asked,
    stored: StoredContext,
    terms: TermsBy,
    make: Callable[[PriceBook], Plan],
) -> tuple[Route, Plan]:
    """Choose the route of a request, and plan it at the dearest of its upstreams, whose terms it is held under.

    `terms`: of each upstream, for its account. Raises Rejection.
    """
    route, keeps = _route_of(services, asked, stored), True
    if route is None:
        # nobody keeps anything, and it did not ask for it: it is simply not kept
        asked = asked._replace(allow_store=False)
        route, keeps = services.upstreams.route(asked.needs()), False
    plans, refusal = dict[int, Plan](), None
    for member in route.members:
        of_it = terms[member.name]
        if id(of_it) not in plans:
            try:
                plans[id(of_it)] = make(of_it.prices)
            except Rejection as rejection:
                refusal = refusal or rejection
    able = [member for member in route.members if id(terms[member.name]) in plans]
    if not able:
        raise refusal or nobody(asked._replace(allow_store=False).needs())
    route.members = able
    dearest = max(able, key=lambda member: plans[id(terms[member.name])].ceiling.amount)
    plan = plans[id(terms[dearest.name])]
    hold.terms = terms[dearest.name]
    hold.served = hold.told = Served(route.first.recorded)
    return route, plan if keeps else plan._replace(keeps=False)


def _route_of(services: Services, asked: Asked, stored: StoredContext) -> Route | None:
    """Find who may serve a request; None where that is nobody, but would be somebody if nothing were stored."""
    upstreams, parsed = services.upstreams, asked.parsed
    if stored.upstreams:
        member = pinned_member(upstreams, stored.upstreams, parsed.model, asked.key.region)
        return Route((member,))
    needs = asked.needs()
    try:
        return upstreams.route(needs)
    except Rejection:
        if needs.stores and parsed.store is None and not (parsed.background or parsed.conversation):
            return None
        raise


def pinned_member(upstreams: Upstreams, kept_at: frozenset[str], model: str = "", region: str = "") -> Member:
    """Return the upstream that what a request names is kept at. Raises Rejection.

    `region`: of an account whose request brings something new there; "" where it may be anywhere.
    """
    members = {member.name: member for member in map(upstreams.kept_at, kept_at)}
    if len(members) > 1:
        message = "What this request refers to is kept at different places: upload or create it again, together."
        raise Rejection(409, "objects_apart", message)
    (member,) = members.values()
    if region and member.entry.region != region:
        message = f"What this request refers to is kept outside the region {region!r}: upload or create it again."
        raise Rejection(409, "objects_outside_region", message)
    if model and not member.serves(model):
        message = f"The model {model!r} is not served where what this request refers to is kept."
        raise Rejection(404, "model_not_found", message, param="model")
    return member


class Forwarding:
    """One request being sent. Always `end()` it."""

    __slots__ = ("_abandoned", "_began", "_first", "_hold", "_loop", "_request", "_route", "_serving", "_terms")

    def __init__(self, request: GatewayRequest, hold: RequestHold, route: Route, terms: TermsBy) -> None:
        """`terms`: of each upstream, as they were when the request began."""
        self._request, self._hold, self._route, self._terms = request, hold, route, terms
        self._loop = route.first.pool.loop  # asking asyncio for it is a system call
        self._serving: Member | None = None
        self._first = self._began = 0.0
        """When the first try began, and this one."""
        self._abandoned = 0

    def end(self) -> None:
        """Take note that it is in flight no more."""
        if self._serving is not None:
            self._serving.end()
            self._serving = None

    async def send(self, answer_late: AnswerLate | None) -> Answer:
        """Send it until somebody answers. Raises UpstreamError, Interrupted.

        `answer_late`: what to do when even the last one is late; None: give it up.
        """
        if len(self._route.members) > 1:
            self._let_first_serve()
        while True:
            member, answer, refused = self._route.first, None, False
            several = len(self._route.members) > 1
            self._begin(member)
            try:
                early = self._early(member) if several and self._others() else None
                answer = await self._send_to(member, answer_late, early)
                if several and answer.head.status == OK:
                    refused = await self._is_refused(answer)
            except UpstreamError as error:
                received = answer.received if answer is not None else 0
                _close(answer)
                if not self._may_go_on(member, error, received):
                    raise
                continue
            except BaseException:
                _close(answer)
                raise
            if await self._is_last(member, answer, refused=refused):
                metrics = self._request.services.metrics
                metrics.count(metrics.upstreams.requests, member.name)
                self._request.hides_azure = self._hides_azure(member)
                return answer
            answer.close()

    def _hides_azure(self, member: Member) -> bool:
        """Tell whether an answer of this upstream is to tell nothing of it."""
        if member.entry.dialect != "azure" or self._request.services.upstreams.alone is not None:
            return False
        return not self._request.settings.failover.show_upstream

    def _let_first_serve(self) -> None:
        """Pass over who may cost more than is held: it was priced by the dearest, and then perhaps clamped."""
        route, hold = self._route, self._hold
        for place, member in enumerate(route.members):
            terms = self._terms[member.name]
            if terms is hold.terms and member.recorded == hold.served.upstream:
                route.members = route.members[place:]
                return
            if serve_by(hold, Served(member.recorded), terms):
                route.members = route.members[place:]
                return

    def _begin(self, member: Member) -> None:
        if self._serving is not None:
            self.end()
        member.begin()
        self._serving, self._began = member, self._loop.time()
        self._first = self._first or self._began
        if self._request.settings.failover.show_upstream:
            self._request.shown_upstream = member.name

    def _send_to(
        self, member: Member, answer_late: AnswerLate | None, early: Early | None
    ) -> Coroutine[Any, Any, Answer]:
        """Write the request for an upstream; the sending of it, to be awaited."""
        request, plan = self._request, self._hold.plan
        identifier = partial(request.services.tenants.identifier, self._hold.key.account_id)
        body = body_to_send(plan, request.settings.billing, identifier, None if member.plain else member.entry)
        accept = b"text/event-stream" if plan.parsed.stream else b"application/json"
        headers = BODY_BY_HEADERS % (plan.parsed.content_type, accept, request.request_id.encode())
        return member.pool.send(
            "POST",
            plan.endpoint.upstream_path,
            headers + request.trace.lines,
            body,
            request.interruption,
            self._hold.checkpoint_sent,
            answer_late,
            early,
        )

    # -- whether another one is asked -------------------------------------------------------------

    def _others(self) -> bool:
        """Tell whether another one could be asked now."""
        if len(self._route.members) == 1 or self._request.interruption.reason:
            return False
        failover = self._request.settings.failover
        few = len(self._route.tries) + 1 < failover.tries
        return few and self._loop.time() - self._first < failover.seconds

    def _early(self, member: Member) -> Early | None:
        """Give an upstream up that is slow to begin while another could serve, if that is safe.

        A whole answer, and one that is thought about first, may rightly take long: it is given up only where the
        upstream does not even list its models.
        """
        plan = self._hold.plan
        if not leaves_nothing(plan):
            return None
        is_quick = plan.parsed.stream and not plan.model.reasoning

        async def look() -> None:
            if self._others() and (is_quick or not await self._request.services.upstreams.answers(member)):
                raise UpstreamError("first_byte_timeout", sent=True)

        return Early(self._request.settings.failover.first_byte_seconds, look)

    async def _is_refused(self, answer: Answer) -> bool:
        """Tell whether a 200 is an error, or nothing, in truth. Nothing of it is shown before that is known.

        What is no stream is read whole: one that breaks off is made again. Of a stream its first bytes are waited for,
        for a while. Raises UpstreamError, Interrupted.
        """
        plan = self._hold.plan
        if not self._others() or not leaves_nothing(plan):
            return False
        if plan.parsed.stream or plan.parsed.characters:
            try:
                async with asyncio.timeout(self._request.settings.failover.first_byte_seconds):
                    first = await answer.peek()
            except TimeoutError:
                return False
            if first and not first.startswith(b"{"):
                return error_that_begins(first)
        whole = await answer.collect()
        answer.put_back(whole)
        return not begins_events(whole) and bool(plan.endpoint.read(whole).refusal)

    def _may_go_on(self, member: Member, error: UpstreamError, received: int) -> bool:
        """Judge a failure after so many bytes of an answer; True when the next one is to be asked."""
        if error.reason != "busy" and not self._request.interruption.reason:
            member.circuit.failed(error.reason, self._loop.time())
        if not self._others() or (error.sent and not leaves_nothing(self._hold.plan)):
            self._count(member, error.reason)
            return False
        return self._go_on(member, error.reason, self._may_cost(received) if error.sent else 0)

    def _may_cost(self, received: int) -> int:
        """Millicredits that an upstream may bill for an answer of which so many bytes came."""
        plan = self._hold.plan
        if plan.endpoint.free:
            return 0
        written = min(received // FEWEST_BYTES_PER_TOKEN, plan.bounds.output_tokens)
        return checkpoint_charge(plan, self._hold.terms.prices, written).cost

    async def _is_last(self, member: Member, answer: Answer, *, refused: bool) -> bool:
        """Take note of an answer; False when the next one is to be asked instead. Raises Interrupted.

        Whoever leaves while an error arrives owes nothing: its status has come.
        """
        if answer.head.status == OK and not refused:
            member.circuit.served(self._began)
            if self._request.services.upstreams.alone is None and (seconds := rest_of_limits(answer.head)):
                member.circuit.rest(self._hold.plan.parsed.model, self._loop.time(), seconds)
            return True
        if refused:
            return not self._go_on(member, "no_answer", self._may_cost(answer.received))
        try:
            return await self._is_answer(member, answer)
        except (Interrupted, asyncio.CancelledError):
            answer.close()
            await self._hold.release(refused=True)
            raise

    async def _is_answer(self, member: Member, answer: Answer) -> bool:
        """Judge an error; False when the next one is to be asked instead."""
        services, status = self._request.services, answer.head.status
        body = await read_beginning(answer)
        reason = failure_in(status, body, services.redactor)
        # those of our account are told in words of ours anyhow
        foreign = reason and reason not in OURS and member.entry.dialect != "openai"
        told = azures_refusal(body) if not reason and self._hides_azure(member) else body
        answer.put_back(neutral_error(reason) if foreign else told)
        judge(member, answer.head, reason, self._hold.plan.parsed.model, self._loop.time())
        if not reason:
            return True
        if not self._others():
            self._count(member, reason)
            return True
        if not self._go_on(member, reason, 0):
            return True
        if reason in OURS:  # of one that is passed on it is reported there
            report_account(services, reason, status, self._request.request_id)
        return False

    def _go_on(self, member: Member, reason: str, may_cost: int) -> bool:
        """Turn to the next one that can be paid from the hold; False when there is none."""
        route, hold = self._route, self._hold
        spent = round((self._loop.time() - self._began) * 1_000)
        tries = [*route.tries, Try(member.name, reason, spent, may_cost)]
        shown = shown_tries(tries)
        for place, other in enumerate(route.members[1:], 1):
            served = Served(other.recorded, shown, self._abandoned + may_cost)
            if serve_by(hold, served, self._terms[other.name]):
                route.members, route.tries = route.members[place:], tries
                self._abandoned += may_cost
                self._count(member, reason, may_cost)
                return True
        self._count(member, reason)
        return False

    def _count(self, member: Member, reason: str, may_cost: int = 0) -> None:
        metrics = self._request.services.metrics
        metrics.upstreams.count_failed(metrics.count, member.name, reason, may_cost)


def _close(answer: Answer | None) -> None:
    if answer is not None:
        answer.close()


def leaves_nothing(plan: Plan) -> bool:
    """Tell whether a request that may have been worked on can be made again: nobody sees what the first one made."""
    parsed = plan.parsed
    return not (parsed.background or parsed.conversation or plan.tools.calls)


def serve_by(hold: RequestHold, served: Served, terms: PricingTerms) -> bool:
    """Let another upstream serve what is held for, at its terms; False where it may cost more than is held."""
    if terms is not hold.terms:
        plan = repriced(hold.plan, terms.prices)
        if plan is None or (hold.amount and plan.ceiling.amount > hold.amount):
            return False
        hold.plan, hold.terms = plan, terms
        hold.input_owed = checkpoint_charge(plan, terms.prices, 0).amount
    hold.served = served
    return True


def repriced(plan: Plan, prices: PriceBook) -> Plan | None:
    """Plan at another upstream's prices; None where not all of it has a price there."""
    model, image = prices.find(plan.parsed.model), plan.tools.image
    others = [prices.find(other.name) for other, _, _ in plan.bounds.more]
    if model is None or plan.tier not in model.tiers or None in others:
        return None
    image = prices.find(image.name) if image is not None else None
    more = tuple((other, *rest[1:]) for other, rest in zip(others, plan.bounds.more, strict=True) if other is not None)
    bounds = plan.bounds._replace(more=more)
    try:
        ceiling = prices.ceiling(model, plan.tier, bounds)
    except UnpricedModel:
        return None
    return plan._replace(model=model, tools=plan.tools._replace(image=image), bounds=bounds, ceiling=ceiling)
