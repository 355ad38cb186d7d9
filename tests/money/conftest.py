"""`sql`: a migrated database with a ledger and a balance store, on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.billing.stores import Books, close_books, open_books
from tests.money.shop import Shop, open_shop


@pytest.fixture(params=["sqlite", "postgresql"])
async def sql(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Books]:
    url = request.getfixturevalue("fresh_postgres") if request.param == "postgresql" else ""
    opened = await open_books(folder, "", url)
    yield opened
    await close_books(opened)


@pytest.fixture
def shop(sql: Books) -> Shop:
    """Money in over each database."""
    return open_shop(sql)
