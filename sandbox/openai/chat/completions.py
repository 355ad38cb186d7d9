"""Chat completions: what the model says, and how it looks as JSON and as a stream."""

import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from sandbox.openai.chat.choices import Choice, call_object, chat_choices, logprobs, said_by_tool
from sandbox.openai.chat.frame import Frame, finish_json, frame_of
from sandbox.openai.exchange.answer import Answer, Event
from sandbox.openai.exchange.bill import Bill, Spent
from sandbox.openai.exchange.call import Call
from sandbox.openai.exchange.shelf import Sound
from sandbox.openai.requests.checks import check_chat, check_context
from sandbox.openai.tokens.count import PromptCount, count_chat

_encode = msgspec.json.encode
_DONE = Event(b"data: [DONE]\n\n", counted=False)
_PADDINGS: Final = tuple(b',"obfuscation":"%b"' % b"q7Xw2ZkpL9rT4vBn8sJd"[:length] for length in range(1, 12))


def chat_json(frame: Frame, choices: list[Choice], usage: Any) -> bytes:
    """Return the body of an answer that is not streamed."""
    answer: dict[str, Any] = {
        "id": frame.id,
        "object": "chat.completion",
        "created": frame.created,
        "model": frame.model,
        "choices": [
            {
                "index": choice.index,
                "message": _message(choice),
                "logprobs": logprobs(choice, choice.pieces) if choice.logprobs >= 0 else None,
                "finish_reason": choice.finish,
            }
            for choice in choices
        ],
    }
    if usage is not None:
        answer["usage"] = usage
    if frame.service_tier is not None:
        answer["service_tier"] = frame.service_tier
    answer["system_fingerprint"] = None
    return _encode(answer)


def _message(choice: Choice) -> dict[str, Any]:
    text = choice.text
    message: dict[str, Any] = {"role": "assistant", "content": None}
    if choice.kind == "text":
        message["content"] = text
    elif choice.kind == "tool" and choice.form == "legacy":
        message["function_call"] = {"name": choice.tool, "arguments": text}
    elif choice.kind == "tool":
        message["tool_calls"] = [call_object(choice, text)]
    message["refusal"] = text if choice.kind == "refusal" else None
    if choice.kind == "audio":
        message["audio"] = {
            "id": choice.sound_id,
            "data": "UklGRg==",
            "expires_at": choice.sound_gone_at,
            "transcript": text,
        }
    message["annotations"] = choice.annotations
    return message


class ChatStream:
    """The events of one streamed chat answer."""

    def __init__(self, frame: Frame, choices: list[Choice], bill: Bill) -> None:
        """Read `bill` without changing it: whoever sends the events accounts for them."""
        self._frame, self._choices, self._bill = frame, choices, bill
        self._mode = bill.directives.usage_on
        head: dict[str, Any] = {
            "id": frame.id,
            "object": "chat.completion.chunk",
            "created": frame.created,
            "model": frame.model,
        }
        if frame.service_tier is not None:
            head["service_tier"] = frame.service_tier
        head["system_fingerprint"] = None
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null' if frame.include_usage else b"]"
        self._count = 0

    def events(self) -> Iterator[Event]:
        """Role chunks, content interleaved by choice, finish chunks, usage, `[DONE]`."""
        # Thinking precedes the first byte, so the role chunk stands for the reasoning tokens.
        for choice in self._choices:
            spent = Spent(choice.reasoning + choice.name_tokens, choice.reasoning)
            yield self._delta(choice, _role(choice), spent=spent)
        longest = max(len(choice.pieces) for choice in self._choices)
        for position in range(longest):
            for choice in self._choices:
                if position < len(choice.pieces):
                    yield self._piece(choice, position)
        last = self._choices[-1]
        for choice in self._choices:
            yield from self._closing(choice)
            yield self._delta(choice, {}, finish=choice.finish, last=choice is last)
        sent = self._bill.sent()
        if self._frame.include_usage and self._mode == "last" and sent is not None:
            tail = b',"obfuscation":""' if self._frame.obfuscate else b""
            body = self._head + b'],"usage":' + _encode(sent) + tail + b"}\n\n"
            yield Event(body, usage=sent)
        if self._frame.done:
            yield _DONE

    def _piece(self, choice: Choice, position: int) -> Event:
        text, tokens = piece = choice.pieces[position]
        spent = Spent(tokens + tokens * choice.audio_factor, 0, tokens * choice.audio_factor)
        # The plain text chunk is by far the most frequent: assemble it without a dict.
        if choice.kind == "text" and choice.logprobs < 0 and self._mode == "last":
            body = b'{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}' % (
                choice.index,
                _encode(text),
            )
            data = self._head + body + self._tail + self._padding() + b"}\n\n"
            return Event(data, text, spent)
        delta: dict[str, Any]
        if choice.kind == "tool":
            delta = said_by_tool(choice, text)
        elif choice.kind == "audio":
            delta = {"audio": {"transcript": text, "data": "UklGRg=="}}
        else:
            delta = {"content" if choice.kind == "text" else "refusal": text}
        probabilities = logprobs(choice, [piece]) if choice.logprobs >= 0 else None
        return self._delta(choice, delta, text=text, spent=spent, probabilities=probabilities)

    def _closing(self, choice: Choice) -> Iterator[Event]:
        if choice.kind == "audio":
            yield self._delta(choice, {"audio": {"expires_at": choice.sound_gone_at}})
        if choice.annotations:
            yield self._delta(choice, {"annotations": choice.annotations})

    def _delta(
        self,
        choice: Choice,
        delta: dict[str, Any],
        *,
        text: str = "",
        spent: Spent = Spent(),  # noqa: B008 - frozen
        probabilities: Any = None,
        finish: str | None = None,
        last: bool = False,
    ) -> Event:
        body = _encode(
            {
                "index": choice.index,
                "delta": delta,
                "logprobs": probabilities,
                "finish_reason": finish,
            }
        )
        usage, tail = msgspec.UNSET, self._tail
        if self._mode == "every" or (self._mode == "finish" and last):
            usage = self._bill.with_spent(spent).sent()
            if usage is not None:
                tail = b'],"usage":' + _encode(usage)
        data = self._head + body + tail + self._padding() + b"}\n\n"
        return Event(data, text, spent, usage=usage)

    def _padding(self) -> bytes:
        if not self._frame.obfuscate:
            return b""
        # Only its length matters to a reader, so a walk over a fixed string does.
        self._count += 1
        return _PADDINGS[self._count * 7 % len(_PADDINGS)]


def _role(choice: Choice) -> dict[str, Any]:
    role: dict[str, Any] = {"role": "assistant"}
    if choice.kind == "tool" and choice.form == "legacy":
        return role | {"content": None, "function_call": {"name": choice.tool, "arguments": ""}, "refusal": None}
    if choice.kind == "tool":
        return role | {
            "content": None,
            "tool_calls": [{"index": 0, **call_object(choice, "")}],
            "refusal": None,
        }
    if choice.kind == "refusal":
        return role | {"content": None, "refusal": ""}
    if choice.kind == "audio":
        audio = {"id": choice.sound_id, "transcript": ""}
        return role | {"refusal": None, "audio": audio}
    return role | {"content": "", "refusal": None}


def _add_earlier_speech(call: Call, prompt: PromptCount) -> None:
    """Count earlier speech that the messages refer to: heard, and read as its transcript. Raises ApiError."""
    for message in call.body["messages"]:
        named = (message.get("audio") or {}).get("id")
        if named:
            sound = call.store.shelf.sound(str(named))
            prompt.audio += sound.tokens
            prompt.text += sound.transcript_tokens


def _keep_speech(call: Call, said: list[Choice]) -> None:
    """Keep what is spoken for an hour, or as the directive says."""
    for choice in said:
        if choice.kind == "audio":
            choice.sound_id = call.new_id("audio")
            choice.sound_gone_at = int(time.time()) + call.directives.sound_seconds
            sound = Sound(choice.visible * choice.audio_factor, choice.visible, choice.sound_gone_at)
            call.store.shelf.sounds[choice.sound_id] = sound


def complete(call: Call) -> Answer:
    """POST /v1/chat/completions."""
    body = call.body
    check_chat(call.model, body, reject_max_tokens=call.live.reject_max_tokens)
    prompt = count_chat(call.encoding, call.model, body)
    _add_earlier_speech(call, prompt)
    check_context(prompt.total, call.live.context_tokens)
    said = chat_choices(call)
    _keep_speech(call, said)
    frame = frame_of(call, "chatcmpl")
    spoken = any(choice.kind == "audio" for choice in said)
    bill = Bill("chat", prompt, call.directives, spoken)
    answer = Answer(200, bill=bill, service_tier=frame.service_tier, model=frame.model)
    if body.get("stream"):
        answer.events = ChatStream(frame, said, bill).events()
        return answer
    for choice in said:
        voice = choice.visible * choice.audio_factor
        output = choice.reasoning + choice.name_tokens + choice.visible + voice
        bill.add(Spent(output, choice.reasoning, voice))
    return finish_json(answer, said, lambda usage: chat_json(frame, said, usage))
