"""Many requests that come at once begin a few in a pass of the loop, in their order, and what runs is served between."""

import asyncio

from proxy.server.transport.turns import MOST_A_PASS, Turns


async def test_a_few_begin_in_a_pass_and_all_in_their_order() -> None:
    loop, turns = asyncio.get_running_loop(), Turns()
    begun: list[int] = []
    for number in range(3 * MOST_A_PASS + 1):
        turns.take(loop, lambda number=number: begun.append(number))
    seen = [len(begun)]
    while len(begun) <= 3 * MOST_A_PASS:
        await asyncio.sleep(0)  # a pass
        seen.append(len(begun))
    assert seen == [MOST_A_PASS * passes for passes in (1, 2, 3)] + [3 * MOST_A_PASS + 1]
    assert begun == sorted(begun)


async def test_whoever_comes_later_does_not_overtake() -> None:
    loop, turns = asyncio.get_running_loop(), Turns()
    begun: list[str] = []
    for _ in range(MOST_A_PASS + 1):
        turns.take(loop, lambda: begun.append("first"))
    turns.take(loop, lambda: begun.append("later"))
    await asyncio.sleep(0)
    assert begun == ["first"] * (MOST_A_PASS + 1) + ["later"]


async def test_nothing_is_called_again_and_again_when_nobody_comes() -> None:
    loop, turns = asyncio.get_running_loop(), Turns()
    turns.take(loop, lambda: None)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not [handle for handle in loop._ready if "_next_pass" in repr(handle)]  # asyncio's own list of what is due
    begun: list[int] = []
    for number in range(MOST_A_PASS):
        turns.take(loop, lambda number=number: begun.append(number))
    assert len(begun) == MOST_A_PASS


async def test_a_beginning_that_fails_holds_up_nobody_behind_it() -> None:
    loop, turns = asyncio.get_running_loop(), Turns()
    failures: list[str] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(str(context["exception"])))
    begun: list[int] = []

    def fail() -> None:
        raise RuntimeError("no task")

    for number in range(MOST_A_PASS):
        turns.take(loop, lambda number=number: begun.append(number))
    turns.take(loop, fail)
    turns.take(loop, lambda: begun.append(-1))
    for _ in range(4):
        await asyncio.sleep(0)
    assert (begun[-1], failures) == (-1, ["no task"])
    turns.take(loop, lambda: begun.append(-2))
    assert begun[-1] == -2
