"""The output text: deterministic pseudo English whose token count is known by construction."""

import codecs
from typing import Final, NamedTuple

import tiktoken


class Piece(NamedTuple):
    """A part of the output and the number of tokens it stands for."""

    text: str
    tokens: int


# Every word is one token with a leading blank, in cl100k_base and in o200k_base (a test holds it).
_VOCABULARY: Final = (
    "time year people way day man thing woman life child world school state family student "
    "group country problem hand part place case week company system program question work "
    "government number night point home water room mother area money story fact month lot "
    "right study book eye job word business issue side kind head house service friend power "
    "hour game line end member law car city community name team minute idea body back level "
    "office door health person art war history result change morning reason moment air force "
    "education of and to in is was for with that on by it from at are were has had will can "
    "new good first last long great little own other old high small large next early young "
    "river light green quiet slow open road stone bridge garden window letter"
)
_OPENERS: Final = "The A It We This That One Each Many Some Here There They In On For When As"
_SENTENCE: Final = 10
_SENTENCES: Final = 64
_STOP: Final = Piece(".", 1)


def _step(state: int) -> int:
    """Step a linear congruential generator: cheap, and the same on every machine."""
    return (state * 1664525 + 1013904223) & 0xFFFFFFFF


def _make_sentences() -> tuple[tuple[Piece, ...], ...]:
    """Sentences of ten tokens, made once: an answer is a chain of them."""
    words, openers = _VOCABULARY.split(), _OPENERS.split()
    state, sentences = 1, []
    for _ in range(_SENTENCES):
        state = _step(state)
        sentence = [Piece(f" {openers[(state >> 8) % len(openers)]}", 1)]
        for _ in range(_SENTENCE - 2):
            state = _step(state)
            sentence.append(Piece(f" {words[(state >> 8) % len(words)]}", 1))
        sentences.append((*sentence, _STOP))
    return tuple(sentences)


_CHAIN: Final = _make_sentences()


def pseudo_english(seed: int, length: int) -> list[Piece]:
    """`length` pieces of one token each; the same seed gives the same text."""
    if length < 1:
        return []
    state = (seed * 2654435761 + 1) & 0xFFFFFFFF
    pieces: list[Piece] = []
    while len(pieces) < length:
        state = _step(state)
        pieces.extend(_CHAIN[(state >> 8) % _SENTENCES])
    del pieces[length:]
    pieces[0] = Piece(pieces[0].text.lstrip(), 1)
    # Two stops in a row would merge into one token.
    if length > 1 and pieces[-2] is not _STOP:
        pieces[-1] = _STOP
    return pieces


def split_text(encoding: tiktoken.Encoding, text: str) -> list[Piece]:
    """Cut a given text into pieces of about one token; tokens inside one character stay together."""
    pieces: list[Piece] = []
    decoder = codecs.getincrementaldecoder("utf-8")()
    waiting = 0
    for start in range(0, len(text), 100_000):
        for token in encoding.encode_ordinary(text[start : start + 100_000]):
            waiting += 1
            part = decoder.decode(encoding.decode_single_token_bytes(token))
            if part:
                pieces.append(Piece(part, waiting))
                waiting = 0
    return pieces


def limit(pieces: list[Piece], room: int | None) -> list[Piece]:
    """Keep the leading pieces that fit into `room` tokens; None is no limit."""
    if room is None:
        return pieces
    used = 0
    for index, piece in enumerate(pieces):
        used += piece.tokens
        if used > room:
            return pieces[:index]
    return pieces
