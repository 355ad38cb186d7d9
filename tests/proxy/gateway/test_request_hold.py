"""A hold and its ends over a store that refuses or breaks when told; it keeps its own record of what it was asked."""

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from billing.balances.hold_queue import HoldQueue
from billing.balances.open_holds import OpenHolds
from billing.money.amounts import Millicredits
from billing.money.errors import StoreUnavailable
from billing.money.holds import Checkpoint, Gone, Held, HoldRequest, Refused
from config.settings import Holds, Settings
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import PricingTerms, Services
from proxy.gateway.sockets.exchange import Handshake, SocketExchange
from proxy.gateway.upstream.route import Served
from proxy.observability.metrics import Metrics
from proxy.web.rejections import Rejection
from tests.support.counting import TOKENIZER
from tests.support.plans import PRICES, key, plan

OPENED = Handshake(b"/v1/realtime", [], "/v1/realtime")


@dataclasses.dataclass
class RecordedStore:
    """Balances. `left`: millicredits that are available; `moves`: what is spent meanwhile, before each try."""

    left: int = 1_000_000
    moves: list[int] = dataclasses.field(default_factory=list)
    writes: bool = True
    asked: list[int] = dataclasses.field(default_factory=list)
    in_flight: int = 0
    held: dict[str, int] = dataclasses.field(default_factory=dict)
    settled: list[int] = dataclasses.field(default_factory=list)

    async def hold(self, request: HoldRequest) -> Held | Refused:
        self.asked.append(request.amount)
        if self.moves:
            self.left -= self.moves.pop(0)
        if request.amount > self.left:
            source = "in_flight" if self.in_flight else "balance"
            return Refused(source, self.left + self.in_flight, self.in_flight)  # type: ignore[arg-type]
        self.held[request.hold_id] = request.amount
        return Held(self.left, request.amount)

    async def resume(self, request: HoldRequest) -> Held | Refused:
        return await self.hold(request)

    async def wait_persisted(self, _hold_id: str) -> None:
        if not self.writes:
            raise StoreUnavailable("embedded", "the disk is full")

    async def release(self, hold_id: str, _account_id: str) -> None:
        del self.held[hold_id]

    def checkpoint(self, _checkpoint: Checkpoint, *, at_once: bool = False) -> None:
        """Nothing is on disk here."""

    async def settle(self, hold_id: str, _account_id: str, due: int, _record: bytes) -> None:
        del self.held[hold_id]
        self.settled.append(due)


class ResolvedStore(RecordedStore):
    """Another process has resolved whatever is taken on."""

    async def resume(self, request: HoldRequest) -> Gone:  # type: ignore[override]
        return Gone(self.left, 0)


def services(store: RecordedStore, **changed: Any) -> Services:
    found = SimpleNamespace(
        settings=Settings(),
        balances=store,
        terms=PricingTerms(PRICES, False),
        sold_to=lambda _account, terms, _at: terms,
        overloaded="",
        tracing=SimpleNamespace(begin=lambda _headers: None),
        hold_queue=HoldQueue(),
        open_holds=OpenHolds(),
        upstreams=SimpleNamespace(served=Served()),
    )
    for name, value in changed.items():
        setattr(found, name, value)
    return cast("Services", found)


async def test_a_hold_that_another_process_resolved_is_not_taken_on() -> None:
    hold = RequestHold(services(ResolvedStore()), PricingTerms(PRICES, False), "req_1", 0, 0.0)
    assert not await hold.resume(plan({"max_tokens": 10}), key(), Millicredits(500), free=False)
    assert not hold.is_open


async def test_a_hold_that_cannot_be_taken_up_again_is_tried_next_time_with_all_of_it() -> None:
    """The money went away three times in a row: what the response may cost is still what it was held for."""
    store = RecordedStore(left=300, moves=[0, 100, 100])
    hold = RequestHold(services(store), PricingTerms(PRICES, False), "req_1", 0, 0)
    assert not await hold.resume(plan(), key(), Millicredits(400), free=False)
    assert (store.asked, store.held) == ([400, 300, 200], {})
    store.left = 1_000
    assert await hold.resume(plan(), key(), hold.amount, free=False)
    assert store.held == {"req_1": 400}


async def test_a_response_on_a_socket_whose_hold_is_not_on_disk_leaves_nothing_held() -> None:
    """Nobody else knows of it yet, so nobody else can release it."""
    store = RecordedStore(writes=False)
    exchange = SocketExchange(services(store), OPENED)
    with pytest.raises(Rejection) as caught:
        await exchange.hold_for(plan(), key())
    assert (caught.value.status, len(store.asked), store.held) == (503, 1, {})


async def test_a_response_on_a_socket_is_admitted_like_a_request() -> None:
    """An open socket is no way around a full journal."""
    store = RecordedStore()
    exchange = SocketExchange(services(store, overloaded="The journal is full."), OPENED)
    with pytest.raises(Rejection) as caught:
        await exchange.hold_for(plan(), key())
    assert (caught.value.code, store.asked) == ("journal_full", [])


@pytest.mark.parametrize("sent", [False, True])
async def test_a_hold_that_outlived_its_request_is_settled_and_counted(
    sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its input is owed once it went upstream; before that nothing is."""
    monkeypatch.setattr("billing.balances.open_holds.GRACE_SECONDS", -1)
    store = RecordedStore()
    registry = CollectorRegistry()
    shared = services(store, live=set(), metrics=Metrics(registry))
    found = RequestHold(shared, shared.terms, "req_1", 0, 0, owner="a request that is gone")
    await found.hold(plan({"max_tokens": 10}), key(), free=False)
    if sent:
        found.checkpoint_sent()
    assert await Services.settle_stray_holds(shared) == 1
    assert (store.held, found.is_open) == ({}, False)
    assert (store.settled == []) is not sent
    shared.metrics.publish()
    assert registry.get_sample_value("tollkeeper_stray_holds_total") == 1
    assert await Services.settle_stray_holds(shared) == 0


@pytest.mark.parametrize(("seconds", "tries"), [(0, 2), (1, 3)])
@pytest.mark.slow
async def test_a_hold_that_others_are_in_the_way_of_waits_as_long_as_it_is_told_to(seconds: int, tries: int) -> None:
    """It is tried, tried while it waits, and once more at the end; with 0 it does not wait."""
    store = RecordedStore(left=1, in_flight=1_000_000)
    settings = Settings(holds=Holds(in_flight_wait_seconds=seconds))
    shared = services(store, settings=settings, tokenizer=TOKENIZER, metrics=Metrics(CollectorRegistry()))
    shared.absolute = lambda url: url  # type: ignore[attr-defined, method-assign, unused-ignore]
    found = RequestHold(shared, shared.terms, "req_1", 0, 0)
    with pytest.raises(Rejection) as refused:
        await found.hold(plan({"max_tokens": 10}), key(), free=False)
    assert refused.value.extra["limitSource"] == "in_flight"
    assert len(store.asked) >= tries
