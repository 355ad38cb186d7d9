"""The embedded store: who is cancelled in the moment in which its write reaches the disk."""

import asyncio
from pathlib import Path

import pytest

from billing.balances.embedded import EmbeddedBalances


async def test_who_is_cancelled_as_its_write_ends_is_cancelled(tmp_path: Path) -> None:
    """Who hears nothing of it goes on for a client that has left: a socket's relay stayed open for ever."""
    store = EmbeddedBalances(tmp_path / "embedded.db", None, 2)  # type: ignore[arg-type]  # nothing is read
    commit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(store._committed(commit))
    await asyncio.sleep(0.01)
    commit.set_result(None)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
