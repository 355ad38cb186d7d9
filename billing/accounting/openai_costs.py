"""Our cost of a day by model against what OpenAI says that day cost. Findings only.

OpenAI names what it bills by line items such as "gpt-4o-2024-08-06, input" or "web search". The model is what stands
before the comma, its date left out. What a request spent on hosted tools is in our row of the request, and in OpenAI's
list under the tool or under the tool's own model; so the models whose requests used tools that day are compared
together with everything that has no requests of ours.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from sqlalchemy import case, func, or_, select

from billing.accounting.daily_finance import DAY_MS, span
from billing.money.amounts import MILLICREDITS_PER_USD
from billing.money.catalogue.models import DATED
from billing.money.findings import Finding
from billing.storage.database import Database
from billing.storage.tables.core import usage, usage_daily

CHECK = "our cost vs OpenAI's"
WITH_TOOLS = "hosted tools and the models that used them"
PART = re.compile(r"\s*[,|]\s*")
UNNAMED = "(no line item)"


class OwnCost(NamedTuple):
    """A model's cost on a day by our rows, in millicredits; each request's was rounded up."""

    amount: int
    requests: int
    tools: bool


async def own_costs(database: Database, day: date, upstreams: Collection[str] | None = None) -> dict[str, OwnCost]:
    """Model (without its date) → what it cost on a day, at all upstreams or at these. Raises StoreUnavailable."""
    start, end = span(day)
    with_tools = or_(usage.c.tool_calls != "", usage.c.web_searches > 0, usage.c.rates.like('%"more":%'))
    name = case((usage.c.billed_model != "", usage.c.billed_model), else_=usage.c.model)
    of_these = [] if upstreams is None else [usage.c.upstream.in_(sorted(upstreams))]
    detail = (
        select(name, func.sum(usage.c.cost_millicredits), func.count(), func.max(case((with_tools, 1), else_=0)))
        .where(usage.c.created_at >= start, usage.c.created_at < end, *of_these)
        .group_by(name)
    )
    kept = usage_daily.c
    sums = select(kept.billed_model, kept.model, func.sum(kept.cost_millicredits), func.sum(kept.requests)).where(
        kept.asked_day == start // DAY_MS, *([] if upstreams is None else [kept.upstream.in_(sorted(upstreams))])
    )
    found: dict[str, OwnCost] = {}
    async with database.read() as connection:
        for model, amount, requests, tools in await connection.execute(detail):
            _add(found, model, int(amount), int(requests), tools=bool(tools))
        for billed, model, amount, requests in await connection.execute(sums.group_by(kept.billed_model, kept.model)):
            # which of them used tools went with the detail
            _add(found, billed or model, int(amount), int(requests), tools=True)
    return found


def _add(found: dict[str, OwnCost], model: str, amount: int, requests: int, *, tools: bool) -> None:
    name = model_of(model)
    known = found.get(name, OwnCost(0, 0, False))
    found[name] = OwnCost(known.amount + amount, known.requests + requests, known.tools or tools)


def model_of(line_item: str) -> str:
    """Return the model of a line item without its date: "gpt-4o-2024-08-06, cached input" → "gpt-4o"."""
    name = PART.split(line_item.strip())[0] or UNNAMED
    dated = DATED.match(name)
    return dated[1] if dated else name


def compare_costs(
    day: date, ours: Mapping[str, OwnCost], billed: Mapping[str, Decimal], tolerance_percent: int
) -> list[Finding]:
    """Compare a day; `billed`: OpenAI's USD by line item.

    A difference within the tolerance, or of rounding, is none.
    """
    theirs: defaultdict[str, Fraction] = defaultdict(Fraction)
    for item, usd in billed.items():
        theirs[model_of(item)] += Fraction(usd) * MILLICREDITS_PER_USD
    joint = {name for name, cost in ours.items() if cost.tools}
    if joint:
        joint |= theirs.keys() - ours.keys()
    findings = []
    for name in sorted((ours.keys() | theirs.keys()) - joint):
        findings += _compare(
            f"{day.isoformat()} {name}", ours.get(name, OwnCost(0, 0, False)), theirs[name], tolerance_percent
        )
    if joint:
        together = OwnCost(
            sum(ours[name].amount for name in joint & ours.keys()),
            sum(ours[n].requests for n in joint & ours.keys()),
            True,
        )
        total = sum((theirs[name] for name in joint), Fraction())
        findings += _compare(f"{day.isoformat()} {WITH_TOOLS}", together, total, tolerance_percent)
    return findings


def _compare(subject: str, ours: OwnCost, theirs: Fraction, tolerance_percent: int) -> list[Finding]:
    allowed = abs(theirs) * tolerance_percent / 100 + ours.requests  # each request's cost was rounded up by less than 1
    if abs(ours.amount - theirs) <= allowed:
        return []
    return [Finding(CHECK, subject, -(-theirs.numerator // theirs.denominator), ours.amount, 0)]
