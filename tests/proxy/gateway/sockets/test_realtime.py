"""A Realtime session's holds and charges, from events alone; the exchange keeps its own record of both."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from config.settings import Settings
from proxy.gateway.answers.meter import Report
from proxy.gateway.plan import Plan
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import SocketExchange
from proxy.gateway.sockets.realtime import RealtimeSession
from proxy.gateway.sockets.relay import Finished
from proxy.web.rejections import Rejection, unavailable
from tests.support.plans import PRICES, key

TERMS = SimpleNamespace(prices=PRICES)
HEARD = 7
"""Seconds that the transcriber heard."""


class RecordedExchange:
    """What a session sees of a SocketExchange. `interrupt` cancels its settle, before the charge or after it."""

    def __init__(self, refuse: Rejection | None = None) -> None:
        self.plans: list[Plan] = []
        self.charged: list[Report] = []
        self.abandoned: list[str] = []
        self.interrupt = ""
        self.refusal = refuse
        self.response_id, self.media = "", 0
        self.texts: list[str] = []
        self.context = SimpleNamespace(key=None)
        self.hold = SimpleNamespace(terms=TERMS, is_open=False, checkpoint_sent=lambda: None, release=self.release)

    async def hold_for(self, plan: Plan, _key: Any) -> Plan:
        if self.refusal is not None:
            raise self.refusal
        self.plans.append(plan)
        self.hold.is_open = True
        return plan

    async def refuse(self, _rejection: Rejection) -> None:
        await self.release()

    async def release(self) -> None:
        self.hold.is_open = False

    def begin(self) -> None:
        """The response has begun."""

    async def settle(self, report: Report, _outcome: str = "completed") -> None:
        if self.interrupt == "before":
            raise asyncio.CancelledError
        self.hold.is_open = False
        self.charged.append(report)
        if self.interrupt == "after":
            raise asyncio.CancelledError

    async def abandon(self, outcome: str) -> None:
        if self.hold.is_open:
            self.abandoned.append(outcome)
            self.hold.is_open = False


class Conversation:
    """A session at the shipped prices, and every exchange that it began."""

    def __init__(self) -> None:
        self.exchanges: list[RecordedExchange] = []
        self.refusal: Rejection | None = None
        services = SimpleNamespace(settings=Settings(), terms=TERMS, overloaded="")
        self.session = RealtimeSession(cast("Services", services), key(), b"model=gpt-realtime", self._begin)

    def _begin(self) -> SocketExchange:
        self.exchanges.append(RecordedExchange(self.refusal))
        return cast("SocketExchange", self.exchanges[-1])

    async def say(self, event: dict[str, Any]) -> None:
        await self.session.from_client(event, msgspec.json.encode(event))

    async def hear(self, event: dict[str, Any]) -> None:
        await self.session.from_upstream(event, msgspec.json.encode(event))

    async def update(self, **session: Any) -> None:
        await self.say({"type": "session.update", "session": session})


async def spoken(interrupt: str) -> Conversation:
    """A response that reports its usage, after speech that was transcribed; its settle is interrupted."""
    talk = Conversation()
    await talk.hear({"type": "session.updated"})
    await talk.update(audio={"input": {"transcription": {"model": "whisper-1"}}})
    await talk.hear({"type": "response.created", "response": {"id": "resp_1"}})
    running = talk.exchanges[-1]
    running.interrupt = interrupt
    await talk.say({"type": "input_audio_buffer.append", "audio": "AAAA"})
    usage = {"type": "duration", "seconds": HEARD}
    await talk.hear({"type": "conversation.item.input_audio_transcription.completed", "usage": usage})
    done = {"id": "resp_1", "status": "completed", "usage": {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11}}
    if interrupt:
        with pytest.raises(asyncio.CancelledError):
            await talk.hear({"type": "response.done", "response": done})
    else:
        await talk.hear({"type": "response.done", "response": done})
    await talk.session.end("client_gone")
    return talk


@pytest.mark.parametrize("interrupt", ["", "before", "after"])
async def test_speech_heard_is_charged_once_however_the_settle_ends(interrupt: str) -> None:
    talk = await spoken(interrupt)
    charged = [usage.milliseconds for one in talk.exchanges for report in one.charged for _, usage in report.more]
    assert charged == [HEARD * 1_000]
    assert not any(one.hold.is_open for one in talk.exchanges)


async def test_a_response_interrupted_before_its_charge_is_charged_at_the_end() -> None:
    talk = await spoken("before")
    assert [one.abandoned for one in talk.exchanges if one.abandoned] == [["client_gone"]]


async def test_a_raised_cap_is_held_for_before_the_next_response() -> None:
    """What stood was held for the cap of before."""
    talk = Conversation()
    await talk.update(max_output_tokens=100)
    await talk.update(max_output_tokens=4_000)
    assert [one.plans[0].cap for one in talk.exchanges if one.hold.is_open] == [4_000]


async def test_another_transcriber_is_held_for() -> None:
    talk = Conversation()
    await talk.update()
    await talk.update(audio={"input": {"transcription": {"model": "whisper-1"}}})
    held = [one.plans[0].bounds for one in talk.exchanges if one.hold.is_open]
    assert [[model.name for model, _, _ in bounds.more] for bounds in held] == [["whisper-1"]]


async def test_a_response_nobody_asked_for_is_refused_by_its_own_reason() -> None:
    talk = Conversation()
    await talk.hear({"type": "session.updated"})
    talk.refusal = unavailable("Charging is paused.", "charging_paused", 1_000)
    with pytest.raises(Finished) as caught:
        await talk.hear({"type": "response.created", "response": {"id": "resp_1"}})
    assert str(caught.value) == "charging_paused"
