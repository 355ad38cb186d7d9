"""The counting process and its client, over a real socket: the same counts, whatever happens to either side."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from multiprocessing.context import ForkProcess

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.gateway.counting import counter_client, counter_process, vocabulary
from proxy.gateway.counting.counter_client import LENGTH, Asking, CounterClient, listening
from proxy.gateway.counting.counter_process import serve_counter
from proxy.gateway.counting.tokenizer import Tokenizer
from sandbox.openai.tokens.count import load_encoding as sandbox_encoding
from tests.support.counting import TOKENIZER
from tests.support.servers import wait_until

LOAD = vocabulary.load_encoding
TEXTS = ("tiktoken is great!", "漢字 and \U0001f433", "a" * 5_000, "<|endoftext|>", "\x00\n\n\t", "")


class Counter:
    """A counting process that can be killed and started again on its socket."""

    def __init__(self) -> None:
        self.listener = listening()
        self.start()

    def start(self, load: object = LOAD) -> None:
        """`load`: its loader of a vocabulary, whatever this process has for one."""
        with pytest.MonkeyPatch.context() as here:
            here.setattr(vocabulary, "load_encoding", load)
            self.process = ForkProcess(target=serve_counter, args=(self.listener,))
            self.process.start()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> None:
        self.process.kill()
        self.process.join()


@pytest.fixture(scope="module")
def shared() -> Iterator[Counter]:
    counter = Counter()
    yield counter
    counter.end()
    counter.listener.close()


@pytest.fixture
def counter() -> Iterator[Counter]:
    counter = Counter()
    yield counter
    counter.end()
    counter.listener.close()


def client_of(counter: Counter) -> CounterClient:
    return CounterClient(counter.listener.getsockname())


@pytest.fixture
def nothing_is_loaded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who counts in this process fails; a Counter does not."""

    def load(name: str) -> None:
        raise AssertionError(f"{name} is loaded here")

    monkeypatch.setattr(vocabulary, "load_encoding", load)


def expected(name: str, *texts: str) -> int:
    return sum(len(sandbox_encoding(name).encode_ordinary(text)) for text in texts)


@pytest.mark.parametrize(("model", "name"), [("gpt-4o", "o200k_base"), ("gpt-4-turbo", "cl100k_base")])
async def test_a_count_is_the_counters(shared: Counter, nothing_is_loaded_here: None, model: str, name: str) -> None:
    tokenizer = Tokenizer(client_of(shared))
    assert await tokenizer.count(model, TEXTS) == expected(name, *TEXTS)
    assert await tokenizer.count(model, ["", ""]) == await tokenizer.count(model, []) == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=[]), max_size=200), max_size=4))
def test_any_text_counts_alike_there_and_here(shared: Counter, texts: list[str]) -> None:
    """Lone surrogates too, as JSON may hold them."""
    here = asyncio.run(TOKENIZER.count("gpt-4o", texts))
    assert asyncio.run(client_of(shared).count("o200k_base", texts)) == here


async def test_many_at_once_each_have_their_own_count(shared: Counter, nothing_is_loaded_here: None) -> None:
    tokenizer = Tokenizer(client_of(shared))
    sizes = [*range(1, 60), 15_000]
    counted = await asyncio.gather(*(tokenizer.count("gpt-4o", ["hello " * size]) for size in sizes))
    assert counted == [expected("o200k_base", "hello " * size) for size in sizes]


async def test_an_answer_that_nobody_waits_for_any_more_is_nobody_elses(
    shared: Counter, nothing_is_loaded_here: None
) -> None:
    client = client_of(shared)
    assert await client.count("o200k_base", ["one"]) == 1
    for _ in range(5):
        left = asyncio.create_task(client.count("o200k_base", ["hello " * 100_000]))
        await asyncio.sleep(0.002)
        left.cancel()
        assert await client.count("o200k_base", ["one two"]) == 2


async def test_a_counter_that_was_killed_is_waited_for(counter: Counter, nothing_is_loaded_here: None) -> None:
    client = client_of(counter)
    both = await asyncio.gather(client.count("o200k_base", ["one"]), client.count("o200k_base", ["one two"]))
    assert both == [1, 2]
    counter.end()
    waiting = asyncio.create_task(client.count("o200k_base", ["one two three"]))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    counter.start()
    assert await waiting == 3
    assert await client.count("o200k_base", ["one"]) == 1


async def test_a_counter_that_is_killed_while_it_counts_is_asked_again(counter: Counter) -> None:
    client = client_of(counter)
    assert await client.count("o200k_base", ["one"]) == 1
    counter.signal(signal.SIGSTOP)
    waiting = asyncio.create_task(client.count("o200k_base", ["one two"]))
    await asyncio.sleep(0.05)
    counter.end()
    counter.start()
    assert await waiting == 2


async def test_without_an_answer_it_is_counted_here_and_not_asked_for_a_while(
    counter: Counter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(counter_client, "ANSWER_SECONDS", 0.2)
    client = client_of(counter)
    counter.signal(signal.SIGSTOP)
    tokenizer = Tokenizer(client)
    assert await tokenizer.count("gpt-4o", ["one two"]) == 2
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == ["tk-counter does not answer"]
    counter.signal(signal.SIGCONT)
    assert await client.count("o200k_base", ["one"]) is None, "it is not asked"
    monkeypatch.setattr(client, "_away_until", 0.0)
    monkeypatch.setattr(counter_client, "ANSWER_SECONDS", 20.0)
    assert await client.count("o200k_base", ["one"]) == 1


async def test_what_is_too_large_is_counted_here(shared: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_client, "LARGEST_BYTES", 1_000)
    client = client_of(shared)
    assert await client.count("o200k_base", ["hello " * 200]) is None
    assert await TOKENIZER.count("gpt-4o", ["hello " * 200]) == expected("o200k_base", "hello " * 200)
    assert await client.count("o200k_base", ["hello"]) == 1, "it is asked again at once"


@pytest.mark.parametrize(
    "frame",
    [
        LENGTH.pack(counter_client.LARGEST_BYTES + 1),
        LENGTH.pack(3) + b"\xff\xff\xff",
        LENGTH.pack(1) + b"\x01",
        *(
            LENGTH.pack(len(packed)) + packed
            for packed in (
                msgspec.msgpack.encode(Asking("../o200k_base", [b"x"])),
                msgspec.msgpack.encode(Asking("o200k_base", [b"\xff\xfe"])),
                msgspec.msgpack.encode(["o200k_base", "x"]),
            )
        ),
    ],
)
async def test_whoever_speaks_otherwise_is_left_and_nobody_else(shared: Counter, frame: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(shared.listener.getsockname())
        stranger.settimeout(20)
        stranger.sendall(frame)
        assert await asyncio.to_thread(stranger.recv, 8) == b""
    assert await client_of(shared).count("o200k_base", ["one"]) == 1


async def test_who_stops_in_the_middle_keeps_nobodys_room(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    counter.end()
    monkeypatch.setattr(counter_process, "ANSWER_SECONDS", 0.3)
    counter.start()
    stopped = [socket.socket(socket.AF_UNIX) for _ in range(counter_process.AT_ONCE + 2)]
    for one in stopped:
        one.connect(counter.listener.getsockname())
        one.sendall(LENGTH.pack(100) + b"half")
    assert await client_of(counter).count("o200k_base", ["one two"]) == 2
    for one in stopped:
        one.close()


async def test_ranks_that_cannot_be_loaded_are_told_by_who_counts_here(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise vocabulary.TokenizerError(f"the shipped ranks of {name} are bad")

    counter.end()
    counter.start(broken)
    monkeypatch.setattr(vocabulary, "load_encoding", broken)
    with pytest.raises(vocabulary.TokenizerError, match="ranks of o200k_base"):
        await Tokenizer(client_of(counter)).count("gpt-4o", ["one"])


async def test_another_user_of_this_machine_is_not_answered(counter: Counter) -> None:
    counter.end()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 4_321)  # so that we are another one
        counter.start()
    assert await client_of(counter).count("o200k_base", ["one"]) is None


def test_it_ends_when_it_is_told_to_and_not_by_the_terminal(counter: Counter) -> None:
    assert asyncio.run(client_of(counter).count("o200k_base", ["one"])) == 1
    counter.signal(signal.SIGINT)
    assert asyncio.run(client_of(counter).count("o200k_base", ["one"])) == 1
    counter.signal(signal.SIGTERM)
    wait_until(lambda: counter.process.exitcode is not None, 5, "it has ended")
