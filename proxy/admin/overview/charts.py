"""Charts of the overview: purchases, usage, margin and liability by day, as numbers that a template draws. Pure.

Amounts are millionths of a dollar. A day without figures has no bar; what is below zero hangs below the line.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from typing import NamedTuple

from billing.accounting.daily_finance import Figures
from proxy.credits_page.spend_chart import grid_step

DAYS = 30
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 360, 150, 54, 8, 20
MICRO = 1_000_000


class DayBar(NamedTuple):
    """One day, in the drawing's own units. `below`: less than nothing."""

    x: int
    y: int
    width: int
    height: int
    below: bool
    title: str


class Mark(NamedTuple):
    """A line of the grid, or a date below the axis; `at` is its place across."""

    at: int
    text: str


class FinanceChart(NamedTuple):
    """One chart. `newest`: what it was last; `words`: the same for whoever does not see it."""

    name: str
    title: str
    newest: str
    words: str
    bars: list[DayBar]
    lines: list[Mark]
    dates: list[Mark]


def finance_charts(days: Sequence[Figures], paid: Mapping[str, int], today: date) -> list[FinanceChart]:
    """Draw the days up to `today`. `paid`: day → what was paid, less what went back."""
    rows = {row.day: row for row in days}
    wanted: tuple[tuple[str, str, Callable[[Figures], int]], ...] = (
        ("purchases", "Paid, less what went back", lambda row: paid.get(row.day, 0)),
        ("usage", "Usage charged", lambda row: row.deducted),
        ("margin", "Margin", lambda row: row.margin),
        ("liability", "Owed to customers", lambda row: row.liability),
    )
    span = [today - timedelta(days=back) for back in reversed(range(DAYS))]
    return [
        _chart(name, title, [(day, of(rows[str(day)]) if str(day) in rows else None) for day in span])
        for name, title, of in wanted
    ]


def _chart(name: str, title: str, values: Sequence[tuple[date, int | None]]) -> FinanceChart:
    known = [value for _, value in values if value is not None]
    most, least = max([0, *known]), min([0, *known])
    step = grid_step(max(most, -least) or MICRO)
    above, below = -(-most // step), -(least // step)  # both rounded up to whole steps
    parts = max(1, above + below)
    room = HEIGHT - TOP - BOTTOM
    zero = TOP + room * above // parts if above + below else TOP + room

    def place(value: int) -> int:
        return zero - room * value // (step * parts)

    lines = [Mark(place(step * part), dollars(step * part)) for part in range(-below, max(above, 1 - below) + 1)]
    each = (WIDTH - LEFT) // len(values)
    bars = []
    for number, (day, value) in enumerate(values):
        if value:
            end = place(value)
            title_of = f"{day}: {dollars(value, exact=True)}"
            top, height = min(zero, end), max(1, abs(zero - end))
            bars.append(DayBar(LEFT + number * each + 1, top, each - 2, height, value < 0, title_of))
    dates = [Mark(LEFT + number * each, f"{values[number][0].day} {values[number][0]:%b}") for number in (0, 10, 20)]
    dates.append(Mark(LEFT + DAYS * each, "today"))
    newest = next((value for _, value in reversed(values) if value is not None), 0)
    highest, lowest = (dollars(value, exact=True) for value in (max(known, default=0), min(known, default=0)))
    words = f"{title} by day, the last {DAYS} days: now {dollars(newest, exact=True)}, from {lowest} to {highest}"
    return FinanceChart(name, title, dollars(newest, exact=True), words, bars, lines, dates)


def dollars(amount: int, *, exact: bool = False) -> str:
    """Write millionths of a dollar: $1,234.50 where it is to be exact to the cent, else as short as it can be."""
    sign, size = "−" if amount < 0 else "", abs(amount)
    if exact:
        cents = (size + 5_000) // 10_000
        return f"{sign}${cents // 100:,}.{cents % 100:02}"
    whole, rest = divmod(size, MICRO)
    places = f".{rest:06}".rstrip("0") if rest else ""
    return f"{sign}${whole:,}{places}"
