"""Tokens of made and of uploaded images on the image models, and the smallest real image files.

Output: the published table of gpt-image-1 for its three sizes; other sizes in proportion to their area,
and the qualities above high doubled each time, are guesses.
"""

import base64
import math
import struct
import zlib
from typing import Any, Final


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _png(width: int = 1, height: int = 1) -> bytes:
    """One white picture, in two colours."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = (b"\0" + b"\xff" * -(-width // 8)) * height
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


PNG_BASE64: Final = base64.b64encode(_png()).decode("ascii")
SVG_BASE64: Final = base64.b64encode(b"<svg/>").decode("ascii")
PARTIAL_TOKENS: Final = 100
"""Each partial image costs this much output."""
DEFAULT_SIZE: Final = "1024x1024"
DEFAULT_QUALITY: Final = "medium"
_TABLE: Final = {
    "1024x1024": {"low": 272, "medium": 1056, "high": 4160},
    "1024x1536": {"low": 408, "medium": 1584, "high": 6240},
    "1536x1024": {"low": 400, "medium": 1568, "high": 6208},
}
_DOUBLINGS: Final = {"xhigh": 1, "max": 2}
_TILE: Final = 512
_BASE: Final = 65
_EACH: Final = 129
_FIDELITY_SQUARE: Final = 4_160
_FIDELITY_OTHER: Final = 6_240


def chosen_size(options: dict[str, Any]) -> str:
    """Return the size of the image that is made."""
    size = options.get("size")
    return size if isinstance(size, str) and size != "auto" else DEFAULT_SIZE


def drawn_png(options: dict[str, Any]) -> str:
    """Return the picture that the image tool draws, in base64: white, of the size that was asked for."""
    width, height = (int(side) for side in chosen_size(options).split("x"))
    return base64.b64encode(_png(width, height)).decode("ascii")


def chosen_quality(options: dict[str, Any]) -> str:
    """Return the quality of the image that is made; the names of older models are mapped."""
    quality = options.get("quality")
    if not isinstance(quality, str) or quality == "auto":
        return DEFAULT_QUALITY
    return {"standard": "medium", "hd": "high"}.get(quality, quality)


def generated_image_tokens(options: dict[str, Any]) -> int:
    """Output tokens of one image with its partial images."""
    size, quality = chosen_size(options), chosen_quality(options)
    doublings = _DOUBLINGS.get(quality, 0)
    row = _TABLE.get(size)
    base = (row or _TABLE[DEFAULT_SIZE])["high" if doublings else quality]
    if row is None:
        width, height = (int(side) for side in size.split("x"))
        base = math.ceil(base * width * height / (1024 * 1024))
    return (base << doublings) + PARTIAL_TOKENS * int(options.get("partial_images") or 0)


def uploaded_image_tokens(size: tuple[int, int] | None, *, high_fidelity: bool) -> int:
    """Tokens of one uploaded image: tiles of 512 pixels once its short side is at most 512."""
    width, height = size or (1024, 1024)
    shrink = min(1.0, _TILE / min(width, height))
    tiles = math.ceil(width * shrink / _TILE) * math.ceil(height * shrink / _TILE)
    extra = 0
    if high_fidelity:
        extra = _FIDELITY_SQUARE if width == height else _FIDELITY_OTHER
    return _BASE + _EACH * tiles + extra
