"""What one request costs in tokens, and the usage object that says so."""

from typing import Any, Final, Literal

import msgspec

from sandbox.directives import Directives
from sandbox.tokens import PromptCount

Kind = Literal["chat", "legacy", "embeddings"]
_PROMPT_DETAILS: Final = frozenset({"cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "text_tokens"})
_COMPLETION_DETAILS: Final = frozenset({"reasoning_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"})


class Spent(msgspec.Struct, frozen=True):
    """Output tokens one event (or a whole answer) stands for; the parts are inside `tokens`."""

    tokens: int = 0
    reasoning: int = 0
    audio: int = 0


class Bill(msgspec.Struct):
    """Running account of one request: the prompt at once, the output as it is produced."""

    kind: Kind
    prompt: PromptCount
    directives: Directives
    spoken: bool = False
    """The answer is audio with a transcript."""
    tokens: int = 0
    reasoning: int = 0
    audio: int = 0

    def add(self, spent: Spent) -> None:
        """Account for output that was just produced."""
        self.tokens += spent.tokens
        self.reasoning += spent.reasoning
        self.audio += spent.audio

    def usage(self) -> dict[str, Any]:
        """The usage object of everything accounted so far, with `usage_details` merged in."""
        prompt, tokens = self.prompt.total, self.tokens
        if self.kind == "embeddings":
            usage: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt}
        else:
            usage = {
                "prompt_tokens": prompt,
                "completion_tokens": tokens,
                "total_tokens": prompt + tokens,
            }
        if self.kind == "chat":
            usage["prompt_tokens_details"] = self._prompt_details()
            usage["completion_tokens_details"] = self._completion_details()
        for name, value in self.directives.usage_details.items():
            _merge(usage, name, value)
        return usage

    def sent(self) -> Any:
        """What goes over the wire as `usage`: the truth or the directive's replacement."""
        override = self.directives.usage
        return self.usage() if override is msgspec.UNSET else override

    def billed(self, *, complete: bool) -> dict[str, Any]:
        """What is charged: a believable override of a complete answer, else the count."""
        override = self.directives.usage
        if complete and isinstance(override, dict) and _believable(override):
            return override
        return self.usage()

    def _prompt_details(self) -> dict[str, int]:
        count = self.prompt
        if self.spoken:
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

    def _completion_details(self) -> dict[str, int]:
        details = {"reasoning_tokens": self.reasoning, "audio_tokens": self.audio}
        if self.spoken:
            details["text_tokens"] = self.tokens - self.reasoning - self.audio
        return details | {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}


def _merge(usage: dict[str, Any], name: str, value: Any) -> None:
    if name in _PROMPT_DETAILS:
        usage.setdefault("prompt_tokens_details", {})[name] = value
    elif name in _COMPLETION_DETAILS:
        usage.setdefault("completion_tokens_details", {})[name] = value
    elif isinstance(value, dict) and isinstance(usage.get(name), dict):
        usage[name].update(value)
    else:
        usage[name] = value


def _believable(usage: dict[str, Any]) -> bool:
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens", 0)]
    return all(isinstance(count, int) and count >= 0 for count in counts)
