"""Charges as the data path writes them, at prices with a markup; statements by hand, past the triggers."""

from datetime import UTC, datetime

from sqlalchemy import text

from billing.accounting.reconcile import check_audit, check_ledger
from billing.accounting.reconcile_charges import check_sample
from billing.ledger.audit_log import Who
from billing.money.findings import Finding
from billing.money.holds import Entry
from billing.money.pricing import Charge, PriceBook, load_catalogue
from billing.money.usage import Usage
from billing.money.usage_record import UsageRecord, encode_record
from tests.support.stores import Books

PRICES = PriceBook(load_catalogue(), "1.3", "exact")
NOW = int(datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()) * 1_000
MODELS = ("gpt-4o-mini", "gpt-4o", "gpt-5.4-mini")
WHO = Who("tests", "owner")


def priced(model: str, usage: Usage) -> Charge:
    found = PRICES.find(model)
    assert found is not None
    return PRICES.price(found, "default", usage)


def settled(
    charge_id: str, account: str, asked: int, model: str = "gpt-4o-mini", tokens: tuple[int, int] = (1_000, 200)
) -> Entry:
    """A charge as the data path writes it."""
    charge = priced(model, Usage(input_tokens=tokens[0], output_tokens=tokens[1], cached_tokens=tokens[0] // 4))
    made = UsageRecord(
        charge_id=charge_id,
        account_id=account,
        key_id="key_1",
        endpoint="/v1/chat/completions",
        model=model,
        billed_model=f"{model}-2026-01-02",
        created_at=asked,
        held_millicredits=charge.amount,
        cost_millicredits=charge.cost,
        usage_source="upstream",
        outcome="completed",
        rates=charge.rates,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        cached_tokens=tokens[0] // 4,
    )
    return Entry(charge_id, charge.amount, 0, encode_record(made))


async def run_sql(books: Books, *statements: str) -> None:
    """By hand, past the triggers that protect the ledger and the audit log."""
    async with books.database.write() as connection:
        if books.database.is_sqlite:
            names = (
                (await connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")))
                .scalars()
                .all()
            )
            for name in names:
                await connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            await connection.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def every_check(books: Books) -> list[Finding]:
    sampled = await check_sample(books.database)
    return await check_ledger(books.database) + sampled.findings + await check_audit(books.database)
