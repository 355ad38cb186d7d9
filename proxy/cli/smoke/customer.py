"""A customer of a smoke test: what it does goes over HTTP with its key; its books are read from SQL."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from billing.ledger.accounts import KeyRules
from billing.ledger.transfers import TransferRow
from billing.money.amounts import display_credits, millicredits
from billing.money.errors import BillingError
from config.errors import ConfigError
from proxy.cli.context import Context, who
from proxy.cli.preflight.site import Check, error_text
from proxy.cli.stripe import open_stripe

PAUSE_SECONDS = 0.1
MOST_ROWS = 1_000
LOOK = "`tollkeeper preflight` names the cause"
FIXES = {
    401: "the server does not know this key: --url names another server than the configuration's database belongs to",
    403: 'the rollout shuts the account out: set rollout.outside = "free", or look at `tollkeeper flags list`',
    404: "the model is not sold here: name another with --model, or look at model_allowlist and the rate card",
    502: "OpenAI is not reached, or broke off: look at upstream.base_url and the way out",
    503: "a store is away or charging is paused: look at /readyz, and at `tollkeeper flags list`",
}
CODES = {
    "upstream_authentication_failed": "OpenAI does not accept OPENAI_API_KEY: replace it and restart the server",
    "insufficient_quota": "OpenAI's own quota is used up: raise the project's budget there",
    "upstream_account": "OpenAI does not serve this account or project: the log line upstream_account_refused says why",
    "upstream_unexpected": "the log line upstream_unexpected says what came: look at upstream.base_url and its path",
    "store_unavailable": "Redis or SQL does not answer: look at /readyz and at those servers",
    "checkout_failed": "Stripe refuses the payment page: check STRIPE_API_KEY's rights, success_url and cancel_url",
    "purchases_unavailable": (
        "set STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET and restart the server, or run with --skip-purchase"
    ),
    "purchases_disabled": "`tollkeeper flags set purchase_enabled true --reason ...`, or run with --skip-purchase",
    "charging_paused": "`tollkeeper flags set charging_enabled true --reason ...`",
}


class StepFailed(Exception):
    """A step did not do what it must."""

    def __init__(self, found: str, fix: str) -> None:
        """Say the finding, and its fix."""
        super().__init__(found)
        self.found, self.fix = found, fix


@dataclass(slots=True)
class Customer:
    """An account of the test's own, and the others it made."""

    context: Context
    http: httpx.AsyncClient
    base: str
    account_id: str = ""
    key: str = ""
    made: list[str] = field(default_factory=list)

    async def ask(self, method: str, path: str, status: int, *, key: str = "", **sent: Any) -> httpx.Response:
        """Send a request with the account's key. Raises StepFailed unless it is answered with that status."""
        headers = {"Authorization": f"Bearer {key or self.key}", **sent.pop("headers", {})}
        try:
            answer = await self.http.request(method, self.base + path, headers=headers, **sent)
        except httpx.HTTPError as error:
            raise StepFailed(
                f"{self.base} is not reached: {error_text(error)}", "start the server, or name it with --url"
            ) from None
        if answer.status_code != status:
            raise refusal(answer, f"{method} {path}")
        return answer

    async def me(self) -> dict[str, Any]:
        """Ask GET /api/billing/me."""
        return json_object(await self.ask("GET", "/api/billing/me", 200))

    async def wait_balance(self, wanted: int, seconds: float, fix: str) -> int:
        """Wait for a balance in millicredits. Raises StepFailed."""
        deadline, balance = time.monotonic() + seconds, 0
        while True:
            balance = int((await self.me())["balanceMillicredits"])
            if balance == wanted:
                return balance
            if time.monotonic() > deadline:
                found = f"the balance is {display_credits(balance)} credits, not {display_credits(wanted)}"
                raise StepFailed(f"{found}, after {seconds:.0f} s", fix)
            await asyncio.sleep(PAUSE_SECONDS)

    async def ledger_rows(self) -> list[TransferRow]:
        """Read the account's ledger, from SQL."""
        return await self.context.ledger.transfers_of(self.account_id, MOST_ROWS)

    async def create_account(self, name: str) -> tuple[str, str]:
        """Create an account and its key; it is remembered for the clean-up."""
        accounts = self.context.accounts
        account_id = await accounts.create(name, who())
        self.made.append(account_id)
        _, secret = await accounts.create_key(account_id, KeyRules(), who())
        return account_id, secret

    async def clean_up(self, *, paid: bool) -> Check:
        """Give back what is left and block the accounts that were made, unless they are to be kept.

        So that no test stays in what is owed. `paid`: a payment page was opened.
        """
        if self.context.arguments.keep:
            return Check("smoke", "clean-up", "PASS", f"kept: {self.account_id}, key {self.key}")
        real = ""
        try:
            if paid:
                real = await self._give_back()
            for account_id in self.made:
                left = (await self.context.ledger.posted(account_id)).balance
                if left > 0:
                    reference = f"smoke:{account_id}:over"
                    await self.context.ledger.grant(
                        account_id, millicredits(-left), reference, who().actor, "smoke test is over"
                    )
                await self.context.accounts.set_status(account_id, "blocked", who(), "smoke test is over")
        except BillingError as error:
            fix = f"`tollkeeper account block` for {', '.join(self.made)}, once the database answers"
            return Check("smoke", "clean-up", "FAIL", str(error), fix)
        return Check("smoke", "clean-up", "PASS", f"{len(self.made)} accounts blocked{real}")

    async def _give_back(self) -> str:
        """Give the payment back, but for what was used; return what is to be said of it."""
        by_hand = "; refund the payment at Stripe if it was real"
        try:
            left = (await self.context.ledger.posted(self.account_id)).balance
            async with open_stripe(self.context) as money:
                parts = await (await money.parts()).refunds.refund_rest(
                    self.account_id, left, who(), "smoke test is over"
                )
        except (BillingError, ConfigError) as error:
            return f"{by_hand} ({error})"
        cents = sum(part.made.cents for part in parts if part.made)
        return f"; ${cents // 100}.{cents % 100:02} given back" if cents else by_hand


def json_object(answer: httpx.Response) -> dict[str, Any]:
    """Read an answer that is a JSON object. Raises StepFailed."""
    with contextlib.suppress(ValueError):
        found = answer.json()
        if isinstance(found, dict):
            return found
    raise StepFailed(
        f"{answer.url.path} is answered with {answer.text[:80]!r}", "something else answers there: correct --url"
    )


def refusal(answer: httpx.Response, what: str) -> StepFailed:
    """Failure of a step whose answer should have been another, with its likely cause."""
    code = message = ""
    try:
        error = answer.json()["error"]
        code, message = str(error.get("code") or ""), str(error.get("message") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        message = "not an answer of Tollkeeper's"
    fix = CODES.get(code) or FIXES.get(answer.status_code) or f"look at the server's log; {LOOK}"
    return StepFailed(f"{what} is answered with {answer.status_code} ({code}): {message}"[:400], fix)
