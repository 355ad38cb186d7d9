"""The most tokens that a generated image can be billed at. Pure.

1024 x 1024 costs 272, 1,056 or 4,160 tokens at low, medium and high quality (docs/openai.md#image-tokens);
other sizes go by their area. For 2.x no formula is published: its dearer qualities are bounded by doubling.
"""

from typing import Any

from proxy.gateway.bodies.json_body import optional_whole
from proxy.web.rejections import invalid

DEFAULT_IMAGE_MODEL = "gpt-image-2.6-sunburst"
BASE_AREA = 1_024 * 1_024
AUTO_AREA = 1_536 * 1_024
MAX_AREA = 3_840 * 2_160
TOKENS = {"low": 272, "medium": 1_056, "high": 4_160, "xhigh": 8_320, "max": 16_640}
AUTO_QUALITY = "high"
PARTIAL_TOKENS = 100
MAX_PARTIALS = 3
MARGIN = (5, 4)
"""A quarter more: what the calibration of one size says about another is not exact."""
SVG_AUTHOR_TOKENS = 32_768
MAX_IMAGES = 10
INPUT_IMAGE_TOKENS = 8_000
"""One input image of an edit at high fidelity: 65 + 129 a tile, plus 6,240 (gpt-image-1's rule), rounded up."""


def image_output_bound(size: Any, quality: Any, partial_images: Any) -> int:
    """Output tokens of one image at most. Raises Rejection for a size or quality that is not understood."""
    name = AUTO_QUALITY if quality is None or quality in ("auto", "standard", "hd") else quality
    if not isinstance(name, str) or name not in TOKENS:
        raise invalid(f"`quality` {str(quality)[:40]!r} is not understood.", "quality")
    partials = optional_whole(partial_images, "partial_images") or 0
    if not 0 <= partials <= MAX_PARTIALS:
        raise invalid(f"`partial_images` must be between 0 and {MAX_PARTIALS}.", "partial_images")
    tokens = -(-TOKENS[name] * max(_area(size), BASE_AREA) * MARGIN[0] // (BASE_AREA * MARGIN[1]))
    return tokens + partials * PARTIAL_TOKENS


def usual_image_output(size: Any, quality: Any) -> int:
    """Output tokens of one image as it usually is: by its size and quality, without a margin."""
    name = quality if isinstance(quality, str) and quality in TOKENS else AUTO_QUALITY
    return -(-TOKENS[name] * _area(size) // BASE_AREA)


def _area(size: Any) -> int:
    if size in (None, "auto"):
        return AUTO_AREA
    width, cross, height = str(size).partition("x")
    if (
        not cross
        or not width.isascii()
        or not height.isascii()
        or not width.isdigit()
        or not height.isdigit()
        or len(str(size)) > 11
    ):
        raise invalid(f"`size` {str(size)[:40]!r} is not understood: send WIDTHxHEIGHT or auto.", "size")
    area = int(width) * int(height)
    if area > MAX_AREA:
        raise invalid(f"`size` {size} is larger than any that has a price.", "size")
    return area
