"""What a customer sets and takes away: automatic recharge, the low-balance threshold, monthly statements."""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.recharge import Recharge, Wish
from billing.statements import Statements
from proxy.account_api import answering, json_response
from proxy.authenticate import Authenticator
from proxy.checkout_api import json_body
from proxy.money import MoneyIn
from proxy.rejections import Rejection, invalid, unavailable
from proxy.statement_files import statement_csv, statement_pdf

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
        """What to mount."""
        return [
            Route("/api/billing/auto-recharge", answering(self._recharge), methods=["GET", "PUT"]),
            Route("/api/billing/low-balance", answering(self._low_balance), methods=["GET", "PUT"]),
            Route("/api/billing/statement", answering(self._statement)),
        ]

    async def _recharge(self, request: Request) -> Response:
        key = await self.authenticator.authenticate(request.scope["headers"])
        if request.method == "PUT":
            await self._set_recharge(key.account_id, await json_body(request, RechargeRequest))
        row, buyer = await self.money.recharges.get(key.account_id), await self.money.buyers.find(key.account_id)
        saved = buyer is not None and bool(buyer.payment_method_id)
        return json_response({"available": self._available(), "hasSavedPaymentMethod": saved, **_recharge_row(row)})

    async def _set_recharge(self, account_id: str, asked: RechargeRequest) -> None:
        offer = self.money.offer(asked.package_code)
        if offer is None:
            raise invalid("There is no package of that code.", "packageCode")
        threshold = int(asked.threshold_millicredits)
        if not 0 < threshold <= offer.paid + offer.bonus:
            raise invalid("The threshold must be above 0 and at most what the package brings.", "thresholdMillicredits")
        if asked.monthly_ceiling_cents < offer.price_cents:
            raise invalid("The monthly ceiling is below the price of one package.", "monthlyCeilingCents")
        if asked.enabled:
            if not self._available():
                raise unavailable("Automatic recharge is switched off here.", "auto_recharge_disabled", 60_000)
            if not asked.consent:
                raise invalid("Charging a saved card while you are away needs your consent: send `consent: true`.", "consent")
            buyer = await self.money.buyers.find(account_id)
            if buyer is None or not buyer.payment_method_id:
                message = "There is no saved card. Buy a package once with `savePaymentMethod: true`."
                raise Rejection(409, "no_saved_payment_method", message)
        await self.money.recharges.put(account_id, Wish(asked.enabled, threshold, offer.code, asked.monthly_ceiling_cents))

    async def _low_balance(self, request: Request) -> Response:
        key = await self.authenticator.authenticate(request.scope["headers"])
        if request.method == "PUT":
            asked = await json_body(request, ThresholdRequest)
            threshold = None if asked.threshold_millicredits is None else int(asked.threshold_millicredits)
            await self.money.low_balance.set_threshold(key.account_id, threshold)
        found = await self.money.low_balance.threshold(key.account_id)
        return json_response({"thresholdMillicredits": None if found is None else str(found)})

    async def _statement(self, request: Request) -> Response:
        key = await self.authenticator.authenticate(request.scope["headers"])
        month, kind = request.query_params.get("month", ""), request.query_params.get("format", "csv")
        if kind not in ("csv", "pdf"):
            raise invalid("`format` is csv or pdf.", "format")
        try:
            statement = await self.statements.read(key.account_id, month)
        except ValueError:
            raise invalid("`month` is written YYYY-MM.", "month") from None
        body, media = (statement_csv(statement), "text/csv") if kind == "csv" else (statement_pdf(statement), "application/pdf")
        headers = {"content-disposition": f'attachment; filename="statement-{month}.{kind}"', "cache-control": "no-store"}
        return Response(body, 200, headers, media)

    def _available(self) -> bool:
        return self.money.keys is not None and self.money.settings.billing.auto_recharge


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
