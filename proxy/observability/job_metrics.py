"""Series of the scheduled jobs."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from billing.jobs.runs import JobStanding

JOB_RESULTS = ("clean", "found", "failed")


class JobMetrics:
    """Runs of jobs, labelled `task`: Prometheus calls what it scrapes `job`.

    All but the counter are shown as SQL has them.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the series."""
        self.reconciliation_mismatch = Gauge(
            "tollkeeper_reconciliation_mismatch_credits",
            "Sum of the differences that the last reconciliation found",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.job_runs = Counter(
            "tollkeeper_job_runs_total", "Runs of scheduled jobs", ["task", "result"], registry=registry
        )
        self.jobs_since = Gauge(
            "tollkeeper_jobs_started_timestamp_seconds",
            "When this machine's service was started, as its jobs process says",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.job_interval = Gauge(
            "tollkeeper_job_interval_seconds",
            "How often a job runs",
            ["task"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.job_findings = Gauge(
            "tollkeeper_job_findings",
            "Findings of a job's last run",
            ["task"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.job_duration = Gauge(
            "tollkeeper_job_duration_seconds",
            "Length of a job's last run",
            ["task"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.job_success = Gauge(
            "tollkeeper_job_last_success_timestamp_seconds",
            "When a job last ran to its end, whatever it found",
            ["task"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )

    def start_at_zero(self, jobs: Iterable[str]) -> None:
        """Show the run counters of these jobs before their first run."""
        for job in jobs:
            for result in JOB_RESULTS:
                self.job_runs.labels(job, result)

    def count_run(self, job: str, result: str) -> None:
        """Count a run of this process; `result` is one of JOB_RESULTS."""
        self.job_runs.labels(job, result).inc()

    def show_standing(self, job: str, standing: JobStanding) -> None:
        """Show the outcome of a job's runs, of whichever process."""
        self.job_findings.labels(job).set(standing.findings)
        self.job_duration.labels(job).set(standing.seconds)
        if standing.succeeded_at:
            self.job_success.labels(job).set(standing.succeeded_at / 1_000)
