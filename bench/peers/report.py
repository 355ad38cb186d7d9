"""What was measured, as a table and as bars."""

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from bench.growth.curves import COLOURS, decades, figure
from bench.peers.peer import Peer
from bench.processes import ALONE, JSON, STREAM, Burst

Found = Mapping[tuple[str, str], Sequence[Burst]]
"""Bursts by (peer's name, load's name), one a round."""
WIDTH, LEFT, RIGHT, TOP, BOTTOM, STEP = 860, 290, 70, 44, 40, 26


def median(found: Found, name: str, load: str, field: str) -> float:
    """Median of the rounds."""
    return float(statistics.median(getattr(one, field) for one in found[name, load]))


def ratio(found: Found, name: str, limit: str, load: str) -> float:
    """Median of the rounds' ratios of CPU to the limit's: who came next to each other met the same machine."""
    pairs = zip(found[name, load], found[limit, load], strict=True)
    return statistics.median(one.cpu_us / least.cpu_us for one, least in pairs)


def table(found: Found, peers: Sequence[Peer], limit: str, megabytes: Mapping[str, float]) -> str:
    """Write a line a peer; `megabytes`: of its processes at the end."""
    columns = (
        "who",
        "sees to",
        "JSON, 1 kB, 16 connections: CPU µs a request (beside it)",
        "to nginx's CPU",
        "requests/s [p50 ms]",
        "one connection: p50 ms",
        "50-chunk stream: CPU µs (beside it)",
        "to nginx's CPU",
        "streams/s",
        "MB",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for peer in peers:
        json, stream = (_cost(found, peer.name, load) for load in (JSON.name, STREAM.name))
        json_ratio, stream_ratio = (ratio(found, peer.name, limit, load) for load in (JSON.name, STREAM.name))
        rate, p50 = (median(found, peer.name, JSON.name, field) for field in ("rate", "p50_ms"))
        alone = median(found, peer.name, ALONE.name, "p50_ms")
        streams = median(found, peer.name, STREAM.name, "rate")
        lines.append(
            f"| {peer.name} | {peer.does} | {json} | {_times(json_ratio)} | {rate:,.0f} [{p50:,.1f}] | {alone:.2f} "
            f"| {stream} | {_times(stream_ratio)} | {streams:,.0f} | {megabytes[peer.name]:,.0f} |"
        )
    return "\n".join(lines)


def _cost(found: Found, name: str, load: str) -> str:
    cpu, beside = (median(found, name, load, field) for field in ("cpu_us", "beside_us"))
    return f"{cpu:,.0f}" + (f" ({beside:,.0f})" if beside else "")


def _times(figure: float) -> str:
    return f"{figure:,.0f}x" if figure >= 10 else f"{figure:.1f}x"


def bars(title: str, figures: Mapping[str, float]) -> str:
    """Draw a bar for each figure, all above zero, on a logarithmic scale."""
    low, high = decades([*figures.values(), 10.0])
    height = TOP + STEP * len(figures) + BOTTOM

    def across(value: float) -> float:
        return round(LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="15">{escape(title)}</text>',
    ]
    bottom = height - BOTTOM
    for power in range(low, high + 1):
        x = across(10**power)
        parts.append(f'<path d="M{x} {TOP - 6}V{bottom}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{figure(power)}</text>')
    for number, (name, value) in enumerate(figures.items()):
        y, end = TOP + STEP * number, across(value)
        colour = COLOURS[1] if name.startswith("tollkeeper") else COLOURS[0]
        parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{round(end - LEFT, 1)}" height="18" fill="{colour}"/>')
        parts.append(f'<text x="{end + 6}" y="{y + 13}">{value:,.0f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(folder: Path, text: str, found: Found, peers: Sequence[Peer]) -> None:
    """Write the report and its picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.md").write_text(text)
    costs = {peer.name: median(found, peer.name, JSON.name, "cpu_us") for peer in peers}
    title = "CPU µs a request: JSON, 1 kB, 16 connections (logarithmic)"
    (folder / "peers.svg").write_text(bars(title, dict(sorted(costs.items(), key=lambda one: one[1]))))
