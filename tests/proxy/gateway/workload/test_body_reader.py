"""Heavy bodies are read beside the event loop, one at a time, and what is refused by its shape is not read at all."""

import asyncio
import threading

import pytest

from proxy.gateway.workload.body_reader import BodyReader
from proxy.gateway.workload.body_shape import LARGE_BODY, MOST_CONTAINERS
from proxy.web.rejections import Rejection

pytestmark = pytest.mark.asyncio
LARGE = b'{"a":"' + b"x" * LARGE_BODY + b'"}'


def thread_of(_body: bytes, _content_type: bytes) -> int:
    return threading.get_ident()


async def test_a_small_body_is_read_at_once_and_a_large_one_beside_the_loop() -> None:
    reader = BodyReader()
    assert await reader.read(b"{}", b"", thread_of) == threading.get_ident()
    assert reader.read_beside == 0
    assert await reader.read(LARGE, b"", thread_of) != threading.get_ident()
    assert reader.read_beside == 1
    reader.close()


async def test_the_loop_turns_while_a_body_is_read_and_no_two_are_read_together() -> None:
    reader, running, most, turns, done = BodyReader(), 0, 0, 0, threading.Event()

    def slow(_body: bytes, _content_type: bytes) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        done.wait(10)
        running -= 1

    reads = [asyncio.create_task(reader.read(LARGE, b"", slow)) for _ in range(5)]
    while turns < 100:  # the loop turns although nothing is read to its end
        await asyncio.sleep(0)
        turns += 1
    assert not any(one.done() for one in reads)
    done.set()
    await asyncio.gather(*reads)
    assert most == 1
    reader.close()


async def test_a_body_of_a_refused_shape_is_never_read() -> None:
    reader, read = BodyReader(), []
    body = b"[" + b",".join([b"{}"] * (MOST_CONTAINERS + 1)) + b"]"
    with pytest.raises(Rejection):
        await reader.read(body, b"application/json", lambda body, _: read.append(body))
    assert read == []
    await reader.read(body, b"multipart/form-data; boundary=x", lambda body, _: read.append(body))
    assert read == [body]  # a file is no JSON, whatever stands in it
    reader.close()
