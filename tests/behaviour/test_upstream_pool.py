"""Three upstreams under load, one of which fails: no request that another could have served, every charge as recorded."""

import signal
from collections.abc import Callable, Iterator

import pytest

from tests.support.exact_k import MAX_TOKENS, fire, hold_of, request_body
from tests.support.servers import Account, RedisServer, Serve, Tollkeeper, wait_until
from tests.support.upstreams import Load, Place, ask, check_charges, check_owed, places, served_by, write

RICH = "10000000"


@pytest.fixture(scope="module")
def three() -> Iterator[list[Place]]:
    with places("openai", "second", "third") as made:
        yield made


@pytest.fixture(params=["embedded", "redis"])
def pooled(
    request: pytest.FixtureRequest, make_tollkeeper: Serve, three: list[Place]
) -> Iterator[tuple[Tollkeeper, list[Place]]]:
    """A Tollkeeper over each store, with three upstreams that are well."""
    for place in three:
        place.key = f"sk-canary-{place.name}-5d8b604"
        place.sandbox.clear()
        place.sandbox.settings(latency_ms=0, chunk_interval_ms=0, directive={}, new_key="")
    # the machine has other work: what is shown here is no promise about times
    server = make_tollkeeper(TOLLKEEPER_ADVANCED__EMBEDDED_TIMEOUT_SECONDS="10", TOLLKEEPER_REDIS__TIMEOUT_SECONDS="10")
    del server.environment["TOLLKEEPER_UPSTREAM__BASE_URL"]
    if request.param == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        server.environment |= {"TOLLKEEPER_REDIS__URL": redis.url, "TOLLKEEPER_LISTEN__WORKERS": "2"}
    write(server, three, failover={"first_byte_seconds": 1.0})
    yield server.start(), three
    for place in three:
        place.signal(signal.SIGCONT)


def customer(server: Tollkeeper) -> Account:
    return server.account(RICH)


def frozen(place: Place) -> None:
    place.signal(signal.SIGSTOP)


def refusing_our_key(place: Place) -> None:
    place.sandbox.settings(directive={"error": "401", "status": 401})


def out_of_quota(place: Place) -> None:
    place.sandbox.settings(directive={"error": "429_quota", "status": 429})


def failing(place: Place) -> None:
    place.sandbox.settings(directive={"error": "500", "status": 500})


def slow(place: Place) -> None:
    place.sandbox.settings(latency_ms=20_000)


def resetting_after_headers(place: Place) -> None:
    place.sandbox.settings(directive={"cut": "after_headers", "rst": True})


def breaking_off(place: Place) -> None:
    place.sandbox.settings(directive={"cut": {"after_chunks": 2}})


def answering_with_an_error(place: Place) -> None:
    body = '{"error": {"message": "The server had an error.", "type": "server_error", "code": null}}'
    place.sandbox.settings(directive={"body_raw": body, "headers": {"content-type": "application/json"}})


BEGUN = (frozen, breaking_off)
"""Faults that a stream may already have begun to be shown before: then it is nobody's to save."""
UNANSWERED = (frozen, slow, resetting_after_headers, breaking_off, answering_with_an_error)
"""Faults after which the upstream may bill for what it never answered."""


def test_requests_are_spread_by_weight_and_each_is_charged_once(pooled: tuple[Tollkeeper, list[Place]]) -> None:
    server, three = pooled
    account = customer(server)
    replies = [ask(account, stream=bool(number % 2)) for number in range(30)]
    assert all(reply.whole for reply in replies), replies
    check_charges(account, replies, three)
    shares = [
        len([1 for rows in served_by(three).values() for name, _ in rows if name == place.name]) for place in three
    ]
    assert all(share >= 5 for share in shares), shares
    said = " ".join(reply.body for reply in replies) + server.log()
    assert not any(place.key in said for place in three)


@pytest.mark.parametrize("fault", [refusing_our_key, out_of_quota, failing, *UNANSWERED])
def test_one_that_fails_under_load_fails_no_request(
    pooled: tuple[Tollkeeper, list[Place]], fault: Callable[[Place], None]
) -> None:
    server, three = pooled
    account = customer(server)
    load = Load(account)
    load.wait_for(40)
    fault(three[1])
    load.wait_for(80)
    replies = load.stop()
    three[1].signal(signal.SIGCONT)
    three[1].sandbox.settings(latency_ms=0, directive={})
    lost = [reply for reply in replies if not reply.whole and not (fault in BEGUN and reply.status == 200)]
    assert lost == [], lost[:3]
    rows = check_charges(account, replies, three)
    moved = [row for row in rows if row["tries"]]
    assert moved, "somebody had to be served by another"
    assert {one["upstream"] for row in moved for one in row["tries"]} == {"second"}
    # what an upstream that never answered may bill is known; a refusal is free
    costs = [int(row["abandonedMillicredits"]) for row in moved]
    assert all(costs) if fault in UNANSWERED else not any(costs), costs
    check_owed(server)


def test_one_that_is_killed_under_load_fails_no_request_and_serves_again(
    pooled: tuple[Tollkeeper, list[Place]],
) -> None:
    server, three = pooled
    with places("fourth") as (fourth,):
        write(server, [*three, fourth], failover={"first_byte_seconds": 1.0})
        account = customer(server)
        wait_until(lambda: ask(account, stream=False).whole and fourth.sandbox.record(), 10, "the fourth serves")
        load = Load(account)
        load.wait_for(40)
        before = served_by([fourth])
        fourth.sandbox.stop()
        load.wait_for(80)
        replies = load.stop()
    assert len(before) > 2
    lost = [reply for reply in replies if not reply.whole and reply.status != 200]
    assert lost == [], lost[:3]
    write(server, three)


def test_edits_under_load_fail_no_request(pooled: tuple[Tollkeeper, list[Place]]) -> None:
    server, three = pooled
    first, second, third = three
    file = server.folder / "proxy.toml"
    for place in three:
        place.sandbox.settings(chunk_interval_ms=5)  # so that edits come in the middle of streams
    account = customer(server)
    load = Load(account)

    def edited(*used: Place) -> None:
        write(server, list(used), failover={"first_byte_seconds": 1.0})
        load.wait_for(25)

    load.wait_for(20)
    third.more["draining"] = True
    edited(first, second, third)
    del third.more["draining"]
    edited(first, second)
    edited(third, second, first)
    good = file.read_text()
    file.write_text(good.replace('name = "second"', 'name = "third"'))
    load.wait_for(25)
    file.write_text(good[: len(good) // 2])
    load.wait_for(25)
    second.key = "sk-canary-second-rotated"
    second.sandbox.settings(new_key=second.key)  # until the file says so it refuses every request
    edited(first, second, third)
    first.more["weight"], third.more["models"] = 300, ["gpt-4o-*"]
    edited(first, second, third)
    replies = load.stop()
    del first.more["weight"], third.more["models"]
    assert [reply for reply in replies if not reply.whole] == []
    rows = check_charges(account, replies, three)
    assert {row["upstream"] for row in rows} == {"openai", "second", "third"}
    assert not any(key in server.log() for key in (second.key, "sk-canary-second-5d8b604"))
    check_owed(server)


def test_exactly_k_are_served_while_one_of_three_refuses(pooled: tuple[Tollkeeper, list[Place]]) -> None:
    """As test_exactly_k_of_a_thousand_concurrent_requests_are_served: the upstreams bill what was held."""
    server, three = pooled
    affordable, told = 37, {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    hold = hold_of(customer(server), request_body(told, stream=True))
    tokens_in = (hold - MAX_TOKENS * 6 // 10) * 100 // 15
    total = tokens_in + MAX_TOKENS
    body = request_body({"prompt_tokens": tokens_in, "completion_tokens": MAX_TOKENS, "total_tokens": total})
    out_of_quota(three[1])
    for place in three:
        place.sandbox.clear()
    account = server.account(str(affordable * hold / 1_000))
    found = fire(server, account, body)
    served = [request_id for status, request_id, _ in found if status == 200]
    assert len(served) == affordable
    assert {status for status, _, _ in found} == {200, 402}
    rows = [row for place in three for row in place.sandbox.record(brief=1) if row["status"] == 200]
    assert sorted(row["clientRequestId"] for row in rows) == sorted(served)
    account.wait_balance(0)
    assert account.held() == 0
    assert {row["chargedMillicredits"] for row in account.usage()} == {str(hold)}
