"""Error answers in OpenAI's shape.

ApiError is the only exception of the simulator that becomes an answer.
"""

from types import MappingProxyType
from typing import Any, Final

_SHAPES: Final = MappingProxyType(
    {
        "400": ("Invalid value.", "invalid_request_error", "messages", "invalid_value"),
        "400_context": (
            "This model's maximum context length was exceeded.",
            "invalid_request_error",
            "messages",
            "context_length_exceeded",
        ),
        "401": ("Incorrect API key provided.", "invalid_request_error", None, "invalid_api_key"),
        "403": (
            "Country, region, or territory not supported.",
            "request_forbidden",
            None,
            "unsupported_country_region_territory",
        ),
        "404": (
            "The model does not exist or you do not have access to it.",
            "invalid_request_error",
            None,
            "model_not_found",
        ),
        "429_rate": ("Rate limit reached.", "tokens", None, "rate_limit_exceeded"),
        "429_quota": (
            "You exceeded your current quota.",
            "insufficient_quota",
            None,
            "insufficient_quota",
        ),
        "500": (
            "The server had an error while processing your request.",
            "server_error",
            None,
            None,
        ),
        "503": ("The engine is currently overloaded.", "server_error", None, None),
    }
)
_DEFAULTS: Final = MappingProxyType({429: "429_rate"})


def error_object(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the value under `error`: always all four keys."""
    return {"message": message, "type": kind, "param": param, "code": code}


def named_error(name: str) -> dict[str, Any] | None:
    """Return the error object of a sample such as `429_quota`; None when there is no such sample."""
    shape = _SHAPES.get(name)
    return error_object(*shape) if shape else None


def status_error(status: int) -> dict[str, Any]:
    """Return the error object that goes with an HTTP status."""
    known = named_error(_DEFAULTS.get(status, str(status)))
    if known is not None:
        return known
    if status >= 500:
        return error_object("The server had an error.", "server_error")
    return error_object(f"Request failed with status {status}.", "invalid_request_error")


def edge_page(status: int) -> bytes:
    """Return the HTML page that a CDN edge sends in place of JSON (502, 504, 520)."""
    return (
        f"<html>\r\n<head><title>{status} Bad Gateway</title></head>\r\n<body>\r\n"
        f"<center><h1>{status} Bad Gateway</h1></center>\r\n<hr><center>cloudflare</center>\r\n"
        "</body>\r\n</html>\r\n"
    ).encode()


class ApiError(Exception):
    """Refusal, answered with `status` and `{"error": error}`."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        """Take the object under the `error` key."""
        super().__init__(f"{status} {error.get('message')}")
        self.status, self.error = status, error


def invalid(message: str, param: str | None, code: str | None) -> ApiError:
    """Return a 400 with OpenAI's invalid_request_error shape."""
    return ApiError(400, error_object(message, "invalid_request_error", param, code))


def wrong_body(error: Exception) -> dict[str, Any]:
    """Return the error object for a body whose values are of types that no check names."""
    message = f"Invalid value. ({type(error).__name__}: {error})"
    return error_object(message, "invalid_request_error", code="invalid_value")
