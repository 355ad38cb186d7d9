"""Does one thing with the ledger as another machine does it, by its own clock: python -m tests.support.another_machine URL WHAT [NAME]."""

import asyncio
import sys
from collections.abc import Awaitable, Callable

from billing.jobs.schedule import Job, JobResult, Scheduler
from billing.ledger.objects.realtime_calls import RealtimeCalls
from billing.ledger.objects.upstream_objects import UpstreamObjects
from billing.ledger.objects.vector_stores import VectorStores
from billing.storage.database import Database

MINUTE_MS = 60_000
EVERY_SECONDS = 1_800


async def begin_call(database: Database, account: str) -> object:
    """Begin to meter a call."""
    return await RealtimeCalls(database).begin("rtc_1", account, MINUTE_MS)


async def abandoned_calls(database: Database, _name: str) -> object:
    """Calls that it would hang up."""
    return await RealtimeCalls(database).abandoned()


async def claim_day(database: Database, charge_id: str) -> object:
    """Whether a day of storage is there to be charged by it."""
    return await VectorStores(database).claim(charge_id, MINUTE_MS)


async def room(database: Database, account: str) -> object:
    """Bytes of files on their way, as it counts them."""
    return (await UpstreamObjects(database).totals(account, "file"))[1]


async def run_job(database: Database, _name: str) -> object:
    """How often a job that is due each half hour is run by it."""
    runs = 0

    async def work(_since: int) -> JobResult:
        nonlocal runs
        runs += 1
        return JobResult([], "done")

    await Scheduler(database, [Job("j", EVERY_SECONDS, work, "")]).steps()[0][0]()
    return runs


ASKED: dict[str, Callable[[Database, str], Awaitable[object]]] = {
    one.__name__: one for one in (begin_call, abandoned_calls, claim_day, room, run_job)
}


async def main(url: str, what: str, name: str) -> None:
    """Do it, and print what came of it."""
    database = Database(url, 1, 10)
    try:
        print(await ASKED[what](database, name))
    finally:
        await database.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
