"""The audit log only grows, and shows it when somebody made it do otherwise. Both databases."""

import asyncio
import itertools
import json
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from billing.ledger.accounts import hash_key
from billing.ledger.admins import LONGEST_NAME, Admin, Admins
from billing.ledger.audit_log import AuditLog, Change, Who
from billing.ledger.flag_overrides import FlagOverride, FlagOverrides, in_force
from billing.money.amounts import Millicredits
from billing.money.errors import KeyNotFound, StoreUnavailable
from billing.storage.database import Database, now_ms
from tests.support.servers import Tollkeeper
from tests.support.stores import Books

ANN = Who("ann", "owner", "req_1", "10.0.0.1")


async def filled(sql: Books, rows: int = 5) -> AuditLog:
    log = AuditLog(sql.database)
    for number in range(rows):
        await log.write(ANN, Change("test", f"thing {number}", None, {"ü": number}, "because"))
    return log


async def tamper(database: Database, *statements: str) -> None:
    """As somebody with the right to drop triggers would."""
    async with database.write() as connection:
        if database.is_sqlite:
            await connection.execute(text("DROP TRIGGER IF EXISTS audit_no_update"))
            await connection.execute(text("DROP TRIGGER IF EXISTS audit_no_delete"))
        else:
            await connection.execute(text("ALTER TABLE audit_log DISABLE TRIGGER ALL"))
        for statement in statements:
            await connection.execute(text(statement))


async def test_the_chain_holds_over_batches(sql: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billing.ledger.audit_log.BATCH", 2)
    log = await filled(sql)
    verdict = await log.verify()
    assert (verdict.rows, verdict.problem, verdict.head.id) == (5, "", 5)
    assert [row.id async for row in log.rows()] == [1, 2, 3, 4, 5]
    assert [row.id for row in await log.newest(2)] == [5, 4]
    assert [row.id for row in await log.newest(9, subject="thing 1")] == [2]
    assert (await log.verify(known=[verdict.head.hash])).problem == ""
    assert "cut off" in (await log.verify(known=["f" * 64])).problem


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET actor = 'eve'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
async def test_the_database_refuses_changes(statement: str, sql: Books) -> None:
    await filled(sql)
    if sql.database.is_sqlite and statement.startswith("TRUNCATE"):
        return
    with pytest.raises((DBAPIError, StoreUnavailable), match="never changed"):
        async with sql.database.write() as connection:
            await connection.execute(text(statement))


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE audit_log SET reason = 'nothing' WHERE id = 3", "row 3 was changed"),
        ("UPDATE audit_log SET created_at = created_at + 1 WHERE id = 1", "row 1 was changed"),
        ("UPDATE audit_log SET ip = '' WHERE id = 5", "row 5 was changed"),
        ("DELETE FROM audit_log WHERE id = 2", "row 2 is missing"),
        ("DELETE FROM audit_log WHERE id = 1", "row 1 is missing"),
        ("UPDATE audit_log SET hash = 'x' WHERE id = 4", "row 4 was changed"),
    ],
)
async def test_whoever_drops_the_triggers_breaks_the_chain(statement: str, says: str, sql: Books) -> None:
    log = await filled(sql)
    await tamper(sql.database, statement)
    assert says in (await log.verify()).problem


async def test_a_tail_that_was_cut_off_is_found_by_the_head_that_was_kept(sql: Books) -> None:
    log = await filled(sql)
    head = (await log.verify()).head.hash
    await tamper(sql.database, "DELETE FROM audit_log WHERE id = 5")
    assert (await log.verify()).problem == ""
    assert "cut off" in (await log.verify(known=[head])).problem


async def test_many_writers_make_one_chain(sql: Books) -> None:
    log = AuditLog(sql.database)
    await asyncio.gather(
        *(log.write(Who(f"a{number}", "ops"), Change("test", str(number), None, None)) for number in range(40))
    )
    verdict = await log.verify()
    assert (verdict.rows, verdict.problem) == (40, "")


async def test_a_change_that_fails_leaves_no_row_and_a_row_that_fails_no_change(sql: Books) -> None:
    log, admins = AuditLog(sql.database), Admins(sql.database)
    with pytest.raises(KeyNotFound):
        await admins.revoke("adm_missing", ANN)
    assert (await log.verify()).rows == 0
    await tamper(sql.database, "DROP TABLE audit_log")
    with pytest.raises((DBAPIError, StoreUnavailable)):
        await admins.create("bob", "viewer", ANN)
    assert await admins.everyone() == []


async def test_two_who_set_one_flag_at_once_both_have_their_row(sql: Books) -> None:
    overrides = FlagOverrides(sql.database)
    for _ in range(5):
        await overrides.clear("charging_enabled", "again", ANN)
        await asyncio.gather(*(overrides.set("charging_enabled", number % 2 == 0, "why", ANN) for number in range(4)))
    rows = [row async for row in AuditLog(sql.database).rows()]
    assert [row.action for row in rows].count("flag.set") == 20
    # each one's `before` is the `after` of the one it came behind
    for earlier, row in itertools.pairwise(rows):
        if row.action == "flag.set":
            assert row.before == earlier.after or earlier.action == "flag.clear"


async def test_a_sign_in_on_its_way_does_not_outlive_its_key(sql: Books) -> None:
    admins = Admins(sql.database)
    key_id, secret = await admins.create("bob", "ops", ANN)
    bob = await admins.find(hash_key(secret))
    assert bob is not None
    open_before = await admins.sign_in(bob, ANN, 60)
    assert await admins.session(open_before) == bob._replace(expires_at=(await admins.session(open_before)).expires_at)  # type: ignore[union-attr]
    await admins.revoke(key_id, ANN)
    late = await admins.sign_in(bob, ANN, 60)  # the key was looked up before it was revoked
    assert await admins.session(late) is None
    assert await admins.session(open_before) is None
    by_token = await admins.sign_in(Admin("oidc:u1", "ops", None), ANN, 60)
    assert (await admins.session(by_token)) is not None, "a token's sign-in has no key to end with"


async def test_the_longest_names_fit_the_ledger(sql: Books) -> None:
    """`transfers.actor` is the narrowest column, and PostgreSQL refuses what does not fit."""
    admins, account = Admins(sql.database), await sql.account()
    for name in ("x" * LONGEST_NAME, "x" * 200):  # the second as older versions let it be made
        key_id, secret = await admins.create(name, "finance", ANN)
        found = await admins.find(hash_key(secret))
        assert found is not None
        assert found.actor.endswith(f" ({key_id})")
        who = Who(found.actor, found.role)
        assert await sql.ledger.grant(account, Millicredits(5), f"by {key_id}", who.actor, "why", who)
    assert (await sql.ledger.posted(account)).balance == 10
    assert found.actor.startswith("x" * LONGEST_NAME + " (")


async def test_what_somebody_granted_counts_over_accounts_and_addresses(sql: Books) -> None:
    one, other = await sql.account(), await sql.account()
    actors = (
        "oidc:u1 (ann@a.example)",
        "oidc:u1 (ann@b.example)",
        "oidc:u1",
        "oidc:u10 (eve@a.example)",
        "oidc:u_ (x)",
    )
    for number, actor in enumerate(actors):
        await sql.ledger.grant(one if number % 2 else other, Millicredits(10**number), f"grant {number}", actor, "why")
    async with sql.database.read() as connection:
        for actor, wanted in (
            ("oidc:u1 (ann@c.example)", 111),
            ("oidc:u10", 1_000),
            ("oidc:u_", 10_000),
            ("ann (adm_1)", 0),
        ):
            assert await sql.ledger.granted_by(connection, Admin(actor, "support", None).identity, 0) == wanted
        assert await sql.ledger.granted_by(connection, "oidc:u1", now_ms() + 60_000) == 0


async def test_overrides_come_and_go_with_their_rows(sql: Books) -> None:
    overrides = FlagOverrides(sql.database)
    await overrides.set("charging_enabled", False, "why", ANN, now_ms() + 60_000)
    await overrides.set("charging_enabled", True, "better", ANN)
    await overrides.set("model_allowlist", ["a", "b*"], "some", ANN, 5)
    rows = await overrides.all()
    assert [(row.flag, row.value, row.expires_at) for row in rows] == [
        ("charging_enabled", True, None),
        ("model_allowlist", ["a", "b*"], 5),
    ]
    assert in_force(rows, 4) == {"charging_enabled": True, "model_allowlist": ["a", "b*"]}
    assert in_force(rows, 5) == {"charging_enabled": True}
    assert await overrides.clear("charging_enabled", "done", ANN)
    assert not await overrides.clear("charging_enabled", "done", ANN)
    assert not FlagOverride("x", 1, "", "", 0, None).ended(2**52)
    verdict = await AuditLog(sql.database).verify()
    assert (verdict.rows, verdict.problem) == (4, "")


def test_the_command_tells_good_from_broken(embedded: Tollkeeper) -> None:
    embedded.cli("flags", "set", "auto_recharge", "true", "--reason", "a trial")
    good = embedded.cli("audit", "verify")
    assert good == {"ok": True, "rows": 1, "head": good["head"], "problem": ""}
    assert embedded.cli("audit", "verify", "--head", good["head"])["ok"]
    assert not embedded.cli("audit", "verify", "--head", "0" * 64, code=1)["ok"]
    assert embedded.cli("audit", "head") == {"rows": 1, "head": good["head"]}
    heads = Path(embedded.folder) / "heads"
    heads.write_text(embedded.run("audit", "head").stdout)
    assert embedded.cli("audit", "verify", "--heads", str(heads))["ok"]
    heads.write_text(heads.read_text() + f"7 {'0' * 64}\n")
    assert not embedded.cli("audit", "verify", "--heads", str(heads), code=1)["ok"]
    heads.write_text("no head\n")
    assert embedded.run("audit", "verify", "--heads", str(heads)).returncode == 1
    assert embedded.run("audit", "verify", "--heads", "nowhere").returncode == 1
    assert embedded.run("audit", "verify", "--head", "abc").returncode == 2
    out = Path(embedded.folder) / "audit.jsonl"
    embedded.cli("audit", "export", str(out))
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (row["action"], row["role"], row["reason"]) == ("flag.set", "cli", "a trial")
    assert embedded.run("audit", "export", str(out)).returncode == 1
