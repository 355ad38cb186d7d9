"""Frames of a Realtime session: what they name, and what of them is refused. Pure."""

from typing import Any

import msgspec

from proxy.gateway.bodies.media import is_custom_voice
from proxy.gateway.sockets.relay import Frame
from proxy.web.rejections import Rejection, invalid, not_found

LONGEST_ID = 120
UNNAMED = "unnamed "
"""First part of the name of a response that its server gave none."""


def names_file(value: Any) -> bool:
    """Tell whether a member called `file_id` stands anywhere in a decoded frame."""
    pending = [value]  # no recursion: how deep a frame is nested is the client's
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            if "file_id" in one:
                return True
            pending += one.values()
        elif isinstance(one, list):
            pending += one
    return False


def response_id_of(frame: Frame) -> str:
    """Id of the response that an event carries; "" for none."""
    response = frame.get("response")
    found = response.get("id") if isinstance(response, dict) else None
    return str(found)[:LONGEST_ID] if isinstance(found, str | int) else ""


def error_event(rejection: Rejection, frame: Frame) -> bytes:
    """Rejection as an event about a client's frame."""
    body = msgspec.json.decode(rejection.body())
    asked = frame.get("event_id")
    error = {**body["error"], "event_id": asked if isinstance(asked, str) else None}
    return msgspec.json.encode({"type": "error", "event_id": "event_" + rejection.code, "error": error})


def refuse_shared(given: dict[str, Any]) -> None:
    """Refuse what points into the shared account, or spends without a price."""
    if given.get("prompt"):
        raise not_found("No such prompt template.", "prompt_not_found")
    audio = given.get("audio")
    spoken = audio.get("output") if isinstance(audio, dict) else given
    if is_custom_voice(spoken.get("voice") if isinstance(spoken, dict) else None):
        raise not_found("No such voice. Use a built-in one.", "voice_not_found")
    tools = given.get("tools") or []
    if not isinstance(tools, list):
        raise invalid("`tools` must be a list of objects with a `type`.", "tools", "invalid_type")
    for tool in tools:
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise invalid("Only function tools are available in realtime sessions here.", "tools", "unsupported_tool")
