"""OpenAI's organization costs (GET /v1/organization/costs), read with an admin key that is never logged."""

from collections import defaultdict
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import httpx
import msgspec

from billing.accounting.daily_finance import day_of, span
from billing.money.errors import StoreUnavailable
from config.secrets import Secret, openai_admin_key, upstream_admin_keys
from config.settings import Settings
from config.upstreams import recorded_name

OPENAI = "https://api.openai.com/v1/organization/costs"
TIMEOUT_SECONDS = 30.0
MOST_PAGES = 1_000
DAYS_A_PAGE = 7
CURRENCY = "usd"


class Amount(msgspec.Struct):
    """Money as OpenAI writes it: a JSON number, or the same as text."""

    value: Decimal = Decimal(0)
    currency: str = CURRENCY


class Line(msgspec.Struct):
    """Cost of one line item in a bucket."""

    amount: Amount
    line_item: str | None = None


class Bucket(msgspec.Struct):
    """One UTC day."""

    start_time: int
    results: list[Line]


class Page(msgspec.Struct):
    """One page of buckets."""

    data: list[Bucket]
    has_more: bool = False
    next_page: str | None = None


class CostPlace(NamedTuple):
    """An organization whose costs are asked for.

    `upstreams`: those that it bills, by their names in records; None: all.
    """

    name: str
    costs: "OpenAICosts"
    upstreams: frozenset[str] | None = None


def cost_places(settings: Settings) -> list[CostPlace]:
    """Find whose costs can be asked for: each upstream's with an admin key of its own, the others' together.

    Raises ConfigError.
    """
    shared, own = openai_admin_key(settings), upstream_admin_keys(settings)
    url = settings.advanced.openai_costs_url
    if not settings.upstreams:
        return [] if shared is None else [CostPlace("", OpenAICosts(url, shared))]
    entries = [entry for entry in settings.upstreams if entry.dialect == "openai"]
    found = [
        CostPlace(
            entry.name,
            OpenAICosts(f"{entry.base_url.rstrip('/')}/organization/costs", own[entry.name]),
            frozenset((recorded_name(entry.name),)),
        )
        for entry in entries
        if entry.name in own
    ]
    others = [entry.name for entry in entries if entry.name not in own]
    if shared is not None and others:
        found.append(CostPlace("", OpenAICosts(url, shared), frozenset(map(recorded_name, others))))
    return found


class OpenAICosts:
    """Asks for days' costs by line item."""

    def __init__(self, url: str, key: Secret) -> None:
        """`url` "": OpenAI's own."""
        self._url, self._key = url or OPENAI, key

    async def days(self, first: date, last: date) -> dict[date, dict[str, Decimal]]:
        """Day → line item → USD, for every day of the span. Raises StoreUnavailable when OpenAI does not say."""
        start, end = span(first)[0] // 1_000, span(last)[1] // 1_000
        query: dict[str, Any] = {
            "start_time": start,
            "end_time": end,
            "bucket_width": "1d",
            "group_by": ["line_item"],
            "limit": DAYS_A_PAGE,
        }
        found: dict[date, defaultdict[str, Decimal]] = {
            first + timedelta(days=number): defaultdict(Decimal) for number in range((last - first).days + 1)
        }
        headers = {"Authorization": f"Bearer {self._key.reveal()}"}
        async with httpx.AsyncClient(headers=headers, timeout=TIMEOUT_SECONDS) as client:
            for _ in range(MOST_PAGES):
                page = await self._page(client, query)
                for bucket in page.data:
                    items = found.get(day_of(bucket.start_time * 1_000))
                    for line in bucket.results if items is not None else ():
                        items[line.line_item or ""] += _usd(line)  # type: ignore[index]
                if not page.has_more or not page.next_page:
                    return {day: dict(items) for day, items in found.items()}
                query["page"] = page.next_page
        raise StoreUnavailable("openai", "the list of costs does not end")

    async def _page(self, client: httpx.AsyncClient, query: dict[str, Any]) -> Page:
        try:
            answer = await client.get(self._url, params=query)
        except httpx.HTTPError as error:
            raise StoreUnavailable("openai", f"costs cannot be read ({type(error).__name__})") from None
        if answer.status_code != httpx.codes.OK:
            hint = ": an admin key is needed (OPENAI_ADMIN_KEY)" if answer.status_code in (401, 403) else ""
            raise StoreUnavailable("openai", f"costs were answered with {answer.status_code}{hint}")
        try:
            return msgspec.json.decode(answer.content, type=Page, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StoreUnavailable("openai", f"costs cannot be understood ({error})") from None


def _usd(line: Line) -> Decimal:
    if line.amount.currency.lower() != CURRENCY:
        raise StoreUnavailable("openai", f"costs are in {line.amount.currency[:10]!r}, not in USD")
    return line.amount.value
