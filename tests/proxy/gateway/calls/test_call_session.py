"""A call's holds and charges, from the sideband's events alone."""

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from config.settings import Settings
from proxy.gateway.calls.call_session import CallSession
from proxy.gateway.calls.session_config import CallConfig, call_config
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import Begin, SocketExchange
from proxy.gateway.sockets.relay import Finished
from proxy.web.rejections import Rejection
from tests.support.plans import TODAY, key, sold
from tests.support.recorded_exchange import TERMS, RecordedExchange

VOICE = "gpt-realtime"


def short() -> Rejection:
    return Rejection(402, "insufficient_credits", "no money")


class PoorExchange(RecordedExchange):
    """An exchange that can hold so many millicredits at most."""

    def __init__(self, most: list[int]) -> None:
        super().__init__()
        self._most = most

    async def hold_for(self, plan: Any, _key: Any, *, wait: bool = True) -> Any:
        if plan.ceiling.amount > self._most[0]:
            raise short()
        return await super().hold_for(plan, _key, wait=wait)


class Line:
    """A call's session at the shipped prices, and every exchange that it began. `most`: what a hold may be."""

    def __init__(self, **session: Any) -> None:
        self.exchanges: list[PoorExchange] = []
        self.terms = TERMS
        self.most = [10**9]
        services = SimpleNamespace(settings=Settings(), terms=TERMS, overloaded="", today=lambda: TODAY)
        self.config: CallConfig = call_config({"model": VOICE, **session}, sold, Settings().holds)
        self.session = CallSession(cast("Services", services), key(), self.config, cast("Begin", self))

    def __call__(self) -> SocketExchange:
        self.exchanges.append(PoorExchange(self.most))
        return cast("SocketExchange", self.exchanges[-1])

    async def hear(self, kind: str, **fields: Any) -> None:
        frame = {"type": kind, **fields}
        await self.session.from_upstream(frame, msgspec.json.encode(frame))

    async def updated(self, **session: Any) -> None:
        await self.hear("session.updated", session=session)

    async def created(self, name: str, **response: Any) -> None:
        await self.hear("response.created", response={"id": name, "conversation_id": "conv_1", **response})

    async def done(self, name: str, tokens: int = 500) -> None:
        usage = {"input_tokens": tokens, "output_tokens": 10, "total_tokens": tokens + 10}
        await self.hear("response.done", response={"id": name, "status": "completed", "usage": usage})

    @property
    def held(self) -> list[int]:
        return [one.hold.amount for one in self.exchanges if one.hold.is_open]

    @property
    def charged(self) -> list[int]:
        return [report.usage.input_tokens for one in self.exchanges for report in one.charged if report.usage]

    @property
    def said(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(one) for one in self.session.outbox]


async def standing(**session: Any) -> Line:
    line = Line(**session)
    await line.session.stand()
    return line


async def test_a_call_holds_for_the_most_that_its_limits_allow_before_anything_is_said() -> None:
    line = await standing()
    (held,) = line.held
    assert held >= 16_000 * 32 + 4_096 * 64
    assert held < 16_000 * 32 + 4_096 * 64 + 20_000
    assert line.said == []


async def test_every_response_takes_the_hold_and_the_next_one_is_held_for_at_its_end() -> None:
    line = await standing()
    await line.created("resp_1")
    assert len(line.held) == 1
    await line.done("resp_1", 500)
    assert line.charged == [500]
    assert len(line.held) == 1
    await line.created("resp_2")
    await line.done("resp_2", 700)
    assert line.charged == [500, 700]


async def test_raised_limits_are_held_for_or_set_again() -> None:
    line = await standing(max_output_tokens=100)
    before = line.held
    await line.updated(max_output_tokens="inf")
    assert line.held[0] - before[0] >= (4_096 - 100) * 64
    poor = await standing(max_output_tokens=100)
    poor.most = poor.exchanges[0]._most
    poor.most[0] = poor.held[0]
    before = poor.held
    await poor.updated(max_output_tokens=4_000)
    assert poor.held == before
    assert [one["session"]["max_output_tokens"] for one in poor.said] == [100]


async def test_a_response_that_begins_while_limits_are_too_high_ends_the_call_and_is_charged() -> None:
    line = await standing(max_output_tokens=100)
    line.most[0] = line.held[0]
    await line.updated(max_output_tokens=4_000)
    with pytest.raises(Finished):
        await line.created("resp_1")
    line.session.wind_up()
    assert line.said[-1] == {"type": "response.cancel", "response_id": "resp_1"}
    await line.done("resp_1", 300)
    assert line.charged == [300]
    assert line.held == []


async def test_limits_that_are_ours_again_let_the_call_go_on() -> None:
    line = await standing(max_output_tokens=100)
    line.most[0] = line.held[0]
    await line.updated(max_output_tokens=4_000)
    await line.updated(max_output_tokens=100)
    await line.created("resp_1")
    await line.done("resp_1")
    assert line.charged == [500]


async def test_a_browser_that_raises_its_limits_again_and_again_loses_its_call() -> None:
    line = await standing(max_output_tokens=100)
    line.most[0] = line.held[0]
    for _ in range(5):
        await line.updated(max_output_tokens=4_000)
    with pytest.raises(Finished):
        await line.updated(max_output_tokens=4_000)


async def test_longer_instructions_are_held_for_or_end_the_call() -> None:
    line = await standing()
    held = line.held[0]
    await line.updated(instructions="x" * 10_000)
    assert line.held[0] >= held + 10_000 * 4
    poor = await standing()
    poor.most[0] = poor.held[0]
    with pytest.raises(Finished):
        await poor.updated(instructions="x" * 10_000)


async def test_limits_raised_while_a_response_runs_are_held_for_at_its_end_or_set_again() -> None:
    line = await standing(max_output_tokens=2_000)
    line.most[0] = line.held[0]
    await line.created("resp_1")
    await line.updated(max_output_tokens=4_096)
    await line.done("resp_1")
    assert [one["session"]["max_output_tokens"] for one in line.said] == [2_048]
    with pytest.raises(Finished):
        await line.created("resp_2")


async def test_where_money_is_short_the_next_response_has_lower_limits() -> None:
    line = await standing()
    await line.created("resp_1")
    line.most[0] = line.exchanges[0].hold.amount - 1
    await line.done("resp_1")
    (sent,) = line.said
    assert (sent["type"], sent["session"]["max_output_tokens"]) == ("session.update", 2_048)
    assert sent["session"]["truncation"]["token_limits"] == {"post_instructions": 8_000}
    assert line.held[0] <= line.most[0]


async def test_without_money_for_the_next_response_the_call_ends() -> None:
    line = await standing()
    await line.created("resp_1")
    line.most[0] = 0
    with pytest.raises(Finished) as ended:
        await line.done("resp_1")
    assert ended.value.reason == "insufficient_credits"
    assert line.charged == [500]
    assert line.held == []


async def test_what_was_paid_for_is_heard_before_a_call_ends_for_want_of_money() -> None:
    line = await standing()
    await line.created("resp_1")
    await line.hear("output_audio_buffer.started")
    line.most[0] = 0
    await line.done("resp_1")
    with pytest.raises(Finished):
        await line.hear("output_audio_buffer.stopped")


async def test_a_response_beside_another_has_a_hold_of_its_own_or_is_stopped() -> None:
    line = await standing()
    await line.created("resp_1")
    await line.created("apart_1", conversation_id=None)
    assert len(line.held) == 2
    line.most[0] = 1_000  # a token, and no response
    with pytest.raises(Finished):
        await line.created("apart_2", conversation_id=None)
    line.session.wind_up()
    assert [one["response_id"] for one in line.said] == ["resp_1", "apart_1", "apart_2"]
    for name, tokens in (("resp_1", 100), ("apart_1", 200), ("apart_2", 300)):
        await line.done(name, tokens)
    assert sorted(line.charged) == [100, 200, 300]


@pytest.mark.parametrize(
    "session",
    [
        {"model": "gpt-realtime-mini"},
        {"type": "transcription"},
        {"prompt": {"id": "pmpt_1"}},
        {"tools": [{"type": "mcp"}]},
        {"audio": {"output": {"voice": {"id": "voice_1"}}}},
        {"audio": {"input": {"transcription": {"model": "gpt-of-nobody"}}}},
    ],
    ids=str,
)
async def test_a_session_that_became_what_is_not_sold_ends_the_call(session: dict[str, Any]) -> None:
    line = await standing()
    with pytest.raises(Finished):
        await line.updated(**session)


async def test_a_session_may_show_its_models_dated_name() -> None:
    line = await standing()
    await line.updated(model="gpt-realtime-2025-08-28", prompt=None, tools=[])
    assert len(line.held) == 1


@pytest.mark.parametrize("name", ["mcp_list_tools.in_progress", "response.mcp_call.in_progress"])
async def test_a_tool_that_runs_at_openai_ends_the_call(name: str) -> None:
    line = await standing()
    with pytest.raises(Finished):
        await line.hear(name)


async def test_speech_is_transcribed_at_its_own_charge_and_its_length_is_no_guess() -> None:
    line = await standing(audio={"input": {"transcription": {"model": "whisper-1"}, "turn_detection": None}})
    await line.hear("input_audio_buffer.committed", item_id="item_1")
    (item,) = [one for one in line.exchanges if one.plans and one.plans[0].model.name == "whisper-1"]
    assert item.hold.is_open
    assert item.hold.plan.parsed.estimated_milliseconds == 0, "nobody said how long it was"
    assert item.hold.amount > 60 * 100, "a minute is held for all the same"
    usage = {"type": "duration", "seconds": 30}
    await line.hear(
        "conversation.item.input_audio_transcription.completed", item_id="item_1", transcript="x", usage=usage
    )
    assert [report.usage.milliseconds for report in item.charged if report.usage] == [30_000]


async def test_what_was_said_without_usage_is_counted_by_its_transcript() -> None:
    line = await standing()
    await line.created("resp_1")
    await line.hear("response.output_audio_transcript.delta", response_id="resp_1", delta="hello there")
    assert (line.exchanges[0].media, line.exchanges[0].passed.texts) == (11, ["hello there"])


async def test_what_comes_after_the_end_was_decided_is_still_taken() -> None:
    line = await standing()
    line.session.wind_up()
    await line.created("resp_1")
    assert line.said == [{"type": "response.cancel", "response_id": "resp_1"}]
    await line.done("resp_1", 400)
    assert line.charged == [400]
    await line.session.end("client_gone")
    assert line.held == []
