"""Lists of an account come one after the other, those of others beside them; too many at once are told to come again."""

import asyncio

import pytest

from proxy.gateway.workload.list_turns import MOST_WAITING, ListTurns
from proxy.web.rejections import Rejection


async def test_an_account_lists_one_after_the_other_and_others_beside_it() -> None:
    turns, at_once, most = ListTurns(), dict.fromkeys("ab", 0), dict.fromkeys("ab", 0)
    together = 0

    async def look_up(account: str) -> None:
        nonlocal together
        async with turns.turn(account):
            at_once[account] += 1
            most[account] = max(most[account], at_once[account])
            together = max(together, sum(at_once.values()))
            for _ in range(3):
                await asyncio.sleep(0)
            at_once[account] -= 1

    await asyncio.gather(*(look_up(account) for account in "ab" for _ in range(MOST_WAITING)))
    assert most == {"a": 1, "b": 1}
    assert together == 2


async def test_more_than_may_wait_are_told_to_come_again_until_one_has_ended() -> None:
    turns, end = ListTurns(), asyncio.Event()

    async def look_up() -> None:
        async with turns.turn("a"):
            await end.wait()

    waiting = [asyncio.create_task(look_up()) for _ in range(MOST_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(Rejection) as refused:
        async with turns.turn("a"):
            pass
    assert (refused.value.status, refused.value.code) == (429, "too_many_lists")
    waiting.pop().cancel()  # a client that leaves gives its place back
    end.set()
    await asyncio.gather(*waiting)
    async with turns.turn("a"):
        pass
    assert not turns._locks  # noqa: SLF001 - nothing is left of who lists no more
    assert not turns._asked  # noqa: SLF001
