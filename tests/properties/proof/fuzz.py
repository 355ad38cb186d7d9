"""Whatever is sent, by clients, upstream or in Stripe's name: no fault of ours, no hang, nothing unmetered, nothing held."""

import base64
import contextlib
import json
import random
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.properties.proof.part import Figures
from tests.support import web
from tests.support.live import start_bank, stripe_environment
from tests.support.raw_upstream import RawUpstream
from tests.support.servers import SAMPLES, Account, Sandbox, Tollkeeper, start_sandbox, wait_until

START = 1_000_000_000
HANG_SECONDS = 20
FAULTS = re.compile(r'"[^"]* failed"|Traceback|"stack"|exception was never retrieved')
"""Lines of the log that are a fault of ours."""
CHAT = {"model": "gpt-4o-mini", "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]}
BODIES: dict[str, Any] = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"model": "gpt-4.1", "max_output_tokens": 16, "input": [{"role": "user", "content": "hello"}]},
    "/v1/embeddings": {"model": "text-embedding-3-small", "input": ["hello"]},
    "/v1/completions": {"model": "gpt-3.5-turbo-instruct", "prompt": "hello", "max_tokens": 8},
    "/v1/images/generations": {"model": "gpt-image-2", "prompt": "a whale", "size": "1024x1024", "quality": "low"},
    "/v1/audio/speech": {"model": "tts-1", "input": "hello", "voice": "alloy"},
    "/v1/moderations": {"input": "hello"},
    "/v1/conversations": {"items": []},
    "/v1/vector_stores": {"name": "docs"},
    "/v1/responses/input_tokens": {"model": "gpt-4.1", "input": "hello"},
}
PATHS = (
    "/v1/models",
    "/v1/files",
    "/v1/responses/resp_1",
    "/api/billing/me",
    "/api/admin/accounts",
    "/credits",
    "/admin",
)
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1.5,
        2**31,
        2**63,
        10**400,
        "",
        " ",
        "\0",
        "\ud800",
        "a" * 5_000,
        [],
        {},
        [[]],
        [None],
        {"": {}},
    ),
    *("auto", "null", "1e999", ["hello"] * 300, {"type": "function"}, {"type": "web_search"}, {"id": "resp_1"}),
)
WORDS = (
    b"\r\n",
    b"\n\n",
    b"data: ",
    b"event: x\n",
    b"[DONE]",
    b":",
    b"{",
    b"}",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"null",
)

FREE = ("/v1/moderations", "/v1/responses/input_tokens")
"""Endpoints whose answers cost nothing."""


class Target(NamedTuple):
    """What is sent to: one account of one server, and what else it talks to."""

    account: Account
    dice: random.Random

    @property
    def server(self) -> Tollkeeper:
        return self.account.server


def fuzzed(folder: Path, size: int, seed: int) -> Figures:
    """Send so many inputs of all kinds."""
    done: Counter[str] = Counter()
    with _served(folder) as (account, sandbox, server):
        for number in range(size):
            dice = random.Random(seed * 1_000_003 + number)
            kind = dice.choices(list(KINDS), weights=[weight for _, weight in KINDS.values()])[0]
            try:
                KINDS[kind][0](Target(account, dice))
            except (AssertionError, TimeoutError, httpx.TimeoutException) as error:
                raise AssertionError(f"input {number} of seed {seed} ({kind}): {error!r}") from error
            done[kind] += 1
        charged = _check(account, sandbox, server)
    with _served_by_raw(folder / "raw") as (account, upstream):
        for number in range(size // 10):
            dice = random.Random(seed * 1_000_033 + number)
            try:
                _answer_of_upstream(Target(account, dice), upstream)
            except (AssertionError, TimeoutError, httpx.TimeoutException) as error:
                raise AssertionError(f"answer {number} of seed {seed}: {error!r}") from error
            done["answers of upstream"] += 1
        _check_quiet(account)
    return {**done, "charged": charged, "unmetered": 0, "faults of ours": 0, "held at the end": 0}


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[tuple[Account, Sandbox, Tollkeeper]]:
    with contextlib.ExitStack() as stack:
        sandbox = start_sandbox()
        stack.callback(sandbox.stop)
        bank, process = start_bank()
        stack.callback(process.wait)
        stack.callback(process.kill)
        environment = {
            "TOLLKEEPER_UPSTREAM__BASE_URL": sandbox.url,
            "TOLLKEEPER_LISTEN__MAX_FAILURES_PER_MINUTE": "100000",
            "TOLLKEEPER_LIMITS__FREE_REQUESTS_PER_MINUTE": "0",
            **stripe_environment(bank),
        }
        server = Tollkeeper(folder, environment)
        stack.callback(server.kill)
        server.start()
        account = server.account(str(START // 1_000))
        account.wait_balance(START)
        yield account, sandbox, server


@contextlib.contextmanager
def _served_by_raw(folder: Path) -> Iterator[tuple[Account, RawUpstream]]:
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        upstream = RawUpstream()
        stack.callback(upstream.close)
        server = Tollkeeper(folder, {"TOLLKEEPER_UPSTREAM__BASE_URL": upstream.url})
        stack.callback(server.kill)
        server.start()
        account = server.account(str(START // 1_000))
        account.wait_balance(START)
        yield account, upstream


def _check_quiet(account: Account) -> None:
    wait_until(lambda: account.held() == 0, 30, "nothing is held")
    assert account.server.process is not None
    assert account.server.process.poll() is None, "the service ended"
    found = [line for line in account.server.log().splitlines() if FAULTS.search(line)]
    assert not found, found[:3]


def _check(account: Account, sandbox: Sandbox, server: Tollkeeper) -> int:
    """Fail unless everything that upstream served and bills has its row; return how many rows there are."""
    _check_quiet(account)
    rows = account.usage()
    billed = [row for row in sandbox.record(brief=1) if row["usage"] and row["finishedAt"] and row["path"] not in FREE]
    charged = {row["requestId"] for row in rows}
    unmetered = [row["path"] for row in billed if row["clientRequestId"] not in charged]
    # what is asked for on a socket has an id of its own
    on_sockets = Counter(
        row["endpoint"] for row in rows if row["requestId"] not in {one["clientRequestId"] for one in billed}
    )
    assert not Counter(unmetered) - on_sockets, (Counter(unmetered), on_sockets)
    assert server.cli("reconcile")["ok"]
    return len(rows)


# -- what clients send ----------------------------------------------------------------------------------------------


def _mutated(value: Any, dice: random.Random) -> Any:
    """Return a copy of a JSON value with one or more members replaced, doubled, moved or left out."""
    value = deepcopy(value)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return value
        holder, name = dice.choice(places)
        way = dice.randrange(5)
        if way == 0:
            del holder[name]
        elif way == 1 and isinstance(holder, dict):
            holder[dice.choice(("stream", "store", "n", "tools", "user", "metadata", "include", "x" * 100))] = deepcopy(
                dice.choice(ODD)
            )
        elif way == 2:
            holder[name] = [holder[name]] if dice.random() < 0.5 else {"a": holder[name]}
        else:
            holder[name] = deepcopy(dice.choice(ODD))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield value, name
        yield from _places(inner)


def _spoiled(data: bytes, dice: random.Random) -> bytes:
    """Return bytes with a few of them cut out, doubled, or replaced."""
    for _ in range(dice.choice((1, 1, 2, 5))):
        start = dice.randrange(len(data) + 1)
        end = min(len(data), start + dice.choice((0, 1, 3, 30)))
        data = (
            data[:start] + dice.choice((b"", data[start:end] * 2, dice.choice(WORDS), dice.randbytes(3))) + data[end:]
        )
    return data


def _body(target: Target) -> None:
    path = target.dice.choice(list(BODIES))
    data = json.dumps(_mutated(BODIES[path], target.dice)).encode()
    if target.dice.random() < 0.3:
        data = _spoiled(data, target.dice)
    headers = {**target.account.headers, "Content-Type": "application/json"}
    _judge(web.post(target.server.url + path, content=data, headers=headers, timeout=HANG_SECONDS))


def _form(target: Target) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b\r\nContent-Disposition: form-data; '
    data = head + b'name="file"; filename="a.mp3"\r\n\r\n' + b"\xff\xfb\x90\0" * 400 + b"\r\n--b--\r\n"
    headers = {**target.account.headers, "Content-Type": "multipart/form-data; boundary=b"}
    url = target.server.url + target.dice.choice(("/v1/audio/transcriptions", "/v1/files", "/v1/images/edits"))
    _judge(web.post(url, content=_spoiled(data, target.dice), headers=headers, timeout=HANG_SECONDS))


def _path(target: Target) -> None:
    path = _spoiled(target.dice.choice((*PATHS, *BODIES)).encode(), target.dice).decode("latin-1")
    path = "/" + re.sub(r"[^\x21-\x7e]|[#?\\]", "%00", path).lstrip("/")
    query = target.dice.choice(("", "?limit=0", "?limit=999999999", "?after=%00", "?a=b&a=b", "?" + "x=1&" * 60))
    method = target.dice.choice(("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "BREW"))
    url = httpx.URL(target.server.url).copy_with(raw_path=(path + query).encode())
    _judge(web.request(method, str(url), headers=target.account.headers, timeout=HANG_SECONDS))


def _judge(answer: httpx.Response) -> None:
    assert answer.status_code < 500 or answer.status_code in (501, 503), (answer.status_code, answer.text[:300])
    if answer.status_code >= 400 and answer.request.url.path.startswith("/v1/") and answer.request.method != "HEAD":
        error = answer.json()["error"]
        assert error["message"], answer.text
        assert error["type"], answer.text


def _head(target: Target) -> None:
    """A whole request whose bytes are spoiled, on a connection of its own: an answer or an end, and no 5xx."""
    body = json.dumps(CHAT).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {target.account.api_key}\r\n"
    request = head.encode() + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", target.server.port), HANG_SECONDS) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(_spoiled(request, target.dice))
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65_536):
                answer += part
    statuses = re.findall(rb"^HTTP/1\.1 (\d+)", answer, re.MULTILINE)
    assert all(status < b"500" for status in statuses), answer[:300]


def _frames(target: Target) -> None:
    """A socket that is sent frames which nobody would send."""
    realtime = target.dice.random() < 0.5
    url = target.server.v1.replace("http://", "ws://") + (
        "/realtime?model=gpt-realtime-2.1" if realtime else "/responses"
    )
    sound = base64.b64encode(b"\0" * 4_800).decode()
    frames: list[Any] = (
        [
            {"type": "session.update", "session": {"type": "realtime", "output_modalities": ["text"]}},
            {"type": "input_audio_buffer.append", "audio": sound},
            {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": []}},
            {"type": "response.create", "response": {"max_output_tokens": 8}},
        ]
        if realtime
        else [{"type": "response.create", "model": "gpt-4.1", "input": "hello", "max_output_tokens": 16}] * 2
    )
    with (
        contextlib.suppress(WebSocketException, ConnectionError, TimeoutError),
        connect(url, additional_headers=target.account.headers, open_timeout=HANG_SECONDS, close_timeout=1) as ws,
    ):
        for frame in frames:
            data = json.dumps(_mutated(frame, target.dice)).encode()
            data = _spoiled(data, target.dice) if target.dice.random() < 0.3 else data
            ws.send(data if target.dice.random() < 0.1 else data.decode("utf-8", "replace"))
        for _ in range(target.dice.randint(0, 4)):
            ws.recv(timeout=0.2)


def _webhook(target: Target) -> None:
    event = {"id": "evt_1", "type": "checkout.session.completed", "livemode": False, "data": {"object": {"id": "cs_1"}}}
    data = json.dumps(_mutated(event, target.dice)).encode()
    signed = target.dice.choice(("", "t=1,v1=00", "t=x", "v1=" + "0" * 64, "t=9999999999,v1=" + "0" * 64, ",,=,"))
    url = f"{target.server.url}/webhooks/stripe"
    answer = web.post(url, content=data, headers={"Stripe-Signature": signed}, timeout=HANG_SECONDS)
    assert 400 <= answer.status_code < 500 or answer.status_code == 503, (answer.status_code, answer.text[:300])


KINDS: dict[str, tuple[Callable[[Target], None], int]] = {
    "bodies": (_body, 50),
    "forms": (_form, 8),
    "paths": (_path, 15),
    "heads": (_head, 12),
    "sockets": (_frames, 5),
    "webhooks": (_webhook, 10),
}

# -- what upstream sends --------------------------------------------------------------------------------------------

STREAMS = tuple(sorted(SAMPLES.rglob("*.sse")))


def _answer_of_upstream(target: Target, upstream: RawUpstream) -> None:
    """An answer of upstream with spoiled bytes: the client has its end, and nothing is charged above the hold."""
    dice = target.dice
    stream = bool(STREAMS) and dice.random() < 0.7
    if stream:
        data, kind = dice.choice(STREAMS).read_bytes(), b"text/event-stream"
    else:
        usage = {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9}
        choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        answer = {"id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-4o-mini", "choices": [choice]}
        data, kind = json.dumps(_mutated({**answer, "usage": usage}, dice)).encode(), b"application/json"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nConnection: close\r\n\r\n"
    upstream.reply = _spoiled(head, dice) + data if dice.random() < 0.2 else head + _spoiled(data, dice)
    body = {**CHAT, "stream": stream}
    try:
        found = web.post(
            f"{target.server.v1}/chat/completions", json=body, headers=target.account.headers, timeout=HANG_SECONDS
        )
    except httpx.RemoteProtocolError:
        return  # it broke off, as upstream did
    assert found.status_code != 500, found.text[:300]
