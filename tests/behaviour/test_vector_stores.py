"""Uploads, vector stores and searches of them through the official SDK: each its owner's only, bounded, and charged as used."""

import concurrent.futures
import json
import sqlite3
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from openai import (
    APIStatusError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    PermissionDeniedError,
    RateLimitError,
)
from websockets.sync.client import connect

from billing.money.pricing import load_catalogue
from tests.support import web
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import Sandbox, Tollkeeper, sandbox_says, wait_until

MODEL = "gpt-4.1"  # 2 / cached 0.5 / out 8
SEARCH = 2_500
"""Millicredits of one call."""
TEXT = b"The refund policy: whales are refunded within 30 days.\n"
UPLOAD: dict[str, Any] = {"filename": "a.txt", "mime_type": "text/plain", "purpose": "assistants"}


class Pair(NamedTuple):
    owner: Customer
    stranger: Customer


@pytest.fixture
def pair(served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox) -> Pair:
    sandbox.settings(store_ms=0, store_file_bytes=0)
    server = served()
    return Pair(new_customer(server, "1000"), new_customer(server, "1000"))


@pytest.fixture
def sdk(pair: Pair) -> OpenAI:
    return client(pair.owner)


def client(customer: Customer) -> OpenAI:
    return OpenAI(base_url=customer.server.v1, api_key=customer.api_key, max_retries=0)


def file_of(sdk: OpenAI, data: bytes = TEXT) -> str:
    return sdk.files.create(file=("a.txt", data), purpose="assistants").id


def store_of(sdk: OpenAI, data: bytes = TEXT) -> str:
    return sdk.vector_stores.create(name="docs", file_ids=[file_of(sdk, data)]).id


def kept(customer: Customer, column: str, object_id: str) -> Any:
    with sqlite3.connect(customer.server.folder / "var" / "tollkeeper.db") as database:
        (row,) = database.execute(f"SELECT {column} FROM upstream_objects WHERE id = ?", (object_id,)).fetchall()  # noqa: S608
    return row[0]


# -- uploads --------------------------------------------------------------------------------------------------------


def test_an_upload_in_parts_becomes_a_file_of_its_owner(pair: Pair, sdk: OpenAI) -> None:
    upload = sdk.uploads.create(bytes=6, **UPLOAD)
    parts = [sdk.uploads.parts.create(upload.id, data=piece).id for piece in (b"def", b"abc")]
    done = sdk.uploads.complete(upload.id, part_ids=parts[::-1])
    assert done.file is not None
    assert sdk.files.content(done.file.id).read() == b"abcdef"
    assert kept(pair.owner, "size_bytes", done.file.id) == 6
    assert [file.id for file in sdk.files.list()] == [done.file.id]
    with pytest.raises(NotFoundError):
        client(pair.stranger).files.retrieve(done.file.id)
    assert pair.owner.balance() == 1_000_000


def test_an_upload_of_lines_runs_as_a_batch(pair: Pair, sdk: OpenAI) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    data = json.dumps(line).encode()
    upload = sdk.uploads.upload_file_chunked(
        file=data, filename="a.jsonl", bytes=len(data), mime_type="application/jsonl", purpose="batch"
    )
    assert upload.file is not None
    made = sdk.batches.create(input_file_id=upload.file.id, endpoint="/v1/chat/completions", completion_window="24h")
    wait_until(lambda: sdk.batches.retrieve(made.id).status == "completed", 20, "the batch is done")


def test_an_upload_is_cancelled_and_takes_no_room(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer]
) -> None:
    server = served(TOLLKEEPER_STORAGE__MAX_BYTES="100", TOLLKEEPER_STORAGE__MAX_OBJECTS="2")
    sdk = client(new_customer(server, "10"))
    upload = sdk.uploads.create(bytes=80, **UPLOAD)
    with pytest.raises(PermissionDeniedError) as refused:
        sdk.uploads.create(bytes=21, **UPLOAD)
    assert refused.value.code == "too_many_bytes"
    with pytest.raises(PermissionDeniedError):
        file_of(sdk, b"x" * 21)
    assert sdk.uploads.cancel(upload.id).status == "cancelled"
    first = sdk.uploads.create(bytes=80, **UPLOAD)
    sdk.uploads.complete(first.id, part_ids=[sdk.uploads.parts.create(first.id, data=b"x" * 80).id])
    file_of(sdk, b"x" * 20)
    with pytest.raises(PermissionDeniedError) as refused:
        sdk.uploads.create(bytes=0 + 1, **UPLOAD)
    assert refused.value.code == "too_many_objects"


def test_parts_beyond_what_was_announced_are_refused(pair: Pair, sdk: OpenAI, sandbox: Sandbox) -> None:
    upload = sdk.uploads.create(bytes=10, **UPLOAD)
    sdk.uploads.parts.create(upload.id, data=b"x" * 8)
    sandbox.clear()
    with pytest.raises(BadRequestError) as refused:
        sdk.uploads.parts.create(upload.id, data=b"x" * 3)
    assert refused.value.code == "too_many_bytes"
    assert sandbox.record() == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"bytes": 0}, "bytes"),
        ({"bytes": 9 * 1024**3}, "bytes"),
        ({"bytes": True}, "bytes"),
        ({"filename": ""}, "filename"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after"),
        ({"webhook": "x"}, "webhook"),
    ],
)
def test_what_an_upload_may_not_say_is_refused_without_a_call(
    pair: Pair, sandbox: Sandbox, fields: dict[str, Any], param: str
) -> None:
    sandbox.clear()
    answer = pair.owner.post({"bytes": 10, **UPLOAD, **fields}, "/v1/uploads")
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert sandbox.record() == []


# -- vector stores --------------------------------------------------------------------------------------------------


def test_a_store_is_made_filled_searched_and_deleted_by_an_unmodified_client(pair: Pair, sdk: OpenAI) -> None:
    upload = sdk.uploads.upload_file_chunked(
        file=TEXT, filename="a.txt", bytes=len(TEXT), mime_type="text/plain", purpose="assistants"
    )
    assert upload.file is not None
    store = sdk.vector_stores.create(name="docs", expires_after={"anchor": "last_active_at", "days": 3})
    batch = sdk.vector_stores.file_batches.create_and_poll(store.id, file_ids=[upload.file.id], poll_interval_ms=50)
    assert batch.file_counts.completed == 1
    assert [one.id for one in sdk.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)]
    answer = sdk.responses.create(
        model=MODEL,
        input=f"what is the refund policy? {sandbox_says(calls=['file_search'])}",
        tools=[{"type": "file_search", "vector_store_ids": [store.id]}],
        include=["file_search_call.results"],
        max_tool_calls=1,
        max_output_tokens=50,
    )
    (called,) = (item for item in answer.output if item.type == "file_search_call")
    assert [row.file_id for row in called.results or ()] == [upload.file.id]
    assert answer.usage is not None
    tokens = usd_to_charge((answer.usage.input_tokens, "2"), (answer.usage.output_tokens, "8"))
    assert 1_000_000 - pair.owner.balance() == tokens + SEARCH
    found = sdk.vector_stores.search(store.id, query="refund policy")
    assert [row.file_id for row in found] == [upload.file.id]
    assert 1_000_000 - pair.owner.balance() == tokens + 2 * SEARCH
    assert sdk.vector_stores.retrieve(store.id).usage_bytes == len(TEXT) * 3 // 2
    assert sdk.vector_stores.delete(store.id).deleted
    with pytest.raises(NotFoundError):
        sdk.vector_stores.retrieve(store.id)


def test_files_of_a_store_are_put_read_changed_and_taken_out(pair: Pair, sdk: OpenAI) -> None:
    store, file = sdk.vector_stores.create().id, file_of(sdk)
    put = sdk.vector_stores.files.create_and_poll(
        file,
        vector_store_id=store,
        attributes={"a": 1},
        poll_interval_ms=50,
        chunking_strategy={"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 50}},
    )
    assert put.status == "completed"
    files = sdk.vector_stores.files
    assert [one.id for one in files.list(store, filter="completed")] == [file]
    assert files.retrieve(file, vector_store_id=store).attributes == {"a": 1}
    assert files.update(file, vector_store_id=store, attributes={"b": True}).attributes == {"b": True}
    assert [part.text for part in files.content(file, vector_store_id=store)] == [TEXT.decode()]
    assert files.delete(file, vector_store_id=store).deleted
    assert sdk.vector_stores.retrieve(store).usage_bytes == 0
    assert sdk.vector_stores.update(store, name="new", metadata={"x": "y"}).name == "new"


def test_lists_are_of_an_accounts_own_and_turn_both_ways(pair: Pair, sdk: OpenAI) -> None:
    stores = [sdk.vector_stores.create(name=str(number)).id for number in range(4)]
    client(pair.stranger).vector_stores.create()
    listed = sdk.vector_stores.list
    assert [one.id for one in listed(limit=2)] == stores[::-1]
    assert [one.id for one in listed(order="asc", after=stores[1])] == stores[2:]
    assert [one.id for one in listed(order="asc", before=stores[3], limit=2).data] == stores[1:3]
    assert len(listed(limit=100).data) == 4


def references(store: str, file: str, batch: str) -> dict[str, tuple[str, str, Any]]:
    """(method, path, body) of every way to name a store, a file or a batch."""
    at = f"/v1/vector_stores/{store}"
    tool = {"type": "file_search", "vector_store_ids": [store]}
    ask = {"model": MODEL, "input": "hi", "max_output_tokens": 20}
    inside = {"type": "additional_tools", "role": "developer", "tools": [tool]}
    spaced = {"type": "namespace", "name": "n", "description": "d", "tools": [tool]}
    own = "/v1/vector_stores/{own}"
    return {
        "retrieve": ("GET", at, None),
        "update": ("POST", at, {"name": "x"}),
        "delete": ("DELETE", at, None),
        "search": ("POST", f"{at}/search", {"query": "x"}),
        "files": ("GET", f"{at}/files", None),
        "attach": ("POST", f"{at}/files", {"file_id": "{own_file}"}),
        "batch": ("POST", f"{at}/file_batches", {"file_ids": ["{own_file}"]}),
        "their file in a new store": ("POST", "/v1/vector_stores", {"file_ids": [file]}),
        "their file in one's store": ("POST", f"{own}/files", {"file_id": file}),
        "their file in a batch": ("POST", f"{own}/file_batches", {"file_ids": ["{own_file}", file]}),
        "their file in a batch of objects": ("POST", f"{own}/file_batches", {"files": [{"file_id": file}]}),
        "their file in a path": ("GET", f"{own}/files/{file}/content", None),
        "their batch": ("GET", f"{own}/file_batches/{batch}", None),
        "their batch, cancelled": ("POST", f"{own}/file_batches/{batch}/cancel", None),
        "their batch's files": ("GET", f"{own}/file_batches/{batch}/files", None),
        "tool": ("POST", "/v1/responses", {**ask, "tools": [tool]}),
        "tool in an item": ("POST", "/v1/responses", {**ask, "input": [inside, {"role": "user", "content": "hi"}]}),
        "tool in a namespace": ("POST", "/v1/responses", {**ask, "tools": [spaced]}),
        "counted tokens": ("POST", "/v1/responses/input_tokens", {"model": MODEL, "input": "x", "tools": [tool]}),
        "compacted items": ("POST", "/v1/responses/compact", {"model": MODEL, "input": [inside]}),
    }


PLACES = sorted(references("vs_1", "file-1", "vsfb_1"))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("known", [True, False], ids=["someone else's", "unknown"])
def test_an_id_that_is_not_ones_own_is_a_404_and_no_call(pair: Pair, sandbox: Sandbox, place: str, known: bool) -> None:
    theirs, own = client(pair.owner), client(pair.stranger)
    store, file, batch = "vs_never", "file-never", "vsfb_never"
    if known:
        store, file = theirs.vector_stores.create().id, file_of(theirs)
        batch = theirs.vector_stores.file_batches.create(store, file_ids=[file]).id
    named = {"{own}": own.vector_stores.create().id, "{own_file}": file_of(own)}
    method, path, body = references(store, file, batch)[place]
    said = json.dumps(body)
    for name, value in named.items():
        path, said = path.replace(name, value), said.replace(name, value)
    sandbox.clear()
    headers = {**pair.stranger.headers, "content-type": "application/json"}
    content = None if body is None else said.encode()
    answer = web.request(method, pair.stranger.server.url + path, headers=headers, content=content, timeout=10)
    assert answer.status_code == 404, answer.text
    assert answer.json()["error"]["code"] in ("vector_store_not_found", "file_not_found", "file_batch_not_found")
    assert sandbox.record() == []
    assert pair.stranger.balance() == 1_000_000


def test_an_uploads_parts_are_its_owners_only(pair: Pair, sdk: OpenAI, sandbox: Sandbox) -> None:
    theirs = client(pair.stranger)
    upload, own = sdk.uploads.create(bytes=3, **UPLOAD), theirs.uploads.create(bytes=3, **UPLOAD)
    part = sdk.uploads.parts.create(upload.id, data=b"abc").id
    sandbox.clear()
    tries: list[Callable[[], Any]] = [
        lambda: theirs.uploads.complete(own.id, part_ids=[part]),
        lambda: theirs.uploads.complete(upload.id, part_ids=[part]),
        lambda: theirs.uploads.parts.create(upload.id, data=b"x"),
        lambda: theirs.uploads.cancel(upload.id),
    ]
    for attempt in tries:
        with pytest.raises(NotFoundError):
            attempt()
    assert sandbox.record() == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/vector_stores", {"chunking_strategy": {"type": "own"}}, "chunking_strategy"),
        (
            "/v1/vector_stores",
            {"chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 5_000}}},
            "chunking_strategy",
        ),
        ("/v1/vector_stores", {"file_ids": "x" * 3}, "file_ids"),
        ("/v1/vector_stores", {"files": []}, "files"),
        ("{store}/files", {}, "file_id"),
        ("{store}/files", {"file_id": 3}, "file_id"),
        ("{store}/file_batches", {}, "file_ids"),
        ("{store}/file_batches", {"file_ids": ["a"], "files": [{"file_id": "a"}]}, "file_ids"),
        ("{store}/file_batches", {"files": [{"file_id": "a", "more": 1}]}, "files[].more"),
        ("{store}/search", {}, "query"),
        ("{store}/search", {"query": [1]}, "query"),
        ("{store}/search", {"query": "x", "model": "y"}, "model"),
    ],
)
def test_what_a_store_may_not_be_told_is_refused_without_a_call(
    pair: Pair, sdk: OpenAI, sandbox: Sandbox, path: str, body: dict[str, Any], param: str
) -> None:
    path = path.replace("{store}", f"/v1/vector_stores/{sdk.vector_stores.create().id}")
    sandbox.clear()
    answer = pair.owner.post(body, path)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert sandbox.record() == []
    assert pair.owner.balance() == 1_000_000


def test_stores_have_a_number_and_bytes_at_most(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer]
) -> None:
    server = served(TOLLKEEPER_STORAGE__MAX_BYTES="200", TOLLKEEPER_STORAGE__MAX_OBJECTS="2")
    customer = new_customer(server, "10")
    customer.sandbox.settings(store_ms=0, store_file_bytes=0)
    sdk = client(customer)
    file = file_of(sdk, b"x" * 80)
    store = sdk.vector_stores.create(file_ids=[file]).id
    assert sdk.vector_stores.retrieve(store).usage_bytes == 120
    other = sdk.vector_stores.create().id
    with pytest.raises(PermissionDeniedError) as refused:
        sdk.vector_stores.create()
    assert refused.value.code == "too_many_objects"
    sdk.vector_stores.files.create(other, file_id=file)
    sdk.vector_stores.retrieve(other)  # 240 bytes are stored now
    with pytest.raises(PermissionDeniedError) as refused:
        sdk.vector_stores.files.create(other, file_id=file)
    assert refused.value.code == "too_many_bytes"


@pytest.mark.parametrize("what", ["new stores", "one store", "files"])
def test_of_many_at_once_no_more_are_stored_than_there_is_room_for(
    what: str, served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer]
) -> None:
    """An account is worth its bytes for as long as its grace lasts, to whoever pays OpenAI for them."""
    server = served(TOLLKEEPER_STORAGE__MAX_BYTES="1000")
    customer = new_customer(server, "10")
    customer.sandbox.settings(store_ms=0, store_file_bytes=400)
    sdk = client(customer)
    if what != "files":
        file, store = file_of(sdk, b"x" * 400), sdk.vector_stores.create().id
    calls: dict[str, Callable[[int], Any]] = {
        "new stores": lambda _: sdk.vector_stores.create(file_ids=[file]),
        "one store": lambda _: sdk.vector_stores.files.create(store, file_id=file),
        "files": lambda number: file_of(sdk, f"{number:400}".encode()),
    }

    def made(number: int) -> bool:
        try:
            calls[what](number)
        except PermissionDeniedError as error:
            assert error.code == "too_many_bytes"
            return False
        return True

    customer.sandbox.settings(latency_ms=300)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            several = sum(pool.map(made, range(8)))
    finally:
        customer.sandbox.settings(latency_ms=0, store_file_bytes=0)
    assert several <= 2
    assert several + made(9) >= 1, "no claim is left over"


def test_who_cannot_pay_for_a_day_stores_nothing(pair: Pair, sandbox: Sandbox) -> None:
    sdk, server = client(pair.owner), pair.owner.server
    file = file_of(sdk, b"x" * 100_000)  # 10 millicredits a day
    store = sdk.vector_stores.create().id
    server.cli("grant", pair.owner.account_id, "-999.995", "--reason", "test")
    pair.owner.wait_balance(5)
    sandbox.clear()
    with pytest.raises(APIStatusError) as refused:
        sdk.vector_stores.files.create(store, file_id=file)
    assert (refused.value.status_code, refused.value.code) == (402, "insufficient_credits")
    assert sandbox.record() == []
    sdk.vector_stores.create()  # an empty one costs nothing yet


def test_without_a_price_for_storage_there_are_no_stores(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer]
) -> None:
    server = served(TOLLKEEPER_STORAGE__GRACE_DAYS="6")  # a server of its own, whose card is changed
    sdk = client(new_customer(server, "10"))
    store = sdk.vector_stores.create().id
    card = load_catalogue()
    del card["tools"]["vector_store_gb_day"]
    (server.folder / "card.json").write_text(json.dumps({**card, "catalogueId": "no-storage"}))
    server.cli("rates", "import", "card.json")
    server.cli("rates", "activate", "no-storage", "--reason", "test")

    def refused() -> bool:
        """Whether the card is in force; a busy disk's 503 and a full minute's 429 do not say."""
        try:
            sdk.vector_stores.create()
        except (InternalServerError, RateLimitError):
            time.sleep(1)
        except PermissionDeniedError as error:
            assert error.code == "storage_has_no_price"
            return True
        return False

    wait_until(refused, 20, "the card is in force")
    with pytest.raises(PermissionDeniedError):
        sdk.vector_stores.file_batches.create(store, file_ids=[file_of(sdk)])
    assert sdk.vector_stores.delete(store).deleted  # what there was can be taken away


def test_a_socket_searches_its_accounts_stores_only(pair: Pair, sdk: OpenAI) -> None:
    store = store_of(sdk)
    said = f"refund policy {sandbox_says(calls=['file_search'])}"
    body = {"type": "response.create", "model": MODEL, "input": said, "max_output_tokens": 20, "max_tool_calls": 1}
    tools = [{"type": "file_search", "vector_store_ids": [store]}]
    address = f"ws://127.0.0.1:{pair.owner.server.port}/v1/responses"
    ends: dict[str, dict[str, Any]] = {}
    for customer in pair:
        with connect(address, additional_headers=customer.headers) as socket:
            socket.send(json.dumps({**body, "tools": tools}))
            while True:
                event = json.loads(socket.recv(timeout=20))
                if event["type"] in ("response.completed", "response.incomplete", "error"):
                    ends[customer.account_id] = event
                    break
    assert ends[pair.stranger.account_id]["error"]["code"] == "vector_store_not_found"
    usage = ends[pair.owner.account_id]["response"]["usage"]
    wait_until(lambda: pair.owner.held() == 0, 10, "nothing is held")
    tokens = usd_to_charge((usage["input_tokens"], "2"), (usage["output_tokens"], "8"))
    assert 1_000_000 - pair.owner.balance() == tokens + SEARCH


def test_what_a_search_found_is_sent_again_as_text(pair: Pair, sdk: OpenAI) -> None:
    """As `input += response.output` does: the file may be gone meanwhile, and it is not read once more."""
    file = file_of(sdk)
    store = sdk.vector_stores.create(file_ids=[file]).id
    tool: Any = {"type": "file_search", "vector_store_ids": [store]}
    first = sdk.responses.create(
        model=MODEL,
        input=f"refund policy {sandbox_says(calls=['file_search'])}",
        tools=[tool],
        include=["file_search_call.results"],
        max_tool_calls=1,
        max_output_tokens=20,
    )
    sdk.files.delete(file)
    pair.owner.server.cli("grant", pair.owner.account_id, "-950", "--reason", "test")
    items: Any = [*(item.to_dict() for item in first.output), {"role": "user", "content": "go on"}]
    assert sdk.responses.create(model=MODEL, input=items, max_output_tokens=20).usage is not None


@pytest.mark.parametrize(("size", "found", "status"), [(4_096, 50, 402), (100, 50, 200), (4_096, 1, 200)])
def test_a_call_is_held_for_by_the_pieces_that_it_may_find(
    pair: Pair, sdk: OpenAI, size: int, found: int, status: int
) -> None:
    """204,800 tokens are 410 credits, and are read twice with one call; 40,000 are 80."""
    store = sdk.vector_stores.create(
        file_ids=[file_of(sdk)],
        chunking_strategy={"type": "static", "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": 10}},
    ).id
    pair.owner.server.cli("grant", pair.owner.account_id, "-800", "--reason", "test")
    pair.owner.wait_balance(200_000)
    tool = {"type": "file_search", "vector_store_ids": [store], "max_num_results": found}
    body = {"model": MODEL, "input": "x", "tools": [tool], "max_tool_calls": 1, "max_output_tokens": 20}
    assert pair.owner.post(body, "/v1/responses").status_code == status


# -- searches -------------------------------------------------------------------------------------------------------


def test_a_search_is_charged_a_call_for_each_query_and_booked_with_its_cost(pair: Pair, sdk: OpenAI) -> None:
    store = store_of(sdk)
    answer = pair.owner.post({"query": ["refund", "policy"]}, f"/v1/vector_stores/{store}/search")
    assert answer.status_code == 200, answer.text
    request_id = answer.headers["x-request-id"]
    assert float(answer.headers["x-credits-charged"]) == 5
    row = pair.owner.generation(request_id)
    assert (row["model"], row["toolCalls"]) == ("vector_store_search", {"file_search": 2})
    assert row["endpoint"] == "/v1/vector_stores/{vector_store}/search"
    moved = {kind: amount for kind, (_, _, amount) in pair.owner.transfers(request_id).items()}
    assert moved == {"usage": 2 * SEARCH, "usage_cost": 2 * SEARCH}
    assert pair.owner.served(request_id)["toolUsage"]["file_search"] == {"num_requests": 2}


def test_a_search_that_fails_costs_nothing(pair: Pair, sdk: OpenAI, sandbox: Sandbox) -> None:
    store = store_of(sdk)
    sandbox.settings(directive={"status": 500})
    try:
        assert pair.owner.post({"query": "x"}, f"/v1/vector_stores/{store}/search").status_code == 500
        sandbox.settings(directive={"body_raw": '{"error": {"message": "no", "type": "server_error"}}'})
        assert pair.owner.post({"query": "x"}, f"/v1/vector_stores/{store}/search").status_code >= 400
    finally:
        sandbox.settings(directive={})
    assert pair.owner.held() == 0
    assert pair.owner.balance() == 1_000_000


def test_who_has_no_money_does_not_search(pair: Pair, sandbox: Sandbox) -> None:
    store = store_of(client(pair.owner))
    pair.owner.server.cli("grant", pair.owner.account_id, "-998", "--reason", "test")
    pair.owner.wait_balance(2_000)
    sandbox.clear()
    answer = pair.owner.post({"query": "x"}, f"/v1/vector_stores/{store}/search")
    assert answer.status_code == 402, answer.text
    assert answer.json()["requiredCredits"] == 2.5
    assert sandbox.record() == []
