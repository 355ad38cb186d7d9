"""Groups of paths, by which listeners, request ids and headers differ."""

from typing import Literal

Group = Literal["v1", "side", "app", "admin", "health"]

ADMIN_PATHS = ("/api/admin", "/admin", "/metrics")
APP_PATHS = (
    "/api/admin/whoami",
    "/api/admin/accounts",
    "/api/admin/keys",
    "/api/admin/plans",
    "/api/admin/events",
    "/api/tokens",
)
"""What the operator's own app needs of the admin API: served where portal links are made as well, to its role alone."""
HEALTH_PATHS = ("/healthz", "/readyz")
APP_ONLY = "tollkeeper.app_only"
"""Key of an ASGI scope: the listener serves no people, so of admin keys only those of the operator's app are taken."""


def group_of(path: str) -> Group:
    """Group that a path belongs to."""
    if path == "/v1" or path.startswith("/v1/"):
        return "v1"
    if path in HEALTH_PATHS:
        return "health"
    if is_under(path, APP_PATHS):
        return "app"
    return "admin" if is_under(path, ADMIN_PATHS) else "side"


def is_under(path: str, bases: tuple[str, ...]) -> bool:
    """Tell whether a path is one of these or below one."""
    return any(path == base or path.startswith(f"{base}/") for base in bases)
