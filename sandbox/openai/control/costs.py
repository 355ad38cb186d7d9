"""GET /v1/organization/costs: the price of the simulator's answers, from its own record and its own arithmetic.

Costs are by UTC day and line item, such as "gpt-4o-2024-08-06, input". The prices are the catalogue's, each price times
the tokens that the record says; hosted image tools are left out, for the record does not name their model. Live
settings shift the days and skew models' sums, so that a test can ask for a finished day and for a wrong one.
"""

import base64
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from decimal import Decimal
from importlib.resources import files
from typing import Any, Final
from urllib.parse import parse_qs

from sandbox.openai.exchange.answer import Answer, Request, json_answer
from sandbox.openai.exchange.record import Log
from sandbox.openai.requests.errors import error_object
from sandbox.openai.steering.settings import Live

COSTS_PATH: Final = "/v1/organization/costs"
_DAY: Final = 86_400
_MILLION: Final = Decimal(1_000_000)
_DATED: Final = re.compile(r"^(.+)-\d{4}-\d{2}-\d{2}$")
_LONG_PROMPT: Final = 272_000
_DEFAULT_BUCKETS, _MOST_BUCKETS = 7, 180
_TOOLS: Final = (
    ("web search", "web_search"),
    ("file search", "file_search"),
    ("code interpreter", "code_interpreter_1g"),
)

Cost = tuple[str, Decimal]
"""(line item, USD)."""


class Costs:
    """Costs page, for whoever has the admin key."""

    def __init__(self, log: Log, admin_key: str) -> None:
        """Price the entries of `log`, the simulator's record."""
        self._log, self._bearer = log, f"Bearer {admin_key}"
        self._catalogue: dict[str, Any] = json.loads(
            files("config").joinpath("prices/catalogue.json").read_text(encoding="utf-8")
        )

    def answer(self, request: Request, live: Live) -> Answer:
        """One page of days."""
        if request.headers.get("authorization") != self._bearer:
            message = "You have insufficient permissions for this operation. Missing scopes: api.usage.read."
            return json_answer({"error": error_object(message, "invalid_request_error")}, 403)
        asked = parse_qs(request.query)
        try:
            start, end = (int(asked[name][0]) // _DAY * _DAY for name in ("start_time", "end_time"))
            limit = min(int(asked.get("limit", [str(_DEFAULT_BUCKETS)])[0]), _MOST_BUCKETS)
            page = asked.get("page", [""])[0]
            first = int(base64.urlsafe_b64decode(page).decode()) if page else start
        except (KeyError, ValueError):
            return json_answer(
                {"error": error_object("start_time, end_time, limit or page is wrong.", "invalid_request_error")}, 400
            )
        spent = self._spent(live)
        days = list(range(first, end, _DAY))
        shown, rest = days[:limit], days[limit:]
        by_item = "line_item" in asked.get("group_by", [])
        return json_answer(
            {
                "object": "page",
                "data": [_bucket(day, spent.get(day, {}), by_item=by_item) for day in shown],
                "has_more": bool(rest),
                "next_page": base64.urlsafe_b64encode(str(rest[0]).encode()).decode() if rest else None,
            }
        )

    def _spent(self, live: Live) -> dict[int, dict[str, Decimal]]:
        """Day → line item → USD."""
        spent: defaultdict[int, defaultdict[str, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
        for entry in self._log.show(None, 0, brief=True)["records"]:
            day = int(entry["receivedAt"]) // _DAY * _DAY - live.costs_shift_days * _DAY
            for item, usd in self._of(entry):
                skew = live.costs_skew_percent.get(_undated(item.partition(",")[0]), 0)
                spent[day][item] += usd * (100 + Decimal(str(skew))) / 100
        return {day: dict(items) for day, items in spent.items()}

    def _of(self, entry: Mapping[str, Any]) -> Iterator[Cost]:
        usage, model = entry["usage"], entry["servedModel"] or entry["model"]
        if isinstance(usage, dict) and usage.get("type") == "search":
            yield from self._tools(entry)
        if not isinstance(usage, dict) or not model:
            return
        row = self._catalogue["models"].get(model) or self._catalogue["models"].get(_undated(model))
        if row is None:
            return
        for part, usd in _parts(row, usage, entry["serviceTier"]):
            yield f"{model}, {part}", usd
        yield from self._tools(entry)

    def _tools(self, entry: Mapping[str, Any]) -> Iterator[Cost]:
        """Price the calls of hosted tools."""
        tools = entry["toolUsage"] or {}
        numbers = (
            tools.get("web_search", {}).get("num_requests", 0),
            tools.get("file_search", {}).get("num_requests", 0),
            len(tools.get("code_interpreter", {}).get("container_ids", [])),
        )
        for (item, price), number in zip(_TOOLS, numbers, strict=True):
            if number:
                yield item, number * Decimal(self._catalogue["tools"][price])


def _parts(row: Mapping[str, Any], usage: Mapping[str, Any], tier: str | None) -> Iterator[Cost]:
    """Price a model's tokens, seconds or characters, part by part."""
    if usage.get("type") == "duration":
        yield "seconds", Decimal(str(usage["seconds"])) * Decimal(row["per_second"])
        return
    if usage.get("type") == "characters":
        yield "characters", usage["characters"] * Decimal(row["per_character"])
        return
    given = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    produced = usage.get("completion_tokens", usage.get("output_tokens", 0))
    inside = _first(usage, "prompt_tokens_details", "input_tokens_details", "input_token_details")
    outside = _first(usage, "completion_tokens_details", "output_tokens_details", "output_token_details")
    tiers = row["rates"]
    block = tiers.get(tier or "default") or tiers.get("default") or {}
    prices = block.get("long", block.get("short", {})) if given > _LONG_PROMPT else block.get("short", {})
    text_in = Decimal(prices.get("input", "0"))
    text_out = Decimal(prices.get("output", prices.get("image_output", "0")))
    split = inside.get("cache_write_tokens_details") or {}
    written_12h = split.get("ttl_12h_tokens", 0)
    special = [
        ("cached input", inside.get("cached_tokens", 0), Decimal(prices.get("cached_input", prices.get("input", "0")))),
        ("cache write", inside.get("cache_write_tokens", 0) - written_12h, text_in * Decimal("1.25")),
        ("cache write 12h", written_12h, text_in * Decimal("2.5")),
        ("audio input", inside.get("audio_tokens", 0), Decimal(prices.get("audio_input", text_in))),
        ("image input", inside.get("image_tokens", 0), Decimal(prices.get("image_input", text_in))),
    ]
    produced_special = [
        ("audio output", outside.get("audio_tokens", 0), Decimal(prices.get("audio_output", text_out))),
        ("image output", outside.get("image_tokens", 0), Decimal(prices.get("image_output", text_out))),
    ]
    lines = [
        ("input", given - sum(number for _, number, _ in special), text_in),
        *special,
        ("output", produced - sum(number for _, number, _ in produced_special), text_out),
        *produced_special,
    ]
    for part, number, price in lines:
        if number and price:
            yield part, number * price / _MILLION


def _first(usage: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    return next((usage[name] for name in names if isinstance(usage.get(name), dict)), {})


def _undated(model: str) -> str:
    found = _DATED.match(model)
    return found[1] if found else model


def _bucket(day: int, items: Mapping[str, Decimal], *, by_item: bool) -> dict[str, Any]:
    lines: list[tuple[str | None, Decimal]] = [(item, items[item]) for item in sorted(items)]
    if not by_item:
        lines = [(None, sum(items.values(), Decimal()))] if items else []
    results = [
        {
            "object": "organization.costs.result",
            "amount": {"value": float(usd), "currency": "usd"},
            "line_item": item,
            "project_id": None,
        }
        for item, usd in lines
    ]
    return {"object": "bucket", "start_time": day, "end_time": day + _DAY, "results": results}
