"""WebSocket /v1/responses: responses in lanes, steering, and prepared prompts."""

import asyncio
from typing import Any

import msgspec

from sandbox.openai.exchange.answer import NO_DIRECTIVES, Answer
from sandbox.openai.exchange.channel import Channel, as_answer, error_of, only_event, read_message
from sandbox.openai.exchange.store import Store
from sandbox.openai.requests.errors import ApiError, invalid, wrong_body
from sandbox.openai.requests.fields import missing, wrong_type
from sandbox.openai.responses.create import OpenedResponse, end_response, open_response, streamed
from sandbox.openai.responses.events import ResponseStream, Wrap
from sandbox.openai.steering.directives import Directives, read_directives

_ENVELOPE = frozenset({"type", "stream_id", "generate", "stream"})


class _Active:
    """Response that is being said, with the steering queued for after it."""

    def __init__(self, opened: OpenedResponse, frame: dict[str, Any]) -> None:
        """Take `frame`, the client's message."""
        self.opened, self.frame = opened, frame
        self.steers: list[Any] = []


class ResponsesSession:
    """One socket, which answers messages of one lane one after the other, and lanes side by side."""

    def __init__(self, channel: Channel) -> None:
        """Make a store for unstored responses, which live as long as the socket."""
        self._channel = channel
        self._lanes: dict[str | None, asyncio.Queue[tuple[bytes, dict[str, Any]]]] = {}
        self._active: dict[str, _Active] = {}
        self._store = Store(beyond=channel.simulator.store)

    def check(self) -> None:
        """Accept every handshake."""

    async def start(self) -> None:
        """Wait for the client to begin."""

    async def message(self, text: bytes) -> None:
        """Handle one message of the client."""
        try:
            frame = read_message(text)
            kind = frame.get("type")
            if kind == "response.steer":
                self._steer(frame)
                return
            if kind != "response.create":
                raise missing("type") if kind is None else invalid(f"Invalid value: '{kind}'.", "type", "invalid_value")
            lane = frame.get("stream_id")
            if lane is not None and not isinstance(lane, str):
                raise wrong_type("stream_id", "a string", lane)
        except ApiError as error:
            self._channel.send(_error_frame(as_answer(error), NO_DIRECTIVES))
            return
        if lane not in self._lanes:
            self._lanes[lane] = asyncio.Queue()
            self._channel.spawn(self._work(self._lanes[lane]))
        self._lanes[lane].put_nowait((text, frame))

    async def _work(self, lane: "asyncio.Queue[tuple[bytes, dict[str, Any]]]") -> None:
        while True:
            text, frame = await lane.get()
            following: dict[str, Any] | None = frame
            while following is not None:
                following = await self._answer(text, following)
                text = msgspec.json.encode(following)

    async def _answer(self, text: bytes, frame: dict[str, Any]) -> dict[str, Any] | None:
        """Say one response; return the message of the successor that the server starts by itself."""
        channel = self._channel
        entry = channel.open_entry(text, frame)
        directives, active = NO_DIRECTIVES, None
        try:
            directives = read_directives(text, frame, channel.simulator.live.directive) or NO_DIRECTIVES
            failure = channel.simulator.failure(directives)
            if failure is None:
                active = await self._open(frame, directives)
                answer = streamed(active.opened)
                answer.error_event = _broken_off
                if directives.replay is not None:
                    channel.simulator.replay(answer, active.opened.plan.call.encoding, directives, frames=True)
            else:
                answer = only_event(failure, _error_frame(failure, directives))
        except ApiError as error:
            refused = as_answer(error)
            answer = only_event(refused, _error_frame(refused, directives))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            refused = as_answer(ApiError(400, wrong_body(error)))
            answer = only_event(refused, _error_frame(refused, directives))
        answer.directives = directives
        if active is None:
            await channel.deliver(answer, entry)
            return None
        name = active.opened.plan.id
        self._active[name] = active
        try:
            await channel.deliver(answer, entry)
        finally:
            del self._active[name]
        if not active.steers:
            return None
        queued = [item for steer in active.steers for item in steer]
        return frame | {"previous_response_id": name, "input": queued}

    async def _open(self, frame: dict[str, Any], directives: Directives) -> _Active:
        body = {name: value for name, value in frame.items() if name not in _ENVELOPE}
        if body.get("background"):
            raise invalid("Background mode is not supported over WebSocket.", "background", "unsupported_parameter")
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise missing("model") if model is None else wrong_type("model", "a string", model)
        # Over a socket every response is a stream.
        body["stream"] = True
        simulator = self._channel.simulator
        call = await simulator.call(self._channel.request, body, model, directives, self._store)
        opened = open_response(call, _wrap(frame.get("stream_id")), generate=frame.get("generate") is not False)
        kept = self._store if body.get("store") is False else simulator.store
        opened.stream.on_end = lambda response: end_response(opened, response, kept)
        return _Active(opened, frame)

    def _steer(self, frame: dict[str, Any]) -> None:
        """Queue input for a running response, which then stops for it."""
        name, given = frame.get("previous_response_id"), frame.get("input")
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        active = self._active.get(str(name))
        steer: dict[str, Any] = {"previous_response_id": name}
        code = None
        if active is None:
            code = "response_not_found"
        elif not isinstance(items, list) or not items or not all(_is_user(item) for item in items):
            code = "invalid_input"
        if active is None or code is not None:
            error = {"type": "invalid_request_error", "code": code, "message": f"The input cannot be used: {code}."}
            failed = {"type": "response.steer.failed", "error": error, "steer": {"input": given, **steer}}
            self._channel.send(failed | {"sequence_number": 0})
            return
        active.steers.append(items)
        stream: ResponseStream = active.opened.stream
        stream.steered = True
        accepted = {
            "type": "response.steer.accepted",
            "steer": {"id": self._channel.simulator.new_id("steer"), **steer},
        }
        lane = active.frame.get("stream_id")
        self._channel.send(
            accepted | {"sequence_number": stream.next_number()} | ({} if lane is None else {"stream_id": lane})
        )


def _broken_off(error: dict[str, Any], _sent: int) -> bytes:
    return msgspec.json.encode(error_frame(error, 500, NO_DIRECTIVES))


def _is_user(item: Any) -> bool:
    return isinstance(item, dict) and item.get("role") == "user"


def _wrap(lane: str | None) -> Wrap:
    """Name the lane in its events."""
    extra = {} if lane is None else {"stream_id": lane}

    def wrap(value: dict[str, Any]) -> bytes:
        return msgspec.json.encode(value | extra)

    return wrap


def error_frame(error: dict[str, Any], status: int, directives: Directives) -> dict[str, Any]:
    """Return the frame of an error that HTTP would say as a status; headers of the directive move inside."""
    shown = {name: error.get(name) for name in ("type", "code", "message", "param")}
    if directives.headers:
        shown["headers"] = directives.headers
    return {"type": "error", "status": status, "error": shown}


def _error_frame(answer: Answer, directives: Directives) -> dict[str, Any]:
    return error_frame(error_of(answer), answer.status, directives)
