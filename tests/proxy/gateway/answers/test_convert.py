"""An answer in the form that the client asked for, whatever is odd in the one that came."""

from typing import Any

import pytest

from proxy.gateway.answers.convert import SpeechMeter, converted

SEGMENT = {"start": 0, "end": 1.5, "text": "hello"}


@pytest.mark.parametrize(
    "odd",
    [
        b'{"text":"hello","segments":["a"],"duration":1.5}',
        b'{"text":"hello","segments":5,"duration":1.5}',
        b'{"text":"hello","segments":[{"start":"1e999999","text":"hello"}]}',
        b'{"text":"hello","segments":[{"start":null,"end":[],"text":"hello"}]}',
        b'{"text":"hello","segments":[{"start":0,"end":1,"text":"hello","avg_logprob":NaN}]}',
        rb'{"text":"hello \ud83d","segments":[{"start":0,"end":1,"text":"hello"}]}',
    ],
    ids=range(6),
)
@pytest.mark.parametrize("form", ["srt", "vtt", "text", "json", "events"])
def test_what_is_odd_in_a_transcript_costs_nobody_its_form(odd: bytes, form: str) -> None:
    found = converted(form, odd)
    assert found is not None
    assert b"hello" in found[1]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"text": 5}', b"<html>"])
def test_an_answer_without_a_text_passes_as_it_is(body: Any) -> None:
    assert converted("srt", body) is None


@pytest.mark.parametrize("said", ["aGVsbG8=", "aGVsbG8", "aGVs\\nbG8=", "aGVsbG8=="], ids=repr)
def test_speech_is_heard_however_its_base64_is_written(said: str) -> None:
    """It is charged by its length: nothing of it may be left out."""
    meter = SpeechMeter("mp3")
    assert meter.feed(b'data: {"type":"speech.audio.delta","audio":"%b"}\n\n' % said.encode()) == b"hello"
