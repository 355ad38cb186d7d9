"""A replica is read from while it is well; what it fails at, the primary is asked; what is late is seen to be."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

import billing.storage.replica
from billing.accounting.statements import Statements
from billing.accounting.usage_summary import UsageSummaries
from billing.ledger.customers.search import AccountFilters, AccountSearch
from billing.ledger.ledger import Ledger
from billing.ledger.usage_rows import UsageFilters
from billing.money.errors import StoreUnavailable
from billing.storage.database import Database, now_ms
from billing.storage.migrate import newest_revision
from billing.storage.replica import (
    ALONE,
    ANOTHER,
    AWAY,
    LATE,
    NO_REPLICA,
    NOT_SEEN,
    OLD_SCHEMA,
    REFUSED,
    UNKNOWN,
    Replica,
)
from config.settings import DatabaseSettings
from proxy.cli.preflight.database import replica_checks
from proxy.cli.preflight.site import Site
from proxy.server.side_routes import journal_apart
from tests.support.money_api import settings
from tests.support.postgres_replica import PostgresReplica, ask, primary_and_replica
from tests.support.schema import in_thread, migrated
from tests.support.stores import Books, charge, close_books, open_books

pytestmark = pytest.mark.served


@pytest.fixture(scope="module")
def servers(new_folder: Callable[[str], Path]) -> Iterator[tuple[str, PostgresReplica]]:
    with primary_and_replica(new_folder("pair")) as (url, copy):
        in_thread(migrated(url, served=True))
        yield url, copy


@pytest.fixture
def copy(servers: tuple[str, PostgresReplica]) -> PostgresReplica:
    servers[1].mend()
    return servers[1]


@pytest.fixture
async def books(servers: tuple[str, PostgresReplica], folder: Path) -> AsyncIterator[Books]:
    opened = await open_books(folder, "", servers[0])
    yield opened
    await close_books(opened)


@pytest.fixture
async def replica(books: Books, copy: PostgresReplica, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replica]:
    monkeypatch.setattr(billing.storage.replica, "LOOK_WITHIN_SECONDS", 10.0)  # a busy machine is not a replica away
    opened = Replica(books.database, copy.url, 2, 2)
    await well(opened)
    yield opened
    await opened.close()


async def well(replica: Replica) -> None:
    """Look until it is read from."""
    started = time.monotonic()
    while not replica.used:
        assert time.monotonic() - started < 20, replica.problem
        await replica.look(now_ms())
        await asyncio.sleep(0.02)


async def problem_of(primary: Database, url: str) -> str:
    """Look once at what is said to be its replica."""
    replica = Replica(primary, url, 1, 2)
    try:
        await replica.look(0)
        return replica.problem
    finally:
        await replica.close()


def replayed(position: str, patch: pytest.MonkeyPatch) -> None:
    """Let the replica say that it has replayed until there."""
    said = str(billing.storage.replica.REPLICA).replace("(pg_last_wal_replay_lsn() - '0/0'::pg_lsn)", position)
    patch.setattr(billing.storage.replica, "REPLICA", text(said.replace("::", "\\:\\:")))


async def requests_shown(replica: Replica, account: str) -> int:
    """Return how many requests of an account's are summed up on a page."""
    return sum(row.requests for row in await UsageSummaries(replica).sums(UsageFilters(), (), account))


async def test_what_shows_is_read_from_the_replica_and_what_decides_from_the_primary(
    books: Books, replica: Replica, copy: PostgresReplica
) -> None:
    account, ledger = await books.account(1_000), Ledger(books.database, shown_from=replica)
    await ledger.post([charge(1, account), charge(2, account)])
    copy.catch_up()
    copy.pause()
    await ledger.post([charge(3, account)])
    other = await books.accounts.create("Newton")
    month, search = f"{datetime.now(UTC):%Y-%m}", AccountSearch(books.database, replica)

    async def seen() -> tuple[int, ...]:
        statement = await Statements(replica).read(account, month)
        found = await search.find(AccountFilters("Newton"), 10)
        figures = (await requests_shown(replica, account), len(await ledger.usage_of(account, 10)))
        return *figures, len(statement.usage), statement.closing, len(found)

    async def known() -> tuple[int, ...]:
        moved, (one,) = await ledger.transfers_of(account, 10), await search.find(AccountFilters(), 1)
        (named,) = await search.find(AccountFilters(other), 1)
        asked = await ledger.usage_of(account, 10, UsageFilters(request_id="c3"))
        return (await ledger.posted(account)).balance, len(moved), len(asked), int(one.id == named.id == other)

    assert await known() == (970, 4, 1, 1)
    assert await seen() == (2, 2, 1, 980, 0)
    copy.resume()
    copy.catch_up()
    assert await seen() == (3, 3, 1, 970, 1)
    assert replica.failures() == 0


async def test_a_page_behind_another_leaves_nothing_out(books: Books, replica: Replica, copy: PostgresReplica) -> None:
    account, ledger = await books.account(1_000), Ledger(books.database, shown_from=replica)
    search = AccountSearch(books.database, replica)
    copy.catch_up()
    copy.pause()
    await ledger.post([charge(number, account) for number in range(51, 56)])
    made = [await books.accounts.create(f"Hooke {number}") for number in range(3)]
    booked, accounts = list[int](), list[str]()
    while page := await ledger.transfers_of(account, 2, booked[-1] if booked else None):
        booked += [row.id for row in page]
    before = None
    while len(accounts) < len(made) and (found := await search.find(AccountFilters(before=before), 1)):
        accounts, before = [*accounts, found[0].id], (found[0].created_at, found[0].id)
    assert (len(booked), set(accounts)) == (6, set(made))


async def test_one_that_is_late_is_not_read_from_until_it_has_caught_up(
    books: Books,
    replica: Replica,
    copy: PostgresReplica,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(billing.storage.replica, "LATEST_SECONDS", 0.6)
    monkeypatch.setattr(billing.storage.replica, "BACK_SECONDS", 0.4)
    account = await books.account(1_000)
    copy.catch_up()
    await replica.look(7)
    assert (replica.used, replica.booked_until) == (True, 7)
    copy.pause()
    await books.ledger.post([charge(11, account)])
    await replica.look(8)  # marks a position that it does not reach
    assert (replica.used, replica.booked_until, await requests_shown(replica, account)) == (True, 7, 0)
    await asyncio.sleep(0.7)
    for _ in range(3):
        await replica.look(9)
    assert (replica.problem, await requests_shown(replica, account)) == (LATE, 1)
    assert replica.lag_seconds > 0.6
    copy.resume()
    copy.catch_up()
    await well(replica)
    assert (await requests_shown(replica, account), replica.booked_until > 9) == (1, True)


async def test_one_that_replays_steadily_and_long_after_is_late(
    books: Books,
    replica: Replica,
    copy: PostgresReplica,
    servers: tuple[str, PostgresReplica],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(billing.storage.replica, "LATEST_SECONDS", 0.3)
    monkeypatch.setattr(billing.storage.replica, "BACK_SECONDS", 0.3)
    copy.pause()
    await books.account(1_000)
    await replica.look(1)
    position = ask(servers[0], "SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint")
    await books.account(1_000)
    await asyncio.sleep(0.4)
    replayed(str(position), monkeypatch)
    await replica.look(2)
    assert (replica.problem, replica.booked_until) == (LATE, 1), "it has what was there 0.4 s ago, and no more"


async def test_one_about_the_limit_does_not_come_and_go(
    books: Books, replica: Replica, copy: PostgresReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing.storage.replica, "LATEST_SECONDS", 60.0)
    monkeypatch.setattr(billing.storage.replica, "BACK_SECONDS", 0.0)
    copy.pause()
    await books.account(1_000)
    await replica.look(0)
    assert replica.problem == ""
    replica.problem = AWAY
    await replica.look(0)
    assert replica.problem == LATE, "it is to be better before it is read from again"


async def test_reports_that_take_every_connection_do_not_make_it_look_away(replica: Replica) -> None:
    async with AsyncExitStack() as reports:
        for _ in range(4):  # two, and as many again
            await reports.enter_async_context(replica.read())
        await replica.look(0)
        assert replica.problem == ""


async def test_an_idle_primary_makes_nobody_late(
    books: Books, replica: Replica, copy: PostgresReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing.storage.replica, "LATEST_SECONDS", 0.6)
    monkeypatch.setattr(billing.storage.replica, "BACK_SECONDS", 0.6)
    await books.account()
    copy.catch_up()
    await asyncio.sleep(1)
    for _ in range(3):  # PostgreSQL writes something of its own now and then
        await replica.look(0)
        if replica.used:
            break
    since = float(ask(copy.url, "SELECT extract(epoch FROM now() - pg_last_xact_replay_timestamp())"))
    assert (replica.problem, since > 0.9) == ("", True), "by the time of its last transaction it would be late"


async def test_one_that_nobody_can_compare_is_not_read_from(
    books: Books, copy: PostgresReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing.storage.replica, "LATEST_SECONDS", 0.3)
    primary = Database(books.database.url.render_as_string(hide_password=False), 1, 1)
    replica = Replica(primary, copy.url, 1, 2)
    await well(replica)
    monkeypatch.setattr(primary, "reader", Database("postgresql+asyncpg://nobody@127.0.0.1:9/none", 1, 1).reader)
    await asyncio.sleep(0.4)
    await replica.look(0)
    assert replica.problem == ALONE
    await replica.close()
    await primary.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_one_that_is_away_fails_no_read(
    books: Books, replica: Replica, copy: PostgresReplica, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setattr(billing.storage.replica, "LOOK_WITHIN_SECONDS", 1.0)
    account = await books.account(1_000)
    await books.ledger.post([charge(20 + how, account)])
    copy.catch_up()
    async with replica.read() as before:
        assert (await before.execute(text("SELECT pg_is_in_recovery()"))).scalar_one()
        copy.kill(how)
        assert not (await before.execute(text("SELECT pg_is_in_recovery()"))).scalar_one()
        assert not (await before.execute(text("SELECT pg_is_in_recovery()"))).scalar_one()
    assert (await requests_shown(replica, account), replica.used) == (1, True), "nobody has looked yet"
    assert replica.failures() >= 2
    await replica.look(0)
    assert (replica.problem, await requests_shown(replica, account), replica.failures()) == (AWAY, 1, 0)
    copy.mend()
    await well(replica)
    async with replica.read() as again:
        assert (await again.execute(text("SELECT pg_is_in_recovery()"))).scalar_one()


async def test_a_statement_that_is_in_the_way_of_replaying_is_asked_at_the_primary(
    replica: Replica, copy: PostgresReplica, servers: tuple[str, PostgresReplica]
) -> None:
    primary = await asyncpg.connect(servers[0].replace("postgresql+asyncpg://", "postgresql://"))
    slow = text("SELECT pg_sleep(1), pg_is_in_recovery(), (SELECT count(*) FROM finance_daily)")

    async def read() -> tuple[bool, int]:
        async with replica.read() as connection:
            _, recovering, number = (await connection.execute(slow)).one()
            return recovering, number

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.3)
    async with primary.transaction():
        await primary.execute("LOCK TABLE finance_daily IN ACCESS EXCLUSIVE MODE")
    assert (await reading, replica.failures(), replica.used) == ((False, 0), 1, True)
    assert ask(copy.url, "SELECT confl_lock FROM pg_stat_database_conflicts WHERE datname = current_database()") == 1
    await primary.close()


async def test_a_mistake_of_ours_is_raised_and_is_no_failure_of_the_replica(replica: Replica) -> None:
    with pytest.raises(ProgrammingError):
        async with replica.read() as connection:
            await connection.execute(text("SELECT no_such_column FROM accounts"))
    assert replica.failures() == 0


async def test_where_both_are_away_a_page_says_that(
    books: Books, copy: PostgresReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary = Database(books.database.url.render_as_string(hide_password=False), 1, 1)
    replica = Replica(primary, copy.url, 1, 2)
    await well(replica)
    monkeypatch.setattr(primary, "reader", Database("postgresql+asyncpg://nobody@127.0.0.1:9/none", 1, 1).reader)
    with pytest.raises(StoreUnavailable, match="127.0.0.1"):
        async with replica.read() as connection:
            await connection.execute(text("SELECT 1"))
            copy.kill()
            await connection.execute(text("SELECT 1"))
    with pytest.raises(StoreUnavailable, match="127.0.0.1"):
        await requests_shown(replica, "nobody")
    await replica.close()
    await primary.close()


async def test_what_is_no_replica_of_this_ledger_is_not_read_from(
    books: Books, copy: PostgresReplica, servers: tuple[str, PostgresReplica], postgres_url: str
) -> None:
    primary, stranger = books.database, Database(postgres_url, 1, 2)
    assert await problem_of(primary, f"{servers[0]}&application_name=x") == NO_REPLICA, "the primary itself"
    assert await problem_of(primary, copy.url_of(servers[0].replace("/postgres?", "/template1?"))) == ANOTHER
    assert await problem_of(stranger, copy.url) == ANOTHER, "another server's database of the same name"
    assert await problem_of(primary, "postgresql+asyncpg://nobody@127.0.0.1:9/none") == AWAY
    await stranger.close()


async def test_one_that_does_not_say_what_it_has_replayed_is_not_read_from(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed("NULL", monkeypatch)
    await replica.look(0)
    assert replica.problem == UNKNOWN


async def test_one_that_was_made_anew_of_an_older_copy_has_to_be_seen_to_follow_again(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        replayed("1", patch)
        await replica.look(0)
        assert replica.problem == NOT_SEEN
    await well(replica)


async def test_one_without_the_newest_schema_is_not_read_from(
    books: Books, replica: Replica, copy: PostgresReplica, servers: tuple[str, PostgresReplica]
) -> None:
    ask(servers[0], "UPDATE alembic_version SET version_num = '0001'")
    copy.catch_up()
    await replica.look(0)
    assert replica.problem == OLD_SCHEMA
    ask(servers[0], "UPDATE alembic_version SET version_num = $1", newest_revision())
    copy.catch_up()
    await well(replica)


async def test_a_role_that_may_only_serve_is_enough_and_so_is_no_prepared_statement(
    books: Books, copy: PostgresReplica, servers: tuple[str, PostgresReplica]
) -> None:
    for statement in ("DROP ROLE IF EXISTS shows", "CREATE ROLE shows LOGIN"):
        ask(servers[0], statement)
    ask(servers[0], "GRANT SELECT ON ALL TABLES IN SCHEMA public TO shows")
    copy.catch_up()
    bouncer = "&statement_cache_size=0&prepared_statement_cache_size=0"
    primary, replica_url = (url.replace("//postgres:@", "//shows@") + bouncer for url in (servers[0], copy.url))
    database = Database(primary, 1, 2)
    replica = Replica(database, replica_url, 1, 2)
    await well(replica)
    assert (await requests_shown(replica, "nobody"), replica.failures()) == (0, 0)
    ask(servers[0], "REVOKE EXECUTE ON FUNCTION pg_control_system FROM public")
    await replica.look(0)
    ask(servers[0], "GRANT EXECUTE ON FUNCTION pg_control_system TO public")
    assert (replica.problem, replica.details.rpartition(": ")[2]) == (
        REFUSED,
        "permission denied for function pg_control_system",
    )
    await replica.close()
    await database.close()


async def test_what_only_the_replica_refuses_fails_no_page(
    books: Books, copy: PostgresReplica, servers: tuple[str, PostgresReplica]
) -> None:
    for statement in (
        "DROP ROLE IF EXISTS looks",
        "CREATE ROLE looks LOGIN",
        "GRANT SELECT ON alembic_version TO looks",
    ):
        ask(servers[0], statement)
    copy.catch_up()
    url = copy.url.replace("//postgres:@", "//looks@")
    replica = Replica(books.database, url, 1, 2)
    await well(replica)
    assert (await requests_shown(replica, "nobody"), replica.failures()) == (0, 1)
    conf = DatabaseSettings(url=servers[0], replica_url=url, timeout_seconds=2)
    today = datetime.now(UTC).date()
    await journal_apart(conf, replica)(today, today)
    assert replica.failures() == 1
    await replica.close()
    ask(servers[0], "DROP OWNED BY looks")
    ask(servers[0], "DROP ROLE looks")


async def test_the_journal_is_of_one_snapshot_and_read_anew_at_the_primary(
    books: Books, replica: Replica, copy: PostgresReplica, servers: tuple[str, PostgresReplica]
) -> None:
    conf = DatabaseSettings(url=servers[0], replica_url=copy.url, timeout_seconds=2)
    journal, today = journal_apart(conf, replica), datetime.now(UTC).date()

    async def debited() -> int:
        return sum(line.debit for line in await journal(date(2020, 1, 1), today))

    account = await books.account(5_000)
    copy.catch_up()
    copy.pause()
    before = await debited()
    await books.ledger.post([charge(41, account)])
    assert await debited() == before, "it is of the replica"
    copy.kill()
    assert await debited() > before
    assert replica.failures() == 1


async def test_preflight_looks_at_the_replica(books: Books, copy: PostgresReplica) -> None:
    database = {"url": books.database.url.render_as_string(hide_password=False), "replica_url": copy.url}
    nothing: Any = None
    site = Site(settings(database=database), books.database, (), nothing, None, nothing, "", None, 26, 1)
    (row,) = await replica_checks(site)
    assert (row.state, row.found.startswith("is read from, ")) == ("PASS", True)
    assert await replica_checks(replace(site, settings=settings())) == []


async def test_promoted_it_is_left(books: Books, replica: Replica, copy: PostgresReplica) -> None:
    account = await books.account(1_000)
    copy.promote()
    await books.ledger.post([charge(31, account)])
    await replica.look(0)
    assert (replica.problem, await requests_shown(replica, account)) == (NO_REPLICA, 1)
