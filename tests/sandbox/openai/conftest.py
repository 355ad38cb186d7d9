"""A simulator per test, and the ways to talk to it: the OpenAI SDK, plain HTTP, raw bytes."""

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from sandbox import Server, Settings, start
from sandbox.openai.tokens.count import load_encoding

KEY = "sk-sandbox"


class Box:
    """A running simulator with its clients."""

    def __init__(self, server: Server, http: httpx.AsyncClient, sdk: openai.AsyncOpenAI) -> None:
        self.server, self.http, self.sdk = server, http, sdk

    def body(self, directive: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        """A chat request that carries the directive."""
        text = "Name an animal." + (f" [[sandbox {json.dumps(directive)}]]" if directive else "")
        message = {"role": "user", "content": text}
        return {"model": "gpt-5.4-mini", "messages": [message], **fields}

    def stream_body(self, directive: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        """The same, streamed with usage."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return self.body(directive, **(options | fields))

    async def chat(self, directive: dict[str, Any] | None = None, **fields: Any) -> httpx.Response:
        """One chat request that is not streamed."""
        return await self.http.post("/v1/chat/completions", json=self.body(directive, **fields))

    async def events(
        self,
        directive: dict[str, Any] | None = None,
        path: str = "/v1/chat/completions",
        **fields: Any,
    ) -> list[str]:
        """The data of all events of a stream."""
        body = self.stream_body(directive, **fields)
        if path == "/v1/completions":
            body["prompt"] = body.pop("messages")[0]["content"]
        answer = await self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]

    async def raw(self, body: dict[str, Any], *, wait_s: float = 5.0, extra: str = "") -> bytes:
        """Everything the server writes to one connection until it closes it (or the timeout)."""
        data = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: sandbox\r\n"
            f"authorization: Bearer {KEY}\r\ncontent-length: {len(data)}\r\n{extra}\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(head.encode() + data)
        received = b""
        try:
            async with asyncio.timeout(wait_s):
                while part := await reader.read(65536):
                    received += part
        except TimeoutError:
            received += b"<silence>"
        except ConnectionResetError:
            received += b"<reset>"
        writer.close()
        return received

    async def last(self) -> dict[str, Any]:
        """The newest record, over HTTP as tests of the proxy see it."""
        answer = (await self.http.get("/__sandbox/record")).json()
        return answer["records"][-1]


def _png(width: int, height: int) -> str:
    """A data URL of the head of a PNG: enough for a reader of its size."""
    raw = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", width, height)
    return "data:image/png;base64," + base64.b64encode(raw).decode()


@pytest.fixture(scope="session", autouse=True)
def loaded_encodings() -> None:
    """Loading takes longer than the time limits of some tests."""
    for name in ("cl100k_base", "o200k_base"):
        load_encoding(name)


@pytest.fixture
def png() -> Callable[[int, int], str]:
    """Makes image URLs of a given size in pixels."""
    return _png


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of the simulator; a test module may override the fixture."""
    return Settings(record=tmp_path / "record.jsonl")


@pytest_asyncio.fixture
async def box(settings: Settings) -> AsyncIterator[Box]:
    """A running simulator."""
    server = await start(settings)
    headers = {"authorization": f"Bearer {KEY}"}
    base = f"http://127.0.0.1:{server.port}"
    async with (
        httpx.AsyncClient(base_url=base, headers=headers, trust_env=False) as http,
        openai.AsyncOpenAI(api_key=KEY, base_url=server.url, max_retries=0) as sdk,
    ):
        yield Box(server, http, sdk)
    await server.close()
