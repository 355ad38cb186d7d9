"""The customer's side API: balance, ledger, usage, one request's record. Bearer key, JSON; see openapi.json.

Amounts are strings of millicredits; credits and USD are numbers for display. Times are ISO 8601 in UTC.
"""

import base64
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.accounts import ApiKey
from billing.database import now_ms
from billing.errors import AccountNotFound, StoreUnavailable
from billing.ledger import Ledger, UsageFilters
from billing.money import display_credits, display_usd, package_credits
from proxy.authenticate import may_use_model
from proxy.endpoints import METERED, REALTIME
from proxy.rejections import Rejection, invalid, not_found, unavailable
from proxy.services import Services
from proxy.switches import banners

RECENT = 10
DEFAULT_LIMIT = 50
MAX_LIMIT = 200
SERVED = frozenset([*(path.decode() for _, path in METERED), REALTIME.name])
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST_MS, LATEST_MS = -62_135_596_800_000, 253_402_300_799_999
"""The first and the last moment that have a name in ISO 8601: the years 1 to 9999 in UTC."""
CURSOR = re.compile(rb"([0-9]{1,15}):([!-~]{1,80})")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class AccountApi:
    """The handlers and what they need."""

    services: Services
    ledger: Ledger

    def routes(self) -> list[Route]:
        """What to mount."""
        return [
            Route("/api/billing/me", answering(self._me)),
            Route("/api/billing/ledger", answering(self._ledger)),
            Route("/api/billing/usage", answering(self._usage)),
            Route("/api/billing/generations/{request_id}", answering(self._generation)),
        ]

    async def _me(self, request: Request) -> Response:
        key = await self._key(request)
        reading = await self.services.balances.read(key.account_id)
        available = reading.balance - reading.held
        return json_response(
            {
                "accountId": key.account_id,
                "balanceMillicredits": str(reading.balance),
                "balanceCredits": display_credits(reading.balance),
                "balanceUsd": display_usd(reading.balance),
                "heldMillicredits": str(reading.held),
                "availableMillicredits": str(available),
                "availableCredits": display_credits(available),
                "packages": [
                    self._package(package.code, package.usd, package.bonus_percent) for package in self.services.settings.packages
                ],
                "banner": " ".join(banners(self.services.settings, key.account_id)) or None,
                "purchasesEnabled": self.services.settings.billing.purchase_enabled,
                "activeRates": self._rates(key),
                "recentLedger": [ledger_row(row) for row in await self.ledger.transfers_of(key.account_id, RECENT)],
                "recentUsage": [usage_row(row) for row in await self.ledger.usage_of(key.account_id, RECENT)],
            }
        )

    async def _ledger(self, request: Request) -> Response:
        key = await self._key(request)
        limit = page_limit(request)
        cursor = request.query_params.get("cursor")
        before = None if cursor is None else whole_number(cursor, "cursor")
        rows = await self.ledger.transfers_of(key.account_id, limit + 1, before)
        following = str(rows[limit - 1]["id"]) if len(rows) > limit else None
        return json_response({"data": [ledger_row(row) for row in rows[:limit]], "nextCursor": following})

    async def _usage(self, request: Request) -> Response:
        key = await self._key(request)
        limit, query = page_limit(request), request.query_params
        filters = UsageFilters(
            model=query.get("model"),
            key_id=query.get("keyId"),
            endpoint=query.get("endpoint"),
            since_ms=asked_time(query.get("since"), "since"),
            until_ms=asked_time(query.get("until"), "until"),
            before=page_cursor(query.get("cursor")),
        )
        rows = await self.ledger.usage_of(key.account_id, limit + 1, filters)
        following = page_cursor_of(rows[limit - 1]["created_at"], rows[limit - 1]["charge_id"]) if len(rows) > limit else None
        return json_response({"data": [usage_row(row) for row in rows[:limit]], "nextCursor": following})

    async def _generation(self, request: Request) -> Response:
        key = await self._key(request)
        request_id = request.path_params["request_id"]
        rows = await self.ledger.usage_of(key.account_id, 1, UsageFilters(request_id=request_id))
        if not rows:
            raise not_found("There is no such request of yours, or it was not charged and so has no record.", "request_not_found")
        return json_response({**usage_row(rows[0]), **_details(rows[0])})

    async def _key(self, request: Request) -> ApiKey:
        return await self.services.authenticator.authenticate(request.scope["headers"], request.scope["client"])

    def _rates(self, key: ApiKey) -> list[dict[str, Any]]:
        found, prices = [], self.services.prices
        for name in prices.names():
            model = prices.find(name)
            if model is None or not may_use_model(name, self.services.settings.billing.model_allowlist, key.rules.models):
                continue
            if "default" in model.tiers and not SERVED.isdisjoint(model.endpoints):
                found.append({"model": name, **msgspec.json.decode(model.tiers["default"].short.snapshot)})
        return found

    @staticmethod
    def _package(code: str, usd: str, bonus_percent: str) -> dict[str, Any]:
        paid, bonus = package_credits(usd, bonus_percent)
        return {
            "code": code,
            "usd": usd,
            "bonusPercent": bonus_percent,
            "millicredits": str(paid + bonus),
            "credits": display_credits(paid + bonus),
        }


def answering(handler: Handler) -> Handler:
    """A handler whose refusals and store failures become OpenAI-shaped answers."""

    async def wrapped(request: Request) -> Response:
        try:
            check_parameters(request)
            return await handler(request)
        except Rejection as rejection:
            return rejected(rejection)
        except (StoreUnavailable, AccountNotFound):
            return rejected(unavailable("This cannot be read right now. Try again shortly.", "store_unavailable"))

    return wrapped


def check_parameters(request: Request) -> None:
    """Raises Rejection for a NUL character in the path or the query: PostgreSQL cannot compare it, and nothing of ours is called so."""
    for name, value in (*request.path_params.items(), *request.query_params.multi_items()):
        if "\0" in name or "\0" in value:
            shown = name.replace("\0", "")
            raise invalid(f"`{shown}` holds a NUL character.", shown)


def rejected(rejection: Rejection) -> Response:
    """A refusal as a response."""
    headers = {name.decode(): value.decode() for name, value in rejection.headers()}
    return Response(rejection.body(), rejection.status, headers, "application/json")


def json_response(value: Any, status: int = 200) -> Response:
    """JSON that no cache keeps."""
    return Response(msgspec.json.encode(value), status, {"cache-control": "no-store"}, "application/json")


def usage_row(row: dict[str, Any]) -> dict[str, Any]:
    """A usage row as customers see it."""
    return {
        "requestId": row["charge_id"],
        "keyId": row["key_id"],
        "endpoint": row["endpoint"],
        "model": row["model"],
        "serviceTier": row["service_tier"],
        "stream": bool(row["stream"]),
        "inputTokens": row["input_tokens"],
        "outputTokens": row["output_tokens"],
        "cachedTokens": row["cached_tokens"],
        "cacheWriteTokens": row["cache_write_tokens"],
        "reasoningTokens": row["reasoning_tokens"],
        "audioInputTokens": row["audio_input_tokens"],
        "audioOutputTokens": row["audio_output_tokens"],
        "imageInputTokens": row["image_input_tokens"],
        "imageOutputTokens": row["image_output_tokens"],
        "audioMilliseconds": row["audio_milliseconds"],
        "characters": row["characters"],
        "chargedMillicredits": str(row["charged_millicredits"]),
        "chargedCredits": display_credits(row["charged_millicredits"]),
        "usageSource": row["usage_source"],
        "outcome": row["outcome"],
        "free": bool(row["free"]),
        "createdAt": iso_time(row["created_at"]),
    }


def _details(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "billedModel": row["billed_model"],
        "heldMillicredits": str(row["held_millicredits"]),
        "webSearches": row["web_searches"],
        "toolCalls": msgspec.json.decode(row["tool_calls"]) if row["tool_calls"] else {},
        "rates": msgspec.json.decode(row["rates"]),
        "status": row["status"],
        "firstByteMs": row["first_byte_ms"],
        "durationMs": row["duration_ms"],
        "upstreamId": row["upstream_id"],
    }


def ledger_row(row: dict[str, Any]) -> dict[str, Any]:
    """A ledger row as customers see it."""
    return {
        "id": str(row["id"]),
        "kind": row["kind"],
        "amountMillicredits": str(row["effect"]),
        "amountCredits": display_credits(row["effect"]),
        "referenceType": row["reference_type"],
        "referenceId": row["reference_id"],
        "purchaseId": row["purchase_id"],
        "reason": row["reason"],
        "createdAt": iso_time(row["created_at"]),
    }


def iso_time(milliseconds: int) -> str:
    """Unix milliseconds as ISO 8601 in UTC. What lies beyond the years 1 to 9999, which once could be stored, is their end."""
    named = min(max(milliseconds, EARLIEST_MS), LATEST_MS)
    return (EPOCH + timedelta(milliseconds=named)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_time(text: str) -> int:
    """A time in ISO 8601 (UTC unless it says otherwise) in Unix milliseconds. Raises ValueError, also beyond the years 1 to 9999 in UTC."""
    moment = datetime.fromisoformat(text)
    found = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    if not EARLIEST_MS <= found <= LATEST_MS:
        raise ValueError("in UTC this is no year from 1 to 9999")
    return found


def page_limit(request: Request) -> int:
    """How many rows a page has. Raises Rejection."""
    raw = request.query_params.get("limit")
    limit = DEFAULT_LIMIT if raw is None else whole_number(raw, "limit")
    if not 1 <= limit <= MAX_LIMIT:
        raise invalid(f"`limit` must be between 1 and {MAX_LIMIT}.", "limit")
    return limit


def whole_number(raw: str, name: str) -> int:
    """A number of a query. Raises Rejection."""
    if not raw.isascii() or not raw.isdigit() or len(raw) > 18:
        raise invalid(f"`{name}` must be a whole number.", name)
    return int(raw)


def asked_time(raw: str | None, name: str) -> int | None:
    """A time in ISO 8601 (UTC unless it says otherwise) in Unix milliseconds. Raises Rejection."""
    if raw is None:
        return None
    try:
        return read_time(raw)
    except ValueError:
        raise invalid(f"`{name}` must be an ISO 8601 time such as 2026-11-23T12:00:00Z.", name) from None


def asked_end(raw: str | None, name: str) -> int | None:
    """When something is to end, in Unix milliseconds; None: never. Raises Rejection, also for what is over already."""
    ends = asked_time(raw, name)
    if ends is not None and ends <= now_ms():
        raise invalid(f"`{name}` is in the past.", name)
    return ends


def page_cursor_of(created_at: int, row_id: str) -> str:
    """Where the next page begins: after this row."""
    return base64.urlsafe_b64encode(f"{created_at}:{row_id}".encode()).decode().rstrip("=")


def page_cursor(raw: str | None) -> tuple[int, str] | None:
    """The (created_at, id) of the last row seen. Raises Rejection."""
    if raw is None:
        return None
    try:
        found = CURSOR.fullmatch(base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)))
    except ValueError:
        found = None
    if found is None:
        raise invalid("`cursor` is not one of ours: pass `nextCursor` of the page before.", "cursor")
    return int(found[1]), found[2].decode()
