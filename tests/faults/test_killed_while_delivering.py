"""Killed while events are on their way: none is lost, none has another id, an account's are in their order."""

import time

import pytest

from tests.support.customers import new_customer
from tests.support.receiver import receiving
from tests.support.servers import RedisServer, Serve, wait_until

pytestmark = pytest.mark.served
CHARGES = 12


@pytest.mark.parametrize("store", ["embedded", "redis"])
def test_killed_between_an_answer_and_its_record_it_sends_again_and_loses_nothing(
    store: str, make_tollkeeper: Serve, request: pytest.FixtureRequest
) -> None:
    environment = {"TOLLKEEPER_NOTICES__PRIVATE_ENDPOINTS": "true"}
    if store == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        environment["TOLLKEEPER_REDIS__URL"] = redis.url
    with receiving() as receiver:
        server = make_tollkeeper(**environment).start()
        endpoint = server.cli("events", "add", receiver.url, "--kinds", "key.*", "usage.charged")["endpointId"]
        time.sleep(1.1)  # of charges it is told from a second later on (docs/events.md)
        customer = new_customer(server)
        keys = [server.cli("key", "create", customer.account_id)["keyId"] for _ in range(4)]
        receiver.delay = 0.3
        charged = []
        for number in range(CHARGES):
            charged.append(customer.chat().headers["x-request-id"])
            if number % 4 == 3:
                arrived = len(receiver.arrived)
                wait_until(lambda seen=arrived: len(receiver.arrived) > seen, 20, "one is on its way")
                server.kill()
                server.start()
        receiver.delay = 0.0
        for key_id in keys:
            server.cli("key", "revoke", key_id)

        def told() -> set[str]:
            events = receiver.events()
            requests = {one["requestId"] for event in events for one in event["data"].get("requests", ())}
            revoked = {event["data"]["keyId"] for event in events if event["kind"] == "key.revoked"}
            return requests | revoked

        wait_until(lambda: {*charged, *keys} <= told(), 60, "everything was told")
        first = dict.fromkeys(event["id"] for event in receiver.events())
        rows = server.cli("events", "list", "--endpoint", endpoint, "--account", customer.account_id)["data"]
        assert list(first) == [row["eventId"] for row in reversed(rows)], (
            "each at least once, first of all in its order"
        )
        bodies = {body for body, event in zip(receiver.bodies, receiver.events(), strict=True)}
        assert len(bodies) == len(first), "what comes again is the same to the byte"


def test_what_a_command_books_is_told_as_well(make_tollkeeper: Serve) -> None:
    """The server is gone, and `drain` books what it left."""
    environment = {
        "TOLLKEEPER_NOTICES__PRIVATE_ENDPOINTS": "true",
        "TOLLKEEPER_ADVANCED__JOURNAL_FLUSH_INTERVAL_MS": "60000",
    }
    with receiving() as receiver:
        server = make_tollkeeper(**environment).start()
        server.cli("events", "add", receiver.url, "--kinds", "usage.charged")
        customer = new_customer(server)
        charged = customer.chat().headers["x-request-id"]
        server.kill()
        assert server.cli("drain")["chargesFlushed"] == 1
        server.start()
        wait_until(receiver.events, 20, "it is told")
        (event,) = receiver.events()
    assert [one["requestId"] for one in event["data"]["requests"]] == [charged]
