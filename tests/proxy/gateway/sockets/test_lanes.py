"""Lanes: which response an event is about. What cannot be attributed ends nothing."""

from types import SimpleNamespace
from typing import cast

from proxy.gateway.sockets.exchange import SocketExchange
from proxy.gateway.sockets.lanes import Lanes


def response(model: str = "gpt-4o", amount: int = 1) -> SocketExchange:
    """Lanes read no more of a response than its model, what it holds and its text."""
    held = SimpleNamespace(amount=amount, held_plan=SimpleNamespace(parsed=SimpleNamespace(model=model)))
    return cast("SocketExchange", SimpleNamespace(hold=held, texts=[]))


def test_an_answer_to_a_cancel_ends_no_other_response() -> None:
    """Cancel crossed the end of what it meant: its error arrives when the next response waits alone."""
    lanes = Lanes()
    first, second = response(), response()
    lanes.ask("a", first)
    lanes.begin("a", "resp_1", "gpt-4o")
    lanes.cancel()
    lanes.closing("a", "resp_1", cancelled=False)
    lanes.drop(first)
    lanes.ask("a", second)
    assert lanes.refuse("a") is None
    assert lanes.unfinished == [second]


def test_an_error_after_the_cancel_was_answered_ends_what_waits() -> None:
    """The answer is counted once: a cancelled response is one as well."""
    lanes = Lanes()
    first, second = response(), response()
    lanes.ask("a", first)
    lanes.begin("a", "resp_1", "gpt-4o")
    lanes.cancel()
    lanes.closing("a", "resp_1", cancelled=True)
    lanes.drop(first)
    lanes.ask("a", second)
    assert lanes.refuse("a") is second


def test_a_response_is_found_until_it_is_dropped() -> None:
    """Whoever is interrupted while it settles must still find it: else its hold is nobody's."""
    lanes = Lanes()
    one = response()
    lanes.ask(None, one)
    lanes.begin(None, "resp_1", "gpt-4o")
    assert lanes.closing(None, "resp_1", cancelled=False) is one
    assert lanes.unfinished == [one]
    lanes.drop(one)
    assert lanes.unfinished == []


def test_after_an_error_of_doubt_the_model_finds_its_response() -> None:
    """An error without a lane may have refused the first that waits: the second begins under its own hold."""
    lanes = Lanes()
    small, large, other = response("gpt-4o-mini", 1), response("gpt-5", 9), response("gpt-4o", 2)
    lanes.ask("a", small)
    lanes.ask("a", large)
    lanes.ask("b", other)
    assert lanes.refuse(None) is None
    assert lanes.begin("a", "resp_1", "gpt-5-2025-08-07") is large
    assert lanes.unfinished == [large, small, other]
