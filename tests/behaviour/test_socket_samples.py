"""The samples of WebSockets and of stored responses: frame for frame and byte for byte, at charges worked out by hand."""

import asyncio
import json
from collections.abc import Callable

import pytest

from billing.ledger.objects.upstream_objects import MadeObject, UpstreamObjects
from billing.storage.database import Database
from tests.support import web
from tests.support.customers import new_customer as new_account
from tests.support.raw_upstream import RawUpstream
from tests.support.served import Customer
from tests.support.servers import SAMPLES, Serve, Tollkeeper, sandbox_says, wait_until
from tests.support.sockets import opened, rows, until

WHOLE = [
    ("responses_background_retrieve_completed.json", ""),
    ("responses_background_cancelled.json", ""),
    ("responses_background_stream.sse", "?stream=true"),
    ("responses_background_stream_resumed_after_5.sse", "?stream=true&starting_after=5"),
]


def frames(name: str) -> list[bytes]:
    return [line for line in (SAMPLES / name).read_bytes().splitlines() if line.strip()]


def test_the_frames_of_responses_pass_as_they_are(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer]
) -> None:
    customer = new_customer(served(), "1000")
    wanted = frames("responses_ws_server_frames.jsonl")
    steered = sandbox_says(replay="responses_ws_server_frames.jsonl")
    asked = {
        "type": "response.create",
        "model": "gpt-6.2-sol",
        "input": steered,
        "max_output_tokens": 500,
        "stream_id": "lane-a",
    }
    with opened(customer, "/responses") as socket:
        socket.send(json.dumps(asked))
        got = [str(socket.recv(timeout=10)).encode() for _ in wanted]
    assert got == wanted
    # gpt-6.2-sol 2 / cached 0.1 / write 2.5 / out 10: 55 x 2 + 1024 x 0.1 + 2048 x 2.5 + 143 x 10 = 6762.4; the error after it costs nothing
    (row,) = rows(customer, 1)
    assert (int(row["chargedMillicredits"]), row["usageSource"]) == (6763, "upstream")
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")
    assert customer.balance() == 1_000_000 - 6763


async def own(server: Tollkeeper, account_id: str, response_id: str) -> None:
    database = Database(f"sqlite+aiosqlite:///{server.folder}/var/tollkeeper.db", 1, 5.0)
    try:
        await UpstreamObjects(database).record_owner(account_id, "req_made", [MadeObject(response_id, "response")])
    finally:
        await database.close()


@pytest.mark.parametrize(("name", "query"), WHOLE, ids=[name for name, _ in WHOLE])
def test_a_stored_response_is_read_byte_for_byte_and_free(name: str, query: str, make_tollkeeper: Serve) -> None:
    upstream = RawUpstream()
    body = (SAMPLES / name).read_bytes()
    kind = b"text/event-stream" if name.endswith(".sse") else b"application/json"
    upstream.reply = (
        b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (kind, len(body))
        + body
    )
    try:
        server = make_tollkeeper(
            TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url, TOLLKEEPER_BILLING__ALLOW_STORE="true"
        ).start()
        account = new_account(server, 1_000_000)
        asyncio.run(own(server, account.account_id, "resp_0c2f9a51e7"))
        url = f"{server.v1}/responses/resp_0c2f9a51e7{query}"
        answer = web.get(url, headers=account.headers, timeout=10)
        assert answer.content == body
        assert upstream.requests[0].startswith(b"GET /v1/responses/resp_0c2f9a51e7" + query.encode() + b" HTTP/1.1\r\n")
        assert account.usage() == []
        assert account.balance() == 1_000_000
    finally:
        upstream.close()


def test_a_realtime_session_as_recorded_is_charged_turn_by_turn(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer]
) -> None:
    customer = new_customer(served(), "1000")
    heard = {"input": {"transcription": {"model": "gpt-4o-transcribe"}, "turn_detection": None}}
    steered = sandbox_says(replay="realtime_server_events.jsonl")
    with opened(customer, "/realtime?model=gpt-realtime-2.1") as socket:
        socket.send(json.dumps({"type": "session.update", "session": {"type": "realtime", "audio": heard}}))
        until(socket, "session.updated")
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": steered}]}
        socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
        socket.send(json.dumps({"type": "response.create"}))
        got = until(socket, "response.done")
    assert got[-1]["response"]["id"] == "resp_rt1"
    # gpt-realtime-2.1: 55 text x 4 + 64 cached x 0.4 + 8 audio x 32 + 36 text out x 24 + 112 audio out x 64 = 8533.6
    assert int(rows(customer, 1)[-1]["chargedMillicredits"]) == 8_534
