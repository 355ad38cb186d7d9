"""Conversations, files and stored chats through the official SDK: each its owner's only, bounded, and charged where it is read."""

import concurrent.futures
import json
import os
import sqlite3
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import pytest
from openai import ConflictError, NotFoundError, OpenAI, PermissionDeniedError
from websockets.sync.client import connect

from tests.support import web
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import Sandbox, Tollkeeper, sandbox_says, wait_until
from tests.support.wire import events_of

MODEL = "gpt-5.4-mini"  # 0.75 / out 4.5
PLAIN = "gpt-4.1"  # 2 / out 8
PDF = b"%PDF-1.4 " + b"x" * 2_000


class Pair(NamedTuple):
    owner: Customer
    stranger: Customer


@pytest.fixture
def pair(served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox) -> Pair:
    server = served()
    return Pair(new_customer(server, "1000"), new_customer(server, "1000"))


@pytest.fixture
def sdk(pair: Pair) -> OpenAI:
    return client(pair.owner)


def client(customer: Customer) -> OpenAI:
    return OpenAI(base_url=customer.server.v1, api_key=customer.api_key, max_retries=0)


def paid_for(*usages: Any) -> int:
    return sum(usd_to_charge((one.input_tokens, "2"), (one.output_tokens, "8")) for one in usages)


def tokens_kept(customer: Customer, object_id: str) -> int | None:
    with sqlite3.connect(customer.server.folder / "var" / "tollkeeper.db") as database:
        (row,) = database.execute("SELECT context_tokens FROM upstream_objects WHERE id = ?", (object_id,)).fetchall()
    found: int | None = row[0]
    return found


# -- items --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/compact"])
def test_an_item_that_is_referred_to_is_held_for_as_what_it_is(pair: Pair, path: str) -> None:
    """As the Vercel AI SDK sends its steps: a few bytes that stand for all that a model wrote before (I2)."""
    owner = pair.owner
    long = {"model": PLAIN, "input": sandbox_says(output_tokens=9_000), "max_output_tokens": 10_000}
    made = owner.post(long, "/v1/responses").json()
    step = [{"type": "item_reference", "id": made["output"][0]["id"]}, {"role": "user", "content": "and?"}]
    asked: dict[str, Any] = {"model": PLAIN, "input": step}
    answer = owner.post(asked if path.endswith("compact") else {**asked, "max_output_tokens": 16}, path)
    assert answer.status_code == 200, answer.text
    record = owner.generation(answer.headers["x-request-id"])
    assert int(record["inputTokens"]) > 8_000
    assert int(record["chargedMillicredits"]) <= int(record["heldMillicredits"])
    assert "platform_loss" not in owner.transfers(answer.headers["x-request-id"])


def test_items_of_one_answer_are_held_for_once(pair: Pair) -> None:
    owner = pair.owner
    says = sandbox_says(output_tokens=9_000, reasoning_tokens=3_000)
    made = owner.post({"model": MODEL, "input": says, "max_output_tokens": 20_000}, "/v1/responses").json()
    held = []
    for count in (1, len(made["output"])):
        step = [{"type": "item_reference", "id": one["id"]} for one in made["output"][:count]]
        answer = owner.post({"model": MODEL, "input": step, "max_output_tokens": 16}, "/v1/responses")
        assert answer.status_code == 200, answer.text
        held.append(int(owner.generation(answer.headers["x-request-id"])["heldMillicredits"]))
    assert len(made["output"]) > 1
    assert held[0] > 9_000 * 3 // 4
    assert held[1] - held[0] < 1_000  # the bytes of a reference


def test_an_item_of_a_conversation_that_is_referred_to_is_held_for(pair: Pair, sdk: OpenAI) -> None:
    owner = pair.owner
    conversation = sdk.conversations.create()
    text = "the toll road is long " * 2_000
    added = sdk.conversations.items.create(
        conversation.id, items=[{"type": "message", "role": "user", "content": text}]
    )
    step = [{"type": "item_reference", "id": added.data[0].id}]
    answer = owner.post({"model": PLAIN, "input": step, "max_output_tokens": 16}, "/v1/responses")
    assert answer.status_code == 200, answer.text
    record = owner.generation(answer.headers["x-request-id"])
    assert int(record["inputTokens"]) > 8_000
    assert int(record["chargedMillicredits"]) <= int(record["heldMillicredits"])


def test_an_id_that_a_client_gives_its_item_makes_nothing_its_own(pair: Pair, sdk: OpenAI) -> None:
    """The upstream may keep it, and it may be someone else's (I8)."""
    theirs = client(pair.stranger).conversations.create(
        items=[{"type": "message", "role": "user", "content": "secret"}]
    )
    (item,) = client(pair.stranger).conversations.items.list(theirs.id).data
    own = sdk.conversations.create().id
    given: Any = {"type": "message", "role": "user", "content": "mine", "id": item.id}
    assert sdk.conversations.items.create(own, items=[given]).data[0].id == item.id
    step = {"model": PLAIN, "input": [{"type": "item_reference", "id": item.id}], "max_output_tokens": 16}
    answer = pair.owner.post(step, "/v1/responses")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "item_not_found")


# -- conversations ------------------------------------------------------------------------------------------------


def test_a_conversation_is_made_read_changed_and_deleted(sdk: OpenAI) -> None:
    made = sdk.conversations.create(
        metadata={"a": "b"}, items=[{"type": "message", "role": "user", "content": "hello"}]
    )
    assert sdk.conversations.retrieve(made.id).metadata == {"a": "b"}
    assert sdk.conversations.update(made.id, metadata={"c": "d"}).metadata == {"c": "d"}
    added = sdk.conversations.items.create(made.id, items=[{"role": "user", "content": "and you?"}])
    listed = sdk.conversations.items.list(made.id, order="asc", limit=10)
    assert [item.id for item in listed][1:] == [item.id for item in added.data]
    first = added.data[0].id
    assert first is not None
    assert sdk.conversations.items.retrieve(first, conversation_id=made.id).id == first
    sdk.conversations.items.delete(first, conversation_id=made.id)
    assert sdk.conversations.delete(made.id).deleted
    with pytest.raises(NotFoundError):
        sdk.conversations.retrieve(made.id)


def test_responses_in_a_conversation_are_held_for_all_of_it_and_charged_what_they_read(pair: Pair, sdk: OpenAI) -> None:
    made = sdk.conversations.create(items=[{"role": "user", "content": "tell me more " * 60}])
    usages = []
    for text in ("go on", "and on", sandbox_says(output_tokens=300)):
        answer = sdk.responses.create(model=PLAIN, input=text, conversation=made.id, max_output_tokens=400)
        assert answer.usage is not None
        usages.append(answer.usage)
    assert usages[0].input_tokens > 150
    assert [one.input_tokens for one in usages] == sorted(one.input_tokens for one in usages)
    wait_until(lambda: pair.owner.held() == 0, 10, "nothing is held")
    assert 1_000_000 - pair.owner.balance() == paid_for(*usages)  # nothing was above its hold
    last = usages[-1].input_tokens + usages[-1].output_tokens
    assert tokens_kept(pair.owner, made.id) == last


@pytest.mark.parametrize("form", ["id", "object"])
def test_a_hold_covers_a_conversation_that_is_larger_than_the_request(pair: Pair, sdk: OpenAI, form: str) -> None:
    """10,000 words cost 20 credits to read: an account with less is refused, whatever its own request says."""
    made = sdk.conversations.create(items=[{"role": "user", "content": "word " * 10_000}])
    named: Any = made.id if form == "id" else {"id": made.id}
    pair.owner.server.cli("grant", pair.owner.account_id, "-995", "--reason", "test")
    pair.owner.wait_balance(5_000)
    answer = pair.owner.post(
        {"model": PLAIN, "input": "hi", "conversation": named, "max_output_tokens": 16}, "/v1/responses"
    )
    assert answer.status_code == 402, answer.text
    assert float(answer.json()["requiredCredits"]) > 20


@pytest.mark.parametrize("form", ["conversation", "previous response"])
def test_what_a_small_window_left_out_is_held_for_where_a_larger_one_reads_it(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox, form: str
) -> None:
    """Truncated, the answer reports less than is kept (I2): a few cents would have bought a dollar's reading."""
    owner = new_customer(served(), "100000")
    sdk, half = client(owner), "the toll road is long " * 14_000
    thread = sdk.conversations.create().id
    items: Any = [{"type": "message", "role": "user", "content": half}]
    try:
        if form == "conversation":
            for _ in range(2):
                sdk.conversations.items.create(thread, items=items)
            sandbox.settings(context_tokens=128_000)
            last = sdk.responses.create(
                model="gpt-4o-mini", conversation=thread, input="short", max_output_tokens=16, truncation="auto"
            )
        else:
            first = sdk.responses.create(model="gpt-4o-mini", input=items, max_output_tokens=16)
            sandbox.settings(context_tokens=128_000)
            last = sdk.responses.create(
                model="gpt-4o-mini",
                previous_response_id=first.id,
                input=items,
                max_output_tokens=16,
                truncation="auto",
            )
    finally:
        sandbox.settings(context_tokens=1_050_000)
    assert last.usage is not None
    assert last.usage.input_tokens < 80_000
    given = {"conversation": thread} if form == "conversation" else {"previous_response_id": last.id}
    answer = owner.post({"model": PLAIN, "input": "all?", "max_output_tokens": 16, **given}, "/v1/responses")
    assert answer.status_code == 200, answer.text
    record = owner.generation(answer.headers["x-request-id"])
    assert int(record["inputTokens"]) > 130_000
    assert int(record["chargedMillicredits"]) <= int(record["heldMillicredits"])


def test_an_answer_that_fails_gives_back_what_it_reserved(pair: Pair, sdk: OpenAI) -> None:
    made = sdk.conversations.create(items=[{"role": "user", "content": "hello"}])
    before = tokens_kept(pair.owner, made.id)
    body = {"model": PLAIN, "input": sandbox_says(status=500), "conversation": made.id, "max_output_tokens": 4_000}
    assert pair.owner.post(body, "/v1/responses").status_code == 500
    wait_until(lambda: pair.owner.held() == 0, 10, "nothing is held")
    assert tokens_kept(pair.owner, made.id) == before


def test_two_at_once_in_one_conversation_are_both_held_for_or_one_is_told_to_wait(pair: Pair, sdk: OpenAI) -> None:
    made = sdk.conversations.create(items=[{"role": "user", "content": "hello"}])

    def ask(number: int) -> Any:
        said = sandbox_says(output_tokens=200, latency_ms=150)
        try:
            return sdk.responses.create(
                model=PLAIN, input=f"{number} {said}", conversation=made.id, max_output_tokens=300
            ).usage
        except ConflictError as error:
            assert error.code == "conversation_locked"
            return None

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        usages = [one for one in pool.map(ask, range(6)) if one is not None]
    assert usages
    wait_until(lambda: pair.owner.held() == 0, 10, "nothing is held")
    assert 1_000_000 - pair.owner.balance() == paid_for(*usages)
    kept = tokens_kept(pair.owner, made.id)
    assert kept is not None
    assert kept >= max(one.input_tokens + one.output_tokens for one in usages)


def test_a_tool_that_runs_at_openai_is_not_put_into_a_conversation(sdk: OpenAI) -> None:
    item: Any = {"type": "additional_tools", "role": "developer", "tools": [{"type": "web_search"}]}
    with pytest.raises(Exception, match="cannot be kept in a conversation"):
        sdk.conversations.create(items=[item])


def test_a_tool_inside_a_stored_responses_items_is_held_for_in_what_builds_on_it(pair: Pair) -> None:
    item = {"type": "additional_tools", "role": "developer", "tools": [{"type": "web_search"}]}
    first = pair.owner.post(
        {"model": MODEL, "input": [item, {"role": "user", "content": "hi"}], "max_output_tokens": 50}, "/v1/responses"
    ).json()
    asked = {"model": MODEL, "input": "go on", "previous_response_id": first["id"], "max_output_tokens": 50}
    answer = pair.owner.post(asked, "/v1/responses")
    assert answer.status_code == 200, answer.text
    assert pair.owner.served(answer.headers["x-request-id"])["requestBody"]["max_tool_calls"] == 4


@pytest.mark.parametrize("size", ["known", "unknown"])
def test_a_tool_inside_a_requests_items_stays_in_its_conversation_and_is_held_for_from_then_on(
    pair: Pair, sdk: OpenAI, size: str
) -> None:
    part = {"type": "input_file", "file_data": "data:application/pdf;base64,JVBERg==", "filename": "a.pdf"}
    pair.owner.grant("9000")  # what has no known size is held for by the window, at every turn
    pair.owner.wait_balance(10_000_000)
    said: Any = [{"role": "user", "content": [part] if size == "unknown" else "hello"}]
    made = sdk.conversations.create(items=said)
    tools = [{"type": "web_search"}]
    item = {"type": "additional_tools", "role": "developer", "tools": tools}
    ask = {"model": MODEL, "conversation": made.id, "max_output_tokens": 50}
    first = pair.owner.post({**ask, "input": [item, {"role": "user", "content": "hi"}]}, "/v1/responses")
    assert first.status_code == 200, first.text
    answer = pair.owner.post({**ask, "input": "go on"}, "/v1/responses")
    assert answer.status_code == 200, answer.text
    assert pair.owner.served(answer.headers["x-request-id"])["requestBody"]["max_tool_calls"] == 4


def test_an_answer_that_broke_off_may_have_been_added_all_the_same(pair: Pair, sdk: OpenAI) -> None:
    made = sdk.conversations.create(items=[{"role": "user", "content": "hello"}])
    said = sandbox_says(output_tokens=300, cut={"after_chunks": 1})
    body = {"model": PLAIN, "input": said, "conversation": made.id, "max_output_tokens": 400}
    assert pair.owner.post(body, "/v1/responses").status_code == 502
    wait_until(lambda: pair.owner.held() == 0, 10, "nothing is held")
    kept = tokens_kept(pair.owner, made.id)
    assert kept is not None
    assert kept >= 300
    usage = sdk.responses.create(model=PLAIN, input="and?", conversation=made.id, max_output_tokens=20).usage
    assert usage is not None
    assert tokens_kept(pair.owner, made.id) == usage.input_tokens + usage.output_tokens  # known again


def test_a_socket_reads_and_extends_a_conversation(pair: Pair, sdk: OpenAI) -> None:
    made = sdk.conversations.create(items=[{"role": "user", "content": "tell me more " * 60}])
    url = pair.owner.server.v1.replace("http://", "ws://") + "/responses"
    usages = []
    with connect(url, additional_headers=pair.owner.headers, open_timeout=10) as socket:
        for _ in range(2):
            ask = {"model": PLAIN, "input": "go on", "conversation": made.id, "max_output_tokens": 50}
            socket.send(json.dumps({"type": "response.create", **ask}))
            while (frame := json.loads(socket.recv(timeout=10)))["type"] != "response.completed":
                assert frame["type"] != "error", frame
            usages.append(frame["response"]["usage"])
    assert usages[1]["input_tokens"] > usages[0]["input_tokens"] > 150
    wait_until(lambda: pair.owner.held() == 0, 10, "nothing is held")
    wait_until(
        lambda: tokens_kept(pair.owner, made.id) == usages[1]["input_tokens"] + usages[1]["output_tokens"],
        10,
        "the conversation has what the last answer says",
    )


def test_an_image_tool_inside_a_stored_responses_items_is_held_for_in_what_builds_on_it(pair: Pair) -> None:
    tool = {"type": "image_generation", "model": "gpt-image-2", "quality": "low", "size": "1024x1024"}
    item = {"type": "additional_tools", "role": "developer", "tools": [tool]}
    first = pair.owner.post(
        {"model": MODEL, "input": [item, {"role": "user", "content": "hi"}], "max_output_tokens": 50}, "/v1/responses"
    ).json()
    held = []
    for previous in ({"previous_response_id": first["id"]}, {}):
        with pair.owner.stream(
            {
                "model": MODEL,
                "input": sandbox_says(silent="after_headers"),
                "max_output_tokens": 50,
                "store": False,
                **previous,
            },
            "/v1/responses",
        ) as wire:
            held.append(float(str(wire.header("x-credits-held"))))
    assert held[0] > held[1] + 1


DRAWS: dict[str, Any] = {
    "model": "gpt-5.4",  # a picture of 1536 x 1024 is 1,536 patches, times 1.2
    "tools": [{"type": "image_generation", "model": "gpt-image-2", "quality": "low", "size": "1536x1024"}],
    "max_tool_calls": 1,
    "max_output_tokens": 50,
}


@pytest.mark.parametrize("built_on", ["previous response", "conversation", "item", "in the background", "streamed"])
def test_a_picture_that_was_drawn_is_held_for_by_what_reads_it_again(pair: Pair, sdk: OpenAI, built_on: str) -> None:
    """The usage of the answer that drew it says nothing of what it takes when it is read."""
    conversation = sdk.conversations.create().id
    drawing = {**DRAWS, "input": "a toll booth " + sandbox_says(calls=["image_generation"])}
    if built_on == "conversation":
        drawing["conversation"] = conversation
    if built_on == "streamed":
        with pair.owner.stream(drawing, "/v1/responses") as wire:
            first = events_of(wire.read_all().data)[-1]["response"]
    else:
        body = {**drawing, "background": built_on == "in the background"}
        first = pair.owner.post(body, "/v1/responses").json()
    if built_on == "in the background":
        wait_until(lambda: tokens_kept(pair.owner, first["id"]), 20, "it is settled")
        first = sdk.responses.retrieve(first["id"]).to_dict()
    drawn = next(item for item in first["output"] if item["type"] == "image_generation_call")
    said = {"model": "gpt-5.4", "input": "what is on it? " + sandbox_says(output_tokens=16), "max_output_tokens": 16}
    refer = {
        "conversation": {"conversation": conversation},
        "item": {"input": [{"type": "item_reference", "id": drawn["id"]}, {"role": "user", "content": said["input"]}]},
    }.get(built_on, {"previous_response_id": first["id"]})
    answer = pair.owner.post({**said, **refer}, "/v1/responses")
    assert answer.status_code == 200, answer.text
    read = answer.json()["usage"]["input_tokens"]
    assert read > 1_844
    row = pair.owner.generation(answer.headers["x-request-id"])
    assert int(row["heldMillicredits"]) >= int(row["chargedMillicredits"]) > 1_844 * 5 // 2


def test_a_tool_in_the_items_of_an_answer_that_broke_off_is_held_for_in_what_builds_on_it(pair: Pair) -> None:
    item = {"type": "additional_tools", "role": "developer", "tools": [{"type": "web_search"}]}
    asked = [item, {"role": "user", "content": "long " + sandbox_says(output_tokens=400, chunk_interval_ms=50)}]
    with pair.owner.stream({"model": PLAIN, "input": asked, "max_output_tokens": 500}, "/v1/responses") as wire:
        name = events_of(wire.read_events(1))[0]["response"]["id"]
    with sqlite3.connect(pair.owner.server.folder / "var" / "tollkeeper.db") as database:
        (tools,) = database.execute("SELECT tools FROM upstream_objects WHERE id = ?", (name,)).fetchone()
    assert tools == "web_search"


@pytest.mark.parametrize("known", [True, False], ids=["someone else's", "unknown"])
def test_every_path_of_someone_elses_object_is_the_404_of_one_that_never_was(
    pair: Pair, sdk: OpenAI, sandbox: Sandbox, known: bool
) -> None:
    conversation = sdk.conversations.create(items=[{"role": "user", "content": "secret"}]).id if known else "conv_never"
    file = sdk.files.create(file=("a.pdf", PDF), purpose="user_data").id if known else "file-never"
    chat = "chatcmpl-never"
    if known:
        chat = sdk.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}], store=True, max_tokens=5
        ).id
    sandbox.clear()
    paths = [
        *(
            (method, f"/conversations/{conversation}", kind)
            for method in ("GET", "POST", "DELETE")
            for kind in ("conversation",)
        ),
        *((method, f"/conversations/{conversation}/items", "conversation") for method in ("GET", "POST")),
        *((method, f"/conversations/{conversation}/items/msg_1", "conversation") for method in ("GET", "DELETE")),
        *((method, f"/files/{file}", "file") for method in ("GET", "DELETE")),
        ("GET", f"/files/{file}/content", "file"),
        *((method, f"/chat/completions/{chat}", "chat_completion") for method in ("GET", "POST", "DELETE")),
        ("GET", f"/chat/completions/{chat}/messages", "chat_completion"),
    ]
    bodies = {"/items": {"items": [{"role": "user", "content": "mine"}]}}
    for method, path, kind in paths:
        body = bodies["/items"] if path.endswith("/items") else {"metadata": {}}
        content: dict[str, Any] = {"json": body} if method == "POST" else {}
        answer = web.request(
            method, pair.stranger.server.v1 + path, headers=pair.stranger.headers, timeout=10, **content
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, f"{kind}_not_found"), (method, path)
    for named in (
        {"input": "hi", "conversation": conversation},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": file}]}]},
    ):
        refused = pair.stranger.post({"model": MODEL, "max_output_tokens": 50, **named}, "/v1/responses")
        assert refused.status_code == 404, refused.text
    messages = [{"role": "user", "content": [{"type": "file", "file": {"file_id": file}}]}]
    assert pair.stranger.post({"model": "gpt-4o-mini", "messages": messages, "max_tokens": 5}).status_code == 404
    assert sandbox.record() == []


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_file_is_uploaded_listed_read_and_deleted(pair: Pair, sdk: OpenAI) -> None:
    made = [sdk.files.create(file=(f"{number}.pdf", PDF), purpose="user_data") for number in range(3)]
    other = client(pair.stranger).files.create(file=("theirs.pdf", PDF), purpose="assistants")
    assert [one.id for one in sdk.files.list()] == [one.id for one in reversed(made)]
    assert [one.id for one in sdk.files.list(limit=2, order="asc")] == [one.id for one in made]  # the SDK turns pages
    assert [one.id for one in client(pair.stranger).files.list(purpose="assistants")] == [other.id]
    assert list(client(pair.stranger).files.list(purpose="vision")) == []
    assert sdk.files.retrieve(made[0].id).bytes == len(PDF)
    assert sdk.files.content(made[0].id).read() == PDF
    assert sdk.files.delete(made[0].id).deleted
    assert [one.id for one in sdk.files.list()] == [made[2].id, made[1].id]


def test_a_list_of_files_takes_openais_limits_and_shows_a_page_of_ours(pair: Pair, sdk: OpenAI) -> None:
    for number in range(21):
        sdk.files.create(file=(f"{number}.pdf", PDF), purpose="user_data")
    assert len(sdk.files.list().data) == 21  # OpenAI shows 10,000 without a limit, and chats 20
    assert len(sdk.files.list(limit=10_000).data) == 21
    for limit in ("0", "10001", "x"):
        refused = web.get(f"{pair.owner.server.v1}/files?limit={limit}", headers=pair.owner.headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limit")
    chats = web.get(f"{pair.owner.server.v1}/chat/completions?limit=101", headers=pair.owner.headers)
    assert chats.json()["error"]["message"] == "`limit` must be between 1 and 100."


@pytest.mark.parametrize("call", ["GET /files/{file}", "GET /files", "DELETE /files/{file}", "POST /responses"])
def test_a_beta_variant_is_refused_with_the_reason_whatever_it_asks_for(pair: Pair, sdk: OpenAI, call: str) -> None:
    file = sdk.files.create(file=("a.pdf", PDF), purpose="user_data").id
    method, path = call.format(file=file).split()
    refused = web.request(method, f"{pair.owner.server.v1}{path}?beta=true", headers=pair.owner.headers)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "beta")
    assert "no price here: leave `beta` out" in error["message"]


def test_a_file_comes_back_as_it_was_sent_whatever_it_says(pair: Pair, sdk: OpenAI, sandbox: Sandbox) -> None:
    """What looks like the upstream's word about the operator's account is the customer's own text here."""
    words = {"message": "Incorrect API key provided", "type": "invalid_request_error", "code": "invalid_api_key"}
    for data in (json.dumps({"error": words}).encode(), b"", os.urandom(300_000)):
        made = sdk.files.create(file=("a.json", data or b" "), purpose="user_data")
        assert sdk.files.content(made.id).read() == (data or b" ")
    metrics = web.get(f"{pair.owner.server.url}/metrics", timeout=10).text
    assert not [
        row
        for row in metrics.splitlines()
        if row.startswith("tollkeeper_upstream_account_errors_total") and not row.endswith(" 0.0")
    ]


@pytest.mark.parametrize("limit", ["0000001", "1" * 5_000, "000001" + "9" * 5_000, "²", "+1", "1e1"])
@pytest.mark.parametrize("path", ["files", "batches", "chat/completions"])
def test_a_limit_is_a_plain_number(pair: Pair, path: str, limit: str) -> None:
    answer = web.get(f"{pair.owner.server.v1}/{path}", params={"limit": limit}, headers=pair.owner.headers, timeout=10)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


def test_what_is_deleted_is_forgotten_before_the_client_hears_of_it(pair: Pair, sdk: OpenAI) -> None:
    file = sdk.files.create(file=("a.pdf", PDF), purpose="user_data").id
    path = pair.owner.server.folder / "var" / "tollkeeper.db"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with sqlite3.connect(path, isolation_level=None) as database:
            database.execute("BEGIN IMMEDIATE")
            deleting = pool.submit(sdk.files.delete, file)
            with pytest.raises(concurrent.futures.TimeoutError):
                deleting.result(1)
            database.execute("ROLLBACK")
        assert deleting.result(10).deleted
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT deleted_at FROM upstream_objects WHERE id = ?", (file,)).fetchone()[0]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
def test_a_request_that_reads_a_file_is_held_for_the_window_and_charged_what_it_took(
    pair: Pair, sdk: OpenAI, path: str
) -> None:
    file = sdk.files.create(file=("a.pdf", PDF), purpose="user_data").id
    if path.endswith("responses"):
        part: dict[str, Any] = {"type": "input_file", "file_id": file}
        body = {"model": "gpt-4o-mini", "input": [{"role": "user", "content": [part]}], "max_output_tokens": 50}
    else:
        part = {"type": "file", "file": {"file_id": file}}
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": [part]}], "max_tokens": 50}
    answer = pair.owner.post(body, path)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    told = (
        usage.get("input_tokens") or usage.get("prompt_tokens"),
        usage.get("output_tokens") or usage.get("completion_tokens"),
    )
    assert pair.owner.charged(answer.headers["x-request-id"]) == usd_to_charge((told[0], "0.15"), (told[1], "0.6"))
    pair.owner.server.cli("grant", pair.owner.account_id, "-985", "--reason", "test")
    wait_until(lambda: pair.owner.balance() < 15_000, 10, "the balance is taken down")
    refused = pair.owner.post(body, path)
    assert (refused.status_code, float(refused.json()["requiredCredits"]) > 19) == (
        402,
        True,
    )  # 128,000 tokens of input


def test_what_a_file_may_be_is_checked(pair: Pair, sdk: OpenAI, sandbox: Sandbox) -> None:
    def upload(**fields: str) -> httpx.Response:
        return web.post(
            pair.owner.server.v1 + "/files", headers=pair.owner.headers, files={"file": ("a.txt", b"x")}, data=fields
        )

    for fields, param in (
        ({}, "purpose"),
        ({"purpose": "fine-tune"}, "purpose"),
        ({"purpose": "user_data", "x": "y"}, "x"),
        ({"purpose": "user_data", "expires_after[seconds]": "1"}, "expires_after"),
    ):
        answer = upload(**fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert sandbox.record() == []
    assert (
        upload(
            **{"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        ).status_code
        == 200
    )


def test_how_much_an_account_may_keep_is_bounded(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox
) -> None:
    server = served(TOLLKEEPER_STORAGE__MAX_OBJECTS="2", TOLLKEEPER_STORAGE__MAX_BYTES="3000")
    sdk = client(new_customer(server, "10"))
    sdk.files.create(file=("a.pdf", PDF), purpose="user_data")
    with pytest.raises(PermissionDeniedError, match="bytes"):
        sdk.files.create(file=("b.pdf", PDF), purpose="user_data")
    sdk.conversations.create()
    sdk.conversations.create()
    with pytest.raises(PermissionDeniedError, match="delete some"):
        sdk.conversations.create()
    client(new_customer(server, "10")).conversations.create()


def test_nothing_is_made_where_nothing_is_stored(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox
) -> None:
    sdk = client(new_customer(served(TOLLKEEPER_BILLING__ALLOW_STORE="false"), "10"))
    for make in (sdk.conversations.create, lambda: sdk.files.create(file=("a.pdf", PDF), purpose="user_data")):
        with pytest.raises(PermissionDeniedError, match="allow_store"):
            make()
    assert sandbox.record() == []


# -- stored chats ---------------------------------------------------------------------------------------------------


def test_a_stored_chat_is_listed_read_changed_and_deleted(pair: Pair, sdk: OpenAI) -> None:
    made = [
        sdk.chat.completions.create(
            model="gpt-4o-mini",
            messages=[{"role": "user", "content": f"hi {number}"}],
            store=True,
            metadata={"number": str(number)},
            max_tokens=5,
        ).id
        for number in range(3)
    ]
    assert [one.id for one in sdk.chat.completions.list(order="asc")] == made
    assert [one.id for one in sdk.chat.completions.list(metadata={"number": "1"})] == [made[1]]
    assert list(client(pair.stranger).chat.completions.list()) == []
    assert sdk.chat.completions.retrieve(made[0]).id == made[0]
    assert [one.content for one in sdk.chat.completions.messages.list(made[0])] == ["hi 0"]
    assert sdk.chat.completions.update(made[0], metadata={"x": "y"}).metadata == {"x": "y"}
    sdk.chat.completions.delete(made[0])
    assert [one.id for one in sdk.chat.completions.list(order="asc")] == made[1:]


# -- the end of what is stored --------------------------------------------------------------------------------------


def test_what_is_older_than_the_operator_keeps_is_deleted_upstream(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox
) -> None:
    server = served(TOLLKEEPER_STORAGE__KEEP_DAYS="30")
    customer = new_customer(server, "10")
    sdk = client(customer)
    old, new = sdk.conversations.create().id, sdk.conversations.create().id
    with sqlite3.connect(server.folder / "var" / "tollkeeper.db") as database:
        database.execute("UPDATE upstream_objects SET created_at = created_at - 31 * 86400000 WHERE id = ?", (old,))
    server.stop()
    server.start()  # the first look is at the start

    def gone() -> bool:
        return any(row["method"] == "DELETE" and row["path"].endswith(old) for row in sandbox.record())

    wait_until(gone, 20, "it is deleted upstream")
    with pytest.raises(NotFoundError):
        sdk.conversations.retrieve(old)
    assert sdk.conversations.retrieve(new).id == new


def test_what_an_account_stored_is_deleted_upstream_by_one_command(pair: Pair, sdk: OpenAI, sandbox: Sandbox) -> None:
    theirs = client(pair.stranger).conversations.create().id
    conversation = sdk.conversations.create().id
    file = sdk.files.create(file=("a.pdf", PDF), purpose="user_data").id
    response = sdk.responses.create(model=PLAIN, input="hi", max_output_tokens=16).id
    store = sdk.vector_stores.create(file_ids=[file]).id
    sandbox.clear()
    said = pair.owner.server.cli("account", "forget-stored", pair.owner.account_id, "--reason", "left")
    assert (said["deleted"], said["complete"]) == (4, True)
    deleted = {row["path"].rpartition("/")[2] for row in sandbox.record() if row["method"] == "DELETE"}
    assert deleted == {conversation, file, response, store}
    assert client(pair.stranger).conversations.retrieve(theirs).id == theirs
