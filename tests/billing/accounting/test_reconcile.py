"""Reconciliation of the ledger, the usage and the balance store: every planted fault is found, and nothing else."""

from collections.abc import Collection

import pytest
from sqlalchemy import text

import billing.accounting.reconcile
from billing.accounting.reconcile import check_ledger, check_store, reconcile
from billing.money.amounts import millicredits
from billing.money.findings import Finding, mismatch
from billing.money.holds import Reading
from billing.storage.database import Database
from tests.support.charges import every_check, run_sql
from tests.support.stores import Books, charge

FAULTS = {
    "a posted balance": (
        "UPDATE balances SET posted_millicredits = posted_millicredits + 7 WHERE account_id = '{account}'",
        "posted balance vs sum(transfers)",
        "{account}",
    ),
    "an amount of the ledger": (
        "UPDATE transfers SET amount_millicredits = amount_millicredits + 7 WHERE reference_id = 'c1' AND kind = 'usage'",
        "usage row vs its transfer",
        "c1",
    ),
    "a grant that is gone": (
        "DELETE FROM transfers WHERE kind = 'adjustment'",
        "posted balance vs sum(transfers)",
        "{account}",
    ),
    "a usage row that is gone": ("DELETE FROM usage WHERE charge_id = 'c2'", "charge without a usage row", "c2"),
    "a charge that is gone": (
        "DELETE FROM transfers WHERE reference_id = 'c2' AND kind = 'usage'",
        "usage row without its transfer",
        "c2 of {account}",
    ),
    "a charge moved to another day": (
        """UPDATE usage SET charged_millicredits = charged_millicredits + CASE charge_id WHEN 'c1' THEN 5 ELSE -5 END
        WHERE charge_id IN ('c1', 'c5')""",
        "sum(usage) vs sum(ledger charges)",
        "{account} 2026-11-18",
    ),
    "tokens": (
        "UPDATE usage SET output_tokens = output_tokens + 50 WHERE charge_id = 'c3'",
        "cost vs its own rates",
        "c3",
    ),
    "a rate": (
        """UPDATE usage SET rates = replace(rates, '"0.15"', '"0.16"') WHERE charge_id = 'c0'""",
        "cost vs its own rates",
        "c0",
    ),
    "a markup": (
        """UPDATE usage SET rates = replace(rates, '"1.3"', '"1.2"') WHERE charge_id = 'c0'""",
        "charge vs its own rates",
        "c0",
    ),
    "rates that are gone": (
        "UPDATE usage SET rates = '{{}}' WHERE charge_id = 'c4'",
        "usage row without readable rates",
        "c4",
    ),
    "the cost of a charge": (
        "UPDATE transfers SET amount_millicredits = amount_millicredits + 700 WHERE kind = 'usage_cost' AND reference_id = 'c1'",
        "cost of a usage row vs its transfer",
        "c1",
    ),
    "the cost of a charge that is gone": (
        "DELETE FROM transfers WHERE kind = 'usage_cost' AND reference_id = 'c2'",
        "cost of a usage row vs its transfer",
        "c2",
    ),
    "a usage row that is gone, and its cost": (
        "DELETE FROM usage WHERE charge_id = 'c2'",
        "cost of charges without a usage row vs the sums of dropped rows",
        "in all",
    ),
    "the loss of a charge": (
        "UPDATE usage SET loss_millicredits = loss_millicredits + 900 WHERE charge_id = 'c4'",
        "platform loss of a usage row vs its transfer",
        "c4",
    ),
    "a charge shown to another account": (
        "UPDATE usage SET account_id = 'acct_other' WHERE charge_id = 'c3'",
        "usage row of another account than its charge",
        "c3 of acct_other, charged to customer:{account}",
    ),
    "an audit row": (
        "UPDATE audit_log SET reason = 'another' WHERE id = 1",
        "audit log (good rows, then a broken one)",
        "row 1 was changed",
    ),
}


async def test_what_is_not_found_a_second_time_was_of_the_moment(
    busy: tuple[Books, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a month's partition is made while a statement runs; what stays is told as it is then."""
    looks = [[Finding("a", "x", 1, 2), Finding("b", "y", 1, 2)], [Finding("b", "y", 3, 4), Finding("c", "z", 1, 2)]]

    async def look(_database: Database) -> list[Finding]:
        return looks.pop(0)

    monkeypatch.setattr(billing.accounting.reconcile, "_look_at_ledger", look)
    assert await check_ledger(busy[0].database) == [Finding("b", "y", 3, 4)]


async def test_every_fault_is_found_by_its_check(busy: tuple[Books, str]) -> None:
    """One after the other, each undone before the next by a copy of what it changed."""
    books, account = busy
    assert await every_check(books) == []
    tables = ("balances", "transfers", "usage", "audit_log")
    await run_sql(books, *(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}" for table in tables))
    for name, (statement, check, subject) in FAULTS.items():
        await run_sql(books, statement.format(account=account))
        found = await every_check(books)
        wanted = subject.format(account=account)
        assert any(one.check == check and one.subject.startswith(wanted) for one in found), (name, found)
        await run_sql(
            books,
            *(
                part
                for table in tables
                for part in (f"DELETE FROM {table}", f"INSERT INTO {table} SELECT * FROM kept_{table}")
            ),
        )
        assert await every_check(books) == [], name


@pytest.mark.slow
async def test_the_store_is_compared_exactly_and_only_with_what_is_new(busy: tuple[Books, str]) -> None:
    books, account = busy
    posted = await books.ledger.posted(account)
    await books.ledger.grant(account, millicredits(1_000), "later", "test", "not applied yet")
    figures = {account: Reading(posted.balance, 40, posted.sequence)}
    asked: list[Collection[str] | None] = []

    async def store(only: Collection[str] | None) -> tuple[dict[str, Reading], dict[str, int], dict[str, int]]:
        asked.append(only)
        return figures, {account: 40}, {}

    assert (await check_store(books.database, store)).findings == []
    assert asked == [None]
    figures[account] = Reading(posted.balance + 3, 41, posted.sequence)
    found = (await check_store(books.database, store)).findings
    assert [(one.check, one.found - one.expected) for one in found] == [
        ("cached balance vs ledger", 3),
        ("held vs sum(holds)", 1),
    ]
    assert mismatch(found) == 4
    assert asked[2:] == [{account}] * len(asked[2:])


@pytest.mark.slow
async def test_an_account_that_never_stands_still_is_reported_as_such_and_not_as_wrong(busy: tuple[Books, str]) -> None:
    books, account = busy
    numbers = iter(range(1_000))

    async def store(_only: Collection[str] | None) -> tuple[dict[str, Reading], dict[str, int], dict[str, int]]:
        await books.ledger.grant(account, millicredits(1), f"busy {next(numbers)}", "test", "traffic")
        return {account: Reading(12, 0, 0)}, {}, {}

    compared = await check_store(books.database, store)
    assert (compared.findings, compared.busy) == ([], (account,))


@pytest.mark.slow
async def test_reconcile_finds_each_tampering_and_nothing_else(sql: Books) -> None:
    account = await sql.account(1_000)
    await sql.ledger.post([charge(1, account), charge(2, account)])
    figures = {account: Reading(980, 7, 1)}

    async def store(_only: Collection[str] | None) -> tuple[dict[str, Reading], dict[str, int], dict[str, int]]:
        return figures, {account: 7}, {}

    assert await reconcile(sql.database, store) == []
    figures[account] = Reading(981, 7, 1)
    assert [(f.check, f.expected, f.found) for f in await reconcile(sql.database, store)] == [
        ("cached balance vs ledger", 980, 981)
    ]
    figures[account] = Reading(980, 8, 1)
    assert [f.check for f in await reconcile(sql.database, store)] == ["held vs sum(holds)"]
    figures[account] = Reading(980, 7, 1)
    async with sql.database.write() as connection:
        await connection.execute(text("UPDATE usage SET charged_millicredits = 11 WHERE charge_id = 'c1'"))
    assert {f.check for f in await reconcile(sql.database, store)} == {
        "sum(usage) vs sum(ledger charges)",
        "usage row vs its transfer",
        "sums of accounts vs usage rows, by model",
        "sums of models vs usage rows, by model",
    }
    async with sql.database.write() as connection:
        await connection.execute(text("DELETE FROM usage WHERE charge_id = 'c1'"))
    assert "charge without a usage row" in {f.check for f in await reconcile(sql.database, store)}
    async with sql.database.write() as connection:
        await connection.execute(text("UPDATE balances SET posted_millicredits = posted_millicredits + 1"))
    assert "posted balance vs sum(transfers)" in {f.check for f in await reconcile(sql.database, store)}
