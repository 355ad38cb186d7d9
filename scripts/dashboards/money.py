"""Dashboard of money: what was bought, deducted, earned and is owed."""

from scripts.dashboards.panels import Dashboard, Panel, per_day

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
                    (
                        "Credits bought, taken back, and deducted in the 24 hours before each point, as "
                        "the service counted; 1,000 are $1."
                    ),
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
                    (
                        "Usage that nobody could be charged for, an hour at a time, in credits. Anything "
                        "above 0 wants a look."
                    ),
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
