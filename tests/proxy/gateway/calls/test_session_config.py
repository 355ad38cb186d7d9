"""What a call may be opened with, and what of it is held for."""

from typing import Any

import pytest

from config.settings import Holds
from proxy.gateway.calls.session_config import CallConfig, CallLimits, call_config, shown_limits
from proxy.web.rejections import Rejection
from tests.support.plans import sold

VOICE = "gpt-realtime-2.1"


def config(**session: Any) -> CallConfig:
    return call_config({"type": "realtime", "model": VOICE, **session}, sold, Holds())


def test_a_call_is_opened_within_limits_that_it_did_not_name() -> None:
    made = config(instructions="Be brief.", id="sess_1", max_response_output_tokens="inf")
    assert made.limits[:2] == (4_096, 16_000)
    assert made.session == {
        "type": "realtime",
        "model": VOICE,
        "instructions": "Be brief.",
        "max_output_tokens": 4_096,
        "truncation": {
            "type": "retention_ratio",
            "retention_ratio": 0.8,
            "token_limits": {"post_instructions": 16_000},
        },
    }


def test_limits_that_a_session_names_are_kept_where_they_are_lower() -> None:
    truncation = {"type": "retention_ratio", "retention_ratio": 0.5, "token_limits": {"post_instructions": 5_000}}
    made = config(max_output_tokens=200, truncation=truncation)
    assert made.limits[:2] == (200, 5_000)
    assert made.session["truncation"] == truncation
    higher = config(truncation={"type": "retention_ratio", "token_limits": {"post_instructions": 90_000}})
    assert higher.limits.tokens == 16_000


def test_numbers_may_be_written_as_clients_write_them_and_a_transcriber_that_is_sold_is_taken() -> None:
    heard = {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}
    assert config(max_output_tokens=200.0, audio=heard).limits.cap == 200
    assert config(audio={"input": {"transcription": None}}).limits.cap == 4_096


def test_no_more_than_a_model_reads_beside_its_answer() -> None:
    made = call_config({"model": "gpt-realtime"}, sold, Holds(realtime_call_max_input_tokens=1_000_000))
    assert made.limits.tokens == 32_000 - 4_096


@pytest.mark.parametrize(
    ("session", "status"),
    [
        ({"type": "transcription"}, 403),
        ({"model": None}, 400),
        ({"model": 5}, 400),
        ({"model": "gpt-of-nobody"}, 404),
        ({"model": "gpt-realtime-whisper"}, 400),
        ({"max_output_tokens": 0}, 400),
        ({"max_output_tokens": 32_001}, 400),
        ({"max_output_tokens": True}, 400),
        ({"max_output_tokens": "many"}, 400),
        ({"truncation": "disabled"}, 400),
        ({"prompt": {"id": "pmpt_1"}}, 404),
        ({"audio": {"output": {"voice": {"id": "voice_1"}}}}, 404),
        ({"tools": [{"type": "mcp"}]}, 400),
        ({"tools": "mcp"}, 400),
        ({"max_output_tokens": 1.5}, 400),
        ({"audio": {"input": {"transcription": {"model": "gpt-realtime-whisper"}}}}, 404),
        ({"audio": {"input": {"transcription": {"model": "gpt-live-transcribe"}}}}, 404),
        ({"audio": {"input": {"transcription": {"model": "gpt-of-nobody"}}}}, 404),
        ({"input_audio_transcription": {"model": "gpt-of-nobody"}}, 404),
        ({"audio": {"input": {"transcription": {}}}}, 400),
        ({"audio": {"input": {"transcription": {"model": 5}}}}, 400),
        ({"audio": {"input": {"transcription": "whisper-1"}}}, 400),
    ],
    ids=str,
)
def test_what_is_not_sold_or_has_no_bound_is_refused(session: dict[str, Any], status: int) -> None:
    with pytest.raises(Rejection) as refused:
        config(**session)
    assert refused.value.status == status


@pytest.mark.parametrize("given", [None, [], "x", 5])
def test_a_session_is_an_object(given: Any) -> None:
    with pytest.raises(Rejection):
        call_config(given, sold, Holds())


BEFORE = CallLimits(1_000, 8_000, 100)


@pytest.mark.parametrize(
    ("session", "limits"),
    [
        ({}, (1_000, 8_000)),
        ({"max_output_tokens": "inf"}, (4_096, 8_000)),
        ({"max_output_tokens": None}, (4_096, 8_000)),
        ({"max_output_tokens": 50}, (50, 8_000)),
        ({"truncation": "auto"}, (1_000, 32_000)),
        ({"truncation": "disabled"}, (1_000, 32_000)),
        ({"truncation": {"type": "retention_ratio", "retention_ratio": 1.0}}, (1_000, 32_000)),
        ({"truncation": {"token_limits": {"post_instructions": 9_000}}}, (1_000, 9_000)),
        ({"truncation": {"token_limits": {"post_instructions": 99_000}}}, (1_000, 32_000)),
    ],
    ids=str,
)
def test_the_limits_of_a_session_are_what_its_server_shows(session: dict[str, Any], limits: tuple[int, int]) -> None:
    assert shown_limits(session, BEFORE, 4_096, 32_000)[:2] == limits


def test_longer_instructions_are_more_than_was_held_for() -> None:
    shown = shown_limits({"instructions": "x" * 500, "tools": []}, BEFORE, 4_096, 32_000)
    assert shown.before > 500
    assert not shown.within(BEFORE)
    assert BEFORE.within(shown)


def test_where_money_is_short_limits_are_halved_down_to_a_least() -> None:
    assert CallLimits(4_096, 16_000).ladder() == [(4_096, 16_000, 0), (2_048, 8_000, 0), (1_024, 4_000, 0)]
    assert CallLimits(500, 3_000).ladder() == [(500, 3_000, 0)]
