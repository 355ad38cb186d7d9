"""Trace one warm chat request through the product: python -m bench.trace [--calls]

Counts calls of the product's own functions, the modules they lie in, and how often the line changes from one module to
another, which is what a reader has to follow. The request runs over a real socket against the simulator, on the
embedded store; only what happens in this process between sending it and having its answer is counted.
"""

import asyncio
import contextlib
import http.client
import inspect
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from billing.ledger.accounts import Accounts, KeyRules
from billing.ledger.ledger import Ledger
from billing.money.amounts import Millicredits
from billing.storage.database import Database
from billing.storage.migrate import migrate
from config.load import parse_settings
from config.secrets import Secret
from proxy.server.app import Application
from proxy.server.transport.http_protocol import guarded
from proxy.server.transport.limits import HttpLimits
from tests.support.servers import UPSTREAM_KEY, free_port, start_sandbox

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = tuple(str(ROOT / package) + "/" for package in ("proxy", "billing", "config"))
TRANSPORT = (
    *(f"proxy.server.transport.{name}" for name in ("http_protocol", "client_connection", "turns")),
    *(f"proxy.gateway.upstream.{name}" for name in ("pool", "connection", "answer", "interruption")),
)
"""Callbacks of the two connections: as many as there are header lines and reads."""
RESUMABLE = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
WARM_UP = 20


class Trace:
    """Calls of product functions, in order, as (module, function)."""

    def __init__(self) -> None:
        """Nothing is traced yet."""
        self.calls: list[tuple[str, str]] = []
        self._coroutines: list[FrameType] = []

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Note a call; see sys.setprofile. A coroutine that is resumed is no new call."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PRODUCT) or code.co_name.startswith("<"):
            return
        name = Path(code.co_filename).relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        if name in TRANSPORT or not _is_of_the_request():
            return
        if code.co_flags & RESUMABLE:
            if any(frame is one for one in self._coroutines):
                return
            self._coroutines.append(frame)
        self.calls.append((name, code.co_name))

    @property
    def changes(self) -> int:
        """How often a call lies in another module than the one before."""
        return sum(one[0] != other[0] for one, other in zip(self.calls, self.calls[1:], strict=False))


def _is_of_the_request() -> bool:
    """Tell the request's own task, and callbacks outside any task, from jobs that run beside it."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False  # another thread
    return task is None or "GuardedProtocol._answer" in getattr(task.get_coro(), "__qualname__", "")


async def account_with_key(url: str) -> str:
    """Make a database with one funded account; return its key."""
    database = Database(url, 5, 5)
    await migrate(database)
    accounts = Accounts(database)
    account = await accounts.create("trace")
    _, key = await accounts.create_key(account, KeyRules())
    await Ledger(database).grant(account, Millicredits(1_000_000_000), "trace", "bench", "a traced request")
    await database.close()
    return key


def ask(port: int, key: str) -> None:
    """One request; fails unless it is answered."""
    body = json.dumps({"model": "gpt-4o-mini", "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]})
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"status {answer.status}")


def main() -> int:
    """Print the figures, and with --calls each call."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        sandbox = start_sandbox()
        stack.callback(sandbox.stop)
        os.chdir(name)
        url = f"sqlite+aiosqlite:///{name}/tollkeeper.db"
        key = asyncio.run(account_with_key(url))
        text = f'[upstream]\nbase_url = "{sandbox.url}"\n[database]\nurl = "{url}"\n[log]\naccess = false\n[embedded]\npath = "{name}/e.db"\n'
        settings = parse_settings(text.encode(), "trace.toml", {})
        port = free_port()
        application = Application(settings, {"openai": Secret(UPSTREAM_KEY)}, with_jobs=False)
        config = uvicorn.Config(
            application,
            port=port,
            http=guarded(HttpLimits(settings.listen, 60), application.answer),
            loop="uvloop",
            lifespan="on",
            log_config=None,
            access_log=False,
        )
        server = uvicorn.Server(config)
        trace = Trace()
        done = threading.Event()

        def client() -> None:
            while not server.started:
                time.sleep(0.05)
            for _ in range(WARM_UP):
                ask(port, key)
            time.sleep(0.3)
            server_loop.call_soon_threadsafe(sys.setprofile, trace)
            ask(port, key)
            server_loop.call_soon_threadsafe(sys.setprofile, None)
            time.sleep(0.1)
            server.should_exit = True
            done.set()

        server_loop: asyncio.AbstractEventLoop

        async def run() -> None:
            nonlocal server_loop
            server_loop = asyncio.get_running_loop()
            thread = threading.Thread(target=client)
            thread.start()
            await server.serve()
            await asyncio.to_thread(thread.join)

        asyncio.run(run())
    if "--calls" in sys.argv:
        for module, function in trace.calls:
            print(f"{module:45} {function}")
    modules = {module for module, _ in trace.calls}
    print(
        f"{len(trace.calls)} calls of the product's functions in {len(modules)} modules, {trace.changes} changes of module"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
