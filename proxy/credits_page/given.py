"""Credits with rules on the Credits page: what expires, and the form for a promo code."""

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from billing.ledger.credits.lots import LotRow
from proxy.credits_page.formatting import moment
from proxy.credits_page.responses import PageResponses
from proxy.credits_page.sign_in import Page, Visitor
from proxy.customer_api.credits.expiring import source_of
from proxy.customer_api.credits.promos_api import PromoDesk
from proxy.web.display import exact_credits
from proxy.web.rejections import Rejection

SOURCES = {"bonus": "bonus credits", "grant": "credits that you were given"}
NAMES = {"promo": "Promo code", "welcome": "Welcome credits", "expiry": "Expired"}
"""Bookings that are told apart by what gave or took the credits."""


@dataclass(frozen=True, slots=True)
class GivenCredits:
    """The handler and what it needs."""

    desk: PromoDesk
    responses: PageResponses

    def forms(self) -> list[tuple[str, Page]]:
        """Path of each form, and its handler."""
        return [("/credits/promo", self._redeem)]

    async def _redeem(self, request: Request, visitor: Visitor) -> Response:
        code = str((await request.form()).get("code", ""))
        try:
            done = await self.desk.redeem(visitor.account_id, code, visitor.who(request))
        except Rejection as refused:
            return self.responses.message("That code did not work", refused.message, refused.status, back=True)
        return self.responses.redirect(f"/credits?done={'promo-again' if done.again else 'promo'}")


def expiring_view(rows: list[LotRow]) -> list[dict[str, Any]]:
    """Return what expires, the next first, for people."""
    return [
        {
            "credits": exact_credits(row.remaining_millicredits),
            "at": moment(row.expires_at),
            "source": SOURCES[source_of(row)],
        }
        for row in rows
    ]
