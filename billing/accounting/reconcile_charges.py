"""A random sample of charged requests, priced again from their rows' own counts and rates."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import func, select

from billing.ledger.rate_cards import RateCardError, RateCards
from billing.money.errors import InvariantBroken
from billing.money.findings import Finding
from billing.money.repricing import Priced, reprice
from billing.money.usage_record import UsageRow
from billing.storage.database import Database
from billing.storage.rows import columns_of
from billing.storage.tables.core import transfers, usage

SAMPLE = 500
IN_BATCH = 500
YIELD_EVERY = 25
KINDS = ("usage", "usage_cost")


class Sampled(NamedTuple):
    """Result of a sample; `excluded`: reason → rows that cannot be priced again."""

    findings: list[Finding]
    priced: int
    excluded: dict[str, int]


async def check_sample(database: Database, size: int = SAMPLE, dice: random.Random | None = None) -> Sampled:
    """Price about so many rows again, all of them when there are no more. Raises StoreUnavailable."""
    rows = await _rows(database, size, dice or random.SystemRandom())
    cards = _Cards(RateCards(database))
    findings: list[Finding] = []
    excluded: Counter[str] = Counter()
    for number, row in enumerate(rows):
        if number % YIELD_EVERY == 0:
            await asyncio.sleep(0)  # the embedded store's worker serves meanwhile
        try:
            priced = reprice(row, await cards.tools_of(row))
        except InvariantBroken:
            findings.append(Finding("usage row without readable rates", row.charge_id, 0, row.cost_millicredits))
            continue
        if isinstance(priced, Priced):
            findings += _differences(row, priced)
        else:
            excluded[priced] += 1
    return Sampled(findings, len(rows) - excluded.total(), dict(excluded))


def _differences(row: UsageRow, priced: Priced) -> list[Finding]:
    cost, due = row.cost_millicredits, row.charged_millicredits + row.loss_millicredits
    not_charged = row.free or row.outcome == "insured"
    if any(cost == one and (due == other or (not_charged and due == 0)) for one, other in priced.options):
        return []
    best_cost, best_due = min(priced.options, key=lambda option: (abs(option[0] - cost), abs(option[1] - due)))
    if best_cost != cost:
        return [Finding("cost vs its own rates", row.charge_id, best_cost, cost)]
    return [Finding("charge vs its own rates", row.charge_id, 0 if not_charged else best_due, due)]


async def _rows(database: Database, size: int, dice: random.Random) -> list[UsageRow]:
    """Rows of random transfers: their numbers are dense, so this reads no more than it returns."""
    async with database.read() as connection:
        low, high = (await connection.execute(select(func.min(transfers.c.id), func.max(transfers.c.id)))).one()
        if low is None:
            return []
        span = range(low, high + 1)
        # a request has one or two of some three kinds of transfers
        numbers = list(span) if len(span) <= 2 * size else dice.sample(span, 2 * size)
        charges: set[str] = set()
        for start in range(0, len(numbers), IN_BATCH):
            query = select(transfers.c.reference_id).where(
                transfers.c.id.in_(numbers[start : start + IN_BATCH]), transfers.c.kind.in_(KINDS)
            )
            charges.update((await connection.execute(query)).scalars())
        wanted, rows = sorted(charges), list[UsageRow]()
        columns = columns_of(usage, UsageRow._fields)
        for start in range(0, len(wanted), IN_BATCH):
            found = await connection.execute(
                select(*columns).where(usage.c.charge_id.in_(wanted[start : start + IN_BATCH]))
            )
            rows += [UsageRow(*row) for row in found]
    return rows if len(rows) <= size else dice.sample(rows, size)


class _Cards:
    """Rate cards by id, each read once."""

    def __init__(self, cards: RateCards) -> None:
        self._cards, self._tools = cards, dict[str, Mapping[str, str]]()

    async def tools_of(self, row: UsageRow) -> Mapping[str, str]:
        """Return the prices per call that a row was charged by; none when its card is not known."""
        if not row.tool_calls:
            return {}
        card_id = _card_id(row)
        if card_id not in self._tools:
            try:
                self._tools[card_id] = (await self._cards.get(card_id))["tools"]
            except RateCardError:
                self._tools[card_id] = {}
        return self._tools[card_id]


def _card_id(row: UsageRow) -> str:
    _, _, rest = row.rates.partition('"rateCardId":"')
    return rest.partition('"')[0]
