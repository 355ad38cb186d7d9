"""A ledger of any size that agrees with itself: accounts, grants, charges with their rows, sums of days.

Charges are spread over 60 days; account 0 has a tenth of them. Made by the database itself from a series of numbers.
"""

import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.accounting.daily_finance import DailyFinance, day_of
from billing.ledger.summaries.usage_days import PARTS
from billing.money.buckets import bucket_of
from billing.storage.database import Database
from billing.storage.migrate import migrate
from billing.storage.partitions import month_of
from billing.storage.tables.core import accounts, api_keys, balances
from tests.support.servers import RedisServer, postgres

DAY_MS = 86_400_000
DAYS = 60
KEYS = 3
FEW_ROWS = 1_000
BATCH = 10_000
ROWS_AT_ONCE = 500_000
GRANT = 10**12
MODELS = ("gpt-6-luna", "gpt-6-sol", "gpt-5.4-mini", "gpt-4o", "gpt-4o-mini", "text-embedding-3-small")
SERIES = {
    "sqlite": "WITH RECURSIVE s(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM s WHERE i < {last})",
    "postgresql": "WITH s(i) AS (SELECT generate_series({first}::bigint, {last}::bigint))",
}
MODEL = "CASE i % 6 " + " ".join(f"WHEN {place} THEN '{name}'" for place, name in enumerate(MODELS)) + " END"
WHO = "CASE WHEN i % 10 = 0 THEN 0 ELSE (i * 7919) % {accounts} END"
USAGE = f"""
INSERT INTO usage (charge_id, created_at, account_id, key_id, endpoint, model, billed_model, service_tier, stream, free,
  usage_source, outcome, status, input_tokens, output_tokens, cached_tokens, cache_write_tokens, reasoning_tokens,
  audio_input_tokens, audio_output_tokens, web_searches, held_millicredits, charged_millicredits, loss_millicredits,
  cost_millicredits, rates, upstream_request_id, upstream_id, first_byte_ms, duration_ms) {{series}}
SELECT 'req_' || i, {{start}} + i * {{step}}, 'acct_' || ({WHO}), 'key_' || ({WHO}) || '_' || (i % {KEYS}),
  '/v1/chat/completions', {MODEL}, {MODEL}, 'default', i % 3 = 0, {{false}}, 'upstream', 'completed', 200,
  900 + i % 100, 100 + i % 50, 0, 0, 0, 0, 0, 0, 2000, 1000 + i % 97, 0, 800 + i % 97, '{{{{}}}}', 'up_' || i,
  'chatcmpl-' || i, 300, 900 FROM s
"""
TRANSFERS = """
INSERT INTO transfers (debit_account, credit_account, amount_millicredits, kind, reference_type, reference_id, created_at)
SELECT {debit}, {credit}, {amount}, '{kind}', 'charge', charge_id, created_at
  FROM usage WHERE created_at >= {after} AND created_at <= {until}
 ORDER BY created_at
"""
SUMS = """
INSERT INTO usage_days (account_id, booked_day, asked_day, key_id, endpoint, model, upstream, charged, requests,
  input_tokens, output_tokens, charged_millicredits, loss_millicredits, cost_millicredits)
SELECT account_id, created_at / 86400000, created_at / 86400000, key_id, endpoint, model, '', charged_millicredits > 0,
  count(*), sum(input_tokens), sum(output_tokens), sum(charged_millicredits), sum(loss_millicredits),
  sum(cost_millicredits) FROM usage GROUP BY 1, 2, 3, 4, 5, 6, 7, 8 ORDER BY 2
"""
MODEL_SUMS = f"""
INSERT INTO model_days (asked_day, model, part, requests, input_tokens, output_tokens, charged_millicredits,
  cost_millicredits)
SELECT asked_day, model, {PARTS - 1}, sum(requests), sum(input_tokens), sum(output_tokens), sum(charged_millicredits),
  sum(cost_millicredits) FROM usage_days GROUP BY 1, 2
"""
GRANTS = f"""
INSERT INTO transfers (debit_account, credit_account, amount_millicredits, kind, reference_type, reference_id, created_at)
SELECT 'promo', 'customer:' || account_id, {GRANT}, 'adjustment', 'grant', 'grant_' || account_id, {{start}} - 1
  FROM balances
"""
POSTED = """
UPDATE balances SET posted_millicredits = {grant} - coalesce((SELECT sum(charged_millicredits) FROM usage_days
  WHERE usage_days.account_id = balances.account_id), 0)
"""


class Size(NamedTuple):
    """Size of a ledger."""

    rows: int
    accounts: int


def account_of(number: int) -> str:
    """Return the id of an account by its number."""
    return f"acct_{number}"


@contextlib.asynccontextmanager
async def ledger(kind: str, folder: Path, size: Size) -> AsyncIterator[Database]:
    """Database of this kind (sqlite, postgresql) with so much in it."""
    with contextlib.ExitStack() as stack:
        url = (
            f"sqlite+aiosqlite:///{folder}/ledger.db"
            if kind == "sqlite"
            else stack.enter_context(postgres(folder / "pg"))
        )
        database = Database(url, 3, 5, 3_600)
        try:
            await migrate(database)
            await _fill(database, size)
            yield database
        finally:
            await database.close()


@contextlib.asynccontextmanager
async def with_redis(accounts: int) -> AsyncIterator[tuple[RedisServer, Database]]:
    """An empty Redis, and PostgreSQL with so many accounts and few rows."""
    with tempfile.TemporaryDirectory(prefix="growth") as folder:
        redis = RedisServer(Path(folder) / "redis", "everysec")
        redis.start()
        try:
            async with ledger("postgresql", Path(folder), Size(FEW_ROWS, accounts)) as database:
                yield redis, database
        finally:
            redis.kill()


async def database_bytes(database: Database) -> int:
    """Bytes of everything in it, indexes too."""
    asked = (
        "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        if database.is_sqlite
        else "SELECT pg_database_size(current_database())"
    )
    async with database.read() as connection:
        return int((await connection.exec_driver_sql(asked)).scalar_one())


async def _fill(database: Database, size: Size) -> None:
    now = time.time_ns() // 1_000_000
    start, step = now - DAYS * DAY_MS, DAYS * DAY_MS // size.rows
    if not database.is_sqlite:
        for ahead in range(-3, 2):
            month = month_of(day_of(now), ahead)
            async with database.write() as connection:
                await connection.execute(text(f"SELECT keep_usage_month('move', {month.year}, {month.month})"))
    async with database.write() as connection:
        await _accounts(connection, size.accounts, start)
    series, false = (SERIES["sqlite"], "0") if database.is_sqlite else (SERIES["postgresql"], "false")
    for first in range(1, size.rows + 1, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE - 1, size.rows)
        values = {"first": first, "last": last, "start": start, "step": step, "accounts": size.accounts, "false": false}
        async with database.write() as connection:
            rows = USAGE.format(**values, series=series.format(first=first, last=last))
            await connection.exec_driver_sql(rows)
            for name, debit, credit, amount in (
                ("usage", "'customer:' || account_id", "'revenue'", "charged_millicredits"),
                ("usage_cost", "'cogs'", "'payable:openai'", "cost_millicredits"),
            ):
                parts = {"kind": name, "debit": debit, "credit": credit, "amount": amount}
                times = {"after": start + first * step, "until": start + last * step}
                await connection.exec_driver_sql(TRANSFERS.format(**times, **parts))
    async with database.write() as connection:
        for statement in (SUMS, MODEL_SUMS, GRANTS.format(start=start), POSTED.format(grant=GRANT)):
            await connection.exec_driver_sql(statement)
    async with database.write() as connection:
        await connection.exec_driver_sql("ANALYZE")
    await DailyFinance(database).roll_up(now, 1)


async def _accounts(connection: AsyncConnection, number: int, created: int) -> None:
    for first in range(0, number, BATCH):
        some = range(first, min(first + BATCH, number))
        ids = [account_of(one) for one in some]
        await connection.execute(
            insert(accounts),
            [{"id": name, "name": f"customer {name[-9:]}", "created_at": created} for name in ids],
        )
        await connection.execute(
            insert(balances),
            [
                {"account_id": name, "bucket": bucket_of(name), "posted_millicredits": GRANT, "outbox_sequence": 0}
                for name in ids
            ],
        )
        keys = [
            {
                "id": f"key_{one}_{place}",
                "account_id": account_of(one),
                "hash": f"{one}-{place}",
                "hint": f"tk_{one}",
                "created_at": created,
            }
            for one in some
            for place in range(KEYS if one == 0 else 1)
        ]
        await connection.execute(insert(api_keys), keys)
