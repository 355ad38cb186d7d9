"""The poller over stores and an upstream of the test's own: it settles each response once, and by what upstream says."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from billing.money.errors import StoreUnavailable
from proxy.gateway.background.poller import BackgroundResponses
from proxy.gateway.services import Services


class Poller(BackgroundResponses):
    """Two responses are open: the store fails for one while the other is at work."""

    def __init__(self) -> None:
        async def open_background(_most: int) -> list[Any]:
            return [SimpleNamespace(response_id=name) for name in ("broken", "slow")]

        objects = SimpleNamespace(open_background=open_background)
        services = SimpleNamespace(tenants=SimpleNamespace(objects=objects))
        super().__init__(cast("Services", services), *[cast("Any", None)] * 3)
        self.settled: list[str] = []

    async def _take_on(self, pending: Any) -> Any:
        return pending

    async def _settle_if_ended(self, taken: Any) -> int:
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
    taken = SimpleNamespace(pending=SimpleNamespace(), hold=hold, resume=resume)
    await Poller()._settle(cast("Any", taken), {"id": "resp_1", **answer})  # noqa: SLF001 - the step that is tested
    assert [one.errored for one in asked] == [errored]
