"""Groups of paths, by which listeners, request ids and headers differ."""

from typing import Literal

Group = Literal["v1", "side", "admin", "health"]

ADMIN_PATHS = ("/api/admin", "/admin", "/metrics")
HEALTH_PATHS = ("/healthz", "/readyz")


def group_of(path: str) -> Group:
    """Group that a path belongs to."""
    if path == "/v1" or path.startswith("/v1/"):
        return "v1"
    if path in HEALTH_PATHS:
        return "health"
    return "admin" if is_under(path, ADMIN_PATHS) else "side"


def is_under(path: str, bases: tuple[str, ...]) -> bool:
    """Tell whether a path is one of these or below one."""
    return any(path == base or path.startswith(f"{base}/") for base in bases)
