"""Obvious way: Starlette + httpx pass-through, no metering. `uvicorn bench.httpx_baseline:app`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """One client for all requests."""
    limits = httpx.Limits(max_connections=2000, max_keepalive_connections=2000)
    async with httpx.AsyncClient(base_url=os.environ["BENCH_UPSTREAM"], limits=limits, timeout=60) as client:
        yield {"client": client}


async def forward(request: Request) -> StreamingResponse:
    """Send on, stream back."""
    client = request.state.client
    body = await request.body()
    upstream = client.build_request(
        "POST", "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    answer = await client.send(upstream, stream=True)
    return StreamingResponse(
        answer.aiter_raw(), answer.status_code, {"content-type": answer.headers["content-type"]}, background=None
    )


app = Starlette(routes=[Route("/v1/chat/completions", forward, methods=["POST"])], lifespan=lifespan)
