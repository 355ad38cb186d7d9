"""GET /v1/responses as a WebSocket: every `response.create` is planned, held for and settled like a request.

A socket carries *lanes*, named by `stream_id`. Lanes run beside each other; within one, responses come in the
order they were asked for. Each response goes through these states, and its money with it:

    asked      The client's `response.create` is planned and held for before a byte of it goes upstream. Refused, it is
               an event of ours and costs nothing. It waits at the end of its lane.
    running    `response.created` on the lane: the first that waits begins, and its id has an owner before the client
               can see it (I8). A response that nobody asked for ends the socket; `response.steer`, which could start
               one, is refused.
    closed     Its closing event (completed, incomplete, failed) settles it by its own usage.
    abandoned  The end of the socket: what passed towards the client is counted and charged. Of a response that was
               sent and had not begun, a client that leaves owes the input where it was the next of its lane; else it is
               released, then or when an error answers its `response.create`. No error ends a running response
               (lanes.py says which event is about which).

A 402 lets running responses end, then closes the socket: an agent that asks on and on must not hang.
"""

from functools import partial
from typing import NamedTuple

import msgspec

from billing.ledger.accounts import ApiKey
from billing.money.errors import StoreUnavailable
from billing.money.usage_record import Outcome
from proxy.gateway.admission import admit
from proxy.gateway.answers.events import RESPONSE_EVENTS
from proxy.gateway.answers.reports import response_report, text_of, with_passed
from proxy.gateway.bodies.inventory import SOCKET_CLIENT, offered
from proxy.gateway.bodies.json_body import split
from proxy.gateway.bodies.parsed import Parsed, StoredContext
from proxy.gateway.endpoints import METERED
from proxy.gateway.forwarding import pinned_member
from proxy.gateway.plan import make_plan
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import Begin, SocketExchange
from proxy.gateway.sockets.lanes import Lane, Lanes
from proxy.gateway.sockets.relay import INTERNAL_ERROR, POLICY_VIOLATION, Finished, Frame
from proxy.gateway.upstream.request_body import body_to_send
from proxy.gateway.upstream.tenants import CANNOT_KEEP, extra_for
from proxy.web.rejections import Rejection, invalid, unavailable

ENDPOINT = METERED["POST", b"/v1/responses"]
OURS = ("type", "stream_id", "generate")
CLIENT_EVENTS = offered(SOCKET_CLIENT)
CANCEL, FAILED = "response.cancel", "response.failed"
MAX_LANES = 64
PAYMENT_REQUIRED = 402
KNOWN_RESPONSES = 10_000


class MadeHere(NamedTuple):
    """A response of this socket, as one that builds on it re-reads it: see UpstreamObjects."""

    tokens: int | None
    model: str
    picture_extra: int
    tools: frozenset[str]


class ResponsesSession:
    """See relay.SocketSession."""

    speaks_first = False

    def __init__(self, services: Services, key: ApiKey, begin: Begin) -> None:
        """Nothing runs yet."""
        self._services, self._key, self._begin = services, key, begin
        self._lanes = Lanes()
        self._made: dict[str, MadeHere] = {}
        self._broke = False
        self._unsent: SocketExchange | None = None
        """What was asked for last and has not gone upstream."""

    def target(self) -> str:
        """See SocketSession."""
        services = self._services
        admit(services.settings, self._key.home_id, services.overloaded)
        return "/responses"

    def least(self) -> int:
        """See SocketSession. Which model will be asked is not known yet; none answers for nothing."""
        return 1

    def opening(self) -> list[bytes]:
        """See SocketSession."""
        return []

    async def from_client(self, frame: Frame, raw: bytes) -> bytes:
        """See SocketSession."""
        if frame["type"] == CANCEL:
            self._lanes.cancel()
            return raw
        if frame["type"] not in CLIENT_EVENTS:
            raise invalid(
                f"Events of type {frame['type'][:60]!r} are not available here: send response.create.",
                "type",
                "unsupported_event",
            )
        exchange = self._begin()
        exchange.context.key = self._key
        try:
            return await self._create(exchange, frame, raw)
        except Rejection as rejection:
            await exchange.refuse(rejection)
            self._broke = self._broke or rejection.status == PAYMENT_REQUIRED
            if self._broke and not self.waits(gone=False):
                raise Finished(POLICY_VIOLATION, "insufficient_credits", self.error(rejection, frame)) from None
            raise

    async def _create(self, exchange: SocketExchange, frame: Frame, raw: bytes) -> bytes:
        """Hold for it; what goes upstream. Raises Rejection."""
        members, _ = split(raw)
        kept = {name: members.pop(name) for name in OURS if name in members}
        lane = self._lane(frame)
        body = (
            b"{" + b",".join(msgspec.json.encode(name) + b":" + bytes(value) for name, value in members.items()) + b"}"
        )
        parsed = await self._services.bodies.read(body, b"", ENDPOINT.parse)
        if parsed.background:
            raise invalid("`background` is not available on a WebSocket.", "background", "unsupported_parameter")
        settings, today = self._services.settings, self._services.today()
        key = await exchange.payer(self._key, parsed)
        context = await self._context(key.account_id, parsed)
        self._check_place(parsed, context)
        prices = exchange.hold.terms.prices
        plan = make_plan(ENDPOINT, parsed, key, prices, settings, context, today=today)
        plan = await exchange.hold_for(plan, key)
        self._lanes.ask(lane, exchange)
        self._unsent = exchange
        sent = body_to_send(plan, settings.billing, partial(self._services.tenants.identifier, key.account_id))
        front = b",".join(msgspec.json.encode(name) + b":" + bytes(value) for name, value in kept.items())
        return b"{" + front + b"," + sent[sent.index(b"{") + 1 :]

    async def sending(self) -> None:
        """See SocketSession: connecting may take its time, or fail, and nobody owes for what was never sent."""
        exchange, self._unsent = self._unsent, None
        if exchange is None:
            return
        try:
            await exchange.mark_sent(at_work=False)
        except Rejection as rejection:
            await exchange.refuse(rejection)
            raise Finished(INTERNAL_ERROR, rejection.code, self.error(rejection, {})) from None

    def _check_place(self, parsed: Parsed, context: StoredContext) -> None:
        """Refuse what the upstream behind this socket cannot serve: the first response chooses it. Raises Rejection."""
        begin, upstreams, kept_at = self._begin, self._services.upstreams, context.upstreams
        if not begin.connected:
            able = [one for one in begin.members if one.serves(parsed.model)]
            if kept_at:
                able = [pinned_member(upstreams, kept_at, parsed.model, self._key.region)]
            if able:
                begin.choose(able)
        member = begin.member
        if member is None:
            return
        if member.entry.dialect != "openai" or any(upstreams.find(one) is not member for one in kept_at):
            message = "What this response refers to is kept elsewhere: send it over HTTP, or on another connection."
            raise Rejection(409, "objects_apart", message)
        if not member.serves(parsed.model):
            message = f"The model {parsed.model!r} is not served on this connection: send it over HTTP."
            raise Rejection(404, "model_not_found", message, param="model")

    async def _context(self, account_id: str, parsed: Parsed) -> StoredContext:
        """As for a request, but what this socket made is its own even where nothing is stored."""
        tokens: int | None = 0
        others, tools = [], frozenset[str]()
        for reference in parsed.references:
            made = self._made.get(reference.id) if reference.kind == "response" else None
            if made is not None:
                extra = extra_for(parsed.model, made.model, made.picture_extra)
                tokens = None if tokens is None or made.tokens is None else tokens + made.tokens + extra
                tools |= made.tools
            else:
                others.append(reference)
        if not others:
            return StoredContext(tokens, tools)
        storing = self._services.settings.billing.allow_store
        context = await self._services.tenants.context(account_id, tuple(others), parsed.model, storing=storing)
        known = None if tokens is None or context.tokens is None else tokens + context.tokens
        return context._replace(tokens=known, tools=context.tools | tools)

    def _lane(self, frame: Frame) -> Lane:
        """Lane that a client names, as the upstream will see it. Raises Rejection."""
        lane = frame.get("stream_id")
        if lane is not None and (not isinstance(lane, str) or len(lane) > MAX_LANES):
            raise invalid("`stream_id` must be a string of at most 64 characters.", "stream_id")
        if lane not in self._lanes and len(self._lanes) >= MAX_LANES:
            raise invalid(f"At most {MAX_LANES} lanes can be open on one socket.", "stream_id")
        return lane

    async def from_upstream(self, frame: Frame, raw: bytes) -> bytes:
        """See SocketSession."""
        name, lane = str(frame.get("type")), frame.get("stream_id")
        lane = lane if isinstance(lane, str) else None
        if name == "response.created":
            await self._begun(frame, lane)
        elif name == "error":
            if (exchange := self._lanes.refuse(lane)) is not None:
                await exchange.abandon("upstream_error")
        elif name in RESPONSE_EVENTS.closing:
            await self._closed(frame, lane)
            if self._broke and not self.waits(gone=False):
                raise Finished(POLICY_VIOLATION, "insufficient_credits", raw)
        else:
            self._lanes.add(lane, frame)
        return raw

    async def _begun(self, frame: Frame, lane: Lane) -> None:
        response = frame.get("response")
        said = response if isinstance(response, dict) else {}
        response_id = text_of(said, "id")
        exchange = self._lanes.begin(lane, response_id, str(said.get("model", "")))
        if exchange is None:
            raise Finished(POLICY_VIOLATION, "A response began that nothing is held for.")
        exchange.response_id = response_id
        if exchange.hold.plan.keeps and response_id:
            await self._record_begun(exchange, response_id, lane)

    async def _record_begun(self, exchange: SocketExchange, response_id: str, lane: Lane) -> None:
        """Record whose it is before its id can be seen (I8); where that cannot be, nothing of it is shown or owed.

        Raises Finished: it would go on unseen, and others would fare no better.
        """
        try:
            hold = exchange.hold
            made = (hold.request_id, response_id, hold.plan.parsed)
            await self._services.tenants.record_begun(hold.key.account_id, *made, upstream=hold.served.upstream)
        except StoreUnavailable:
            rejection = unavailable(CANNOT_KEEP, "store_unavailable")
            self._lanes.drop(exchange)
            await exchange.refuse(rejection)
            frame = {} if lane is None else {"stream_id": lane}
            raise Finished(INTERNAL_ERROR, rejection.code, self.error(rejection, frame)) from None

    async def _closed(self, frame: Frame, lane: Lane) -> None:
        report = response_report(frame)
        exchange = self._lanes.closing(lane, report.upstream_id, cancelled=report.status == "cancelled")
        exchange = exchange or self._lanes.begin_late(lane, report.upstream_id, report.model)
        if exchange is None:
            return
        report = response_report(with_passed(frame, exchange.passed.items))
        if frame.get("type") == FAILED:
            report = report._replace(status="failed")  # some say so by the event alone
        if report.usage is None:
            exchange.passed.take(frame)
        await exchange.settle(report)
        self._lanes.drop(exchange)
        if report.upstream_id and report.usage is not None:
            parsed = exchange.hold.plan.parsed
            before = [self._made[one.id].picture_extra for one in parsed.references if one.id in self._made]
            tokens = exchange.hold.plan.kept_tokens(report.usage.total_tokens)
            self._made[report.upstream_id] = MadeHere(
                tokens, parsed.model, parsed.picture_extra + sum(before), parsed.carried
            )
            if len(self._made) > KNOWN_RESPONSES:
                self._made.pop(next(iter(self._made)))

    def error(self, rejection: Rejection, frame: Frame) -> bytes:
        """See SocketSession."""
        body = msgspec.json.decode(rejection.body())
        event = {"type": "error", "status": rejection.status, **body}
        if isinstance(frame.get("stream_id"), str):
            event["stream_id"] = frame["stream_id"][:64]
        return msgspec.json.encode(event)

    def waits(self, *, gone: bool) -> bool:
        """See SocketSession."""
        unfinished = self._lanes.unfinished
        if not gone or self._services.settings.metering.on_disconnect == "read_on":
            return bool(unfinished)
        return any(one.hold.plan.is_read_on for one in unfinished)

    async def end(self, outcome: Outcome) -> None:
        """See SocketSession."""
        at_work, self._unsent = self._lanes.at_work, None
        for exchange in self._lanes.unfinished:
            await exchange.abandon(outcome, at_work=exchange in at_work)
        self._lanes.clear()
