"""The poller over an upstream of the test's own: when a batch is at its end, and what is charged where its files are gone."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from billing.ledger.accounts import Accounts
from billing.ledger.objects.batches import BatchRow
from billing.ledger.objects.upstream_objects import UpstreamObjects
from billing.money.pricing import BookOrigin
from billing.storage.database import Database
from config.settings import Settings
from proxy.gateway.batches.poller import GIVEN_UP, LONGEST_HOURS, BatchPoller
from proxy.gateway.batches.record import BatchRecord
from proxy.gateway.services import PricingTerms, Services
from proxy.observability.metrics import Metrics
from tests.support.plans import PRICES
from tests.support.schema import lay_sqlite

HOUR_MS = 3_600_000
USED = {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110}
COST = 100 * 1 + 10 * 4  # gpt-4.1 in batches
DONE = {"total": 2, "completed": 2, "failed": 0}


class Upstream(BatchPoller):
    """A poller whose upstream answers every GET of a batch with `batch`, and has no file."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.asked: list[str] = []

        def handle(request: httpx.Request) -> httpx.Response:
            self.asked.append(str(request.url))
            found = answers.get(request.url.path.removeprefix("/v1"), 404)
            return httpx.Response(found) if isinstance(found, int) else httpx.Response(200, json=found)

        client = httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://upstream/v1")
        tenants = SimpleNamespace(objects=SimpleNamespace())
        upstreams = SimpleNamespace(client=lambda _name: client)
        metrics = Metrics(CollectorRegistry())
        services = SimpleNamespace(settings=Settings(), metrics=metrics, tenants=tenants, upstreams=upstreams)
        super().__init__(cast("Services", services), *[cast("Any", None)] * 2)
        self.settled: list[int | None] = []

    async def _settle(self, _held: Any, _batch: dict[str, Any], cost: Any) -> None:
        self.settled.append(cost.charge.amount if cost.charge is not None else None)


def row(age_ms: int = 0) -> BatchRow:
    now = time.time_ns() // 1_000_000
    return BatchRow("req_1", "acct_1", "batch_1", "file-a", "file-b", "{}", now - age_ms, None)


async def looked_at(batch: Any, age_ms: int = 0) -> list[int | None]:
    """Charges of one look at a batch that upstream answers so."""
    poller = Upstream({"/batches/batch_1": batch})
    record = BatchRecord(
        "key_1", "/v1/chat/completions", "gpt-4.1", 10_000, False, 0, 2, BookOrigin("x", "1", "exact"), True
    )
    held = SimpleNamespace(row=row(age_ms), record=record, hold=SimpleNamespace(terms=PricingTerms(PRICES, True)))
    await poller._look_at(cast("Any", held))  # noqa: SLF001 - the step that is tested
    return poller.settled


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing", "cancelling"])
async def test_one_that_has_not_ended_is_left_alone(status: str) -> None:
    assert await looked_at({"id": "batch_1", "status": status, "usage": USED}) == []


@pytest.mark.parametrize("status", [500, 401])
async def test_an_upstream_that_cannot_say_is_asked_again(status: int) -> None:
    assert await looked_at(status) == []


async def test_an_end_whose_output_is_still_to_come_is_waited_for() -> None:
    batch = {"id": "batch_1", "status": "completed", "request_counts": DONE, "usage": USED, "model": "gpt-4.1"}
    assert await looked_at(batch) == []
    assert await looked_at(batch, LONGEST_HOURS * HOUR_MS + 1) == [COST]


async def test_an_output_that_is_gone_is_charged_by_the_batchs_own_total() -> None:
    batch = {"id": "batch_1", "status": "completed", "output_file_id": "file-gone", "usage": USED}
    assert await looked_at(batch) == [COST]


async def test_a_total_of_many_lines_is_priced_as_none_of_them_were_long() -> None:
    used = {"input_tokens": 400_001, "output_tokens": 31, "total_tokens": 400_032}
    batch = {"id": "batch_1", "status": "completed", "output_file_id": "file-gone", "usage": used, "model": "gpt-5.5"}
    for counts in (DONE, None, {"completed": 0}, {"completed": "2"}, {"completed": 10**12}):
        # gpt-5.5 in batches 2.5 / 15; from 272,000 tokens on, which two lines of 200,000 are not, twice that
        assert await looked_at({**batch, "request_counts": counts}) == [-(-(400_001 * 25 + 31 * 150) // 10)]


@pytest.mark.parametrize("model", ["gpt-4.1-2025-04-14", "gpt-nothing", None])
async def test_a_total_of_a_model_without_a_price_is_priced_as_what_was_asked_for(model: str | None) -> None:
    batch = {"id": "batch_1", "status": "expired", "output_file_id": "file-gone", "usage": USED, "model": model}
    assert await looked_at(batch) == [COST]


async def test_one_that_failed_or_did_nothing_costs_nothing() -> None:
    assert await looked_at({"id": "batch_1", "status": "failed"}) == [None]
    assert await looked_at({"id": "batch_1", "status": "cancelled", "request_counts": {"completed": 0}}) == [None]


async def test_one_that_is_gone_upstream_costs_what_is_known_of_it_which_is_nothing() -> None:
    assert await looked_at(404) == [None]


# I4
@pytest.mark.parametrize("costs", [True, False])
async def test_what_another_process_has_marked_as_settled_is_left_to_it(costs: bool) -> None:
    """Both had taken it on: neither charges what the other does, nor gives its hold back."""
    poller, did = Upstream({}), list[str]()

    async def end(_charge_id: str) -> bool:
        did.append("end")
        return False

    async def resume() -> bool:
        return True

    async def on_disk(_decision: Any) -> None:
        await asyncio.sleep(0.01)
        did.append("checkpoint")

    hold = SimpleNamespace(checkpoint_decided=on_disk, forget=lambda: did.append("forget"))
    poller._objects.batches = cast("Any", SimpleNamespace(end=end))  # noqa: SLF001 - the step that is tested
    charge = SimpleNamespace(amount=5) if costs else None
    cost = SimpleNamespace(usage=None, source="upstream", charge=charge, report=None)
    held = SimpleNamespace(row=row(), hold=hold, resume=resume)
    await BatchPoller._settle(poller, cast("Any", held), {"status": "completed"}, cast("Any", cost))  # noqa: SLF001
    assert did == [*(["checkpoint"] if costs else []), "end", "forget"]


def test_who_leads_no_longer_holds_on_to_nothing() -> None:
    """After a loss of data Redis is told of every hold that a process lives by: one that another ended would come back."""
    poller, did = Upstream({}), list[str]()
    poller._held["one"] = cast("Any", SimpleNamespace(hold=SimpleNamespace(forget=lambda: did.append("one"))))  # noqa: SLF001
    poller.resign()
    assert (did, poller._held) == (["one"], {})  # noqa: SLF001


async def test_one_that_cannot_be_taken_on_keeps_no_other_from_its_end() -> None:
    class Odd(Upstream):
        async def _take_on(self, one: BatchRow) -> Any:
            if one.charge_id == "req_1":
                raise ValueError("a record that cannot be read")
            return one

        async def _look_at(self, held: Any) -> int:
            self.settled.append(held.charge_id)
            return 1

    async def open_batches(_most: int) -> list[BatchRow]:
        return [row(), row()._replace(charge_id="req_2")]

    poller = Odd({})
    poller._objects.batches = cast("Any", SimpleNamespace(open=open_batches))  # noqa: SLF001 - the store that it asks
    with pytest.raises(ValueError, match="cannot be read"):
        await poller.poll()
    assert poller.settled == ["req_2"]


# -- whether a batch was made -----------------------------------------------------------------------------------------


def page(*batches: tuple[str, str, int], more: bool = False) -> dict[str, Any]:
    rows = [{"id": name, "input_file_id": file, "created_at": created} for name, file, created in batches]
    return {"object": "list", "data": rows, "has_more": more}


async def made_of(listed: Any) -> tuple[str | None, int]:
    """(what the poller finds, how often it asked)."""
    poller = Upstream({"/batches": listed})
    return await poller._made_of(row()), len(poller.asked)  # noqa: SLF001 - the step that is tested


async def test_a_batch_is_found_by_the_file_that_it_reads() -> None:
    now = int(time.time())
    assert await made_of(page(("batch_9", "file-x", now), ("batch_8", "file-b", now))) == ("batch_8", 1)
    assert await made_of(page(("batch_9", "file-a", now))) == ("", 1)
    assert await made_of(page()) == ("", 1)


async def test_the_list_is_read_no_further_back_than_the_batch_can_be() -> None:
    assert await made_of(page(("batch_9", "file-x", int(time.time()) - 4_000), more=True)) == ("", 1)


@pytest.mark.parametrize("answer", [500, {"no": "list"}, {"data": [None]}, {"data": ["batch_1"]}])
async def test_while_upstream_cannot_say_nothing_is_decided(answer: Any) -> None:
    assert await made_of(answer) == (None, 1)


@pytest.mark.parametrize(("hours", "minutes_ago", "ends"), [(1, 0, "detach"), (-1, 30, "release")])
async def test_one_that_another_machine_makes_is_given_up_by_no_clock_of_ours(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hours: int, minutes_ago: int, ends: str
) -> None:
    """An hour ahead, one was given up while upstream took it: it ran, and nobody was charged."""
    lay_sqlite(folder / "ledger.db")
    database = Database(f"sqlite+aiosqlite:///{folder}/ledger.db", 1, 10)
    objects, poller, did = (
        UpstreamObjects(database),
        Upstream({"/batches": {"data": [], "has_more": False}}),
        list[str](),
    )
    await objects.batches.begin("req_1", await Accounts(database).create("test"), "file-a", "file-b", "{}")
    async with database.write() as connection:
        await connection.execute(text(f"UPDATE batches SET created_at = created_at - {minutes_ago * 60_000}"))
    poller._objects = objects  # noqa: SLF001 - the step that is tested

    async def release() -> None:
        did.append("release")

    hold = SimpleNamespace(detach=lambda: did.append("detach"), release=release)
    began = await objects.batches.find("req_1")
    shown = time.time_ns() + hours * HOUR_MS * 1_000_000
    monkeypatch.setattr(time, "time_ns", lambda: shown)
    await poller._while_made(cast("Any", SimpleNamespace(row=began, hold=hold)))  # noqa: SLF001
    await database.close()
    assert did == [ends]


def test_a_worker_has_given_up_before_it_is_given_up() -> None:
    assert GIVEN_UP >= 2
