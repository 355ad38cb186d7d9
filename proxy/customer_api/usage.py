"""Usage summed up and as CSV, of one account or of all: what the customers' API and that of admins share.

Amounts are strings of millicredits; days are UTC.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from billing.accounting.usage_summary import GROUPS, MOST_GROUPS, TooManyGroups, UsageSummaries, UsageSums
from billing.ledger.summaries.usage_days import DAY_MS
from billing.ledger.usage_rows import UsageFilters
from billing.money.amounts import display_credits
from billing.money.usage_record import UsageRow
from billing.storage.database import now_ms
from proxy.customer_api.statement_csv import rows_csv
from proxy.gateway.services import Services
from proxy.web.query import parse_time
from proxy.web.rejections import invalid
from proxy.web.times import iso_time

USUAL_DAYS = 30
OWN_GROUPS = ("day", "key", "model", "endpoint", "user", "tag")
"""What customers can group by."""
NOTHING = UsageSums((), 0, 0, 0, 0, 0)
NAMES = {"account": "accountId", "key": "keyId", "user": "endUser"}
"""Groups that rows call otherwise."""
CSV_COLUMNS = (
    *("requestId", "createdAt", "keyId", "endpoint", "model", "billedModel", "serviceTier", "stream"),
    *("inputTokens", "cachedTokens", "cacheWriteTokens", "outputTokens", "reasoningTokens", "audioInputTokens"),
    *("audioOutputTokens", "imageInputTokens", "imageOutputTokens", "audioMilliseconds", "characters", "webSearches"),
    *("chargedMillicredits", "free", "usageSource", "outcome", "endUser", "tags"),
)


def usage_filters(request: Request, only_key: str | None = None) -> UsageFilters:
    """Return the filters of a query; the last 30 days where it names no time. Raises Rejection.

    `only_key`: the one key whose usage is shown.
    """
    query = request.query_params
    until = parse_time(query.get("until"), "until") or now_ms()
    since = parse_time(query.get("since"), "since")
    return UsageFilters(
        model=query.get("model"),
        key_id=only_key or query.get("keyId"),
        endpoint=query.get("endpoint"),
        end_user=query.get("endUser"),
        tag=query.get("tag"),
        since_ms=until - USUAL_DAYS * DAY_MS if since is None else since,
        until_ms=until,
    )


async def usage_summary(
    request: Request,
    services: Services,
    summaries: UsageSummaries,
    account_id: str | None,
    *,
    groups: Sequence[str] = OWN_GROUPS,
    costs: bool = False,
    only_key: str | None = None,
) -> dict[str, Any]:
    """Sum usage by the query's `groupBy`, of one account or (None) of all; `costs`: with what it cost us.

    `only_key`: the one key whose usage is shown.

    Raises Rejection.
    """
    asked = list(filter(None, request.query_params.get("groupBy", "day").split(",")))
    if len(set(asked)) < len(asked) or not set(asked) <= set(groups):
        raise invalid(f"`groupBy` is some of {', '.join(groups)}, with commas between.", "groupBy")
    filters, as_of = usage_filters(request, only_key), services.shown_until
    by = [name for name in GROUPS if name in asked]
    try:
        rows = await summaries.sums(filters, by, account_id)
        total = next(iter(await summaries.sums(filters, (), account_id)), NOTHING)
    except TooManyGroups:
        message = f"There are more than {MOST_GROUPS} groups: ask for a shorter time or fewer names in `groupBy`."
        raise invalid(message, "groupBy") from None
    return {
        "since": iso_time(filters.since_ms or 0),
        "until": iso_time(filters.until_ms or 0),
        "asOf": iso_time(as_of) if as_of else None,
        "groupBy": by,
        "data": [sums_row(by, row, costs=costs) for row in rows],
        "total": _sums(total, costs=costs),
    }


def usage_csv(
    request: Request, summaries: UsageSummaries, account_id: str | None, *, named: bool, only_key: str | None = None
) -> StreamingResponse:
    """Return every request that fits the query. Raises Rejection."""
    return csv_of(usage_filters(request, only_key), summaries, account_id, named=named)


def csv_of(
    filters: UsageFilters, summaries: UsageSummaries, account_id: str | None, *, named: bool
) -> StreamingResponse:
    """Return every request that fits, the newest first, written while it is sent; `named`: with the account."""
    head = ("accountId", *CSV_COLUMNS) if named else CSV_COLUMNS

    async def lines() -> AsyncIterator[bytes]:
        yield rows_csv(head, ()).encode()
        async for page in summaries.requests(filters, account_id):
            rows = [(row.account_id, *_cells(row)) if named else _cells(row) for row in page]
            yield rows_csv(head, rows).partition("\r\n")[2].encode()

    headers = {"content-disposition": 'attachment; filename="usage.csv"', "cache-control": "no-store"}
    return StreamingResponse(lines(), 200, headers, "text/csv; charset=utf-8")


def sums_row(by: Sequence[str], row: UsageSums, *, costs: bool = False) -> dict[str, Any]:
    """One group with its sums."""
    return {**_group(by, row), **_sums(row, costs=costs)}


def _group(by: Sequence[str], row: UsageSums) -> dict[str, Any]:
    """Return a group's names and values; what is not known, or was not said, is null."""
    found: dict[str, Any] = {}
    for name, value in zip(by, row.group, strict=True):
        found[NAMES.get(name, name)] = _day(int(value)) if name == "day" else value or None
    return found


def _day(number: int) -> str:
    """Write a whole day since 1970 as a date."""
    return datetime.fromtimestamp(number * DAY_MS // 1_000, UTC).date().isoformat()


def _sums(row: UsageSums, *, costs: bool) -> dict[str, Any]:
    found = {
        "requests": row.requests,
        "inputTokens": row.input_tokens,
        "outputTokens": row.output_tokens,
        "chargedMillicredits": str(row.charged),
        "chargedCredits": display_credits(row.charged),
    }
    return {**found, "costMillicredits": str(row.cost)} if costs else found


def _cells(row: UsageRow) -> tuple[str, ...]:
    cells = (
        *(row.charge_id, iso_time(row.created_at), row.key_id, row.endpoint, row.model, row.billed_model),
        *(row.service_tier, "yes" if row.stream else "no", row.input_tokens, row.cached_tokens, row.cache_write_tokens),
        *(row.output_tokens, row.reasoning_tokens, row.audio_input_tokens, row.audio_output_tokens),
        *(row.image_input_tokens, row.image_output_tokens, row.audio_milliseconds, row.characters, row.web_searches),
        *(
            row.charged_millicredits,
            "yes" if row.free else "no",
            row.usage_source,
            row.outcome,
            row.end_user,
            row.tags.replace("\n", ","),
        ),
    )
    return tuple(str(cell) for cell in cells)
