"""Dashboard of operations: objectives, traffic, holds, stores, jobs."""

from scripts.dashboards.panels import Dashboard, Panel

OPERATIONS = Dashboard(
    "tollkeeper-operations",
    "Tollkeeper: operations",
    "Traffic, latency, refusals, holds, the way of charges into the ledger, jobs, configuration.",
    "now-6h",
    (
        (
            "Objectives",
            (
                Panel(
                    "Deductions and purchases, 30 days",
                    (
                        "Share of requests under /v1, and of checkouts and webhooks, in which we did our "
                        "part. The objective is 99.95 %."
                    ),
                    "percentunit",
                    (
                        (
                            "{{slo}}",
                            (
                                "sum by (slo) "
                                '(increase(tollkeeper_slo_total{result="good",slo=~"deduction|purchase"}[30d]))'
                                ' / sum by (slo) (increase(tollkeeper_slo_total{slo=~"deduction|purchase"}[30d]))'
                            ),
                        ),
                    ),
                    "stat",
                ),
                Panel(
                    "Webhooks within 5 minutes, 30 days",
                    "Share of Stripe's events that were handled within 5 minutes. The objective is 99.9 %.",
                    "percentunit",
                    (
                        (
                            "webhooks",
                            (
                                'sum(increase(tollkeeper_slo_total{result="good",slo="webhook"}[30d]))'
                                ' / sum(increase(tollkeeper_slo_total{slo="webhook"}[30d]))'
                            ),
                        ),
                    ),
                    "stat",
                ),
                Panel(
                    "Errors against the budget",
                    (
                        "Share of failures in the last hour as a multiple of what the objective allows; "
                        "above 1 the month's budget shrinks."
                    ),
                    "none",
                    (
                        ("{{slo}}", 'tollkeeper:slo_errors:ratio1h{slo=~"deduction|purchase"} / 0.0005'),
                        ("{{slo}}", 'tollkeeper:slo_errors:ratio1h{slo="webhook"} / 0.001'),
                    ),
                    red_above=14.4,
                ),
            ),
        ),
        (
            "Traffic",
            (
                Panel(
                    "Requests by status",
                    "Answers under /v1 a second; 499 is a client that left.",
                    "reqps",
                    (("{{status}}", "sum by (status) (rate(tollkeeper_requests_total[$__rate_interval]))"),),
                    stacked=True,
                ),
                Panel(
                    "Refused for lack of credits",
                    "402 answers a second, by what was in the way, and the average of the day before.",
                    "reqps",
                    (
                        (
                            "{{source}}",
                            "sum by (source) (rate(billing_402_insufficient_credits_total[$__rate_interval]))",
                        ),
                        ("average of a day", "avg_over_time(tollkeeper:insufficient:rate10m[1d] offset 15m)"),
                    ),
                ),
                Panel(
                    "Upstream errors",
                    "Requests a second that OpenAI did not answer as it should.",
                    "reqps",
                    (("{{reason}}", "sum by (reason) (rate(tollkeeper_upstream_errors_total[$__rate_interval]))"),),
                    stacked=True,
                ),
                Panel(
                    "Complaints of our own account at OpenAI",
                    "By what OpenAI says is wrong with it. Customers are told that their key and credits are fine.",
                    "short",
                    (
                        (
                            "{{reason}}",
                            "sum by (reason) (increase(tollkeeper_upstream_account_errors_total[$__rate_interval]))",
                        ),
                    ),
                    stacked=True,
                ),
            ),
        ),
        (
            "Latency",
            (
                Panel(
                    "Time we add before forwarding",
                    "From a request's arrival until it was sent upstream: reading its body, checking it, holding.",
                    "s",
                    (
                        (
                            "p50",
                            (
                                "histogram_quantile(0.5, "
                                "sum by (le) (rate(tollkeeper_added_latency_seconds_bucket[$__rate_interval])))"
                            ),
                        ),
                        (
                            "p99",
                            (
                                "histogram_quantile(0.99, "
                                "sum by (le) (rate(tollkeeper_added_latency_seconds_bucket[$__rate_interval])))"
                            ),
                        ),
                    ),
                ),
                Panel(
                    "Time to first byte",
                    "From a request's arrival to the first byte of its answer, OpenAI's time included.",
                    "s",
                    (
                        (
                            "p50",
                            (
                                "histogram_quantile(0.5, "
                                "sum by (le) (rate(tollkeeper_first_byte_seconds_bucket[$__rate_interval])))"
                            ),
                        ),
                        (
                            "p99",
                            (
                                "histogram_quantile(0.99, "
                                "sum by (le) (rate(tollkeeper_first_byte_seconds_bucket[$__rate_interval])))"
                            ),
                        ),
                    ),
                ),
                Panel(
                    "Connections to OpenAI",
                    "Open connections, and those of them that are idle.",
                    "none",
                    (("{{state}}", "sum by (state) (tollkeeper_upstream_connections)"),),
                ),
            ),
        ),
        (
            "By upstream",
            (
                Panel(
                    "Served by upstream",
                    "Requests a second that each upstream answered.",
                    "reqps",
                    (
                        (
                            "{{upstream}}",
                            "sum by (upstream) (rate(tollkeeper_upstream_requests_total[$__rate_interval]))",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Not served by upstream",
                    "Requests a second that an upstream did not serve, by what became of them there.",
                    "reqps",
                    (
                        (
                            "{{upstream}} {{reason}}",
                            (
                                "sum by (upstream, reason) "
                                "(rate(tollkeeper_upstream_tries_failed_total[$__rate_interval]))"
                            ),
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "In flight by upstream",
                    "Requests that each upstream works on. One whose line stays up while it serves nothing has frozen.",
                    "none",
                    (("{{upstream}}", "sum by (upstream) (tollkeeper_upstream_in_flight)"),),
                ),
                Panel(
                    "Upstreams that are well",
                    "0 while a process asks others first: the upstream refused our key, has no quota left, or failed.",
                    "none",
                    (("{{upstream}}", "min by (upstream) (tollkeeper_upstream_up)"),),
                ),
                Panel(
                    "May be billed for tries given up",
                    "Credits that an upstream may bill for requests that it never answered.",
                    "none",
                    (
                        (
                            "{{upstream}}",
                            (
                                "sum by (upstream) "
                                "(increase(tollkeeper_upstream_abandoned_credits_total[$__rate_interval]))"
                            ),
                        ),
                    ),
                    stacked=True,
                ),
            ),
        ),
        (
            "From Stripe",
            (
                Panel(
                    "Stripe events that want a look",
                    (
                        "Payments after their page had ended, statuses that nobody knows, events of "
                        "another API version; an hour at a time."
                    ),
                    "none",
                    (
                        ("{{kind}}", "sum by (kind) (increase(stripe_oddities_total[1h]))"),
                        ("API version", "sum(increase(stripe_event_version_mismatches_total[1h]))"),
                    ),
                    bars=True,
                    red_above=0.001,
                ),
                Panel(
                    "Events that never came",
                    "Events that Stripe made and that only a sweep brought here, an hour at a time.",
                    "none",
                    (("missed", "sum(increase(stripe_events_missed_total[1h]))"),),
                    bars=True,
                    red_above=0.001,
                ),
            ),
        ),
        (
            "Holds",
            (
                Panel(
                    "Held now",
                    "Credits held for running requests.",
                    "none",
                    (("credits", "max(tollkeeper_holds_outstanding_credits)"),),
                ),
                Panel(
                    "Holds and the oldest of them",
                    "Running requests, and the age of the oldest hold.",
                    "none",
                    (
                        ("holds", "max(tollkeeper_holds_outstanding)"),
                        ("oldest, seconds", "max(tollkeeper_holds_oldest_seconds)"),
                    ),
                ),
                Panel(
                    "Held for each credit charged",
                    "How much too much is held. High values refuse customers who could pay.",
                    "none",
                    (
                        (
                            "held / charged",
                            (
                                "sum(rate(tollkeeper_held_credits_total[$__rate_interval]))"
                                " / sum(rate(billing_credits_deducted_total[$__rate_interval]))"
                            ),
                        ),
                    ),
                ),
                Panel(
                    "Where usage came from",
                    "Charges a second by whether OpenAI said the usage, we counted it, or only bounded it.",
                    "reqps",
                    (("{{source}}", "sum by (source) (rate(tollkeeper_usage_source_total[$__rate_interval]))"),),
                    stacked=True,
                ),
            ),
        ),
        (
            "Into the ledger",
            (
                Panel(
                    "Stores",
                    "1 while a store answers every process.",
                    "none",
                    (("{{store}}", "min by (store) (tollkeeper_store_up)"),),
                ),
                Panel(
                    "Journal",
                    "Charges that are not yet in the ledger, and the age of the oldest in seconds.",
                    "none",
                    (
                        ("charges", "max(tollkeeper_journal_entries)"),
                        ("oldest, seconds", "max(tollkeeper_journal_lag_seconds)"),
                    ),
                    red_above=60,
                ),
                Panel(
                    "Rebuilds",
                    "Buckets of Redis that were rebuilt from the ledger, and those that are not served.",
                    "none",
                    (
                        ("rebuilt", "sum(increase(tollkeeper_rebuilds_total[5m]))"),
                        ("away", "max(tollkeeper_buckets_away)"),
                    ),
                    bars=True,
                ),
                Panel(
                    "Replica of the ledger",
                    "How late it is, whether pages do not read it, and the reads that it failed at.",
                    "none",
                    (
                        ("late, seconds", "max(tollkeeper_replica_lag_seconds)"),
                        ("not read", "max(tollkeeper_replica_unused)"),
                        ("failed", "sum(increase(tollkeeper_replica_failures_total[5m]))"),
                    ),
                    red_above=5,
                ),
            ),
        ),
        (
            "Jobs and configuration",
            (
                Panel(
                    "Since a job's last success",
                    "How long ago each job last ran to its end.",
                    "s",
                    (("{{task}}", "time() - max by (task) (tollkeeper_job_last_success_timestamp_seconds)"),),
                    "bargauge",
                ),
                Panel(
                    "Findings",
                    "What the last run of each job found.",
                    "none",
                    (("{{task}}", "max by (task) (tollkeeper_job_findings)"),),
                    "bargauge",
                    red_above=1,
                ),
                Panel(
                    "Switches",
                    "1 while a switch is on. Overrides are flags that somebody set by hand.",
                    "none",
                    (("{{flag}}", "min by (flag) (tollkeeper_flag)"), ("overrides", "max(tollkeeper_flag_overrides)")),
                ),
                Panel(
                    "Rollout and configuration",
                    "Accounts that are metered, in per cent; 1 while the configuration is in force as it stands.",
                    "none",
                    (("per cent", "min(tollkeeper_rollout_percent)"), ("valid", "min(tollkeeper_config_valid)")),
                ),
            ),
        ),
    ),
)
