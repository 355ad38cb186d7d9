"""Bill of one request in tokens, and the usage object that states it."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from sandbox.openai.steering.directives import Directives
from sandbox.openai.tokens.count import PromptCount

UsageKind = Literal[
    "chat",
    "legacy",
    "embeddings",
    "responses",
    "compact",
    "decisions",
    "images",
    "image_events",
    "speech",
    "characters",
    "transcript",
    "heard",
    "duration",
    "realtime",
    "search",
]
_CHAT_IN: Final = "prompt_tokens_details"
_CHAT_OUT: Final = "completion_tokens_details"
_IN: Final = "input_tokens_details"
_OUT: Final = "output_tokens_details"
_ONE_IN: Final = "input_token_details"
_CHAT_HOMES: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        ("cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "text_tokens"), (_CHAT_IN,)
    ),
    **dict.fromkeys(("reasoning_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"), (_CHAT_OUT,)),
}
_WRITES: Final = "cache_write_tokens_details"
_NO_WRITES: Final = MappingProxyType({"ttl_30m_tokens": 0, "ttl_12h_tokens": 0})
_RESPONSES_HOMES: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("cached_tokens", "cache_write_tokens"), (_IN,)),
    **dict.fromkeys(("ttl_30m_tokens", "ttl_12h_tokens"), (_IN, _WRITES)),
    "reasoning_tokens": (_OUT,),
}
_DETAIL_HOMES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    **dict.fromkeys(("chat", "legacy", "embeddings"), _CHAT_HOMES),
    **dict.fromkeys(("responses", "compact", "decisions"), _RESPONSES_HOMES),
    **dict.fromkeys(("images", "image_events"), dict.fromkeys(("text_tokens", "image_tokens"), (_IN,))),
    **dict.fromkeys(("transcript", "heard"), dict.fromkeys(("text_tokens", "audio_tokens"), (_ONE_IN,))),
    "realtime": dict.fromkeys(("cached_tokens", "text_tokens", "audio_tokens", "image_tokens"), (_ONE_IN,)),
}
"""Where a name of `usage_details` belongs, per kind; other names stay at the top."""


class ToolUse(msgspec.Struct, frozen=True):
    """Use of hosted tools of the Responses API."""

    web_searches: int = 0
    file_searches: int = 0
    containers: tuple[str, ...] = ()
    """Container ids of code interpreter calls, each once."""
    image_text: int = 0
    """Text tokens into the image tool's model."""
    image_input: int = 0
    """Image tokens into the image tool's model."""
    image_output: int = 0

    def plus(self, other: "ToolUse") -> "ToolUse":
        """Add up both."""
        fresh = tuple(name for name in other.containers if name not in self.containers)
        return ToolUse(
            self.web_searches + other.web_searches,
            self.file_searches + other.file_searches,
            self.containers + fresh,
            self.image_text + other.image_text,
            self.image_input + other.image_input,
            self.image_output + other.image_output,
        )

    def to_wire(self) -> dict[str, Any]:
        """Return the `tool_usage` of a response; without image calls the zeros lack output details."""
        given = self.image_text + self.image_input
        image: dict[str, Any] = {
            "input_tokens": given,
            "input_tokens_details": {"image_tokens": self.image_input, "text_tokens": self.image_text},
            "output_tokens": self.image_output,
        }
        if self.image_output:
            image["output_tokens_details"] = {"image_tokens": self.image_output, "text_tokens": 0}
        image["total_tokens"] = given + self.image_output
        return {"image_gen": image, "web_search": {"num_requests": self.web_searches}}

    def to_record(self) -> dict[str, Any]:
        """Return the charges on top of tokens: the wire's part, file searches and containers."""
        return self.to_wire() | {
            "file_search": {"num_requests": self.file_searches},
            "code_interpreter": {"container_ids": list(self.containers)},
        }


NO_TOOLS: Final = ToolUse()


class Spent(msgspec.Struct, frozen=True):
    """Output tokens one event (or a whole answer) stands for; the parts are inside `tokens`."""

    tokens: int = 0
    reasoning: int = 0
    audio: int = 0
    retrieved: int = 0
    """Input tokens a hosted tool brought in."""
    tools: ToolUse = NO_TOOLS


class Bill(msgspec.Struct):
    """Running account of one request: the prompt at once, the output as it is produced."""

    kind: UsageKind
    prompt: PromptCount
    directives: Directives
    spoken: bool = False
    """The answer is audio with a transcript."""
    tokens: int = 0
    reasoning: int = 0
    audio: int = 0
    retrieved: int = 0
    tools: ToolUse = NO_TOOLS
    cached: PromptCount = msgspec.field(default_factory=PromptCount)
    """The part of the prompt that was read from the cache."""
    cache_write: int = 0
    writes_cache: bool = False
    """The model has cache writes: its usage splits them by lifetime."""
    long_cache: bool = False
    """Cache writes last 12 hours instead of 30 minutes."""
    seconds: float = 0.0
    """Length of the audio, for models billed by the second."""
    characters: int = 0
    """Length of the input, for models billed by the character."""

    def add(self, spent: Spent) -> None:
        """Account for output that was just produced."""
        self.tokens += spent.tokens
        self.reasoning += spent.reasoning
        self.audio += spent.audio
        self.retrieved += spent.retrieved
        if spent.tools is not NO_TOOLS:
            self.tools = self.tools.plus(spent.tools)

    def with_spent(self, spent: Spent) -> "Bill":
        """Return a copy that includes the output about to leave."""
        running = msgspec.structs.replace(self)
        running.add(spent)
        return running

    def usage(self) -> dict[str, Any]:
        """Return the usage object of everything accounted so far, with `usage_details` merged in."""
        usage = _RENDERERS[self.kind](self)
        homes = _DETAIL_HOMES.get(self.kind, {})
        for name, value in self.directives.usage_details.items():
            _merge(usage, homes, name, value)
        if self.kind == "responses":
            self._split_cache_write(usage[_IN])
        return usage

    def sent(self) -> Any:
        """Return the `usage` that goes over the wire: the truth or the directive's replacement."""
        override = self.directives.usage
        return self.usage() if override is msgspec.UNSET else override

    def billed(self, *, complete: bool) -> dict[str, Any]:
        """Return the usage that is charged: a believable override of a complete answer, else the count."""
        override = self.directives.usage
        if complete and isinstance(override, dict) and _believable(override):
            return override
        return self.usage()

    def _split_cache_write(self, details: dict[str, Any]) -> None:
        """Assign cache writes named as one number to the lifetime the request asked for."""
        split = details.setdefault(_WRITES, dict(_NO_WRITES)) if details["cache_write_tokens"] else details.get(_WRITES)
        if isinstance(split, dict) and not any(split.values()):
            split["ttl_12h_tokens" if self.long_cache else "ttl_30m_tokens"] = details["cache_write_tokens"]


def _chat(bill: Bill) -> dict[str, Any]:
    return _legacy(bill) | {_CHAT_IN: _prompt_details(bill), _CHAT_OUT: _completion_details(bill)}


def _legacy(bill: Bill) -> dict[str, Any]:
    prompt, tokens = bill.prompt.total, bill.tokens
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def _embeddings(bill: Bill) -> dict[str, Any]:
    return {"prompt_tokens": bill.prompt.total, "total_tokens": bill.prompt.total}


def _prompt_details(bill: Bill) -> dict[str, int]:
    count = bill.prompt
    if bill.spoken:
        return {
            "cached_tokens": 0,
            "audio_tokens": count.audio,
            "text_tokens": count.text,
            "image_tokens": count.image,
        }
    details = {"cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": count.audio}
    if count.image:
        details |= {"text_tokens": count.text, "image_tokens": count.image}
    return details


def _completion_details(bill: Bill) -> dict[str, int]:
    details = {"reasoning_tokens": bill.reasoning, "audio_tokens": bill.audio}
    if bill.spoken:
        details["text_tokens"] = bill.tokens - bill.reasoning - bill.audio
    return details | {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}


def _compact(bill: Bill) -> dict[str, Any]:
    given = bill.prompt.total + bill.retrieved
    return {
        "input_tokens": given,
        _IN: {"cached_tokens": bill.cached.total, "cache_write_tokens": bill.cache_write},
        "output_tokens": bill.tokens,
        _OUT: {"reasoning_tokens": bill.reasoning},
        "total_tokens": given + bill.tokens,
    }


def _responses(bill: Bill) -> dict[str, Any]:
    usage = _compact(bill)
    if bill.writes_cache:
        usage[_IN][_WRITES] = dict(_NO_WRITES)
    return usage


def _speech(bill: Bill) -> dict[str, Any]:
    given = bill.prompt.total
    return {"input_tokens": given, "output_tokens": bill.tokens, "total_tokens": given + bill.tokens}


def _images(bill: Bill) -> dict[str, Any]:
    given = bill.prompt.total
    return {
        "input_tokens": given,
        _IN: {"text_tokens": bill.prompt.text, "image_tokens": bill.prompt.image},
        "output_tokens": bill.tokens,
        "total_tokens": given + bill.tokens,
        _OUT: {"image_tokens": bill.tokens, "text_tokens": 0},
    }


def _image_events(bill: Bill) -> dict[str, Any]:
    usage = _images(bill)
    del usage[_OUT]
    return usage


def _characters(bill: Bill) -> dict[str, Any]:
    return {"type": "characters", "characters": bill.characters}


def _transcript(bill: Bill) -> dict[str, Any]:
    given = bill.prompt.total
    return {
        "type": "tokens",
        "input_tokens": given,
        _ONE_IN: {"text_tokens": bill.prompt.text, "audio_tokens": bill.prompt.audio},
        "output_tokens": bill.tokens,
        "total_tokens": given + bill.tokens,
    }


def _heard(bill: Bill) -> dict[str, Any]:
    """Return the usage of a transcript inside a realtime session: the same in another order."""
    usage = _transcript(bill)
    return {"type": usage.pop("type"), "total_tokens": usage.pop("total_tokens"), **usage}


def _duration(bill: Bill) -> dict[str, Any]:
    return {"type": "duration", "seconds": bill.seconds}


def _by_kind(count: PromptCount) -> dict[str, int]:
    return {"text_tokens": count.text, "audio_tokens": count.audio, "image_tokens": count.image}


def _realtime(bill: Bill) -> dict[str, Any]:
    given = bill.prompt.total
    cached = {"cached_tokens": bill.cached.total, "cached_tokens_details": _by_kind(bill.cached)}
    return {
        "total_tokens": given + bill.tokens,
        "input_tokens": given,
        "output_tokens": bill.tokens,
        _ONE_IN: _by_kind(bill.prompt) | cached,
        "output_token_details": {"text_tokens": bill.tokens - bill.audio, "audio_tokens": bill.audio},
    }


def _search(_bill: Bill) -> dict[str, Any]:
    return {"type": "search"}


_RENDERERS: Final[MappingProxyType[str, Callable[[Bill], dict[str, Any]]]] = MappingProxyType(
    {
        "chat": _chat,
        "legacy": _legacy,
        "embeddings": _embeddings,
        "responses": _responses,
        "compact": _compact,
        "decisions": _compact,
        "images": _images,
        "image_events": _image_events,
        "speech": _speech,
        "characters": _characters,
        "transcript": _transcript,
        "heard": _heard,
        "duration": _duration,
        "realtime": _realtime,
        "search": _search,
    }
)


def _merge(usage: dict[str, Any], homes: dict[str, tuple[str, ...]], name: str, value: Any) -> None:
    place = usage
    for step in homes.get(name, ()):
        place = place.setdefault(step, {})
    if isinstance(value, dict) and isinstance(place.get(name), dict):
        place[name].update(value)
    else:
        place[name] = value


def _believable(usage: dict[str, Any]) -> bool:
    if usage.get("type") == "duration":
        seconds = usage.get("seconds")
        return isinstance(seconds, int | float) and seconds >= 0
    counts = [
        usage.get("prompt_tokens", usage.get("input_tokens")),
        usage.get("completion_tokens", usage.get("output_tokens", 0)),
    ]
    return all(isinstance(count, int) and count >= 0 for count in counts)
