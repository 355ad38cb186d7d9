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
    detached    A background response runs on upstream: whoever polls it resumes the hold.

Who interrupts: the client that closes its connection (`client_gone`), the end of the drain time (`shutdown`), a
cancellation. While `interruption.muted` a client that leaves is only noted: a whole answer, a reasoning model and
whatever cannot be priced by a part of it are read on to their usage, for a bounded time. Nothing here is shielded: a
shielded settle would run detached from its request and could be lost at shutdown, and the `finally` of a streaming
generator never runs when the client leaves; the last step of `run` resolves what an error left open.
"""

import asyncio
from functools import partial
from typing import NoReturn

from billing.money.amounts import display_credits
from billing.money.errors import StoreUnavailable
from billing.money.usage_record import Outcome
from proxy.gateway.access_log import log_request
from proxy.gateway.admission import admit
from proxy.gateway.answers.meter import StreamMeter
from proxy.gateway.answers.report import NO_REPORT, Report
from proxy.gateway.answers.sse import begins_events
from proxy.gateway.background.pending import pending_record
from proxy.gateway.bodies.sound import sound_tokens
from proxy.gateway.endpoints import find_endpoint
from proxy.gateway.plan import Plan, make_plan
from proxy.gateway.request import GatewayRequest
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.settlement import NO_OUTPUT, ObservedOutput, count_input
from proxy.gateway.stream_relay import StreamRelay
from proxy.gateway.upstream.answer import MAX_RESPONSE_BYTES, Answer
from proxy.gateway.upstream.interruption import Interrupted, UpstreamError
from proxy.gateway.upstream.request_body import body_to_send
from proxy.web.rejections import Rejection, bad_gateway, error_in_answer, replacement_error, unavailable

ERROR_BODY_LIMIT = 65_536
UNFINISHED = ("queued", "in_progress")
BODY_BY_HEADERS = b"Content-Type: %s\r\nAccept: %s\r\nX-Client-Request-Id: %s\r\n"
EVENT_STREAM = b"text/event-stream"
TEXTUAL = (b"application/json", b"text/")
"""Content types that plain sound never has."""
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
            key = request.key = await services.authenticator.authenticate(request.headers, request.peer)
            endpoint = find_endpoint(request.method, request.path, request.query)
            request.endpoint = endpoint.name
            body = await request.client.read_body()
            free = admit(settings, key.account_id, services.overloaded)
            content_type = next((value for name, value in request.headers if name == b"content-type"), b"")
            parsed = endpoint.parse(body, content_type)
            references = parsed.references
            context = await services.tenants.context(key.account_id, references, parsed.model) if references else 0
            plan = make_plan(endpoint, parsed, key, self.hold.terms.prices, settings, context)
            plan = await self.hold.hold(plan, key, free=free)
            identifier = partial(services.tenants.identifier, key.account_id)
            await self._forward(plan, body_to_send(plan, settings.billing, identifier))
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

    async def _forward(self, plan: Plan, body: bytes) -> None:
        """Send, relay, settle. Every way out of here but a cancelled stream has resolved the hold."""
        request, services, hold = self.request, self.services, self.hold
        answer: Answer | None = None
        try:
            request.interruption.check()
            accept = b"text/event-stream" if plan.parsed.stream else b"application/json"
            headers = BODY_BY_HEADERS % (plan.parsed.content_type, accept, request.request_id.encode())
            if not plan.parsed.stream or plan.is_read_on:
                request.interruption.muted = True
            answer = await services.upstream.send(
                "POST",
                plan.endpoint.upstream_path,
                headers + request.trace.lines,
                body,
                request.interruption,
                hold.checkpoint_sent,
            )
            if answer.head.status != 200:
                await self._pass_error(answer)
            elif await _is_stream(plan, answer):
                await self._stream(plan, answer)
            else:
                await self._whole(plan, answer)
        except UpstreamError as error:
            services.metrics.count(services.metrics.upstream_errors, error.reason)
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
        request, metrics, redactor = self.request, self.services.metrics, self.services.redactor
        await self.hold.release()  # first: whoever leaves while the error arrives owes nothing either
        body = await _collect(answer, ERROR_BODY_LIMIT)
        status = answer.head.status
        metrics.count(metrics.upstream_errors, f"status_{status // 100}xx")
        if status == 401:
            self.services.log.key_refused()
        if not 400 <= status < 600:
            raise bad_gateway("The upstream answered in a way that cannot be passed on.", "upstream_unexpected")
        headers, own = redactor.headers(answer.head.headers, request.request_id), replacement_error(status, body)
        if own is not None:
            body = own.body()
            headers = [(name, value) for name, value in headers if name != b"content-type"]
            headers.insert(0, (b"content-type", b"application/json"))
        request.status, request.outcome = status, own.code if own is not None else "upstream_error"
        await request.client.respond(status, headers, redactor.redact_identity(body))

    # -- the answer, whole or as a stream; both end in `_settle` ------------------------------------

    async def _whole(self, plan: Plan, answer: Answer) -> None:
        """Read a JSON answer to its end, settle, then hand it over with what it cost."""
        request, hold = self.request, self.hold
        body = await _collect(answer, MAX_RESPONSE_BYTES)
        await hold.wait_persisted()
        reading = plan.endpoint.read(body)
        if reading.refusal:
            await self._refuse_answer(reading.refusal, body)
        report = reading.report
        if plan.parsed.background and report.status in UNFINISHED:
            await self._go_on_in_background(report, answer, body)
            return
        outcome: Outcome = "client_gone" if request.interruption.reason else "completed"
        sound = sound_tokens(reading.sound_bytes, plan.parsed.sound_format) if reading.sound_bytes else 0
        observed = ObservedOutput(reading.texts, sound, errored=not reading.produced)
        await self._settle(report, observed, outcome, answer.head.headers)
        redactor = self.services.redactor
        headers, body = redactor.in_clients_form(plan.parsed.convert, answer.head.headers, body, request.request_id)
        body = redactor.redact_key(body)
        headers += plan.cap_headers()
        headers.append((b"x-credits-charged", str(display_credits(hold.charged)).encode()))
        if hold.settled is not None:
            headers.append(
                (b"x-credits-remaining", str(display_credits(hold.settled.balance - hold.settled.held)).encode())
            )
        request.status = 200
        request.count_first_byte()
        await request.client.respond(200, headers, body)

    async def _refuse_answer(self, refusal: str, body: bytes) -> NoReturn:
        """Release a 200 that is no answer, and tell it as the error that it is. Raises Rejection."""
        await self.hold.release()
        metrics = self.services.metrics
        metrics.count(metrics.upstream_errors, f"status_200_{refusal}")
        raise error_in_answer(self.services.redactor.redact_identity(body))

    async def _stream(self, plan: Plan, answer: Answer) -> None:
        """Relay events as they come; settle when the upstream has ended (or the client has), then send the end."""
        request = self.request
        meter = self.meter = plan.endpoint.meter(plan.parsed)
        await self.hold.wait_persisted()
        relay = StreamRelay(request, self.hold, answer, meter)
        outcome = await relay.run()
        report, observed, outcome = relay.observed(outcome)
        await self._settle(report, observed, outcome, answer.head.headers)
        if not request.interruption.reason:
            await relay.finish(cut=outcome == "upstream_cut")

    async def _settle(
        self, report: Report, observed: ObservedOutput, outcome: Outcome, head: list[tuple[bytes, bytes]]
    ) -> None:
        """One ending of whatever was forwarded and is owed for."""
        request = self.request
        decision = await self.hold.settle(report, observed, outcome, head, request.first_byte_ms)
        request.outcome = decision.outcome

    async def _go_on_in_background(self, report: Report, answer: Answer, body: bytes) -> None:
        """Let a response run on upstream: whoever polls it settles it, so its facts are kept before it is shown."""
        request, hold, tenants = self.request, self.hold, self.services.tenants
        account_id, counted = hold.key.account_id, await count_input(self.services.tokenizer, hold.held_plan)
        record = pending_record(hold.facts(hold.held_plan), hold.terms, counted)
        try:
            await tenants.record_begun(account_id, request.request_id, report.upstream_id)
            await tenants.objects.begin_background(report.upstream_id, request.request_id, account_id, record)
        except StoreUnavailable:
            await hold.release()
            message = "Background responses cannot be kept track of right now. Try again shortly."
            raise unavailable(message, "store_unavailable") from None
        hold.detach()
        request.status, request.outcome = 200, "background"
        request.count_first_byte()
        redactor = self.services.redactor
        headers = redactor.headers(answer.head.headers, request.request_id)
        headers.append((b"x-credits-held", str(display_credits(hold.amount)).encode()))
        await request.client.respond(200, headers, redactor.redact_key(body))


async def _is_stream(plan: Plan, answer: Answer) -> bool:
    """Tell whether an answer comes in events, or is sound: neither what was asked for nor a header alone says so."""
    kind = answer.head.get(b"content-type")
    if kind.startswith(EVENT_STREAM):
        return True
    if plan.parsed.characters and not kind.startswith(TEXTUAL):
        return True
    first = await answer.peek()
    return not first.startswith(b"{") and begins_events(first)


async def _collect(answer: Answer, limit: int) -> bytes:
    """Read the whole body. Raises UpstreamError when it is cut, or larger than `limit` bytes."""
    parts, size = [], 0
    while data := await answer.read():
        size += len(data)
        if size > limit:
            raise UpstreamError("too_large", sent=True)
        parts.append(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _upstream_rejection(error: UpstreamError) -> Rejection:
    """Our answer when the upstream gave none."""
    if error.reason == "busy":
        return unavailable("Too many requests are being forwarded right now. Try again shortly.", "upstream_busy")
    status = TIMEOUT_REASONS.get(error.reason, 502)
    what = "did not answer in time" if status == 504 else "could not be reached or broke off"
    slow = status == 504 and error.sent  # it may be at work still: an SDK that asks again makes it work twice
    message = f"The upstream {what}. Nothing was charged; try again."
    return bad_gateway(message, f"upstream_{error.reason}", status, worked_on=slow)
