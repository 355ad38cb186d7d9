"""1,000 concurrent slow streams through one worker: all complete, none stalls. Prints JSON."""

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

import uvloop


async def one(host: str, port: int, request: bytes, gaps: list[float], done: list[int]) -> None:
    """One stream: the longest silence between two reads, and whether it ended with [DONE]."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    last, worst, tail = time.monotonic(), 0.0, b""
    while data := await reader.read(65536):
        now = time.monotonic()
        worst, last = max(worst, now - last), now
        tail = (tail + data)[-64:]
        if b"[DONE]" in tail:
            done.append(1)
            break
    gaps.append(worst)
    writer.close()


async def main() -> None:
    """`python -m bench.slow_streams URL KEY COUNT`."""
    port, key, count = urlsplit(sys.argv[1]).port or 80, sys.argv[2], int(sys.argv[3])
    body = json.dumps(
        {
            "model": "gpt-4o-mini",
            "stream": True,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "x" * 900}],
        }
    )
    body = body.replace('"stream": true', '"stream":true')
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    gaps: list[float] = []
    done: list[int] = []
    started = time.monotonic()
    await asyncio.gather(*(one("127.0.0.1", port, request, gaps, done) for _ in range(count)))
    print(
        json.dumps(
            {
                "completed": len(done),
                "longest_gap_s": round(max(gaps), 3),
                "seconds": round(time.monotonic() - started, 2),
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main())
