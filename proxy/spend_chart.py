"""The chart of what was spent by day and model, as numbers that a template draws. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from billing.money import display_credits
from billing.portal import DAY_MS, DaySpend

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 760, 240, 60, 22, 8
DAYS = 30
MOST_SERIES = 5
OTHERS = "other models"
# told apart by hatching as well as by colour
LOOKS = (
    ("#0b5cad", ""),
    ("#b35c00", "M0 6L6 0"),
    ("#2a7d4f", "M0 0L6 6"),
    ("#7a3fa0", "M3 0V6"),
    ("#a1152c", "M0 3H6"),
    ("#5b6573", "M0 0L6 6M0 6L6 0"),
)


class Series(NamedTuple):
    """One model's share of the chart."""

    name: str
    colour: str
    mark: str
    total: str


class Bar(NamedTuple):
    """A rectangle in the chart's own units."""

    x: int
    y: int
    width: int
    height: int
    series: int
    title: str


class Line(NamedTuple):
    """A line of the grid."""

    y: int
    label: str


class Label(NamedTuple):
    """A date below the axis."""

    x: int
    text: str


class Row(NamedTuple):
    """The same as a table."""

    day: str
    model: str
    credits: str


class Chart(NamedTuple):
    """Everything to draw."""

    days: int
    width: int
    height: int
    series: list[Series]
    bars: list[Bar]
    lines: list[Line]
    labels: list[Label]
    rows: list[Row]


def figure(amount: int) -> str:
    """Millicredits as credits for people: 1,234.5."""
    return f"{display_credits(amount):,}"


def spend_chart(spend: Sequence[DaySpend], today: int) -> Chart:
    """The last 30 days up to `today` (days since 1970); the five dearest models by name, the others together."""
    totals: dict[str, int] = defaultdict(int)
    for one in spend:
        totals[one.model] += one.millicredits
    named = sorted(totals, key=lambda name: (-totals[name], name))[:MOST_SERIES]
    names = [*named, OTHERS] if len(totals) > len(named) else named
    days: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in spend:
        days[one.day][one.model if one.model in named else OTHERS] += one.millicredits
    highest = max((sum(models.values()) for models in days.values()), default=0)
    rows = [Row(_date(one.day), one.model, figure(one.millicredits)) for one in reversed(spend) if one.millicredits]
    other = sum(amount for name, amount in totals.items() if name not in named)
    sums = {name: other if name == OTHERS and name not in totals else totals[name] for name in names}
    series = [Series(name, *LOOKS[place], figure(sums[name])) for place, name in enumerate(names)]
    first = today - DAYS + 1
    bars = [bar for day in sorted(days) for bar in _stack(day - first, days[day], names, highest, _date(day))]
    step = (WIDTH - LEFT) // DAYS
    labels = [Label(LEFT + place * step + step // 2, _date(first + place)[5:]) for place in range(0, DAYS, 7)]
    return Chart(DAYS, WIDTH, HEIGHT, series, bars, _grid(highest), labels, rows)


def _stack(place: int, models: dict[str, int], names: list[str], highest: int, date: str) -> list[Bar]:
    """One day's bars, from the axis up."""
    step, room = (WIDTH - LEFT) // DAYS, HEIGHT - BOTTOM - TOP
    found, below = [], 0
    for number, name in enumerate(names):
        amount = models.get(name, 0)
        if amount:
            low, high = room * below // highest, room * (below + amount) // highest
            height = max(1, high - low)
            title = f"{date}, {name}: {figure(amount)} credits"
            found.append(Bar(LEFT + place * step + 2, HEIGHT - BOTTOM - low - height, step - 4, height, number, title))
        below += amount
    return found


def _grid(highest: int) -> list[Line]:
    room = HEIGHT - BOTTOM - TOP
    return [Line(HEIGHT - BOTTOM - room * part // 2, figure(highest * part // 2)) for part in range(3)] if highest else []


def _date(day: int) -> str:
    return datetime.fromtimestamp(day * DAY_MS / 1_000, UTC).date().isoformat()
