"""Random requests of a few end users under two keys, over both stores, against a model that shares nothing with them:
a hold is made where the user's window and the key's have room for it, and what was charged stays counted.
"""

import asyncio
import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.money.amounts import Millicredits
from billing.money.holds import Budget, Held, KeyLimits, Refused
from tests.support.servers import RedisServer
from tests.support.stores import Books, close_books, open_books, record, request

pytestmark = pytest.mark.served
OF_USER, OF_KEY, RICH = 1_000, 2_200, 1_000_000
_numbers = itertools.count()

step = st.tuples(
    st.sampled_from(("anna", "bert")),
    st.sampled_from(("key_1", "key_2")),
    st.integers(0, 700),  # what is asked for
    st.integers(0, 900),  # what is due in the end
    st.sampled_from(("settle", "release", "stay")),
    st.sampled_from((0, 0, 0, 1)),  # whether the next day has begun
)


async def _walk(books: Books, steps: list[Any]) -> None:
    account = await books.account(RICH)
    day = 1
    spent: defaultdict[tuple[str, int], int] = defaultdict(int)
    held: defaultdict[str, int] = defaultdict(int)
    for user, key, amount, due, end, later in steps:
        day += later
        period, hold_id = f"2026-11-{day:02d}", f"h{next(_numbers)}"
        of_user = Budget(f"{account}:{user}:day", period, Millicredits(OF_USER), None, user)
        of_key = Budget(f"{account}{key}:total", "total", Millicredits(OF_KEY))
        limits = KeyLimits(budgets=(of_key, of_user))
        room_of_user = OF_USER - spent[user, day] - held[user]
        room_of_key = OF_KEY - spent[key, 0] - held[key]
        found = await books.store.hold(request(hold_id, account, amount, limits, key))
        if amount > min(room_of_user, room_of_key):
            assert isinstance(found, Refused)
            assert found.source == "key_limit"
            assert found.key_available == min(room_of_user, room_of_key)
            continue
        assert isinstance(found, Held), (found, room_of_user, room_of_key)
        held[user] += amount
        held[key] += amount
        if end == "stay":
            continue
        charged = due if end == "settle" else 0  # the account is rich: what is due is charged, also beyond the hold
        if end == "settle":
            await books.store.settle(hold_id, account, Millicredits(due), record(hold_id, account, end_user=user))
        else:
            await books.store.release(hold_id, account)
        held[user] -= amount
        held[key] -= amount
        spent[user, day] += charged
        spent[key, 0] += charged


@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_a_hold_of_an_end_user_is_made_where_every_window_has_room(kind: str, tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "redis")
    if kind == "redis":
        redis.start()
    loop = asyncio.new_event_loop()
    books = loop.run_until_complete(open_books(tmp_path, redis.url if kind == "redis" else ""))

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(step, min_size=5, max_size=40))
    def walks(steps: list[Any]) -> None:
        loop.run_until_complete(asyncio.wait_for(_walk(books, steps), 60))

    try:
        walks()
        loop.run_until_complete(books.flush())
    finally:
        loop.run_until_complete(close_books(books))
        loop.close()
        redis.kill()
