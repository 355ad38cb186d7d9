"""WebSockets through the proxy: the official SDK's own clients, and raw frames; charges against the upstream's record."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import pytest
from openai import OpenAI
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.support import web
from tests.support.media import png
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import Sandbox, sandbox_says, wait_until
from tests.support.sockets import CHAT, SocketUpstream, create, opened, rows, until
from tests.support.wire import LINGER_ZERO

VOICE = "gpt-realtime-2.1"


@pytest.fixture
def fresh(served: Callable[..., Any], new_customer: Callable[..., Customer], sandbox: Sandbox) -> Iterator[Customer]:
    sandbox.clear()
    yield new_customer(served(), "1000")


def test_every_response_on_a_socket_is_charged_by_its_own_usage(fresh: Customer) -> None:
    usages = []
    with opened(fresh, "/responses") as socket:
        for text in ("one", "two, which is longer"):
            socket.send(create(text))
            usages.append(until(socket, "response.completed")[-1]["response"]["usage"])
    expected = [usd_to_charge((usage["input_tokens"], "2"), (usage["output_tokens"], "8")) for usage in usages]
    assert [int(row["chargedMillicredits"]) for row in reversed(rows(fresh, 2))] == expected
    wait_until(lambda: fresh.held() == 0, 5, "nothing is held")
    assert fresh.balance() == 1_000_000 - sum(expected)


def log_lines(customer: Customer) -> list[dict[str, Any]]:
    """The log's lines of the customer's metered requests."""
    lines = [json.loads(line) for line in customer.server.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "request" and line["account"] == customer.account_id]


def counted(customer: Customer, line: str) -> float:
    found = [row for row in web.get(f"{customer.server.url}/metrics").text.splitlines() if row.startswith(line + " ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def test_every_response_on_a_socket_is_counted_and_has_a_line_like_a_request(fresh: Customer) -> None:
    requests, outcomes = (
        'tollkeeper_requests_total{endpoint="/v1/responses",status="%s"}',
        'tollkeeper_outcomes_total{outcome="%s"}',
    )
    watched = [requests % "200", requests % "400", requests % "499", outcomes % "completed", outcomes % "client_gone"]
    time.sleep(0.6)  # what earlier tests did is published
    before = [counted(fresh, name) for name in watched]
    with opened(fresh, "/responses") as socket:
        for text in ("one", "two"):
            socket.send(create(text))
            until(socket, "response.completed")
        socket.send(create(max_output_tokens=-1))
        until(socket, "error")
        socket.send(create(sandbox_says(latency_ms=3_000)))
        time.sleep(0.5)
    booked = rows(fresh, 2)
    found = wait_until(lambda: log_lines(fresh) if len(log_lines(fresh)) == 4 else None, 15, "four lines")
    for line, row in zip(found[:2], reversed(booked[-2:]), strict=True):
        assert (line["request_id"], line["charged_millicredits"]) == (row["requestId"], int(row["chargedMillicredits"]))
        assert (line["method"], line["path"], line["endpoint"], line["model"]) == (
            "GET",
            "/v1/responses",
            "/v1/responses",
            CHAT,
        )
        assert (line["status"], line["outcome"], line["output_tokens"] > 0) == (200, "completed", True)
        assert line["held_millicredits"] >= line["charged_millicredits"]
    assert (found[2]["status"], found[2]["charged_millicredits"]) == (400, 0)
    assert found[3]["outcome"] == "client_gone"

    def moved() -> bool:
        now = [
            after - earlier for after, earlier in zip((counted(fresh, name) for name in watched), before, strict=True)
        ]
        return now[:2] == [2 + (found[3]["status"] == 200), 1] and now[3:] == [2, 1]

    wait_until(moved, 5, "all are counted")


def test_a_refused_handshake_is_counted_and_has_a_line(fresh: Customer) -> None:
    name = 'tollkeeper_requests_total{endpoint="/v1/realtime",status="404"}'
    time.sleep(0.6)
    before = counted(fresh, name)
    with pytest.raises(InvalidStatus) as refused, opened(fresh, "/realtime?model=gpt-of-nobody"):
        pass
    request_id = refused.value.response.headers["x-request-id"]
    (line,) = wait_until(lambda: log_lines(fresh), 5, "the line")
    assert (line["request_id"], line["status"], line["outcome"]) == (request_id, 404, "model_not_found")
    wait_until(lambda: counted(fresh, name) == before + 1, 5, "it is counted")


def test_a_spoken_response_has_its_line_and_a_standing_hold_has_none(fresh: Customer) -> None:
    with opened(fresh, f"/realtime?model={VOICE}") as socket:
        socket.send(
            json.dumps({"type": "session.update", "session": {"type": "realtime", "output_modalities": ["text"]}})
        )
        socket.send(json.dumps({"type": "response.create"}))
        until(socket, "response.done")
    (row,) = rows(fresh, 1)
    (line,) = wait_until(lambda: log_lines(fresh), 5, "the line")
    assert (line["request_id"], line["charged_millicredits"]) == (row["requestId"], int(row["chargedMillicredits"]))
    assert (line["path"], line["model"], line["status"], line["outcome"]) == ("/v1/realtime", VOICE, 200, "completed")
    time.sleep(0.5)
    assert len(log_lines(fresh)) == 1


def test_storing_is_left_to_the_default_and_names_are_the_tenants_own(fresh: Customer, sandbox: Sandbox) -> None:
    with opened(fresh, "/responses") as socket:
        socket.send(create(user="alice", stream_id="lane-a"))
        frames = until(socket, "response.completed")
    assert {frame["stream_id"] for frame in frames} == {"lane-a"}
    (sent,) = [row["requestBody"] for row in sandbox.record() if row["method"] == "WS"]
    assert "store" not in sent
    assert sent["user"].startswith("tk_")
    assert sent["service_tier"] == "default"


def test_lanes_run_beside_each_other_and_each_is_charged(fresh: Customer) -> None:
    with opened(fresh, "/responses") as socket:
        for lane in ("a", "b", "c"):
            socket.send(create(stream_id=lane))
        done = set()
        while len(done) < 3:
            frame = until(socket, "response.completed")[-1]
            done.add(frame["stream_id"])
    assert len(rows(fresh, 3)) == 3


def slow(text: str = "", **fields: Any) -> str:
    """A response of 600 tokens that takes its time, so that something can happen in the middle of it."""
    said = sandbox_says(output_tokens=600, reasoning_tokens=0, chunk_interval_ms=5)
    return create(f"{said}{text}", max_output_tokens=3_000, **fields)


def test_an_error_that_names_no_response_ends_none(fresh: Customer) -> None:
    """Upstream answers a cancel that it cannot do with an error; the response runs on, held for, and is charged whole."""
    with opened(fresh, "/responses") as socket:
        socket.send(slow())
        until(socket, "response.created")
        socket.send('{"type":"response.cancel"}')
        until(socket, "error")
        assert fresh.held() > 0
        usage = until(socket, "response.completed")[-1]["response"]["usage"]
    (row,) = rows(fresh, 1)
    assert usage["output_tokens"] == 600
    assert int(row["chargedMillicredits"]) == usd_to_charge((usage["input_tokens"], "2"), (600, "8"))
    wait_until(lambda: fresh.held() == 0, 5, "nothing is held")


@pytest.mark.parametrize(("first", "second"), [("", None), (None, ""), ("a", "b")])
def test_two_lanes_never_share_a_response(fresh: Customer, first: str | None, second: str | None) -> None:
    """`""` and no `stream_id` may be two lanes upstream: each response is charged, and nothing stays held."""
    lanes = [{} if lane is None else {"stream_id": lane} for lane in (first, second)]
    with opened(fresh, "/responses") as socket:
        socket.send(slow(**lanes[0]))
        until(socket, "response.created")
        small = sandbox_says(output_tokens=1)
        socket.send(
            json.dumps(
                {"type": "response.create", "model": "gpt-4.1-nano", "max_output_tokens": 16, "input": small} | lanes[1]
            )
        )
        done = [frame for _ in range(2) for frame in until(socket, "response.completed")[-1:]]
    usages = {frame["response"]["model"]: frame["response"]["usage"] for frame in done}
    large, nano = (usages[next(name for name in usages if ("nano" in name) is wanted)] for wanted in (False, True))
    expected = {
        usd_to_charge((large["input_tokens"], "2"), (600, "8")),
        usd_to_charge((nano["input_tokens"], "0.1"), (nano["output_tokens"], "0.4")),
    }
    assert {int(row["chargedMillicredits"]) for row in rows(fresh, 2)} == expected
    wait_until(lambda: fresh.held() == 0, 5, "nothing is held")


def test_a_refused_response_of_a_lane_is_released_while_the_socket_lives(fresh: Customer) -> None:
    """The error that answers a `response.create` releases its hold, though it names no lane."""
    with opened(fresh, "/responses") as socket:
        socket.send(create(sandbox_says(status=429), stream_id="a"))
        until(socket, "error")
        wait_until(lambda: fresh.held() == 0, 5, "the refused response is released")
        socket.send(create("hello", stream_id="a"))
        until(socket, "response.completed")
    assert len(rows(fresh, 1)) == 1


def test_a_response_may_build_on_one_of_the_same_socket_only(
    fresh: Customer, served: Callable[..., Any], new_customer: Callable[..., Customer]
) -> None:
    other = new_customer(served(), "1000")
    with opened(fresh, "/responses") as socket, opened(other, "/responses") as stranger:
        socket.send(create())
        first = until(socket, "response.completed")[-1]["response"]["id"]
        stranger.send(create(previous_response_id=first))
        refused = until(stranger, "error")[-1]
        assert (refused["status"], refused["error"]["code"]) == (404, "previous_response_not_found")


def test_pictures_of_another_models_response_are_held_for_by_the_rule_of_the_one_that_reads_them(
    fresh: Customer,
) -> None:
    """gpt-4o-mini counts a picture of 2000 x 2000 some 33 times higher than gpt-4.1."""
    picture = "data:image/png;base64," + base64.b64encode(png(2_000, 2_000)).decode()
    content = [{"type": "input_image", "image_url": picture} for _ in range(4)]
    first = {"type": "response.create", "model": "gpt-4.1", "max_output_tokens": 16}
    with opened(fresh, "/responses") as socket:
        socket.send(json.dumps({**first, "input": [{"role": "user", "content": content}]}))
        made = until(socket, "response.completed", "response.incomplete")[-1]["response"]["id"]
        socket.send(json.dumps({**first, "model": "gpt-4o-mini", "input": "x", "previous_response_id": made}))
        usage = until(socket, "response.completed", "response.incomplete")[-1]["response"]["usage"]
    row = next(row for row in rows(fresh, 2) if row["model"] == "gpt-4o-mini")
    record = fresh.generation(row["requestId"])
    assert usage["input_tokens"] > 100_000
    assert int(record["heldMillicredits"]) >= int(record["chargedMillicredits"]) > 15_000


def test_when_the_credits_are_gone_the_socket_says_so_and_closes(
    served: Callable[..., Any], new_customer: Callable[..., Customer], sandbox: Sandbox
) -> None:
    poor = new_customer(served(), "1")
    sandbox.clear()
    with opened(poor, "/responses") as socket:
        socket.send(create("x" * 4_000, max_output_tokens=5_000))
        (event,) = until(socket, "error")
        assert (event["status"], event["error"]["code"]) == (402, "insufficient_credits")
        assert event["requiredCredits"] > 1
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=10)
        assert socket.close_code == 1008
    assert [row for row in sandbox.record() if row["method"] == "WS"] == []
    assert poor.balance() == 1_000


@pytest.mark.parametrize("event", ["response.steer", "session.update", "whatever"])
def test_events_that_could_spend_unasked_are_refused_and_the_socket_lives_on(fresh: Customer, event: str) -> None:
    with opened(fresh, "/responses") as socket:
        socket.send(json.dumps({"type": event}))
        assert until(socket, "error")[-1]["error"]["code"] == "unsupported_event"
        socket.send("not json")
        assert until(socket, "error")[-1]["error"]["code"] == "invalid_event"
        socket.send(create())
        until(socket, "response.completed")


def test_a_client_that_leaves_in_the_middle_pays_for_what_it_was_shown(fresh: Customer) -> None:
    directive = sandbox_says(output_tokens=200, chunk_interval_ms=30)
    with opened(fresh, "/responses") as socket:
        socket.send(
            json.dumps({"type": "response.create", "model": "gpt-4.1", "input": directive, "max_output_tokens": 300})
        )
        until(socket, "response.output_text.delta")
    (row,) = rows(fresh, 1)
    assert (row["usageSource"], row["outcome"]) == ("counted", "client_gone")
    assert 0 < row["outputTokens"] < 200
    wait_until(lambda: fresh.held() == 0, 10, "nothing is held")


@pytest.mark.parametrize("path", ["/responses", f"/realtime?model={VOICE}"])
def test_who_leaves_before_an_answer_owes_the_input_of_what_upstream_works_on(
    served: Callable[..., Any], new_customer: Callable[..., Customer], path: str
) -> None:
    """Two are asked for one after the other: upstream has not looked at the second one."""
    upstream = SocketUpstream()
    asked = create() if path == "/responses" else json.dumps({"type": "response.create"})
    if path != "/responses":
        capped = {"type": "realtime", "model": VOICE, "max_output_tokens": 4_096}
        upstream.frames = [{"type": "session.updated", "session": capped}]
    try:
        customer = new_customer(served(TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url), "1000")
        with opened(customer, path) as socket:
            ours = len(upstream.frames)  # the frame that sets the session's cap
            for _ in range(2):
                socket.send(asked)
            wait_until(lambda: upstream.heard == ours + 2, 10, "both are asked for")
        wait_until(lambda: customer.held() == 0, 10, "nothing is held")
        (row,) = rows(customer, 1)
    finally:
        upstream.close()
    assert (row["usageSource"], row["outcome"], row["outputTokens"]) == ("counted", "client_gone", 0)
    assert row["inputTokens"] == (8 if path == "/responses" else 0)  # there, nobody has said anything yet


@pytest.mark.parametrize("begun", [False, True])
def test_what_upstream_closes_without_an_answer_is_free(
    served: Callable[..., Any], new_customer: Callable[..., Customer], begun: bool
) -> None:
    """In good order, as at the end of a session's time: the client has not left, and owes nothing."""
    upstream = SocketUpstream()
    upstream.hangs_up = True
    created = {"type": "response.created", "response": {"id": "resp_1", "model": CHAT, "status": "in_progress"}}
    upstream.frames = [created] if begun else []
    try:
        customer = new_customer(served(TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url), "1000")
        with opened(customer, "/responses") as socket:
            socket.send(create())
            with pytest.raises(ConnectionClosed):
                while True:
                    socket.recv(timeout=10)
        wait_until(lambda: customer.held() == 0, 10, "nothing is held")
    finally:
        upstream.close()
    assert [row["chargedMillicredits"] for row in customer.usage()] == (["0"] if begun else [])
    assert customer.balance() == 1_000_000


@pytest.mark.parametrize("way", ["closed", "reset"])
def test_what_thinks_unseen_is_read_on_to_its_usage_when_the_client_leaves(
    fresh: Customer, sandbox: Sandbox, way: str
) -> None:
    directive = sandbox_says(output_tokens=60, reasoning_tokens=150, chunk_interval_ms=5)
    asked = {"type": "response.create", "model": "gpt-5.4-mini", "input": directive, "max_output_tokens": 400}
    with opened(fresh, "/responses") as socket:
        socket.send(json.dumps(asked))
        until(socket, "response.output_text.delta")
        if way == "reset":
            socket.socket.setsockopt(SOL_SOCKET, SO_LINGER, LINGER_ZERO)
            socket.socket.close()
    (row,) = rows(fresh, 1)
    (served,) = [one["usage"] for one in sandbox.record() if one["usage"]]
    assert row["usageSource"] == "upstream"
    assert (row["inputTokens"], row["outputTokens"]) == (served["input_tokens"], served["output_tokens"])
    assert row["reasoningTokens"] == 150
    assert "session failed" not in fresh.server.log()
    wait_until(lambda: all(one["finishedAt"] for one in sandbox.record()), 15, "the upstream's socket is let go too")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/responses", {"Authorization": "Bearer tk-wrong"}, 401),
        ("/realtime?model=gpt-4o", None, 404),
        ("/realtime", None, 400),
        ("/skills", None, 403),
        ("/realtime/translations?model=gpt-realtime-translate", None, 403),
    ],
)
def test_a_handshake_that_is_not_offered_is_refused(
    fresh: Customer, sandbox: Sandbox, path: str, headers: Any, status: int
) -> None:
    sandbox.clear()
    with pytest.raises(InvalidStatus) as refused:
        connect(
            fresh.server.v1.replace("http://", "ws://") + path,
            additional_headers=headers or fresh.headers,
            open_timeout=10,
        )
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body or b"{}")["error"]["message"]
    assert sandbox.record() == []


@pytest.mark.filterwarnings(
    "ignore:connect\\(\\) must be used as a context manager"
)  # the SDK's own way with websockets 17
def test_the_sdk_speaks_to_a_realtime_session_and_every_turn_is_charged(fresh: Customer) -> None:
    client = OpenAI(
        base_url=fresh.server.v1, api_key=fresh.api_key, websocket_base_url=fresh.server.v1.replace("http://", "ws://")
    )
    usages = []
    with client.realtime.connect(model=VOICE) as connection:
        connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        for text in ("Hello there.", "And again."):
            connection.conversation.item.create(
                item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
            )
            connection.response.create()
            for event in connection:
                assert event.type != "error", event
                if event.type == "response.done":
                    usages.append(event.response.usage)
                    break
    charges = [int(row["chargedMillicredits"]) for row in reversed(rows(fresh, 2))]
    for usage, charged in zip(usages, charges, strict=True):
        inside, out = usage.input_token_details, usage.output_token_details
        cached = inside.cached_tokens or 0
        # gpt-realtime-2.1: 4 / cached 0.4 / out 24 for text, 32 in and 64 out for audio
        expected = usd_to_charge(
            (inside.text_tokens - cached, "4"),
            (cached, "0.4"),
            (inside.audio_tokens, "32"),
            (out.text_tokens, "24"),
            (out.audio_tokens, "64"),
        )
        assert charged == expected
    wait_until(lambda: fresh.held() == 0, 5, "nothing is held")


def test_a_realtime_session_has_an_output_cap_from_the_start_and_hides_our_event(fresh: Customer) -> None:
    with opened(fresh, f"/realtime?model={VOICE}") as socket:
        (created,) = until(socket, "session.created")
        assert created["session"]["model"] == VOICE
        socket.send(
            json.dumps({"type": "session.update", "session": {"type": "realtime", "instructions": "Be brief."}})
        )
        (updated,) = until(socket, "session.updated")
        assert (updated["session"]["max_output_tokens"], updated["session"]["instructions"]) == (4_096, "Be brief.")


def test_transcription_inside_a_session_is_charged_at_its_own_model(fresh: Customer) -> None:
    second = base64.b64encode(b"\0" * 48_000).decode()
    heard = {"input": {"transcription": {"model": "gpt-4o-transcribe"}, "turn_detection": None}}
    with opened(fresh, f"/realtime?model={VOICE}") as socket:
        socket.send(
            json.dumps(
                {
                    "type": "session.update",
                    "session": {"type": "realtime", "output_modalities": ["text"], "audio": heard},
                }
            )
        )
        until(socket, "session.updated")
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": second}))
        socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        said = until(socket, "conversation.item.input_audio_transcription.completed")[-1]["usage"]
        socket.send(json.dumps({"type": "response.create"}))
        usage = until(socket, "response.done")[-1]["response"]["usage"]
    charges = {row["model"]: int(row["chargedMillicredits"]) for row in rows(fresh, 2)}
    inside, out = usage["input_token_details"], usage["output_token_details"]
    cached = inside.get("cached_tokens", 0)
    asr = said["input_token_details"]
    spoken = usd_to_charge(
        (inside["text_tokens"] - cached, "4"),
        (cached, "0.4"),
        (inside["audio_tokens"], "32"),
        (out["text_tokens"], "24"),
        (out["audio_tokens"], "64"),
    )
    # gpt-4o-transcribe: text 2.5, audio 6, out 10
    heard_for = usd_to_charge((asr["text_tokens"], "2.5"), (asr["audio_tokens"], "6"), (said["output_tokens"], "10"))
    assert charges == {VOICE: spoken, "gpt-4o-transcribe": heard_for}


@pytest.mark.parametrize(("model", "charge"), [("gpt-4o-transcribe", 1_820), ("whisper-1", 3_000)])
@pytest.mark.parametrize("late", [0, 700], ids=["before the response", "after it"])
@pytest.mark.parametrize("left", [False, True], ids=["heard", "left before it"])
def test_speech_is_charged_whenever_its_transcript_comes(
    fresh: Customer, model: str, charge: int, late: int, left: bool
) -> None:
    """Thirty seconds: 300 tokens of sound at 6 and two of text at 10, or by the second."""
    silence = base64.b64encode(b"\0" * 48_000 * 30).decode()
    said = sandbox_says(output_tokens=5, transcription={"latency_ms": late, "text": "hello there"})
    session = {
        "type": "realtime",
        "instructions": said,
        "audio": {"input": {"transcription": {"model": model}, "turn_detection": None}},
    }
    with opened(fresh, f"/realtime?model={VOICE}") as socket:
        socket.send(json.dumps({"type": "session.update", "session": session}))
        until(socket, "session.updated")
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": silence}))
        socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        socket.send(json.dumps({"type": "response.create"}))
        seen = until(socket, "response.done")
        name = "conversation.item.input_audio_transcription.completed"
        heard = any(event["type"] == name for event in seen)
        if not heard and not left:
            until(socket, name)
            heard = True
    charges = {row["model"]: int(row["chargedMillicredits"]) for row in rows(fresh, 2)}
    # without its transcript it is charged by its sound: the two tokens of text are not known
    assert charges[model] == (charge if heard or model == "whisper-1" else charge - 20)
    assert fresh.held() == 0


def test_an_update_that_the_server_refuses_lowers_no_hold(fresh: Customer) -> None:
    """The response of a session with a cap of one token would be held for next to nothing."""
    refused = {"type": "realtime", "max_output_tokens": 1, "audio": {"output": {"voice": "nobody"}}}
    with opened(fresh, f"/realtime?model={VOICE}") as socket:
        until(socket, "session.created")
        socket.send(json.dumps({"type": "session.update", "session": refused}))
        error = until(socket, "error")[-1]
        assert error["error"]["event_id"] is None
        socket.send(
            json.dumps({"type": "response.create", "response": {"instructions": sandbox_says(output_tokens=9)}})
        )
        until(socket, "response.done")
    (row,) = rows(fresh, 1)
    # 4,096 tokens of sound at 64
    assert int(fresh.generation(row["requestId"])["heldMillicredits"]) > 4_096 * 64


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (
            {"type": "session.update", "session": {"type": "realtime", "model": "gpt-realtime-mini"}},
            "model_change_not_allowed",
        ),
        ({"type": "session.update", "session": {"type": "transcription"}}, "session_not_allowed"),
        ({"type": "session.update", "session": {"type": "realtime", "prompt": {"id": "pmpt_1"}}}, "prompt_not_found"),
        ({"type": "session.update", "session": {"type": "realtime", "tools": [{"type": "mcp"}]}}, "unsupported_tool"),
        (
            {
                "type": "session.update",
                "session": {"type": "realtime", "audio": {"output": {"voice": {"id": "voice_1"}}}},
            },
            "voice_not_found",
        ),
        ({"type": "response.create", "response": {"prompt": {"id": "pmpt_1"}}}, "prompt_not_found"),
        (
            {
                "type": "conversation.item.create",
                "item": {"type": "message", "role": "user", "content": [{"type": "input_image", "file_id": "f"}]},
            },
            "file_not_found",
        ),
        ({"type": "transcription_session.update"}, "unsupported_event"),
    ],
)
def test_what_has_no_price_or_points_into_the_shared_account_is_refused(
    fresh: Customer, event: dict[str, Any], code: str
) -> None:
    with opened(fresh, f"/realtime?model={VOICE}") as socket:
        until(socket, "session.created")
        socket.send(json.dumps(event))
        assert until(socket, "error")[-1]["error"]["code"] == code
        socket.send(json.dumps({"type": "input_audio_buffer.clear"}))
        until(socket, "input_audio_buffer.cleared")


def test_a_browser_names_its_key_as_a_sub_protocol(fresh: Customer) -> None:
    url = fresh.server.v1.replace("http://", "ws://") + f"/realtime?model={VOICE}"
    with connect(url, subprotocols=["realtime", f"openai-insecure-api-key.{fresh.api_key}"], open_timeout=10) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "realtime"
        until(socket, "session.created")


def test_a_realtime_session_without_credit_ends_before_anything_is_heard(
    served: Callable[..., Any], new_customer: Callable[..., Customer], sandbox: Sandbox
) -> None:
    """What pays for the shortest answer opens the session; what it asks for is then too much."""
    poor = new_customer(served(), "50")
    with opened(poor, f"/realtime?model={VOICE}") as socket:
        until(socket, "session.created")
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA"}))
        event = until(socket, "error")[-1]
        assert event["error"]["code"] == "insufficient_credits"
        assert event["error"]["message"].endswith(f" Top up: {poor.server.url}/credits")
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=10)
    assert poor.balance() == 50_000


@pytest.mark.parametrize(
    ("path", "credits"),
    [("/responses", "0"), (f"/realtime?model={VOICE}", "0"), (f"/realtime?model={VOICE}", "1")],
)
def test_a_handshake_that_nothing_can_be_paid_on_is_a_402(
    served: Callable[..., Any], new_customer: Callable[..., Customer], sandbox: Sandbox, path: str, credits: str
) -> None:
    poor = new_customer(served(), credits)
    name = 'billing_402_insufficient_credits_total{source="balance"}'
    time.sleep(0.6)
    before = counted(poor, name)
    sandbox.clear()
    with pytest.raises(InvalidStatus) as refused, opened(poor, path):
        pass
    response = refused.value.response
    assert (response.status_code, response.headers["x-should-retry"]) == (402, "false")
    body = json.loads(response.body or b"")
    assert (body["error"]["code"], body["currentCredits"]) == ("insufficient_credits", int(credits))
    assert body["requiredCredits"] > int(credits)
    assert body["error"]["message"].endswith(f" Top up: {poor.server.url}/credits")
    assert sandbox.record() == []
    (line,) = wait_until(lambda: log_lines(poor), 5, "the line")
    assert (line["status"], line["outcome"]) == (402, "insufficient_credits")
    wait_until(lambda: counted(poor, name) == before + 1, 5, "it is counted")


def test_what_others_hold_and_what_is_free_refuses_no_handshake(
    served: Callable[..., Any], new_customer: Callable[..., Customer], sandbox: Sandbox
) -> None:
    free = served(TOLLKEEPER_BILLING__CHARGING_ENABLED="false", TOLLKEEPER_BILLING__CHARGING_DISABLED_MODE="free")
    with opened(new_customer(free, "0"), f"/realtime?model={VOICE}") as socket:
        until(socket, "session.created")
    busy = new_customer(served(), "150")
    with busy.stream(busy.body({"output_tokens": 200, "chunk_interval_ms": 50}, max_tokens=15_000, n=16)) as wire:
        wire.read_events(1)
        assert busy.held() > 140_000
        with opened(busy, f"/realtime?model={VOICE}") as socket:
            until(socket, "session.created")
