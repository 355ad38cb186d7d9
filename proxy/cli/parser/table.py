"""First words of `tollkeeper`: the module that registers each, and its sentence in `tollkeeper --help`."""

from collections.abc import Mapping
from typing import NamedTuple


class FirstWord(NamedTuple):
    """A command's module in proxy.cli, and its sentence."""

    module: str
    text: str


TABLE: Mapping[str, FirstWord] = {
    "demo": FirstWord(
        "quickstart", "`make run` without make: serve a demo at once, on simulators unless OPENAI_API_KEY is set."
    ),
    "serve": FirstWord("serve", "Serve until SIGTERM."),
    "check-config": FirstWord("serve", "Make the checks of `serve` without serving, and say which file was read."),
    "migrate": FirstWord("serve", "Bring the database to this version's schema."),
    "preflight": FirstWord(
        "preflight.command", "May this go live? Checks everything, changes nothing; exit 1 when something fails."
    ),
    "smoke": FirstWord(
        "smoke.command", "Me, buy, call, reconcile, 402: against a running server, with an account of its own."
    ),
    "account": FirstWord("customers.accounts", "Create, show, find, change, close accounts."),
    "key": FirstWord("customers.keys", "Create, list, change, rotate, revoke API keys."),
    "end-user": FirstWord("customers.end_users", "Budgets and wallets of whom an account's requests are for."),
    "token": FirstWord("customers.tokens", "Make, list, revoke short-lived tokens for browsers and devices."),
    "grant": FirstWord(
        "customers.money",
        "Move credits to an account (negative: back; of paid credits, the books have it under `adjustments`).",
    ),
    "ledger": FirstWord("customers.money", "An account's transfers."),
    "usage": FirstWord("customers.money", "An account's charged requests, or (--by) their sums."),
    "portal": FirstWord("customers.money", "A one-time link to an account's Credits page, good for ten minutes."),
    "import": FirstWord("importing.command", "Take over accounts, keys and balances of another gateway, from a CSV."),
    "rates": FirstWord("rates", "Import, compare, activate and show rate cards."),
    "plan": FirstWord("plans", "Price plans: make versions, give them to accounts."),
    "promo": FirstWord("customers.promos", "Promo codes: make, list, end them."),
    "stripe": FirstWord("stripe", "Stripe's events, sweeps, purchases."),
    "purchases": FirstWord("purchases", "Payments that a person decides about."),
    "books": FirstWord("books", "Journal, liability and margin by day (UTC)."),
    "events": FirstWord("events.command", "Who listens to events, and what they were told."),
    "notices": FirstWord("books", "What the operator's app was told; exit 1 while some are dead."),
    "flags": FirstWord("flags", "Kill switches that win over proxy.toml."),
    "admin": FirstWord("admin", "Create, list, change, revoke admin keys."),
    "audit": FirstWord("admin", "Verify and export the audit log."),
    "reconcile": FirstWord("jobs", "Check that everything agrees; exit 1 with a list when it does not."),
    "finance": FirstWord("jobs", "Compute daily figures; exit 1 when a finished day's margin was below target."),
    "costs": FirstWord("jobs", "Compare our cost of a day with OpenAI's; exit 1 when they differ."),
    "jobs": FirstWord("jobs", "The scheduled jobs."),
    "findings": FirstWord("jobs", "What the jobs found."),
    "upstreams": FirstWord("upstreams.command", "Health, load, errors and spend of each upstream."),
    "rebuild": FirstWord("balances", "Rebuild the balance store from the ledger."),
    "drain": FirstWord("balances", "Flush all that is pending, then report."),
}
"""In the order of the help."""
