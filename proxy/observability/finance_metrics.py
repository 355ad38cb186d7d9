"""Series of a day's money in USD. Floats, for display only."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge

from billing.accounting.daily_finance import Figures
from billing.money.amounts import display_usd


class FinanceMetrics:
    """Figures of the running UTC day and of the last closed one, as the job `finance` computed them last.

    Every machine shows them as they are in SQL, whichever ran the job. `mostrecent`: a process that is started
    again shows what the one before it last showed, until it has read them itself.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the series."""

        def today(name: str, text: str) -> Gauge:
            return Gauge(
                f"finance_{name}_daily_usd", f"{text}, today (UTC)", registry=registry, multiprocess_mode="mostrecent"
            )

        self.purchased_daily = today("purchased", "Credits bought, with their bonus")
        self.deducted_daily = today("deducted", "Credits deducted for usage")
        self.cost_daily = today("cost", "What that usage cost us")
        self.loss_daily = today(
            "loss", "Usage that nobody could be charged for, and money that went back beyond what was sold"
        )
        self.margin_daily = today("margin", "Deducted less cost")
        self.liability = Gauge(
            "finance_liability_credits_usd",
            "What customers hold in credits",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.margin_target = Gauge(
            "finance_margin_target_ratio",
            "The margin wanted, as a part of what is deducted",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.closed_margin = Gauge(
            "finance_closed_margin_daily_usd",
            "Deducted less cost, of the last day that is closed",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.closed_deducted = Gauge(
            "finance_closed_deducted_daily_usd",
            "Credits deducted for usage, of the last day that is closed",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        # live: of a process that was started again, the models of its yesterday are forgotten
        self.model_cost = Gauge(
            "finance_model_cost_daily_usd",
            "What a model's usage cost us, today (UTC)",
            ["model"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )

        self._models_shown: set[str] = set()

    def show_today(self, figures: Figures) -> None:
        """Show the running day's figures."""
        self.purchased_daily.set(display_usd(figures.purchased))
        self.deducted_daily.set(display_usd(figures.deducted))
        self.cost_daily.set(display_usd(figures.cost))
        self.loss_daily.set(display_usd(figures.loss))
        self.margin_daily.set(display_usd(figures.margin))
        self.liability.set(display_usd(figures.liability))

    def show_closed(self, figures: Figures) -> None:
        """Show the figures of the last closed day."""
        self.closed_margin.set(display_usd(figures.margin))
        self.closed_deducted.set(display_usd(figures.deducted))

    def show_models(self, costs: Mapping[str, int]) -> None:
        """Show each model's cost of today, in millicredits. Only models of our own usage rows get here."""
        self._models_shown |= costs.keys()
        for model in self._models_shown:  # a series cannot be taken back where several processes write them
            self.model_cost.labels(model).set(display_usd(costs.get(model, 0)))
