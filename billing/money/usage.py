"""Usage of one answer. Values only: reading them from the wire is the meter's business."""

from typing import Any, Self

import msgspec

MAX_TOKENS = 2**40
MAX_CALLS = 1_000


class Value(msgspec.Struct, frozen=True):
    """A value of named parts, as a NamedTuple is, without its places: of those that each request makes and reads a
    dozen of, it is made in half the time, and read in half (docs/architecture.md#the-hot-path).
    """

    def _replace(self, **changes: Any) -> Self:
        """Return a copy with other parts, as NamedTuple's."""
        return msgspec.structs.replace(self, **changes)


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Usage of one model for a request, as OpenAI reports it (docs/openai.md#usage-fields).

    Subset rules: cached, cache writes, audio and image tokens are parts of `input_tokens`; cached and
    written are disjoint; audio_output, image_output and reasoning are parts of `output_tokens`.
    `milliseconds` of audio and `characters` of text are billed by themselves, where a model has such a price.
    `calls` are hosted tools' billable calls by the name of their price.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_30m_tokens: int = 0
    cache_write_12h_tokens: int = 0
    audio_input_tokens: int = 0
    image_input_tokens: int = 0
    cached_audio_tokens: int = 0
    cached_image_tokens: int = 0
    audio_output_tokens: int = 0
    image_output_tokens: int = 0
    reasoning_tokens: int = 0
    web_searches: int = 0
    milliseconds: int = 0
    characters: int = 0
    calls: tuple[tuple[str, int], ...] = ()

    @property
    def total_tokens(self) -> int:
        """Tokens in and out."""
        return self.input_tokens + self.output_tokens

    def is_consistent(self) -> bool:
        """Tell whether `normalised()` would change nothing, for counts that are not negative."""
        inside = self.input_tokens
        return (
            self.cached_tokens + self.cache_write_30m_tokens + self.cache_write_12h_tokens <= inside
            and self.audio_input_tokens + self.image_input_tokens <= inside
            and self.cached_audio_tokens == 0
            and self.cached_image_tokens == 0
            and self.audio_output_tokens + self.image_output_tokens <= self.output_tokens
            and self.reasoning_tokens <= self.output_tokens
        )

    def normalised(self) -> "Usage":
        """Return the same usage with every part inside its whole: upstreams send cached > prompt and negative counts.

        A part is never larger than the whole it belongs to, nothing is below zero or above 2**40.
        """
        whole_in, whole_out = _clamp(self.input_tokens, MAX_TOKENS), _clamp(self.output_tokens, MAX_TOKENS)
        cached = _clamp(self.cached_tokens, whole_in)
        # cached and written are disjoint, so their sum is within the input; where an answer says otherwise each is
        # charged as it says, and nothing is left that would be neither (docs/openai.md#price-formula)
        write_12h = _clamp(self.cache_write_12h_tokens, whole_in)
        write_30m = _clamp(self.cache_write_30m_tokens, whole_in - write_12h)
        audio_in = _clamp(self.audio_input_tokens, whole_in)
        image_in = _clamp(self.image_input_tokens, whole_in - audio_in)
        cached_audio = _clamp(self.cached_audio_tokens, min(cached, audio_in))
        audio_out = _clamp(self.audio_output_tokens, whole_out)
        return Usage(
            input_tokens=whole_in,
            output_tokens=whole_out,
            cached_tokens=cached,
            cache_write_30m_tokens=write_30m,
            cache_write_12h_tokens=write_12h,
            audio_input_tokens=audio_in,
            image_input_tokens=image_in,
            cached_audio_tokens=cached_audio,
            cached_image_tokens=_clamp(self.cached_image_tokens, min(cached - cached_audio, image_in)),
            audio_output_tokens=audio_out,
            image_output_tokens=_clamp(self.image_output_tokens, whole_out - audio_out),
            reasoning_tokens=_clamp(self.reasoning_tokens, whole_out),
            web_searches=_clamp(self.web_searches, MAX_CALLS),
            milliseconds=_clamp(self.milliseconds, MAX_TOKENS),
            characters=_clamp(self.characters, MAX_TOKENS),
            calls=tuple((name, _clamp(number, MAX_CALLS)) for name, number in self.calls),
        )


def _clamp(value: int, high: int) -> int:
    return max(0, min(value, high))
