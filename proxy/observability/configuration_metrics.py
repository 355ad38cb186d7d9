"""Series of the configuration in force."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from proxy.observability.zeros import start_at_zero


class ConfigurationMetrics:
    """Configuration and switches. Every process sets the same, so the worst of them is shown."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the series."""
        self.config_reloads = Counter(
            "tollkeeper_config_reloads_total",
            "Edits of the configuration by what became of them",
            ["result"],
            registry=registry,
        )
        self.config_valid = Gauge(
            "tollkeeper_config_valid",
            "1 while file and overrides are in force",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.config_restart_keys = Gauge(
            "tollkeeper_config_restart_keys",
            "Changed keys that wait for a restart",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.config_checked_at = Gauge(
            "tollkeeper_config_checked_timestamp_seconds",
            "When the process that looked longest ago looked at file and overrides",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.flag = Gauge(
            "tollkeeper_flag", "1 while a switch is on", ["flag"], registry=registry, multiprocess_mode="livemin"
        )
        self.flag_overrides = Gauge(
            "tollkeeper_flag_overrides",
            "Flags that are overridden by hand",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.rollout_percent = Gauge(
            "tollkeeper_rollout_percent",
            "Accounts that are metered, in per cent",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.model_shutdown = Gauge(
            "tollkeeper_model_shutdown_timestamp_seconds",
            "When a model on sale ends, from 30 days before",
            ["model"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._ends_shown: set[str] = set()
        start_at_zero(self.config_reloads, ("applied", "refused"))

    def show_ends(self, ends: Mapping[str, int]) -> None:
        """Show when models end (Unix seconds): those of the price book only; one that is none of them any more is 0."""
        self._ends_shown |= ends.keys()
        for model in self._ends_shown:  # a series cannot be taken back where several processes write them
            self.model_shutdown.labels(model).set(ends.get(model, 0))
