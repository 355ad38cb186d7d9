"""Tokens of an image in a prompt: its size from its header, its model's rule (docs/openai.md#image-tokens).

Pure.
"""

import base64
import binascii
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

HEADER_CHARACTERS = 87_380
"""Of base64 (64 kB of image): enough to pass a JPEG's metadata."""
GIF = "R0lGOD"
"""First letters of every GIF in base64."""
MAX_SIDE = 65_535
PATCH = 32
TILE = 512
LOW_SIDE = 512
LEGACY_PATCHES = 1_536
UNBOUNDED = 10**7
"""More than any window, and than all pictures of known size in a conversation: it counts those of unknown size."""


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


LARGEST_DRAWN = Size(3_840, 2_160)
"""The largest picture that the image tool draws: for rules that have no limit of their own."""


class _ImageRule(NamedTuple):
    """One family: tokens of an image by size (None = unknown) and detail; None = nothing bounds it."""

    pattern: re.Pattern[str]
    tokens: Callable[[Size | None, str], int | None]


def image_tokens(model: str, size: Size | None, detail: str | None) -> int | None:
    """Tokens of one image at most; None when its size is unknown and the model sets no limit, or the model's rule is
    unknown.
    """
    rule = image_rule(model)
    return None if rule is None else rule.tokens(size, detail or "auto")


def image_rule(model: str) -> _ImageRule | None:
    """Find the rule by which a model counts pictures; None when it is not known."""
    name = model.removeprefix("ft:")
    return next((rule for rule in RULES if rule.pattern.match(name)), None)


def dearest_image_tokens(size: Size | None, detail: str | None) -> int:
    """Tokens of one image at most, whatever model reads it; UNBOUNDED when its size is unknown."""
    if size is None:
        return UNBOUNDED
    return max(rule.tokens(size, detail or "auto") or 0 for rule in RULES)


def drawn_tokens(model: str, pictures: int) -> int:
    """Tokens at most of pictures that the image tool drew, where this model reads them again; by the dearest rule where
    its own is not known, or names no model.
    """
    rule = image_rule(model)
    rules = RULES if rule is None else (rule,)
    return pictures * max(rule.tokens(None, "auto") or rule.tokens(LARGEST_DRAWN, "auto") or 0 for rule in rules)


def _tiled(low: int, per_tile: int) -> Callable[[Size | None, str], int | None]:
    """Shrunk to fit 2048 x 2048, then its short side to 768, then tiles of 512: at most 8."""

    def tokens(size: Size | None, detail: str) -> int:
        if detail == "low":
            return low
        return low + per_tile * (8 if size is None else _tiles(size))

    return tokens


def _tiles(size: Size) -> int:
    width, height = size
    long_side, short_side = max(width, height), min(width, height)
    # the factor is a ratio numerator/denominator <= 1; ceilings keep the count an upper bound
    numerator, denominator = (2048, long_side) if long_side > 2048 else (1, 1)
    if short_side * numerator > 768 * denominator:
        numerator, denominator = 768, short_side
    return _scaled(width, numerator, denominator, TILE) * _scaled(height, numerator, denominator, TILE)


def _scaled(side: int, numerator: int, denominator: int, unit: int) -> int:
    return max(1, -(-side * numerator // (denominator * unit)))


def _patched(hundredths: int, budgets: dict[str, int | None]) -> Callable[[Size | None, str], int | None]:
    """Patches of 32 x 32, never more than the detail's budget (None = none), times a factor in hundredths."""

    def tokens(size: Size | None, detail: str) -> int | None:
        budget = budgets.get(detail, budgets["auto"])
        if size is None:
            patches = budget
        else:
            patches = -(-size.width // PATCH) * -(-size.height // PATCH)
            patches = patches if budget is None else min(patches, budget)
        return None if patches is None else -(-patches * hundredths // 100)

    return tokens


START_OF_SCAN = 0xDA
WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
"""Markers of a JPEG that stand alone, and what is none."""
PNG, HEADER, PICTURE = b"\x89PNG\r\n\x1a\n", b"IHDR", b"IDAT"
MOST_CHUNKS = 1_000
"""Of a PNG before its picture; real ones have a few. With more its size is not known."""
LOW_PATCHES = (LOW_SIDE // PATCH) ** 2

RULES = (
    _ImageRule(re.compile(r"gpt-4o-mini"), _tiled(2_833, 5_667)),
    _ImageRule(re.compile(r"gpt-4\.1-mini"), _patched(162, {"auto": 6_144})),
    _ImageRule(re.compile(r"(gpt-4\.1-nano|gpt-5-(mini|nano)|o4-mini)"), _patched(246, {"auto": LEGACY_PATCHES})),
    _ImageRule(re.compile(r"(gpt-4o|gpt-4\.1(-2|$)|chatgpt-4o|gpt-4-turbo)"), _tiled(85, 170)),
    _ImageRule(re.compile(r"gpt-5(\.1)?(-20|-chat|-codex|-search|$)"), _tiled(70, 140)),
    _ImageRule(re.compile(r"(o1|o3)(-pro)?(-20|$)"), _tiled(75, 150)),
    _ImageRule(re.compile(r"gpt-5\.2"), _patched(120, {"auto": 6_144})),
    _ImageRule(re.compile(r"gpt-5\.4"), _patched(120, {"auto": 2_500, "original": 10_000})),
    _ImageRule(re.compile(r"gpt-5\.5"), _patched(120, {"auto": 10_000, "high": 2_500, "low": LOW_PATCHES})),
    _ImageRule(re.compile(r"gpt-(5\.6|6)"), _patched(120, {"auto": None, "high": 2_500, "low": LOW_PATCHES})),
)


def size_of_data_url(url: str) -> Size | None:
    """Size of an image in a `data:` URL, from its header; None when it cannot be told."""
    comma = url.find(",", 0, 200)
    if comma < 0 or ";base64" not in url[:comma]:
        return None
    # every frame of a GIF counts, wherever it stands
    text = url[comma + 1 :] if url.startswith(GIF, comma + 1) else url[comma + 1 : comma + 1 + HEADER_CHARACTERS]
    try:
        data = base64.b64decode(text[: len(text) // 4 * 4])
        if data.startswith(PNG) and len(text) == HEADER_CHARACTERS and not _png(data)[1]:
            # much stands before the picture's data, perhaps another header
            data = base64.b64decode(url[comma + 1 :])
        return size_of(data)
    except (binascii.Error, ValueError):
        return None


def size_of(data: bytes) -> Size | None:
    """Size of a PNG, GIF, WebP or JPEG: the largest that any part of it says; None for anything else.

    Decoders take it from different places, so a file that contradicts itself counts as the largest.
    """
    sizes: list[Size] = []
    if data.startswith(PNG) and data[12:16] == HEADER and len(data) >= 24:
        sizes, _ = _png(data)
    elif data[:6] in (b"GIF87a", b"GIF89a") and len(data) >= 13:
        sizes = _gif(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        sizes = _webp(data)
    elif data.startswith(b"\xff\xd8"):
        sizes = _jpeg(data)
    if not sizes or not all(0 < size.width <= MAX_SIDE and 0 < size.height <= MAX_SIDE for size in sizes):
        return None
    return Size(max(size.width for size in sizes), max(size.height for size in sizes))


def _png(data: bytes) -> tuple[list[Size], bool]:
    """Every header before the picture's data, none where too much stands before it; whether these bytes say all."""
    sizes, position = list[Size](), len(PNG)
    for _ in range(MOST_CHUNKS):
        if position + 16 > len(data):
            return sizes, False
        kind = data[position + 4 : position + 8]
        if kind == PICTURE:
            return sizes, True
        if kind == HEADER:
            sizes.append(Size(*struct.unpack(">II", data[position + 8 : position + 16])))
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return [], True


def _gif(data: bytes) -> list[Size]:
    """Logical screen, and every frame's end, which decoders draw as well; empty where no frame is found."""
    sizes = [Size(*struct.unpack("<HH", data[6:10]))]
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while position < len(data):
        kind = data[position]
        if kind == 0x2C and position + 10 <= len(data):
            left, top, width, height = struct.unpack("<HHHH", data[position + 1 : position + 9])
            sizes.append(Size(left + width, top + height))
            packed = data[position + 9]
            position = _after_blocks(data, position + 11 + (3 << (packed & 7) + 1 if packed & 0x80 else 0))
        elif kind == 0x21:
            position = _after_blocks(data, position + 2)
        else:
            break
    return sizes if len(sizes) > 1 else []


def _after_blocks(data: bytes, position: int) -> int:
    """Position after a GIF's chain of data blocks."""
    while position < len(data) and data[position]:
        position += data[position] + 1
    return position + 1


def _webp(data: bytes) -> list[Size]:
    """Canvas and bitstreams, chunk by chunk."""
    sizes, position = [], 12
    while position + 18 <= len(data):
        kind, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        body = data[position + 8 : position + 24]
        if kind == b"VP8X":
            sizes.append(Size(int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1))
        elif kind == b"ANMF" and len(body) >= 12:
            sizes.append(Size(int.from_bytes(body[6:9], "little") + 1, int.from_bytes(body[9:12], "little") + 1))
        elif kind == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            sizes.append(Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
        elif kind == b"VP8 ":
            width, height = struct.unpack("<HH", body[6:10])
            sizes.append(Size(width & 0x3FFF, height & 0x3FFF))
        position += 8 + length + length % 2
    return sizes


def _jpeg(data: bytes) -> list[Size]:
    """Every frame header before the picture's data."""
    sizes, position = [], 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker in WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        if marker == START_OF_SCAN:
            break
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            sizes.append(Size(width, height))
        position += 2 + int(struct.unpack(">H", data[position + 2 : position + 4])[0])
    return sizes
