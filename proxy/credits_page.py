"""The Credits page: what a customer has, buys, spends and holds keys for. Server-rendered; works without a script.

Sign-in: the operator's app asks POST /api/portal/sessions with its service key for a one-time link; the link opens a session that
lives in an HttpOnly cookie. Every form carries a token derived from the session; what a customer sees is the session's account only.
"""

import contextlib
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from jinja2 import Environment, PackageLoader
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from billing.accounts import Accounts, KeyRules
from billing.errors import AccountNotFound, KeyNotFound, StoreUnavailable, StripeRefused, TooManyCheckouts
from billing.ledger import UsageFilters
from billing.money import MoneyError, display_usd, millicredits, parse_credits
from billing.periods import PERIODS
from billing.portal import DAY_MS, Portal
from billing.recharge import Wish
from billing.statements import Statements
from config.settings import Secret
from proxy.account_api import AccountApi, answering, iso_time, json_response, page_cursor, page_cursor_of
from proxy.checkout_api import OFF, json_body
from proxy.money import MoneyIn
from proxy.rejections import Rejection, forbidden, invalid, not_found
from proxy.spend_chart import DAYS, figure, spend_chart
from proxy.statement_files import statement_csv, statement_pdf

COOKIE = "tk_session"
STATIC = {"credits.css": "text/css; charset=utf-8", "credits.js": "text/javascript; charset=utf-8"}
ROWS = 20
MAX_FORM_BYTES = 16_384
STRIPE_PAGES = "https://checkout.stripe.com https://billing.stripe.com"
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
THANKS = "Thank you. Your credits appear as soon as the payment is confirmed, usually within seconds."
SIGN_IN = "This page opens from inside your app: go back there and choose credits. Links work once and for ten minutes."


class PortalRequest(msgspec.Struct, rename="camel", frozen=True):
    """Whose page a link opens."""

    account_id: str


class Visitor(NamedTuple):
    """Who looks at the page."""

    token: str
    account_id: str

    @property
    def csrf(self) -> str:
        """What every form of this session must carry."""
        return hmac.new(self.token.encode(), b"credits page forms", hashlib.sha256).hexdigest()


Page = Callable[[Request, Visitor], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class CreditsPage:
    """The handlers and what they need. `service_key` None: links are only made by the command line, and by whom `may_open` lets."""

    money: MoneyIn
    portal: Portal
    accounts: Accounts
    account_api: AccountApi
    statements: Statements
    service_key: Secret | None
    public_url: str
    may_open: Callable[[Request], Awaitable[bool]] | None = None

    def routes(self) -> list[Route]:
        """What to mount."""
        return [
            Route("/api/portal/sessions", answering(self._make_link), methods=["POST"]),
            Route("/credits", self._page(self._credits), methods=["GET"]),
            Route("/credits/enter", self._enter, methods=["GET"]),
            Route("/credits/static/{name}", self._static, methods=["GET"]),
            Route("/credits/statement", self._page(self._statement), methods=["GET"]),
            Route("/credits/receipts/{purchase_id}", self._page(self._receipt), methods=["GET"]),
            *(
                Route(f"/credits/{path}", self._page(handler), methods=["POST"])
                for path, handler in (
                    ("sign-out", self._sign_out),
                    ("buy", self._buy),
                    ("recharge", self._recharge),
                    ("keys", self._create_key),
                    ("keys/revoke", self._revoke_key),
                )
            ),
        ]

    # -- signing in -------------------------------------------------------------------------------

    async def _make_link(self, request: Request) -> Response:
        given = request.headers.get("authorization", "")
        wanted = f"Bearer {self.service_key.reveal()}" if self.service_key else ""
        known = bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())
        if not known and not (self.may_open is not None and await self.may_open(request)):
            raise Rejection(401, "invalid_service_key", "Send the service key as a bearer token.", kind="authentication_error")
        asked = await json_body(request, PortalRequest)
        try:
            token, expires_at = await self.portal.link(asked.account_id)
        except AccountNotFound:
            raise not_found("There is no such account.", "account_not_found") from None
        return json_response({"url": link_url(self.public_url, token), "expiresAt": iso_time(expires_at)}, 201)

    async def _enter(self, request: Request) -> Response:
        """A link's token becomes a session, once, and never stands in the address bar or a referrer."""
        try:
            opened = await self.portal.open(request.query_params.get("token", ""))
        except StoreUnavailable:
            return self._message("Try again shortly", "Your credits cannot be read right now.", 503)
        if opened is None:
            return self._message("This link has been used or is too old", SIGN_IN, 403)
        response: Response = RedirectResponse("/credits", 303, self._headers())
        secure = urlsplit(self.public_url).scheme == "https"
        response.set_cookie(COOKIE, opened[0], max_age=12 * 3_600, path="/credits", secure=secure, httponly=True, samesite="lax")
        return response

    def _page(self, handler: Page) -> Callable[[Request], Awaitable[Response]]:
        """A handler for whoever is signed in; its refusals become pages in plain words."""

        async def wrapped(request: Request) -> Response:
            token = request.cookies.get(COOKIE, "")
            try:
                session = await self.portal.session(token) if token else None
                if session is None:
                    return self._message("Please sign in", SIGN_IN, 401)
                visitor = Visitor(token, session.account_id)
                if request.method == "POST":
                    await self._check_form(request, visitor)
                return await handler(request, visitor)
            except Rejection as rejection:
                return self._message("That did not work", rejection.message, rejection.status, back=True)
            except (StoreUnavailable, AccountNotFound):
                return self._message("Try again shortly", "Your credits cannot be read right now. Nothing was changed.", 503, back=True)

        return wrapped

    async def _check_form(self, request: Request, visitor: Visitor) -> None:
        """The form is one of this session's. Raises Rejection."""
        if int(request.headers.get("content-length") or 0) > MAX_FORM_BYTES:
            raise invalid("The form is too large.")
        origin = request.headers.get("origin")
        if origin not in (None, "null") and urlsplit(origin).netloc != request.headers.get("host"):
            raise forbidden("This form was sent from another site.", "wrong_origin")
        given = str((await request.form(max_files=0, max_fields=20)).get("csrf", ""))
        if not hmac.compare_digest(given.encode(), visitor.csrf.encode()):
            raise forbidden("This form has expired. Open the page again.", "wrong_csrf_token")

    async def _sign_out(self, request: Request, visitor: Visitor) -> Response:
        del request
        await self.portal.close(visitor.token)
        response = self._message("Signed out", "You can close this window.", 200)
        response.delete_cookie(COOKIE, path="/credits")
        return response

    # -- the page ---------------------------------------------------------------------------------

    async def _credits(self, request: Request, visitor: Visitor) -> Response:
        services, account = self.account_api.services, visitor.account_id
        reading = await services.balances.read(account)
        today = time.time_ns() // 1_000_000 // DAY_MS
        available = reading.balance - reading.held
        content = {
            "token": visitor.csrf,
            "account": account,
            "available": figure(available),
            "balance": figure(reading.balance),
            "held": figure(reading.held),
            "usd": f"{display_usd(reading.balance):,.2f}",
            "banners": self._banners(request, reading.balance),
            "packages": self._packages(),
            "may_buy": self.money.settings.billing.purchase_enabled and self.money.keys is not None,
            "recharge": await self._recharge_view(account),
            "chart": spend_chart(await self.portal.spend(account, today - DAYS + 1), today),
            "usage": await self._usage_view(account, request.query_params.get("usage")),
            "ledger": await self._ledger_view(account, request.query_params.get("ledger")),
            "purchases": await self._purchases_view(account),
            "keys": await self._keys_view(account),
            "month": iso_time(time.time_ns() // 1_000_000)[:7],
        }
        return self._render("credits.html", content)

    def _banners(self, request: Request, balance: int) -> list[dict[str, Any]]:
        billing, found = self.money.settings.billing, []
        if not billing.purchase_enabled:
            found.append({"text": OFF, "bad": False})
        elif self.money.keys is None:
            found.append({"text": "Credits cannot be bought here yet: no payment provider is set up.", "bad": False})
        if not billing.charging_enabled:
            words = "Requests are free right now." if billing.charging_disabled_mode == "free" else "Requests are paused right now."
            found.append({"text": words, "bad": False})
        if balance < 0:
            found.append({"text": "Your balance is below zero after a refund or a disputed payment. Buy credits to go on.", "bad": True})
        if "session" in request.query_params:
            found.append(
                {"text": "Thank you. Your credits appear as soon as the payment is confirmed, usually within seconds.", "bad": False}
            )
        return found

    def _packages(self) -> list[dict[str, str]]:
        found = []
        for package in self.money.settings.packages:
            made = self.money.offer(package.code)
            if made is not None:
                bonus = "" if package.bonus_percent == "0" else package.bonus_percent
                found.append({"code": package.code, "usd": package.usd, "bonus": bonus, "credits": figure(made.paid + made.bonus)})
        return found

    async def _recharge_view(self, account: str) -> dict[str, Any]:
        row, buyer = await self.money.recharges.get(account), await self.money.buyers.find(account)
        return {
            "available": self.money.keys is not None and self.money.settings.billing.auto_recharge,
            "saved": buyer is not None and bool(buyer.payment_method_id),
            "enabled": row is not None and row.enabled,
            "threshold": row.threshold_millicredits // 1_000 if row else 1_000,
            "package": row.package_code if row else "",
            "ceiling": f"{row.monthly_ceiling_cents // 100}.{row.monthly_ceiling_cents % 100:02}" if row else "100.00",
            "message": row.message if row else "",
            "action_url": row.action_url if row and row.action_url.startswith(("https://", "http://")) else "",
        }

    async def _usage_view(self, account: str, cursor: str | None) -> dict[str, Any]:
        rows = await self.account_api.ledger.usage_of(account, ROWS + 1, UsageFilters(before=page_cursor(cursor)))
        following = page_cursor_of(rows[ROWS - 1]["created_at"], rows[ROWS - 1]["charge_id"]) if len(rows) > ROWS else None
        shown = [
            {
                "at": moment(row["created_at"]),
                "model": row["model"],
                "input": f"{row['input_tokens']:,}",
                "output": f"{row['output_tokens']:,}",
                "credits": figure(row["charged_millicredits"]),
                "id": row["charge_id"],
            }
            for row in rows[:ROWS]
        ]
        return {"rows": shown, "next": following}

    async def _ledger_view(self, account: str, cursor: str | None) -> dict[str, Any]:
        before = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() and len(cursor) < 19 else None
        rows = await self.account_api.ledger.transfers_of(account, ROWS + 1, before)
        shown = [
            {
                "at": moment(row["created_at"]),
                "kind": KINDS.get(row["kind"], row["kind"].replace("_", " ").capitalize()),
                "reference": row["reason"] or row["reference_id"],
                "credits": figure(row["effect"]),
            }
            for row in rows[:ROWS]
        ]
        return {"rows": shown, "next": rows[ROWS - 1]["id"] if len(rows) > ROWS else None}

    async def _purchases_view(self, account: str) -> list[dict[str, Any]]:
        return [
            {
                "at": moment(row.created_at),
                "package": row.package_code,
                "credits": figure(row.paid_millicredits + row.bonus_millicredits),
                "usd": f"{(row.total_cents or row.price_cents) // 100}.{(row.total_cents or row.price_cents) % 100:02}",
                "state": row.state,
                "receipt": f"/credits/receipts/{row.id}" if row.receipt_url else "",
            }
            for row in await self.money.sales.of_account(account, ROWS)
        ]

    async def _keys_view(self, account: str) -> list[dict[str, Any]]:
        found = []
        for row in await self.accounts.keys_of(account):
            limit = row["spend_limit_millicredits"]
            ended = row["revoked_at"] is not None or (row["expires_at"] or 2**62) < time.time_ns() // 1_000_000
            found.append(
                {
                    "id": row["id"],
                    "hint": row["hint"],
                    "limit": "none" if limit is None else f"{figure(limit)} a {row['spend_period'] or 'total'}",
                    "at": moment(row["created_at"]),
                    "state": "revoked" if row["revoked_at"] else "expired" if ended else "active",
                    "active": not ended,
                }
            )
        return found

    # -- what the forms do ------------------------------------------------------------------------

    async def _buy(self, request: Request, visitor: Visitor) -> Response:
        form = await request.form()
        if not self.money.settings.billing.purchase_enabled:
            return self._message("Purchases are off", OFF, 503, back=True)
        offer = self.money.offer(str(form.get("package", "")))
        if offer is None or self.money.keys is None:
            raise invalid("There is no such package to buy here.")
        account = await self.accounts.get(visitor.account_id)
        try:
            parts = await self.money.parts()
            purchase = await parts.checkout.open(visitor.account_id, account["name"], offer, save_method=form.get("save") == "yes")
        except TooManyCheckouts:
            return self._message("Too many payment pages", "Too many were opened for this account. Try again in an hour.", 429, back=True)
        except StripeRefused:
            return self._message("Try again shortly", "The payment page cannot be opened now. Nothing was charged.", 503, back=True)
        return RedirectResponse(purchase.url, 303, self._headers())

    async def _recharge(self, request: Request, visitor: Visitor) -> Response:
        form = await request.form()
        offer = self.money.offer(str(form.get("package", "")))
        enabled = form.get("enabled") == "yes"
        if offer is None:
            raise invalid("There is no such package.")
        threshold = _amount(str(form.get("threshold", "")), parse_credits, "threshold")
        ceiling = _amount(str(form.get("ceiling", "")), _cents, "monthly limit")
        if enabled and form.get("consent") != "yes":
            raise invalid("Tick the box that allows us to charge your saved card.")
        if not 0 < threshold <= offer.paid + offer.bonus:
            raise invalid("The threshold must be above 0 and at most what the package brings.")
        if ceiling < offer.price_cents:
            raise invalid("The monthly limit is below the price of one package.")
        view = await self._recharge_view(visitor.account_id)
        if enabled and not (view["available"] and view["saved"]):
            raise invalid("Automatic recharge needs a saved card, and to be offered here.")
        await self.money.recharges.put(visitor.account_id, Wish(enabled, threshold, offer.code, ceiling))
        return RedirectResponse("/credits#recharge", 303, self._headers())

    async def _create_key(self, request: Request, visitor: Visitor) -> Response:
        form = await request.form()
        raw, period = str(form.get("limit", "")).strip(), str(form.get("period", "month"))
        limit = _amount(raw, parse_credits, "spend limit") if raw else None
        if limit is not None and (limit <= 0 or period not in PERIODS):
            raise invalid("The spend limit must be above 0.")
        rules = KeyRules(spend_limit=None if limit is None else millicredits(limit), spend_period=period if limit is not None else None)
        _, secret = await self.accounts.create_key(visitor.account_id, rules)
        text = "This is your new key. It is shown this once: copy it now."
        return self._render("message.html", {"title": "New API key", "text": text, "secret": secret, "back": True}, 201)

    async def _revoke_key(self, request: Request, visitor: Visitor) -> Response:
        key_id = str((await request.form()).get("key", ""))
        if key_id not in {row["id"] for row in await self.accounts.keys_of(visitor.account_id)}:
            raise not_found("There is no such key of yours.", "key_not_found")
        with contextlib.suppress(KeyNotFound):  # revoked already
            await self.accounts.revoke_key(key_id)
        return RedirectResponse("/credits#keys", 303, self._headers())

    async def _statement(self, request: Request, visitor: Visitor) -> Response:
        month, form = request.query_params.get("month", ""), request.query_params.get("format", "pdf")
        try:
            statement = await self.statements.read(visitor.account_id, month)
        except ValueError:
            raise invalid("Choose a month.") from None
        body, media = (statement_csv(statement), "text/csv") if form == "csv" else (statement_pdf(statement), "application/pdf")
        name = f"statement-{month}.{'csv' if form == 'csv' else 'pdf'}"
        return Response(body, 200, {**self._headers(), "content-disposition": f'attachment; filename="{name}"'}, media)

    async def _receipt(self, request: Request, visitor: Visitor) -> Response:
        purchase = await self.money.sales.get(request.path_params["purchase_id"])
        if purchase is None or purchase.account_id != visitor.account_id or not purchase.receipt_url.startswith(("https://", "http://")):
            raise not_found("There is no such receipt of yours.", "receipt_not_found")
        return RedirectResponse(purchase.receipt_url, 303, self._headers())

    # -- answers ----------------------------------------------------------------------------------

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return self._message("Not found", "There is no such file.", 404)
        body = files("proxy").joinpath(f"pages/{name}").read_bytes()
        return Response(body, 200, {"cache-control": "max-age=3600", "x-content-type-options": "nosniff"}, STATIC[name])

    def _message(self, title: str, text: str, status: int, *, back: bool = False) -> Response:
        return self._render("message.html", {"title": title, "text": text, "back": back}, status)

    def _render(self, name: str, content: dict[str, Any], status: int = 200) -> Response:
        html = TEMPLATES.get_template(name).render(content)
        return Response(html, status, self._headers(), "text/html; charset=utf-8")

    def _headers(self) -> dict[str, str]:
        """Nothing is cached, framed, sniffed, or loaded from elsewhere; forms go to us and on to the payment provider."""
        base = urlsplit(self.money.settings.stripe.api_base)
        simulator = f" {base.scheme}://{base.netloc}" if base.netloc else ""
        policy = (
            "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; "
            f"form-action 'self' {STRIPE_PAGES}{simulator}"
        )
        return {
            "content-security-policy": policy,
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
        }


TEMPLATES = Environment(loader=PackageLoader("proxy", "pages"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def link_url(public_url: str, token: str) -> str:
    """The one-time link."""
    return f"{public_url.rstrip('/')}/credits/enter?token={token}"


def moment(at: int) -> dict[str, str]:
    """A time for a <time> element: ISO 8601, and UTC in words for browsers without the script."""
    iso = iso_time(at)
    return {"iso": iso, "text": f"{iso[:10]} {iso[11:16]} UTC"}


def _cents(text: str) -> int:
    try:
        cents = Decimal(text) * 100
    except InvalidOperation:
        raise MoneyError("not a number") from None
    if not cents.is_finite() or cents != cents.to_integral_value() or not 0 < cents < 10**9:
        raise MoneyError("not whole cents")
    return int(cents)


def _amount(text: str, read: Callable[[str], int], name: str) -> int:
    """A number from a form. Raises Rejection."""
    try:
        return read(text.strip().replace(",", ""))
    except MoneyError:
        raise invalid(f"The {name} is not a number we understand.") from None
