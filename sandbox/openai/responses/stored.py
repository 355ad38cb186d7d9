"""The paths of one stored response: GET, DELETE, cancel and input_items."""

from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qs

import msgspec

from sandbox.openai.exchange.answer import Answer, Event, Request, json_answer
from sandbox.openai.exchange.bill import Spent
from sandbox.openai.exchange.store import Store, Stored
from sandbox.openai.requests.errors import ApiError, error_object, invalid

_PAGE: Final = 20
_PAGE_MAX: Final = 100


def by_id(store: Store, request: Request) -> Answer:
    """GET, DELETE, cancel and input_items of a stored response. Raises ApiError."""
    response_id, _, action = request.path.removeprefix("/v1/responses/").partition("/")
    handler = _ACTIONS.get((request.method, action))
    if handler is None:
        message = f"Invalid URL ({request.method} {request.path})"
        raise ApiError(404, error_object(message, "invalid_request_error"))
    stored = store.get(response_id)
    answer = handler(store, response_id, stored, request)
    answer.response_id = response_id
    return answer


def _retrieve(_store: Store, _id: str, stored: Stored, request: Request) -> Answer:
    query = parse_qs(request.query)
    if query.get("stream", ["false"])[0] != "true":
        return json_answer(stored.response())
    if stored.job is None:
        message = "Cannot stream a response that was not created with background=true."
        raise invalid(message, "stream", "invalid_value")
    after = query.get("starting_after", ["-1"])[0]
    if not after.lstrip("-").isdigit():
        raise invalid("Invalid type for 'starting_after': expected an integer.", "starting_after", "invalid_type")
    answer = Answer(200, events=_unbilled(stored.job.follow(int(after))))
    answer.model = stored.final["model"]
    return answer


def _unbilled(events: Iterator[Event]) -> Iterator[Event]:
    for event in events:
        yield msgspec.structs.replace(event, spent=Spent())


def _delete(store: Store, response_id: str, stored: Stored, _request: Request) -> Answer:
    if stored.job is not None:
        stored.job.cancel()
    store.delete(response_id)
    return json_answer({"id": response_id, "object": "response", "deleted": True})


def _cancel(_store: Store, _id: str, stored: Stored, _request: Request) -> Answer:
    if stored.job is None:
        raise invalid("Cannot cancel a synchronous response.", None, None)
    if not stored.job.running() and stored.job.status() != "cancelled":
        raise invalid(f"Cannot cancel a {stored.job.status()} response.", None, None)
    stored.job.cancel()
    return json_answer(stored.response())


def _input_items(_store: Store, _id: str, stored: Stored, request: Request) -> Answer:
    query = parse_qs(request.query)
    limit = query.get("limit", [str(_PAGE)])[0]
    if not limit.isdigit() or not 1 <= int(limit) <= _PAGE_MAX:
        raise invalid(f"Invalid 'limit': expected an integer between 1 and {_PAGE_MAX}.", "limit", "invalid_value")
    items = list(stored.input_items)
    if query.get("order", ["desc"])[0] != "asc":
        items.reverse()
    after = query.get("after", [""])[0]
    if after:
        places = [index for index, item in enumerate(items) if item["id"] == after]
        items = items[places[0] + 1 :] if places else []
    page = items[: int(limit)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return json_answer({"object": "list", "data": page, **ends, "has_more": len(page) < len(items)})


_ACTIONS: Final = {
    ("GET", ""): _retrieve,
    ("DELETE", ""): _delete,
    ("POST", "cancel"): _cancel,
    ("GET", "input_items"): _input_items,
}
