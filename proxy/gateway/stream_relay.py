"""A streamed answer on its way to the client: relayed as it comes, read on unseen, finished when it is settled."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from billing.money.amounts import display_credits
from billing.money.usage import Usage
from billing.money.usage_record import Outcome
from proxy.gateway.answers.identity import events_without_filters, without_ids
from proxy.gateway.answers.meter import StreamMeter, with_cost
from proxy.gateway.answers.report import Report
from proxy.gateway.request import GatewayRequest
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import ClientSide
from proxy.gateway.settlement import ObservedOutput, is_plausible
from proxy.gateway.upstream.answer import Answer
from proxy.gateway.upstream.interruption import Interrupted, UpstreamError
from proxy.web.rejections import bad_gateway

CHECKPOINT_SECONDS = 1.0
TAIL_SECONDS = 0.25
LONGEST_BEGINNING = 65_536
"""Bytes of a stream that are kept back at most while it has not said its id."""
FEWEST_BYTES_PER_TOKEN = 64
"""Bytes of events per streamed token at least: before so many have come the tokens need not be counted."""
MOST_BYTES_PER_TOKEN = 1_024
"""Bytes of events that a token usually comes with at most: what says that it was fewer tokens is looked at."""
KEEP_ALIVE = b": keep-alive\n\n"
EVENT_STREAM = b"text/event-stream"


class KeepAlive:
    """Comments for who reads an event stream whose upstream is silent: balancers cut what says nothing for a minute.

    One timer a stream, and nothing a chunk: when it is due it looks how long nothing has come. Only between events.
    Use as a context manager, once the head is out.
    """

    __slots__ = ("_answer", "_client", "_loop", "_meter", "_seconds", "_timer", "_told_at")

    def __init__(self, client: ClientSide, answer: Answer, meter: StreamMeter, seconds: int) -> None:
        """`meter` reads what is passed on; `seconds` of silence, 0 for never."""
        self._client, self._answer, self._meter = client, answer, meter
        # an answer that is turned into sound has no place for a comment
        is_read_as_events = meter.ends_in_events and answer.head.get(b"content-type").startswith(EVENT_STREAM)
        self._seconds = seconds if is_read_as_events else 0
        self._loop = asyncio.get_running_loop()
        self._told_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        """Begin to look."""
        if self._seconds:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def __exit__(self, *_error: object) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        due = max(self._answer.heard_at, self._told_at) + self._seconds
        if now >= due:
            if not self._meter.inside_event and self._client.keeps_up:
                self._client.write_now(KEEP_ALIVE)
            self._told_at, due = now, now + self._seconds
        self._timer = self._loop.call_at(due, self._look)


class StreamRelay:
    """One stream of one exchange."""

    __slots__ = ("_answer", "_begun", "_hold", "_meter", "_plan", "_request", "_sounds")

    def __init__(
        self,
        request: GatewayRequest,
        hold: RequestHold,
        answer: Answer,
        meter: StreamMeter,
        begun: Callable[[str], Awaitable[None]],
    ) -> None:
        """Nothing is relayed yet; the hold is on disk.

        `begun` is called with the id of an answer that is kept, before anyone sees it. It may detach the hold, and
        raises Rejection where the answer must not be shown.
        """
        self._request, self._hold, self._answer, self._meter = request, hold, answer, meter
        self._plan, self._begun = hold.plan, begun
        self._sounds: tuple[tuple[str, int], ...] = ()

    async def run(self) -> Outcome:
        """Relay until the answer or its reader ends; tell how it ended. Raises Rejection before anything was sent."""
        request, meter = self._request, self._meter
        outcome: Outcome = "completed"
        is_ours = not self._plan.parsed.background  # else the poller resumes it as it is
        shrinking = self._hold.start_shrinking(meter.streamed_tokens_estimate) if is_ours else None
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
        told = report.usage is not None and not meter.usage_is_early and not self._came_with_more(report.usage)
        ended = outcome == "completed" and not meter.failed and not meter.may_end_in_error()
        if believed and whole and told and ended:
            return report, ObservedOutput([]), outcome
        texts, media = meter.streamed()
        anything = meter.streamed_anything
        failed = meter.failed or outcome == "upstream_cut" or "error" in meter.finish_reasons
        errored = not anything and (failed or (outcome == "completed" and self._is_empty_end(report)))
        searched = report.usage is not None or anything
        running = outcome != "completed" and report.usage is not None and meter.usage_event is None
        early = report.usage is not None and meter.usage_is_early
        return report, ObservedOutput(texts, media, searched, errored, running, early), outcome

    def _is_empty_end(self, report: Report) -> bool:
        """Tell whether a chat said nothing, not even why it stopped: as of a whole answer, that is no output."""
        written = report.usage is not None and report.usage.output_tokens
        return self._meter.says_why and not self._meter.finish_reasons and not written

    def _came_with_more(self, usage: Usage) -> bool:
        """Tell whether so many bytes came for so few tokens that what they say is worth a look."""
        return self._answer.received > MOST_BYTES_PER_TOKEN * usage.output_tokens

    async def finish(self, *, cut: bool) -> None:
        """Send what was kept back; an answer that broke off never ends cleanly."""
        request, meter = self._request, self._meter
        if not cut and meter.done and meter.inside_event:  # a CR ended the last event: its LF may be on its way
            meter.feed(await self._read_end())
        tail = meter.tail
        is_charged = not self._plan.parsed.background  # what it costs is known once the poller has settled it
        if meter.usage_event is not None and is_charged and (b"x-credits-usage", b"1") in request.headers:
            cost = display_credits(self._hold.charged)
            tail = [with_cost(event, cost) if event is meter.usage_event else event for event in tail]
        rest = meter.rest()
        try:
            if cut:
                await self._break_off(b"".join(tail), rest)
            else:
                await request.client.write(self._shown(b"".join((*tail, rest))), last=True)
                if not self._answer.finished and meter.done:
                    await self._read_end()
        except Interrupted:
            request.client.abort()

    async def _relay(self) -> None:
        """Upstream to client until [DONE], the upstream's end, or an interruption."""
        request, hold, meter, answer = self._request, self._hold, self._meter, self._answer
        client, shown = request.client, self._shown if request.hides_azure else request.services.redactor.redact_key
        runs_on = self._plan.parsed.background
        if not runs_on:
            request.interruption.muted = False
            request.interruption.check()  # who left, or was answered, is not begun to be answered
        begun = await self._owned_from_the_start() if self._plan.keeps or runs_on else b""
        if runs_on:  # until it was handed over, its id was wanted whoever had left
            request.interruption.muted = False
            request.interruption.check()
        request.status = 200
        await client.start(200, self._headers())
        if begun:
            request.count_first_byte()
            await client.write(shown(await self._with_owned_sounds(begun)))

        feed, write_now, now = meter.feed, client.write_now, time.monotonic

        def pass_on(data: bytes) -> bool:
            """Pass one chunk on, from the socket's own callback: no task switch between."""
            passed, keeps_up = feed(data), True
            if passed:
                if not request.first_byte_ms:
                    request.count_first_byte()
                keeps_up = write_now(shown(passed))
            if now() - hold.checkpointed_at >= CHECKPOINT_SECONDS and hold.is_open:
                hold.checkpoint_streamed(meter.streamed_tokens_estimate())
            return keeps_up and not meter.done

        comments = request.settings.metering.keepalive_comment_seconds if self._plan.parsed.stream else 0
        with KeepAlive(client, answer, meter, comments):
            if self._plan.parsed.audio_output:
                await self._relay_speech()
            while not meter.done and await answer.pump(pass_on):
                await client.drained()

    def _shown(self, data: bytes) -> bytes:
        """Whole events as a client may see them."""
        request = self._request
        return request.services.redactor.redact_key(events_without_filters(data) if request.hides_azure else data)

    async def _relay_speech(self) -> None:
        """Relay an answer of chat that speaks: ids of its speech come in the middle, and each has an owner first."""
        request, hold, meter = self._request, self._hold, self._meter
        while not meter.done and (data := await self._answer.read()):
            passed = await self._with_owned_sounds(meter.feed(data))
            if passed:
                if not request.first_byte_ms:
                    request.count_first_byte()
                await request.client.write(self._shown(passed))
            if time.monotonic() - hold.checkpointed_at >= CHECKPOINT_SECONDS:
                hold.checkpoint_streamed(meter.streamed_tokens_estimate())

    async def _with_owned_sounds(self, passed: bytes) -> bytes:
        """Events that may be shown: each id of speech in them has its owner, or is withheld."""
        if not self._plan.parsed.audio_output:
            return passed
        known = {name for name, _ in self._sounds}
        new = tuple(one for one in self._meter.sounds() if one[0] not in known)
        if new:
            self._sounds += new
            hold, tenants = self._hold, self._request.services.tenants
            said = (new, self._plan.bounds.output_tokens, hold.served.upstream)
            hold.unowned += await tenants.record_sounds(hold.key.account_id, hold.request_id, *said)
        return without_ids(passed, self._hold.unowned)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = self._request.services.redactor.headers(self._answer.head.headers, self._request.request_id)
        if self._meter.content_type:
            headers = [(name, value) for name, value in headers if name != b"content-type"]
            headers.insert(0, (b"content-type", self._meter.content_type))
        held = (b"x-credits-held", str(display_credits(self._hold.amount)).encode())
        return [
            *headers,
            (b"cache-control", b"no-cache"),
            held,
            *self._plan.cap_headers(),
            *self._request.own_headers(),
        ]

    async def _owned_from_the_start(self) -> bytes:
        """Read until the answer says its id, and record whose it is before anyone can see it (I8).

        Raises Rejection when that cannot be.
        """
        answer, meter = self._answer, self._meter
        begun = b""
        while not meter.report().upstream_id and not meter.done and len(begun) < LONGEST_BEGINNING:
            data = await answer.read()
            if not data:
                return begun
            begun += meter.feed(data)
        if made := meter.report().upstream_id:
            await self._begun(made)
        return begun

    def _is_read_on(self) -> bool:
        """Tell whether an answer that nobody reads is read to its usage."""
        wanted = self._plan.is_read_on or self._request.settings.metering.on_disconnect == "read_on"
        return self._hold.is_open and self._request.interruption.reason != "shutdown" and wanted

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
        if not client.started:  # it broke off before it said its id, which nothing was shown without
            raise bad_gateway("The upstream broke off before its answer had begun. Try again.", "upstream_cut")
        if tail or rest:
            await client.write(self._shown(tail + rest))
        if rest or not self._meter.ends_in_events:
            client.abort()
            return
        message = "The upstream broke off its answer; what it sent until then was charged."
        if self._plan.parsed.background:
            message = "The connection to the upstream broke off. The response goes on: resume it by its id, with GET."
        error = bad_gateway(message, "upstream_cut")
        await client.write(b"data: " + error.body() + b"\n\n", last=True)

    async def _read_end(self) -> bytes:
        """After [DONE] only the chunked terminator is missing: fetch it, so that the connection can be kept."""
        try:
            async with asyncio.timeout(TAIL_SECONDS):
                return await self._answer.read()
        except (TimeoutError, UpstreamError, Interrupted):
            return b""
