"""Lanes: which response an event is about. What cannot be attributed ends nothing."""

from types import SimpleNamespace
from typing import cast

from proxy.gateway.answers.events import PassedEvents
from proxy.gateway.sockets.exchange import SocketExchange
from proxy.gateway.sockets.lanes import Lanes


def response(model: str = "gpt-4o", amount: int = 1) -> SocketExchange:
    """Lanes read no more of a response than its model, what it holds and its text."""
    held = SimpleNamespace(amount=amount, plan=SimpleNamespace(parsed=SimpleNamespace(model=model)))
    return cast("SocketExchange", SimpleNamespace(hold=held, passed=PassedEvents()))


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


def test_output_before_a_beginning_is_that_of_what_waits_and_its_end_begins_it() -> None:
    """An upstream that leaves `response.created` out delivers nothing for nothing."""
    lanes = Lanes()
    one = response()
    lanes.ask("", one)
    lanes.add(None, {"type": "response.output_text.delta", "output_index": 0, "delta": "hello"})
    assert one.passed.texts == ["hello"]
    assert lanes.begin_late(None, "resp_1", "gpt-4o") is one
    assert lanes.closing(None, "resp_1", cancelled=False) is one


def test_an_end_of_another_response_begins_none_while_one_runs() -> None:
    lanes = Lanes()
    running, waiting = response(), response()
    lanes.ask(None, running)
    lanes.ask(None, waiting)
    lanes.begin(None, "resp_1", "gpt-4o")
    assert lanes.begin_late(None, "resp_9", "gpt-4o") is None
    assert lanes.unfinished == [running, waiting]


def test_an_end_that_is_told_once_more_begins_nothing() -> None:
    lanes = Lanes()
    first, second = response(), response()
    lanes.ask(None, first)
    lanes.begin(None, "resp_1", "gpt-4o")
    lanes.drop(first)
    lanes.ask(None, second)
    assert lanes.begin_late(None, "resp_1", "gpt-4o") is None
    assert lanes.unfinished == [second]


def test_upstream_is_at_work_on_what_runs_and_on_the_first_of_each_lane_where_nothing_does() -> None:
    lanes = Lanes()
    running, behind, first, second, alone = (response() for _ in range(5))
    for lane, one in (("a", running), ("a", behind), ("b", first), ("b", second), (None, alone)):
        lanes.ask(lane, one)
    lanes.begin("a", "resp_1", "gpt-4o")
    assert lanes.at_work == [running, first, alone]
