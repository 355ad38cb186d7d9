"""Usage and the account's one list: what was spent by day, key and model, and every change of the balance.

Without a filter the list is the ledger, whose charges say model, key and tokens; with one it is the requests that fit.
Days are UTC; the usual time is the last 30 days.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from billing.accounting.usage_summary import TooManyGroups, UsageSums
from billing.ledger.accounts import Accounts, KeyRow
from billing.ledger.portal_tokens import DAY_MS
from billing.ledger.transfers import TransferRow
from billing.ledger.usage_rows import UsageFilters
from billing.money.usage_record import UsageRow
from billing.storage.database import now_ms
from proxy.credits_page.formatting import moment
from proxy.credits_page.given import NAMES
from proxy.credits_page.sign_in import Page, Visitor
from proxy.credits_page.spend_chart import DAYS, DaySpend, spend_chart
from proxy.customer_api.account import AccountApi
from proxy.customer_api.usage import csv_of
from proxy.web.display import short_credits, signed_credits
from proxy.web.forms import NOT_REFUSED, RefusedForm
from proxy.web.query import read_cursor, write_cursor
from proxy.web.rejections import Rejection, invalid

ROWS = 20
MOST_DAYS = 92
YEARS = range(2000, 2200)
"""Beyond them nothing was charged, and days before and after one might have no date."""
MOST_SUMS = 50
"""Lines of the sums by key and model; those that cost most."""
USAGE = "usage"
FILTERS = ("key", "model", "from", "to")
KINDS = {
    "purchase": "Purchase",
    "purchase_bonus": "Bonus",
    USAGE: "Usage",
    "adjustment": "Adjustment",
    "refund": "Refund",
    "refund_bonus": "Refund of a bonus",
    "dispute": "Dispute",
    "dispute_bonus": "Dispute of a bonus",
}


class Chosen(NamedTuple):
    """Filters that the visitor chose; first and last day are included. `is_set`: any was chosen at all."""

    key: str
    model: str
    first: date
    last: date
    is_set: bool

    def of_time(self) -> UsageFilters:
        """Return the days alone."""
        return UsageFilters(since_ms=_midnight(self.first), until_ms=_midnight(self.last + timedelta(days=1)))

    def filters(self) -> UsageFilters:
        """Return all of them."""
        return self.of_time()._replace(key_id=self.key or None, model=self.model or None)

    def query(self) -> str:
        """Write them as they stand in an address; "" where none is set."""
        named = {"key": self.key, "model": self.model, "from": str(self.first), "to": str(self.last)}
        return urlencode({name: value for name, value in named.items() if value}) if self.is_set else ""


@dataclass(frozen=True, slots=True)
class PageActivity:
    """The handlers and what they need."""

    api: AccountApi
    accounts: Accounts

    def pages(self) -> list[tuple[str, Page]]:
        """Path of each page, and its handler."""
        return [("/credits/usage.csv", self._csv)]

    async def view(self, account: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return what the sections of usage and activity show."""
        wrong, today = NOT_REFUSED, datetime.fromtimestamp(now_ms() / 1_000, UTC).date()
        try:
            chosen = read_filters(query, today)
        except Rejection as refusal:
            wrong = _refused_filter(query, refusal.param or "", refusal.message)
            chosen = read_filters({}, today)
        keys = {row.id: row for row in await self.accounts.keys_of(account)}
        names = {key_id: row.name or row.hint for key_id, row in keys.items()}
        shown = {
            "filter": chosen,
            "query": chosen.query(),
            "keys": _key_choices(list(keys.values())),
            "list": await self._list(account, chosen, query, names),
        }
        try:
            return {**shown, **await self._sums(account, chosen, names), "wrong": wrong}
        except TooManyGroups:
            text = "There are too many keys and models in this time to sum up here: choose fewer days."
            wrong = _refused_filter(query, "from", text)
            return {**shown, "models": [], "sums": [], "more_sums": 0, "chart": spend_chart([], 0), "wrong": wrong}

    async def _sums(self, account: str, chosen: Chosen, names: Mapping[str, str]) -> dict[str, Any]:
        """Sum up the chosen time by key and model, and by day and model. Raises TooManyGroups."""
        summaries = self.api.summaries
        every = await summaries.sums(chosen.of_time(), ("key", "model"), account)
        days = await summaries.sums(chosen.filters(), ("day", "model"), account)
        fitting = [row for row in every if _fits(row, chosen)]
        dearest = sorted(fitting, key=lambda row: (-row.charged, row.group))
        spend = [DaySpend(int(row.group[0]), row.group[1], row.charged) for row in days]
        last = _midnight(chosen.last) // DAY_MS
        return {
            "models": sorted({row.group[1] for row in every}),
            "sums": [_sum_row(row, names) for row in dearest[:MOST_SUMS]],
            "more_sums": max(0, len(dearest) - MOST_SUMS),
            "chart": spend_chart(spend, last, (chosen.last - chosen.first).days + 1),
        }

    async def _list(
        self, account: str, chosen: Chosen, query: Mapping[str, str], names: Mapping[str, str]
    ) -> dict[str, Any]:
        """One page of the list, and the cursor of the next."""
        cursor, ledger = query.get("older"), self.api.ledger
        if chosen.is_set or query.get("show") == "requests":
            filters = chosen.filters() if chosen.is_set else UsageFilters()
            rows = await ledger.usage_of(account, ROWS + 1, filters._replace(before=read_cursor(cursor)))
            following = write_cursor(rows[ROWS - 1].created_at, rows[ROWS - 1].charge_id) if len(rows) > ROWS else None
            shown = [_request_row(row, names, -row.charged_millicredits) for row in rows[:ROWS]]
            return {"rows": shown, "next": following, "paged": bool(cursor), "requests": True}
        before = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() and len(cursor) < 19 else None
        moved = await ledger.transfers_of(account, ROWS + 1, before)
        charged = [row.reference_id for row in moved[:ROWS] if row.kind == USAGE]
        requests = {row.charge_id: row for row in await ledger.usage_named(account, charged)}
        shown = [
            _request_row(requests[row.reference_id], names, row.effect)
            if row.reference_id in requests
            else _transfer_row(row)
            for row in moved[:ROWS]
        ]
        following = str(moved[ROWS - 1].id) if len(moved) > ROWS else None
        return {"rows": shown, "next": following, "paged": before is not None, "requests": False}

    async def _csv(self, request: Request, visitor: Visitor) -> Response:
        """Send every request of the chosen time as CSV."""
        today = datetime.fromtimestamp(now_ms() / 1_000, UTC).date()
        filters = read_filters(request.query_params, today).filters()
        return csv_of(filters, self.api.summaries, visitor.account_id, named=False)


def read_filters(query: Mapping[str, str], today: date) -> Chosen:
    """Read the filters of an address; the last 30 days where it names none. Raises Rejection, with the field."""
    last = _day(query.get("to", ""), "to") or today
    first = _day(query.get("from", ""), "from") or min(last, today) - timedelta(days=DAYS - 1)
    if first > last:
        raise invalid("The first day is after the last one.", "from")
    if (last - first).days >= MOST_DAYS:
        raise invalid(f"Choose at most {MOST_DAYS} days. Statements below have whole months.", "from")
    is_set = any(query.get(name, "").strip() for name in FILTERS)
    return Chosen(query.get("key", "").strip(), query.get("model", "").strip(), first, last, is_set)


def _refused_filter(query: Mapping[str, str], field: str, text: str) -> RefusedForm:
    return RefusedForm("filter", field, text, {name: query.get(name, "") for name in FILTERS})


def _day(text: str, field: str) -> date | None:
    if not text.strip():
        return None
    try:
        found = datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        found = None
    if found is None or found.year not in YEARS:
        raise invalid("Write a day like 2026-11-23.", field)
    return found


def _midnight(day: date) -> int:
    """Unix milliseconds at which a UTC day begins."""
    return (day - date(1970, 1, 1)).days * DAY_MS


def _fits(row: UsageSums, chosen: Chosen) -> bool:
    key, model = row.group
    return chosen.key in ("", key) and chosen.model in ("", model)


def _key_choices(keys: Sequence[KeyRow]) -> list[dict[str, str]]:
    return [{"id": row.id, "text": f"{row.name} ({row.hint})" if row.name else row.hint} for row in reversed(keys)]


def _sum_row(row: UsageSums, names: Mapping[str, str]) -> dict[str, str]:
    key, model = row.group
    return {
        "key": names.get(key, key) or "not by a key",
        "model": model,
        "requests": f"{row.requests:,}",
        "input": f"{row.input_tokens:,}",
        "output": f"{row.output_tokens:,}",
        "credits": short_credits(row.charged),
    }


def _request_row(row: UsageRow, names: Mapping[str, str], effect: int) -> dict[str, Any]:
    return {
        "at": moment(row.created_at),
        "what": row.model,
        "key": names.get(row.key_id, row.key_id),
        "input": f"{row.input_tokens:,}",
        "output": f"{row.output_tokens:,}",
        "reference": row.charge_id,
        "credits": "free" if row.free else signed_credits(effect),
    }


def _transfer_row(row: TransferRow) -> dict[str, Any]:
    return {
        "at": moment(row.created_at),
        "what": NAMES.get(row.reference_type) or KINDS.get(row.kind, row.kind.replace("_", " ").capitalize()),
        "reason": row.reason if row.reason_shown else "",
        "reference": row.reference_id,
        "purchase": row.purchase_id if row.purchase_id != row.reference_id else None,
        "credits": signed_credits(row.effect),
    }
