"""What the scheduled jobs check and keep, on SQLite and PostgreSQL: every planted fault is found, and nothing else."""

import asyncio
import random
from collections.abc import Callable, Collection
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import text

import billing.ledger.ledger
import billing.storage.partitions
from billing.accounting.daily_finance import DAY_MS, Figures, Finance, below_target, day_of, span
from billing.accounting.openai_costs import CHECK, WITH_TOOLS, OwnCost, compare_costs, own_costs
from billing.accounting.reconcile import check_audit, check_ledger, check_store
from billing.accounting.reconcile_charges import check_sample
from billing.accounting.statements import Statements
from billing.jobs.retention import drop_detail
from billing.jobs.runs import DIFFERENCES, FAILED, PARTLY, Runs
from billing.jobs.schedule import Job, JobIsRunning, JobResult, Scheduler
from billing.ledger.audit_log import AuditLog, Change, Who
from billing.ledger.portal_tokens import PortalTokens
from billing.ledger.rate_cards import RateCards
from billing.money.errors import StoreUnavailable
from billing.money.findings import Finding, mismatch
from billing.money.holds import Entry, Reading
from billing.money.pricing import Charge, PriceBook, load_catalogue
from billing.money.usage import Usage
from billing.money.usage_record import UsageRecord, encode_record
from billing.storage.partitions import keep_partitions, month_of
from proxy.customer_api.statement_csv import statement_csv
from tests.billing.stores import Books

PRICES = PriceBook(load_catalogue(), "1.3", "exact")
NOW = int(datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()) * 1_000
MODELS = ("gpt-4o-mini", "gpt-4o", "gpt-5.4-mini")
WHO = Who("tests", "owner")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the time at which the ledger books."""

    def set_to(milliseconds: int) -> None:
        monkeypatch.setattr(billing.ledger.ledger, "now_ms", lambda: milliseconds)

    return set_to


async def subjects_of(books: Books, run_id: int) -> list[str]:
    """Of a run's findings, in order."""
    async with books.database.read() as connection:
        query = text("SELECT subject FROM findings WHERE run_id = :run ORDER BY id")
        return list((await connection.execute(query, {"run": run_id})).scalars())


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


async def every_check(books: Books) -> list[Finding]:
    sampled = await check_sample(books.database)
    return await check_ledger(books.database) + sampled.findings + await check_audit(books.database)


@pytest.fixture
async def busy(sql: Books, clock: Callable[[int], None]) -> tuple[Books, str]:
    """An account with charges of seven days, and an audit log."""
    clock(NOW - 6 * DAY_MS)
    account = await sql.account(100_000_000)
    for number in range(7):
        booked = NOW - (6 - number) * DAY_MS + 500
        clock(booked)
        await sql.ledger.post(
            [settled(f"c{number}", account, booked - 500, MODELS[number % 3], (900 + number, 100 + number))]
        )
    for number in range(3):
        await AuditLog(sql.database).write(WHO, Change("test", f"{number}", None, None, "a reason"))
    return sql, account


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


async def test_the_store_is_compared_exactly_and_only_with_what_is_new(busy: tuple[Books, str]) -> None:
    books, account = busy
    posted = await books.ledger.posted(account)
    await books.ledger.grant(account, billing.ledger.ledger.millicredits(1_000), "later", "test", "not applied yet")
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


async def test_an_account_that_never_stands_still_is_reported_as_such_and_not_as_wrong(busy: tuple[Books, str]) -> None:
    books, account = busy
    numbers = iter(range(1_000))

    async def store(_only: Collection[str] | None) -> tuple[dict[str, Reading], dict[str, int], dict[str, int]]:
        await books.ledger.grant(
            account, billing.ledger.ledger.millicredits(1), f"busy {next(numbers)}", "test", "traffic"
        )
        return {account: Reading(12, 0, 0)}, {}, {}

    compared = await check_store(books.database, store)
    assert (compared.findings, compared.busy) == ([], (account,))


# -- retention --------------------------------------------------------------------------------------------------------


async def test_dropping_detail_changes_no_statement_no_limit_and_no_check(
    sql: Books, clock: Callable[[int], None]
) -> None:
    rng = random.Random(5)
    clock(NOW - 80 * DAY_MS)
    accounts = [await sql.account(900_000_000), await sql.account(900_000_000)]
    entries = []
    for number in range(300):
        asked = NOW - rng.randrange(75 * DAY_MS)
        model = rng.choice(MODELS)
        entries.append(
            (
                asked,
                settled(
                    f"r{number}", rng.choice(accounts), asked, model, (rng.randrange(40, 3_000), rng.randrange(1, 900))
                ),
            )
        )
    # one that was asked for at the end of a month and booked in the next, and one that was free
    late = span(date(2026, 9, 30))[1] - 200
    entries.append((late, settled("across", accounts[0], late)))
    entries.append((late, settled("free", accounts[0], late)._replace(charged=0)))
    for asked, entry in sorted(entries):
        clock(asked + rng.randrange(400, 3_000))
        await sql.ledger.post([entry])
    months = ("2026-09", "2026-10", "2026-11")
    statements, portal, finance = Statements(sql.database), PortalTokens(sql.database), Finance(sql.database)

    async def seen() -> list[object]:
        shown: list[object] = [
            statement_csv(await statements.read(account, month)) for account in accounts for month in months
        ]
        shown += [await portal.spend(account, NOW // DAY_MS - 100) for account in accounts]
        shown += [
            await sql.ledger.key_spent("key_1", since)
            for since in (0, span(date(2026, 11, 1))[0], span(date(2026, 10, 1))[0])
        ]
        shown += [await finance.compute(day_of(NOW) - timedelta(days=back)) for back in (0, 3, 30, 55, 70)]
        own = await own_costs(sql.database, date(2026, 9, 30))
        return [*shown, {name: cost.amount for name, cost in own.items()}]

    before = await seen()
    assert b"across" not in b"".join(part for part in before if isinstance(part, bytes))
    dropped = await drop_detail(sql.database, 20, NOW, batch=37)
    async with sql.database.read() as connection:
        left = int((await connection.execute(text("SELECT count(*) FROM usage"))).scalar_one())
        oldest = int((await connection.execute(text("SELECT min(created_at) FROM usage"))).scalar_one())
    assert (left + dropped.rows, dropped.rows > 150, oldest >= dropped.before_ms) == (302, True, True)
    assert await seen() == before
    assert await check_ledger(sql.database) == []
    # a charge that is flushed once more, long after its row went, is not booked again
    clock(NOW)
    assert (
        await sql.ledger.post([entry for asked, entry in entries if asked < dropped.before_ms and entry.charged]) == 0
    )
    assert await seen() == before
    assert (await drop_detail(sql.database, 20, NOW)).rows == 0
    await run_sql(
        sql,
        "UPDATE usage_daily SET charged_millicredits = charged_millicredits + 9 WHERE charged AND booked_day = 20727",
    )
    assert {one.check for one in await check_ledger(sql.database)} == {"sum(usage) vs sum(ledger charges)"}


async def test_two_at_once_drop_each_row_once(sql: Books, clock: Callable[[int], None]) -> None:
    clock(NOW - 40 * DAY_MS)
    account = await sql.account(900_000_000)
    await sql.ledger.post([settled(f"t{number:03}", account, NOW - 40 * DAY_MS) for number in range(120)])
    done = await asyncio.gather(*(drop_detail(sql.database, 20, NOW, batch=7) for _ in range(2)))
    assert sum(part.rows for part in done) == 120
    assert await check_ledger(sql.database) == []


# -- finance ----------------------------------------------------------------------------------------------------------


async def test_a_day_keeps_the_liability_of_its_end_whenever_it_is_computed(
    sql: Books, clock: Callable[[int], None]
) -> None:
    finance, first = Finance(sql.database), day_of(NOW) - timedelta(days=3)
    start = span(first)[0]
    clock(start + 1)
    account, other = await sql.account(50_000), await sql.account(1)
    clock(start + DAY_MS + 5)  # the next day: charged, and another one overdrawn
    entry = settled("f1", account, start + DAY_MS)
    await sql.ledger.post([entry])
    await sql.ledger.grant(other, billing.ledger.ledger.millicredits(-500), "back", "test", "correction")
    clock(start + 3 * DAY_MS)
    await sql.ledger.grant(account, billing.ledger.ledger.millicredits(7_000), "later", "test", "today")
    rolled = await finance.roll_up(NOW)
    by_day = {figures.day: figures for figures in rolled.days}
    ends = [by_day[(first + timedelta(days=back)).isoformat()].liability for back in range(4)]
    assert ends == [50_001, 50_000 - entry.charged, 50_000 - entry.charged, 57_000 - entry.charged]
    assert len(rolled.closed) == 3
    assert [figures.day for figures in (await finance.roll_up(NOW + 1_000)).days] == [day_of(NOW).isoformat()], (
        "closed days stay"
    )
    tomorrow = await finance.roll_up(NOW + DAY_MS)
    assert [figures.day for figures in tomorrow.closed] == [day_of(NOW).isoformat()]


def test_a_margin_below_target_is_a_finding() -> None:
    def day(deducted: int, cost: int) -> Figures:
        return Figures("2026-11-20", 0, deducted, cost, 0, 0, 1)

    assert below_target([day(1_000, 800), day(0, 0)], 20) == []
    assert [(one.expected, one.found) for one in below_target([day(1_000, 801)], 20)] == [(200, 199)]
    assert [(one.expected, one.found) for one in below_target([day(1_000, 1_001)], 0)] == [(0, -1)]
    assert below_target([day(1_000, 1_100)], -10) == []
    assert below_target([day(1_001, 801)], 20) == [Finding("margin of a day below target", "2026-11-20", 201, 200, 0)]


# -- costs ------------------------------------------------------------------------------------------------------------


def test_costs_are_compared_by_model_and_with_a_tolerance() -> None:
    day = date(2026, 11, 20)
    ours = {"gpt-4o": OwnCost(1_000_000, 10, False), "gpt-5.4": OwnCost(500_000, 5, True)}
    billed = {
        "gpt-4o-2024-08-06, input": Decimal("0.6"),
        "gpt-4o, output": Decimal("0.399999"),
        "gpt-5.4-2026-03-05, input": Decimal("0.45"),
        "web search": Decimal("0.05"),
    }
    assert compare_costs(day, ours, billed, 0) == []
    billed["gpt-4o, output"] = Decimal("0.42")
    assert compare_costs(day, ours, billed, 2) == []
    assert compare_costs(day, ours, billed, 1) == [Finding(CHECK, "2026-11-20 gpt-4o", 1_020_000, 1_000_000, 0)]
    billed["web search"] = Decimal("0.10")
    assert [one.subject for one in compare_costs(day, ours, billed, 2)] == [f"2026-11-20 {WITH_TOOLS}"]
    only = {"gpt-4o": OwnCost(1_000, 1, False)}
    assert [one.subject for one in compare_costs(day, only, {"o3, input": Decimal("0.001")}, 50)] == [
        "2026-11-20 gpt-4o",
        "2026-11-20 o3",
    ]


# -- partitions -------------------------------------------------------------------------------------------------------


async def partitions_of(books: Books) -> dict[str, int]:
    async with books.database.read() as connection:
        rows = await connection.execute(text("SELECT tableoid::regclass::text, count(*) FROM usage GROUP BY 1"))
        return {row[0]: int(row[1]) for row in rows}


async def test_months_are_made_ahead_also_beside_rows_and_a_large_default(
    sql: Books, clock: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    today = day_of(NOW)
    if sql.database.is_sqlite:
        assert await keep_partitions(sql.database, today, None) == ([], [], [])
        return
    clock(NOW)
    account = await sql.account(900_000_000)
    times = {"old": NOW - 60 * DAY_MS, "now": NOW, "skewed": month_of(today, 1).start + 5}
    await sql.ledger.post([settled(name, account, at) for name, at in times.items()])
    kept = await keep_partitions(sql.database, today, None, months=2)
    assert kept == (["usage_2026_11", "usage_2026_12", "usage_2027_01"], [], [])
    assert await partitions_of(sql) == {"usage_default": 1, "usage_2026_11": 1, "usage_2026_12": 1}
    assert (await keep_partitions(sql.database, today, None, months=2)).made == []
    # a default too large to be locked: what has no rows is made beside it, what has some is a finding
    monkeypatch.setattr(billing.storage.partitions, "MOST_MOVED", 0)
    beyond = month_of(today, 4)
    await sql.ledger.post([settled("far", account, beyond.start)])
    kept = await keep_partitions(sql.database, today, None, months=4)
    assert (kept.made, [one.subject for one in kept.findings]) == (["usage_2027_02"], [beyond.name])
    await sql.ledger.post(
        [settled("february", account, month_of(today, 3).start + 9), settled("march", account, beyond.start + 1)]
    )
    assert (await partitions_of(sql))["usage_2027_02"] == 1
    assert (
        await sql.ledger.post(
            [settled("now", account, NOW), settled("february", account, month_of(today, 3).start + 9)]
        )
        == 0
    )
    # what retention emptied is dropped, once it is past
    long_after = span(date(2027, 6, 1))[0]
    await drop_detail(sql.database, 20, long_after)
    kept = await keep_partitions(sql.database, date(2027, 6, 1), long_after - 20 * DAY_MS, months=0)
    assert kept.dropped == ["usage_2026_11", "usage_2026_12", "usage_2027_01", "usage_2027_02"]
    assert await check_ledger(sql.database) == []


# -- the schedule -----------------------------------------------------------------------------------------------------


async def test_a_job_runs_when_it_is_due_and_once_of_all_processes(sql: Books) -> None:
    began: list[str] = []
    release = asyncio.Event()

    def process(name: str, every: float) -> Scheduler:
        async def work(_since: int) -> JobResult:
            began.append(name)
            await release.wait()
            return JobResult([], "done")

        return Scheduler(sql.database, [Job("j", every, work, "")])

    one, two = process("one", 3_600), process("two", 3_600)
    looks = [scheduler.steps()[0][0] for scheduler in (one, two)]
    waiting = [asyncio.create_task(look()) for look in looks]  # type: ignore[arg-type]
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    while not began:
        await asyncio.sleep(0.01)
    assert (len(began), len(done)) == (1, 1)
    with pytest.raises(JobIsRunning):
        await one.run("j")
    assert (await two.status())[0].running
    release.set()
    await asyncio.gather(*waiting)
    later = process("a process started later", 3_600)
    for scheduler in (one, two, later):
        scheduler._not_before.clear()
        await scheduler.steps()[0][0]()
    assert len(began) == 1, "it is not due for an hour"
    (status,) = await later.status()
    assert (status.running, status.last is not None and status.last.ok) == (False, True)
    await later.request("j", WHO, "at once, please")
    another = process("a process started after that", 3_600)
    await another.steps()[0][0]()
    assert began[1:] == ["a process started after that"]
    assert [row.action for row in await AuditLog(sql.database).newest(1)] == ["job.run"]
    assert len(await Runs(sql.database).latest("j", 10)) == 2


async def test_a_job_that_cannot_be_done_stays_due_and_is_one_row(sql: Books) -> None:
    away = True

    async def work(since: int) -> JobResult:
        if away:
            raise StoreUnavailable("openai", "is away")
        return JobResult([Finding("c", "s", 1, 2)], f"since {since}")

    runs, scheduler = Runs(sql.database), Scheduler(sql.database, [Job("j", 3_600, work, "")])
    for _ in range(2):
        scheduler._not_before.clear()
        await scheduler.steps()[0][0]()
    (row,) = await runs.latest("j", 10)
    assert (row.ok, row.report) == (False, f"{FAILED}openai: is away")
    await scheduler.steps()[0][0]()  # not at once again
    away = False
    scheduler._not_before.clear()
    await scheduler.steps()[0][0]()
    newest = (await runs.latest("j", 1))[0]
    assert (newest.findings, newest.report) == (1, f"since 0\n{DIFFERENCES}1")
    assert await subjects_of(sql, newest.id) == ["s"]


async def test_clean_runs_are_forgotten_and_the_others_are_not(sql: Books) -> None:
    runs = Runs(sql.database)
    await runs.keep("j", 1, [Finding("c", "s", 1, 2)], "first")
    async with sql.database.write() as connection:
        row = (
            "INSERT INTO job_runs (job, started_at, finished_at, ok, findings, report) VALUES ('j', 1, 1, true, 0, '')"
        )
        for _ in range(220):
            await connection.execute(text(row))
    await runs.keep("j", 2, [], "last")
    kept = await runs.latest("j", 1_000)
    assert (len(kept), kept[0].report, kept[-1].report) == (201, "last", f"first\n{DIFFERENCES}1")
    assert await runs.standing("j") == (kept[0].finished_at, 0, 0, (kept[0].finished_at - 2) / 1_000)


async def test_a_fault_of_ours_in_a_job_is_a_row_too(sql: Books) -> None:
    async def work(_since: int) -> JobResult:
        raise KeyError("a field that was always there")

    scheduler = Scheduler(sql.database, [Job("j", 3_600, work, "")])
    with pytest.raises(KeyError):
        await scheduler.steps()[0][0]()
    (row,) = await Runs(sql.database).latest("j", 10)
    assert (row.ok, row.findings, row.report) == (
        False,
        0,
        f"{FAILED}KeyError: 'a field that was always there'",
    )
    assert await Runs(sql.database).completed_at("j") == 0
    await scheduler.steps()[0][0]()  # not at once again


async def test_a_run_that_could_not_look_at_everything_keeps_what_it_found_and_stays_due(sql: Books) -> None:
    """What it found counts together with what the last whole run found, until the next whole one."""
    results = [JobResult([Finding("dear", "s", 0, 50, 10)], "whole")]

    async def work(_since: int) -> JobResult:
        return results[-1]

    runs, scheduler = Runs(sql.database), Scheduler(sql.database, [Job("j", 3_600, work, "")])

    async def again() -> None:
        scheduler._due.clear()
        await scheduler.steps()[0][0]()

    await again()
    whole = await runs.standing("j")
    assert whole is not None
    assert whole[1:3] == (1, 500)
    async with sql.database.write() as connection:
        await connection.execute(text("UPDATE job_runs SET started_at = 1"))  # long ago: it is due again
    results.append(
        JobResult([Finding("c", "s", 1, 2), Finding("c", "t", 1, 4)], "12.1 s", "Stripe's record: stripe: is away")
    )
    await again()
    results.append(results[-1]._replace(report="13.7 s"))
    await again()
    rows = await runs.latest("j", 10)
    assert [(row.ok, row.findings) for row in rows] == [(False, 2), (False, 1)], "the same again is the same row"
    assert rows[0].report == f"{PARTLY}Stripe's record: stripe: is away\n13.7 s\n{DIFFERENCES}4"
    assert await subjects_of(sql, rows[0].id) == ["s", "t"]
    assert await runs.completed_at("j") == 1, "it counts as not run"
    standing = await runs.standing("j")
    assert standing is not None
    assert standing[:3] == (whole.succeeded_at, 2, 500), "the worse of both"
    assert [(row.check, row.subject) for row in await runs.standing_findings("j")] == [
        ("c", "s"),
        ("c", "t"),
        ("dear", "s"),
    ]
    results.append(JobResult([Finding("dear", "s", 0, 60, 10)], "12.9 s", "Stripe's record: stripe: is away"))
    await again()
    await runs.keep_failure("j", 1, "sql: is away")
    found = [(row.check, row.subject, row.found) for row in await runs.standing_findings("j")]
    assert found == [("dear", "s", 60), ("c", "s", 2), ("c", "t", 4)], "as the newest has it"
    await scheduler.steps()[0][0]()
    assert len(await runs.latest("j", 10)) == 4, "not at once again"
    results.append(JobResult([], "all is well"))
    await again()
    after = await runs.standing("j")
    assert after is not None
    assert (after[1:3], await runs.standing_findings("j")) == ((0, 0), [])


async def test_figures_to_show_are_the_newest_day_and_the_last_closed_one(
    sql: Books, clock: Callable[[int], None]
) -> None:
    finance = Finance(sql.database)
    assert await finance.kept() == (None, 0, None)
    clock(NOW - 2 * DAY_MS)
    account = await sql.account(50_000)
    await sql.ledger.post([settled("k1", account, NOW - 2 * DAY_MS)])
    await finance.roll_up(NOW)
    kept = await finance.kept()
    assert (kept.newest and kept.newest.day, kept.updated_at) == (day_of(NOW).isoformat(), NOW)
    assert kept.closed is not None
    assert (kept.closed.day, kept.closed.deducted) == (day_of(NOW - DAY_MS).isoformat(), 0)
    # half an hour into the next day today is not closed yet, an hour later it is
    for hours, closed in ((12.5, day_of(NOW - DAY_MS)), (13.5, day_of(NOW))):
        await finance.roll_up(NOW + round(hours * 3_600_000))
        kept = await finance.kept()
        assert (kept.closed and kept.closed.day) == closed.isoformat(), hours


async def test_every_charge_that_is_booked_is_told_of_once(sql: Books) -> None:
    """By the flush, by a repeat of it, after a rebuilding."""
    told: list[str] = []
    ledger = billing.ledger.ledger.Ledger(
        sql.database, lambda entries: told.extend(entry.position for entry in entries)
    )
    account = await sql.account(900_000_000)
    first, second = settled("n1", account, NOW)._replace(loss=7), settled("n2", account, NOW)
    await ledger.post_current([first])
    await ledger.post_bookable([first, second])
    await ledger.post([second, first])
    assert told == ["n1", "n2"]


async def test_a_sample_says_what_it_passes_over(sql: Books, clock: Callable[[int], None]) -> None:
    await RateCards(sql.database).begin_with_shipped()
    clock(NOW)
    account = await sql.account(900_000_000)
    await sql.ledger.post([settled(f"s{number}", account, NOW) for number in range(6)])
    calls = """tool_calls = '{"web_search":2}', cost_millicredits = cost_millicredits + 20000, loss_millicredits = loss_millicredits + 26000"""
    await run_sql(
        sql,
        "UPDATE usage SET usage_source = 'bounded' WHERE charge_id = 's1'",
        """UPDATE usage SET rates = replace(rates, '"tier"', '"more":[],"tier"') WHERE charge_id = 's2'""",
        "UPDATE usage SET free = true, charged_millicredits = 0 WHERE charge_id = 's3'",
        f"UPDATE usage SET {calls} WHERE charge_id = 's4'",
    )
    sampled = await check_sample(sql.database)
    assert (sampled.findings, sampled.priced, sampled.excluded) == ([], 4, {"bounded": 1, "other models": 1})
    few = await check_sample(sql.database, 2, random.Random(1))
    assert few.priced + sum(few.excluded.values()) == 2
