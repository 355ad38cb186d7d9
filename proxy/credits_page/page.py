"""The Credits page: what a customer has, buys, spends and holds keys for. Server-rendered; works without a script.

Sign-in: proxy/credits_page/sign_in.py. The operator's app asks POST /api/portal/sessions with its service key for a
one-time link; the link opens a session that lives in an HttpOnly cookie. Every form carries a token derived from the
session; what a customer sees is the session's account only, and staff who look at it change nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.accounting.statements import Statements
from billing.jobs.low_balance import KIND
from billing.ledger.accounts import Accounts
from billing.ledger.customers.desk import KeyDesk
from billing.ledger.portal_tokens import PortalTokens
from billing.money.holds import Reading
from billing.payments.claim_store import ClaimTotals
from billing.payments.purchase_store import Purchase
from billing.payments.recharge.terms import terms_of
from billing.storage.database import now_ms
from config.app import app_colors, read_logo
from config.errors import ConfigError
from config.secrets import Secret
from proxy.credits_page.activity import PageActivity
from proxy.credits_page.formatting import dollars, moment, months
from proxy.credits_page.forms import CreditsForms
from proxy.credits_page.given import GivenCredits, expiring_view
from proxy.credits_page.keys import PageKeys, exact_field
from proxy.credits_page.prices import PagePrices
from proxy.credits_page.responses import PageResponses
from proxy.credits_page.sign_in import CreditsSignIn, Page, StaffCaller, Visitor
from proxy.customer_api.account import AccountApi
from proxy.customer_api.credits.amounts import amount_bounds
from proxy.customer_api.money_in import MoneyIn
from proxy.customer_api.payment_pages import invoice_url, receipt_url
from proxy.customer_api.recharge import recharge_standing
from proxy.customer_api.statement_file import statement_file
from proxy.gateway.admission import banners
from proxy.web.display import short_credits
from proxy.web.forms import NOT_REFUSED, RefusedForm, refused_form
from proxy.web.query import read_cursor, write_cursor
from proxy.web.rejections import Rejection, invalid, not_found

log = logging.getLogger("tollkeeper.credits_page")

STATIC = {"credits.css": "text/css; charset=utf-8", "credits.js": "text/javascript; charset=utf-8"}
STATIC_HEADERS = {"cache-control": "max-age=3600", "x-content-type-options": "nosniff"}
ROWS = 20
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
AT_THE_FORM = (400, 409)
"""Status codes of refusals that whoever sent a form can do something about."""
FIELDS = {
    "thresholdMillicredits": "threshold",
    "monthlyCeilingCents": "ceiling",
    "packageCode": "package",
    "spendLimitCredits": "limit",
    "budgets": "daily",
}
"""Names that the API has for fields → those of the forms, where they differ."""
LOOKS = {"disputed": "bad", "refunded": "off", "partly refunded": "warn"}
THANKS = "Thank you. Your credits appear as soon as the payment is confirmed, usually within seconds."
NOT_PAID = "The payment did not go through, and nothing was charged. You can try again below."
REVIEWED = "Thank you. Your payment arrived and needs a look by a person before your credits appear."
NOTHING_LEFT = "You have no credits left, so requests are refused. Buy some below to go on."
DONE = {
    "recharge-on": "Automatic recharge is on.",
    "recharge-off": "Automatic recharge is off. Your card is not charged by itself any more.",
    "revoked": "The key is revoked. Programs that use it stop working within seconds.",
    "key-there": "This form was sent before, and made its key then. Nothing was made now.",
    "card-removed": "The card is removed, and automatic recharge is off.",
    "warning": "Kept. It holds from the next time that your balance falls.",
    "key-changed": "The key is changed. It is in force within seconds.",
    "promo": "The code is redeemed. Its credits are in your balance within seconds.",
    "promo-again": "You redeemed this code before, and have its credits. Nothing was added now.",
}
"""What the page says after a form, by the word in its address."""


@dataclass(frozen=True, slots=True)
class CreditsPage:
    """The handlers and what they need.

    `service_key` None: links are only made by the command line, and by staff that `find_staff` recognises.
    """

    money: MoneyIn
    portal: PortalTokens
    accounts: Accounts
    keys: KeyDesk
    account_api: AccountApi
    statements: Statements
    service_key: Secret | None
    public_url: str
    find_staff: Callable[[Request], Awaitable[StaffCaller | None]] | None = None

    def routes(self) -> list[Route]:
        """Routes to mount."""
        sign_in = CreditsSignIn(self.portal, self.service_key, self.public_url, self.find_staff, self._responses)
        shown = (
            ("/credits", self._credits),
            *self._keys.pages(),
            *self._activity.pages(),
            *PagePrices(self.account_api.services, self._responses).pages(),
            ("/credits/statement", self._statement),
            ("/credits/receipts/{purchase_id}", self._receipt),
            ("/credits/invoices/{purchase_id}", self._invoice),
        )
        forms = CreditsForms(self.money, self.accounts, self.public_url, self._responses)
        given = GivenCredits(self.money.promos, self._responses)
        changes = [*forms.handlers(), *given.forms(), *self._keys.forms()]
        return [
            *sign_in.routes(),
            Route("/credits/static/{name}", self._static, methods=["GET"]),
            *(Route(path, sign_in.page(handler, for_staff=True), methods=["GET"]) for path, handler in shown),
            *(
                Route(path, sign_in.page(self._refused_at_the_form(path, handler), for_staff=False), methods=["POST"])
                for path, handler in changes
            ),
        ]

    @property
    def _keys(self) -> PageKeys:
        return PageKeys(self.keys, self.public_url, self._responses)

    @property
    def _activity(self) -> PageActivity:
        return PageActivity(self.account_api, self.accounts)

    @property
    def _responses(self) -> PageResponses:
        return PageResponses(self.money)

    # -- the page ---------------------------------------------------------------------------------

    def _refused_at_the_form(self, path: str, handler: Page) -> Page:
        """Wrap the handler of a form: what whoever sent it can mend is said at its field, and what was typed stays."""

        async def wrapped(request: Request, visitor: Visitor) -> Response:
            try:
                return await handler(request, visitor)
            except Rejection as refusal:
                if refusal.status not in AT_THE_FORM:
                    raise
                form, key = path.removeprefix("/credits/"), str((await request.form()).get("key", ""))
                wrong = await refused_form(request, f"{form}:{key}" if key else form, refusal, FIELDS)
                return await self._show(request, visitor, wrong, refusal.status)

        return wrapped

    async def _credits(self, request: Request, visitor: Visitor) -> Response:
        return await self._show(request, visitor, NOT_REFUSED, 200)

    async def _show(self, request: Request, visitor: Visitor, wrong: RefusedForm, status: int) -> Response:
        """Render the whole page. `wrong`: the form that was just refused."""
        services, account, query = self.account_api.services, visitor.account_id, request.query_params
        reading = await services.balances.read(account)
        row = await self.accounts.get(account)
        content = {
            "token": visitor.csrf,
            "wrong": wrong,
            "here": f"/credits?{request.url.query}",
            "account": account,
            "staff": visitor.staff,
            "available": short_credits(reading.balance - reading.held),
            "balance": short_credits(reading.balance),
            "held": short_credits(reading.held),
            "usd": dollars(reading.balance),
            "banners": await self._banners(request, visitor, reading),
            "packages": self._packages(),
            "any_amount": amount_bounds(self.money.settings.purchases),
            "expiring": expiring_view(await self.account_api.ledger.expiring(account)),
            "may_buy": self.money.settings.billing.purchase_enabled and self.money.keys is not None,
            "recharge": await self._recharge_view(account),
            "warning": await self._warning_view(account),
            "activity": await self._activity.view(account, query),
            "purchases": await self._purchases_view(account, query.get("purchases")),
            "keys": await self._keys.view(account),
            "months": months(row.created_at, now_ms()),
        }
        return self._responses.page("credits.html", content, status)

    async def _banners(self, request: Request, visitor: Visitor, reading: Reading) -> list[dict[str, Any]]:
        """News to see first: who the visitor is here, how it went, what is switched off, what is wrong."""
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
        """Outcome of the payment that the customer comes back from."""
        if not session_id:
            return []
        purchase = await self.money.purchases.of_session(session_id[:255])
        if purchase is None or purchase.account_id != account:
            return [{"text": THANKS, "look": "good"}]
        if purchase.state == "credited":
            bought = short_credits(purchase.paid_millicredits + purchase.bonus_millicredits)
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
                terms = terms_of(made)
                every = {"code": package.code, "usd": package.usd, "bonus": bonus}
                every |= {
                    "bonus_days": str(made.bonus_days or "") if made.bonus else "",
                    "words": terms.words,
                    "shown": f"{package.code}:{terms.price_cents}:{terms.millicredits}{':tax' if terms.taxed else ''}",
                }
                found.append({**every, "credits": short_credits(made.paid + made.bonus)})
        return found

    async def _warning_view(self, account: str) -> dict[str, Any]:
        """Return the balance below which the operator's app is told; not offered where nobody listens."""
        heard = await self.money.notices.is_heard(KIND)
        own = await self.money.low_balance.threshold(account)
        return {"available": heard, "own": "" if own is None else exact_field(own)}

    async def _recharge_view(self, account: str) -> dict[str, Any]:
        row, now = await self.money.recharges.get(account), await recharge_standing(self.money, account)
        url = str(now["actionUrl"] or "")
        return {
            "available": now["available"],
            "saved": now["hasSavedPaymentMethod"],
            "card": self._card_words(now["savedPaymentMethod"]),
            "taxed": now["taxOnTop"],
            "enabled": now["enabled"],
            "threshold": row.threshold_millicredits // 1_000 if row else 1_000,
            "package": row.package_code if row else "",
            "ceiling": f"{row.monthly_ceiling_cents // 100}.{row.monthly_ceiling_cents % 100:02}" if row else "100.00",
            "message": now["message"],
            "needs_buyer": now["state"] == "action_needed",
            "unsaid": now["state"] == "stopped",
            "action_url": url if url.startswith(("https://", "http://")) else "",
        }

    @staticmethod
    def _card_words(saved: Any) -> str:
        """Name the saved card as its owner knows it."""
        if not saved or not saved["last4"]:
            return "the card you saved"
        return f"{saved['brand'].capitalize()} ending in {saved['last4']}"

    async def _purchases_view(self, account: str, cursor: str | None) -> dict[str, Any]:
        rows = await self.money.purchases.of_account(account, ROWS + 1, read_cursor(cursor))
        following = write_cursor(rows[ROWS - 1].created_at, rows[ROWS - 1].id) if len(rows) > ROWS else None
        totals = await self.money.claims.totals([row.id for row in rows[:ROWS]])
        found = []
        for row in rows[:ROWS]:
            state, look = _state_of(row, totals.get(row.id))
            cents, back = row.total_cents or row.price_cents, totals[row.id].refunded_cents if row.id in totals else 0
            found.append(
                {
                    "at": moment(row.created_at),
                    "package": row.package_code,
                    "credits": short_credits(row.paid_millicredits + row.bonus_millicredits),
                    "usd": f"{cents // 100:,}.{cents % 100:02}",
                    "back": f"{back // 100:,}.{back % 100:02}" if back else "",
                    "state": state,
                    "look": look,
                    "receipt": f"/credits/receipts/{row.id}" if row.receipt_url else "",
                    "invoice": f"/credits/invoices/{row.id}" if row.invoice_id else "",
                }
            )
        return {"rows": found, "next": following, "paged": cursor is not None}

    # -- files and receipts ----------------------------------------------------------------------

    async def _statement(self, request: Request, visitor: Visitor) -> Response:
        month, form = request.query_params.get("month", ""), request.query_params.get("format", "pdf")
        try:
            statement = await self.statements.read(visitor.account_id, month)
        except ValueError:
            raise invalid("Choose a month.") from None
        settings = self.money.settings
        kind: Literal["csv", "pdf"] = "csv" if form == "csv" else "pdf"
        body, media = await asyncio.to_thread(statement_file, statement, kind, settings.seller, settings.app)
        name = f"statement-{month}.{kind}"
        return Response(
            body, 200, {**self._responses.headers(), "content-disposition": f'attachment; filename="{name}"'}, media
        )

    async def _receipt(self, request: Request, visitor: Visitor) -> Response:
        return self._responses.redirect(await receipt_url(self.money, await self._own(request, visitor)))

    async def _invoice(self, request: Request, visitor: Visitor) -> Response:
        return self._responses.redirect(await invoice_url(self.money, await self._own(request, visitor)))

    async def _own(self, request: Request, visitor: Visitor) -> Purchase:
        purchase = await self.money.purchases.get(request.path_params["purchase_id"])
        if purchase is None or purchase.account_id != visitor.account_id:
            raise not_found("There is no such receipt of yours.", "receipt_not_found")
        return purchase

    async def _static(self, request: Request) -> Response:
        name, app = request.path_params["name"], self.money.settings.app
        if name == "app.css":
            return Response(app_colors(app), 200, STATIC_HEADERS, "text/css; charset=utf-8")
        if name == "logo":
            return await self._logo()
        if name not in STATIC:
            return self._responses.message("Not found", "There is no such file.", 404)
        body = files("proxy.credits_page").joinpath(f"templates/{name}").read_bytes()
        return Response(body, 200, STATIC_HEADERS, STATIC[name])

    async def _logo(self) -> Response:
        """Send the logo as it is on the disk now; as a page of its own, too, it can do nothing."""
        try:
            logo = await asyncio.to_thread(read_logo, self.money.settings.app)
        except ConfigError as error:
            log.warning("the logo is not served: %s", error)
            logo = None
        if logo is None:
            return self._responses.message("Not found", "There is no logo.", 404)
        policy = {"content-security-policy": "default-src 'none'; sandbox", "cache-control": "max-age=300"}
        return Response(logo.body, 200, {**STATIC_HEADERS, **policy}, logo.media_type)


def _state_of(row: Purchase, totals: ClaimTotals | None) -> tuple[str, str]:
    """Words for a purchase, with what became of it since."""
    if row.state == "credited" and totals is not None:
        return totals.word, LOOKS[totals.word]
    return STATES[row.state]
