"""Keys made so that repeating it is safe, changed, rotated, used, and shown once. On both databases."""

import asyncio
import json
from typing import Any

import pytest
from sqlalchemy import text, update

from billing.ledger.accounts import KeyBudget, KeyDetails, KeyRules, hash_key, read_budgets
from billing.ledger.audit_log import AuditLog, Who
from billing.ledger.customers.desk import KeyDesk, key_desk
from billing.money.amounts import Millicredits
from billing.money.errors import AccountClosed, AccountNotFound, InvalidDetails, KeyNotFound
from billing.storage.database import now_ms
from billing.storage.tables.core import api_keys
from tests.support.stores import Books, charge

ADA = Who("ada", "owner")
DAY = 86_400_000


@pytest.fixture
def desk(sql: Books) -> KeyDesk:
    return key_desk(sql.database)


async def made(sql: Books, desk: KeyDesk, **rules: Any) -> tuple[str, str, str]:
    """(account, key id, secret) of a new key."""
    account = await sql.accounts.create("Acme")
    key = await desk.changes.create(account, KeyRules(**rules), KeyDetails())
    return account, key.key_id, key.secret or ""


async def test_a_reference_makes_one_key_of_an_account_however_often_and_fast_it_comes(
    sql: Books, desk: KeyDesk
) -> None:
    account, other = await sql.accounts.create("a"), await sql.accounts.create("b")
    details = KeyDetails("CI", ("ci", "nightly", "ci"), "order-1")
    found = await asyncio.gather(*(desk.changes.create(account, KeyRules(), details, ADA) for _ in range(6)))
    assert len({key.key_id for key in found}) == 1
    assert len([key for key in found if key.secret]) == 1
    assert (await desk.changes.create(other, KeyRules(), details)).key_id != found[0].key_id
    (row,) = await sql.accounts.keys_of(account)
    assert (row.name, json.loads(row.tags or "")) == ("CI", ["ci", "nightly"])
    assert [row.action for row in await AuditLog(sql.database).newest(9)] == ["key.create"]
    await sql.accounts.close(account, ADA)
    with pytest.raises(AccountClosed):
        await desk.changes.create(account, KeyRules(), KeyDetails())
    with pytest.raises(AccountNotFound):
        await desk.changes.create("acct_missing", KeyRules(), KeyDetails())


async def test_a_change_takes_what_is_named_and_is_audited_with_what_it_was(sql: Books, desk: KeyDesk) -> None:
    budgets = (KeyBudget(Millicredits(9), "day"), KeyBudget(Millicredits(8), "day", ("gpt-6*",)))
    _, key_id, secret = await made(sql, desk, spend_limit=Millicredits(5), spend_period="week", budgets=budgets)
    row = await desk.changes.change(key_id, {"name": "CI", "requests_per_minute": 7, "models": ("o3",)}, ADA, "why")
    assert (row.name, row.requests_per_minute, row.spend_limit_millicredits, row.spend_period) == ("CI", 7, 5, "week")
    key = await sql.accounts.find_key(hash_key(secret))
    assert key is not None
    assert key.rules == KeyRules(("o3",), Millicredits(5), "week", 7, budgets=budgets)
    row = await desk.changes.change(key_id, {"spend_limit": None, "budgets": budgets[:1], "name": None}, ADA)
    assert (row.spend_period, row.name, read_budgets(row.budgets)) == (None, None, budgets[:1])
    row = await desk.changes.change(key_id, {"spend_limit": Millicredits(3)}, ADA)
    assert row.spend_period == "month"
    newest, *_, first = [row for row in await AuditLog(sql.database).newest(9) if row.action == "key.update"]
    assert json.loads(first.before) == {"models": None, "requests_per_minute": None}
    assert json.loads(first.after) == {"models": ["o3"], "requests_per_minute": 7, "fields": ["name"]}
    assert json.loads(newest.before) == {"spend_limit": None, "spend_period": None}
    await sql.accounts.revoke_key(key_id)
    for refused in (desk.changes.change(key_id, {"name": "x"}, ADA), desk.changes.rotate(key_id, 0, ADA)):
        with pytest.raises(KeyNotFound):
            await refused


async def test_a_budget_given_again_is_another_one_and_a_changed_limit_is_not(sql: Books, desk: KeyDesk) -> None:
    """While it was away nobody counted for it: what was spent meanwhile is read from SQL."""
    day, some = KeyBudget(Millicredits(9), "day"), KeyBudget(Millicredits(8), "month", ("gpt-6*", "o3"))
    _, key_id, _ = await made(sql, desk, spend_limit=Millicredits(5), spend_period="week", budgets=(day, some))

    async def scopes(**changes: Any) -> list[str]:
        row = await desk.changes.change(key_id, changes, ADA)
        return [budget.scope(row.id) for budget in row.all_budgets]

    first = await scopes(name="same")
    other_order = some._replace(models=("o3", "gpt-6*"))
    raised = tuple(one._replace(limit=Millicredits(99)) for one in (day, other_order))
    assert await scopes(spend_limit=Millicredits(7), budgets=raised) == first
    assert await scopes(spend_limit=None, budgets=(some,)) == [first[2]]
    again = await scopes(spend_limit=Millicredits(5), spend_period="week", budgets=(day, some))
    assert again[2] == first[2]
    assert set(again[:2]) & set(first) == set()
    assert [one.rpartition(":")[0] for one in again[:2]] == first[:2]
    assert (await scopes(spend_period="month"))[0] not in (*first, *again)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": "x" * 101}),
        ("tags", {"tags": ("",)}),
        ("tags", {"tags": tuple(str(n) for n in range(21))}),
        ("models", {"models": ("",)}),
        ("budgets", {"budgets": (KeyBudget(Millicredits(1), "hour"),)}),
        ("budgets", {"budgets": (KeyBudget(Millicredits(-1), "day"),)}),
        ("budgets", {"budgets": (KeyBudget(Millicredits(1), "day", ()),)}),
        ("budgets", {"budgets": (KeyBudget(Millicredits(1), "day"), KeyBudget(Millicredits(2), "day"))}),
        ("budgets", {"spend_limit": 1, "spend_period": "day", "budgets": (KeyBudget(Millicredits(2), "day"),)}),
        ("budgets", {"budgets": tuple(KeyBudget(Millicredits(1), "day", (str(n),)) for n in range(11))}),
    ],
)
async def test_what_cannot_be_held_to_is_refused(
    field: str, changes: dict[str, Any], sql: Books, desk: KeyDesk
) -> None:
    _, key_id, _ = await made(sql, desk)
    with pytest.raises(InvalidDetails) as refused:
        await desk.changes.change(key_id, changes, ADA)
    assert refused.value.field == field


async def test_after_a_rotation_the_old_secret_works_for_its_grace_and_no_older_one(sql: Books, desk: KeyDesk) -> None:
    _, key_id, first = await made(sql, desk)
    second = await desk.changes.rotate(key_id, DAY, ADA, "leaked")
    old, new = [await sql.accounts.find_key(hash_key(secret)) for secret in (first, second)]
    assert old is not None
    assert new is not None
    assert (old.key_id, new.key_id, new.rules.expires_at) == (key_id, key_id, None)
    assert abs((old.rules.expires_at or 0) - now_ms() - DAY) < 60_000
    third = await desk.changes.rotate(key_id, 0, ADA)
    assert await sql.accounts.find_key(hash_key(first)) is None
    ended = await sql.accounts.find_key(hash_key(second))
    assert ended is not None
    assert (ended.rules.expires_at or 0) <= now_ms()
    soon = now_ms() + 5_000
    await desk.changes.change(key_id, {"expires_at": soon}, ADA)
    fourth = await desk.changes.rotate(key_id, DAY, ADA)
    for secret in (third, fourth):  # what ends first ends it
        found = await sql.accounts.find_key(hash_key(secret))
        assert found is not None
        assert found.rules.expires_at == soon
    with pytest.raises(InvalidDetails):
        await desk.changes.rotate(key_id, 31 * DAY, ADA)
    await sql.accounts.revoke_key(key_id)
    for secret in (third, fourth):
        found = await sql.accounts.find_key(hash_key(secret))
        assert found is not None
        assert found.revoked_at is not None
    logged = str([row._asdict() for row in await AuditLog(sql.database).newest(20)])
    assert not any(secret in logged for secret in (first, second, third, fourth))


async def test_use_is_what_the_ledger_has_by_period_and_model(sql: Books, desk: KeyDesk) -> None:
    budgets = (KeyBudget(Millicredits(90), "month", ("gpt-4o*",)), KeyBudget(Millicredits(80), "day", ("o3",)))
    account, key_id, _ = await made(sql, desk, spend_limit=Millicredits(100), spend_period="total", budgets=budgets)
    await sql.ledger.post([charge(1, account, charged=30), charge(2, account, charged=12)])  # of gpt-4o-mini
    async with sql.database.write() as connection:
        for table in ("usage", "usage_days"):
            await connection.execute(text(f"UPDATE {table} SET key_id = :key"), {"key": key_id})  # noqa: S608
        at = (await connection.execute(text("SELECT max(created_at) FROM usage"))).scalar_one()
    (row,) = await sql.accounts.keys_of(account)
    use = (await desk.uses.of([row], at))[key_id]
    assert use.last_used_at == at
    assert [one.used for one in use.budgets] == [42, 42, 0]
    assert [one.budget.limit for one in use.budgets] == [100, 90, 80]
    assert use.budgets[0].ends is None
    later = (await desk.uses.of([row], at + 40 * DAY))[key_id]
    assert [one.used for one in later.budgets] == [42, 0, 0]
    assert await desk.uses.of([], at) == {}


async def test_a_secret_is_shown_once_to_its_owner_within_ten_minutes_and_the_table_alone_shows_nothing(
    sql: Books, desk: KeyDesk
) -> None:
    token = await desk.shown.put("acct_1", "tk-secret")
    async with sql.database.read() as connection:
        assert "tk-secret" not in str((await connection.execute(text("SELECT * FROM shown_secrets"))).all())
    assert await desk.shown.take("acct_2", token) is None
    assert await desk.shown.take("acct_1", token + "x") is None
    found = await asyncio.gather(*(desk.shown.take("acct_1", token) for _ in range(4)))
    assert sorted(map(str, found)) == ["None", "None", "None", "tk-secret"]
    late = await desk.shown.put("acct_1", "tk-secret")
    async with sql.database.write() as connection:
        await connection.execute(text("UPDATE shown_secrets SET created_at = created_at - 600001"))
    assert await desk.shown.take("acct_1", late) is None
    await desk.shown.put("acct_1", "tk-other")
    async with sql.database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM shown_secrets"))).scalar_one() == 1
    with pytest.raises(ValueError, match="longer"):
        await desk.shown.put("acct_1", "x" * 65)


async def test_an_erased_accounts_keys_are_nameless(sql: Books, desk: KeyDesk) -> None:
    account = await sql.accounts.create("Acme")
    await desk.changes.create(account, KeyRules(), KeyDetails("Ann's laptop", ("ann",), "ann-1"))
    await sql.accounts.close(account, ADA)
    await sql.accounts.erase(account, ADA)
    (row,) = await sql.accounts.keys_of(account)
    assert (row.name, row.tags) == (None, None)
    async with sql.database.write() as connection:
        await connection.execute(update(api_keys).values(reference=None))
