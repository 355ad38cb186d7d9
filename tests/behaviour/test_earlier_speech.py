"""Speech of an earlier answer in a chat's history (`audio.id`): its maker's only, held for, charged by usage, until it is gone."""

import json
import re
import sqlite3
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from openai import OpenAI

from tests.support.processes import locked
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import Sandbox, Tollkeeper, sandbox_says, wait_until

MODEL = "gpt-audio-1.5"  # text 2.5 / 10, sound 32 / 64
SPEAKS: dict[str, Any] = {"model": MODEL, "modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
STREAMS = {**SPEAKS, "audio": {"voice": "alloy", "format": "pcm16"}, "stream": True}


class Pair(NamedTuple):
    owner: Customer
    stranger: Customer


@pytest.fixture
def pair(served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox) -> Pair:
    server = served(TOLLKEEPER_DATABASE__TIMEOUT_SECONDS="1")
    return Pair(new_customer(server, "1000"), new_customer(server, "1000"))


def body(text: str = "hello", *earlier: str, kind: dict[str, Any] = SPEAKS, **directive: Any) -> dict[str, Any]:
    said = sandbox_says(**{"output_tokens": 40, **directive})
    history = [{"role": "assistant", "audio": {"id": name}} for name in earlier]
    messages = [{"role": "user", "content": "hi"}, *history, {"role": "user", "content": f"{text} {said}"}]
    return {**kind, "messages": messages, "max_completion_tokens": 400}


def speak(customer: Customer, **directive: Any) -> str:
    answer = customer.post(body(**directive))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["audio"]["id"])


def cost(usage: dict[str, Any]) -> int:
    heard, spoken = usage["prompt_tokens_details"]["audio_tokens"], usage["completion_tokens_details"]["audio_tokens"]
    text_in, text_out = usage["prompt_tokens"] - heard, usage["completion_tokens"] - spoken
    return usd_to_charge((text_in, "2.5"), (text_out, "10"), (heard, "32"), (spoken, "64"))


def test_what_was_said_earlier_is_heard_again_held_for_and_charged(pair: Pair) -> None:
    said = speak(pair.owner)
    answer = pair.owner.post(body("and now?", said, said))
    usage = answer.json()["usage"]
    assert usage["prompt_tokens_details"]["audio_tokens"] > 2 * 20
    row = pair.owner.generation(answer.headers["x-request-id"])
    assert int(row["chargedMillicredits"]) == cost(usage) <= int(row["heldMillicredits"])


def test_the_hold_covers_a_long_speech_that_a_short_request_refers_to(pair: Pair) -> None:
    said = speak(pair.owner, output_tokens=90)
    asked = body("hm", said, output_tokens=1) | {"max_completion_tokens": 10}
    answer = pair.owner.post(asked)
    row = pair.owner.generation(answer.headers["x-request-id"])
    heard = answer.json()["usage"]["prompt_tokens_details"]["audio_tokens"]
    assert heard > 200
    assert int(row["chargedMillicredits"]) == cost(answer.json()["usage"]) <= int(row["heldMillicredits"])
    assert int(row["heldMillicredits"]) >= heard * 32


@pytest.mark.parametrize("kind", [SPEAKS, STREAMS], ids=["whole", "stream"])
def test_its_owner_is_written_before_it_is_shown(pair: Pair, kind: dict[str, Any]) -> None:
    if kind is SPEAKS:
        name = speak(pair.owner)
        assert owners(pair.owner, name) == [("audio", pair.owner.account_id)]
        return
    with pair.owner.stream(body(kind=kind, chunk_interval_ms=50)) as wire:
        begun = wire.read_events(1)
        found = re.search(rb'"audio":\{"id":"(audio_\w+)"', begun)
        assert found is not None, begun
        assert owners(pair.owner, found[1].decode()) == [("audio", pair.owner.account_id)]
        wire.read_all()
    answer = pair.owner.post(body("again", found[1].decode()))
    assert answer.status_code == 200, answer.text
    assert pair.owner.charged(answer.headers["x-request-id"]) == cost(answer.json()["usage"])


def owners(customer: Customer, name: str) -> list[tuple[str, str]]:
    with sqlite3.connect(customer.server.folder / "var" / "tollkeeper.db") as database:
        return database.execute("SELECT kind, account_id FROM upstream_objects WHERE id = ?", (name,)).fetchall()


def test_every_choice_of_a_stream_has_its_owner(pair: Pair) -> None:
    with pair.owner.stream({**body(kind=STREAMS), "n": 3}) as wire:
        events = wire.read_all().data
    names = set(re.findall(rb'"audio":\{"id":"(audio_\w+)"', events))
    assert len(names) == 3
    for name in names:
        assert owners(pair.owner, name.decode()) == [("audio", pair.owner.account_id)]


def test_a_strangers_speech_is_one_that_never_was(pair: Pair, sandbox: Sandbox) -> None:
    said = speak(pair.owner)
    sandbox.clear()
    before = pair.stranger.balance()
    refusals = []
    for name in (said, "audio_never"):
        answer = pair.stranger.post(body("what?", name))
        assert answer.status_code == 404
        refusals.append(json.loads(answer.text.replace(name, "audio_x"))["error"])
    assert refusals[0] == refusals[1]
    assert (refusals[0]["code"], refusals[0]["param"]) == ("audio_not_found", "messages")
    assert (sandbox.record(), pair.stranger.balance()) == ([], before)


def test_speech_that_is_gone_is_a_404_without_a_call(pair: Pair, sandbox: Sandbox) -> None:
    said = speak(pair.owner, sound_seconds=1)
    time.sleep(1.1)
    sandbox.clear()
    answer = pair.owner.post(body("what?", said))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "audio_not_found")
    assert sandbox.record() == []


@pytest.mark.parametrize("kind", [SPEAKS, STREAMS], ids=["whole", "stream"])
def test_an_id_whose_owner_cannot_be_written_is_withheld(pair: Pair, kind: dict[str, Any]) -> None:
    assert pair.owner.post(body()).status_code == 200  # the key is known
    with locked(pair.owner.server.folder / "var" / "tollkeeper.db"):
        answer = pair.owner.post(body(kind=kind))
    assert answer.status_code == 200
    shown = re.findall(r'"audio":\{"id":"(audio_\w+)"', answer.text)
    assert len(shown) == 1
    wait_until(lambda: pair.owner.held() == 0, 20, "nothing is held")
    assert owners(pair.owner, shown[0]) == []
    assert pair.owner.post(body("again", shown[0])).status_code == 404


def test_a_speech_that_is_left_is_read_on_to_its_usage(pair: Pair, sandbox: Sandbox) -> None:
    """How long sound plays that nobody reads to its end would be a guess."""
    sandbox.clear()
    with pair.owner.stream(body(kind=STREAMS, chunk_interval_ms=15)) as wire:
        wire.read_events(8)
    row = pair.owner.generation(wire.request_id)
    usage = pair.owner.finished(wire.request_id)["usage"]
    assert usage["completion_tokens_details"]["audio_tokens"] == 120
    assert (row["usageSource"], row["outcome"]) == ("upstream", "client_gone")
    assert int(row["chargedMillicredits"]) == cost(usage)


def test_the_sdk_goes_on_from_what_it_heard(pair: Pair) -> None:
    sdk = OpenAI(base_url=pair.owner.server.v1, api_key=pair.owner.api_key, max_retries=0)
    first = sdk.chat.completions.create(**body())
    heard = first.choices[0].message.audio
    assert heard is not None
    assert heard.expires_at > time.time()
    asked = body("go on", heard.id)
    second = sdk.chat.completions.create(**asked)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.audio_tokens or 0) > 40
