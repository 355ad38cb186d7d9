"""A database that 0.1.0 made opens unchanged: nothing is migrated, its money, rows and chain are read, and it is written on.

The files are what the code of commit 590aca5 left: ledger.db (revision 0009) and the embedded store's file, closed with one
charge that no flush had taken and one hold whose process died behind its checkpoint. facts.json has what was made.
"""

import json
import lzma
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from billing.accounting.journal import Books as Journal
from billing.accounting.reconcile import check_audit, reconcile
from billing.accounting.reconcile_charges import check_sample
from billing.accounting.reconcile_stripe import check_purchases
from billing.accounting.statements import Statements
from billing.jobs.runs import Runs
from billing.ledger.accounts import KeyRules, hash_key
from billing.ledger.admins import Admins
from billing.ledger.audit_log import AuditLog, Who
from billing.ledger.flag_overrides import FlagOverrides
from billing.ledger.flush import drain
from billing.ledger.notices import NoticeQueue
from billing.ledger.objects.upstream_objects import UpstreamObjects
from billing.ledger.portal_tokens import PortalTokens
from billing.ledger.rate_cards import RateCards
from billing.money.amounts import Millicredits
from billing.money.holds import Held, Settled
from billing.payments.purchase_store import PurchaseStore
from billing.storage.database import Database
from billing.storage.migrate import current_revision, migrate, newest_revision
from tests.support.schema import in_thread, migrated
from tests.support.stores import Books, close_books, open_books, record, request

MADE = Path(__file__).parents[2] / "samples" / "database_of_0_1_0"
FACTS: dict[str, Any] = json.loads((MADE / "facts.json").read_text())
RICH, POOR = FACTS["rich"], FACTS["poor"]
REVISION = "0009"


@cache
def as_left(name: str) -> bytes:
    return lzma.decompress((MADE / f"{name}.xz").read_bytes())


@pytest.fixture
def left(folder: Path) -> Path:
    """The two files as 0.1.0 left them."""
    for name in ("ledger.db", "embedded.db"):
        (folder / name).write_bytes(as_left(name))
    return folder


@cache
def as_migrated() -> bytes:
    """The ledger as a service migrates it: once for all tests that read it."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "ledger.db").write_bytes(as_left("ledger.db"))
        in_thread(migrated(url_of(Path(place)), served=False))
        return (Path(place) / "ledger.db").read_bytes()


@pytest.fixture
async def kept(left: Path) -> AsyncIterator[Books]:
    """The ledger and the embedded store, opened as a service opens them."""
    (left / "ledger.db").write_bytes(as_migrated())
    opened = await open_books(left, "")
    yield opened
    await close_books(opened)


def url_of(left: Path) -> str:
    return f"sqlite+aiosqlite:///{left}/ledger.db"


async def schema(database: Database) -> list[tuple[Any, ...]]:
    async with database.read() as connection:
        rows = await connection.execute(text("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"))
        return [tuple(row) for row in rows]


async def test_migrating_changes_nothing_that_no_later_migration_changes(left: Path, folder: Path) -> None:
    database, fresh = Database(url_of(left), 1, 10), Database(f"sqlite+aiosqlite:///{folder}/fresh.db", 1, 10)
    assert await current_revision(database) == REVISION
    before = await schema(database)
    assert await migrate(database) == await migrate(fresh) == newest_revision()
    assert await schema(database) == await schema(fresh), "as a database that today's code makes"
    if newest_revision() == REVISION:
        assert await schema(database) == before
    await database.close()
    await fresh.close()


async def test_balances_are_what_they_were_and_what_waited_is_booked_once(kept: Books) -> None:
    # opening booked the charge that waited (576) and the orphan's checkpoint
    late = 576 + FACTS["orphan"]
    assert (await kept.ledger.posted(RICH)).balance == FACTS["posted"][RICH] - late
    assert (await kept.ledger.posted(POOR)).balance == FACTS["posted"][POOR]
    reading = await kept.store.read(RICH)
    assert (reading.balance, reading.held) == (FACTS["posted"][RICH] - late, 0)
    await kept.reopen()
    assert (await kept.ledger.posted(RICH)).balance == FACTS["posted"][RICH] - late


async def test_the_ledger_and_usage_are_read(kept: Books) -> None:
    transfers = await kept.ledger.transfers_of(RICH, 100)
    effects = [(row.kind, row.effect) for row in reversed(transfers)]
    assert effects[:4] == [
        ("adjustment", 10_000_000),
        ("adjustment", -250_000),
        ("purchase", 49_990_000),
        ("purchase_bonus", 2_499_500),
    ]
    assert {row.purchase_id for row in transfers if row.kind.startswith(("purchase", "refund"))} == {
        FACTS["purchase_id"]
    }
    rows = {row.charge_id: row for row in await kept.ledger.usage_of(RICH, 100)}
    assert {name: row.charged_millicredits for name, row in rows.items()} == {
        "req_1": 288,
        "req_2": 14_760,
        "req_3": 3,
        "req_unflushed": 576,
        "req_orphan": FACTS["orphan"],
    }
    assert (rows["req_1"].cached_tokens, rows["req_1"].key_id) == (400, FACTS["key_id"])
    assert (rows["req_3"].usage_source, rows["req_3"].outcome) == ("counted", "client_gone")
    spent = await kept.ledger.keys_spent([FACTS["key_id"]], 0)
    assert spent[FACTS["key_id"]] == 234 + 288 + 14_760 + 3 + 576 + FACTS["orphan"]


async def test_the_books_agree_and_the_chain_holds(kept: Books) -> None:
    assert await reconcile(kept.database, None) == []
    assert await check_purchases(kept.database) == []
    assert await check_audit(kept.database) == []
    sampled = await check_sample(kept.database)
    assert (sampled.findings, sampled.priced, sampled.excluded) == ([], 4, {"bounded": 1})
    verdict = await AuditLog(kept.database).verify([FACTS["audit_head"]])
    assert (verdict.rows, verdict.head.hash, verdict.problem) == (FACTS["audit_rows"], FACTS["audit_head"], "")
    made = datetime.fromtimestamp(FACTS["made_at"] / 1_000, UTC).date()
    (day,) = [day for day in await Journal(kept.database).days(made, made) if day.purchased]
    assert (day.purchased, day.taken_back) == (52_489_500, 8_823_247)
    statements, today = Statements(kept.database), datetime.now(UTC).date()
    assert len((await statements.read(RICH, made.isoformat()[:7])).purchases) == 1
    # what waited was booked when it was opened, which is today
    assert (await statements.read(RICH, today.isoformat()[:7])).closing == (await kept.ledger.posted(RICH)).balance


async def test_accounts_keys_and_admins_are_found(kept: Books) -> None:
    assert {row.id: (row.name, row.status) for row in await kept.accounts.everyone()} == {
        RICH: ("Rich & Söhne", "active"),
        POOR: ("poor", "blocked"),
    }
    key = await kept.accounts.find_key(hash_key(FACTS["key"]))
    assert key is not None
    assert key.rules == KeyRules(("gpt-4o-mini", "gpt-5*"), Millicredits(5_000_000), "month", 60, 100_000, 4, None)
    old = await kept.accounts.find_key(hash_key(FACTS["old_key"]))
    assert old is not None
    assert old.revoked_at is not None
    assert [row.revoked_at is None for row in await kept.accounts.keys_of(RICH)] == [True, False]
    admins = Admins(kept.database)
    assert [(row.name, row.role, row.revoked_at is None) for row in await admins.everyone()] == [
        ("ada", "owner", True),
        ("app", "service", True),
        ("bob", "support", False),
    ]
    ada = await admins.find(hash_key(FACTS["admin_key"]))
    assert ada is not None
    assert ada.role == "owner"
    assert await admins.acting_for(hash_key(FACTS["service_key"]), RICH) is not None


async def test_cards_flags_objects_runs_and_notices_are_found(kept: Books) -> None:
    cards = RateCards(kept.database)
    assert await cards.active_id() == "acme-1"
    assert (await cards.get("acme-1"))["prices"] == {"markup": "1.2"}
    assert len(await cards.cards()) == 2
    flags = {row.flag: (row.value, row.expires_at) for row in await FlagOverrides(kept.database).all()}
    assert flags == {"charging_enabled": (True, None), "purchase_enabled": (False, 4_000_000_000_000)}
    objects = UpstreamObjects(kept.database)
    owned = await objects.find("resp_1")
    assert owned is not None
    assert (owned.account_id, owned.context_tokens) == (RICH, 1_200)
    assert [row.response_id for row in await objects.open_background(10)] == ["resp_bg"]
    runs = Runs(kept.database)
    assert [(row.job, row.findings) for row in await runs.latest(None, 10)] == [("finance", 0), ("reconcile", 1)]
    assert [(row.expected, row.found) for row in await runs.standing_findings("reconcile")] == [(5, 7)]
    (notice,) = await NoticeQueue(kept.database, wanted=True).listing("pending", 10)
    assert notice.id == f"low_balance:{POOR}:1"
    purchase = await PurchaseStore(kept.database).get(FACTS["purchase_id"])
    assert purchase is not None
    assert (purchase.state, purchase.stripe_charge_id, purchase.total_cents) == ("credited", "ch_1", 5949)


async def test_it_is_written_on(kept: Books) -> None:
    before = (await kept.ledger.posted(RICH)).balance
    who = Who("grace", "owner")
    assert await kept.ledger.grant(RICH, Millicredits(1_000), "more", "grace", "more", who)
    assert not await kept.ledger.grant(RICH, Millicredits(10_000_000), "welcome", "ada", "welcome", who)
    assert isinstance(await kept.store.hold(request("new", RICH, 500)), Held)
    settled = await kept.store.settle("new", RICH, Millicredits(400), record("new", RICH))
    assert isinstance(settled, Settled)
    assert settled.charged == 400
    await drain(kept.store, kept.store, kept.ledger, 100)
    assert (await kept.ledger.posted(RICH)).balance == before + 1_000 - 400
    assert (await kept.store.read(RICH)).balance == before + 1_000 - 400
    key_id, _ = await kept.accounts.create_key(RICH, KeyRules(), who)
    assert key_id in {row.id for row in await kept.accounts.keys_of(RICH)}
    token, _ = await PortalTokens(kept.database).link(RICH)
    assert await PortalTokens(kept.database).open(token) is not None
    verdict = await AuditLog(kept.database).verify([FACTS["audit_head"]])
    assert (verdict.rows, verdict.problem) == (FACTS["audit_rows"] + 2, "")
    assert await reconcile(kept.database, None) == []
