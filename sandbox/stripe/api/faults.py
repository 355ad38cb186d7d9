"""Failures of the API that a test orders beforehand."""

import re
from typing import Any, Final, Literal

import msgspec

_TYPES: Final = {400: "invalid_request_error", 429: "invalid_request_error"}


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Failure of the next `count` matching calls."""

    kind: Literal["status", "timeout", "reset"] = "status"
    """status answers with an error; timeout says nothing for hang_s and then closes; reset closes at once by RST."""
    count: int = 1
    method: str = ""
    """Only calls with this method; empty: all."""
    path: str = ""
    """Only calls whose path this regular expression finds; empty: all."""
    after: bool = False
    """Fail after the work was done: the client cannot know that it was."""
    status: int = 500
    code: str | None = None
    message: str = "An unknown error occurred (ordered by the sandbox)."
    saved: bool = False
    """With `after`: the failure is the saved result of the idempotency key, as Stripe saves its own 500s."""
    headers: dict[str, str] = {}
    """Further headers of the answer, such as stripe-should-retry."""
    hang_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse a fault that cannot match or fail."""
        if self.count < 1:
            raise ValueError("count must be at least 1")
        if self.status // 100 not in {4, 5}:
            raise ValueError("status must lie between 400 and 599")
        if self.saved and not (self.after and self.kind == "status"):
            raise ValueError("saved goes with after and kind status only")
        try:
            re.compile(self.path)
        except re.error as error:
            raise ValueError(f"path: {error}") from None

    @property
    def error_type(self) -> str:
        """`type` of the error object."""
        return _TYPES.get(self.status, "api_error")


class Faults:
    """The failures still to come, in the order they were given."""

    def __init__(self) -> None:
        """Begin without any."""
        self._waiting: list[tuple[Fault, int]] = []

    def add(self, fault: Fault) -> None:
        """Order a failure."""
        self._waiting.append((fault, fault.count))

    def clear(self) -> None:
        """Let everything succeed again."""
        self._waiting.clear()

    def show(self) -> list[dict[str, Any]]:
        """Return the failures still to come."""
        return [msgspec.to_builtins(fault) | {"count": left} for fault, left in self._waiting]

    def take(self, method: str, path: str) -> Fault | None:
        """Return the failure of this call, if one was ordered."""
        for index, (fault, left) in enumerate(self._waiting):
            if fault.method in {"", method} and re.search(fault.path, path):
                if left > 1:
                    self._waiting[index] = (fault, left - 1)
                else:
                    del self._waiting[index]
                return fault
        return None
