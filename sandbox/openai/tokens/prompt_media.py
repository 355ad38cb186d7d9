"""Prompt tokens of images and audio: published formulas, else the worst case."""

import base64
import binascii
import math
import struct
from typing import Any, Final

import msgspec


class _Tiles(msgspec.Struct, frozen=True):
    """`base` tokens plus `each` per tile of 512 by 512 pixels."""

    base: int
    each: int


class _Patches(msgspec.Struct, frozen=True):
    """`factor` tokens per patch of 32 by 32 pixels, up to a budget of patches."""

    factor: float
    high: int
    """Patches at detail=high."""
    auto: int
    """Patches at detail=auto and original."""
    side: int
    """Longest side in pixels at detail=auto."""


# First match wins, so longer names stand before their prefixes.
_RULES: Final[tuple[tuple[str, _Tiles | _Patches], ...]] = (
    ("gpt-4o-mini", _Tiles(2833, 5667)),
    ("gpt-4.1-mini", _Patches(1.62, 1536, 1536, 2048)),
    ("gpt-4.1-nano", _Patches(2.46, 1536, 1536, 2048)),
    ("gpt-4", _Tiles(85, 170)),
    ("o4-mini", _Patches(1.72, 1536, 1536, 2048)),
    ("o1", _Tiles(75, 150)),
    ("o3", _Tiles(75, 150)),
    ("gpt-5-mini", _Patches(1.62, 1536, 1536, 2048)),
    ("gpt-5-nano", _Patches(2.46, 1536, 1536, 2048)),
    ("gpt-5.1", _Tiles(70, 140)),
    ("gpt-5.2", _Patches(1.2, 6144, 6144, 2048)),
    ("gpt-5.4", _Patches(1.2, 2500, 2500, 2048)),
    ("gpt-5.5", _Patches(1.2, 2500, 10_000, 6000)),
    ("gpt-5-", _Tiles(70, 140)),
)
_NEWEST: Final = _Patches(1.2, 2500, 1_000_000, 65_535)
_LOW_SIDE: Final = 512
_UNKNOWN_HIGH: Final = 3_000
_UNKNOWN_LARGE: Final = 12_000


def image_tokens(model: str, image: dict[str, Any]) -> int:
    """Tokens of one image part; an image whose size cannot be read counts as the worst case."""
    rule: _Tiles | _Patches = _Tiles(70, 140) if model == "gpt-5" else _NEWEST
    for prefix, found in _RULES:
        if model.removeprefix("ft:").startswith(prefix):
            rule = found
            break
    detail = image.get("detail") or "auto"
    size = image_size(str(image.get("url", "")))
    if isinstance(rule, _Tiles):
        return _tile_tokens(rule, detail, size)
    return _patch_tokens(rule, detail, size)


def _tile_tokens(rule: _Tiles, detail: str, size: tuple[int, int] | None) -> int:
    if detail == "low":
        return rule.base
    width, height = size or (2048, 768)
    shrink = min(1.0, 2048 / max(width, height))
    shrink *= min(1.0, 768 / (min(width, height) * shrink))
    tiles = math.ceil(width * shrink / 512) * math.ceil(height * shrink / 512)
    return rule.base + rule.each * tiles


def _patch_tokens(rule: _Patches, detail: str, size: tuple[int, int] | None) -> int:
    budget = rule.high if detail in {"high", "low"} else rule.auto
    if size is None:
        return _UNKNOWN_LARGE if budget > rule.high else _UNKNOWN_HIGH
    side = {"low": _LOW_SIDE, "high": 2048}.get(detail, rule.side)
    width, height = size
    shrink = min(1.0, side / max(width, height))
    patches = math.ceil(width * shrink / 32) * math.ceil(height * shrink / 32)
    return math.ceil(min(patches, budget) * rule.factor)


def image_size(url: str) -> tuple[int, int] | None:
    """Width and height in pixels of a PNG, GIF or JPEG in a data URL; None when unknown."""
    head, _, data = url.partition(",")
    if not head.startswith("data:") or not head.endswith("base64"):
        return None
    try:
        return raw_image_size(base64.b64decode(data))
    except (binascii.Error, ValueError):
        return None


def raw_image_size(raw: bytes) -> tuple[int, int] | None:
    """Width and height in pixels of a PNG, GIF or JPEG; None when unknown."""
    size: tuple[int, int] | None = None
    if raw.startswith(b"\x89PNG") and len(raw) >= 24:
        size = struct.unpack(">II", raw[16:24])
    elif raw.startswith(b"GIF8") and len(raw) >= 10:
        size = struct.unpack("<HH", raw[6:10])
    elif raw.startswith(b"\xff\xd8"):
        size = _jpeg_size(raw)
    return size if size and min(size) > 0 else None


def _jpeg_size(raw: bytes) -> tuple[int, int] | None:
    """Walk the segments to the frame header, which holds height and width."""
    at = 2
    while at + 9 <= len(raw) and raw[at] == 0xFF:
        marker, length = raw[at + 1], int.from_bytes(raw[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack(">HH", raw[at + 5 : at + 9])
            return width, height
        at += 2 + length
    return None


def audio_tokens(audio: dict[str, Any]) -> int:
    """Tokens of one audio part: 10 per second, taking 32,000 bytes for one second, at least one."""
    data = str(audio.get("data", ""))
    return max(1, math.ceil(len(data) * 3 / 4 / 3200))
