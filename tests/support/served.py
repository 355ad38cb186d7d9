"""Customers of a served product, with what their requests became; figures and log lines of its server."""

import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from tests.support import web
from tests.support.servers import Account, Sandbox, Tollkeeper, sandbox_says, wait_until
from tests.support.wire import Wire

RICH = "1000000"


@dataclass
class Customer(Account):
    """An account, with what its requests became."""

    sandbox: Sandbox

    def body(self, directive: Mapping[str, Any] | None = None, text: str = "hello", **fields: Any) -> dict[str, Any]:
        """A chat body; the directive travels in its text."""
        content = text + (" " + sandbox_says(**directive) if directive else "")
        return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}], **fields}

    def post(
        self, body: Mapping[str, Any] | bytes, path: str = "/v1/chat/completions", **headers: str
    ) -> httpx.Response:
        """One request, answered whole."""
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.post(self.server.url + path, **content, headers={**self.headers, **named}, timeout=60)  # type: ignore[arg-type]

    def stream(self, body: Mapping[str, Any], path: str = "/v1/chat/completions", **headers: str) -> Wire:
        """One streamed request on a socket of its own."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Wire(self, {"stream": True, **body}, path, named)

    def generation(self, request_id: str, seconds: float = 20) -> dict[str, Any]:
        """The record of a charged request, once it is in the ledger."""

        def look() -> dict[str, Any] | None:
            answer = web.get(
                f"{self.server.url}/api/billing/generations/{request_id}", headers=self.headers, timeout=10
            )
            return answer.json() if answer.status_code == 200 else None

        found: dict[str, Any] = wait_until(look, seconds, f"{request_id} is in the ledger")
        return found

    def charged(self, request_id: str) -> int:
        """Millicredits."""
        return int(self.generation(request_id)["chargedMillicredits"])

    def has_no_charge(self, request_id: str) -> bool:
        """Whether nothing was booked for a request although everything is flushed."""
        wait_until(lambda: self.held() == 0, 10, "no hold is left")
        marker = self.post(self.body(max_tokens=1)).headers["x-request-id"]
        self.generation(marker)  # charges are booked in order: what came before it is there too
        answer = web.get(f"{self.server.url}/api/billing/generations/{request_id}", headers=self.headers, timeout=10)
        return answer.status_code == 404

    def me(self) -> dict[str, Any]:
        """The side API's figures."""
        answer = web.get(f"{self.server.url}/api/billing/me", headers=self.headers, timeout=10)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def served(self, request_id: str) -> dict[str, Any]:
        """What the upstream itself recorded of a request."""
        answer = web.get(
            f"http://127.0.0.1:{self.sandbox.port}/__sandbox/record", params={"clientRequestId": request_id}, timeout=10
        )
        (row,) = answer.json()["records"]
        found: dict[str, Any] = row
        return found

    def finished(self, request_id: str) -> dict[str, Any]:
        """The upstream's record once it is closed."""
        wait_until(lambda: self.served(request_id)["finishedAt"], 20, "the upstream has finished with the request")
        return self.served(request_id)

    def only_upstream_request(self) -> dict[str, Any]:
        """The one request that reached the upstream since the sandbox was cleared."""
        (row,) = wait_until(self.sandbox.record, 20, "a request reaches the upstream")
        return row

    def transfers(self, request_id: str) -> dict[str, tuple[str, str, int]]:
        """kind → (debit, credit, millicredits) of a request, read past our own code."""
        with sqlite3.connect(self.server.folder / "var" / "tollkeeper.db") as database:
            rows = database.execute(
                "SELECT kind, debit_account, credit_account, amount_millicredits FROM transfers WHERE reference_id = ?",
                (request_id,),
            ).fetchall()
        return {kind: (debit, credit, amount) for kind, debit, credit, amount in rows}


def usd_to_charge(*parts: tuple[int, str]) -> int:
    """Millicredits for (tokens, USD per million tokens) parts: the exact sum, rounded up once."""
    from fractions import Fraction

    total = sum((tokens * Fraction(price) for tokens, price in parts), Fraction(0))
    return -(-total.numerator // total.denominator)


def metric(server: Tollkeeper, name: str, **labels: str) -> float:
    """One series of /metrics; 0 when it is not there yet."""
    wanted = {f'{key}="{value}"' for key, value in labels.items()}
    for line in web.get(f"{server.url}/metrics", timeout=10).text.splitlines():
        series, _, value = line.rpartition(" ")
        found, _, inside = series.partition("{")
        if found == name and wanted <= set(inside.rstrip("}").split(",") if inside else ()):
            return float(value)
    return 0.0


MakeCustomer = Callable[..., Customer]


def wait_log(server: Tollkeeper, needle: str, seconds: float = 10) -> str:
    """The first log line that holds `needle`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for line in server.log().splitlines():
            if needle in line:
                return line
        time.sleep(0.05)
    raise AssertionError(f"no log line with {needle!r}:\n{server.log()[-2000:]}")
