"""Health of an upstream: what opens its circuit, and how it closes again."""

from proxy.gateway.upstream.circuit import FAILURES, FIRST_PAUSE, LONGEST_REST, QUOTA_PAUSE, Circuit


def opened(reason: str = "connect") -> Circuit:
    circuit = Circuit()
    for _ in range(FAILURES):
        circuit.failed(reason, 100.0)
    return circuit


def test_failures_in_a_row_open_it_and_an_answer_between_does_not() -> None:
    circuit = Circuit()
    for _ in range(5):
        for _ in range(FAILURES - 1):
            circuit.failed("status_5xx", 100.0)
        circuit.served()
    assert circuit.reason == ""
    assert opened().reason == "connect"


def test_a_refusal_of_our_key_opens_it_at_once() -> None:
    circuit = Circuit()
    circuit.failed("key", 100.0, at_once=True)
    assert circuit.reason == "key"
    assert not circuit.wants_probe(100.0)
    assert circuit.wants_probe(100.0 + FIRST_PAUSE)


def test_a_quota_is_not_asked_about_every_second() -> None:
    circuit = Circuit()
    circuit.failed("quota", 100.0, at_once=True)
    assert not circuit.wants_probe(100.0 + QUOTA_PAUSE - 0.1)
    assert circuit.wants_probe(100.0 + QUOTA_PAUSE)


def test_an_answered_probe_is_a_trial_that_one_failure_ends_for_longer() -> None:
    circuit, now, pauses = opened(), 100.0, []
    for _ in range(4):
        began = now
        while not circuit.wants_probe(now):
            now += 0.5
        pauses.append(now - began)
        circuit.probed(now, answered=True)
        assert circuit.reason == ""
        circuit.failed("status_5xx", now)
        assert circuit.reason == "status_5xx"
    assert pauses == sorted(set(pauses)), pauses
    circuit.probed(now, answered=True)
    circuit.served()
    circuit.failed("status_5xx", now)
    assert circuit.reason == "", "it is as if nothing had been"


def test_an_answer_to_what_was_asked_before_it_opened_does_not_close_it() -> None:
    circuit = Circuit()
    circuit.failed("key", 100.0, at_once=True)
    circuit.served(99.0)
    assert circuit.reason == "key"
    circuit.served(100.5)
    assert circuit.reason == ""


def test_a_model_rests_for_as_long_as_it_is_told_and_others_do_not() -> None:
    circuit = Circuit()
    circuit.rest("gpt-4o", 100.0, 7.0)
    assert (circuit.rests("gpt-4o", 106.9), circuit.rests("gpt-4o-mini", 100.0)) == (True, False)
    assert not circuit.rests("gpt-4o", 107.0)
    circuit.rest("gpt-4o", 100.0, 1e9)
    assert not circuit.rests("gpt-4o", 100.0 + LONGEST_REST)
