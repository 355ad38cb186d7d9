"""Are the sums of days what they sum up? By account and booked day against the ledger, by model against rows (I6).

Each check is one statement, hence one snapshot: charges and their sums are written in one transaction. Only days from
which on sums are whole are compared.
"""

from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.summaries.usage_days import DAY_MS, NEVER, since_day
from billing.money.findings import Finding

OF_ACCOUNTS = """
SELECT name, day, sum(booked), sum(kept) FROM (
    SELECT substr(debit_account, 10) AS name, (created_at - created_at % 86400000) / 86400000 AS day,
           amount_millicredits AS booked, 0 AS kept
      FROM transfers WHERE kind = 'usage' AND created_at >= :since_ms
    UNION ALL
    SELECT account_id, booked_day, 0, charged_millicredits FROM usage_days WHERE charged AND booked_day >= :since
) AS both_sides GROUP BY name, day HAVING sum(booked) <> sum(kept)
"""
OF_PARTS = """
SELECT kind, day, sum(booked), sum(kept) FROM (
    SELECT kind, (created_at - created_at % 86400000) / 86400000 AS day, amount_millicredits AS booked, 0 AS kept
      FROM transfers WHERE kind IN ('usage_cost', 'platform_loss') AND reference_type = 'charge'
       AND created_at >= :since_ms
    UNION ALL
    SELECT 'usage_cost', booked_day, 0, cost_millicredits FROM usage_days WHERE booked_day >= :since
    UNION ALL
    SELECT 'platform_loss', booked_day, 0, loss_millicredits FROM usage_days WHERE booked_day >= :since
) AS both_sides GROUP BY kind, day HAVING sum(booked) <> sum(kept)
"""
FIGURES = ("requests", "input_tokens", "output_tokens", "charged_millicredits", "cost_millicredits")
_SUM = ", ".join(f"sum({name})" for name in FIGURES)
OF_MODELS = f"""
SELECT model, day, side, {_SUM} FROM (
    SELECT model, created_at / 86400000 AS day, 0 AS side, count(*) AS requests, sum(input_tokens) AS input_tokens,
           sum(output_tokens) AS output_tokens, sum(charged_millicredits) AS charged_millicredits,
           sum(cost_millicredits) AS cost_millicredits
      FROM usage WHERE created_at >= :since_ms GROUP BY model, created_at / 86400000
    UNION ALL
    SELECT model, asked_day, 0, {_SUM} FROM usage_daily WHERE asked_day >= :since GROUP BY model, asked_day
    UNION ALL
    SELECT model, asked_day, 1, {_SUM} FROM usage_days WHERE asked_day >= :since GROUP BY model, asked_day
    UNION ALL
    SELECT model, asked_day, 2, {_SUM} FROM model_days WHERE asked_day >= :since GROUP BY model, asked_day
) AS sides GROUP BY model, day, side
"""  # noqa: S608 - our own names
SIDES = {1: "sums of accounts vs usage rows, by model", 2: "sums of models vs usage rows, by model"}
WORDS = {"usage_cost": "cost", "platform_loss": "platform loss"}


async def check_sums(connection: AsyncConnection) -> list[Finding]:
    """Compare the sums of days with the ledger and with usage rows.

    A wrong sum moves no money, and a wrong transfer is found by others, so findings here count as none.
    """
    since = await since_day(connection)
    if since == NEVER:
        return [Finding("sums of days without their first day", "summaries", 0, 0, 0)]
    values = {"since": since, "since_ms": since * DAY_MS}
    accounts = (await connection.execute(text(OF_ACCOUNTS), values)).all()
    parts = (await connection.execute(text(OF_PARTS), values)).all()
    models = (await connection.execute(text(OF_MODELS), values)).all()
    found = [
        Finding("sums of days vs sum(ledger charges)", f"{name} {_day(int(day))}", int(booked), int(kept), 0)
        for name, day, booked, kept in sorted(accounts)
    ]
    found += [
        Finding(f"{WORDS[kind]} in the sums of days vs the ledger", _day(int(day)), int(booked), int(kept), 0)
        for kind, day, booked, kept in sorted(parts)
    ]
    return found + _of_models({(row[0], int(row[1]), int(row[2])): tuple(map(int, row[3:])) for row in models})


def _of_models(sums: dict[tuple[str, int, int], tuple[int, ...]]) -> list[Finding]:
    found, nothing = [], (0,) * len(FIGURES)
    for model, day in sorted({(model, day) for model, day, _ in sums}):
        rows = sums.get((model, day, 0), nothing)
        for side, check in SIDES.items():
            kept = sums.get((model, day, side), nothing)
            for name, expected, got in zip(FIGURES, rows, kept, strict=True):
                if expected != got:
                    found.append(Finding(check, f"{model} {_day(day)} {name}", expected, got, 0))
    return found


def _day(number: int) -> str:
    return datetime.fromtimestamp(number * DAY_MS // 1_000, UTC).date().isoformat()
