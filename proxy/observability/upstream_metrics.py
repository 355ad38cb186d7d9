"""Series by upstream. Names are those of proxy.toml, so a client cannot invent one."""

from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families

from billing.money.amounts import display_credits

NOT_SERVED = (
    *("connect", "busy", "closed", "malformed", "too_large", "first_byte_timeout", "idle_timeout", "total_timeout"),
    *("coding", "no_answer", "status_5xx", "rate_limit", "model_missing", "access", "forbidden"),
    *("key", "quota", "billing", "deactivated", "organization", "region", "address"),
)
"""Why an upstream does not serve a request; see proxy/gateway/forwarding.py."""


class UpstreamState(NamedTuple):
    """An upstream as a process sees it."""

    name: str
    is_well: bool
    in_flight: int


class UpstreamSeries(NamedTuple):
    """Figures that the metrics of all processes have of an upstream; `failed`: reason → requests."""

    is_well: bool = True
    in_flight: int = 0
    served: int = 0
    failed: dict[str, int] = {}  # noqa: RUF012 - never changed: a default of a NamedTuple


class UpstreamMetrics:
    """Requests to each upstream, and its health."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the series."""
        self.requests = Counter(
            "tollkeeper_upstream_requests_total", "Requests that an upstream served", ["upstream"], registry=registry
        )
        self.failed = Counter(
            "tollkeeper_upstream_tries_failed_total",
            "Requests that an upstream did not serve, by what became of them there",
            ["upstream", "reason"],
            registry=registry,
        )
        self.abandoned = Counter(
            "tollkeeper_upstream_abandoned_credits_total",
            "Credits that an upstream may bill for requests that it never answered; in no other figure",
            ["upstream"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "tollkeeper_upstream_in_flight",
            "Requests that an upstream works on",
            ["upstream"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.up = Gauge(
            "tollkeeper_upstream_up",
            "Whether an upstream is asked before others: 0 while its circuit is open",
            ["upstream"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._shown: set[str] = set()

    def count_failed(self, count: Callable[..., None], upstream: str, reason: str, may_cost: int) -> None:
        """Count a try that came to nothing; `may_cost` in millicredits."""
        count(self.failed, upstream, reason)
        if may_cost:
            count(self.abandoned, upstream, by=display_credits(may_cost))

    def show(self, states: list[UpstreamState]) -> None:
        """Show how each does; one that is gone is shown no more."""
        for state in states:
            self.up.labels(state.name).set(1 if state.is_well else 0)
            self.in_flight.labels(state.name).set(state.in_flight)
            self.requests.labels(state.name)
            self.abandoned.labels(state.name)
            for reason in NOT_SERVED:
                self.failed.labels(state.name, reason)
        names = {state.name for state in states}
        for gone in self._shown - names:
            self.up.remove(gone)
            self.in_flight.remove(gone)
        self._shown = names


def read_series(text: str) -> dict[str, UpstreamSeries]:
    """Read what metrics in Prometheus' format say of upstreams, by name."""
    found: dict[str, UpstreamSeries] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.labels.get("upstream")
            if name is None or not sample.name.startswith("tollkeeper_upstream_"):
                continue
            known, value = found.get(name, UpstreamSeries()), int(sample.value)
            if sample.name == "tollkeeper_upstream_up":
                known = known._replace(is_well=bool(value))
            elif sample.name == "tollkeeper_upstream_in_flight":
                known = known._replace(in_flight=value)
            elif sample.name == "tollkeeper_upstream_requests_total":
                known = known._replace(served=value)
            elif sample.name == "tollkeeper_upstream_tries_failed_total" and value:
                known = known._replace(failed={**known.failed, sample.labels["reason"]: value})
            found[name] = known
    return found
