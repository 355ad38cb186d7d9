"""The /__sandbox paths: settings, record, counts. They need no key."""

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qs

import msgspec

from sandbox.openai.exchange.answer import Answer, Request, json_answer
from sandbox.openai.exchange.record import Log
from sandbox.openai.exchange.simulator import Simulator
from sandbox.openai.realtime.calls import Calls
from sandbox.openai.requests.errors import ApiError, error_object
from sandbox.openai.steering.settings import Live

CONTROL_PREFIX: Final = "/__sandbox/"
_CALLS: Final = f"{CONTROL_PREFIX}realtime/calls"


class Control:
    """Control paths, for whoever drives the simulator."""

    def __init__(self, simulator: Simulator, log: Log, calls: Calls, stats: Callable[[], dict[str, int]]) -> None:
        """Take the shared state, the record, the calls, and `stats`, which makes the counts of GET /__sandbox/stats."""
        self._simulator, self._log, self._calls, self._stats = simulator, log, calls, stats

    def answer(self, request: Request) -> Answer:
        """Answer a control request."""
        action = (request.method, request.path.removeprefix(CONTROL_PREFIX))
        try:
            if action == ("GET", "settings"):
                return json_answer(self._simulator.live)
            if action in {("PUT", "settings"), ("PATCH", "settings")}:
                return self._put_settings(request.body)
            if action == ("GET", "record"):
                return self._get_record(request.query)
            if action == ("DELETE", "record"):
                return json_answer({"deleted": self._log.clear()})
            if action == ("GET", "stats"):
                return json_answer(self._stats())
            if request.path.startswith(_CALLS):
                return self._on_call(request)
        except ApiError as error:
            return json_answer({"error": error.error}, error.status)
        return json_answer({"error": error_object("No such control path.", "sandbox_error")}, 404)

    def _on_call(self, request: Request) -> Answer:
        """Show the calls, or play the browser of one."""
        call_id, _, verb = request.path.removeprefix(_CALLS).strip("/").partition("/")
        if request.method == "GET" and not call_id:
            return json_answer({"calls": self._calls.shown()})
        if request.method == "POST" and verb == "events":
            return self._calls.play(call_id, request.body)
        if request.method == "POST" and verb == "leave":
            return self._calls.leave(call_id)
        raise ApiError(404, error_object("No such control path.", "sandbox_error"))

    def _put_settings(self, body: bytes) -> Answer:
        """Lay the given keys over the present settings."""
        try:
            given = msgspec.json.decode(body, type=dict[str, object])
            present = msgspec.to_builtins(self._simulator.live)
            self._simulator.live = msgspec.convert(present | given, Live)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ApiError(400, error_object(str(error), "sandbox_error")) from None
        return json_answer(self._simulator.live)

    def _get_record(self, query: str) -> Answer:
        values = parse_qs(query)
        wanted = values.get("clientRequestId", [None])[0]
        try:
            since = int(values.get("since", ["0"])[0])
        except ValueError:
            raise ApiError(400, error_object("since is a number", "sandbox_error")) from None
        brief = values.get("brief", ["0"])[0] not in {"0", "", "false"}
        return json_answer(self._log.show(wanted, since, brief=brief))
