"""Settings and files of a customer: automatic recharge, the low-balance threshold, monthly statements."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.accounting.statements import Statements
from billing.ledger.accounts import ApiKey
from billing.payments.recharge.rows import RechargeSettings
from billing.payments.recharge.terms import Terms
from proxy.customer_api.callers import authenticate, customer
from proxy.customer_api.money_in import MoneyIn
from proxy.customer_api.recharge import recharge_standing, save_recharge
from proxy.customer_api.statement_file import statement_file
from proxy.gateway.authenticate import Authenticator
from proxy.web.http import json_body, json_handler, json_response
from proxy.web.rejections import forbidden, invalid

Amount = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,15}$")]
Cents = Annotated[int, msgspec.Meta(gt=0, le=100_000_000)]


class RechargeRequest(msgspec.Struct, rename="camel", frozen=True):
    """The whole of what an account may set. Amounts in millicredits as strings, the ceiling in cents a UTC month.

    `price_cents`, `millicredits` and `tax_on_top`: the package as the customer was shown it when they consented.
    """

    enabled: bool
    threshold_millicredits: Amount
    package_code: str
    monthly_ceiling_cents: Cents
    consent: bool = False
    price_cents: Cents | None = None
    millicredits: Amount | None = None
    tax_on_top: bool = False


class ThresholdRequest(msgspec.Struct, rename="camel", frozen=True):
    """The balance below which the operator's app is told; null = the operator's default."""

    threshold_millicredits: Amount | None


@dataclass(frozen=True, slots=True)
class SettingsApi:
    """The handlers and what they need."""

    money: MoneyIn
    authenticator: Authenticator
    statements: Statements

    def routes(self) -> list[Route]:
        """Routes to mount."""
        return [
            Route("/api/billing/auto-recharge", json_handler(self._recharge), methods=["GET", "PUT"]),
            Route("/api/billing/low-balance", json_handler(self._low_balance), methods=["GET", "PUT"]),
            Route("/api/billing/statement", json_handler(self._statement)),
        ]

    async def _recharge(self, request: Request) -> Response:
        key = await authenticate(self.authenticator, request)
        if request.method == "PUT":
            await self._set_recharge(key, request)
        return json_response(await recharge_standing(self.money, key.account_id))

    async def _set_recharge(self, key: ApiKey, request: Request) -> None:
        """Only on behalf of the account's owner: a key that leaks may cost what is prepaid, and must not reach the card
        behind it.
        """
        asked = await json_body(request, RechargeRequest)
        if asked.enabled and not key.acted_for:
            message = (
                "An API key cannot have a card charged. Switch automatic recharge on at the Credits page (/credits)."
            )
            raise forbidden(message, "credits_page_only")
        wish = RechargeSettings(
            asked.enabled, int(asked.threshold_millicredits), asked.package_code, asked.monthly_ceiling_cents
        )
        given = (asked.price_cents, asked.millicredits)
        if (given[0] is None) != (given[1] is None):
            raise invalid("Give `priceCents` and `millicredits` together: what the customer was shown.", "priceCents")
        shown = None if given[0] is None or given[1] is None else Terms(given[0], int(given[1]), asked.tax_on_top)
        await save_recharge(
            self.money, key.account_id, wish, customer(key, request), consent=asked.consent, shown=shown
        )

    async def _low_balance(self, request: Request) -> Response:
        key = await authenticate(self.authenticator, request)
        if request.method == "PUT":
            asked = await json_body(request, ThresholdRequest)
            threshold = None if asked.threshold_millicredits is None else int(asked.threshold_millicredits)
            await self.money.low_balance.set_threshold(key.account_id, threshold, customer(key, request))
        found = await self.money.low_balance.threshold(key.account_id)
        return json_response({"thresholdMillicredits": None if found is None else str(found)})

    async def _statement(self, request: Request) -> Response:
        key = await authenticate(self.authenticator, request)
        month, kind = request.query_params.get("month", ""), request.query_params.get("format", "csv")
        if kind not in ("csv", "pdf"):
            raise invalid("`format` is csv or pdf.", "format")
        try:
            statement = await self.statements.read(key.account_id, month)
        except ValueError:
            raise invalid("`month` is written YYYY-MM.", "month") from None
        form: Literal["csv", "pdf"] = "pdf" if kind == "pdf" else "csv"
        settings = self.money.settings
        body, media = await asyncio.to_thread(statement_file, statement, form, settings.seller, settings.app)
        headers = {
            "content-disposition": f'attachment; filename="statement-{month}.{kind}"',
            "cache-control": "no-store",
        }
        return Response(body, 200, headers, media)
