"""The poller over stores and an upstream of the test's own: it settles each response once, and by what upstream says."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from billing.money.errors import StoreUnavailable
from proxy.gateway.answers.events import RESPONSE_EVENTS, EventMeter
from proxy.gateway.background.poller import BackgroundResponses
from proxy.gateway.services import Services


class Poller(BackgroundResponses):
    """Two responses are open: the store fails for one while the other is at work."""

    def __init__(self) -> None:
        async def open_background(_most: int) -> list[Any]:
            return [SimpleNamespace(response_id=name, charge_id=name) for name in ("broken", "slow")]

        objects = SimpleNamespace(open_background=open_background)
        services = SimpleNamespace(tenants=SimpleNamespace(objects=objects))
        super().__init__(cast("Services", services), *[cast("Any", None)] * 2)
        self.settled: list[str] = []

    async def _take_on(self, pending: Any) -> Any:
        return pending

    async def _look_at(self, taken: Any) -> int:
        if taken.response_id == "broken":
            raise StoreUnavailable("sql", "it is away")
        await asyncio.sleep(0.05)
        self.settled.append(taken.response_id)
        return 1


async def test_a_store_that_fails_for_one_response_leaves_no_other_half_way() -> None:
    """It would be asked about a second time while the first was still settling it."""
    poller = Poller()
    with pytest.raises(StoreUnavailable):
        await poller.poll()
    assert poller.settled == ["slow"]


async def test_every_one_that_is_open_is_held_for_and_asked_about_a_few_at_a_time() -> None:
    """The hold of one that was left out would run out, and what it made would be free."""
    limits: list[int] = []
    at_once, most = 0, 0

    async def open_background(limit: int) -> list[Any]:
        limits.append(limit)
        return [SimpleNamespace(response_id=f"resp_{number}", charge_id=str(number)) for number in range(300)][:limit]

    class Busy(Poller):
        async def _look_at(self, held: Any) -> int:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            at_once -= 1
            self.settled.append(held.response_id)
            return 1

    poller = Busy()
    cast("Any", poller)._objects.open_background = open_background  # noqa: SLF001
    assert await poller.poll() == 300
    assert len(set(poller.settled)) == 300
    assert 1 < most < 100


def test_who_leads_no_longer_holds_on_to_nothing() -> None:
    """After a loss of data Redis is told of every hold that a process lives by: one that another ended would come back."""
    poller, did = Poller(), list[str]()
    poller._held["one"] = cast("Any", SimpleNamespace(hold=SimpleNamespace(forget=lambda: did.append("one"))))  # noqa: SLF001
    poller.resign()
    assert (did, poller._held) == (["one"], {})  # noqa: SLF001


async def test_one_that_cannot_be_taken_on_keeps_no_other_from_its_end() -> None:
    """Its record cannot be read, say: the holds of all others would run out, and what they made would be free."""

    class Odd(Poller):
        async def _take_on(self, pending: Any) -> Any:
            if pending.response_id == "broken":
                raise ValueError("a record that cannot be read")
            return pending

    poller = Odd()
    with pytest.raises(ValueError, match="cannot be read"):
        await poller.poll()
    assert poller.settled == ["slow"]


NO_EVENTS = EventMeter(RESPONSE_EVENTS, 1)
USED = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}


@pytest.mark.parametrize(
    ("answer", "errored"),
    [
        ({"status": "cancelled", "output": [], "usage": USED}, False),
        ({"status": "cancelled", "output": [], "usage": None}, True),
        ({"status": "failed", "output": [], "usage": USED}, True),
        ({"status": "failed", "output": [{"type": "message", "content": []}], "usage": USED}, False),
        ({"status": "incomplete", "output": [], "usage": USED}, False),
    ],
    ids=str,
)
async def test_what_a_background_response_used_until_its_customer_cancelled_it_is_owed(
    answer: dict[str, Any], errored: bool
) -> None:
    asked: list[Any] = []

    async def decide(_report: Any, observed: Any, _outcome: str) -> Any:
        asked.append(observed)
        return SimpleNamespace()

    async def resume(_amount: int) -> bool:
        return False  # it ends here: the decision is all that is asked about

    hold = SimpleNamespace(decide=decide, amount=0)
    taken = SimpleNamespace(pending=SimpleNamespace(upstream=""), hold=hold, resume=resume)
    await Poller()._settle(cast("Any", taken), {"id": "resp_1", **answer}, NO_EVENTS)  # noqa: SLF001 - the step that is tested
    assert [one.errored for one in asked] == [errored]


@pytest.mark.parametrize(
    "body",
    [
        b'{"status":"completed","note":"a raw\ttab"}',
        b'\xef\xbb\xbf{"status":"completed"}',
        b'{"status":"completed","note":"\xff"}',
        b'{"status":"completed","top_p":NaN}',
        rb'{"status":"completed","note":"\ud83d"}',
    ],
    ids=["a raw tab", "a byte order mark", "no UTF-8", "NaN", "half of a pair"],
)
async def test_an_answer_that_only_strict_parsers_refuse_is_settled(body: bytes) -> None:
    """It would be asked for again for a day, and then charged its input."""
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=body))
    async with httpx.AsyncClient(transport=transport, base_url="http://upstream/v1") as client:
        poller = Poller()
        cast("Any", poller)._services.upstreams = SimpleNamespace(client=lambda _name: client)  # noqa: SLF001 - as above
        pending = cast("Any", SimpleNamespace(response_id="resp_1", upstream=""))
        found = await poller._fetch(pending)  # noqa: SLF001 - as above
    assert found is not None
    assert found["status"] == "completed"


# I4
async def test_what_another_process_has_marked_as_settled_is_left_to_it() -> None:
    """Both had taken it on: it is charged, and its conversation corrected, by one."""
    poller, did = Poller(), list[str]()

    async def decide(*_: Any) -> Any:
        return SimpleNamespace(usage=None)

    async def resume(_amount: int) -> bool:
        return True

    async def end_background(_response_id: str) -> bool:
        did.append("end")
        return False

    hold = SimpleNamespace(
        decide=decide,
        amount=0,
        record_made=written(()),
        checkpoint_decided=on_disk(did),
        forget=lambda: did.append("forget"),
    )
    cast("Any", poller)._services.tenants.objects.end_background = end_background  # noqa: SLF001 - the step that is tested
    await poller._settle(ended(hold, resume), {"id": "resp_1", "status": "completed"}, NO_EVENTS)  # noqa: SLF001
    assert did == ["checkpoint", "end", "forget"], "killed after the end was noted, the charge is on disk"


def ended(hold: Any, resume: Any) -> Any:
    return SimpleNamespace(pending=SimpleNamespace(response_id="resp_1", charge_id="req_1"), hold=hold, resume=resume)


def on_disk(did: list[str]) -> Any:
    """A hold's step that takes the disk its time."""

    async def checkpoint_decided(*_: Any) -> None:
        await asyncio.sleep(0.01)
        did.append("checkpoint")

    return checkpoint_decided


def written(unowned: tuple[str, ...]) -> Any:
    """A hold's step that keeps whose its objects are, and could not for these."""

    async def record_made(*_: Any) -> tuple[str, ...]:
        return unowned

    return record_made


async def test_while_the_owner_of_its_items_cannot_be_written_it_has_not_ended() -> None:
    """Whoever asks for it sees their ids."""
    poller, did = Poller(), list[str]()

    async def decide(*_: Any) -> Any:
        return SimpleNamespace(usage=None)

    async def resume(_amount: int) -> bool:
        return True

    hold = SimpleNamespace(
        decide=decide,
        amount=0,
        record_made=written(("msg_1",)),
        checkpoint_decided=on_disk(did),
    )
    await poller._settle(ended(hold, resume), {"id": "resp_1", "status": "completed"}, NO_EVENTS)  # noqa: SLF001 - as above
    assert did == [], "it is asked about again"
