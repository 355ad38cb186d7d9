"""`books`: each balance store in turn, over SQLite."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.billing.stores import Books, close_books, open_books
from tests.support.servers import RedisServer


@pytest.fixture(params=["embedded", "redis"])
async def books(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Books]:
    redis_url = ""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        redis_url = server.url
    opened = await open_books(folder, redis_url)
    yield opened
    await close_books(opened)
