"""Legacy completions as JSON and as a stream."""

from collections.abc import Iterator
from typing import Any

import msgspec

from sandbox.openai.chat.choices import Choice, legacy_choices
from sandbox.openai.chat.frame import Frame, finish_json, frame_of
from sandbox.openai.exchange.answer import Answer, Event
from sandbox.openai.exchange.bill import Bill, Spent
from sandbox.openai.exchange.call import Call
from sandbox.openai.requests.checks import check_context, check_legacy
from sandbox.openai.tokens.count import PromptCount, count_legacy

_encode = msgspec.json.encode


def _head(frame: Frame) -> dict[str, Any]:
    return {
        "id": frame.id,
        "object": "text_completion",
        "created": frame.created,
        "model": frame.model,
    }


def _choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish}


def legacy_json(frame: Frame, choices: list[Choice], usage: Any) -> bytes:
    """Return the body of a legacy answer that is not streamed."""
    shown = [_choice(choice.index, choice.text, choice.finish) for choice in choices]
    answer = _head(frame) | {"choices": shown}
    if usage is not None:
        answer["usage"] = usage
    return _encode(answer)


def legacy_events(frame: Frame, choices: list[Choice], bill: Bill) -> Iterator[Event]:
    """Pieces interleaved by choice, the finish reason on each choice's last piece."""
    mode = bill.directives.usage_on
    head = _head(frame)
    tail: dict[str, Any] = {"usage": None} if frame.include_usage else {}
    longest = max(max(len(choice.pieces), 1) for choice in choices)
    left = len(choices)
    for position in range(longest):
        for choice in choices:
            count = max(len(choice.pieces), 1)
            if position >= count:
                continue
            text, tokens = choice.pieces[position] if choice.pieces else ("", 0)
            finish = choice.finish if position == count - 1 else None
            left -= finish is not None
            usage: Any = msgspec.UNSET
            extra = tail
            if mode == "every" or (mode == "finish" and left == 0):
                usage = bill.with_spent(Spent(tokens)).sent()
                extra = tail if usage is None else {"usage": usage}
            body = head | {"choices": [_choice(choice.index, text, finish)]} | extra
            yield Event(b"data: " + _encode(body) + b"\n\n", text, Spent(tokens), usage=usage)
    sent = bill.sent()
    if frame.include_usage and mode == "last" and sent is not None:
        body = head | {"choices": [], "usage": sent}
        yield Event(b"data: " + _encode(body) + b"\n\n", usage=sent)
    if frame.done:
        yield Event(b"data: [DONE]\n\n", counted=False)


def complete(call: Call) -> Answer:
    """POST /v1/completions."""
    body = call.body
    prompts = check_legacy(body)
    counts = count_legacy(call.encoding, prompts)
    check_context(max(counts), call.live.context_tokens)
    said = legacy_choices(call, prompts)
    frame = frame_of(call, "cmpl")
    bill = Bill("legacy", PromptCount(sum(counts)), call.directives)
    answer = Answer(200, bill=bill, model=frame.model)
    if body.get("stream"):
        answer.events = legacy_events(frame, said, bill)
        return answer
    # All best_of candidates are billed, shown or not; unshown ones are taken as equally long.
    candidates = max(body.get("best_of") or 1, body.get("n") or 1)
    produced = sum(choice.visible for choice in said)
    bill.add(Spent(produced * candidates // (body.get("n") or 1)))
    return finish_json(answer, said, lambda usage: legacy_json(frame, said, usage))
