"""Steps of a smoke test, each of which says what it found.

me → buy → the webhook again → a call, JSON and streamed → reconcile → 402.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from billing.money.amounts import MoneyError, display_credits, millicredits, package_credits, parse_credits
from billing.payments.stripe.inbox import Inbox
from proxy.cli.context import actor, who
from proxy.cli.preflight.site import error_text, is_private
from proxy.cli.smoke.customer import LOOK, MOST_ROWS, PAUSE_SECONDS, Customer, StepFailed, json_object

STEP_SECONDS = 20.0
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
NOT_PAID = (
    "paid and no credits: the webhook did not arrive or was refused. STRIPE_WEBHOOK_SECRET must be this endpoint's "
    f"own; see `tollkeeper stripe inbox`. {LOOK}; `tollkeeper stripe sweep` credits what was missed"
)


@dataclass(slots=True)
class Steps:
    """The steps, in their order. Each raises StepFailed."""

    customer: Customer
    purchase: dict[str, Any] = field(default_factory=dict)

    async def check_ready(self) -> str:
        """Check that the server serves."""
        try:
            answer = await self.customer.http.get(f"{self.customer.base}/readyz")
        except httpx.HTTPError as error:
            raise StepFailed(
                f"{self.customer.base} is not reached: {error_text(error)}", "start the server, or name it with --url"
            ) from None
        if answer.status_code != httpx.codes.OK:
            raise StepFailed(
                f"/readyz: {answer.text[:300]}",
                "bring back the store that it names (sql: the database; balances: Redis)",
            )
        return f"{self.customer.base}/readyz is green"

    async def open_account(self) -> str:
        """Create an internal account."""
        self.customer.account_id, self.customer.key = await self.customer.create_account("smoke test")
        return f"{self.customer.account_id}, its key works for this test only"

    async def check_me(self) -> str:
        """Check that GET /api/billing/me has all that the runbook names."""
        me = await self.customer.me()
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
        """Buy credits: exactly one purchase entry, and the package's credits."""
        given = self.customer.context.arguments
        package = next((row for row in (await self.customer.me())["packages"] if row["code"] == given.package), None)
        if package is None:
            raise StepFailed(
                f"there is no package {given.package!r}", "write it in [[packages]], or name another with --package"
            )
        wanted = int(package["millicredits"])
        if given.skip_purchase:
            await self.customer.context.ledger.grant(
                self.customer.account_id,
                millicredits(wanted),
                f"smoke:{self.customer.account_id}",
                actor(),
                "smoke test",
                who(),
            )
            await self.customer.wait_balance(
                wanted, STEP_SECONDS, "the grant is in SQL and not live: is a jobs process running? Does Redis answer?"
            )
            return f"skipped; {display_credits(wanted)} credits were granted instead"
        answer = await self.customer.ask("POST", "/api/billing/checkout", 201, json={"packageCode": given.package})
        self.purchase = json_object(answer)
        seconds = await self.pay()
        await self.customer.wait_balance(wanted, seconds, NOT_PAID)
        paid, bonus = package_credits(package["usd"], package["bonusPercent"])
        entries = [(row.kind, row.effect, row.reference_id) for row in await self.customer.ledger_rows()]
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
        """Address of the simulator that made the payment page; "" when it is Stripe's own."""
        parts = urlsplit(self.purchase.get("url", ""))
        host, ours = parts.hostname or "", self.customer.context.settings.stripe.api_base
        made_up = self.purchase.get("sessionId", "").startswith(TEST_SESSION) and not f".{host}".endswith(STRIPE_HOST)
        return f"{parts.scheme}://{parts.netloc}" if made_up and (ours or is_private(host)) else ""

    async def pay(self) -> float:
        """Pay the page, or let a person do it; return the seconds that the credits may take."""
        if not self.simulator:
            print(
                f"Pay this page now (waiting {self.customer.context.arguments.wait} s):\n\n  {self.purchase['url']}\n",
                file=sys.stderr,
                flush=True,
            )
            return float(self.customer.context.arguments.wait)
        try:
            paid = await self.customer.http.post(
                f"{self.simulator}/__stripe/sessions/{self.purchase['sessionId']}/pay", json={"outcome": "succeed"}
            )
        except httpx.HTTPError as error:
            raise StepFailed(
                f"the payment page is not reached: {error_text(error)}", "start Stripe's simulator"
            ) from None
        if not paid.is_success:
            raise StepFailed(f"the simulator does not take the payment ({paid.status_code})", "look at its output")
        return STEP_SECONDS

    async def repeat_webhook(self) -> str:
        """Have the deliveries made and handled again: no second grant."""
        inbox, session = Inbox(self.customer.context.database), self.purchase["sessionId"]
        deadline = time.monotonic() + STEP_SECONDS
        while not (known := await inbox.of_object(session)):  # the sweeper may have credited it before the webhook came
            if time.monotonic() > deadline:
                raise StepFailed(f"no event about {session} was received", f"the sweeper alone credited it: {LOOK}")
            await asyncio.sleep(PAUSE_SECONDS)
        before, balance = await self.customer.ledger_rows(), (await self.customer.me())["balanceMillicredits"]
        resent = 0
        if self.simulator:
            for event_id in known:
                answer = await self.customer.http.post(f"{self.simulator}/__stripe/events/{event_id}/resend")
                resent += answer.is_success
            await self.customer.http.post(
                f"{self.simulator}/__stripe/drain", json={"timeout_s": STEP_SECONDS}, timeout=STEP_SECONDS + 5
            )
        for event_id in known:  # and handled once more, which is harder than being delivered once more
            await inbox.replay(event_id)
        await self.wait_handled(inbox, known)
        after = await self.customer.ledger_rows()
        if len(after) != len(before) or (await self.customer.me())["balanceMillicredits"] != balance:
            raise StepFailed(
                "a repeated webhook changed the balance",
                "`tollkeeper flags set purchase_enabled false --reason ...` and report it",
            )
        if sorted(await inbox.of_object(session)) != sorted(known):
            raise StepFailed("a repeated event was stored twice", "`tollkeeper stripe inbox` and report it")
        repeats = f"{resent} delivered again, " if self.simulator else ""
        return f"{repeats}{len(known)} handled again: one entry, the same balance"

    async def wait_handled(self, inbox: Inbox, events: list[str]) -> None:
        """Wait until none of these waits. Raises StepFailed."""
        deadline = time.monotonic() + STEP_SECONDS
        while {(await inbox.get(event_id)).state for event_id in events} & {"pending", "parked"}:
            if time.monotonic() > deadline:
                raise StepFailed(
                    "events stay unhandled",
                    "is a jobs process running? `tollkeeper stripe inbox --state parked` says why",
                )
            await asyncio.sleep(PAUSE_SECONDS)

    async def call(self) -> str:
        """Make one JSON call: header, usage row, ledger entry and balance agree."""
        before = int((await self.customer.me())["balanceMillicredits"])
        answer = await self.customer.ask("POST", "/v1/chat/completions", 200, json=self.question())
        said = answer.headers.get("x-credits-charged", "")
        return await self.check_charge(before, answer.headers.get("x-request-id", ""), said)

    async def stream(self) -> str:
        """Make one streamed call: the usage chunk says what it cost."""
        before = int((await self.customer.me())["balanceMillicredits"])
        body = {**self.question(), "stream": True, "stream_options": {"include_usage": True}}
        answer = await self.customer.ask(
            "POST", "/v1/chat/completions", 200, json=body, headers={"X-Credits-Usage": "1"}
        )
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        if not lines or lines[-1] != "[DONE]":
            raise StepFailed(
                "the stream did not end with [DONE]",
                "a proxy between buffers or cuts streams: switch its buffering off",
            )
        usage: dict[str, Any] = next(
            (found for line in reversed(lines[:-1]) if (found := json.loads(line).get("usage"))), {}
        )
        return await self.check_charge(
            before, answer.headers.get("x-request-id", ""), str(usage.get("cost_credits", ""))
        )

    def question(self) -> dict[str, Any]:
        """Body of the smallest question."""
        return {
            "model": self.customer.context.arguments.model,
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_completion_tokens": 16,
        }

    async def check_charge(self, before: int, request_id: str, said: str) -> str:
        """Check one request's charge by every record of it. Raises StepFailed."""
        try:
            charged = parse_credits(said)
        except MoneyError:
            raise StepFailed(
                f"the answer says no charge ({said[:40]!r})",
                "a proxy in front takes headers away, or --url is not Tollkeeper",
            ) from None
        if charged <= 0:
            fix = (
                "charging is off, or the account is outside the rollout: add it to rollout.include, "
                "see `tollkeeper flags list`"
            )
            raise StepFailed("the call was free", fix)
        await self.customer.wait_balance(
            before - charged, STEP_SECONDS, "the balance did not fall by the charge: `tollkeeper reconcile`"
        )
        deadline = time.monotonic() + STEP_SECONDS
        while True:
            usage = [
                row
                for row in await self.customer.context.ledger.usage_of(self.customer.account_id, MOST_ROWS)
                if row.charge_id == request_id
            ]
            entries = [
                row.effect
                for row in await self.customer.ledger_rows()
                if (row.kind, row.reference_id) == ("usage", request_id)
            ]
            if usage and entries:
                break
            if time.monotonic() > deadline:
                raise StepFailed(
                    "the charge is not in SQL", "is a jobs process running? Look at tollkeeper_journal_lag_seconds"
                )
            await asyncio.sleep(PAUSE_SECONDS)
        if [row.charged_millicredits for row in usage] != [charged] or entries != [-charged]:
            raise StepFailed(
                f"answer {charged}, usage {usage[0].charged_millicredits}, ledger {entries}",
                "`tollkeeper reconcile`",
            )
        return f"{request_id}: {said} credits in the answer, the usage row, the ledger and the balance"

    async def check_books(self) -> str:
        """Check that ledger, usage and balance of the account agree."""
        rows, posted = (
            await self.customer.ledger_rows(),
            await self.customer.context.ledger.posted(self.customer.account_id),
        )
        usage = sum(
            row.charged_millicredits
            for row in await self.customer.context.ledger.usage_of(self.customer.account_id, MOST_ROWS)
        )
        me = await self.customer.me()
        booked = -sum(row.effect for row in rows if row.kind == "usage")
        figures = {
            "sum of the ledger": sum(row.effect for row in rows),
            "posted": posted.balance,
            "live": int(me["balanceMillicredits"]),
        }
        if len(set(figures.values())) != 1 or usage != booked or int(me["heldMillicredits"]):
            found = f"{figures}, usage {usage} vs booked {booked}, held {me['heldMillicredits']}"
            raise StepFailed(found, "`tollkeeper reconcile`; `tollkeeper rebuild` when only the live balance is wrong")
        return f"ledger, posted and live balance are {display_credits(posted.balance)} credits; usage = deductions"

    async def check_refusal(self) -> str:
        """Check that an account without credits gets a 402 that says what to do."""
        _, key = await self.customer.create_account("smoke test, without credits")
        answer = await self.customer.ask("POST", "/v1/chat/completions", 402, key=key, json=self.question())
        error = json_object(answer).get("error", {})
        lacks = [name for name in ("requiredCredits", "currentCredits", "topUpUrl") if name not in error]
        if lacks or not error["topUpUrl"]:
            raise StepFailed(
                f"the 402 lacks {', '.join(lacks) or 'a topUpUrl'}",
                "set purchases.top_up_url; look for a proxy that rewrites errors",
            )
        return f"402: {error['requiredCredits']} needed, {error['currentCredits']} there, top up at {error['topUpUrl']}"
