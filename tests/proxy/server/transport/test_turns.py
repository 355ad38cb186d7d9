"""Many requests that come at once begin a few in a pass of the loop, in their order, and what runs is served between."""

import asyncio

import pytest

from proxy.server.transport.turns import BEGINNING_SECONDS, LEAST_A_PASS, MOST_A_PASS, Turns


async def test_a_few_begin_in_a_pass_and_all_in_their_order() -> None:
    loop, turns = asyncio.get_running_loop(), Turns(lambda: 0.0)
    begun: list[int] = []
    for number in range(3 * LEAST_A_PASS + 1):
        turns.take(loop, lambda number=number: begun.append(number))
    seen = [len(begun)]
    while len(begun) <= 3 * LEAST_A_PASS:
        await asyncio.sleep(0)  # a pass
        seen.append(len(begun))
    assert seen == [LEAST_A_PASS * passes for passes in (1, 2, 3)] + [3 * LEAST_A_PASS + 1]
    assert begun == sorted(begun)


async def test_whoever_comes_later_does_not_overtake() -> None:
    loop, turns = asyncio.get_running_loop(), Turns(lambda: 0.0)
    begun: list[str] = []
    for _ in range(LEAST_A_PASS + 1):
        turns.take(loop, lambda: begun.append("first"))
    turns.take(loop, lambda: begun.append("later"))
    await asyncio.sleep(0)
    assert begun == ["first"] * (LEAST_A_PASS + 1) + ["later"]


async def test_nothing_is_called_again_and_again_when_nobody_comes() -> None:
    loop, turns = asyncio.get_running_loop(), Turns(lambda: 0.0)
    turns.take(loop, lambda: None)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not [handle for handle in loop._ready if "_next_pass" in repr(handle)]  # asyncio's own list of what is due
    begun: list[int] = []
    for number in range(LEAST_A_PASS):
        turns.take(loop, lambda number=number: begun.append(number))
    assert len(begun) == LEAST_A_PASS


async def test_a_beginning_that_fails_holds_up_nobody_behind_it() -> None:
    loop, turns = asyncio.get_running_loop(), Turns(lambda: 0.0)
    failures: list[str] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(str(context["exception"])))
    begun: list[int] = []

    def fail() -> None:
        raise RuntimeError("no task")

    for number in range(LEAST_A_PASS):
        turns.take(loop, lambda number=number: begun.append(number))
    turns.take(loop, fail)
    turns.take(loop, lambda: begun.append(-1))
    for _ in range(4):
        await asyncio.sleep(0)
    assert (begun[-1], failures) == (-1, ["no task"])
    turns.take(loop, lambda: begun.append(-2))
    assert begun[-1] == -2


@pytest.mark.parametrize(
    ("others", "begin"),
    [
        pytest.param(0.002, LEAST_A_PASS, id="little runs: a few"),
        pytest.param(40 * BEGINNING_SECONDS, 40, id="streams fill the pass: as long as they took"),
        pytest.param(10.0, MOST_A_PASS, id="however long it took: not all at once"),
    ],
)
async def test_a_loop_that_others_fill_begins_for_as_long_as_they_take(others: float, begin: int) -> None:
    """A few a pass would be next to nothing there: the last of a thousand began after eight seconds."""
    loop, begun, now = asyncio.get_running_loop(), list[int](), 0.0
    turns = Turns(lambda: now)
    for number in range(LEAST_A_PASS + 3 * MOST_A_PASS):
        turns.take(loop, lambda number=number: begun.append(number))
    for passes in (1, 2):
        just_begun = LEAST_A_PASS if passes == 1 else begin
        now += just_begun * BEGINNING_SECONDS + others + 1e-9
        await asyncio.sleep(0)
        assert len(begun) == LEAST_A_PASS + passes * begin
