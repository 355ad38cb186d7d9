"""1,000 concurrent slow streams through one worker: all complete, none stalls. Prints JSON."""

import asyncio
import json
import sys
import time
from typing import NamedTuple
from urllib.parse import urlsplit

import uvloop

from bench.processes import body as chat


class Stream(NamedTuple):
    """Seconds until a stream began, and of the longest silence in it; whether it ended with [DONE]."""

    began: float
    gap: float
    whole: bool


async def one(host: str, port: int, request: bytes) -> Stream:
    """Read one stream."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    last, times, tail = time.monotonic(), list[float](), b""
    while b"[DONE]" not in tail and (data := await reader.read(65536)):
        now = time.monotonic()
        times.append(now - last)
        last, tail = now, (tail + data)[-64:]
    writer.close()
    return Stream(times[0] if times else 0.0, max(times[1:], default=0.0), b"[DONE]" in tail)


async def main() -> None:
    """`python -m bench.slow_streams URL KEY COUNT`."""
    port, key, count = urlsplit(sys.argv[1]).port or 80, sys.argv[2], int(sys.argv[3])
    body = chat(1_000, stream=True)
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    started = time.monotonic()
    streams = await asyncio.gather(*(one("127.0.0.1", port, request) for _ in range(count)))
    print(
        json.dumps(
            {
                "completed": sum(stream.whole for stream in streams),
                "last_began_s": round(max(stream.began for stream in streams), 3),
                "longest_gap_s": round(max(stream.gap for stream in streams), 3),
                "seconds": round(time.monotonic() - started, 2),
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main())
