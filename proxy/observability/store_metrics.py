"""Series of the balance store, the journal, the stores' health and the connections to OpenAI."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from billing.money.amounts import display_credits
from billing.money.holds import Outstanding
from billing.storage.replica import Replica


class StoreMetrics:
    """State of the stores, as each process last saw it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the series."""
        self._register_replica(registry)
        self.open_holds = Gauge(
            "tollkeeper_holds_outstanding",
            "Holds in the balance store, whoever made them",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.open_hold_credits = Gauge(
            "tollkeeper_holds_outstanding_credits",
            "Credits in those holds",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.oldest_hold = Gauge(
            "tollkeeper_holds_oldest_seconds",
            "Age of the oldest of them",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.oldest_batch = Gauge(
            "tollkeeper_batches_oldest_seconds",
            "Age of the oldest batch that is not settled",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.rebuilds = Counter(
            "tollkeeper_rebuilds_total", "Buckets of Redis that were rebuilt from the ledger", registry=registry
        )
        self.buckets_away = Gauge(
            "tollkeeper_buckets_away",
            "Buckets of balances that are not served: their Redis is away, or they are rebuilt",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.journal_entries = Gauge(
            "tollkeeper_journal_entries",
            "Settled charges not yet in the ledger",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.journal_lag = Gauge(
            "tollkeeper_journal_lag_seconds",
            "Age of the oldest of them",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.store_up = Gauge(
            "tollkeeper_store_up", "1 while a store answers", ["store"], registry=registry, multiprocess_mode="livemin"
        )
        self.upstream_connections = Gauge(
            "tollkeeper_upstream_connections",
            "Connections to OpenAI",
            ["state"],
            registry=registry,
            multiprocess_mode="livesum",
        )

    def _register_replica(self, registry: CollectorRegistry) -> None:
        self.replica_unused = Gauge(
            "tollkeeper_replica_unused",
            "1 while pages and reports are not read from the replica that there is",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.replica_lag = Gauge(
            "tollkeeper_replica_lag_seconds",
            "Seconds by which what the replica has may be older than what the primary has",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.replica_failures = Counter(
            "tollkeeper_replica_failures_total",
            "Reads that the replica failed at and the primary was asked for",
            registry=registry,
        )

    def show_replica(self, replica: Replica) -> None:
        """Show how the replica is, as its last look found it."""
        self.replica_unused.set(0 if replica.used else 1)
        self.replica_lag.set(replica.lag_seconds)
        self.replica_failures.inc(replica.failures())

    def show_holds(self, outstanding: Outstanding) -> None:
        """Show the holds in the balance store."""
        self.open_holds.set(outstanding.holds)
        self.open_hold_credits.set(display_credits(outstanding.amount))
        self.oldest_hold.set(outstanding.oldest_ms / 1_000)
