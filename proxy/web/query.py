"""Parameters of a path or query, and the cursors of paged lists."""

import base64
import re

from starlette.requests import Request

from billing.storage.database import now_ms
from proxy.web.rejections import invalid
from proxy.web.times import read_time

DEFAULT_LIMIT, MAX_LIMIT = 50, 200
CURSOR = re.compile(rb"([0-9]{1,15}):([!-~]{1,160})")


def check_parameters(request: Request) -> None:
    """Raise Rejection for a NUL character in the path or the query.

    PostgreSQL cannot compare it, and nothing of ours is called so.
    """
    for name, value in (*request.path_params.items(), *request.query_params.multi_items()):
        if "\0" in name or "\0" in value:
            shown = name.replace("\0", "")
            raise invalid(f"`{shown}` holds a NUL character.", shown)


def whole_number(raw: str, name: str) -> int:
    """Read a number of a query. Raises Rejection."""
    if not raw.isascii() or not raw.isdigit() or len(raw) > 18:
        raise invalid(f"`{name}` must be a whole number.", name)
    return int(raw)


def parse_time(raw: str | None, name: str) -> int | None:
    """Read a time in ISO 8601 (UTC unless it says otherwise) as Unix milliseconds. Raises Rejection."""
    if raw is None:
        return None
    try:
        return read_time(raw)
    except ValueError:
        raise invalid(f"`{name}` must be an ISO 8601 time such as 2026-11-23T12:00:00Z.", name) from None


def parse_end(raw: str | None, name: str) -> int | None:
    """Read a time to come in Unix milliseconds; None: never. Raises Rejection, also for what is over already."""
    ends = parse_time(raw, name)
    if ends is not None and ends <= now_ms():
        raise invalid(f"`{name}` is in the past.", name)
    return ends


def page_limit(request: Request) -> int:
    """Rows that a page has. Raises Rejection."""
    raw = request.query_params.get("limit")
    limit = DEFAULT_LIMIT if raw is None else whole_number(raw, "limit")
    if not 1 <= limit <= MAX_LIMIT:
        raise invalid(f"`limit` must be between 1 and {MAX_LIMIT}.", "limit")
    return limit


def write_cursor(created_at: int, row_id: str) -> str:
    """Cursor of the page that begins after this row."""
    return base64.urlsafe_b64encode(f"{created_at}:{row_id}".encode()).decode().rstrip("=")


def read_cursor(raw: str | None) -> tuple[int, str] | None:
    """Return (created_at, id) of the last row seen; None for the first page. Raises Rejection."""
    if raw is None:
        return None
    try:
        found = CURSOR.fullmatch(base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)))
    except ValueError:
        found = None
    if found is None:
        raise invalid("`cursor` is not one of ours: pass `nextCursor` of the page before.", "cursor")
    return int(found[1]), found[2].decode()
