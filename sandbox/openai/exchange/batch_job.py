"""A batch: answered at once, coming to light line by line with the clock."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import msgspec

from sandbox.openai.exchange.bill import NO_TOOLS, ToolUse

_PARTS: Final = ("input", "output", "cached", "cache_write", "reasoning")


class BatchLine(msgspec.Struct, frozen=True):
    """One line of a batch, answered. `usage`: what is charged for it; None for one that failed."""

    custom_id: str
    status: int
    body: Any
    usage: dict[str, Any] | None
    model: str = ""
    tools: ToolUse = NO_TOOLS
    """Use of hosted tools, charged beside it."""


class BatchJob:
    """One batch with its lines. `put_file` takes a purpose and the bytes, and returns the id of a new file."""

    def __init__(
        self,
        shown: dict[str, Any],
        lines: list[BatchLine],
        put_file: Callable[[str, bytes], str],
        new_id: Callable[[str], str],
        *,
        working_s: float,
        expires_s: float,
        errors: dict[str, Any] | None = None,
    ) -> None:
        """Begin now. `shown`: the members that never change; `errors`: of validation, which end it at once."""
        self._shown, self._lines, self._put_file, self._new_id = shown, lines, put_file, new_id
        self._working_s, self._expires_s, self._errors = working_s, expires_s, errors
        self._began = time.monotonic()
        self._cancelled_s: float | None = None
        self._files: dict[str, str | None] = {}

    @property
    def total_s(self) -> float:
        """Time from creation to the end, unless it is cancelled."""
        return min(self._working_s, self._expires_s) if self._expires_s else self._working_s

    def _elapsed(self) -> float:
        """Seconds that it worked, or was to work, until now."""
        now = time.monotonic() - self._began
        if self._cancelled_s is not None:
            now = min(now, self._cancelled_s)
        return min(now, self._expires_s) if self._expires_s else now

    @property
    def model(self) -> str:
        """Model that answered; the first line's where there are several."""
        return self._lines[0].model if self._lines else ""

    def status(self) -> str:
        """Its present status."""
        if self._errors is not None:
            return "failed"
        elapsed = self._elapsed()
        if elapsed >= self._working_s:
            return "completed"
        if self._cancelled_s is not None:
            return "cancelled"
        if self._expires_s and elapsed >= self._expires_s:
            return "expired"
        return "in_progress"

    def cancel(self) -> None:
        """Stop at what is done."""
        if self.status() == "in_progress":
            self._cancelled_s = time.monotonic() - self._began

    def _done(self) -> list[BatchLine]:
        if self._errors is not None:
            return []
        if not self._working_s:
            return self._lines
        return self._lines[: int(len(self._lines) * min(1.0, self._elapsed() / self._working_s))]

    def charge(self) -> dict[str, Any] | None:
        """Return the usage of all lines that are done, once it has ended; None when there is none."""
        if self.status() == "in_progress":
            return None
        total: Counter[str] = Counter()
        for line in self._done():
            total.update(_counts(line.usage or {}))
        if not total["input"]:
            return None
        return {
            "input_tokens": total["input"],
            "input_tokens_details": {"cached_tokens": total["cached"], "cache_write_tokens": total["cache_write"]},
            "output_tokens": total["output"],
            "output_tokens_details": {"reasoning_tokens": total["reasoning"]},
            "total_tokens": total["input"] + total["output"],
        }

    def tool_use(self) -> dict[str, Any] | None:
        """Return the use of hosted tools in all lines that are done, once it has ended; None when there is none."""
        used = NO_TOOLS
        for line in self._done() if self.status() != "in_progress" else ():
            used = used if line.tools is NO_TOOLS else used.plus(line.tools)
        return None if used is NO_TOOLS else used.to_record()

    def object(self) -> dict[str, Any]:
        """Return the batch object as it is now."""
        status, done, now = self.status(), self._done(), int(time.time())
        failed = sum(line.usage is None for line in done)
        counts = {"total": len(self._lines), "completed": len(done) - failed, "failed": failed}
        found = {
            **self._shown,
            "model": self.model,
            "status": status,
            "errors": self._errors,
            "output_file_id": None,
            "error_file_id": None,
            "request_counts": counts if self._errors is None else dict.fromkeys(counts, 0),
        }
        if status != "in_progress":
            found |= {f"{status}_at": now, **self._written(status, done)}
            found["usage"] = self.charge()
        return found

    def _written(self, status: str, done: list[BatchLine]) -> dict[str, str | None]:
        """Ids of the files that it left, written at the first look."""
        if not self._files:
            good = [self._line(line) for line in done if line.usage is not None]
            bad = [self._line(line) for line in done if line.usage is None]
            code = f"batch_{status}"
            bad += [self._undone(line, code) for line in self._lines[len(done) :] if self._errors is None]
            for name, rows in (("output_file_id", good), ("error_file_id", bad)):
                self._files[name] = self._put_file("batch_output", b"".join(rows)) if rows else None
        return self._files

    def _line(self, line: BatchLine) -> bytes:
        answer = {"status_code": line.status, "request_id": self._new_id("req"), "body": line.body}
        return self._row(line, answer, None)

    def _undone(self, line: BatchLine, code: str) -> bytes:
        return self._row(line, None, {"code": code, "message": "This request was not run."})

    def _row(self, line: BatchLine, response: Any, error: Any) -> bytes:
        row = {"id": self._new_id("batch_req"), "custom_id": line.custom_id, "response": response, "error": error}
        return msgspec.json.encode(row) + b"\n"


def _counts(usage: dict[str, Any]) -> dict[str, int]:
    inside = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    made = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    found = (
        usage.get("prompt_tokens", usage.get("input_tokens", 0)),
        usage.get("completion_tokens", usage.get("output_tokens", 0)),
        inside.get("cached_tokens", 0),
        inside.get("cache_write_tokens", 0),
        made.get("reasoning_tokens", 0),
    )
    return dict(zip(_PARTS, found, strict=True))
