"""The prices of each model for one customer: everyone's, or those of the price plan of their account."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.credits_page.responses import PageResponses
from proxy.credits_page.sign_in import Page, Visitor
from proxy.gateway.admission import models_on_sale
from proxy.gateway.services import Services
from proxy.web.rejections import invalid

COLUMNS = ("input", "cached_input", "output")
"""Prices of a million tokens that nearly every model has, each in a column of its own."""
PER_MILLION, ABOVE = "per_million_tokens", "per_million_tokens_above_"
LABELS = {"unit": "", "service_tier": ""}
"""Members of a price that are no amounts."""


@dataclass(frozen=True, slots=True)
class PagePrices:
    """The handler and what it needs."""

    services: Services
    responses: PageResponses

    def pages(self) -> list[tuple[str, Page]]:
        """Path of each page, and its handler."""
        return [("/credits/prices", self._prices)]

    async def _prices(self, request: Request, visitor: Visitor) -> Response:
        asked, services = request.query_params, self.services
        words, tiers = asked.get("find", "").strip(), services.settings.billing.allowed_service_tiers
        tier = asked.get("tier", "default")
        if tier not in tiers and tier != "default":
            raise invalid("There is no such service tier here.", "tier")
        prices = services.prices_of(visitor.account_id)
        sold = models_on_sale(prices, services.settings.billing, services.today())
        found = [
            (model.name, prices.customer_price(model, tier))
            for model in sold
            if tier in model.tiers and words.lower() in model.name
        ]
        content = {
            "token": visitor.csrf,
            "account": visitor.account_id,
            "find": words,
            "tier": tier,
            "tiers": tiers,
            "own": bool(prices.plan_id),
            "rows": [_row(name, price) for name, price in found],
        }
        return self.responses.page("prices.html", content)


def _row(name: str, price: msgspec.Raw) -> dict[str, Any]:
    """One model's prices as the table has them; what few models have stands together in the last column."""
    members = msgspec.json.decode(price, type=dict[str, msgspec.Raw])
    tokens = _amounts(members.get(PER_MILLION))
    more = [(_words(part), amount) for part, amount in tokens.items() if part not in COLUMNS]
    for member, raw in members.items():
        if member.startswith(ABOVE):
            above = f"above {member.removeprefix(ABOVE).removesuffix('_input')} input tokens"
            more += [(f"{_words(part)} {above}", amount) for part, amount in _amounts(raw).items()]
        elif member != PER_MILLION and member not in LABELS:
            words = _words(member) if member.startswith("per_") else f"a {_words(member)}"
            more.append((words, msgspec.json.decode(raw, type=Decimal)))
    shown = {part: _credits(tokens[part]) if part in tokens else "" for part in COLUMNS}
    return {"model": name, **shown, "more": [{"what": what, "credits": _credits(amount)} for what, amount in more]}


def _amounts(raw: msgspec.Raw | None) -> Mapping[str, Decimal]:
    return {} if raw is None else msgspec.json.decode(raw, type=dict[str, Decimal])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _credits(amount: Decimal) -> str:
    return f"{amount:,f}"
