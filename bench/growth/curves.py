"""Curves as SVG: one chart a picture, both axes logarithmic, so that what is linear is a straight line of one slope."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 360, 64, 350, 40, 44
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999933", "#882255", "#44aa99")

Curve = Sequence[tuple[float, float]]


def write(path: Path, title: str, across: str, up: str, curves: Mapping[str, Curve]) -> None:
    """Write a chart of named curves of (x, y), all above zero."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return
    x_low, x_high = decades([x for x, _ in points])
    y_low, y_high = decades([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        right = (math.log10(x) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        rise = (math.log10(y) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(LEFT + right, 1), round(HEIGHT - BOTTOM - rise, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    for power in range(x_low, x_high + 1):
        x, bottom = place(10**power, 10**y_low)
        top = place(10**power, 10**y_high)[1]
        parts.append(f'<path d="M{x} {top}V{bottom}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{figure(power)}</text>')
    for power in range(y_low, y_high + 1):
        left, y = place(10**x_low, 10**power)
        right = place(10**x_high, 10**power)[0]
        parts.append(f'<path d="M{left} {y}H{right}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{figure(power)}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(across)}</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 4}" fill="#555555">{escape(up)}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        drawn = " ".join(f"{x},{y}" for x, y in (place(*point) for point in curve))
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in (place(*point) for point in curve)]
        line = TOP + 16 * number
        parts.append(f'<rect x="{WIDTH - RIGHT + 16}" y="{line}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 34}" y="{line + 7}">{escape(name)}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return (low, high) if high > low else (low, low + 1)


def figure(power: int) -> str:
    return f"{10**power:,}" if 0 <= power < 4 else f"{10**power:g}" if -4 < power < 0 else f"10^{power}"
