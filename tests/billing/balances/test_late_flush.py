"""A flush that read charges before Redis lost its data must not book them after balances were read from SQL again."""

from pathlib import Path

import redis as redis_py

from billing.balances.redis.store import RedisBalances
from billing.money.amounts import Millicredits
from billing.money.holds import Held, Settled
from tests.support.servers import RedisServer
from tests.support.stores import close_books, open_books, record, request


# I3, I4
async def test_a_late_flush_does_not_cross_the_fence_of_a_rebuilding(redis_server: RedisServer, folder: Path) -> None:
    books = await open_books(folder, redis_server.url)
    account = await books.account(1_000)
    assert isinstance(await books.store.hold(request("r1", account, 300)), Held)
    assert isinstance(await books.store.settle("r1", account, Millicredits(300), record("r1", account)), Settled)
    read_before = await books.store.pending(100)
    assert len(read_before) == 1
    redis_py.Redis(port=redis_server.port).flushall()
    # another process comes first and rebuilds: it reads 1,000 from SQL, and the owner may settle again at once
    other = RedisBalances(redis_server.url, books.ledger, 2, 60_000)
    await other.open()
    # now the flush that was under way commits: too late
    assert await books.ledger.post_current(read_before) == []
    # the owner of the charge learns of the new epoch at its next call at the latest, and settles it again
    assert isinstance(await books.store.hold(request("r2", account, 700)), Held)
    await books.store.release("r2", account)
    assert (await books.store.read(account)).balance == 700
    assert await books.flush() == 1
    assert (await books.ledger.posted(account)).balance == 700
    assert [row.charge_id for row in await books.ledger.usage_of(account, 10)] == ["r1"]
    await other.close()
    await close_books(books)
