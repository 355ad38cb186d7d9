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
MAX_SIDE = 65_535
PATCH = 32
TILE = 512
LOW_SIDE = 512
LEGACY_PATCHES = 1_536


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


class _ImageRule(NamedTuple):
    """One family: tokens of an image by size (None = unknown) and detail; None = nothing bounds it."""

    pattern: re.Pattern[str]
    tokens: Callable[[Size | None, str], int | None]


def image_tokens(model: str, size: Size | None, detail: str | None) -> int | None:
    """Tokens of one image at most; None when its size is unknown and the model sets no limit, or the model's rule is
    unknown.
    """
    name = model.removeprefix("ft:")
    for rule in RULES:
        if rule.pattern.match(name):
            return rule.tokens(size, detail or "auto")
    return None


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
    text = url[comma + 1 : comma + 1 + HEADER_CHARACTERS]
    try:
        return size_of(base64.b64decode(text[: len(text) // 4 * 4]))
    except (binascii.Error, ValueError):
        return None


def size_of(data: bytes) -> Size | None:
    """Size of a PNG, GIF, WebP or JPEG from its first bytes; None for anything else."""
    size = None
    if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) >= 24:
        size = Size(*struct.unpack(">II", data[16:24]))
    elif data[:6] in (b"GIF87a", b"GIF89a") and len(data) >= 10:
        size = Size(*struct.unpack("<HH", data[6:10]))
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        size = _webp(data)
    elif data.startswith(b"\xff\xd8"):
        size = _jpeg(data)
    return size if size is not None and 0 < size.width <= MAX_SIDE and 0 < size.height <= MAX_SIDE else None


def _webp(data: bytes) -> Size | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return Size(int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return Size(width & 0x3FFF, height & 0x3FFF)
    return None


def _jpeg(data: bytes) -> Size | None:
    """Walk the segments to the frame header."""
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return Size(width, height)
        else:
            position += 2 + int(struct.unpack(">H", data[position + 2 : position + 4])[0])
    return None
