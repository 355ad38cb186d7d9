"""The chart of what was spent by day and model, as numbers that a template draws. Pure.

It is drawn twice, for wide and for narrow windows: text that is scaled down with its picture cannot be read on a phone.
Colours are the style sheet's (series-0 to series-5); here are the hatchings that tell the models apart without colour.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from billing.ledger.portal_tokens import DAY_MS
from proxy.web.display import short_credits

DAYS = 30
MOST_SERIES = 5
MOST_STEPS = 4
OTHERS = "other models"
MARKS = ("", "M0 6L6 0", "M0 0L6 6", "M3 0V6", "M0 3H6", "M0 0L6 6M0 6L6 0")
BOTTOM, TOP = 26, 26
WIDEST_BAR = 40


class Frame(NamedTuple):
    """A drawing's size in its own units, how many days it shows, and at which of them a date stands."""

    name: str
    days: int
    width: int
    height: int
    left: int
    dates: int


WIDE = Frame("wide", DAYS, 760, 250, 64, 7)
NARROW = Frame("narrow", 14, 320, 220, 52, 4)


class DaySpend(NamedTuple):
    """Cost of one model on one UTC day (days since 1970), in millicredits."""

    day: int
    model: str
    millicredits: int


class Series(NamedTuple):
    """One model's share of the spend."""

    name: str
    mark: str
    total: str


class Bar(NamedTuple):
    """A rectangle in the drawing's own units."""

    x: int
    y: int
    width: int
    height: int
    series: int
    title: str


class GridLine(NamedTuple):
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


class Drawing(NamedTuple):
    """One picture of the spend."""

    frame: Frame
    bars: list[Bar]
    lines: list[GridLine]
    labels: list[Label]


class Chart(NamedTuple):
    """Everything to show."""

    days: int
    total: str
    series: list[Series]
    drawings: list[Drawing]
    rows: list[Row]


def spend_chart(spend: Sequence[DaySpend], today: int, days_shown: int = DAYS) -> Chart:
    """Chart of so many days up to `today` (days since 1970); the five dearest models by name, the others together."""
    totals: dict[str, int] = defaultdict(int)
    for one in spend:
        totals[one.model] += one.millicredits
    named = sorted(totals, key=lambda name: (-totals[name], name))[:MOST_SERIES]
    names = [*named, OTHERS] if len(totals) > len(named) else named
    days: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in spend:
        days[one.day][one.model if one.model in named else OTHERS] += one.millicredits
    other = sum(amount for name, amount in totals.items() if name not in named)
    sums = {name: other if name == OTHERS and name not in totals else totals[name] for name in names}
    series = [Series(name, MARKS[place], short_credits(sums[name])) for place, name in enumerate(names)]
    frames = (_frame_of(WIDE, days_shown), _frame_of(NARROW, days_shown))
    drawings = [_drawing(frame, days, names, today) for frame in frames] if any(totals.values()) else []
    rows = [
        Row(_date(one.day), one.model, short_credits(one.millicredits)) for one in reversed(spend) if one.millicredits
    ]
    return Chart(days_shown, short_credits(sum(totals.values())), series, drawings, rows)


def _frame_of(usual: Frame, days: int) -> Frame:
    """Return the frame for so many days; the narrow one has room for no more than it usually shows."""
    if days == usual.days or (usual is NARROW and days > usual.days):
        return usual
    return usual._replace(days=days, dates=max(1, days // 4))


def _drawing(frame: Frame, days: dict[int, dict[str, int]], names: list[str], today: int) -> Drawing:
    first = today - frame.days + 1
    shown = [day for day in sorted(days) if first <= day <= today]
    most = max((sum(days[day].values()) for day in shown), default=0)
    step = grid_step(most)
    parts = max(1, -(-most // step))
    highest = step * parts
    bars = [bar for day in shown for bar in _stack(frame, day - first, days[day], names, highest, _date(day))]
    room = frame.height - BOTTOM - TOP
    lines = [
        GridLine(frame.height - BOTTOM - room * part // parts, short_credits(step * part)) for part in range(parts + 1)
    ]
    wide = (frame.width - frame.left) // frame.days
    places = range((frame.days - 1) % frame.dates, frame.days, frame.dates)  # today is always named
    labels = [Label(frame.left + place * wide + wide // 2, _short(first + place)) for place in places]
    labels[-1] = labels[-1]._replace(x=frame.left + frame.days * wide - 2)
    return Drawing(frame, bars, lines, labels)


def grid_step(highest: int) -> int:
    """Return the smallest of 1, 2, 2.5, 5 and their tenfolds of which four steps reach `highest` (millicredits)."""
    power = 1
    while True:
        for step in (power, 2 * power, 5 * power // 2, 5 * power):
            if step and step * MOST_STEPS >= highest:
                return step
        power *= 10


def _stack(frame: Frame, place: int, models: dict[str, int], names: list[str], highest: int, date: str) -> list[Bar]:
    """One day's bars, from the axis up."""
    step, room = (frame.width - frame.left) // frame.days, frame.height - BOTTOM - TOP
    found, below = [], 0
    for number, name in enumerate(names):
        amount = models.get(name, 0)
        if amount:
            low, high = room * below // highest, room * (below + amount) // highest
            height = max(1, high - low)
            title = f"{date}, {name}: {short_credits(amount)} credits"
            width = min(step - 4, WIDEST_BAR)
            x = frame.left + place * step + (step - width) // 2
            found.append(Bar(x, frame.height - BOTTOM - low - height, width, height, number, title))
        below += amount
    return found


def _date(day: int) -> str:
    return datetime.fromtimestamp(day * DAY_MS / 1_000, UTC).date().isoformat()


def _short(day: int) -> str:
    """23 Nov."""
    date = datetime.fromtimestamp(day * DAY_MS / 1_000, UTC)
    return f"{date.day} {date:%b}"
