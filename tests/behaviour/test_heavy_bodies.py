"""Bodies that are work to read: only for who could be served, and a cheap 4xx where no model could read them."""

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.served import Customer, MakeCustomer
from tests.support.servers import Sandbox, Tollkeeper

SIZE = 20_000_000
RESPONSES, CHAT, EMBEDDINGS = "/v1/responses", "/v1/chat/completions", "/v1/embeddings"
HEAD = b'{"model":"gpt-4.1","input":'


def filled(unit: bytes, size: int = SIZE) -> bytes:
    return b",".join([unit] * (size // (len(unit) + 1)))


def names(number: int) -> bytes:
    return b"{" + b",".join(b'"%x":1' % one for one in range(number)) + b"}"


Shape = Callable[[], bytes]
"""Makes a body: a second's work and 20 MB each, so only where it is sent."""
SHAPES: dict[str, tuple[str, Shape]] = {
    "objects in a message": (
        RESPONSES,
        lambda: HEAD + b'[{"role":"user","content":[' + filled(b'{"a":{}}') + b"]}]}",
    ),
    "lists": (RESPONSES, lambda: HEAD + b"[" + filled(b"[]") + b"]}"),
    "objects": (RESPONSES, lambda: HEAD + b"[" + filled(b"{}") + b"]}"),
    "names": (RESPONSES, lambda: HEAD + b"[" + names(1_800_000) + b"]}"),
    "token ids": (EMBEDDINGS, lambda: b'{"model":"text-embedding-3-small","input":[' + filled(b"1") + b"]}"),
    "questions": (
        "/v1/decisions",
        lambda: b'{"model":"gpt-6-luna","input":"x","questions":[' + filled(b"{}") + b"]}",
    ),
    "messages": (CHAT, lambda: b'{"model":"gpt-4.1","messages":[' + filled(b'{"role":"user","content":"x"}') + b"]}"),
    "unread members": (
        CHAT,
        lambda: b'{"model":"gpt-4.1","messages":[{"role":"user","content":"x"}],"metadata":[' + filled(b"{}") + b"]}",
    ),
    "a moderation": ("/v1/moderations", lambda: b'{"input":[' + filled(b"{}") + b"]}"),
    "items of a conversation": ("/v1/conversations", lambda: b'{"items":[' + filled(b"{}") + b"]}"),
    "a session": ("/v1/realtime/client_secrets", lambda: b'{"session":{"a":[' + filled(b"{}") + b"]}}"),
}
DEEP = {
    "lists": b"[" * 980 + b"1" + b"]" * 980,
    "objects": b'{"a":' * 980 + b"1" + b"}" * 980,
    "more": b"[" * 5_000 + b"]" * 5_000,
    "content": b'[{"role":"user","content":' + b"[" * 700 + b"]" * 700 + b"}]",
}


@pytest.fixture
def poor(served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox) -> Customer:
    return new_customer(served(), "0")


def answered_beside(server: Tollkeeper, work: Callable[[], httpx.Response]) -> tuple[httpx.Response, int]:
    """What the work was answered, and how often /healthz answered meanwhile."""
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    times = 0
    while thread.is_alive():
        times += web.get(f"{server.url}/healthz", timeout=30).status_code == 200
    return answers[0], times


@pytest.mark.parametrize("shape", SHAPES)
def test_who_cannot_pay_has_nothing_parsed(shape: str, poor: Customer, sandbox: Sandbox) -> None:
    path, make = SHAPES[shape]
    body = make()
    answer, healthy = answered_beside(poor.server, lambda: poor.post(body, path, content_type="application/json"))
    assert (answer.status_code, healthy > 0) == (402, True), answer.text
    assert sandbox.record() == []


@pytest.mark.parametrize("shape", SHAPES)
def test_what_no_model_could_read_is_a_400_by_its_shape(shape: str, customer: Customer, sandbox: Sandbox) -> None:
    path, make = SHAPES[shape]
    body = make()
    answer, healthy = answered_beside(
        customer.server, lambda: customer.post(body, path, content_type="application/json")
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_values"), answer.text
    assert healthy > 0
    assert sandbox.record() == []


def test_a_key_over_its_rate_has_nothing_parsed(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    hurried = new_customer(served(), requests_per_minute=1)
    assert hurried.post(hurried.body(max_tokens=5)).status_code == 200
    answer = hurried.post(SHAPES["objects"][1](), RESPONSES)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")


def test_a_look_takes_nothing_of_the_keys_minute(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    slow = new_customer(served(), requests_per_minute=2)
    for _ in range(2):
        assert slow.post(slow.body(text="word " * 20_000, max_tokens=5)).status_code == 200
    assert slow.post(slow.body(max_tokens=5)).status_code == 429


@pytest.mark.parametrize("deep", DEEP)
@pytest.mark.parametrize("path", [RESPONSES, CHAT, EMBEDDINGS, "/v1/decisions", "/v1/moderations", "/v1/conversations"])
def test_what_is_nested_without_end_is_a_400_everywhere(deep: str, path: str, customer: Customer) -> None:
    member = {CHAT: b"messages", "/v1/conversations": b"items"}.get(path, b"input")
    body = b'{"model":"gpt-4.1","%b":%b}' % (member, DEEP[deep])
    for sent in (body, b'{"model":"gpt-4.1","metadata":%b,"%b":[]}' % (DEEP[deep], member)):
        answer = customer.post(sent, path)
        assert 400 <= answer.status_code < 500, answer.text


@pytest.mark.parametrize("path", [RESPONSES, CHAT, EMBEDDINGS, "/v1/decisions", "/v1/moderations", "/v1/conversations"])
def test_a_number_of_5000_digits_is_no_fault_of_ours(path: str, customer: Customer) -> None:
    member = {CHAT: b"messages", "/v1/conversations": b"items"}.get(path, b"input")
    number = b"9" * 5_000
    for value in (b'[{"a":%b}]' % number, number, b"[%b]" % number, b"[-%b.0e9]" % number):
        for body in (b'{"model":"gpt-4.1","%b":%b}', b'{"model":"gpt-4.1","max_output_tokens":%b,"%b":[]}'):
            order = (member, value) if body.index(b"%b") < 24 else (value, member)
            assert 400 <= customer.post(body % order, path).status_code < 500


def test_a_query_of_41_fields_is_a_400(customer: Customer) -> None:
    query = "&".join(f"include={number}" for number in range(41))
    for path in ("/responses/resp_x", "/conversations/conv_x/items", "/files", "/batches", "/chat/completions"):
        answer = web.get(f"{customer.server.v1}{path}?{query}", headers=customer.headers, timeout=10)
        assert answer.status_code in (400, 404), answer.text
    answer = web.get(f"{customer.server.v1}/files?{query}", headers=customer.headers, timeout=10)
    assert answer.json()["error"]["code"] == "too_many_parameters"
    answer = web.get(f"{customer.server.v1}/files?limit=000001{'1' * 5_000}", headers=customer.headers, timeout=10)
    assert answer.status_code == 400


BROKEN = b"\xe4\xff"
"""No UTF-8."""
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "a name": (CHAT, {"messages": [{"role": "user", "!!ontent": "x"}]}),
    "a value": (CHAT, {"messages": [{"role": "user", "content": "!!"}]}),
    "a name that is not read": (CHAT, {"messages": [{"role": "user", "content": "x"}], "metadata": {"a": {"!!": 1}}}),
    "a tool": (CHAT, {"messages": [], "tools": [{"type": "function", "function": {"parameters": {"!!": {}}}}]}),
    "an item": (RESPONSES, {"input": [{"role": "user", "!!": "x"}]}),
    "a moderation": ("/v1/moderations", {"input": "x", "model": "!!"}),
    "an embedding": (EMBEDDINGS, {"input": ["x", "!!"]}),
    "a speech": ("/v1/audio/speech", {"input": "x", "voice": {"!!": 1}}),
    "a picture": ("/v1/images/generations", {"prompt": "x", "user": "!!"}),
    "a conversation": ("/v1/conversations", {"metadata": {"!!": "x"}}),
    "a secret": ("/v1/realtime/client_secrets", {"session": {"type": "realtime", "!!": 1}}),
    "a batch": ("/v1/batches", {"metadata": {"!!": "x"}}),
}


@pytest.mark.parametrize("place", BODIES)
def test_what_is_no_utf8_is_refused_wherever_it_stands(place: str, customer: Customer, sandbox: Sandbox) -> None:
    path, fields = BODIES[place]
    body = json.dumps({"model": "gpt-4o-mini", **fields}).encode()
    answer = customer.post(body.replace(b"!!", BROKEN), path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json"), answer.text
    assert sandbox.record() == []


@pytest.mark.parametrize("part", [b'"language"\r\n\r\n!!', b'"!!"\r\n\r\nx', b'"prompt"; a="!!"\r\n\r\nx'])
def test_a_form_is_utf8_but_for_its_files(part: bytes, customer: Customer, sandbox: Sandbox) -> None:
    lines = (b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-4o-transcribe\r\n', part)
    body = lines[0] + b"--b\r\nContent-Disposition: form-data; name=" + part.replace(b"!!", BROKEN) + b"\r\n--b--\r\n"
    answer = customer.post(body, "/v1/audio/transcriptions", content_type="multipart/form-data; boundary=b")
    assert answer.status_code == 400, answer.text
    assert sandbox.record() == []
