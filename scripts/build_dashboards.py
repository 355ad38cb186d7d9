"""Writes the Grafana dashboards in deploy/dashboards from the panels named here. `--check` fails when they are not
current.

A dashboard is a list of rows, a row a list of panels; queries use the metrics of docs/metrics.md and Grafana's own
intervals.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent.parent / "deploy" / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 24, 8
SCHEMA = 39


class Panel(NamedTuple):
    """One panel. `queries` are (legend, PromQL); `kind` is Grafana's panel type; `unit` Grafana's unit id."""

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    bars: bool = False
    stacked: bool = False
    red_above: float | None = None


class Dashboard(NamedTuple):
    """One file."""

    uid: str
    title: str
    description: str
    span: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


def per_day(counter: str) -> str:
    """What a counter grew by in the day before each point."""
    return f"sum(increase({counter}[1d]))"


MONEY = Dashboard(
    "tollkeeper-money",
    "Tollkeeper: money",
    "Purchases and deductions, revenue and cost, what is owed to customers. Figures of a day are UTC days.",
    "now-14d",
    (
        (
            "Today",
            (
                Panel(
                    "Deducted today",
                    "Credits deducted for usage.",
                    "currencyUSD",
                    (("deducted", "max(finance_deducted_daily_usd)"),),
                    "stat",
                ),
                Panel(
                    "Margin today",
                    "Deducted less what the usage cost us.",
                    "currencyUSD",
                    (("margin", "min(finance_margin_daily_usd)"),),
                    "stat",
                ),
                Panel(
                    "Owed to customers",
                    "Credits that customers hold.",
                    "currencyUSD",
                    (("liability", "max(finance_liability_credits_usd)"),),
                    "stat",
                ),
                Panel(
                    "Mismatch",
                    "Sum of the differences that the last reconciliation found, in credits.",
                    "none",
                    (("mismatch", "max(tollkeeper_reconciliation_mismatch_credits)"),),
                    "stat",
                    red_above=0.001,
                ),
            ),
        ),
        (
            "Purchases and deductions",
            (
                Panel(
                    "Purchases and deductions by day",
                    "Credits bought, taken back, and deducted in the 24 hours before each point, as the service counted; 1,000 are $1.",
                    "none",
                    (
                        ("bought", per_day("billing_credits_purchased_total")),
                        ("deducted", per_day("billing_credits_deducted_total")),
                        ("refunded and disputed", per_day("billing_credits_taken_back_total")),
                    ),
                ),
                Panel(
                    "Credits owed to customers",
                    "The liability: what customers hold, over time.",
                    "currencyUSD",
                    (("liability", "max(finance_liability_credits_usd)"),),
                ),
            ),
        ),
        (
            "Revenue, cost, margin",
            (
                Panel(
                    "Revenue, cost and margin of the day",
                    "Grows from midnight (UTC): credits deducted, what that usage cost us, and the difference.",
                    "currencyUSD",
                    (
                        ("revenue", "max(finance_deducted_daily_usd)"),
                        ("cost", "max(finance_cost_daily_usd)"),
                        ("margin", "min(finance_margin_daily_usd)"),
                        ("target", "max(finance_margin_target_ratio) * max(finance_deducted_daily_usd)"),
                    ),
                ),
                Panel(
                    "Platform loss",
                    "Usage that nobody could be charged for, an hour at a time, in credits. Anything above 0 wants a look.",
                    "none",
                    (("loss", "sum(increase(tollkeeper_platform_loss_credits_total[1h]))"),),
                    bars=True,
                    red_above=0.001,
                ),
            ),
        ),
        (
            "Top models",
            (
                Panel(
                    "Models by cost today",
                    "The ten models whose usage cost us most today (UTC).",
                    "currencyUSD",
                    (("{{model}}", "topk(10, max by (model) (finance_model_cost_daily_usd))"),),
                    "bargauge",
                ),
                Panel(
                    "Models by requests",
                    "Metered requests a second of the ten busiest models.",
                    "reqps",
                    (("{{model}}", "topk(10, sum by (model) (rate(openai_calls_total[$__rate_interval])))"),),
                    stacked=True,
                ),
                Panel(
                    "Tokens",
                    "Tokens a second, read and written.",
                    "none",
                    (
                        ("input", "sum(rate(openai_tokens_in_total[$__rate_interval]))"),
                        ("output", "sum(rate(openai_tokens_out_total[$__rate_interval]))"),
                    ),
                ),
            ),
        ),
        (
            "Stripe",
            (
                Panel(
                    "Webhooks by type",
                    "Deliveries that were stored, a minute at a time.",
                    "none",
                    (("{{type}}", "sum by (type) (increase(stripe_webhook_events_total[1m]))"),),
                    bars=True,
                    stacked=True,
                ),
                Panel(
                    "Webhook failures",
                    "Deliveries that were not stored, by reason.",
                    "none",
                    (("{{reason}}", "sum by (reason) (increase(stripe_webhook_failures_total[5m]))"),),
                    bars=True,
                    red_above=0.001,
                ),
                Panel(
                    "Events waiting",
                    "Age of the oldest Stripe event that is not handled.",
                    "s",
                    (("oldest", "max(stripe_inbox_lag_seconds)"),),
                    red_above=300,
                ),
            ),
        ),
    ),
)

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
                    "Share of requests under /v1, and of checkouts and webhooks, in which we did our part. The objective is 99.95 %.",
                    "percentunit",
                    (
                        (
                            "{{slo}}",
                            (
                                'sum by (slo) (increase(tollkeeper_slo_total{result="good",slo=~"deduction|purchase"}[30d]))'
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
                    "Share of failures in the last hour as a multiple of what the objective allows; above 1 the month's budget shrinks.",
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
                            "histogram_quantile(0.5, sum by (le) (rate(tollkeeper_added_latency_seconds_bucket[$__rate_interval])))",
                        ),
                        (
                            "p99",
                            "histogram_quantile(0.99, sum by (le) (rate(tollkeeper_added_latency_seconds_bucket[$__rate_interval])))",
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
                            "histogram_quantile(0.5, sum by (le) (rate(tollkeeper_first_byte_seconds_bucket[$__rate_interval])))",
                        ),
                        (
                            "p99",
                            "histogram_quantile(0.99, sum by (le) (rate(tollkeeper_first_byte_seconds_bucket[$__rate_interval])))",
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
            "From Stripe",
            (
                Panel(
                    "Stripe events that want a look",
                    "Payments after their page had ended, statuses that nobody knows, events of another API version; an hour at a time.",
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
                    "Buckets of Redis that were rebuilt from the ledger.",
                    "none",
                    (("rebuilt", "sum(increase(tollkeeper_rebuilds_total[5m]))"),),
                    bars=True,
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


def panel_json(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    """One panel as Grafana has it."""
    steps: list[dict[str, Any]] = [{"color": "green" if panel.red_above is not None else "text", "value": None}]
    if panel.red_above is not None:
        steps.append({"color": "red", "value": panel.red_above})
    custom: dict[str, Any] = {}
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    if panel.kind == "timeseries":
        custom = {
            "drawStyle": "bars" if panel.bars else "line",
            "fillOpacity": 60 if panel.bars else 10,
            "lineWidth": 1 if panel.bars else 2,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "dashed" if panel.red_above is not None else "off"},
        }
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "bargauge":
        options |= {"displayMode": "basic", "orientation": "horizontal"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0 if "argin" not in panel.title else None,
                "custom": custom,
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend,
                "range": True,
            }
            for index, (legend, query) in enumerate(panel.queries)
        ],
    }


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    """One dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    number = top = 0
    for title, row in dashboard.rows:
        number += 1
        panels.append(
            {
                "id": number,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1},
            }
        )
        top += 1
        width, height = WIDTH // len(row), 4 if all(panel.kind == "stat" for panel in row) else HEIGHT
        for index, panel in enumerate(row):
            number += 1
            panels.append(panel_json(panel, number, {"x": index * width, "y": top, "w": width, "h": height}))
        top += height
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["tollkeeper"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "timezone": "utc",
        "refresh": "30s",
        "time": {"from": dashboard.span, "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "hide": 0,
                    "includeAll": False,
                }
            ]
        },
        "panels": panels,
    }


def main() -> int:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a file is not current")
    check = parser.parse_args().check
    stale = []
    for name, dashboard in (("money.json", MONEY), ("operations.json", OPERATIONS)):
        path, text = FOLDER / name, json.dumps(dashboard_json(dashboard), indent=2) + "\n"
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text)
    if check and stale:
        print(
            f"deploy/dashboards: not current: {', '.join(stale)}; run python -m scripts.build_dashboards",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
