"""`tollkeeper smoke`: the runbook's T-0 against a running server, with an account of its own, step by step.

me → buy → the webhook again → a call, JSON and streamed → reconcile → 402. What a customer does goes over HTTP with the
account's key; what the books say is read from SQL beside the server. The first step that fails ends it; the account is
blocked either way.
"""

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from billing.ledger.accounts import KeyRules
from billing.money.amounts import MoneyError, display_credits, millicredits, package_credits, parse_credits
from billing.money.errors import BillingError
from billing.payments.stripe.inbox import Inbox
from proxy.cli.context import Context, Result, actor, who
from proxy.cli.preflight.run import as_result
from proxy.cli.preflight.site import Check, base_url_of, is_private, words

STEP_SECONDS = 20.0
PAUSE_SECONDS = 0.1
MOST_ROWS = 1_000
ME_FIELDS = (
    "balanceMillicredits",
    "balanceCredits",
    "balanceUsd",
    "packages",
    "activeRates",
    "recentLedger",
    "recentUsage",
)
STRIPE_HOST, TEST_SESSION = ".stripe.com", "cs_test_"
LOOK = "`tollkeeper preflight` names the cause"
NOT_PAID = (
    "paid and no credits: the webhook did not arrive or was refused. STRIPE_WEBHOOK_SECRET must be this endpoint's own; "
    f"see `tollkeeper stripe inbox`. {LOOK}; `tollkeeper stripe sweep` credits what was missed"
)
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
    "store_unavailable": "Redis or SQL does not answer: look at /readyz and at those servers",
    "checkout_failed": "Stripe refuses the payment page: check STRIPE_API_KEY's rights, success_url and cancel_url",
    "purchases_unavailable": "set STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET and restart the server, or run with --skip-purchase",
    "purchases_disabled": "`tollkeeper flags set purchase_enabled true --reason ...`, or run with --skip-purchase",
    "charging_paused": "`tollkeeper flags set charging_enabled true --reason ...`",
}


class StepFailed(Exception):
    """A step did not do what it must."""

    def __init__(self, found: str, fix: str) -> None:
        """What was found, and what to do."""
        super().__init__(found)
        self.found, self.fix = found, fix


@dataclass(slots=True)
class Run:
    """One smoke test."""

    context: Context
    http: httpx.AsyncClient
    base: str
    account_id: str = ""
    key: str = ""
    purchase: dict[str, Any] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    # -- what a customer sees ---------------------------------------------------------------------

    async def ask(self, method: str, path: str, status: int, *, key: str = "", **sent: Any) -> httpx.Response:
        """A request with the account's key. Raises StepFailed unless it is answered with that status."""
        headers = {"Authorization": f"Bearer {key or self.key}", **sent.pop("headers", {})}
        try:
            answer = await self.http.request(method, self.base + path, headers=headers, **sent)
        except httpx.HTTPError as error:
            raise StepFailed(
                f"{self.base} is not reached: {words(error)}", "start the server, or name it with --url"
            ) from None
        if answer.status_code != status:
            raise refusal(answer, f"{method} {path}")
        return answer

    async def me(self) -> dict[str, Any]:
        """GET /api/billing/me."""
        return told(await self.ask("GET", "/api/billing/me", 200))

    async def balance_is(self, wanted: int, seconds: float, fix: str) -> int:
        """Wait for a balance in millicredits. Raises StepFailed."""
        deadline, balance = time.monotonic() + seconds, 0
        while True:
            balance = int((await self.me())["balanceMillicredits"])
            if balance == wanted:
                return balance
            if time.monotonic() > deadline:
                found = f"the balance is {display_credits(balance)} credits, not {display_credits(wanted)}, after {seconds:.0f} s"
                raise StepFailed(found, fix)
            await asyncio.sleep(PAUSE_SECONDS)

    async def rows(self) -> list[dict[str, Any]]:
        """The account's ledger, from SQL."""
        return await self.context.ledger.transfers_of(self.account_id, MOST_ROWS)

    # -- steps ------------------------------------------------------------------------------------

    async def ready(self) -> str:
        """The server serves."""
        try:
            answer = await self.http.get(f"{self.base}/readyz")
        except httpx.HTTPError as error:
            raise StepFailed(
                f"{self.base} is not reached: {words(error)}", "start the server, or name it with --url"
            ) from None
        if answer.status_code != httpx.codes.OK:
            raise StepFailed(
                f"/readyz: {answer.text[:300]}",
                "bring back the store that it names (sql: the database; balances: Redis)",
            )
        return f"{self.base}/readyz is green"

    async def open(self) -> str:
        """An internal account."""
        self.account_id, self.key = await self.account("smoke test")
        return f"{self.account_id}, its key works for this test only"

    async def account(self, name: str) -> tuple[str, str]:
        """A new account and its key, noted for the clean-up."""
        accounts = self.context.accounts
        account_id = await accounts.create(name, who())
        self.made.append(account_id)
        _, secret = await accounts.create_key(account_id, KeyRules(), who())
        return account_id, secret

    async def sees_itself(self) -> str:
        """GET /api/billing/me has all that the runbook names."""
        me = await self.me()
        missing = [name for name in ME_FIELDS if name not in me]
        if missing or me["balanceMillicredits"] != "0":
            raise StepFailed(
                f"lacks {', '.join(missing)}" if missing else "a new account has a balance", "--url is another server"
            )
        if not me["activeRates"]:
            raise StepFailed(
                "there are no rates", "activate a rate card (`tollkeeper rates activate`), and look at model_allowlist"
            )
        return f"200: balance 0, {len(me['packages'])} packages, {len(me['activeRates'])} rates"

    async def buy(self) -> str:
        """Credits come in: exactly one purchase entry, and the package's credits."""
        given = self.context.arguments
        package = next((row for row in (await self.me())["packages"] if row["code"] == given.package), None)
        if package is None:
            raise StepFailed(
                f"there is no package {given.package!r}", "write it in [[packages]], or name another with --package"
            )
        wanted = int(package["millicredits"])
        if given.skip_purchase:
            await self.context.ledger.grant(
                self.account_id, millicredits(wanted), f"smoke:{self.account_id}", actor(), "smoke test", who()
            )
            await self.balance_is(
                wanted, STEP_SECONDS, "the grant is in SQL and not live: is a jobs process running? Does Redis answer?"
            )
            return f"skipped; {display_credits(wanted)} credits were granted instead"
        answer = await self.ask("POST", "/api/billing/checkout", 201, json={"packageCode": given.package})
        self.purchase = told(answer)
        seconds = await self.pay()
        await self.balance_is(wanted, seconds, NOT_PAID)
        paid, bonus = package_credits(package["usd"], package["bonusPercent"])
        entries = [(row["kind"], row["effect"], row["reference_id"]) for row in await self.rows()]
        expected = [("purchase", paid, self.purchase["id"])] + (
            [("purchase_bonus", bonus, self.purchase["id"])] if bonus else []
        )
        if sorted(entries) != sorted(expected):
            raise StepFailed(
                f"the ledger has {entries}", "`tollkeeper reconcile`; switch purchases off until this is understood"
            )
        return f"{given.package} bought: one purchase entry, {display_credits(wanted):,} credits"

    @property
    def simulator(self) -> str:
        """The simulator that made the payment page; "" when it is Stripe's own."""
        parts = urlsplit(self.purchase.get("url", ""))
        host, ours = parts.hostname or "", self.context.settings.stripe.api_base
        made_up = self.purchase.get("sessionId", "").startswith(TEST_SESSION) and not f".{host}".endswith(STRIPE_HOST)
        return f"{parts.scheme}://{parts.netloc}" if made_up and (ours or is_private(host)) else ""

    async def pay(self) -> float:
        """Pay the page, or let a person do it; how many seconds the credits may take."""
        if not self.simulator:
            print(
                f"Pay this page now (waiting {self.context.arguments.wait} s):\n\n  {self.purchase['url']}\n",
                file=sys.stderr,
                flush=True,
            )
            return float(self.context.arguments.wait)
        try:
            paid = await self.http.post(
                f"{self.simulator}/__stripe/sessions/{self.purchase['sessionId']}/pay", json={"outcome": "succeed"}
            )
        except httpx.HTTPError as error:
            raise StepFailed(f"the payment page is not reached: {words(error)}", "start Stripe's simulator") from None
        if not paid.is_success:
            raise StepFailed(f"the simulator does not take the payment ({paid.status_code})", "look at its output")
        return STEP_SECONDS

    async def webhook_again(self) -> str:
        """What was delivered is delivered again: no second grant."""
        inbox, session = Inbox(self.context.database), self.purchase["sessionId"]
        known = await inbox.of_object(session)
        if not known:
            raise StepFailed(
                f"no event about {session} was received", f"the sweeper credited it, not the webhook: {LOOK}"
            )
        before, balance = await self.rows(), (await self.me())["balanceMillicredits"]
        resent = 0
        if self.simulator:
            for event_id in known:
                answer = await self.http.post(f"{self.simulator}/__stripe/events/{event_id}/resend")
                resent += answer.is_success
            await self.http.post(
                f"{self.simulator}/__stripe/drain", json={"timeout_s": STEP_SECONDS}, timeout=STEP_SECONDS + 5
            )
        for event_id in known:  # and handled once more, which is harder than being delivered once more
            await inbox.replay(event_id)
        await self.handled(inbox, known)
        after = await self.rows()
        if len(after) != len(before) or (await self.me())["balanceMillicredits"] != balance:
            raise StepFailed(
                "a repeated webhook changed the balance",
                "`tollkeeper flags set purchase_enabled false --reason ...` and report it",
            )
        if sorted(await inbox.of_object(session)) != sorted(known):
            raise StepFailed("a repeated event was stored twice", "`tollkeeper stripe inbox` and report it")
        repeats = f"{resent} delivered again, " if self.simulator else ""
        return f"{repeats}{len(known)} handled again: one entry, the same balance"

    async def handled(self, inbox: Inbox, events: list[str]) -> None:
        """Wait until none of these waits. Raises StepFailed."""
        deadline = time.monotonic() + STEP_SECONDS
        while {(await inbox.get(event_id))["state"] for event_id in events} & {"pending", "parked"}:
            if time.monotonic() > deadline:
                raise StepFailed(
                    "events stay unhandled",
                    "is a jobs process running? `tollkeeper stripe inbox --state parked` says why",
                )
            await asyncio.sleep(PAUSE_SECONDS)

    async def call(self) -> str:
        """One JSON call: header, usage row, ledger entry and balance agree."""
        before = int((await self.me())["balanceMillicredits"])
        answer = await self.ask("POST", "/v1/chat/completions", 200, json=self.body())
        said = answer.headers.get("x-credits-charged", "")
        return await self.charged(before, answer.headers.get("x-request-id", ""), said)

    async def stream(self) -> str:
        """The same, streamed: the usage chunk says what it cost."""
        before = int((await self.me())["balanceMillicredits"])
        body = {**self.body(), "stream": True, "stream_options": {"include_usage": True}}
        answer = await self.ask("POST", "/v1/chat/completions", 200, json=body, headers={"X-Credits-Usage": "1"})
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        if not lines or lines[-1] != "[DONE]":
            raise StepFailed(
                "the stream did not end with [DONE]",
                "a proxy between buffers or cuts streams: switch its buffering off",
            )
        usage: dict[str, Any] = next(
            (found for line in reversed(lines[:-1]) if (found := json.loads(line).get("usage"))), {}
        )
        return await self.charged(before, answer.headers.get("x-request-id", ""), str(usage.get("cost_credits", "")))

    def body(self) -> dict[str, Any]:
        """The smallest question."""
        return {
            "model": self.context.arguments.model,
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": 16,
        }

    async def charged(self, before: int, request_id: str, said: str) -> str:
        """One request's charge, by every record of it. Raises StepFailed."""
        try:
            charged = parse_credits(said)
        except MoneyError:
            raise StepFailed(
                f"the answer says no charge ({said[:40]!r})",
                "a proxy in front takes headers away, or --url is not Tollkeeper",
            ) from None
        if charged <= 0:
            fix = "charging is off, or the account is outside the rollout: add it to rollout.include, see `tollkeeper flags list`"
            raise StepFailed("the call was free", fix)
        await self.balance_is(
            before - charged, STEP_SECONDS, "the balance did not fall by the charge: `tollkeeper reconcile`"
        )
        deadline = time.monotonic() + STEP_SECONDS
        while True:
            usage = [
                row
                for row in await self.context.ledger.usage_of(self.account_id, MOST_ROWS)
                if row["charge_id"] == request_id
            ]
            entries = [
                row["effect"]
                for row in await self.rows()
                if (row["kind"], row["reference_id"]) == ("usage", request_id)
            ]
            if usage and entries:
                break
            if time.monotonic() > deadline:
                raise StepFailed(
                    "the charge is not in SQL", "is a jobs process running? Look at tollkeeper_journal_lag_seconds"
                )
            await asyncio.sleep(PAUSE_SECONDS)
        if [row["charged_millicredits"] for row in usage] != [charged] or entries != [-charged]:
            raise StepFailed(
                f"answer {charged}, usage {usage[0]['charged_millicredits']}, ledger {entries}",
                "`tollkeeper reconcile`",
            )
        return f"{request_id}: {said} credits in the answer, the usage row, the ledger and the balance"

    async def reconciles(self) -> str:
        """Ledger, usage and balance of the account agree."""
        rows, posted = await self.rows(), await self.context.ledger.posted(self.account_id)
        usage = sum(
            row["charged_millicredits"] for row in await self.context.ledger.usage_of(self.account_id, MOST_ROWS)
        )
        me = await self.me()
        booked = -sum(row["effect"] for row in rows if row["kind"] == "usage")
        figures = {
            "sum of the ledger": sum(row["effect"] for row in rows),
            "posted": posted.balance,
            "live": int(me["balanceMillicredits"]),
        }
        if len(set(figures.values())) != 1 or usage != booked or int(me["heldMillicredits"]):
            found = f"{figures}, usage {usage} vs booked {booked}, held {me['heldMillicredits']}"
            raise StepFailed(found, "`tollkeeper reconcile`; `tollkeeper rebuild` when only the live balance is wrong")
        return f"ledger, posted and live balance are {display_credits(posted.balance)} credits; usage = deductions"

    async def runs_out(self) -> str:
        """An account without credits gets a 402 that says what to do."""
        _, key = await self.account("smoke test, without credits")
        answer = await self.ask("POST", "/v1/chat/completions", 402, key=key, json=self.body())
        error = told(answer).get("error", {})
        lacks = [name for name in ("requiredCredits", "currentCredits", "topUpUrl") if name not in error]
        if lacks or not error["topUpUrl"]:
            raise StepFailed(
                f"the 402 lacks {', '.join(lacks) or 'a topUpUrl'}",
                "set purchases.top_up_url; look for a proxy that rewrites errors",
            )
        return f"402: {error['requiredCredits']} needed, {error['currentCredits']} there, top up at {error['topUpUrl']}"

    async def cleaned(self) -> Check:
        """Block what was made, unless it is to be kept."""
        if self.context.arguments.keep:
            return Check("smoke", "clean-up", "PASS", f"kept: {self.account_id}, key {self.key}")
        try:
            for account_id in self.made:
                await self.context.accounts.set_status(account_id, "blocked", who(), "smoke test is over")
        except BillingError as error:
            fix = f"`tollkeeper account block` for {', '.join(self.made)}, once the database answers"
            return Check("smoke", "clean-up", "FAIL", str(error), fix)
        real = "; refund the payment at Stripe if it was real" if self.purchase else ""
        return Check("smoke", "clean-up", "PASS", f"{len(self.made)} accounts blocked{real}")


async def smoke(context: Context) -> Result:
    """Run every step; the table, and exit code 1 when one failed."""
    base = (context.arguments.url or base_url_of(context.settings)).rstrip("/")
    checks: list[Check] = []
    async with httpx.AsyncClient(timeout=60, follow_redirects=False) as http:
        run = Run(context, http, base)
        steps = [("ready", run.ready), ("account", run.open), ("me", run.sees_itself), ("purchase", run.buy)]
        if not context.arguments.skip_purchase:
            steps.append(("webhook again", run.webhook_again))
        steps += [("call", run.call), ("stream", run.stream), ("reconcile", run.reconciles), ("402", run.runs_out)]
        for name, step in steps:
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
        if run.made:
            checks.append(await run.cleaned())
    result, text, code = as_result(checks)
    return {**result, "accountId": run.account_id, "purchaseId": run.purchase.get("id")}, text, code


def told(answer: httpx.Response) -> dict[str, Any]:
    """The object that an answer is. Raises StepFailed."""
    with contextlib.suppress(ValueError):
        found = answer.json()
        if isinstance(found, dict):
            return found
    raise StepFailed(
        f"{answer.url.path} is answered with {answer.text[:80]!r}", "something else answers there: correct --url"
    )


def refusal(answer: httpx.Response, what: str) -> StepFailed:
    """An answer that should have been another, with its likely cause."""
    code = message = ""
    try:
        error = answer.json()["error"]
        code, message = str(error.get("code") or ""), str(error.get("message") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        message = "not an answer of Tollkeeper's"
    fix = CODES.get(code) or FIXES.get(answer.status_code) or f"look at the server's log; {LOOK}"
    return StepFailed(f"{what} is answered with {answer.status_code} ({code}): {message}"[:400], fix)
