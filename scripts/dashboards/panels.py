"""A panel, a dashboard, and what their queries share."""

from typing import NamedTuple


class Panel(NamedTuple):
    """One panel. `queries` are (legend, PromQL); `kind` is Grafana's panel type; `unit` Grafana's unit id."""

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    bars: bool = False
    stacked: bool = False
    red_above: float | None = None


class Dashboard(NamedTuple):
    """One file."""

    uid: str
    title: str
    description: str
    span: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


def per_day(counter: str) -> str:
    """Query of a counter's growth in the day before each point."""
    return f"sum(increase({counter}[1d]))"
