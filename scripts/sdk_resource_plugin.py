"""Plugin for the pytest that runs OpenAI's own tests: requests carry our key, answers are noted, owners are laid.

Loaded by scripts/sdk_resource_tests.py with `-p` into the interpreter of a checkout of the SDK, which knows nothing of
Tollkeeper: only the standard library and what the SDK itself speaks HTTP with is imported here. What it is told stands
in TOLLKEEPER_SDK_RUN, as JSON: `key`, `base`, `report` (a file, a JSON line per test), `database` (SQLite), `owned`
(rows of upstream_objects, each for tests with that in their path) and `calls` (of realtime_calls).
"""

import importlib
import json
import os
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

RUN: dict[str, Any] = json.loads(os.environ["TOLLKEEPER_SDK_RUN"])
OWN = """
    INSERT INTO upstream_objects (id, kind, account_id, charge_id, context_tokens, model, created_at, size_bytes)
    VALUES (:id, :kind, :account_id, 'seed', 10, 'gpt-5.4', 1, 1000000)
    ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, account_id = excluded.account_id, context_tokens = 10,
        reserved_tokens = 0, deleted_at = NULL
"""
"""A test may delete it: the next one finds it again."""
CALL = """
    INSERT INTO realtime_calls (id, account_id, created_at, leased_until) VALUES (:id, :account_id, 1, 9999999999999)
    ON CONFLICT (id) DO UPDATE SET ended_at = NULL
"""

NO_BATCHES = "DELETE FROM batches"
"""The mock calls all that are made alike."""


class Recorder:
    """Requests of the SDK on their way: our key in, the answers noted."""

    def __init__(self) -> None:
        """Nothing is noted until a test begins."""
        self.answers: list[dict[str, Any]] = []

    def sign(self, request: Any) -> bool:
        """Put our key into a request to the product; False when it goes elsewhere."""
        if not str(request.url).startswith(RUN["base"]):
            return False
        request.headers["Authorization"] = f"Bearer {RUN['key']}"
        return True

    def note(self, request: Any, status: int, body: bytes) -> None:
        """Note one answer; of an error what it says."""
        error: Any = None
        if status >= 400:
            try:
                error = json.loads(body).get("error")
            except (ValueError, AttributeError):
                error = body[:200].decode("utf-8", "replace")
        said = error if isinstance(error, dict) else {"message": str(error)}
        self.answers.append(
            {
                "method": request.method,
                "path": request.url.path,
                "status": status,
                "code": said.get("code"),
                "param": said.get("param"),
                "message": said.get("message"),
            }
        )


def pytest_configure(config: pytest.Config) -> None:
    """Put the recorder under both HTTP libraries that the SDK can be built on."""
    recorder = Recorder()
    config.pluginmanager.register(Tests(recorder), "tollkeeper-tests")
    for name in ("httpx", "httpx2"):
        try:
            library = importlib.import_module(name)
        except ImportError:
            continue
        _record_sync(library.Client, recorder)
        _record_async(library.AsyncClient, recorder)


def _record_sync(client: Any, recorder: Recorder) -> None:
    send = client.send

    def recording(self: Any, request: Any, **options: Any) -> Any:
        ours = recorder.sign(request)
        response = send(self, request, **options)
        if ours:
            body = response.read() if response.status_code >= 400 else b""
            recorder.note(request, response.status_code, body)
        return response

    client.send = recording


def _record_async(client: Any, recorder: Recorder) -> None:
    send = client.send

    async def recording(self: Any, request: Any, **options: Any) -> Any:
        ours = recorder.sign(request)
        response = await send(self, request, **options)
        if ours:
            body = await response.aread() if response.status_code >= 400 else b""
            recorder.note(request, response.status_code, body)
        return response

    client.send = recording


class Tests:
    """Every test: its owners before it, a line of the report after it."""

    def __init__(self, recorder: Recorder) -> None:
        """Write down what this recorder notes."""
        self._recorder = recorder

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Lay the owners of the ids that the SDK's tests name."""
        self._recorder.answers = []
        with sqlite3.connect(RUN["database"], timeout=10) as database:
            database.executemany(OWN, [row for row in RUN["owned"] if row["where"] in item.nodeid])
            database.executemany(CALL, RUN["calls"])
            database.execute(NO_BATCHES)
        database.close()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
        """Write down how it ended, and the product's answers."""
        report = yield
        if report.when == "call" or report.outcome != "passed":
            line = {
                "test": item.nodeid,
                "outcome": report.outcome,
                "answers": self._recorder.answers,
                "error": str(call.excinfo.value)[:300] if call.excinfo else "",
            }
            with Path(RUN["report"]).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return report
