"""Sessions of calls: the one that it is opened with, and how much of it is held for. Pure.

The browser talks to the session past us, so what cannot be seen in time must be bounded by the session itself: a cap on
what a response says, and `truncation` with a limit on what it reads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from billing.money.catalogue.models import Model
from config.settings import Holds
from proxy.gateway.bodies.json_body import whole_number
from proxy.gateway.endpoints import REALTIME
from proxy.gateway.sockets.realtime_frames import refuse_shared
from proxy.gateway.sockets.realtime_state import ENDLESS
from proxy.gateway.sockets.transcriptions import SPEECH_ENDPOINT
from proxy.web.rejections import forbidden, invalid

RETENTION = 0.8
LEAST_TOKENS, LEAST_CAP = 4_000, 1_024
RUNGS = 3
NOT_SENT = ("id", "object", "expires_at", "client_secret", "max_response_output_tokens")
"""Members that a session has when it is shown, and names that we write otherwise."""


class CallLimits(NamedTuple):
    """Most tokens that a response says, and of the conversation that it reads; bytes of what stands before that."""

    cap: int
    tokens: int
    before: int = 0

    def within(self, other: "CallLimits") -> bool:
        """Tell whether whatever these allow is allowed by the others."""
        return self.cap <= other.cap and self.tokens <= other.tokens and self.before <= other.before

    def ladder(self) -> list["CallLimits"]:
        """Return these and lower ones, for when money is short."""
        rungs = [self]
        for _ in range(RUNGS - 1):
            last = rungs[-1]
            lower = last._replace(
                cap=min(last.cap, max(LEAST_CAP, last.cap // 2)),
                tokens=min(last.tokens, max(LEAST_TOKENS, last.tokens // 2)),
            )
            if lower != last:
                rungs.append(lower)
        return rungs


class CallConfig(NamedTuple):
    """A session that was checked. `session` is what we open it with; `window`: tokens that the model reads at most."""

    model: str
    session: dict[str, Any]
    limits: CallLimits
    window: int

    def with_limits(self, limits: CallLimits) -> dict[str, Any]:
        """Session within these limits."""
        return {**self.session, **limits_as_sent(limits, self.session)}


def check_session(given: Any) -> dict[str, Any]:
    """Check what can be checked of a session whose model is not known yet. Raises Rejection."""
    if not isinstance(given, dict):
        raise invalid("`session` must be an object.", "session", "invalid_type")
    if given.get("type", "realtime") != "realtime":
        raise forbidden(
            "Only sessions of type realtime are offered as calls: transcribe with /v1/audio/transcriptions.",
            "session_not_allowed",
            "session.type",
        )
    refuse_shared(given)
    return given


def call_config(wanted: Any, find: Callable[[str, str], Model], holds: Holds) -> CallConfig:
    """Check a session that somebody wants. Raises Rejection.

    `find`: the model of a name, if it is sold at an endpoint.
    """
    given = check_session(wanted)
    name = given.get("model")
    if not isinstance(name, str) or not name:
        raise invalid(
            "Name the model: session.model, or ?model=gpt-realtime-2.1.", "model", "missing_required_parameter"
        )
    _check_transcriber(given, find)
    model = find(name, REALTIME.name)
    if model.context_window is None or model.max_output_tokens is None:
        raise invalid(f"The model {name!r} does not answer, so it cannot have a call.", "model", "model_not_found")
    cap = given.get("max_output_tokens", given.get("max_response_output_tokens"))
    if cap in ENDLESS:
        cap = min(holds.realtime_max_output_tokens, model.max_output_tokens)
    else:
        cap = whole_number(cap, "max_output_tokens")
        if not 1 <= cap <= model.max_output_tokens:
            raise invalid(f"`max_output_tokens` must be from 1 to {model.max_output_tokens}.", "max_output_tokens")
    if given.get("truncation") == "disabled":
        raise invalid(
            "`truncation` cannot be disabled in a call: what a response reads must have a limit. Leave it out.",
            "session.truncation",
            "unsupported_parameter",
        )
    most = max(1, min(holds.realtime_call_max_input_tokens, model.context_window - model.max_output_tokens))
    named = _token_limit(given.get("truncation"))
    limits = CallLimits(cap, most if named is None else min(named, most), _before(given))
    session = {member: value for member, value in given.items() if member not in NOT_SENT}
    session |= {"type": "realtime", "model": name, **limits_as_sent(limits, session)}
    return CallConfig(name, session, limits, model.context_window)


def _check_transcriber(given: dict[str, Any], find: Callable[[str, str], Model]) -> None:
    """Refuse a transcriber that is not sold, and one without a name: it may write before anything is heard of it.

    Raises Rejection.
    """
    audio = given.get("audio")
    heard = audio.get("input") if isinstance(audio, dict) else None
    wanted = (given.get("input_audio_transcription"), heard.get("transcription") if isinstance(heard, dict) else None)
    for transcription in wanted:
        if transcription is None:
            continue
        name = transcription.get("model") if isinstance(transcription, dict) else None
        if not isinstance(name, str) or not name:
            raise invalid(
                "Name the `model` of the transcription.", "audio.input.transcription", "missing_required_parameter"
            )
        find(name, SPEECH_ENDPOINT)


def limits_as_sent(limits: CallLimits, session: dict[str, Any]) -> dict[str, Any]:
    """Members of a session that set these limits; how much a truncation leaves stays as the session has it."""
    truncation = session.get("truncation")
    ratio = truncation.get("retention_ratio") if isinstance(truncation, dict) else None
    kept = ratio if isinstance(ratio, (int, float)) and not isinstance(ratio, bool) else RETENTION
    limited = {
        "type": "retention_ratio",
        "retention_ratio": kept,
        "token_limits": {"post_instructions": limits.tokens},
    }
    return {"max_output_tokens": limits.cap, "truncation": limited}


def shown_limits(session: dict[str, Any], before: CallLimits, most: int, window: int) -> CallLimits:
    """Limits of a session as its server shows it; members that it does not show are as `before`.

    `most`: tokens that the model says at most.
    """
    cap, tokens = before.cap, before.tokens
    for name in ("max_output_tokens", "max_response_output_tokens"):
        if name in session:
            shown = session[name]
            cap = shown if type(shown) is int else most
            break
    if "truncation" in session:
        limit = _token_limit(session["truncation"])
        tokens = window if limit is None else min(limit, window)
    shown_before = _before(session) if "instructions" in session or "tools" in session else before.before
    return CallLimits(cap, tokens, shown_before)


def _token_limit(truncation: Any) -> int | None:
    """Tokens of the conversation that a truncation leaves at most; None: as many as the model reads."""
    limits = truncation.get("token_limits") if isinstance(truncation, dict) else None
    limit = limits.get("post_instructions") if isinstance(limits, dict) else None
    return limit if type(limit) is int and limit > 0 else None


def _before(session: dict[str, Any]) -> int:
    """Bytes of instructions and tools, which stand before the conversation."""
    return len(msgspec.json.encode([session.get("instructions"), session.get("tools")]))
