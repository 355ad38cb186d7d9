"""Settings and files of a customer: automatic recharge, the low-balance threshold, monthly statements."""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.accounting.statements import Statements
from billing.ledger.accounts import ApiKey
from billing.payments.recharge.rows import Recharge, RechargeSettings
from proxy.customer_api.callers import authenticate, customer
from proxy.customer_api.money_in import MoneyIn
from proxy.customer_api.recharge import is_offered, save_recharge
from proxy.customer_api.statement_file import statement_file
from proxy.gateway.authenticate import Authenticator
from proxy.web.http import json_body, json_handler, json_response
from proxy.web.rejections import forbidden, invalid

Amount = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,15}$")]
Cents = Annotated[int, msgspec.Meta(gt=0, le=100_000_000)]


class RechargeRequest(msgspec.Struct, rename="camel", frozen=True):
    """The whole of what an account may set. Amounts in millicredits as strings, the ceiling in cents a UTC month."""

    enabled: bool
    threshold_millicredits: Amount
    package_code: str
    monthly_ceiling_cents: Cents
    consent: bool = False


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
        row, buyer = await self.money.recharges.get(key.account_id), await self.money.customers.find(key.account_id)
        saved = buyer is not None and bool(buyer.payment_method_id)
        return json_response(
            {"available": is_offered(self.money), "hasSavedPaymentMethod": saved, **_recharge_row(row)}
        )

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
        await save_recharge(self.money, key.account_id, wish, customer(key, request), consent=asked.consent)

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
        body, media = statement_file(statement, "pdf" if kind == "pdf" else "csv")
        headers = {
            "content-disposition": f'attachment; filename="statement-{month}.{kind}"',
            "cache-control": "no-store",
        }
        return Response(body, 200, headers, media)


def _recharge_row(row: Recharge | None) -> dict[str, object]:
    return {
        "enabled": row is not None and row.enabled,
        "thresholdMillicredits": str(row.threshold_millicredits) if row else None,
        "packageCode": row.package_code if row else None,
        "monthlyCeilingCents": row.monthly_ceiling_cents if row else None,
        "state": row.state if row else "ready",
        "message": row.message if row else "",
        "actionUrl": row.action_url or None if row else None,
    }
