"""GET /v1/responses as a WebSocket: every `response.create` is planned, held for and settled like a request.

Lanes (`stream_id`) run beside each other; within one, responses come in the order they were asked for. `response.steer`
could make the server start a response that nobody asked for, so it is refused.
"""

from collections import deque
from functools import partial

import msgspec

from billing.ledger.accounts import ApiKey
from billing.money.errors import StoreUnavailable
from billing.money.usage_record import Outcome
from proxy.gateway.answers.events import DELTA, RESPONSE_EVENTS, response_report
from proxy.gateway.bodies.chat import Reference
from proxy.gateway.endpoints import METERED
from proxy.gateway.plan import body_to_send, make_plan
from proxy.gateway.services import Services
from proxy.gateway.sockets.charge import Begin, Spending
from proxy.gateway.sockets.relay import POLICY_VIOLATION, Finished, Frame, overloaded
from proxy.web.rejections import Rejection, invalid, unavailable

ENDPOINT = METERED["POST", b"/v1/responses"]
OURS = ("type", "stream_id", "generate")
PASSED = frozenset(("response.cancel",))
MAX_LANES = 64
PAYMENT_REQUIRED = 402
KNOWN_RESPONSES = 10_000
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ResponsesSession:
    """See sockets.Session."""

    def __init__(self, services: Services, key: ApiKey, begin: Begin) -> None:
        """Nothing runs yet."""
        self._services, self._key, self._begin = services, key, begin
        self._waiting: dict[str, deque[Spending]] = {}
        self._running: dict[str, Spending] = {}
        self._made: dict[str, int] = {}
        self._broke = False

    def target(self) -> str:
        """See Session."""
        if (refusal := overloaded(self._services, self._key.account_id)) is not None:
            raise refusal
        return "/responses"

    def opening(self) -> list[bytes]:
        """See Session."""
        return []

    async def from_client(self, frame: Frame, raw: bytes) -> bytes:
        """See Session."""
        if frame["type"] in PASSED:
            return raw
        if frame["type"] != "response.create":
            raise invalid(
                f"Events of type {frame['type'][:60]!r} are not available here: send response.create.",
                "type",
                "unsupported_event",
            )
        spending = self._begin()
        spending.key = self._key
        try:
            return await self._create(spending, frame, raw)
        except Rejection as rejection:
            await spending.refuse(rejection)
            self._broke = self._broke or rejection.status == PAYMENT_REQUIRED
            if self._broke and not self.waits(gone=False):
                raise Finished(POLICY_VIOLATION, "insufficient_credits", self.error(rejection, frame)) from None
            raise

    async def _create(self, spending: Spending, frame: Frame, raw: bytes) -> bytes:
        """Hold for it; what goes upstream. Raises Rejection."""
        if (refusal := overloaded(self._services, self._key.account_id)) is not None:
            raise refusal
        members = _members.decode(raw)
        kept = {name: members.pop(name) for name in OURS if name in members}
        lane = self._lane(frame)
        body = (
            b"{" + b",".join(msgspec.json.encode(name) + b":" + bytes(value) for name, value in members.items()) + b"}"
        )
        parsed = ENDPOINT.parse(body, b"")
        if parsed.background:
            raise invalid("`background` is not available on a WebSocket.", "background", "unsupported_parameter")
        settings = self._services.settings
        plan = make_plan(ENDPOINT, parsed, self._key, spending.prices, settings, await self._context(parsed.references))
        plan = await spending.hold(plan, self._key)
        self._waiting.setdefault(lane, deque()).append(spending)
        spending.money.mark_sent()
        sent = body_to_send(plan, settings.billing, partial(self._services.tenants.identifier, self._key.account_id))
        front = b",".join(msgspec.json.encode(name) + b":" + bytes(value) for name, value in kept.items())
        return b"{" + front + b"," + sent[sent.index(b"{") + 1 :]

    async def _context(self, references: tuple[Reference, ...]) -> int | None:
        """As for a request, but what this socket made is its own even where nothing is stored."""
        tokens, others = 0, []
        for reference in references:
            if reference.kind == "response" and reference.id in self._made:
                tokens += self._made[reference.id]
            else:
                others.append(reference)
        if not others:
            return tokens
        try:
            context = await self._services.tenants.context(self._key.account_id, tuple(others))
        except StoreUnavailable:
            raise unavailable(
                "What this refers to cannot be looked up right now. Try again shortly.", "store_unavailable"
            ) from None
        return None if context.tokens is None else tokens + context.tokens

    def _lane(self, frame: Frame) -> str:
        lane = frame.get("stream_id") or ""
        if not isinstance(lane, str) or len(lane) > MAX_LANES:
            raise invalid("`stream_id` must be a string of at most 64 characters.", "stream_id")
        if lane not in self._waiting and len(self._waiting) >= MAX_LANES:
            raise invalid(f"At most {MAX_LANES} lanes can be open on one socket.", "stream_id")
        return lane

    async def from_upstream(self, frame: Frame, raw: bytes) -> bytes:
        """See Session."""
        name, lane = frame.get("type"), frame.get("stream_id") or ""
        if name == "response.created":
            await self._begun(frame, lane)
        elif name == "error":
            await self._failed(lane)
        elif name in RESPONSE_EVENTS.closing:
            await self._closed(frame, lane)
            if self._broke and not self.waits(gone=False):
                raise Finished(POLICY_VIOLATION, "insufficient_credits", raw)
        elif (found := DELTA.search(raw[:200])) and lane in self._running and isinstance(frame.get("delta"), str):
            del found
            self._running[lane].texts.append(frame["delta"])
        return raw

    async def _begun(self, frame: Frame, lane: str) -> None:
        response = frame.get("response")
        waiting = self._waiting.get(lane)
        if not waiting:
            raise Finished(POLICY_VIOLATION, "A response began that nothing is held for.")
        spending = waiting.popleft()
        spending.response_id = str(response.get("id", "")) if isinstance(response, dict) else ""
        self._running[lane] = spending
        if spending.plan is not None and spending.plan.keeps and spending.response_id:
            await self._services.tenants.note_begun(self._key.account_id, spending.request_id, spending.response_id)

    async def _failed(self, lane: str) -> None:
        """Refused before it began, or broken off inside: nothing more comes of it."""
        spending = self._running.pop(lane, None)
        if spending is not None:
            await spending.abandon("upstream_error")
        elif waiting := self._waiting.get(lane):
            await waiting.popleft().abandon("upstream_error")

    async def _closed(self, frame: Frame, lane: str) -> None:
        spending = self._running.pop(lane, None)
        if spending is None:
            return
        report = response_report(frame)
        await spending.settle(report)
        if report.upstream_id and report.usage is not None:
            self._made[report.upstream_id] = report.usage.input_tokens + report.usage.output_tokens
            if len(self._made) > KNOWN_RESPONSES:
                self._made.pop(next(iter(self._made)))

    def error(self, rejection: Rejection, frame: Frame) -> bytes:
        """See Session."""
        body = msgspec.json.decode(rejection.body())
        event = {"type": "error", "status": rejection.status, **body}
        if isinstance(frame.get("stream_id"), str):
            event["stream_id"] = frame["stream_id"][:64]
        return msgspec.json.encode(event)

    def waits(self, *, gone: bool) -> bool:
        """See Session."""
        running = [*self._running.values(), *(one for waiting in self._waiting.values() for one in waiting)]
        if not gone or self._services.settings.metering.on_disconnect == "read_on":
            return bool(running)
        return any(one.plan is not None and one.plan.model.reasoning for one in running)

    async def end(self, outcome: Outcome) -> None:
        """See Session."""
        for spending in [*self._running.values(), *(one for waiting in self._waiting.values() for one in waiting)]:
            await spending.abandon(outcome)
        self._running.clear()
        self._waiting.clear()
