"""Who waits for holds in flight: in the order they came, bounded, and woken when one ends."""

import asyncio
import time

from billing.balances.hold_queue import LONGEST, HoldQueue


async def wait(queue: HoldQueue, name: str, said: list[str], seconds: float, tries: int = 1) -> None:
    """Take so many turns, then leave."""
    turns = queue.turns("acct", seconds)
    async for _ in turns:
        said.append(name)
        tries -= 1
        if not tries:
            break
    await turns.aclose()


async def test_the_first_that_came_tries_first_and_the_next_when_it_has_left() -> None:
    queue, said = HoldQueue(), list[str]()
    tasks = [asyncio.create_task(wait(queue, name, said, 5)) for name in "abc"]
    await asyncio.sleep(0)
    queue.ended("acct")
    await asyncio.gather(*tasks)
    assert said == ["a", "b", "c"]


async def test_an_end_wakes_at_once_and_without_one_it_looks_by_itself() -> None:
    queue, said = HoldQueue(), list[str]()
    task = asyncio.create_task(wait(queue, "a", said, 30))
    await asyncio.sleep(0)
    queue.ended("another account")
    assert said == []
    await asyncio.wait_for(task, 10)
    assert said == ["a"]


async def test_nobody_waits_longer_than_that() -> None:
    queue, said = HoldQueue(), list[str]()
    started = time.monotonic()
    await asyncio.gather(*(wait(queue, name, said, 0.3, tries=1_000) for name in "ab"))
    assert time.monotonic() - started < 5
    assert said[0] == "a"


async def test_a_queue_that_is_full_sends_away_at_once() -> None:
    queue, said = HoldQueue(), list[str]()
    tasks = [asyncio.create_task(wait(queue, "w", said, 30)) for _ in range(LONGEST)]
    await asyncio.sleep(0)
    await asyncio.wait_for(wait(queue, "late", said, 30), 1)
    assert "late" not in said
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await wait(queue, "later", said, 1)
    assert said[-1] == "later", "who was cancelled has left the queue"


async def test_who_is_cancelled_as_its_turn_comes_is_cancelled() -> None:
    queue = HoldQueue()
    task = asyncio.create_task(wait(queue, "a", [], 30, tries=2))
    await asyncio.sleep(0.01)
    queue.ended("acct")
    task.cancel()
    (ended,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError)
