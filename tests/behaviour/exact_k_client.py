"""One of the client processes of test_exact_k: fires N requests at once, prints what came back as JSON."""

import asyncio
import json
import sys


async def one(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    body = await reader.readexactly(int(headers["content-length"]))
    writer.close()
    return int(lines[0].split()[1]), headers, body


async def main() -> None:
    """`exact_k_client PORT KEY COUNT BODY`; starts when a line arrives on stdin, so that all processes start together."""
    port, key, count, body = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    sys.stdin.readline()
    found = await asyncio.gather(*(one(port, request) for _ in range(count)))
    print(json.dumps([(status, headers.get("x-request-id"), json.loads(answer)) for status, headers, answer in found]))


asyncio.run(main())
