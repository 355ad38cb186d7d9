"""The frame that all chunks of one chat or legacy answer share."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from sandbox.openai.chat.choices import Choice
from sandbox.openai.exchange.answer import Answer
from sandbox.openai.exchange.call import Call
from sandbox.openai.steering.directives import Directives


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that all chunks of one answer share."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    service_tier: str | None
    include_usage: bool
    obfuscate: bool
    done: bool


def frame_of(call: Call, prefix: str) -> Frame:
    """Return the frame of a call's answer; `prefix` begins its id."""
    body, directives = call.body, call.directives
    options = body.get("stream_options") or {}
    return Frame(
        id=f"{prefix}-{call.new_digits()}",
        created=int(time.time()),
        model=directives.model or call.model,
        service_tier=_echoed_tier(body, directives),
        include_usage=options.get("include_usage") is True,
        obfuscate=options.get("include_obfuscation") is not False,
        done=not directives.no_done,
    )


def _echoed_tier(body: dict[str, Any], directives: Directives) -> str | None:
    """Return the echoed tier: only when the request named one; `fast` is called priority."""
    if directives.service_tier is not msgspec.UNSET:
        return directives.service_tier
    asked = body.get("service_tier")
    if not isinstance(asked, str):
        return None
    return {"auto": "default", "fast": "priority"}.get(asked, asked)


def finish_json(answer: Answer, said: list[Choice], render: Callable[[Any], bytes]) -> Answer:
    """Render the body of an answer that is not streamed; `said` are its choices."""
    answer.usage = answer.bill.sent() if answer.bill is not None else None
    answer.text = "".join([choice.text for choice in said])
    answer.body = render(answer.usage)
    return answer
