"""The Credits page: what a customer has, buys, spends and holds keys for. Server-rendered; works without a script.

Sign-in: proxy/credits_page/sign_in.py. The operator's app asks POST /api/portal/sessions with its service key for a
one-time link; the link opens a session that lives in an HttpOnly cookie. Every form carries a token derived from the
session; what a customer sees is the session's account only, and staff who look at it change nothing.
"""

import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.accounting.statements import Statements
from billing.ledger.accounts import Accounts, KeyRules
from billing.ledger.ledger import UsageFilters
from billing.ledger.portal_tokens import DAY_MS, Portal
from billing.money.amounts import MoneyError, decimal_of, millicredits, parse_credits
from billing.money.errors import KeyNotFound, StripeRefused, TooManyCheckouts
from billing.money.holds import Reading
from billing.money.spend_periods import PERIODS
from billing.payments.purchase_store import Purchase, Standing
from billing.payments.recharge.rules import Recharge, Wish
from billing.storage.database import now_ms
from config.secrets import Secret
from proxy.credits_page.responses import Answers
from proxy.credits_page.sign_in import CreditsSignIn, StaffCaller, Visitor
from proxy.customer_api.account import AccountApi
from proxy.customer_api.checkout import OFF, receipt_url
from proxy.customer_api.money_in import MoneyIn
from proxy.customer_api.recharge import is_offered, save_recharge
from proxy.customer_api.statement_file import statement_file
from proxy.gateway.admission import banners
from proxy.web.http import page_cursor, page_cursor_of
from proxy.web.rejections import invalid, not_found
from proxy.web.spend_chart import DAYS, exact, figure, spend_chart
from proxy.web.times import iso_time

log = logging.getLogger("tollkeeper.stripe")

STATIC = {"credits.css": "text/css; charset=utf-8", "credits.js": "text/javascript; charset=utf-8"}
ROWS = 20
LINK_MS = 23 * 3_600_000
"""Payment pages close after a day: an older link to one is not shown."""
KINDS = {
    "purchase": "Purchase",
    "purchase_bonus": "Bonus",
    "usage": "Usage",
    "adjustment": "Adjustment",
    "refund": "Refund",
    "refund_bonus": "Refund of a bonus",
    "dispute": "Dispute",
    "dispute_bonus": "Dispute of a bonus",
}
STATES = {
    "created": ("not paid", "off"),
    "open": ("not paid", "off"),
    "processing": ("payment on its way", "warn"),
    "credited": ("credited", "good"),
    "expired": ("not paid in time", "off"),
    "failed": ("payment failed", "bad"),
    "review": ("being looked at", "warn"),
    "dismissed": ("closed", "off"),
}
"""A purchase's state in words, and how it looks."""
LOOKS = {"disputed": "bad", "refunded": "off", "partly refunded": "warn"}
THANKS = "Thank you. Your credits appear as soon as the payment is confirmed, usually within seconds."
NOT_PAID = "The payment did not go through, and nothing was charged. You can try again below."
REVIEWED = "Thank you. Your payment arrived and needs a look by a person before your credits appear."
NOTHING_LEFT = "You have no credits left, so requests are refused. Buy some below to go on."
DONE = {
    "recharge-on": "Automatic recharge is on.",
    "recharge-off": "Automatic recharge is off. Your card is not charged by itself any more.",
    "revoked": "The key is revoked. Programs that use it stop working within seconds.",
}
"""What the page says after a form, by the word in its address."""
MOST_MONTHS = 36
GROUPED = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class CreditsPage:
    """The handlers and what they need.

    `service_key` None: links are only made by the command line, and by whom `may_open` lets.
    """

    money: MoneyIn
    portal: Portal
    accounts: Accounts
    account_api: AccountApi
    statements: Statements
    service_key: Secret | None
    public_url: str
    may_open: Callable[[Request], Awaitable[StaffCaller | None]] | None = None

    def routes(self) -> list[Route]:
        """What to mount."""
        sign_in = CreditsSignIn(self.portal, self.service_key, self.public_url, self.may_open, self._answers)
        shown = (
            ("/credits", self._credits),
            ("/credits/statement", self._statement),
            ("/credits/receipts/{purchase_id}", self._receipt),
        )
        changes = (
            ("/credits/buy", self._buy),
            ("/credits/recharge", self._recharge),
            ("/credits/cards", self._cards),
            ("/credits/keys", self._create_key),
            ("/credits/keys/revoke", self._revoke_key),
        )
        return [
            *sign_in.routes(),
            Route("/credits/static/{name}", self._static, methods=["GET"]),
            *(Route(path, sign_in.page(handler, for_staff=True), methods=["GET"]) for path, handler in shown),
            *(Route(path, sign_in.page(handler, for_staff=False), methods=["POST"]) for path, handler in changes),
        ]

    @property
    def _answers(self) -> Answers:
        return Answers(self.money)

    # -- the page ---------------------------------------------------------------------------------

    async def _credits(self, request: Request, visitor: Visitor) -> Response:
        services, account, now = self.account_api.services, visitor.account_id, now_ms()
        reading = await services.balances.read(account)
        row, today = await self.accounts.get(account), now // DAY_MS
        content = {
            "token": visitor.csrf,
            "here": f"{request.url.path}?{request.url.query}",
            "account": account,
            "staff": visitor.staff,
            "available": figure(reading.balance - reading.held),
            "balance": figure(reading.balance),
            "held": figure(reading.held),
            "usd": dollars(reading.balance),
            "banners": await self._banners(request, visitor, reading),
            "packages": self._packages(),
            "may_buy": self.money.settings.billing.purchase_enabled and self.money.keys is not None,
            "recharge": await self._recharge_view(account),
            "chart": spend_chart(await self.portal.spend(account, today - DAYS + 1), today),
            "usage": await self._usage_view(account, request.query_params.get("usage")),
            "ledger": await self._ledger_view(account, request.query_params.get("ledger")),
            "purchases": await self._purchases_view(account, request.query_params.get("purchases")),
            "keys": await self._keys_view(account),
            "months": months(row["created_at"], now),
        }
        return self._answers.page("credits.html", content)

    async def _banners(self, request: Request, visitor: Visitor, reading: Reading) -> list[dict[str, Any]]:
        """What the visitor should know first: who they are here, how it went, what is switched off, what is wrong."""
        settings, account, found = self.money.settings, visitor.account_id, []
        if visitor.staff is not None:
            who = f"{visitor.staff.actor}, role {visitor.staff.role}"
            found.append(
                {"text": f"The customer's page, seen as staff by {who}. Nothing can be changed here.", "look": "warn"}
            )
        done = DONE.get(request.query_params.get("done", ""))
        if done is not None:
            found.append({"text": done, "look": "good"})
        found += await self._payment_news(request.query_params.get("session", ""), account)
        found += [{"text": text, "look": "warn"} for text in banners(settings, account)]
        if settings.billing.purchase_enabled and self.money.keys is None:
            found.append({"text": "Credits cannot be bought here yet: no payment provider is set up.", "look": "warn"})
        if reading.balance < 0:
            below = "Your balance is below zero after a refund or a disputed payment. Buy credits to go on."
            found.append({"text": below, "look": "bad"})
        elif reading.balance == 0:
            found.append({"text": NOTHING_LEFT, "look": "warn"})
        return found

    async def _payment_news(self, session_id: str, account: str) -> list[dict[str, Any]]:
        """How the payment went that the customer comes back from."""
        if not session_id:
            return []
        purchase = await self.money.sales.of_session(session_id[:255])
        if purchase is None or purchase.account_id != account:
            return [{"text": THANKS, "look": "good"}]
        if purchase.state == "credited":
            bought = figure(purchase.paid_millicredits + purchase.bonus_millicredits)
            return [{"text": f"Thank you. {bought} credits were added to your balance.", "look": "good"}]
        if purchase.state in ("expired", "failed"):
            return [{"text": NOT_PAID, "look": "bad"}]
        if purchase.state == "review":
            return [{"text": REVIEWED, "look": "warn"}]
        return [{"text": THANKS, "look": "good", "waiting": True}]

    def _packages(self) -> list[dict[str, str]]:
        found = []
        for package in self.money.settings.packages:
            made = self.money.offer(package.code)
            if made is not None:
                bonus = package.bonus_percent if made.bonus else ""
                every = {"code": package.code, "usd": package.usd, "bonus": bonus}
                found.append({**every, "credits": figure(made.paid + made.bonus)})
        return found

    async def _recharge_view(self, account: str) -> dict[str, Any]:
        row, buyer = await self.money.recharges.get(account), await self.money.buyers.find(account)
        return {
            "available": is_offered(self.money),
            "saved": buyer is not None and bool(buyer.payment_method_id),
            "enabled": row is not None and row.enabled,
            "threshold": row.threshold_millicredits // 1_000 if row else 1_000,
            "package": row.package_code if row else "",
            "ceiling": f"{row.monthly_ceiling_cents // 100}.{row.monthly_ceiling_cents % 100:02}" if row else "100.00",
            "message": row.message if row else "",
            "needs_buyer": row is not None and row.state == "action_needed",
            "action_url": row.action_url if row and _opens(row) else "",
        }

    async def _usage_view(self, account: str, cursor: str | None) -> dict[str, Any]:
        rows = await self.account_api.ledger.usage_of(account, ROWS + 1, UsageFilters(before=page_cursor(cursor)))
        following = (
            page_cursor_of(rows[ROWS - 1]["created_at"], rows[ROWS - 1]["charge_id"]) if len(rows) > ROWS else None
        )
        shown = [
            {
                "at": moment(row["created_at"]),
                "model": row["model"],
                "input": f"{row['input_tokens']:,}",
                "output": f"{row['output_tokens']:,}",
                "credits": exact(row["charged_millicredits"]),
                "free": bool(row["free"]),
                "id": row["charge_id"],
            }
            for row in rows[:ROWS]
        ]
        return {"rows": shown, "next": following, "paged": cursor is not None}

    async def _ledger_view(self, account: str, cursor: str | None) -> dict[str, Any]:
        before = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() and len(cursor) < 19 else None
        rows = await self.account_api.ledger.transfers_of(account, ROWS + 1, before)
        shown = [
            {
                "at": moment(row["created_at"]),
                "kind": KINDS.get(row["kind"], row["kind"].replace("_", " ").capitalize()),
                "reason": row["reason"],
                "reference": row["reference_id"],
                "purchase": row["purchase_id"] if row["purchase_id"] != row["reference_id"] else None,
                "credits": ("+" if row["effect"] > 0 else "") + exact(row["effect"]),
            }
            for row in rows[:ROWS]
        ]
        return {"rows": shown, "next": rows[ROWS - 1]["id"] if len(rows) > ROWS else None, "paged": before is not None}

    async def _purchases_view(self, account: str, cursor: str | None) -> dict[str, Any]:
        rows = await self.money.sales.of_account(account, ROWS + 1, page_cursor(cursor))
        following = page_cursor_of(rows[ROWS - 1].created_at, rows[ROWS - 1].id) if len(rows) > ROWS else None
        standing = await self.money.sales.standing([row.id for row in rows[:ROWS]])
        found = []
        for row in rows[:ROWS]:
            state, look = _state_of(row, standing.get(row.id))
            cents = row.total_cents or row.price_cents
            found.append(
                {
                    "at": moment(row.created_at),
                    "package": row.package_code,
                    "credits": exact(row.paid_millicredits + row.bonus_millicredits),
                    "usd": f"{cents // 100:,}.{cents % 100:02}",
                    "state": state,
                    "look": look,
                    "receipt": f"/credits/receipts/{row.id}" if row.receipt_url else "",
                }
            )
        return {"rows": found, "next": following, "paged": cursor is not None}

    async def _keys_view(self, account: str) -> list[dict[str, Any]]:
        """Keys that work first, then those that do not, each newest first."""
        found = []
        for row in reversed(await self.accounts.keys_of(account)):
            limit, ended = (
                row["spend_limit_millicredits"],
                row["revoked_at"] is not None or (row["expires_at"] or 2**62) < now_ms(),
            )
            found.append(
                {
                    "id": row["id"],
                    "hint": row["hint"],
                    "limit": "none" if limit is None else f"{figure(limit)} a {row['spend_period'] or 'lifetime'}",
                    "at": moment(row["created_at"]),
                    "state": "revoked" if row["revoked_at"] else "expired" if ended else "active",
                    "active": not ended,
                }
            )
        return sorted(found, key=lambda key: not key["active"])

    # -- what the forms do ------------------------------------------------------------------------

    async def _buy(self, request: Request, visitor: Visitor) -> Response:
        form = await request.form()
        if not self.money.settings.billing.purchase_enabled:
            return self._answers.message("Purchases are off", OFF, 503, back=True)
        offer = self.money.offer(str(form.get("package", "")))
        if offer is None or self.money.keys is None:
            raise invalid("There is no such package to buy here.")
        account = await self.accounts.get(visitor.account_id)
        try:
            parts = await self.money.parts()
            purchase = await parts.checkout.open(
                visitor.account_id, account["name"], offer, save_method=form.get("save") == "yes"
            )
        except TooManyCheckouts:
            text = "Too many were opened for this account. Try again in an hour."
            return self._answers.message("Too many payment pages", text, 429, back=True)
        except StripeRefused:
            text = "The payment page cannot be opened now. Nothing was charged."
            return self._answers.message("Try again shortly", text, 503, back=True)
        return self._answers.go(purchase.url)

    async def _recharge(self, request: Request, visitor: Visitor) -> Response:
        form = await request.form()
        enabled, consent = form.get("enabled") == "yes", form.get("consent") == "yes"
        if enabled and not consent:
            raise invalid("Tick the box that allows us to charge your saved card.")
        threshold = _amount(str(form.get("threshold", "")), parse_credits, "threshold") if enabled else 0
        ceiling = _amount(str(form.get("ceiling", "")), _cents, "monthly limit") if enabled else 0
        wish = Wish(enabled, threshold, str(form.get("package", "")), ceiling)
        await save_recharge(self.money, visitor.account_id, wish, visitor.who(request), consent=consent)
        return self._answers.go(f"/credits?done=recharge-{'on' if enabled else 'off'}")

    async def _cards(self, request: Request, visitor: Visitor) -> Response:
        """To Stripe's own page, where saved cards are looked at, replaced and removed."""
        del request
        buyer = await self.money.buyers.find(visitor.account_id)
        if buyer is None or self.money.keys is None:
            raise not_found("No card is saved yet.", "no_customer")
        try:
            url = await (await self.money.parts()).gateway.portal_url(
                buyer.customer_id, f"{self.public_url.rstrip('/')}/credits"
            )
        except StripeRefused as refused:
            log.error("no page of saved cards for %s: %s", visitor.account_id, refused)
            return self._answers.message(
                "Try again shortly", "The payment provider does not open its page now.", 503, back=True
            )
        return self._answers.go(url)

    async def _create_key(self, request: Request, visitor: Visitor) -> Response:
        form = await request.form()
        raw, period = str(form.get("limit", "")).strip(), str(form.get("period", "month"))
        limit = _amount(raw, parse_credits, "spend limit") if raw else None
        if limit is not None and (limit <= 0 or period not in PERIODS):
            raise invalid("The spend limit must be above 0.")
        rules = KeyRules(
            spend_limit=None if limit is None else millicredits(limit),
            spend_period=period if limit is not None else None,
        )
        _, secret = await self.accounts.create_key(visitor.account_id, rules, visitor.who(request))
        text = "This is your new key. It is shown this once: copy it now."
        content = {
            "title": "New API key",
            "text": text,
            "secret": secret,
            "back": True,
            "base_url": f"{self.public_url.rstrip('/')}/v1",
        }
        return self._answers.page("message.html", content, 201)

    async def _revoke_key(self, request: Request, visitor: Visitor) -> Response:
        key_id = str((await request.form()).get("key", ""))
        if key_id not in {row["id"] for row in await self.accounts.keys_of(visitor.account_id)}:
            raise not_found("There is no such key of yours.", "key_not_found")
        with contextlib.suppress(KeyNotFound):  # revoked already
            await self.accounts.revoke_key(key_id, visitor.who(request))
        return self._answers.go("/credits?done=revoked")

    async def _statement(self, request: Request, visitor: Visitor) -> Response:
        month, form = request.query_params.get("month", ""), request.query_params.get("format", "pdf")
        try:
            statement = await self.statements.read(visitor.account_id, month)
        except ValueError:
            raise invalid("Choose a month.") from None
        kind: Literal["csv", "pdf"] = "csv" if form == "csv" else "pdf"
        body, media = statement_file(statement, kind)
        name = f"statement-{month}.{kind}"
        return Response(
            body, 200, {**self._answers.headers(), "content-disposition": f'attachment; filename="{name}"'}, media
        )

    async def _receipt(self, request: Request, visitor: Visitor) -> Response:
        purchase = await self.money.sales.get(request.path_params["purchase_id"])
        if purchase is None or purchase.account_id != visitor.account_id:
            raise not_found("There is no such receipt of yours.", "receipt_not_found")
        return self._answers.go(await receipt_url(self.money, purchase))

    # -- answers ----------------------------------------------------------------------------------

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return self._answers.message("Not found", "There is no such file.", 404)
        body = files("proxy.credits_page").joinpath(f"templates/{name}").read_bytes()
        return Response(body, 200, {"cache-control": "max-age=3600", "x-content-type-options": "nosniff"}, STATIC[name])


def _opens(row: Recharge) -> bool:
    """Whether the page on which the buyer can pay is still there."""
    return row.action_url.startswith(("https://", "http://")) and row.updated_at > now_ms() - LINK_MS


def _state_of(row: Purchase, standing: Standing | None) -> tuple[str, str]:
    """A purchase in words, with what became of it since."""
    if row.state == "credited" and standing is not None:
        return standing.word, LOOKS[standing.word]
    return STATES[row.state]


def moment(at: int) -> dict[str, str]:
    """A time for a <time> element: ISO 8601, and UTC in words for browsers without the script."""
    iso = iso_time(at)
    return {"iso": iso, "text": f"{iso[:10]} {iso[11:16]} UTC"}


def dollars(amount: int) -> str:
    """Millicredits (micro-dollars) as dollars and cents, cut off: $12.97."""
    cents = abs(amount) // 10_000
    return f"{'−' if amount < 0 else ''}${cents // 100:,}.{cents % 100:02}"


def months(since: int, now: int) -> list[dict[str, str]]:
    """The months that have a statement, this one first (Unix milliseconds, UTC)."""
    first, date = iso_time(since)[:7], datetime.fromtimestamp(now / 1_000, UTC)
    found: list[dict[str, str]] = []
    year, month = date.year, date.month
    while len(found) < MOST_MONTHS and (code := f"{year:04}-{month:02}") >= first:
        found.append({"code": code, "text": f"{date.replace(year=year, month=month, day=1):%B %Y}"})
        year, month = (year, month - 1) if month > 1 else (year - 1, 12)
    return found


def _cents(text: str) -> int:
    cents = decimal_of(text, "dollars") * 100
    if cents.denominator != 1 or not 0 < cents < 10**9:
        raise MoneyError("not whole cents")
    return cents.numerator


def _amount(text: str, read: Callable[[str], int], name: str) -> int:
    """A number from a form; a comma only groups thousands: 1,000 is a thousand, 20,00 is refused. Raises Rejection."""
    plain = text.strip()
    try:
        return read(plain.replace(",", "") if GROUPED.fullmatch(plain) else plain)
    except MoneyError:
        raise invalid(f"The {name} is not a number we understand.") from None
