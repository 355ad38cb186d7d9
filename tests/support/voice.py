"""Browser voice: a secret, a call with it, and the browser played by the sandbox's control path."""

import base64
from fractions import Fraction
from typing import Any

import httpx

from tests.support import web
from tests.support.servers import Account, Sandbox, Tollkeeper, wait_until

VOICE = "gpt-realtime-2.1"
OFFER = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=rtpmap:111 opus/48000/2\r\n"
TEXT = {"output_modalities": ["text"]}
SECOND = base64.b64encode(bytes(48_000)).decode()
PRICES = {"text": "4", "audio": "32", "image": "5", "cached": "0.4", "text_out": "24", "audio_out": "64"}
"""USD per million tokens of gpt-realtime-2.1."""
WHISPER_MILLICREDITS_A_SECOND = Fraction(6_000, 60)


def make_secret(account: Account, code: int = 200, **body: Any) -> Any:
    """The answer of client_secrets."""
    answer = web.post(f"{account.server.v1}/realtime/client_secrets", json=body, headers=account.headers, timeout=20)
    assert answer.status_code == code, answer.text
    return answer.json()


def secret_of(account: Account, **session: Any) -> str:
    made = make_secret(account, session={"type": "realtime", "model": VOICE, **session})
    return str(made["value"])


def open_call(server: Tollkeeper, secret: str, offer: str = OFFER, query: str = "", **headers: str) -> httpx.Response:
    """As a browser does."""
    sent = {"Authorization": f"Bearer {secret}", "Content-Type": "application/sdp", **headers}
    return web.post(f"{server.v1}/realtime/calls{query}", content=offer.encode(), headers=sent, timeout=30)


def call_of(account: Account, **session: Any) -> str:
    """The id of a call that runs."""
    answer = open_call(account.server, secret_of(account, **session))
    assert answer.status_code == 201, answer.text
    assert answer.text.startswith("v=0")
    return answer.headers["location"].rpartition("/")[2]


def hang_up(account: Account, call_id: str) -> httpx.Response:
    return web.post(f"{account.server.v1}/realtime/calls/{call_id}/hangup", headers=account.headers, timeout=20)


def control(sandbox: Sandbox) -> str:
    return f"http://127.0.0.1:{sandbox.port}/__sandbox/realtime/calls"


def play(sandbox: Sandbox, call_id: str, *events: dict[str, Any]) -> httpx.Response:
    """Send events on the data channel of a call's browser."""
    return web.post(f"{control(sandbox)}/{call_id}/events", json=list(events), timeout=10)


def leave(sandbox: Sandbox, call_id: str) -> None:
    """Close a call's browser, as far as the sandbox knows."""
    web.post(f"{control(sandbox)}/{call_id}/leave", timeout=10).raise_for_status()


def calls(sandbox: Sandbox) -> dict[str, dict[str, Any]]:
    """The calls that the sandbox knows."""
    found = web.get(control(sandbox), timeout=10).json()["calls"]
    return {row["id"]: row for row in found}


def wait_ended(sandbox: Sandbox, call_id: str, seconds: float = 10) -> None:
    wait_until(lambda: not calls(sandbox)[call_id]["running"], seconds, f"{call_id} has ended")


def answers(sandbox: Sandbox, call_id: str) -> list[dict[str, Any]]:
    """The sandbox's own record of what a call used: its responses and transcriptions, finished."""
    found = [row for row in sandbox.record() if row.get("callId") == call_id and row["method"] == "WS"]
    return [row for row in found if row["finishedAt"] and row["usage"]]


def wait_answers(sandbox: Sandbox, call_id: str, number: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = wait_until(
        lambda: len(got := answers(sandbox, call_id)) >= number and got, 15, f"{number} answers"
    )
    return found


def bill(rows: list[dict[str, Any]]) -> int:
    """Millicredits of what the sandbox recorded, each rounded up once."""
    return sum(charge_of(row["usage"]) for row in rows)


def charge_of(usage: dict[str, Any]) -> int:
    if "seconds" in usage:
        return -(-Fraction(usage["seconds"]) * WHISPER_MILLICREDITS_A_SECOND // 1)
    into, out = usage["input_token_details"], usage["output_token_details"]
    kept = into.get("cached_tokens_details") or {}
    total = Fraction(0)
    for kind in ("text", "audio", "image"):
        cached = kept.get(f"{kind}_tokens", 0)
        rate = Fraction("0.5" if kind == "image" else PRICES["cached"])
        total += (into.get(f"{kind}_tokens", 0) - cached) * Fraction(PRICES[kind]) + cached * rate
    total += out["text_tokens"] * Fraction(PRICES["text_out"]) + out["audio_tokens"] * Fraction(PRICES["audio_out"])
    return -(-total.numerator // total.denominator)


def says(text: str) -> dict[str, Any]:
    """A user's message, as an event."""
    content = [{"type": "input_text", "text": text}]
    return {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}


RESPOND = {"type": "response.create"}
SPEAK = {"type": "input_audio_buffer.append", "audio": SECOND}
COMMIT = {"type": "input_audio_buffer.commit"}
