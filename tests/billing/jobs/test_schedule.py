"""The schedule: a job runs when it is due, once of all processes, and its run is a row."""

import asyncio

import pytest
from sqlalchemy import text

from billing.jobs.runs import DIFFERENCES, FAILED, PARTLY, Runs
from billing.jobs.schedule import Job, JobIsRunning, JobResult, Scheduler
from billing.ledger.audit_log import AuditLog
from billing.money.errors import StoreUnavailable
from billing.money.findings import Finding
from tests.support.charges import WHO
from tests.support.stores import Books


async def subjects_of(books: Books, run_id: int) -> list[str]:
    """Of a run's findings, in order."""
    async with books.database.read() as connection:
        query = text("SELECT subject FROM findings WHERE run_id = :run ORDER BY id")
        return list((await connection.execute(query, {"run": run_id})).scalars())


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
