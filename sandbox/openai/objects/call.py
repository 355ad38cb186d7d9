"""One request on a stored object, and what its paths share."""

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from sandbox.openai.exchange.answer import Answer, Request, json_answer
from sandbox.openai.exchange.shelf import Shelf
from sandbox.openai.requests.errors import invalid
from sandbox.openai.requests.forms import Uploads
from sandbox.openai.steering.settings import Live

PURPOSES: Final = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_PAGE: Final = 20
_PAGE_MAX: Final = 100

Route = tuple[str, re.Pattern[str], Callable[["ObjectCall"], Answer]]


class ObjectCall(msgspec.Struct):
    """One request on an object."""

    shelf: Shelf
    request: Request
    body: dict[str, Any]
    uploads: Uploads
    new_id: Callable[[str], str]
    live: Live
    ids: tuple[str, ...] = ()


def page(call: ObjectCall, rows: list[dict[str, Any]]) -> Answer:
    """Return the page of these rows, oldest first, that the query asks for. Raises ApiError."""
    query = parse_qs(call.request.query)
    limit = query.get("limit", [str(_PAGE)])[0]
    if not limit.isdigit() or not 1 <= int(limit) <= _PAGE_MAX:
        raise invalid(f"Invalid 'limit': expected an integer between 1 and {_PAGE_MAX}.", "limit", "invalid_value")
    rows = rows if query.get("order", ["desc"])[0] == "asc" else [*reversed(rows)]
    after = query.get("after", [""])[0]
    if after:
        places = [index for index, row in enumerate(rows) if row["id"] == after]
        rows = rows[places[0] + 1 :] if places else []
    shown = rows[: int(limit)]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return json_answer({"object": "list", "data": shown, **ends, "has_more": len(shown) < len(rows)})


def route(method: str, path: str, handler: Callable[[ObjectCall], Answer]) -> Route:
    """Return a row of the table of paths; `{}` stands for an id."""
    return method, re.compile(path.replace("{}", "([A-Za-z0-9_-]+)")), handler
