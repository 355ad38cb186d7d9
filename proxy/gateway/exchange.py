"""One metered request, top to bottom.

    authenticate → find endpoint → read body → admit → plan (parse, bound, price) → hold → forward
      → relay & meter → settle

Forward, relay and settle live in one coroutine, so whatever happens after the hold ends in exactly one settle, release
or detach. The states, and what brings a request from one to the next:

    planned     Nothing is held; any refusal is an answer of ours and costs nothing.
    held        The store has taken the worst case out of what is available (I1). The request is forwarded at once: the
                hold's way to disk overlaps the upstream's thinking time.
    sent        `checkpoint_sent`, just before the first byte goes upstream: from here on the upstream works for it, so
                an orphan, and a client that leaves, owe the input.
    persisted   `wait_persisted`, before the first byte of a paid answer can reach the client: whatever dies afterwards,
                the hold is on disk and somebody settles it (I3).
    streaming   `checkpoint_streamed` once a second says what is owed if this process dies now; a large hold that was
                bounded by bytes shrinks to what is counted.
    settled     One decision (settlement.decide_settlement) for every way to end, and one charge (I4). The end of the
                answer is kept back until then, so that who has the whole answer also has its cost.
    released    An error of the upstream's, or none of its work: nothing is owed.
    detached    A background response runs on upstream: whoever polls it resumes the hold. Streamed, its events pass
                from here on as those of a stored object: they cost nothing, whoever leaves or comes back.

Who interrupts: the client that closes its connection (`client_gone`), or that we gave a 504 (`answered_late`), the end
of the drain time (`shutdown`), a cancellation. While `interruption.muted` that is only noted: a whole answer, a
reasoning model and whatever cannot be priced by a part of it are read on to their usage, for a bounded time. Nothing
here is shielded: a shielded settle would run detached from its request and could be lost at shutdown, and the
`finally` of a streaming generator never runs when the client leaves; the last step of `run` resolves what an error
left open.
"""

import asyncio
from functools import partial
from typing import NoReturn

from billing.ledger.accounts import ApiKey
from billing.money.amounts import display_credits
from billing.money.errors import StoreUnavailable
from billing.money.usage_record import Outcome
from proxy.gateway.access_log import log_request, report_account, report_no_answer, report_upstream_error
from proxy.gateway.admission import admit
from proxy.gateway.answers.identity import without_filters, without_ids
from proxy.gateway.answers.meter import StreamMeter
from proxy.gateway.answers.report import NO_ANSWER, NO_REPORT, Report
from proxy.gateway.answers.sse import begins_events, may_begin_events
from proxy.gateway.answers.upstream_errors import error_in_answer, masked_body
from proxy.gateway.background.handover import hand_over
from proxy.gateway.bodies.parsed import NO_CONTEXT, Parsed, StoredContext
from proxy.gateway.bodies.sound import sound_tokens
from proxy.gateway.callers.labels import body_labels
from proxy.gateway.endpoints import Endpoint, find_endpoint
from proxy.gateway.forwarding import Asked, Forwarding, choose
from proxy.gateway.limits.standing import check_standing
from proxy.gateway.plan import Plan, make_plan
from proxy.gateway.request import GatewayRequest
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import TermsBy
from proxy.gateway.settlement import NO_OUTPUT, ObservedOutput
from proxy.gateway.stream_relay import StreamRelay
from proxy.gateway.upstream.answer import Answer
from proxy.gateway.upstream.interruption import Interrupted, UpstreamError
from proxy.gateway.upstream.route import Route
from proxy.gateway.upstream.tenants import CANNOT_KEEP
from proxy.gateway.workload.body_shape import is_heavy
from proxy.web.raw_request import first_header
from proxy.web.rejections import Rejection, bad_gateway, unavailable

UNFINISHED = ("queued", "in_progress")
EVENT_STREAM = b"text/event-stream"
TEXTUAL = (b"application/json", b"text/")
"""Content types that plain sound never has."""
NOT_STORED = ((b"x-stored", b"false"),)
"""Header of an answer whose ids were withheld: their owner could not be written."""
TIMEOUT_REASONS = {"first_byte_timeout": 504, "idle_timeout": 504, "total_timeout": 504}


class Exchange:
    """One request on its way. `run()` is the line; everything else is a step of it."""

    __slots__ = ("hold", "meter", "request", "services", "settings")

    def __init__(self, request: GatewayRequest) -> None:
        """Nothing is held yet."""
        self.request, self.services, self.settings = request, request.services, request.settings
        self.hold = RequestHold(
            self.services, self.services.terms, request.request_id, request.started_ms, request.started, request
        )
        self.meter: StreamMeter | None = None

    async def run(self) -> None:
        """Answer the request. Never raises but for cancellation."""
        request, services, settings = self.request, self.services, self.settings
        services.live.add(request)
        try:
            key = request.key = await services.authenticator.authenticate(request.headers, request.peer, tokens=True)
            self.hold.terms = services.sold_to(key.home_id, self.hold.terms, request.started_ms)
            endpoint = find_endpoint(request.method, request.path, request.query)
            request.endpoint = endpoint.name
            body = await request.client.read_body()
            free = admit(settings, key.home_id, services.overloaded)
            content_type = first_header(request.headers, b"content-type")
            if is_heavy(body):
                parsed = await self._read_heavy(endpoint, key, body, content_type, free=free)
            else:
                parsed = endpoint.parse(body, content_type)
            labels = self.hold.labels = body_labels(request.headers, parsed, key)
            if key.users is not None:
                key = request.key = await services.end_users.charged(key, labels)
            stored = await self._context(key.account_id, parsed) if parsed.references else NO_CONTEXT
            make = partial(make_plan, endpoint, parsed, key, settings=settings, stored=stored, today=services.today())
            alone = services.upstreams.alone_with(stored.upstreams)
            terms: TermsBy
            if alone is not None and not key.region and alone.recorded == self.hold.served.upstream:
                # by the card it began under, also when another one came in force while its body was read
                route, plan = Route((alone,)), make(self.hold.terms.prices)
                terms = {alone.name: self.hold.terms}
            else:
                terms = services.all_sold_to(key.home_id, request.started_ms)
                asked = Asked(endpoint, parsed, key, settings.billing.allow_store)
                route, plan = choose(services, self.hold, asked, stored, terms, make)
            await self.hold.hold(plan, key, free=free)
            await self._forward(Forwarding(request, self.hold, route, terms))
        except Rejection as rejection:
            await request.reject(rejection)
        except Interrupted:
            request.outcome = request.outcome or request.interruption.reason
            request.client.abort()
        finally:
            services.live.discard(request)
            if self.hold.is_open:
                await self._release_or_settle_remaining()
            request.client.let_go()
            log_request(services, request, self.hold)

    async def _read_heavy(
        self, endpoint: Endpoint, key: ApiKey, body: bytes, content_type: bytes, *, free: bool
    ) -> Parsed:
        """Read a body that is work, beside the event loop and only for who could be served. Raises Rejection."""
        request = self.request  # what is free is for who has a balance as well
        await check_standing(self.services, key, request.request_id, request.started_ms, free=free)
        return await self.services.bodies.read(body, content_type, endpoint.parse)

    async def _context(self, account_id: str, parsed: Parsed) -> StoredContext:
        """Find what the stored objects that a request refers to bring into it (see Tenants)."""
        storing = self.settings.billing.allow_store
        return await self.services.tenants.context(account_id, parsed.references, parsed.model, storing=storing)

    async def _release_or_settle_remaining(self) -> None:
        """After a failure or cancellation: output that was streamed is owed as by an orphan, the rest released."""
        hold, streaming = self.hold, bool(self.request.first_byte_ms)
        streamed = 0
        try:
            if streaming and self.meter is not None:
                streamed = self.meter.streamed_tokens_estimate()
        finally:
            if streaming:
                await hold.settle_abandoned(streamed)
            else:
                await hold.release()

    # -- forward ----------------------------------------------------------------------------------

    async def _forward(self, forwarding: Forwarding) -> None:
        """Send, relay, settle. Every way out of here but a cancelled stream has resolved the hold."""
        request, services, hold = self.request, self.services, self.hold
        plan = hold.plan
        answer: Answer | None = None
        try:
            request.interruption.check()
            if not plan.parsed.stream or plan.is_read_on or plan.parsed.background:
                request.interruption.muted = True
            answer = await forwarding.send(self._answer_late if request.interruption.muted else None)
            plan = hold.plan
            if answer.head.status != 200:
                await self._pass_error(answer)
            elif await _is_stream(plan, answer):
                await self._stream(plan, answer)
            else:
                await self._whole(plan, answer)
        except UpstreamError as error:
            report_upstream_error(services, request, error)
            await hold.release()
            raise _upstream_rejection(error) from None
        except Interrupted:
            await self._end_unanswered()
            raise
        except asyncio.CancelledError:
            request.interruption.fire("shutdown")
            if not request.first_byte_ms:  # what was streamed is settled at the end of run()
                await hold.release()
            raise
        finally:
            if answer is not None:
                answer.close()
            forwarding.end()

    async def _answer_late(self) -> None:
        """Give the client a 504 of ours: what the upstream has begun is read on and charged by what it says."""
        metrics = self.services.metrics
        metrics.count(metrics.upstream_errors, "first_byte_timeout")
        message = "The upstream did not answer in time. If it still does, what it made is charged: do not repeat this."
        await self.request.answer_late(bad_gateway(message, "upstream_first_byte_timeout", 504, worked_on=True))

    async def _end_unanswered(self) -> None:
        """Charge a client that left before an answer its input, counted: OpenAI bills a prompt that it was sent."""
        if not self.hold.is_open:
            return  # settled, released or detached already: what failed was telling the client
        if not self.hold.sent_at or self.request.interruption.reason != "client_gone":
            await self.hold.release()
            return
        await self._settle(NO_REPORT, NO_OUTPUT, "client_gone", [])

    async def _pass_error(self, answer: Answer) -> None:
        """Pass an upstream error through, without our account's identity; it costs nothing."""
        await self.hold.release(refused=True)  # first: whoever leaves while the error arrives owes nothing either
        metrics = self.services.metrics
        metrics.count(metrics.upstream_errors, f"status_{answer.head.status // 100}xx")
        await self.request.pass_error(answer)

    # -- the answer, whole or as a stream; both end in `_settle` ------------------------------------

    async def _whole(self, plan: Plan, answer: Answer) -> None:
        """Read a JSON answer to its end, settle, then hand it over with what it cost."""
        request, hold = self.request, self.hold
        body = await answer.collect()
        await hold.wait_persisted()
        reading = plan.endpoint.read(body)
        if reading.refusal:
            await self._refuse_answer(reading.refusal, answer, body)
        report = reading.report
        if plan.parsed.background and report.status in UNFINISHED:
            await self._go_on_in_background(report, answer, body)
            return
        outcome: Outcome = "client_gone" if request.interruption.reason else "completed"
        sound = sound_tokens(reading.sound_bytes, plan.parsed.sound_format) if reading.sound_bytes else 0
        observed = ObservedOutput(reading.texts, sound, errored=not reading.produced)
        await self._settle(report, observed, outcome, answer.head.headers)
        redactor = self.services.redactor
        account, body = masked_body(without_filters(body) if request.hides_azure else body)
        report_account(self.services, account, 200, request.request_id)
        headers, body = redactor.in_clients_form(plan.parsed.convert, answer.head.headers, body, request.request_id)
        body = without_ids(redactor.redact_key(body), hold.unowned)
        if hold.unowned:
            self.services.metrics.count(self.services.metrics.store_errors, "sql")
        headers += [*plan.cap_headers(), *request.own_headers(), *(NOT_STORED if hold.unowned else ())]
        headers.append((b"x-credits-charged", str(display_credits(hold.charged)).encode()))
        if hold.settled is not None and hold.key.sees_balance:
            headers.append(
                (b"x-credits-remaining", str(display_credits(hold.settled.balance - hold.settled.held)).encode())
            )
        request.status = request.status or 200
        request.count_first_byte()
        await request.client.respond(200, headers, body)

    async def _refuse_answer(self, refusal: str, answer: Answer, body: bytes) -> NoReturn:
        """Release a 200 that is no answer, and tell it as the error that it is. Raises Rejection."""
        await self.hold.release()
        metrics = self.services.metrics
        metrics.count(metrics.upstream_errors, f"status_200_{refusal}")
        account, rejection = error_in_answer(self.services.redactor.redact_identity(body))
        report_account(self.services, account, 200, self.request.request_id)
        if refusal == NO_ANSWER:
            report_no_answer(self.services, self.request.request_id, 200, answer.head.headers)
        raise rejection

    async def _stream(self, plan: Plan, answer: Answer) -> None:
        """Relay events as they come; settle when the upstream has ended (or the client has), then send the end."""
        request = self.request
        meter = self.meter = plan.endpoint.meter(plan.parsed)
        await self.hold.wait_persisted()
        begun = partial(hand_over, self.services, self.hold) if plan.parsed.background else self._record_begun
        relay = StreamRelay(request, self.hold, answer, meter, begun)
        outcome = await relay.run()
        report_account(self.services, meter.account, 200, request.request_id)
        if self.hold.is_open:
            report, observed, outcome = relay.observed(outcome)
            await self._settle(report, observed, outcome, answer.head.headers)
        else:  # it was handed over, and the poller settles it
            request.outcome = request.outcome or "background"
        if not request.interruption.reason:
            await relay.finish(cut=outcome == "upstream_cut")

    async def _record_begun(self, made: str) -> None:
        """Record whose a stored answer is, before anyone sees its id (I8). Raises Rejection when that cannot be."""
        hold, plan = self.hold, self.hold.plan
        try:
            await self.services.tenants.record_begun(
                hold.key.account_id, hold.request_id, made, plan.parsed, plan.endpoint.makes, hold.served.upstream
            )
        except StoreUnavailable:
            raise unavailable(CANNOT_KEEP, "store_unavailable") from None

    async def _settle(
        self, report: Report, observed: ObservedOutput, outcome: Outcome, head: list[tuple[bytes, bytes]]
    ) -> None:
        """One ending of whatever was forwarded and is owed for."""
        request = self.request
        decision = await self.hold.settle(report, observed, outcome, head, request.first_byte_ms)
        request.outcome = request.outcome or decision.outcome

    async def _go_on_in_background(self, report: Report, answer: Answer, body: bytes) -> None:
        """Let a response run on upstream: whoever polls it settles it, so its facts are kept before it is shown."""
        request, hold = self.request, self.hold
        await hand_over(self.services, hold, report.upstream_id)
        request.status, request.outcome = request.status or 200, request.outcome or "background"
        request.count_first_byte()
        redactor = self.services.redactor
        headers = redactor.headers(answer.head.headers, request.request_id)
        headers += [(b"x-credits-held", str(display_credits(hold.amount)).encode()), *request.own_headers()]
        await request.client.respond(200, headers, redactor.redact_key(body))


async def _is_stream(plan: Plan, answer: Answer) -> bool:
    """Tell whether an answer comes in events, or is sound: neither what was asked for nor a header alone says so."""
    kind = answer.head.get(b"content-type")
    if kind.startswith(EVENT_STREAM) and plan.parsed.stream:
        return True  # who waits for events sees the head at once; a whole answer is known by its end
    if plan.parsed.characters and not kind.startswith(TEXTUAL):
        return True
    first = await answer.peek(may_begin_events)
    return not first.startswith(b"{") and begins_events(first)


def _upstream_rejection(error: UpstreamError) -> Rejection:
    """Our answer when the upstream gave none."""
    if error.reason == "busy":
        return unavailable("Too many requests are being forwarded right now. Try again shortly.", "upstream_busy")
    status = TIMEOUT_REASONS.get(error.reason, 502)
    what = "did not answer in time" if status == 504 else "could not be reached or broke off"
    slow = status == 504 and error.sent  # it may be at work still: an SDK that asks again makes it work twice
    message = f"The upstream {what}. Nothing was charged; try again."
    return bad_gateway(message, f"upstream_{error.reason}", status, worked_on=slow)
