"""`tollkeeper smoke`: the runbook's T-0 against a running server, with an account of its own, step by step.

The first step that fails ends it; the account is blocked either way.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from billing.money.errors import BillingError
from proxy.cli.context import Add, Context, Result, not_negative
from proxy.cli.preflight.report import as_result
from proxy.cli.preflight.site import Check, base_url_of
from proxy.cli.smoke.customer import LOOK, Customer, StepFailed
from proxy.cli.smoke.steps import Steps


def register(commands: Any, add: Add) -> None:
    """Add the command to the parser."""
    try_ = add(
        commands,
        "smoke",
        _smoke,
        "Me, buy, call, reconcile, 402: against a running server, with an account of its own.",
    )
    try_.add_argument("--url", help="the server (default: portal.public_url, else listen.host and port)")
    try_.add_argument("--model", default="gpt-6-luna", help="what the calls ask (default gpt-6-luna)")
    try_.add_argument("--package", default="starter", help="what is bought (default starter)")
    try_.add_argument("--skip-purchase", action="store_true", help="grant the package's credits instead of buying them")
    try_.add_argument(
        "--wait", type=not_negative, default=300, metavar="SECONDS", help="how long to wait for a payment by hand"
    )
    try_.add_argument("--keep", action="store_true", help="leave the account open, and print its key")


def _table(steps: Steps, *, purchase: bool) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
    """Name of each step, and what runs it."""
    return [
        ("ready", steps.check_ready),
        ("account", steps.open_account),
        ("me", steps.check_me),
        ("purchase", steps.buy),
        *([("webhook again", steps.repeat_webhook)] if purchase else []),
        ("call", steps.call),
        ("stream", steps.stream),
        ("reconcile", steps.check_books),
        ("402", steps.check_refusal),
    ]


async def _smoke(context: Context) -> Result:
    base = (context.arguments.url or base_url_of(context.settings)).rstrip("/")
    checks: list[Check] = []
    async with httpx.AsyncClient(timeout=60, follow_redirects=False) as http:
        customer = Customer(context, http, base)
        steps = Steps(customer)
        for name, step in _table(steps, purchase=not context.arguments.skip_purchase):
            try:
                checks.append(Check("smoke", name, "PASS", await step()))
            except StepFailed as failed:
                checks.append(Check("smoke", name, "FAIL", failed.found, failed.fix))
                break
            except BillingError as error:
                checks.append(
                    Check("smoke", name, "FAIL", str(error), f"the database beside this command does not do it: {LOOK}")
                )
                break
        if customer.made:
            checks.append(await customer.clean_up(paid=bool(steps.purchase)))
    result, text, code = as_result(checks)
    return {**result, "accountId": customer.account_id, "purchaseId": steps.purchase.get("id")}, text, code
