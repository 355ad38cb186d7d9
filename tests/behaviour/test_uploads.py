"""Large multipart bodies: bounded each, and bounded together; the file reaches the upstream byte for byte."""

import hashlib
import socket
from collections.abc import Callable

import httpx
import pytest

from tests.support import web
from tests.support.media import wav
from tests.support.served import Customer
from tests.support.servers import Sandbox, Tollkeeper, wait_until

FORM = {"model": "gpt-4o-transcribe"}


@pytest.fixture
def narrow(served: Callable[..., Tollkeeper], customer_of: Callable[[Tollkeeper], Customer]) -> Customer:
    return customer_of(
        served(TOLLKEEPER_LISTEN__MAX_UPLOAD_BYTES="2000000", TOLLKEEPER_LISTEN__MAX_BUFFERED_BYTES="3000000")
    )


def send(customer: Customer, sound: bytes) -> httpx.Response:
    files = {"file": ("a.wav", sound, "audio/wav")}
    url = customer.server.v1 + "/audio/transcriptions"
    return web.post(url, data=FORM, files=files, headers=customer.headers, timeout=30)


def test_a_file_arrives_byte_for_byte(narrow: Customer) -> None:
    sound = wav(200)  # 1.6 MB
    answer = send(narrow, sound)
    assert answer.status_code == 200, answer.text
    sent = narrow.served(answer.headers["x-request-id"])["requestBody"]["file"]
    assert (sent["bytes"], sent["sha256"]) == (len(sound), hashlib.sha256(sound).hexdigest())


def test_a_file_over_the_limit_is_refused_without_a_call(narrow: Customer, sandbox: Sandbox) -> None:
    sandbox.clear()
    answer = send(narrow, wav(260))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert sandbox.record() == []


def test_uploads_together_are_bounded_and_room_comes_back(narrow: Customer) -> None:
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {narrow.api_key}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1900000\r\n\r\n--b\r\n"
    )
    with socket.create_connection(("127.0.0.1", narrow.server.port), timeout=10) as slow:
        slow.sendall(head.encode())
        refused = wait_until(
            lambda: (answer := send(narrow, wav(190))).status_code == 503 and answer, 10, "the room is taken"
        )
        assert refused.json()["error"]["code"] == "too_many_uploads"
        assert refused.headers["retry-after"]
        small = narrow.post(narrow.body(max_tokens=5))
        assert small.status_code == 200
    wait_until(lambda: send(narrow, wav(190)).status_code == 200, 10, "the room is free again")
