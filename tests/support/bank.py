"""Stripe's simulator as a process, and what it recorded."""

import subprocess
from dataclasses import dataclass
from typing import Any

from tests.support import web

CREDITS = {"starter": (9_990_000, 0), "pro": (99_990_000, 9_999_000)}


@dataclass
class Bank:
    """The simulator as a process, by its control paths."""

    url: str
    process: subprocess.Popen[bytes]

    def control(self, what: str, /, **body: Any) -> Any:
        answer = web.post(f"{self.url}/__stripe/{what}", json=body, timeout=40)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def settings(self, **changes: Any) -> None:
        web.put(f"{self.url}/__stripe/settings", json=changes, timeout=10).raise_for_status()

    def record(self) -> Any:
        return web.get(f"{self.url}/__stripe/record", timeout=10).json()

    def drain(self) -> None:
        assert self.control("drain", timeout_s=30)["drained"] is True
