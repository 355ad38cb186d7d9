"""Errors of the upstream, read: what is wrong with our own account, and the reason in whatever shape it comes. Pure.

An error passes as it is when it has OpenAI's shape and is about the request. What is about the operator's account
there is said in our words, so that no customer is blamed for it or learns of it; what has another shape gives its
words to an error of ours (docs/openai.md#errors-and-retries).
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from proxy.gateway.answers.account_problems import PASSED_REASONS, account_problem, account_rejection, text_in
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.identity import redact_names
from proxy.gateway.answers.sse import begins_events, event_data, next_boundary
from proxy.web.rejections import Rejection

LONGEST_REASON = 300
DEEPEST = 4
MOST_REASONS = 3
MOST_MEMBERS = 20
TOO_MANY, SERVER_ERROR, BAD_GATEWAY = 429, 500, 502

ERROR_OBJECT = re.compile(rb'"error"\s*:\s*\{')
REASON_MEMBERS = (
    *("message", "msg", "error_description", "error_message", "errorMessage", "detail", "details", "error", "errors"),
    *("description", "reason", "faultstring", "fault", "title", "Message"),
)
"""Names under which servers say what is wrong, the most telling first."""
LISTED = ("errors", "detail", "details", "error")
"""Of these, members of any name are messages: `{"errors": {"model": ["is required"]}}`."""
MARKUP = re.compile(r"^\s*<")
HTML = re.compile(r"</?(?:html|head|body|center|h1|title|p|div|br|script)\b", re.IGNORECASE)
BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


class UpstreamFailure(NamedTuple):
    """An error of the upstream. `rejection`: to answer instead, None where it passes; `account`: for the operator."""

    rejection: Rejection | None
    account: str = ""


def read_failure(status: int, body: bytes, redact: Callable[[bytes], bytes]) -> UpstreamFailure:
    """Read an error answer; `redact` takes the names of our account out."""
    raw = decode_object(body)
    error = raw.get("error") if raw is not None else None
    shaped = error if isinstance(error, dict) else None
    words = _shortened(redact(_words_of(body, raw).encode("utf-8", "replace")).decode("utf-8", "replace"))
    reason = _reason(status, raw, words)
    if reason and reason not in PASSED_REASONS:
        return UpstreamFailure(account_rejection(reason, status, text_in(shaped or {}, "param")), reason)
    if shaped is not None and any(isinstance(shaped.get(name), str) for name in ("message", "code", "type")):
        plain = shaped.get("message")
        if not words or isinstance(plain, str) or plain is None:
            return UpstreamFailure(None, reason)
    return UpstreamFailure(told(status, words), reason)


def _reason(status: int, raw: dict[str, Any] | None, words: str) -> str:
    """Name what is wrong with our account, by any of the objects in an error's body, then by its words."""
    found = [account_problem(0, one) for one in _objects(raw, DEEPEST)]
    named = next((one for one in found if one and one not in PASSED_REASONS), "")
    if named:
        return named
    error = raw.get("error") if raw is not None else None
    about = error if isinstance(error, dict) else raw or {}
    return account_problem(status, {**about, "message": words})


def told(status: int, words: str) -> Rejection:
    """Make the upstream's words an error of ours; it never asks to repeat what was refused."""
    what = "could not answer" if status >= SERVER_ERROR else "refused this request"
    said = f"The upstream {what} (status {status})" + (f": {_sentence(words)}" if words else ".")
    if status >= SERVER_ERROR:
        return Rejection(status, "upstream_error", f"{said} Nothing was charged; try again.", kind="server_error")
    kind = "rate_limit_error" if status == TOO_MANY else "invalid_request_error"
    return Rejection(status, "upstream_error", f"{said} Nothing was charged.", kind=kind)


def shaped_rejection(status: int, body: bytes) -> Rejection:
    """Make an upstream's error that passes as it is a refusal of ours, for where only those can be sent."""
    error = (decode_object(body) or {}).get("error")
    said: dict[str, Any] = error if isinstance(error, dict) else {}
    message, kind = text_in(said, "message") or "", text_in(said, "type") or "invalid_request_error"
    code = text_in(said, "code") or "upstream_error"
    return Rejection(status, code, message or told(status, "").message, kind=kind, param=text_in(said, "param"))


def masked(payload: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Find errors in an event, a frame or an answer: (what is wrong with our account, the payload as it may be shown).

    None for the payload: it may be shown as it is.
    """
    found, changed = "", False
    for error in _errors_in(payload):
        reason = account_problem(0, error)
        if reason and reason not in PASSED_REASONS:
            own = account_rejection(reason, SERVER_ERROR)
            found, changed = reason, True
            error["message"], error["code"] = own.message, own.code
            if error.get("type") not in (None, "error"):
                error["type"] = own.kind
        elif message := text_in(error, "message"):
            found, shown = found or reason, redact_names(message.encode("utf-8", "replace")).decode()
            if shown != message:
                error["message"], changed = shown, True
    return found, payload if changed else None


def masked_event(event: bytes) -> tuple[str, bytes]:
    """Mask one whole event of a stream: (what is wrong with our account, the event to show)."""
    payload = decode_object(event_data(event))
    reason, changed = masked(payload) if payload is not None else ("", None)
    if changed is None:
        return reason, event
    kept = [line for line in event.splitlines(keepends=True) if line.startswith((b"event:", b"id:", b"retry:"))]
    return reason, b"".join(kept) + b"data: " + msgspec.json.encode(changed) + b"\n\n"


def masked_body(body: bytes) -> tuple[str, bytes]:
    """Mask a whole answer of status 200 that has an error in it: (what is wrong with our account, the body)."""
    if not ERROR_OBJECT.search(body) or (payload := decode_object(body)) is None:
        return "", body
    reason, changed = masked(payload)
    return reason, body if changed is None else msgspec.json.encode(changed)


def error_in_answer(body: bytes) -> tuple[str, Rejection]:
    """Read a 200 of the upstream's that is an error, or nothing: (what is wrong with our account, the 502 to answer).

    `body` is free of our identity.
    """
    raw = decode_object(body)
    error = raw.get("error") if raw is not None else None
    about = error if isinstance(error, dict) else {"message": error}
    reason = account_problem(0, about) if error else ""
    if reason and reason not in PASSED_REASONS:
        return reason, account_rejection(reason, BAD_GATEWAY)
    words = _shortened(_words(error, DEEPEST))
    said = (
        f"The upstream answered with an error: {_sentence(words)}" if words else "The upstream answered with no answer."
    )
    return reason, Rejection(
        BAD_GATEWAY, "upstream_error", f"{said} Nothing was charged; try again.", kind="server_error"
    )


def error_that_begins(first: bytes) -> bool:
    """Tell whether a stream begins with an error: by its first bytes, of which at least one event is whole."""
    event = first[: next_boundary(first, 0)]
    payload = decode_object(event_data(event)) if b'"error"' in event else None
    return payload is not None and not payload.get("choices") and next(_errors_in(payload), None) is not None


def _errors_in(payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Objects of a payload that are errors: where chat, Responses, Realtime and images have them."""
    if payload.get("type") == "error":
        yield payload
    for holder in (payload, payload.get("response")):
        if not isinstance(holder, dict):
            continue
        details = holder.get("status_details")
        for place in (holder, details):
            if isinstance(place, dict) and isinstance(error := place.get("error"), dict):
                yield error


def _objects(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    """Objects of an error's body, the outer ones first."""
    if isinstance(value, dict):
        yield value
        inside: list[Any] = list(value.values())
    else:
        inside = value if isinstance(value, list) else []
    for one in inside[:MOST_MEMBERS] if depth else ():
        yield from _objects(one, depth - 1)


def _words_of(body: bytes, raw: dict[str, Any] | None) -> str:
    """Reason that an error body gives, whatever its shape; "" for markup and for what cannot be read."""
    if raw is not None:
        return _words(raw, DEEPEST)
    if begins_events(body):
        return _words(decode_object(event_data(body)), DEEPEST)
    try:
        return _words(msgspec.json.decode(body), DEEPEST)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _text_of(body)


def _text_of(body: bytes) -> str:
    """Plain text of a body that is no JSON; "" for markup, for what cannot be read, and for JSON that was cut."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        return ""
    return "" if text.lstrip()[:1] in ("{", "[", '"') else _plain(text)


def _words(value: Any, depth: int, *, any_name: bool = False) -> str:
    """Text of an error, searched for under the names that servers give it."""
    if isinstance(value, str):
        return _plain(value)
    if depth <= 0:
        return ""
    if isinstance(value, list):
        found = [words for one in value[:MOST_REASONS] if (words := _words(one, depth - 1, any_name=any_name))]
        return "; ".join(found)
    if not isinstance(value, dict):
        return ""
    for name in REASON_MEMBERS:
        if words := _words(value.get(name), depth - 1, any_name=name in LISTED):
            return f"{where}: {words}" if (where := _place(value.get("loc"))) else words
    if not any_name:
        return ""
    rows = [(str(name), _words(one, depth - 1)) for name, one in list(value.items())[:MOST_REASONS]]
    return "; ".join(f"{name}: {words}" for name, words in rows if words)


def _place(where: Any) -> str:
    """Place in the request that a validator names, such as `body.messages.0`."""
    parts = [str(part) for part in where if isinstance(part, str | int)] if isinstance(where, list) else []
    return ".".join(parts)[:80]


def _plain(text: str) -> str:
    return "" if MARKUP.match(text) or HTML.search(text) else BLANKS.sub(" ", text).strip()


def _shortened(words: str) -> str:
    return words if len(words) <= LONGEST_REASON else words[: LONGEST_REASON - 1].rstrip() + "…"


def _sentence(words: str) -> str:
    return words if words.endswith((".", "!", "?", "…")) else f"{words}."
