"""Sums of usage by day: added to in the transaction that books a charge, so that they are its rows' sums at any moment.

What is shown of days is read from them and never from the requests of a day, however many there were. They are whole
from a day on (`since_day`); what was booked before is summed from `usage`, and from `usage_daily` once it was dropped.
`reconcile` proves them against the ledger (I6).
"""

from collections.abc import Iterable, Mapping
from operator import add
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.storage.bulk import add_to
from billing.storage.tables.summaries import model_days, summaries, usage_days

DAY_MS = 86_400_000
PARTS = 8
"""Rows of a model and day, by bucket."""
NEVER = 2**31 - 1
"""A day that does not come: where nobody said from when on sums are whole, none are."""


class UsageDay(NamedTuple):
    """Identity of a row of `usage_days`."""

    account_id: str
    booked_day: int
    asked_day: int
    key_id: str
    endpoint: str
    model: str
    upstream: str
    charged: bool


class ModelDay(NamedTuple):
    """Identity of a row of `model_days`."""

    asked_day: int
    model: str
    part: int


class UsageDaySums(NamedTuple):
    """Sums of a row of `usage_days`, in tokens and millicredits."""

    requests: int
    input_tokens: int
    output_tokens: int
    charged_millicredits: int
    loss_millicredits: int
    cost_millicredits: int


class ModelDaySums(NamedTuple):
    """Sums of a row of `model_days`, in tokens and millicredits."""

    requests: int
    input_tokens: int
    output_tokens: int
    charged_millicredits: int
    cost_millicredits: int


async def since_day(connection: AsyncConnection) -> int:
    """Return the booked day from which on sums are whole. It never moves on."""
    query = select(summaries.c.since_day).where(summaries.c.name == "usage")
    found: int | None = (await connection.execute(query)).scalar_one_or_none()
    return NEVER if found is None else found


async def add_to_days(
    connection: AsyncConnection, rows: Iterable[tuple[Mapping[str, Any], int]], booked_at: int
) -> None:
    """Add usage rows that were just inserted, each with its bucket, to the sums of their days.

    In the transaction that inserts them (I4: only what is new is told of). `booked_at` in Unix milliseconds. Keys are
    locked in sorted order, so that no two flushers wait for each other crosswise.
    """
    by_account: dict[UsageDay, list[int]] = {}
    by_model: dict[ModelDay, list[int]] = {}
    for row, bucket in rows:
        asked, model = row["created_at"] // DAY_MS, row["model"]
        charged, loss, cost = row["charged_millicredits"], row["loss_millicredits"], row["cost_millicredits"]
        # what the ledger has no transfer of is booked nowhere: it counts where it was asked for
        booked = booked_at // DAY_MS if charged or loss or cost else asked
        whose = (row["key_id"], row["endpoint"], model, row["upstream"], charged > 0)
        tokens = (1, row["input_tokens"], row["output_tokens"])
        _add(by_account, UsageDay(row["account_id"], booked, asked, *whose), (*tokens, charged, loss, cost))
        _add(by_model, ModelDay(asked, model, bucket % PARTS), (*tokens, charged, cost))
    if by_account:
        days = [{**key._asdict(), **UsageDaySums(*by_account[key])._asdict()} for key in sorted(by_account)]
        await add_to(connection, usage_days, UsageDay._fields, days)
        models = [{**key._asdict(), **ModelDaySums(*by_model[key])._asdict()} for key in sorted(by_model)]
        await add_to(connection, model_days, ModelDay._fields, models)


def _add(sums: dict[Any, list[int]], key: Any, part: tuple[int, ...]) -> None:
    known = sums.get(key)
    sums[key] = list(part) if known is None else list(map(add, known, part))
