"""A streamed answer on its way to the client: relayed as it comes, read on unseen, finished when it is settled."""

import asyncio
import time

from billing.money.amounts import display_credits
from billing.money.errors import StoreUnavailable
from billing.money.usage_record import Outcome
from proxy.gateway.answers.meter import StreamMeter, with_cost
from proxy.gateway.answers.report import Report
from proxy.gateway.request import GatewayRequest
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.settlement import ObservedOutput, is_plausible
from proxy.gateway.upstream.answer import Answer
from proxy.gateway.upstream.interruption import Interrupted, UpstreamError
from proxy.web.rejections import bad_gateway, unavailable

CHECKPOINT_SECONDS = 1.0
TAIL_SECONDS = 0.25
LONGEST_BEGINNING = 65_536
"""Bytes of a stream that are kept back at most while it has not said its id."""
FEWEST_BYTES_PER_TOKEN = 64
"""Bytes of events per streamed token at least: before so many have come the tokens need not be counted."""


class StreamRelay:
    """One stream of one exchange."""

    __slots__ = ("_answer", "_hold", "_meter", "_plan", "_request")

    def __init__(self, request: GatewayRequest, hold: RequestHold, answer: Answer, meter: StreamMeter) -> None:
        """Nothing is relayed yet; the hold is on disk."""
        self._request, self._hold, self._answer, self._meter = request, hold, answer, meter
        self._plan = hold.held_plan

    async def run(self) -> Outcome:
        """Relay until the answer or its reader ends; tell how it ended. Raises Rejection before anything was sent."""
        request, meter = self._request, self._meter
        outcome: Outcome = "completed"
        shrinking = self._hold.start_shrinking(meter.streamed_tokens_estimate)
        try:
            await self._relay()
        except Interrupted:
            outcome = "shutdown" if request.interruption.reason == "shutdown" else "client_gone"
            if self._is_read_on():
                await self._read_on()
        except UpstreamError as error:
            request.services.metrics.count(request.services.metrics.upstream_errors, error.reason)
            outcome = "upstream_cut"
        except asyncio.CancelledError:
            outcome = "shutdown"
            request.interruption.fire("shutdown")
        finally:
            if shrinking is not None:
                shrinking.cancel()
        if outcome == "completed":
            meter.end()
        return outcome

    def observed(self, outcome: Outcome) -> tuple[Report, ObservedOutput, Outcome]:
        """Answer's own report, the output that passed, and the outcome in the light of both."""
        meter, plan = self._meter, self._plan
        report = meter.report()
        if outcome == "completed" and not meter.done and report.usage is None:
            outcome = "upstream_error" if meter.failed else "upstream_cut"
        if outcome == "completed" and self._request.interruption.reason == "client_gone":
            outcome = "client_gone"  # the whole answer was here before anyone had to wait, but nobody reads it
        loops = plan.tools.calls + 1
        believed = report.usage is not None and is_plausible(report.usage, plan.model, plan.parsed, loops)
        whole = report.usage is not None and report.usage.output_tokens > 0 and report.usage.input_tokens > 0
        if believed and whole and outcome == "completed" and not meter.failed and not meter.may_end_in_error():
            return report, ObservedOutput([]), outcome
        texts, media = meter.streamed()
        anything = meter.streamed_anything
        errored = not anything and (meter.failed or outcome == "upstream_cut" or "error" in meter.finish_reasons)
        searched = report.usage is not None or anything
        running = outcome != "completed" and report.usage is not None and meter.usage_event is None
        return report, ObservedOutput(texts, media, searched, errored, running), outcome

    async def finish(self, *, cut: bool) -> None:
        """Send what was kept back; an answer that broke off never ends cleanly."""
        request, meter = self._request, self._meter
        tail = meter.tail
        if meter.usage_event is not None and (b"x-credits-usage", b"1") in request.headers:
            cost = display_credits(self._hold.charged)
            tail = [with_cost(event, cost) if event is meter.usage_event else event for event in tail]
        rest = meter.rest()
        try:
            if cut:
                await self._break_off(b"".join(tail), rest)
            else:
                await request.client.write(request.services.redactor.redact_key(b"".join((*tail, rest))), last=True)
                if not self._answer.finished and meter.done:
                    await self._read_end()
        except Interrupted:
            request.client.abort()

    async def _relay(self) -> None:
        """Upstream to client until [DONE], the upstream's end, or an interruption."""
        request, hold, meter, answer = self._request, self._hold, self._meter, self._answer
        client, redactor = request.client, request.services.redactor
        request.interruption.muted = False
        begun = await self._owned_from_the_start() if self._plan.keeps else b""
        request.status = 200
        await client.start(200, self._headers())
        if begun:
            request.count_first_byte()
            await client.write(redactor.redact_key(begun))

        def pass_on(data: bytes) -> bool:
            """Pass one chunk on, from the socket's own callback: no task switch between."""
            passed = meter.feed(data)
            if passed:
                if not request.first_byte_ms:
                    request.count_first_byte()
                client.write_now(redactor.redact_key(passed))
            if time.monotonic() - hold.checkpointed_at >= CHECKPOINT_SECONDS:
                hold.checkpoint_streamed(meter.streamed_tokens_estimate())
            return not meter.done and client.keeps_up

        while not meter.done and await answer.pump(pass_on):
            await client.drained()

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = self._request.services.redactor.headers(self._answer.head.headers, self._request.request_id)
        if self._meter.content_type:
            headers = [(name, value) for name, value in headers if name != b"content-type"]
            headers.insert(0, (b"content-type", self._meter.content_type))
        held = (b"x-credits-held", str(display_credits(self._hold.amount)).encode())
        return [*headers, (b"cache-control", b"no-cache"), held, *self._plan.cap_headers()]

    async def _owned_from_the_start(self) -> bytes:
        """Read until the answer says its id, and record whose it is before anyone can see it (I8).

        Raises Rejection when that cannot be.
        """
        answer, meter, request = self._answer, self._meter, self._request
        begun = b""
        while not meter.report().upstream_id and not meter.done and len(begun) < LONGEST_BEGINNING:
            data = await answer.read()
            if not data:
                return begun
            begun += meter.feed(data)
        made, account_id = meter.report().upstream_id, self._hold.key.account_id
        try:
            if made:
                await request.services.tenants.record_begun(account_id, request.request_id, made)
        except StoreUnavailable:
            message = "What this would store cannot be kept track of right now. Try again shortly."
            raise unavailable(message, "store_unavailable") from None
        return begun

    def _is_read_on(self) -> bool:
        """Tell whether an answer that nobody reads is read to its usage."""
        wanted = self._plan.is_read_on or self._request.settings.metering.on_disconnect == "read_on"
        return self._request.interruption.reason == "client_gone" and wanted

    async def _read_on(self) -> None:
        """Read on to the usage though the client left: its model works unseen; bounded in time and tokens."""
        metering, answer, meter = self._request.settings.metering, self._answer, self._meter
        most = metering.read_on_output_tokens
        self._request.interruption.muted = True
        try:
            async with asyncio.timeout(metering.read_on_seconds):
                while not meter.done:
                    data = await answer.read()
                    if not data:
                        return
                    meter.feed(data)
                    many = answer.received // FEWEST_BYTES_PER_TOKEN > most
                    if many and meter.streamed_tokens_estimate() > most:
                        return
        except (TimeoutError, UpstreamError, Interrupted):
            return

    async def _break_off(self, tail: bytes, rest: bytes) -> None:
        """Inside an event: pass what came and break the connection. Between events: say so in an error event."""
        client = self._request.client
        if tail or rest:
            await client.write(self._request.services.redactor.redact_key(tail + rest))
        if rest or not self._meter.ends_in_events:
            client.abort()
            return
        error = bad_gateway("The upstream broke off its answer; what it sent until then was charged.", "upstream_cut")
        await client.write(b"data: " + error.body() + b"\n\n", last=True)

    async def _read_end(self) -> None:
        """After [DONE] only the chunked terminator is missing: fetch it, so that the connection can be kept."""
        try:
            async with asyncio.timeout(TAIL_SECONDS):
                await self._answer.read()
        except (TimeoutError, UpstreamError, Interrupted):
            return
