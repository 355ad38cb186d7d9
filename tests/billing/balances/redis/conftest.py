"""What several of these tests need."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.servers import RedisServer
from tests.support.stores import Books, close_books, open_books


@pytest.fixture
async def books(redis_server: RedisServer, folder: Path, fresh_postgres: str) -> AsyncIterator[Books]:
    """A store on a Redis of the test's own, over PostgreSQL."""
    books = await open_books(folder, redis_server.url, fresh_postgres)
    yield books
    await close_books(books)
