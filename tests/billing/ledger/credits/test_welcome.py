"""Welcome credits by rule: with the account, once an external id, within the day's bound."""

import asyncio

import pytest

from billing.ledger.audit_log import Who
from billing.ledger.credits.welcome import Welcome, WelcomeRule
from billing.ledger.records.account_details import AccountDetails
from billing.money.amounts import Millicredits
from tests.support.credits import left
from tests.support.stores import Books

APP = Who("app", "service")
RULE = WelcomeRule(Millicredits(1_000), 30, 10_000)


async def made(sql: Books, external_id: str | None, rule: WelcomeRule = RULE) -> tuple[str, int]:
    """An account as the API makes it, and what it was welcomed with in this call."""
    welcome = Welcome(rule, external_id, APP)
    also = await welcome.prepared(sql.database)
    opened = await sql.accounts.open(AccountDetails("new", external_id), None, APP, also)
    return opened.account.id, welcome.given


async def test_an_account_is_welcomed_when_it_is_made_and_once(sql: Books) -> None:
    found = await asyncio.gather(*(made(sql, "app-7") for _ in range(4)))
    ((account, _),) = {(account, 0) for account, _ in found}
    assert sorted(given for _, given in found) == [0, 0, 0, 1_000]
    assert await left(sql, account) == {f"welcome:{account}": 1_000}
    other, given = await made(sql, None)
    assert given == 1_000
    (row,) = await sql.ledger.transfers_of(other, 10)
    assert (row.reference_type, row.reason, row.reason_shown) == ("welcome", "Welcome credits", True)


async def test_an_external_id_that_comes_again_with_another_account_is_not_welcomed_again(sql: Books) -> None:
    first, _ = await made(sql, "app-7")
    await sql.accounts.close(first, APP)
    await sql.accounts.erase(first, APP)
    second, given = await made(sql, "app-7")
    assert (second != first, given) == (True, 0)
    async with sql.database.read() as connection:
        marks = [row[0] for row in await connection.exec_driver_sql("SELECT mark FROM welcomed")]
    assert "app-7" not in str(marks)


@pytest.mark.parametrize("again", [" app-7", "app-7\n", "\u3000app-7 "])
async def test_an_external_id_is_the_same_with_blanks_around_it(again: str, sql: Books) -> None:
    first, _ = await made(sql, "app-7")
    assert (await made(sql, again)) == (first, 0)
    await sql.accounts.close(first, APP)
    await sql.accounts.erase(first, APP)
    second, given = await made(sql, again)
    assert ((await sql.accounts.get(second)).external_id, given) == ("app-7", 0)


@pytest.mark.parametrize(("most", "welcomed"), [(0, 0), (2_999, 2), (3_000, 3)])
async def test_a_day_has_an_end(sql: Books, most: int, welcomed: int) -> None:
    rule = RULE._replace(most_a_day=most)
    given = [(await made(sql, f"app-{number}", rule))[1] for number in range(4)]
    assert given == [1_000] * welcomed + [0] * (4 - welcomed)


async def test_without_a_rule_nothing_is_given(sql: Books) -> None:
    account, given = await made(sql, "app-7", WelcomeRule(Millicredits(0), 0, 10_000))
    assert (given, await sql.ledger.transfers_of(account, 10)) == (0, [])
