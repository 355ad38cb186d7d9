"""The vocabularies that tokens are counted with, offline: shipped ranks, checked, loaded on first need.

Ranks ship in the package (config/tokenizer/*.xz) and are checked against tiktoken's own SHA-256 at load. A process that
never counts never pays their 45 and 24 MB.
"""

import hashlib
import lzma
import re
import threading
from base64 import b64decode
from collections.abc import Iterable
from importlib.resources import files

import tiktoken
import tiktoken_ext.openai_public as public

RANKS_SHA256 = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}
CL100K_MODELS = re.compile(r"^(ft:)?(gpt-4(-|$)|gpt-3\.5|text-embedding-|davinci-002|babbage-002)")
PIECE_CHARACTERS = 100_000
"""Longer texts are cut: about a million blanks in a row panic tiktoken's core; a cut adds at most a token."""


class TokenizerError(Exception):
    """The shipped ranks are missing or altered."""


class Vocabularies:
    """Both encodings, each loaded once, counted with from any thread."""

    def __init__(self) -> None:
        """Load nothing yet."""
        self._encodings: dict[str, tiktoken.Encoding] = {}
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        """Tell whether the encoding is loaded."""
        return name in self._encodings

    def count(self, name: str, texts: Iterable[str]) -> int:
        """Tokens of all texts together in the encoding of that name. Raises TokenizerError."""
        encoding = self._encodings.get(name) or self._load(name)
        return sum(_count_text(encoding, text) for text in texts)

    def _load(self, name: str) -> tiktoken.Encoding:
        with self._lock:
            if name not in self._encodings:
                self._encodings[name] = load_encoding(name)
            return self._encodings[name]


def encoding_name(model: str) -> str:
    """cl100k_base for the families that use it, else o200k_base (docs/openai.md#counting-text)."""
    return "cl100k_base" if CL100K_MODELS.match(model) else "o200k_base"


def load_encoding(name: str) -> tiktoken.Encoding:
    """Build an encoding from the shipped ranks. Raises TokenizerError when their hash is not tiktoken's."""
    packed = files("config").joinpath(f"tokenizer/{name}.tiktoken.xz").read_bytes()
    raw = lzma.decompress(packed)
    if hashlib.sha256(raw).hexdigest() != RANKS_SHA256[name]:
        raise TokenizerError(f"the shipped ranks of {name} are not what tiktoken expects; reinstall the package")
    ranks = {b64decode(token): int(rank) for token, rank in (line.split() for line in raw.splitlines() if line)}
    # tiktoken's own pattern and special tokens, with our ranks in place of its download (only ever under the lock)
    download = public.load_tiktoken_bpe
    public.load_tiktoken_bpe = lambda *_args, **_kwargs: ranks
    try:
        encoding = tiktoken.Encoding(**getattr(public, name)())
    finally:
        public.load_tiktoken_bpe = download
    encoding._mergeable_ranks = {}  # noqa: SLF001 - a copy of 27 MB, for pickling alone; its core has its own
    return encoding


def _count_text(encoding: tiktoken.Encoding, text: str) -> int:
    total = 0
    for start in range(0, len(text), PIECE_CHARACTERS):
        piece = text[start : start + PIECE_CHARACTERS]
        try:
            total += len(encoding.encode_ordinary(piece))
        except BaseException as error:
            # pyo3's PanicException is a BaseException; bytes are a strict upper bound on tokens
            if type(error).__name__ != "PanicException":
                raise
            total += len(piece.encode("utf-8", "surrogatepass"))
    return total
