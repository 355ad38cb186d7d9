"""A static upstream as fast as Python can be: one prepared answer, or 50 prepared SSE chunks in separate writes."""

import asyncio
import json
import re
import ssl
import sys
from functools import cache

import uvloop

BYTES_PER_TOKEN = 10
"""Long tokens: a megabyte must fit the model's window, or its usage is not believed and counted."""
USAGE = {"prompt_tokens": 250, "completion_tokens": 50, "total_tokens": 300}
STREAMS = re.compile(rb'"stream": ?true')
PAD = "lorem ipsum dolor sit amet " * 30


@cache
def json_answer(read: int) -> bytes:
    """About 1 kB, as a chat completion of a prompt of so many bytes: a report of far too few tokens is counted after."""
    message = {"role": "assistant", "content": PAD, "refusal": None}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    body = {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1795000000,
        "model": "gpt-4o-mini",
        "choices": choices,
    }
    prompt = read // BYTES_PER_TOKEN
    usage = {**USAGE, "prompt_tokens": prompt, "total_tokens": prompt + USAGE["completion_tokens"]}
    raw = json.dumps({**body, "usage": usage, "service_tier": "default"}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(raw), raw)


def stream_chunks() -> list[bytes]:
    """50 content chunks, the usage chunk, [DONE]; each an HTTP chunk."""
    base = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1795000000,
        "model": "gpt-4o-mini",
        "service_tier": "default",
    }
    events = [
        {
            **base,
            "choices": [{"index": 0, "delta": {"content": f" word{n}"}, "finish_reason": None}],
            "usage": None,
            "obfuscation": "xyz",
        }
        for n in range(50)
    ]
    events.append({**base, "choices": [], "usage": USAGE})
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]
    chunks = [b"%x\r\n%s\r\n" % (len(line), line) for line in lines]
    chunks[-1] += b"0\r\n\r\n"
    return chunks


class Static(asyncio.Protocol):
    """Answers every request head + body it sees with the prepared bytes."""

    chunks = stream_chunks()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    pace = 0.0
    repeat = 1

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self.buffer) < end + 4 + length:
            return
        body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
        if STREAMS.search(body):
            self.transport.write(self.head)
            self.sequence = self.chunks[:-2] * self.repeat + self.chunks[-2:]
            self._next(0)
        else:
            self.transport.write(json_answer(length))

    def _next(self, number: int) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(self.sequence[number])
        if number + 1 < len(self.sequence):
            if self.pace:
                self.loop.call_later(self.pace, self._next, number + 1)
            else:
                self.loop.call_soon(self._next, number + 1)


async def main() -> None:
    """`python -m bench.upstream PORT [PACE_MS] [REPEAT] [CERTIFICATE KEY]`."""
    port = int(sys.argv[1])
    Static.pace = float(sys.argv[2]) / 1000 if len(sys.argv) > 2 else 0.0
    Static.repeat = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    secure = None
    if len(sys.argv) > 5:
        secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        secure.load_cert_chain(*sys.argv[4:6])
    server = await asyncio.get_running_loop().create_server(Static, "127.0.0.1", port, backlog=4096, ssl=secure)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
