"""Charts of the overview: bars of the right height on the right side of nothing, labels that can be read."""

from datetime import date, timedelta

import pytest

from billing.accounting.daily_finance import Figures
from proxy.admin.overview.charts import BOTTOM, DAYS, HEIGHT, LEFT, TOP, WIDTH, FinanceChart, dollars, finance_charts

TODAY = date(2026, 11, 30)
ROOM, GROUND = HEIGHT - TOP - BOTTOM, HEIGHT - BOTTOM


def figures(back: int, deducted: int = 0, cost: int = 0, liability: int = 0) -> Figures:
    return Figures(str(TODAY - timedelta(days=back)), 0, deducted, cost, 0, liability, 1)


def drawn(*rows: Figures, paid: dict[str, int] | None = None) -> dict[str, FinanceChart]:
    charts = {chart.name: chart for chart in finance_charts(rows, paid or {}, TODAY)}
    assert list(charts) == ["purchases", "usage", "margin", "liability"]
    for chart in charts.values():
        for bar in chart.bars:
            assert LEFT <= bar.x < bar.x + bar.width <= WIDTH
            assert TOP <= bar.y < bar.y + bar.height <= GROUND + 1
        assert len({line.text for line in chart.lines}) == len(chart.lines) >= 2
    return charts


def test_a_bar_is_as_high_as_its_amount() -> None:
    charts = drawn(figures(0, deducted=20_000_000), figures(1, deducted=10_000_000), figures(29, deducted=5_000_000))
    oldest, yesterday, today = charts["usage"].bars
    assert (today.height, yesterday.height, oldest.height) == (ROOM, ROOM // 2, ROOM // 4)
    assert all(bar.y + bar.height == GROUND for bar in (oldest, yesterday, today))
    assert oldest.x == LEFT + 1
    assert today.title == "2026-11-30: $20.00"
    assert [line.text for line in charts["usage"].lines] == ["$0", "$5", "$10", "$15", "$20"]
    assert charts["usage"].newest == "$20.00"
    assert charts["usage"].words.endswith("now $20.00, from $5.00 to $20.00")


def test_a_loss_hangs_below_the_line() -> None:
    margin = drawn(figures(0, 10_000_000, 30_000_000), figures(1, 40_000_000, 20_000_000))["margin"]
    gain, loss = margin.bars
    assert (gain.below, loss.below) == (False, True)
    assert loss.y == gain.y + gain.height
    assert loss.height == gain.height
    assert margin.newest == "−$20.00"
    assert [line.text for line in margin.lines] == ["−$20", "−$15", "−$10", "−$5", "$0", "$5", "$10", "$15", "$20"]


def test_purchases_are_what_was_paid_less_what_went_back() -> None:
    charts = drawn(figures(0), figures(1), paid={"2026-11-29": 9_990_000, "2026-11-30": -4_000_000})
    paid = charts["purchases"]
    assert [(bar.below, bar.title) for bar in paid.bars] == [
        (False, "2026-11-29: $9.99"),
        (True, "2026-11-30: −$4.00"),
    ]


def test_days_without_figures_and_without_money_have_no_bar() -> None:
    charts = drawn(figures(0), figures(DAYS, deducted=5_000_000))
    assert all(chart.bars == [] for chart in charts.values()), "the day before the first is not shown"
    assert charts["liability"].newest == "$0.00"


@pytest.mark.parametrize(
    ("amount", "short", "exact"),
    [
        (0, "$0", "$0.00"),
        (2_500_000, "$2.5", "$2.50"),
        (-1_234_567_890, "−$1,234.56789", "−$1,234.57"),
        (1, "$0.000001", "$0.00"),
    ],
)
def test_dollars(amount: int, short: str, exact: str) -> None:
    assert (dollars(amount), dollars(amount, exact=True)) == (short, exact)
