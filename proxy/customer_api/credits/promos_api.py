"""Redeeming promo codes: POST /api/billing/promo, and the same for the Credits page."""

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.ledger.audit_log import Who
from billing.ledger.credits.promos import PromoNotFound, PromoOver, Promos, Redemption
from billing.money.amounts import display_credits
from billing.money.errors import AccountClosed
from proxy.customer_api.callers import authenticate, customer
from proxy.gateway.authenticate import Authenticator
from proxy.web.http import json_body, json_handler, json_response
from proxy.web.rejections import Rejection, not_found, too_many
from proxy.web.times import iso_time

WINDOW_SECONDS, MOST_WRONG, MOST_ACCOUNTS = 3_600.0, 20, 10_000


class PromoRequest(msgspec.Struct, rename="camel", frozen=True):
    """A code."""

    code: str


@dataclass(slots=True)
class WrongCodes:
    """Codes that accounts have tried in vain, so that nobody guesses one. Per process, bounded in memory."""

    tried: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict)

    def check(self, account_id: str) -> None:
        """Raise Rejection (429) while the account has tried too many."""
        since, times = self.tried.get(account_id, (0.0, 0))
        left = since + WINDOW_SECONDS - time.monotonic()
        if times >= MOST_WRONG and left > 0:
            words = "Too many codes were tried that are none. Try again later."
            raise too_many(words, "too_many_codes", max(1_000, round(left * 1_000)))

    def count(self, account_id: str) -> None:
        """Count one."""
        now = time.monotonic()
        since, times = self.tried.pop(account_id, (now, 0))
        self.tried[account_id] = (since, times + 1) if now - since < WINDOW_SECONDS else (now, 1)
        if len(self.tried) > MOST_ACCOUNTS:
            self.tried.popitem(last=False)


@dataclass(frozen=True, slots=True)
class PromoDesk:
    """Redeems codes for customers, by whatever door."""

    promos: Promos
    wrong: WrongCodes

    async def redeem(self, account_id: str, code: str, who: Who) -> Redemption:
        """Give an account what a code gives, once. Raises Rejection, StoreUnavailable."""
        self.wrong.check(account_id)
        try:
            return await self.promos.redeem(account_id, code, who)
        except PromoNotFound:
            self.wrong.count(account_id)
            raise not_found("There is no such code. Check the spelling.", "promo_not_found") from None
        except PromoOver as over:
            raise Rejection(409, "promo_used_up" if over.used_up else "promo_over", str(over), param="code") from None
        except AccountClosed:
            raise Rejection(409, "account_closed", "This account is closed.") from None


@dataclass(frozen=True, slots=True)
class PromosApi:
    """The handler and what it needs."""

    desk: PromoDesk
    authenticator: Authenticator

    def routes(self) -> list[Route]:
        """Routes to mount."""
        return [Route("/api/billing/promo", json_handler(self._redeem), methods=["POST"])]

    async def _redeem(self, request: Request) -> Response:
        key = await authenticate(self.authenticator, request)
        asked = await json_body(request, PromoRequest)
        return json_response(redemption_row(await self.desk.redeem(key.account_id, asked.code, customer(key, request))))


def redemption_row(done: Redemption) -> dict[str, Any]:
    """Return what a code gave."""
    return {
        "code": done.code,
        "millicredits": str(done.amount),
        "credits": display_credits(done.amount),
        "expiresAt": iso_time(done.expires_at) if done.expires_at is not None else None,
        "again": done.again,
    }
