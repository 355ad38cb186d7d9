"""Many rows in one statement: whatever a text says arrives as it is, and only what is new is told of."""

import pytest
from sqlalchemy import select, text

from billing.money.errors import NotBooked
from billing.storage.bulk import add_to, add_to_each, insert_all, insert_new
from billing.storage.tables.core import balances, outbox, transfers
from billing.storage.tables.summaries import model_days
from tests.support.stores import Books

TEXTS = [
    "",
    "NULL",
    "null",
    '"',
    "\\",
    '\\"',
    "{}",
    "{,}",
    ",",
    "a,b",
    " x ",
    "é ü 漢 🙂",
    "\n\t\r",
    "'",
    "$1",
    "%s",
    ":x",
    "\x01",
]


def row(number: int, reason: str) -> dict[str, object]:
    return {
        "debit_account": "promo",
        "credit_account": f"customer:{number}",
        "amount_millicredits": 2**62 + number,
        "kind": "adjustment",
        "reference_type": "grant",
        "reference_id": f"r{number}",
        "created_at": number,
        "reason": reason,
    }


async def test_texts_and_numbers_arrive_as_they_are_in_their_order(sql: Books) -> None:
    async with sql.database.write() as connection:
        await insert_all(connection, transfers, [row(number, words) for number, words in enumerate(TEXTS)])
        await insert_all(connection, transfers, [])
        columns = (transfers.c.reason, transfers.c.amount_millicredits)
        found = (await connection.execute(select(*columns).order_by(transfers.c.id))).all()
    assert [tuple(one) for one in found] == [(words, 2**62 + number) for number, words in enumerate(TEXTS)]


async def test_a_text_that_the_database_does_not_take_is_refused_whole(sql: Books) -> None:
    if sql.database.is_sqlite:
        return
    with pytest.raises(NotBooked):
        async with sql.database.write() as connection:
            await insert_all(connection, transfers, [row(1, "good"), row(2, "a\0b")])
    async with sql.database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM transfers"))).scalar_one() == 0


async def test_only_what_is_new_is_told_of(sql: Books) -> None:
    rows = [
        {"account_id": f"a{number}", "sequence": 1, "delta_millicredits": 5, "created_at": 1} for number in range(4)
    ]
    async with sql.database.write() as connection:
        assert await insert_new(connection, outbox, rows[:2], "account_id") == ["a0", "a1"]
        assert await insert_new(connection, outbox, rows, "account_id") == ["a2", "a3"]
        assert await insert_new(connection, outbox, [], "account_id") == []


async def test_sums_are_added_to_or_made(sql: Books) -> None:
    sums = {"requests": 1, "input_tokens": 2, "output_tokens": 3, "charged_millicredits": 4, "cost_millicredits": 5}
    one, other = ({"asked_day": 7, "model": 'a"b', "part": part, **sums} for part in (0, 1))
    async with sql.database.write() as connection:
        await add_to(connection, model_days, ("asked_day", "model", "part"), [one])
        await add_to(connection, model_days, ("asked_day", "model", "part"), [one, other])
        found = (await connection.execute(select(model_days).order_by(model_days.c.part))).all()
    assert [tuple(row) for row in found] == [(7, 'a"b', 0, 2, 4, 6, 8, 10), (7, 'a"b', 1, 1, 2, 3, 4, 5)]


async def test_each_row_is_added_to_by_its_key(sql: Books) -> None:
    accounts = [await sql.account(100) for _ in range(3)]
    amounts = {accounts[2]: -30, accounts[0]: 5, "acct_nobody": 9}
    async with sql.database.write() as connection:
        posted, charged = balances.c.posted_millicredits, balances.c.charged_millicredits
        await add_to_each(connection, balances.c.account_id, posted, amounts, less=charged)
        taken = {row[0]: row[1] for row in await connection.execute(select(balances.c.account_id, charged))}
    assert [(await sql.ledger.posted(account)).balance for account in accounts] == [105, 100, 70]
    assert [taken[account] for account in accounts] == [-5, 0, 30]
