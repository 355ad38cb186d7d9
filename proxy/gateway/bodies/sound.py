"""Length of generated speech by its bytes, for when an answer does not say what it used. Pure.

Speech is 20 tokens a second (docs/openai.md#audio-tokens); a second's bytes by format are those of OpenAI's encoders.
"""

TOKENS_PER_SECOND = 20
BYTES_PER_SECOND = {
    "pcm": 48_000,
    "pcm16": 48_000,
    "wav": 48_000,
    "flac": 24_000,
    "mp3": 8_000,
    "aac": 8_000,
    "opus": 4_000,
}
DEFAULT_FORMAT = "pcm16"


def sound_tokens(size: int, form: str) -> int:
    """Tokens of so many bytes of speech in a format, rounded up."""
    return -(-size * TOKENS_PER_SECOND // BYTES_PER_SECOND.get(form, BYTES_PER_SECOND[DEFAULT_FORMAT]))
