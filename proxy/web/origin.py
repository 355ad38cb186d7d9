"""Where a request comes from: which group of paths it asks for, its id, the address of its sender."""

import re
import secrets
from typing import Any, Literal, NamedTuple

from proxy.web.client_address import client_address

Group = Literal["v1", "side", "admin", "health"]


ADMIN_PATHS = ("/api/admin", "/admin", "/metrics")


HEALTH_PATHS = ("/healthz", "/readyz")


ASKED = "tollkeeper.asked"
"""Where in a scope the edge leaves what it knows of a request."""


REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,80}")


def group_of(path: str) -> Group:
    """Which group a path belongs to."""
    if path == "/v1" or path.startswith("/v1/"):
        return "v1"
    if path in HEALTH_PATHS:
        return "health"
    return "admin" if is_under(path, ADMIN_PATHS) else "side"


class Asked(NamedTuple):
    """One request's id, which its answer, its log line and the audit log carry, and the address of who sent it."""

    request_id: str
    address: str


def asked_by(scope: Any) -> Asked:
    """What the edge knows of a request."""
    found: Asked | None = scope.get(ASKED)
    return found or Asked(request_id_of(scope), client_address(scope, ()))


def request_id_of(scope: Any) -> str:
    """An admin's own id, so that a ticket's number finds its rows; else one of ours."""
    if group_of(scope["path"]) != "admin":
        return "side_" + secrets.token_hex(12)
    sent = header_of(scope, b"x-request-id")
    return sent.decode() if REQUEST_ID.fullmatch(sent) else "adm_" + secrets.token_hex(12)


def header_of(scope: Any, name: bytes) -> bytes:
    """Value of a header in an ASGI scope; b"" where there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def is_under(path: str, bases: tuple[str, ...]) -> bool:
    """Tell whether a path is one of these or below one."""
    return any(path == base or path.startswith(f"{base}/") for base in bases)
