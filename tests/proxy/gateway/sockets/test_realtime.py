"""A Realtime session's holds and charges, from events alone; the exchange keeps its own record of both."""

import asyncio
import contextlib
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from config.settings import Settings
from proxy.gateway.answers.report import NO_REPORT
from proxy.gateway.plan import Plan
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import Begin, SocketExchange, hold_instead
from proxy.gateway.sockets.realtime import RealtimeSession
from proxy.gateway.sockets.relay import Finished
from proxy.web.rejections import Rejection, too_many, unavailable
from tests.support.plans import TODAY, ending, key
from tests.support.recorded_exchange import TERMS, RecordedExchange


class Conversation:
    """A session at the shipped prices, and every exchange that it began."""

    def __init__(self, terms: SimpleNamespace = TERMS) -> None:
        self.exchanges: list[RecordedExchange] = []
        self.terms = terms
        self.refusal: Rejection | None = None
        self.delay = 0.0
        self.today = TODAY
        services = SimpleNamespace(settings=Settings(), terms=terms, overloaded="", today=lambda: self.today)
        self.session = RealtimeSession(cast("Services", services), key(), b"model=gpt-realtime", cast("Begin", self))

    def __call__(self) -> SocketExchange:
        self.exchanges.append(RecordedExchange(self.refusal, self.terms))
        self.exchanges[-1].delay = self.delay
        return cast("SocketExchange", self.exchanges[-1])

    async def say(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return what is sent upstream."""
        sent = await self.session.from_client(dict(event), msgspec.json.encode(event))
        found: dict[str, Any] = msgspec.json.decode(sent)
        return found

    async def hear(self, event: dict[str, Any]) -> None:
        await self.session.from_upstream(event, msgspec.json.encode(event))

    async def update(self, **session: Any) -> None:
        """Ask for it, and have it confirmed."""
        await self.say({"type": "session.update", "session": session})
        await self.hear({"type": "session.updated", "session": session})

    async def opened(self) -> "Conversation":
        """The answer to our own event has come: the session has its cap."""
        await self.hear({"type": "session.updated", "session": {"max_output_tokens": CAP}})
        return self

    async def speak(self, item: str, seconds: int = 30) -> None:
        """The user's sound, and the server's word that it is an item now."""
        await self.say({"type": "input_audio_buffer.append", "audio": "AAAA" * (seconds * 16_000)})
        await self.hear({"type": "input_audio_buffer.committed", "item_id": item})

    async def transcript(self, item: str, usage: dict[str, Any]) -> None:
        name = "conversation.item.input_audio_transcription.completed"
        await self.hear({"type": name, "item_id": item, "usage": usage})

    async def answered(self, response_id: str, tokens: int, **fields: Any) -> None:
        """A response begins and ends, and reports that it read so many tokens and said none."""
        await self.hear({"type": "response.created", "response": {"id": response_id}})
        usage = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
        done = {"id": response_id, "status": "completed", "usage": usage, **fields}
        await self.hear({"type": "response.done", "response": done})

    @property
    def held(self) -> list[Plan]:
        """Plans that are held for now."""
        return [one.plans[0] for one in self.exchanges if one.hold.is_open]


CAP = 4_096


def transcribed_by(model: str | None) -> dict[str, Any]:
    return {"audio": {"input": {"transcription": model and {"model": model}}}}


def heard(talk: Conversation) -> list[tuple[str, Any]]:
    """(model, milliseconds or sound tokens) of every transcription that was charged."""
    charged = [(one.hold.plan, report.usage) for one in talk.exchanges for report in one.charged]
    return [
        (plan.model.name, usage and (usage.milliseconds or usage.audio_input_tokens))
        for plan, usage in charged
        if plan.model.name != "gpt-realtime"
    ]


TOKENS = {"type": "tokens", "input_tokens": 300, "output_tokens": 2, "total_tokens": 302}
TOKENS["input_token_details"] = {"audio_tokens": 300, "text_tokens": 0}  # type: ignore[assignment]
SECONDS = {"type": "duration", "seconds": 30}


@pytest.mark.parametrize("interrupt", ["", "before", "after"])
async def test_speech_heard_is_charged_once_however_the_settle_ends(interrupt: str) -> None:
    talk = await Conversation().opened()
    await talk.update(**transcribed_by("whisper-1"))
    await talk.speak("item_1")
    (item,) = [one for one in talk.exchanges if one.hold.is_open and one.plans[0].model.name == "whisper-1"]
    item.interrupt = interrupt
    if interrupt:
        with pytest.raises(asyncio.CancelledError):
            await talk.transcript("item_1", SECONDS)
    else:
        await talk.transcript("item_1", SECONDS)
    item.interrupt = ""
    await talk.session.end("client_gone")
    assert len(heard(talk)) == 1
    assert talk.held == []


async def test_a_transcript_after_its_response_is_charged() -> None:
    talk = await Conversation().opened()
    await talk.update(**transcribed_by("gpt-4o-transcribe"))
    await talk.speak("item_1")
    await talk.say({"type": "response.create"})
    await talk.answered("resp_1", 300)
    await talk.transcript("item_1", TOKENS)
    assert heard(talk) == [("gpt-4o-transcribe", 300)]


async def test_a_transcript_is_charged_at_the_model_that_was_in_force_when_its_sound_was_committed() -> None:
    talk = await Conversation().opened()
    await talk.update(**transcribed_by("gpt-4o-transcribe"))
    await talk.speak("item_1")
    await talk.update(**transcribed_by("whisper-1"))
    await talk.transcript("item_1", TOKENS)
    await talk.update(**transcribed_by(None))
    await talk.speak("item_2")
    assert heard(talk) == [("gpt-4o-transcribe", 300)]
    await talk.session.end("client_gone")
    assert len(heard(talk)) == 1


@pytest.mark.parametrize(
    ("model", "milliseconds", "tokens"), [("whisper-1", 30_000, 300), ("gpt-4o-transcribe", 30_000, 300)]
)
async def test_an_item_without_a_transcript_is_charged_by_its_sound_at_the_end(
    model: str, milliseconds: int, tokens: int
) -> None:
    talk = await Conversation().opened()
    await talk.update(**transcribed_by(model))
    await talk.speak("item_1")
    await talk.say({"type": "input_audio_buffer.append", "audio": "AAAA" * 160_000})  # never committed
    await talk.session.end("client_gone")
    ((plan, report),) = [(one.hold.plan, report) for one in talk.exchanges for report in one.charged]
    assert (plan.model.name, report) == (model, NO_REPORT)
    found = (plan.parsed.estimated_milliseconds, plan.parsed.estimated_audio, plan.parsed.estimated_input)
    assert found == (milliseconds, tokens, tokens)


async def test_a_transcription_that_failed_is_free() -> None:
    talk = await Conversation().opened()
    await talk.update(**transcribed_by("whisper-1"))
    await talk.speak("item_1")
    await talk.hear({"type": "conversation.item.input_audio_transcription.failed", "item_id": "item_1"})
    await talk.session.end("client_gone")
    assert heard(talk) == []
    assert talk.held == []


async def test_speech_is_held_for_before_it_is_heard_and_while_it_grows() -> None:
    talk = await Conversation().opened()
    await talk.update(**transcribed_by("whisper-1"))
    for seconds in (1, 100, 100):
        await talk.say({"type": "input_audio_buffer.append", "audio": "AAAA" * (seconds * 16_000)})
    (listening,) = [plan for plan in talk.held if plan.model.name == "whisper-1"]
    assert listening.bounds.milliseconds >= 201_000


@pytest.mark.parametrize(("now", "asked"), [("whisper-1", "gpt-4o-transcribe"), ("gpt-4o-transcribe", "whisper-1")])
async def test_the_dearer_of_two_models_is_held_for_until_one_is_confirmed(now: str, asked: str) -> None:
    talk = await Conversation().opened()
    await talk.update(**transcribed_by(now))
    await talk.say({"type": "session.update", "session": transcribed_by(asked)})
    await talk.say({"type": "input_audio_buffer.append", "audio": "AAAA" * 16_000})
    assert [plan.model.name for plan in talk.held if plan.model.name != "gpt-realtime"] == ["gpt-4o-transcribe"]


async def test_what_a_transcriber_is_told_is_held_for_with_every_item() -> None:
    talk = await Conversation().opened()
    told = {"model": "gpt-4o-transcribe", "prompt": "word " * 2_000}
    await talk.update(audio={"input": {"transcription": told}})
    await talk.speak("item_1", 1)
    await talk.say({"type": "input_audio_buffer.append", "audio": "AAAA" * 16_000})
    plans = [plan for plan in talk.held if plan.model.name == "gpt-4o-transcribe"]
    assert len(plans) == 2
    assert min(plan.bounds.input_tokens for plan in plans) > 10_000
    await talk.update(**transcribed_by("gpt-4o-transcribe"))
    await talk.say({"type": "input_audio_buffer.append", "audio": "AAAA" * 16_000 * 90})
    assert min(plan.bounds.input_tokens for plan in talk.held if plan.model.name == "gpt-4o-transcribe") < 10_000


async def test_a_response_interrupted_before_its_charge_is_charged_at_the_end() -> None:
    talk = await Conversation().opened()
    await talk.update()
    await talk.hear({"type": "response.created", "response": {"id": "resp_1"}})
    talk.exchanges[-1].interrupt = "before"
    with pytest.raises(asyncio.CancelledError):
        await talk.hear({"type": "response.done", "response": {"id": "resp_1", "status": "completed"}})
    await talk.session.end("client_gone")
    assert [one.abandoned for one in talk.exchanges if one.abandoned] == [["client_gone"]]


@pytest.mark.parametrize("confirmed", [True, False])
async def test_a_cap_counts_when_it_is_confirmed_and_the_higher_one_until_then(confirmed: bool) -> None:
    talk = await Conversation().opened()
    await talk.say({"type": "session.update", "session": {"max_output_tokens": 1}})
    if confirmed:
        await talk.hear({"type": "session.updated", "session": {"max_output_tokens": 1}})
    await talk.say({"type": "response.create"})
    assert [plan.cap for plan in talk.held][:1] == [CAP]  # held while it was not confirmed
    await talk.answered("resp_1", 10)
    await talk.say({"type": "response.create"})
    assert [plan.cap for plan in talk.held][:1] == [1 if confirmed else CAP]


async def test_an_update_that_the_server_refused_changes_nothing() -> None:
    talk = await Conversation().opened()
    voice = {"max_output_tokens": 1, "audio": {"output": {"voice": "nobody"}}}
    sent = msgspec.json.decode(
        await talk.session.from_client({"type": "session.update", "session": voice}, b"{}"), type=dict[str, Any]
    )
    error = error_about(sent["event_id"])
    told = msgspec.json.decode(await talk.session.from_upstream(error, msgspec.json.encode(error)))
    assert told["error"]["event_id"] is None, "the client gave its event no id"
    await talk.say({"type": "response.create"})
    assert [plan.cap for plan in talk.held] == [CAP]
    await talk.hear({"type": "response.created", "response": {"id": "resp_1"}})
    assert [one.abandoned for one in talk.exchanges if one.abandoned] == [], "the error was about no response"


def error_about(event_id: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"event_id": event_id, "message": "no"}}


async def test_an_error_ends_the_response_whose_request_it_names_and_no_other() -> None:
    talk = await Conversation().opened()
    small = {"type": "response.create", "event_id": "mine", "response": {"max_output_tokens": 1, "input": [ASIDE]}}
    await talk.say(small)
    await talk.hear({"type": "response.created", "response": {"id": "resp_1"}})
    refused = await talk.say(small)
    event = error_about(refused["event_id"])
    told = msgspec.json.decode(await talk.session.from_upstream(event, msgspec.json.encode(event)))
    assert told["error"]["event_id"] == "mine", "the client's own name for it"
    await talk.answered("resp_1", 10)
    await talk.say({"type": "response.create"})
    await talk.hear({"type": "response.created", "response": {"id": "resp_2"}})
    running = next(one for one in talk.exchanges if one.response_id == "resp_2")
    assert running.plans[0].cap == CAP, "the refused one is not taken for it"


@pytest.mark.parametrize("about", ["another event's", None])
async def test_an_error_about_anything_else_leaves_the_hold_of_what_waits(about: str | None) -> None:
    talk = await Conversation().opened()
    await talk.update(max_output_tokens=1)
    await talk.say({"type": "response.create", "response": {"max_output_tokens": CAP}})
    await talk.hear(error_about(about))
    await talk.hear({"type": "response.created", "response": {"id": "resp_1"}})
    (running,) = [one for one in talk.exchanges if one.response_id == "resp_1"]
    assert running.plans[0].cap == CAP


async def test_two_updates_of_one_name_are_two() -> None:
    talk = await Conversation().opened()
    await talk.update(max_output_tokens=1)
    raised = {"type": "session.update", "event_id": "x", "session": {"max_output_tokens": CAP}}
    refused = {"type": "session.update", "event_id": "x", "session": {"max_output_tokens": 1}}
    await talk.say(raised)
    sent = await talk.say(refused)
    await talk.hear({"type": "session.updated", "session": {"max_output_tokens": CAP}})
    await talk.hear(error_about(sent["event_id"]))
    await talk.say({"type": "response.create", "response": {"conversation": "none", "input": [ASIDE]}})
    assert talk.held[-1].cap == CAP


async def test_what_a_confirmation_leaves_out_is_as_it_was_asked_for() -> None:
    talk = await Conversation().opened()
    await talk.update(max_output_tokens=1)
    await talk.say({"type": "session.update", "session": {"max_output_tokens": CAP}})
    await talk.hear({"type": "session.updated", "session": {}})
    await talk.say({"type": "response.create"})
    assert talk.held[-1].cap == CAP


async def test_the_tools_of_one_response_are_held_for() -> None:
    talk = await Conversation().opened()
    tool = {"type": "function", "name": "f", "description": "word " * 20_000}
    await talk.say({"type": "response.create", "response": {"tools": [tool]}})
    assert talk.held[-1].bounds.input_tokens > 20_000


async def test_what_a_response_without_usage_read_is_estimated_without_headroom() -> None:
    talk = await Conversation().opened()
    await talk.say({"type": "conversation.item.create", "item": {"content": [{"type": "input_text", "text": "hi"}]}})
    await talk.say({"type": "response.create"})
    await talk.hear({"type": "response.created", "response": {"id": "resp_1"}})
    (running,) = [one for one in talk.exchanges if one.response_id == "resp_1"]
    parsed = running.hold.plan.parsed
    assert (parsed.estimated_audio, parsed.estimated_input < 60) == (0, True)


@pytest.mark.parametrize(("created", "done"), [(7, 7), ("r" * 200, "r" * 200), (None, "resp_1"), ("resp_1", None)])
async def test_a_response_is_charged_by_its_usage_whatever_its_id_is(created: Any, done: Any) -> None:
    talk = await Conversation().opened()
    await talk.say({"type": "response.create"})
    await talk.hear({"type": "response.created", "response": {"id": created}})
    usage = {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11}
    await talk.hear({"type": "response.done", "response": {"id": done, "status": "completed", "usage": usage}})
    assert [report.usage.output_tokens for one in talk.exchanges for report in one.charged if report.usage] == [6]


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "begun by the server"])
@pytest.mark.parametrize("response_id", ["resp_1", None])
async def test_a_response_that_was_never_announced_is_charged_once_by_its_usage(
    response_id: str | None, asked: bool
) -> None:
    """Delivered for nothing, if only `response.created` were looked for; one without any name must have been asked for."""
    talk = await Conversation().opened()
    if asked:
        await talk.say({"type": "response.create"})
    else:
        await talk.say({"type": "input_audio_buffer.commit"})
    usage = {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11}
    done = {"type": "response.done", "response": {"id": response_id, "status": "completed", "usage": usage}}
    for _ in range(2):
        await talk.hear(done)
    charged = [report.usage.output_tokens for one in talk.exchanges for report in one.charged if report.usage]
    assert charged == ([6] if asked or response_id else [])
    await talk.session.end("completed")
    assert talk.held == []


async def test_a_response_that_is_announced_late_is_held_for_and_charged_once() -> None:
    talk = await Conversation().opened()
    await talk.say({"type": "response.create"})
    await talk.hear({"type": "response.output_text.delta", "response_id": "resp_1", "delta": "hello"})
    before = len(talk.exchanges)
    await talk.answered("resp_1", 300)
    charged = [one for one in talk.exchanges for report in one.charged if report.usage]
    assert (len(talk.exchanges), len(charged)) == (before, 1)
    await talk.session.end("completed")
    assert talk.held == []


async def test_what_an_unannounced_response_says_is_owed_by_who_leaves() -> None:
    talk = await Conversation().opened()
    await talk.say({"type": "response.create"})
    delta = {"type": "response.output_text.delta", "response_id": "resp_1", "delta": "hello there"}
    await talk.hear(delta)
    (running,) = [one for one in talk.exchanges if one.response_id == "resp_1"]
    assert running.passed.texts == ["hello there"]
    await talk.session.end("client_gone")
    assert running.abandoned == ["client_gone"]
    assert talk.held == []


async def test_items_that_the_server_cuts_out_of_one_sound_are_held_for_one_by_one() -> None:
    talk = await Conversation().opened()
    await talk.update(**transcribed_by("whisper-1"))
    await talk.say({"type": "input_audio_buffer.append", "audio": "AAAA" * (600 * 16_000)})
    for number in range(3):
        item, start = f"item_{number}", number * 200_000
        buffer = "input_audio_buffer."
        await talk.hear({"type": buffer + "speech_started", "item_id": item, "audio_start_ms": start})
        await talk.hear({"type": buffer + "speech_stopped", "item_id": item, "audio_end_ms": start + 190_000})
        await talk.hear({"type": buffer + "committed", "item_id": item})
    heard_now = [plan for plan in talk.held if plan.model.name == "whisper-1"]
    assert all(plan.bounds.milliseconds >= 190_000 for plan in heard_now)
    await talk.session.end("client_gone")
    lengths = [one.hold.plan.parsed.estimated_milliseconds for one in talk.exchanges if one.charged]
    assert lengths == [190_000] * 3


async def test_an_item_committed_twice_is_one_and_one_never_committed_is_charged() -> None:
    talk = await Conversation().opened()
    await talk.update(**transcribed_by("whisper-1"))
    await talk.speak("item_1")
    await talk.hear({"type": "input_audio_buffer.committed", "item_id": "item_1"})
    await talk.transcript("item_1", SECONDS)
    await talk.transcript("item_unknown", SECONDS)
    assert [model for model, _ in heard(talk)] == ["whisper-1", "whisper-1"]
    await talk.session.end("client_gone")
    assert talk.held == []


@pytest.mark.parametrize(
    "event",
    [
        {"type": "conversation.item.create", "item": {"content": 5}},
        {"type": "conversation.item.create", "item": 5},
        {"type": "session.update", "session": {"tools": 5}},
        {"type": "response.create", "response": {"tools": 1}},
        {"type": "input_audio_buffer.append", "audio": 5},
    ],
    ids=str,
)
async def test_members_of_odd_types_end_no_session(event: dict[str, Any]) -> None:
    talk = await Conversation().opened()
    with contextlib.suppress(Rejection):
        await talk.say(event)


async def test_a_response_that_begins_while_its_hold_is_replaced_keeps_it() -> None:
    talk = await Conversation().opened()
    await talk.say({"type": "input_audio_buffer.append", "audio": "AAAA"})
    talk.delay = 0.05
    growing = asyncio.create_task(talk.say(LONG))
    await asyncio.sleep(0.01)
    await asyncio.gather(growing, talk.hear({"type": "response.created", "response": {"id": "resp_1"}}))
    (running,) = [one for one in talk.exchanges if one.response_id == "resp_1"]
    assert running.hold.is_open
    await talk.session.end("client_gone")
    assert talk.held == []


async def test_speech_committed_while_it_is_held_for_leaves_no_hold_behind() -> None:
    talk = await Conversation().opened()
    await talk.update(**transcribed_by("whisper-1"))
    talk.delay = 0.02
    for number in range(5):
        growing = asyncio.create_task(talk.say({"type": "input_audio_buffer.append", "audio": "AAAA" * 16_000 * 100}))
        await asyncio.sleep(0.005)
        await asyncio.gather(growing, talk.hear({"type": "input_audio_buffer.committed", "item_id": f"item_{number}"}))
    await talk.session.end("client_gone")
    assert talk.held == []


async def test_a_frame_interrupted_while_it_is_held_for_leaves_no_hold_behind() -> None:
    talk = await Conversation().opened()
    await talk.say({"type": "input_audio_buffer.append", "audio": "AAAA"})
    talk.delay = 0.05
    growing = asyncio.create_task(talk.say(LONG))
    await asyncio.sleep(0.01)
    growing.cancel()
    await asyncio.gather(growing, return_exceptions=True)
    await talk.session.end("client_gone")
    assert talk.held == []


@pytest.mark.parametrize(
    "item",
    [
        rb'{"content":[{"type":"input_image","file\u005fid":"file-abc"}]}',
        rb'{"content":[{"deep":[{"file_id":"file-abc"}]}]}',
    ],
)
async def test_a_file_of_the_shared_account_is_named_by_no_spelling(item: bytes) -> None:
    talk = await Conversation().opened()
    raw = b'{"type":"conversation.item.create","item":' + item + b"}"
    with pytest.raises(Rejection, match="No such file"):
        await talk.session.from_client(msgspec.json.decode(raw), raw)


async def test_a_frame_nested_without_end_ends_no_session() -> None:
    talk = await Conversation().opened()
    deep: Any = "x"
    for _ in range(2_000):
        deep = [deep]
    assert await talk.session.from_client({"type": "conversation.item.retrieve", "item_id": deep}, b"raw") == b"raw"


async def test_pictures_in_the_input_of_one_response_are_held_for() -> None:
    talk = await Conversation().opened()
    pictures = [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"} for _ in range(20)]
    item = {"type": "message", "role": "user", "content": pictures}
    await talk.say({"type": "response.create", "response": {"input": [item]}})
    assert talk.held[-1].bounds.input_tokens >= 20 * 1_500


async def test_an_end_that_names_another_response_ends_none() -> None:
    talk = await Conversation().opened()
    await talk.say({"type": "response.create"})
    await talk.hear({"type": "response.created", "response": {"id": "resp_1"}})
    usage = {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4}
    await talk.hear({"type": "response.done", "response": {"id": "other", "status": "completed", "usage": usage}})
    (running,) = [one for one in talk.exchanges if one.response_id == "resp_1"]
    assert running.hold.is_open


async def test_a_transcript_said_twice_is_charged_once() -> None:
    talk = await Conversation().opened()
    await talk.update(**transcribed_by("whisper-1"))
    await talk.speak("item_1")
    for _ in range(2):
        await talk.transcript("item_1", SECONDS)
    assert len(heard(talk)) == 1


async def test_where_both_holds_are_too_many_the_one_before_goes_first() -> None:
    """A key with one request in flight at most can hold a conversation."""
    talk = await Conversation().opened()
    await talk.say({"type": "conversation.item.create", "item": {}})
    (standing,) = [one for one in talk.exchanges if one.hold.is_open]
    busy = RecordedExchange(too_many("Too many requests of this key.", "concurrency_limit_exceeded", 1_000))
    found = await hold_instead(
        cast("SocketExchange", standing), lambda: cast("SocketExchange", ready.pop(0)), hold_of(busy, standing)
    )
    assert (found.hold.is_open, standing.hold.is_open) == (True, False)


ready: list[RecordedExchange] = []


def hold_of(busy: RecordedExchange, standing: RecordedExchange) -> Any:
    """Refused while the one before stands."""
    ready[:] = [busy, RecordedExchange()]

    async def hold(exchange: Any, _wait: bool) -> None:
        if standing.hold.is_open:
            raise cast("Rejection", busy.refusal)
        exchange.hold.is_open = True

    return hold


async def test_what_is_refused_is_not_counted() -> None:
    talk = await Conversation().opened()
    await talk.say({"type": "conversation.item.create", "item": {}})
    talk.refusal = too_many("Too many requests of this key.", "rate_limit_exceeded", 1_000)
    with pytest.raises(Rejection):
        await talk.say(LONG)
    talk.refusal = None
    await talk.say({"type": "response.create"})
    assert talk.held[-1].bounds.input_tokens < 10_000


async def test_a_raised_cap_is_held_for_before_the_next_response() -> None:
    """What stood was held for the cap of before."""
    talk = await Conversation().opened()
    await talk.update(max_output_tokens=100)
    await talk.say({"type": "conversation.item.create", "item": {}})
    await talk.say({"type": "session.update", "session": {"max_output_tokens": CAP}})
    assert [plan.cap for plan in talk.held] == [CAP]


LONG = {"type": "conversation.item.create", "item": {"content": [{"type": "input_text", "text": "word " * 20_000}]}}
ASIDE: dict[str, Any] = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]}


@pytest.mark.parametrize(
    "asked",
    [
        {"conversation": "none", "input": [ASIDE]},
        {"conversation": "none"},
        {"input": [ASIDE]},
    ],
    ids=["out of band", "no conversation", "own input"],
)
async def test_a_response_that_did_not_read_the_conversation_does_not_shrink_it(asked: dict[str, Any]) -> None:
    talk = await Conversation().opened()
    await talk.say(LONG)
    await talk.say({"type": "response.create", "response": {**asked, "max_output_tokens": 16}})
    await talk.answered("resp_1", 12)
    await talk.say({"type": "response.create"})
    assert talk.held[-1].bounds.input_tokens > 20_000


async def test_what_is_added_while_a_response_runs_is_not_lost() -> None:
    talk = await Conversation().opened()
    await talk.say({"type": "response.create"})
    await talk.hear({"type": "response.created", "response": {"id": "resp_1"}})
    await talk.say(LONG)
    usage = {"input_tokens": 12, "output_tokens": 1, "total_tokens": 13}
    await talk.hear({"type": "response.done", "response": {"id": "resp_1", "status": "completed", "usage": usage}})
    await talk.say({"type": "response.create"})
    assert talk.held[-1].bounds.input_tokens > 20_000


async def test_a_response_that_read_all_corrects_the_size() -> None:
    talk = await Conversation().opened()
    await talk.say(LONG)
    await talk.say({"type": "response.create"})
    await talk.answered("resp_1", 20_010)
    await talk.say({"type": "response.create"})
    assert 20_010 <= talk.held[-1].bounds.input_tokens < 25_000


async def test_a_response_nobody_asked_for_is_refused_by_its_own_reason() -> None:
    talk = await Conversation().opened()
    talk.refusal = unavailable("Charging is paused.", "charging_paused", 1_000)
    with pytest.raises(Finished) as caught:
        await talk.hear({"type": "response.created", "response": {"id": "resp_1"}})
    assert str(caught.value) == "charging_paused"


async def test_what_is_listened_for_stays_held_when_a_larger_hold_is_refused() -> None:
    talk = await Conversation().opened()
    await talk.update(**transcribed_by("whisper-1"))
    await talk.say({"type": "input_audio_buffer.append", "audio": "AAAA"})
    talk.refusal = unavailable("Charging is paused.", "charging_paused", 1_000)
    with pytest.raises(Rejection):
        await talk.say({"type": "input_audio_buffer.append", "audio": "AAAA" * (600 * 16_000)})
    await talk.session.end("client_gone")
    assert talk.held == []


async def test_a_session_whose_model_ends_is_refused_its_next_response() -> None:
    talk = Conversation(SimpleNamespace(prices=ending(gpt_realtime="2026-07-01")))
    await talk.opened()
    await talk.say({"type": "response.create"})
    talk.today = TODAY + timedelta(1)
    with pytest.raises(Rejection, match="'gpt-realtime' ended on 2026-07-01"):
        await talk.say({"type": "response.create"})


async def test_a_session_whose_transcriber_has_ended_is_refused_its_update() -> None:
    talk = Conversation(SimpleNamespace(prices=ending(whisper_1="2026-06-30")))
    await talk.opened()
    with pytest.raises(Rejection, match="'whisper-1' ended on 2026-06-30"):
        await talk.update(**transcribed_by("whisper-1"))
    await talk.update(**transcribed_by("gpt-4o-transcribe"))


def test_no_session_of_a_model_that_has_ended_is_opened() -> None:
    with pytest.raises(Rejection, match=r"'gpt-realtime' ended on 2026-06-30.*Use 'gpt-realtime-2.1'"):
        Conversation(SimpleNamespace(prices=ending(gpt_realtime="2026-06-30")))


@pytest.mark.parametrize("name", ["response.output_audio.delta", "response.audio.delta"])
async def test_speech_is_counted_by_its_bytes_by_either_name_of_its_event(name: str) -> None:
    talk = await Conversation().opened()
    await talk.hear({"type": "response.created", "response": {"id": "resp_1"}})
    await talk.hear({"type": name, "response_id": "resp_1", "delta": "A" * 64_000})
    (exchange,) = [one for one in talk.exchanges if one.media or one.passed.texts]
    assert (exchange.media, exchange.passed.texts) == (20, [])
