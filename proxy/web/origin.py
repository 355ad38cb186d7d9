"""A request's id and the address of its sender, for its answer, its log line and the audit log."""

import re
import secrets
from typing import NamedTuple

from proxy.web.asgi import Scope
from proxy.web.client_address import client_address
from proxy.web.paths import group_of

ORIGIN_KEY = "tollkeeper.origin"
"""Key of a scope under which the edge leaves the request's origin."""
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,80}")


class RequestOrigin(NamedTuple):
    """One request's id, and the address of its sender."""

    request_id: str
    address: str


def origin_of(scope: Scope) -> RequestOrigin:
    """Origin of a request: as the edge has it, else made up from the scope alone."""
    found: RequestOrigin | None = scope.get(ORIGIN_KEY)
    return found or RequestOrigin(choose_request_id(scope), client_address(scope, ()))


def choose_request_id(scope: Scope) -> str:
    """Return an admin's own id, so that a ticket's number finds its rows; else a new one of ours."""
    if group_of(scope["path"]) not in ("admin", "app"):
        return "side_" + secrets.token_hex(12)
    sent = header_value(scope, b"x-request-id")
    return sent.decode() if REQUEST_ID.fullmatch(sent) else "adm_" + secrets.token_hex(12)


def header_value(scope: Scope, name: bytes) -> bytes:
    """Value of a header in an ASGI scope; b"" where there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"")
