"""`tollkeeper reconcile`, `finance`, `costs`, `jobs`, `findings`: what the scheduled jobs do, by hand and at once.

Exit codes: 0 nothing found, 1 findings, 3 a store (or Stripe, or OpenAI) does not answer; then what the other checks
found is printed and kept all the same. Each run is a row, as the scheduled ones are.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from datetime import date, timedelta
from typing import Any

from prometheus_client import CollectorRegistry

from billing.accounting.daily_finance import DAY_MS, MOST_DAYS, RolledUp, day_of
from billing.accounting.reconcile import traces
from billing.jobs.runs import PARTLY, Runs
from billing.jobs.schedule import JobIsRunning, JobResult, Run
from billing.ledger.dismissals import TEST_MONEY, Dismissals
from billing.money.amounts import written_credits, written_usd
from billing.money.findings import Finding
from billing.payments.purchase_store import PurchaseStore
from billing.storage.database import now_ms
from proxy.admin.rows import job_row
from proxy.cli.balances import open_reader
from proxy.cli.context import LONGEST_REASON, Add, Context, Refusal, short_text, table, who
from proxy.cli.context import Result as Output
from proxy.customer_api.money_in import CHECK_DAYS, money_in
from proxy.observability.metrics import Metrics
from proxy.server.jobs import EXPIRY, JobBook
from proxy.web.times import iso_time

COMMANDS = ("reconcile", "finance", "costs", "jobs")
FINDERS = ("reconcile", "stripe", "sweep", "finance", "costs")
"""Jobs that find things."""
STRIPE_IDS = ("pur_", "pi_", "cs_", "ch_", "py_", "re_", "pyr_", "dp_", "du_")
"""Beginnings of what an object at Stripe is called, also by another installation of ours."""
WAIT_SECONDS = 120.0
LOOK_SECONDS = 0.2
EXIT_UNAVAILABLE = 3
IN_PART = "reconcile in part"
"""What a run is kept as that compared less than the service does."""
FINANCE = (
    "day",
    "bought, credits",
    "paid net, $",
    "used, credits",
    "cost, $",
    "margin, $",
    "loss, credits",
    "owed, credits",
    "requests",
)
"""Its columns.

`bought` with the bonus; `paid net` without tax, less what went back. docs/jobs.md says what each means.
"""


def register(commands: Any, add: Add) -> None:
    """Add the commands to the parser."""
    check = add(commands, "reconcile", _reconcile, "Check that everything agrees; exit 1 with a list when it does not.")
    check.add_argument("--no-stripe", action="store_true", help="do not ask Stripe for its record")
    figures = add(
        commands, "finance", _finance, "Compute daily figures; exit 1 when a finished day's margin was below target."
    )
    figures.add_argument("--days", type=_days, default=7, help="how many days, today among them (default: 7)")
    costs = add(commands, "costs", _costs, "Compare our cost of a day with OpenAI's; exit 1 when they differ.")
    costs.add_argument("--day", type=_day, help="YYYY-MM-DD, a finished UTC day; default: yesterday")
    jobs = commands.add_parser("jobs", help="The scheduled jobs.").add_subparsers(dest="verb", required=True)
    add(
        jobs,
        "list",
        _list,
        "Every job with its last run and when it is due; exit 1 when the last run of one found something.",
    )
    add(jobs, "run", _run, "Run a job now, in this command.").add_argument("job")
    findings = commands.add_parser("findings", help="What the jobs found.").add_subparsers(dest="verb", required=True)
    add(findings, "list", _findings, "What stands of the last runs; exit 1 when there is anything.")
    dismiss = add(
        findings,
        "dismiss",
        _dismiss,
        "Find this no more: a finding with its present figures, or an object at Stripe that is none of ours. Audited.",
    )
    dismiss.add_argument("subject", help="as `tollkeeper findings list` names it, or an object's id at Stripe")
    dismiss.add_argument("--reason", required=True, type=short_text(LONGEST_REASON))


@contextlib.asynccontextmanager
async def _book(context: Context, *, store: bool = False) -> AsyncIterator[JobBook]:
    """Open the jobs; `store`: with the balance store opened for them."""
    metrics = Metrics(CollectorRegistry())
    money = money_in(context.settings, context.database, metrics)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(money.close)
        stack.push_async_callback(money.leave_counts)
        read = await stack.enter_async_context(open_reader(context)) if store else None
        book = JobBook(context.settings, read, money, metrics)
        stack.push_async_callback(book.close)
        yield book


async def _run_job(book: JobBook, name: str, instead: Run | None = None, kept_as: str = "") -> JobResult:
    """Run a job; while another process runs it, wait for that. Raises Refusal."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return await book.schedule.run(name, instead, kept_as)
        except JobIsRunning as error:
            if time.monotonic() > deadline:
                raise Refusal(str(error)) from None
            await asyncio.sleep(LOOK_SECONDS)


async def _reconcile(context: Context) -> Output:
    async with _book(context, store=True) as book:
        result = await _compare(context, book, stripe=not context.arguments.no_stripe)
    lines = [str(finding) for finding in result.findings] or result.report.splitlines()
    return _output(result, "\n".join(lines))


async def _compare(context: Context, book: JobBook, *, stripe: bool) -> JobResult:
    """Reconcile with what this shell knows.

    Where the service knows more, that is said, and the run does not count as the scheduled one.
    """
    known = await traces(context.database, now_ms() - CHECK_DAYS * DAY_MS)
    missing = []
    if stripe and known.stripe and not book.asks_stripe:
        missing.append("Stripe's record: purchases were made, and STRIPE_API_KEY is not set in this shell")
    if known.redis and not context.settings.redis.url:
        missing.append("the balance store: the service keeps balances in Redis, and redis.url is not set in this shell")
    asked = stripe and book.asks_stripe

    async def compare(_since: int) -> JobResult:
        return await book.reconcile(CHECK_DAYS if asked else 0, missing)

    whole = not missing and asked == (book.asks_stripe or known.stripe)
    return await _run_job(book, "reconcile", compare, "" if whole else IN_PART)


async def _finance(context: Context) -> Output:
    async with _book(context) as book:
        rolled = RolledUp([], [])

        async def compute(_since: int) -> JobResult:
            nonlocal rolled
            found, rolled = await book.finance_days(context.arguments.days)
            return found

        result = await _run_job(book, "finance", compute, "finance by hand")
        days = sorted(rolled.days, reverse=True)
        while len(days) > 1 and not any(days[-1][1:]):  # nothing was booked yet
            days.pop()
        paid = (
            await book.finance.paid(date.fromisoformat(days[-1].day), date.fromisoformat(days[0].day)) if days else {}
        )
    data = [
        {
            "day": day.day,
            "purchasedMillicredits": str(day.purchased),
            "paidNetMillicredits": str(paid.get(day.day, 0)),
            "deductedMillicredits": str(day.deducted),
            "costMillicredits": str(day.cost),
            "givenAwayMillicredits": str(day.given_away),
            "marginMillicredits": str(day.margin),
            "lossMillicredits": str(day.loss),
            "liabilityMillicredits": str(day.liability),
            "requests": day.requests,
        }
        for day in days
    ]
    lines = [_line(FINANCE)] + [
        _line(
            (
                day.day,
                written_credits(day.purchased),
                written_usd(paid.get(day.day, 0)),
                written_credits(day.deducted),
                written_usd(day.cost),
                written_usd(day.margin),
                written_credits(day.loss),
                written_credits(day.liability),
                str(day.requests),
            )
        )
        for day in days
    ]
    lines += [
        f"{day.day}: ${written_usd(day.given_away)} of the cost was given away by decision, and is not in the margin"
        for day in days
        if day.given_away
    ]
    output, text, code = _output(result, "\n".join([*lines, *map(str, result.findings)]))
    return {**output, "days": data}, text, code


async def _findings(context: Context) -> Output:
    rows = await _standing(context)
    data = [{**row._asdict(), "expected": str(row.expected), "found": str(row.found)} for row in rows]
    return {"data": data}, "\n".join(map(str, rows)) or "Nothing was found.", 1 if rows else 0


async def _dismiss(context: Context) -> Output:
    """Dismiss what a job found with the figures that it has, and what is another installation's for good."""
    given, store = context.arguments, Dismissals(context.database)
    found = [row for row in await _standing(context) if row.subject == given.subject]
    ours = await PurchaseStore(context.database).get(given.subject) is not None
    foreign = not ours and given.subject.startswith((*STRIPE_IDS, TEST_MONEY))
    if not found and not foreign:
        raise Refusal(f"no finding names {given.subject!r}: see `tollkeeper findings list`")
    if found:
        await store.dismiss_findings(found, given.reason, who())
    if foreign:
        await store.dismiss_object(given.subject, given.reason, who())
    result = {"subject": given.subject, "findings": len(found), "object": foreign}
    return result, f"{given.subject} is dismissed: from the next run on it is not found any more.", 0


async def _standing(context: Context) -> list[Finding]:
    """Return what stands of every job's last runs and nobody has dismissed since."""
    runs, found = Runs(context.database), []
    for job in FINDERS:
        rows = await runs.standing_findings(job)
        found += [Finding(row.check, row.subject, row.expected, row.found, 0) for row in rows]
    return await Dismissals(context.database).standing(list(dict.fromkeys(found)))


def _line(cells: Sequence[str]) -> str:
    """Write a day, and figures in columns of one width."""
    return f"{cells[0]:10}" + "".join(f" {cell:>17}" for cell in cells[1:])


async def _costs(context: Context) -> Output:
    today = day_of(now_ms())
    day: date = context.arguments.day or today - timedelta(days=1)
    if day >= today:
        raise Refusal(f"{day.isoformat()} is not over yet (UTC): costs are compared by finished days")
    async with _book(context) as book:

        async def compare(_since: int) -> JobResult:
            return await book.costs(day, day)

        if "costs" not in book.schedule.jobs:
            await book.costs(day, day)  # which says why not
        result = await _run_job(book, "costs", compare, "costs by hand")
    return _output(result, result.report)


async def _list(context: Context) -> Output:
    async with _book(context) as book:
        rows = [job_row(status) for status in await book.schedule.status()]
    shown = []
    for row in rows:
        last = row["lastRun"]
        state = "never ran" if last is None else f"{last['finishedAt']}  {_result_of(last)}"
        due = "running" if row["running"] else "asked for" if row["requested"] else row["nextDueAt"] or "now"
        shown.append((row["job"], state, due, row["about"]))
    bad = [row for row in rows if row["lastRun"] is not None and not row["lastRun"]["ok"]]
    return {"data": rows, "now": iso_time(now_ms())}, table("job last-run due what-it-does", shown), 1 if bad else 0


def _result_of(run: dict[str, Any]) -> str:
    if run["ok"]:
        return "ok"
    report = str(run["report"])
    if report.startswith(PARTLY):
        return f"{run['findings']} findings, {report.partition(chr(10))[0]}"
    return f"{run['findings']} findings" if run["findings"] else report


async def _run(context: Context) -> Output:
    name: str = context.arguments.job
    async with _book(context, store=name == "reconcile") as book:
        if name not in book.schedule.jobs:
            raise Refusal(
                f"there is no job {name!r} with this configuration; there are {', '.join(sorted(book.schedule.jobs))}"
            )
        if name == EXPIRY:
            await book.schedule.request(name, who(), "")
            asked = {"ok": True, "findings": [], "requested": True}
            return (
                asked,
                "Asked for: the service does it, as it holds the balances. `tollkeeper jobs list` says when.",
                0,
            )
        result = await (_compare(context, book, stripe=True) if name == "reconcile" else _run_job(book, name))
    return _output(result, result.report)


def _output(result: JobResult, text: str) -> Output:
    findings, problem = result.findings, result.problem
    data = [
        {"check": f.check, "subject": f.subject, "expected": str(f.expected), "found": str(f.found)} for f in findings
    ]
    if problem:
        return {"ok": False, "findings": data, "incomplete": problem}, f"{text}\n{PARTLY}{problem}", EXIT_UNAVAILABLE
    return {"ok": not findings, "findings": data}, text, 1 if findings else 0


def _days(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_DAYS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of days from 1 to {MOST_DAYS}")
    return int(text)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a day such as 2026-11-23") from None
