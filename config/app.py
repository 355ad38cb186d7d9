"""The operator's own product as customers meet it: its colours, its logo, and the ways back to it.

A logo is read from a file and must be a picture that can do nothing else: PNG, JPEG, WebP, or an SVG of shapes alone.
"""

import re
from pathlib import Path
from typing import NamedTuple

from config.errors import ConfigError
from config.settings import App

LIGHT_GROUND, DARK_GROUND = "#f3f5f8", "#18202b"
"""The grounds of the Credits page on which a colour is text, in light and dark: of each the one that is harder."""
WHITE, DARK_INK = "#ffffff", "#0d1520"
LEAST_CONTRAST = 45
"""Of text, in tenths, as WCAG 2.2 has it (AA)."""
MOST_LOGO_BYTES = 262_144
SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))
SVG = "{http://www.w3.org/2000/svg}"
SHAPES = frozenset(
    "svg g path rect circle ellipse line polyline polygon text tspan defs linearGradient radialGradient stop clipPath "
    "mask title desc use symbol".split()
)
LINK = re.compile(r"url\(\s*['\"]?(?!#)|javascript:|data:", re.IGNORECASE)


class Logo(NamedTuple):
    """A picture that was checked, and its media type."""

    body: bytes
    media_type: str


class BadLogo(ValueError):
    """The file is no picture that we would serve; says why."""


def ways_home(app: App) -> dict[str, str]:
    """Return the members of a 402 by which whoever built on us shows the ways back to the operator's app."""
    named = {"appUrl": app.url, "supportUrl": app.support_url}
    return {name: url for name, url in named.items() if url}


def app_colors(app: App) -> str:
    """Return the style sheet that puts the product's colours in the place of ours."""
    found = []
    for scheme, color in (("light", app.color), ("dark", app.dark_color)):
        if color:  # each its own: what is read on white is seldom read on black
            rule = f":root {{ --accent: {color}; --on-accent: {text_on(color)}; }}"
            found.append(f"@media (prefers-color-scheme: {scheme}) {{ {rule} }}")
    return "\n".join(found)


def text_on(color: str) -> str:
    """Return the colour of text on a button of that colour: white or dark, whichever is read better."""
    return max((WHITE, DARK_INK), key=lambda ink: contrast_tenths(color, ink))


def contrast_tenths(one: str, other: str) -> int:
    """Return the contrast of two colours, in tenths, rounded down: 210 for black on white."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return int((lighter + 0.05) * 10 / (darker + 0.05))


def _luminance(color: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def read_logo(app: App) -> Logo | None:
    """Read and check the logo's file; None where none is named. Raises ConfigError."""
    if not app.logo_file:
        return None
    fix = "name a readable PNG, JPEG, WebP or plain SVG file of at most 256 KiB"
    try:
        with Path(app.logo_file).open("rb") as file:
            return check_logo(file.read(MOST_LOGO_BYTES + 1))
    except OSError as error:
        raise ConfigError("proxy.toml", "app.logo_file", f"cannot be read ({type(error).__name__})", fix) from None
    except BadLogo as error:
        raise ConfigError("proxy.toml", "app.logo_file", str(error), fix) from None


def check_logo(body: bytes) -> Logo:
    """Return the picture with its type, by what is in it. Raises BadLogo."""
    if len(body) > MOST_LOGO_BYTES:
        raise BadLogo("is larger than 256 KiB")
    for signature, media_type in SIGNATURES:
        if body.startswith(signature):
            return Logo(body, media_type)
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return Logo(body, "image/webp")
    _check_svg(body)
    return Logo(body, "image/svg+xml")


def _check_svg(body: bytes) -> None:
    """Raise BadLogo for anything but shapes: a script, a handler, a style, an entity, a link that leaves the file."""
    if b"<!" in body.replace(b"<!--", b"") or b"<?xml-" in body:
        raise BadLogo("is an SVG with a document type, an entity or a style sheet in it")
    import xml.etree.ElementTree as ET  # a worker without such a logo does without it

    try:
        root = ET.fromstring(body)  # noqa: S314 - no entity can be in it, and it is the operator's own file
    except ET.ParseError:
        raise BadLogo("is no picture that we know") from None
    if root.tag != f"{SVG}svg":
        raise BadLogo("is XML, and no SVG")
    for element in root.iter():
        name = str(element.tag).removeprefix(SVG)
        if name not in SHAPES:
            raise BadLogo(f"is an SVG with <{name[:40]}> in it, which is no shape")
        for attribute, value in element.attrib.items():
            local = attribute.rpartition("}")[2].lower()
            if local.startswith("on") or local == "style" or LINK.search(value):
                raise BadLogo(f"is an SVG with {local[:40]} in it, which a shape does not need")
            if local == "href" and not value.startswith("#"):
                raise BadLogo("is an SVG with a link that leaves the file")
