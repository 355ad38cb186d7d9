"""One metered request, top to bottom:

    authenticate → find endpoint → read body → plan (parse, bound, price) → hold → forward
      → relay & meter → settle

Forward, relay and settle live in this one coroutine. Whatever happens after the hold — an error, a client that
leaves, a shutdown — ends in exactly one settle or release, decided by the table of design.md 5.
"""

import asyncio
import os
import time
from functools import partial

from billing.ledger.accounts import ApiKey
from billing.money.amounts import display_credits
from billing.money.errors import StoreUnavailable
from billing.money.holds import Settled
from billing.money.usage_record import Outcome
from billing.storage.database import now_ms
from proxy.gateway.access_log import account_of
from proxy.gateway.admission import refused_now
from proxy.gateway.answers.meter import NO_REPORT, Report, StreamMeter, is_plausible, with_cost
from proxy.gateway.answers.redact import Passing
from proxy.gateway.bodies.chat import Parsed
from proxy.gateway.endpoints import find_endpoint
from proxy.gateway.plan import (
    Plan,
    body_to_send,
    make_plan,
    with_counted_input,
)
from proxy.gateway.request_hold import Holding
from proxy.gateway.services import ClientSide, Services
from proxy.gateway.settlement import Ending, Shown, Terms, decide_ending
from proxy.gateway.upstream.pool import MAX_RESPONSE_BYTES, Answer, Interrupted, Interruption, UpstreamError
from proxy.gateway.usage_rows import pending_record
from proxy.web.rejections import Rejection, bad_gateway, instead_of, invalid, unavailable

CHECKPOINT_SECONDS = 1.0
SHRINK_FROM = 100_000
"""Millicredits ($0.10): smaller holds are not worth a tokenizer's time."""
ERROR_BODY_LIMIT = 65_536
TAIL_SECONDS = 0.25
LONGEST_BEGINNING = 65_536
UNFINISHED = ("queued", "in_progress")
BODY_BY_HEADERS = b"Content-Type: %s\r\nAccept: %s\r\nX-Client-Request-Id: %s\r\n"
TIMEOUT_REASONS = {"first_byte_timeout": 504, "idle_timeout": 504, "total_timeout": 504}


class Exchange:
    """One request on its way. `run()` is the line; everything else is a step of it."""

    __slots__ = (
        "client",
        "endpoint",
        "first_byte_ms",
        "headers",
        "interruption",
        "key",
        "meter",
        "method",
        "money",
        "outcome",
        "passing",
        "path",
        "peer",
        "plan",
        "prices",
        "query",
        "request_id",
        "services",
        "settings",
        "started",
        "started_ms",
        "status",
        "trace",
    )

    def __init__(
        self,
        services: Services,
        client: ClientSide,
        method: str,
        path: bytes,
        headers: list[tuple[bytes, bytes]],
        query: bytes = b"",
        peer: tuple[str, int] | None = None,
    ) -> None:
        """`path` is the raw path; `headers` have lower-case names; `peer`: host and port of who is connected."""
        self.query, self.peer = query, peer
        self.services, self.client, self.method, self.path, self.headers = services, client, method, path, headers
        # the same for the whole request, also when another card becomes active or the configuration changes meanwhile
        self.prices, self.settings = services.prices, services.settings
        self.request_id = "req_" + os.urandom(16).hex()
        self.passing = Passing(self.request_id, services.upstream_key)
        self.trace = services.tracing.begin(headers)
        self.interruption = Interruption()
        self.started, self.started_ms = time.monotonic(), now_ms()
        self.first_byte_ms = self.status = 0
        self.money = Holding(services, self.prices, self.request_id, self.started_ms)
        self.outcome = ""
        self.endpoint = "none"
        self.key: ApiKey | None = None
        self.plan: Plan | None = None
        self.meter: StreamMeter | None = None

    async def run(self) -> None:
        """Answer the request. Never raises but for cancellation."""
        services = self.services
        services.live.add(self)
        try:
            key = self.key = await services.authenticator.authenticate(self.headers, self.peer)
            endpoint = find_endpoint(self.method, self.path)
            self.endpoint = endpoint.name
            if b"beta=true" in self.query:
                raise invalid(
                    "Beta variants of endpoints are not available here: leave `beta` out.",
                    "beta",
                    "unsupported_parameter",
                )
            body = await self.client.read_body()
            self._check_flags(key)
            parsed = endpoint.parse(body, self._header(b"content-type"))
            context = await self._context(parsed, key) if parsed.references else 0
            billing = self.settings.billing
            plan = make_plan(endpoint, parsed, key, self.prices, self.settings, context)
            plan = self.plan = await self.money.hold(plan, key)
            await self._forward(
                plan, key, body_to_send(plan, billing, partial(services.tenants.identifier, key.account_id))
            )
        except Rejection as rejection:
            await self.reject(rejection)
        except Interrupted:
            self.outcome = self.outcome or self.interruption.reason
            self.client.abort()
        finally:
            services.live.discard(self)
            await self._resolve_what_is_held()
            self.client.let_go()
            self.account()

    async def _resolve_what_is_held(self) -> None:
        """After a failure or cancellation: what was shown is owed as an orphan would owe it, the rest is given back."""
        shown = 0
        try:
            if self.first_byte_ms and self.money.holding:
                shown = self._shown_roughly()
        finally:
            if self.first_byte_ms and self.money.holding and self.plan is not None:
                await self.money.settle_as_orphan(self.plan, shown)
            await self.money.release()

    @property
    def terms(self) -> Terms:
        """What this request is charged by."""
        return Terms(self.prices, self.settings.metering.zero_completion_insurance)

    def client_left(self) -> None:
        """The client closed its connection. An answer that is read unseen is read on for a bounded time."""
        self.interruption.fire("client_gone")
        if self.interruption.muted:
            asyncio.get_running_loop().call_later(self.settings.metering.read_on_seconds, self._give_up)

    def _give_up(self) -> None:
        self.interruption.muted = False
        self.interruption.fire("client_gone")

    # -- hold -------------------------------------------------------------------------------------

    async def _context(self, parsed: Parsed, key: ApiKey) -> int | None:
        """Tokens of the stored objects that the request refers to, all of them this account's own. Raises Rejection."""
        try:
            return (await self.services.tenants.context(key.account_id, parsed.references)).tokens
        except StoreUnavailable:
            raise unavailable(
                "What this request refers to cannot be looked up right now. Try again shortly.", "store_unavailable"
            ) from None

    def _header(self, name: bytes) -> bytes:
        return next((value for key, value in self.headers if key == name), b"")

    def _check_flags(self, key: ApiKey) -> None:
        if (refusal := refused_now(self.settings, key.account_id, self.services.overloaded)) is not None:
            raise refusal

    # -- forward ----------------------------------------------------------------------------------

    async def _forward(self, plan: Plan, key: ApiKey, body: bytes) -> None:
        """Send, relay, settle. Every way out of here has resolved the hold."""
        services = self.services
        answer: Answer | None = None
        try:
            self.interruption.check()
            accept = b"text/event-stream" if plan.parsed.stream else b"application/json"
            headers = BODY_BY_HEADERS % (plan.parsed.content_type, accept, self.request_id.encode()) + self.trace.lines
            if not plan.parsed.stream or plan.model.reasoning or plan.endpoint.drains:
                self.interruption.muted = True
            path, money = plan.endpoint.upstream_path, self.money
            answer = await services.upstream.send("POST", path, headers, body, self.interruption, money.mark_sent)
            if answer.head.status != 200:
                await self._pass_error(answer)
            elif plan.parsed.stream and not answer.head.get(b"content-type").startswith(b"application/json"):
                await self._stream(plan, key, answer)
            else:
                await self._whole(plan, key, answer)
        except UpstreamError as error:
            services.metrics.count(services.metrics.upstream_errors, error.reason)
            await self.money.release()
            raise self._upstream_rejection(error) from None
        except Interrupted:
            await self._end_unanswered(plan)
            raise
        except asyncio.CancelledError:
            self.interruption.fire("shutdown")
            if not self.first_byte_ms:  # what was shown is settled at the end of run()
                await self.money.release()
            raise
        finally:
            if answer is not None:
                answer.close()

    async def _end_unanswered(self, plan: Plan) -> None:
        """Nothing had come when the client left: OpenAI bills a prompt that it was sent, so its input is charged,
        counted.
        """
        if not self.money.holding:
            return  # settled, released or handed over already: what failed was telling the client
        if not self.money.marked_at or self.interruption.reason != "client_gone":
            await self.money.release()
            return
        ending = await decide_ending(
            self.services, self.terms, plan, NO_REPORT, Shown([], searched=False), "client_gone"
        )
        await self._settle(plan, ending, [])

    async def _pass_error(self, answer: Answer) -> None:
        """An upstream error costs nothing and passes through, without our account's identity."""
        await self.money.release()  # first: whoever leaves while the error arrives owes nothing either
        body = await self._collect(answer, ERROR_BODY_LIMIT)
        status = answer.head.status
        self.services.metrics.count(self.services.metrics.upstream_errors, f"status_{status // 100}xx")
        if status == 401:
            self.services.log.key_refused()
        if not 400 <= status < 600:
            raise bad_gateway("The upstream answered in a way that cannot be passed on.", "upstream_unexpected")
        headers, own = self.passing.headers(answer.head.headers), instead_of(status, body)
        if own is not None:
            body = own.body()
            headers = [
                (b"content-type", b"application/json"),
                *(pair for pair in headers if pair[0] != b"content-type"),
            ]
        self.status, self.outcome = status, own.code if own is not None else "upstream_error"
        await self.client.respond(status, headers, self.passing.without_identity(body))

    async def _whole(self, plan: Plan, key: ApiKey, answer: Answer) -> None:
        """A JSON answer: read it all, settle, then hand it over with what it cost."""
        body = await self._collect(answer, MAX_RESPONSE_BYTES)
        await self.money.durable()
        report, produced, texts = plan.endpoint.read(body)
        if plan.parsed.background and report.status in UNFINISHED:
            await self._go_on_in_background(plan, key, report, answer, body)
            return
        outcome: Outcome = "client_gone" if self.interruption.reason else "completed"
        media = plan.bounds.output_tokens if report.usage is None and plan.endpoint.drains else 0
        sessions = await self.services.tenants.sessions(key.account_id, self.request_id, report.containers)
        shown = Shown(texts, media, insured=not produced, sessions=sessions)
        ending = await decide_ending(self.services, self.terms, plan, report, shown, outcome)
        settled = await self._settle(plan, ending, answer.head.headers)
        if plan.keeps:
            await self.services.tenants.note_made(key.account_id, self.request_id, report, ending.usage)
        headers, body = self.passing.in_clients_form(plan.parsed.convert, answer.head.headers, body)
        headers.append((b"x-credits-charged", _credits(self.money.charged)))
        headers += _output_cap(plan)
        if settled is not None:
            headers.append((b"x-credits-remaining", _credits(settled.balance - settled.held)))
        self.status = 200
        self._note_first_byte()
        await self.client.respond(200, headers, self.passing.without_key(body))

    async def _go_on_in_background(self, plan: Plan, key: ApiKey, report: Report, answer: Answer, body: bytes) -> None:
        """The response runs on upstream: whoever polls it settles it, so hold and facts are handed over before it is
        shown.
        """
        services = self.services
        try:
            await services.tenants.note_begun(key.account_id, self.request_id, report.upstream_id)
            await services.tenants.objects.begin_background(
                report.upstream_id, self.request_id, key.account_id, pending_record(self.money.facts(plan), self.terms)
            )
        except StoreUnavailable:
            await self.money.release()
            raise unavailable(
                "Background responses cannot be kept track of right now. Try again shortly.", "store_unavailable"
            ) from None
        self.money.hand_over()
        self.status, self.outcome = 200, "background"
        self._note_first_byte()
        headers = [*self.passing.headers(answer.head.headers), (b"x-credits-held", _credits(self.money.amount))]
        await self.client.respond(200, headers, self.passing.without_key(body))

    async def _stream(self, plan: Plan, key: ApiKey, answer: Answer) -> None:
        """Relay events as they come; settle when the upstream has ended (or the client has), then send the end."""
        meter = self.meter = plan.endpoint.meter(plan.parsed)
        await self.money.durable()
        outcome: Outcome = "completed"
        shrinking = self._start_shrinking(plan, key)
        try:
            await self._relay(plan, key, answer, meter)
        except Interrupted:
            outcome = "shutdown" if self.interruption.reason == "shutdown" else "client_gone"
            if self._should_drain(plan):
                await self._drain(answer, meter)
        except UpstreamError as error:
            self.services.metrics.count(self.services.metrics.upstream_errors, error.reason)
            outcome = "upstream_cut"
        except asyncio.CancelledError:
            outcome = "shutdown"
            self.interruption.fire("shutdown")
        finally:
            if shrinking is not None:
                shrinking.cancel()
        if outcome == "completed":
            meter.end()
        report = meter.report()
        if outcome == "completed" and not meter.done and report.usage is None:
            outcome = "upstream_error" if meter.failed else "upstream_cut"
        if outcome == "completed" and self.interruption.reason == "client_gone":
            outcome = "client_gone"  # the whole answer was here before anyone had to wait, but nobody reads it
        texts: list[str] = []
        media, insured, searched = 0, False, True
        believed = report.usage is not None and is_plausible(
            report.usage, plan.model, plan.parsed, plan.tools.calls + 1
        )
        if not believed or outcome != "completed" or meter.may_end_in_error():
            texts, media = meter.shown()
            errored = meter.failed or outcome == "upstream_cut" or "error" in meter.finish_reasons
            insured = errored and not meter.showed_anything
            searched = report.usage is not None or meter.showed_anything
        plan = self.plan or plan  # shrinking may have counted its input meanwhile: it owes no more than is held
        tenants = self.services.tenants
        sessions = await tenants.sessions(key.account_id, self.request_id, report.containers)
        ending = await decide_ending(
            self.services, self.terms, plan, report, Shown(texts, media, searched, insured, sessions), outcome
        )
        await self._settle(plan, ending, answer.head.headers)
        if plan.keeps:
            await tenants.note_made(key.account_id, self.request_id, report, ending.usage)
        if not self.interruption.reason:
            await self._finish_stream(answer, meter, cut=outcome == "upstream_cut")

    async def _relay(self, plan: Plan, key: ApiKey, answer: Answer, meter: StreamMeter) -> None:
        """Upstream to client until [DONE], the upstream's end, or an interruption."""
        self.interruption.muted = False
        begun = await self._owned_from_the_start(key, answer, meter) if plan.keeps else b""
        self.status = 200
        headers = self.passing.headers(answer.head.headers)
        if meter.content_type:
            headers = [(b"content-type", meter.content_type), *(pair for pair in headers if pair[0] != b"content-type")]
        held = (b"x-credits-held", _credits(self.money.amount))
        await self.client.start(200, [*headers, (b"cache-control", b"no-cache"), held, *_output_cap(plan)])
        client = self.client
        if begun:
            self._note_first_byte()
            await client.write(self.passing.without_key(begun))

        def pass_on(data: bytes) -> bool:
            """Called from the socket's own callback: one chunk in, one chunk out, no task switch between."""
            passed = meter.feed(data)
            if passed:
                if not self.first_byte_ms:
                    self._note_first_byte()
                client.write_now(self.passing.without_key(passed))
            if time.monotonic() - self.money.marked_at >= CHECKPOINT_SECONDS:
                self.money.mark_shown(self.plan or plan, meter.shown_roughly())
            return not meter.done and client.keeps_up

        while not meter.done and await answer.pump(pass_on):
            await client.drained()

    async def _owned_from_the_start(self, key: ApiKey, answer: Answer, meter: StreamMeter) -> bytes:
        """Read until the answer says its id, and note whose it is before anyone can see it.

        Raises Rejection when that cannot be.
        """
        begun = b""
        while not meter.report().upstream_id and not meter.done and len(begun) < LONGEST_BEGINNING:
            data = await answer.read()
            if not data:
                return begun
            begun += meter.feed(data)
        try:
            if meter.report().upstream_id:
                await self.services.tenants.note_begun(key.account_id, self.request_id, meter.report().upstream_id)
        except StoreUnavailable:
            raise unavailable(
                "What this would store cannot be kept track of right now. Try again shortly.", "store_unavailable"
            ) from None
        return begun

    def _start_shrinking(self, plan: Plan, key: ApiKey) -> "asyncio.Task[None] | None":
        """A large hold that is mostly bytes of input: count the input while the answer streams, and hold only that.

        Bytes over-hold English text about fivefold, which would refuse the account's next requests for no reason.
        """
        amount, owed = self.money.amount, self.money.input_owed
        if amount < SHRINK_FROM or owed * 2 < amount or plan.input_is_counted or plan.endpoint.texts is None:
            return None
        return asyncio.create_task(self._shrink(plan, key))

    async def _shrink(self, plan: Plan, key: ApiKey) -> None:
        texts, framing = plan.endpoint.texts(plan.parsed.source) if plan.endpoint.texts is not None else ([], 0)
        tokens = framing + await self.services.tokenizer.count(plan.parsed.model, texts)
        counted = with_counted_input(plan, tokens, self.prices)
        if counted.ceiling.amount < self.money.amount:
            self.plan = counted
            self.money.mark_shown(
                counted, self._shown_roughly()
            )  # an orphan owes no more than the hold: first the one, then the other
            self.services.balances.shrink(self.request_id, key.account_id, counted.ceiling.amount)

    def _shown_roughly(self) -> int:
        """Output tokens that the client has seen of a stream, about."""
        return self.meter.shown_roughly() if self.meter is not None else 0

    async def _finish_stream(self, answer: Answer, meter: StreamMeter, *, cut: bool) -> None:
        """Send what was kept back; an answer that broke off never ends cleanly."""
        tail = meter.tail
        if meter.usage_event is not None and (b"x-credits-usage", b"1") in self.headers:
            cost = display_credits(self.money.charged)
            tail = [with_cost(event, cost) if event is meter.usage_event else event for event in tail]
        rest = meter.rest()
        try:
            if cut:
                await self._break_off(meter, b"".join(tail), rest)
            else:
                await self.client.write(self.passing.without_key(b"".join((*tail, rest))), last=True)
                if not answer.finished and meter.done:
                    await self._read_end(answer)
        except Interrupted:
            self.client.abort()

    async def _break_off(self, meter: StreamMeter, tail: bytes, rest: bytes) -> None:
        """Inside an event: pass what came and break the connection. Between events: say so in an error event."""
        if tail or rest:
            await self.client.write(self.passing.without_key(tail + rest))
        if rest or not meter.ends_in_events:
            self.client.abort()
            return
        error = bad_gateway("The upstream broke off its answer; what it sent until then was charged.", "upstream_cut")
        await self.client.write(b"data: " + error.body() + b"\n\n", last=True)

    @staticmethod
    async def _read_end(answer: Answer) -> None:
        """After [DONE] only the chunked terminator is missing: fetch it, so that the connection can be kept."""
        try:
            async with asyncio.timeout(TAIL_SECONDS):
                await answer.read()
        except (TimeoutError, UpstreamError, Interrupted):
            return

    def _should_drain(self, plan: Plan) -> bool:
        metering = self.settings.metering
        return self.interruption.reason == "client_gone" and (
            plan.model.reasoning or plan.endpoint.drains or metering.on_disconnect == "read_on"
        )

    async def _drain(self, answer: Answer, meter: StreamMeter) -> None:
        """The client left, but its model thinks unseen: read on to the usage, bounded in time and tokens."""
        metering = self.settings.metering
        self.interruption.muted = True
        try:
            async with asyncio.timeout(metering.read_on_seconds):
                while not meter.done:
                    data = await answer.read()
                    if not data:
                        return
                    meter.feed(data)
                    if (
                        answer.received // 64 > metering.read_on_output_tokens
                        and meter.shown_roughly() > metering.read_on_output_tokens
                    ):
                        return
        except (TimeoutError, UpstreamError, Interrupted):
            return

    async def _collect(self, answer: Answer, limit: int) -> bytes:
        """The whole body. Raises UpstreamError when it is cut, or larger than `limit`."""
        parts, size = [], 0
        while data := await answer.read():
            size += len(data)
            if size > limit:
                raise UpstreamError("too_large", sent=True)
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _settle(self, plan: Plan, ending: Ending, head: list[tuple[bytes, bytes]]) -> Settled | None:
        self.outcome = ending.outcome
        return await self.money.settle(
            plan, ending, head, self.first_byte_ms, round((time.monotonic() - self.started) * 1_000)
        )

    # -- answers ----------------------------------------------------------------------------------

    def _upstream_rejection(self, error: UpstreamError) -> Rejection:
        if error.reason == "busy":
            return unavailable("Too many requests are being forwarded right now. Try again shortly.", "upstream_busy")
        status = TIMEOUT_REASONS.get(error.reason, 502)
        what = "did not answer in time" if status == 504 else "could not be reached or broke off"
        return bad_gateway(f"The upstream {what}. Nothing was charged; try again.", f"upstream_{error.reason}", status)

    async def reject(self, rejection: Rejection) -> None:
        """Answer with a refusal."""
        self.status = rejection.status
        self.outcome = self.outcome or rejection.code
        await self._send_json(rejection.status, rejection.body(), rejection.headers())

    async def fail(self) -> None:
        """Our own fault: say so, or break off what has begun."""
        if self.client.started:
            self.client.abort()
        else:
            await self.reject(
                Rejection(
                    500,
                    "internal_error",
                    "Something failed on our side. Nothing was charged; try again.",
                    kind="server_error",
                )
            )

    async def answer_json(self, body: bytes) -> None:
        """Answer 200 with our own JSON."""
        self.status, self.outcome = 200, "completed"
        await self._send_json(200, body, [])

    async def _send_json(self, status: int, body: bytes, more: list[tuple[bytes, bytes]]) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"x-request-id", self.request_id.encode()),
            *more,
        ]
        if status in (408, 413):
            headers.append((b"connection", b"close"))  # the rest of the body is not waited for
        try:
            await self.client.respond(status, headers, body)
        except Interrupted:
            self.client.abort()

    def _note_first_byte(self) -> None:
        elapsed = time.monotonic() - self.started
        self.first_byte_ms = max(1, round(elapsed * 1_000))
        self.services.metrics.first_byte_after(elapsed)

    def account(self) -> None:
        """Metrics and the log line of this request."""
        account_of(self, self.services)


def _credits(amount: int) -> bytes:
    return str(display_credits(amount)).encode()


def _output_cap(plan: Plan) -> list[tuple[bytes, bytes]]:
    """What a client that named no maximum should know: that the balance, or the operator, set one."""
    most = plan.model.max_output_tokens
    if not plan.cap_is_ours or not plan.parsed.cap_field or (most is not None and plan.cap >= most):
        return []
    return [(b"x-credits-output-cap", b"%d" % plan.cap)]
