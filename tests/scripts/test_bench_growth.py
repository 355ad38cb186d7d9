"""What `make bench-growth` measures is there to be measured: every call and every report, on a small ledger."""

from pathlib import Path

from bench.growth.data import Size, database_bytes, ledger
from bench.growth.measure import per_call, reports


async def test_all_that_is_measured_can_be_called(tmp_path: Path) -> None:
    async with ledger("sqlite", tmp_path, Size(600, 10)) as database:
        for call in (*per_call(database).values(), *reports(database).values()):
            await call()
        assert await database_bytes(database) > 100_000
