"""Processes: one worker alone (embedded store), or a supervisor with N workers, a jobs process and a counter (Redis).

Workers share the listening socket. A child that dies is started again; children die with their supervisor
(PR_SET_PDEATHSIG), so that a killed service never keeps the port. SIGTERM: stop accepting, let streams finish
for `listen.drain_seconds`, settle what is left, end.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NamedTuple

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry, values

from billing.balances.redis.store import RedisBalances
from billing.jobs.expiry import Expiry
from billing.ledger.flag_overrides import FlagOverrides
from billing.ledger.flush import Store
from billing.storage.database import Database
from config.secrets import Secret
from config.settings import Settings
from config.watch import LOOK_SECONDS, Edit, Edits, Follower, Herald, Judge, Watcher
from proxy.customer_api.money_in import money_in, notice_queue
from proxy.gateway.counting.counter_client import listening
from proxy.gateway.counting.counter_process import serve_counter
from proxy.observability.metrics import Metrics
from proxy.server.app import Application
from proxy.server.edge import groups_by_port
from proxy.server.gauges import Publisher
from proxy.server.jobs import JobBook, store_reader
from proxy.server.live_settings import LiveSettings
from proxy.server.startup_checks import check_keys
from proxy.server.stores import booking, jobs_of, make_store, publish_store
from proxy.server.transport.accepting import Acceptor
from proxy.server.transport.http_protocol import guarded
from proxy.server.transport.limits import HttpLimits
from proxy.server.transport.socket_protocol import GuardedSocket
from proxy.server.wiring import background
from proxy.web.paths import Group

log = logging.getLogger("tollkeeper.serve")

JOBS, COUNTER = "jobs", "counter"
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
M_MMAP_THRESHOLD, MMAP_THRESHOLD = -3, 1_048_576
BACKLOG = 4_096
GC_ALLOCATIONS = 20_000
TICK_SECONDS = 0.05
LOOK_TICKS = round(LOOK_SECONDS / TICK_SECONDS)
RESTART_SECONDS = 0.1
LONGEST_RESTART_SECONDS = 5.0
SHORT_LIFE_SECONDS = 10.0
CRASHES = (1, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGSEGV)
"""Exit codes of a child that ended by itself. Whoever kills one from outside wants it back at once."""
STOP_EXTRA_SECONDS = 8
DRAIN_EXTRA_SECONDS = 3
PUBLISH_SECONDS = 0.5
EXIT_CONFIGURATION = 2


class DrainingServer(uvicorn.Server):
    """uvicorn, except that streams still running when the drain time is over are settled, not cancelled."""

    def __init__(self, config: uvicorn.Config, application: Application, drain_seconds: int) -> None:
        """`drain_seconds` as in listen.drain_seconds."""
        super().__init__(config)
        self._acceptors: list[Acceptor] = []
        self._application, self._drain_seconds = application, drain_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept."""
        await super().startup(sockets=[])
        self._acceptors = [Acceptor(one, self._protocol) for one in sockets or ()]

    def _protocol(self) -> asyncio.Protocol:
        """Make a protocol for a connection, as uvicorn does."""
        made = self.config.http_protocol_class
        state = self.lifespan.state
        return made(config=self.config, server_state=self.server_state, app_state=state)  # type: ignore[call-arg]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, wait, settle."""
        for acceptor in self._acceptors:
            await acceptor.close()
        asyncio.get_running_loop().call_later(self._drain_seconds, self._application.interrupt_all)
        await super().shutdown(sockets)


def serve(settings: Settings, keys: Mapping[str, Secret], listeners: "Listeners", config_path: Path | None) -> int:
    """Serve on open sockets until told to stop; the exit code."""
    tune_process()
    if settings.redis.url:
        return Supervisor(settings, keys, config_path, listeners).run()
    edits = Watcher(Judge(config_path, settings, check_keys)) if config_path is not None else None
    return serve_worker(settings, keys, listeners, edits, with_jobs=True)


def serve_worker(
    settings: Settings,
    keys: Mapping[str, Secret],
    listeners: "Listeners",
    edits: Edits | None,
    *,
    counter: bytes | None = None,
    with_jobs: bool,
) -> int:
    """One process that answers requests, until told to stop; the exit code. `counter`: address of who counts."""
    ports = listeners.groups()
    application = Application(settings, keys, with_jobs=with_jobs, edits=edits, ports=ports, counter=counter)
    listen = settings.listen
    limits = HttpLimits(listen, settings.upstream.idle_timeout_seconds)
    config = uvicorn.Config(
        application,
        http=guarded(limits, application.answer),
        ws=GuardedSocket,
        ws_max_size=listen.max_body_bytes,
        ws_per_message_deflate=False,
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=listen.keepalive_seconds,
        timeout_graceful_shutdown=listen.drain_seconds + DRAIN_EXTRA_SECONDS,
    )
    server = DrainingServer(config, application, listen.drain_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal once more when it has shut down; by then it has done its work
        signal.signal(number, _already_stopped)
    try:
        server.run(sockets=listeners.sockets())
    except (KeyboardInterrupt, SystemExit):
        return 0 if server.started else EXIT_CONFIGURATION
    return 0 if server.started else EXIT_CONFIGURATION


def serve_jobs(settings: Settings, edits: Edits | None, started_at: float, flusher: str) -> int:
    """Run the jobs of a Redis deployment until told to stop; the exit code.

    `started_at`: the service was (Unix seconds); `flusher`: its name among those that flush.
    """

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        database = Database(settings.database.url, settings.database.pool_size, settings.database.timeout_seconds)
        metrics = Metrics(CollectorRegistry())
        books = booking(database, notice_queue(settings, database), metrics)
        store = make_store(settings, books.ledger)
        await store.open()
        money = money_in(settings, database, metrics)

        async def apply(found: Settings) -> None:
            money.settings = found

        live = LiveSettings(settings, edits, FlagOverrides(database), metrics, apply)
        await live.begin()
        expiry = Expiry(database, books.ledger, store, money.notices)
        reader = store_reader(settings, store if isinstance(store, RedisBalances) else None)
        book = JobBook(settings, reader, money, metrics, expiry)
        jobs = jobs_of(settings, store, books, [*money.steps(), *book.schedule.steps()], flusher)
        jobs.start()
        publisher = Publisher(settings, database, store, book, metrics, started_at)
        async with background(live.follow()), background(_publish(metrics, store)), background(publisher.follow()):
            await stop.wait()
        await jobs.stop()
        await book.close()
        await money.close()
        await store.close()
        await database.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return 0


async def _publish(metrics: Metrics, store: Store) -> None:
    while True:
        await asyncio.sleep(PUBLISH_SECONDS)
        metrics.publish()
        publish_store(metrics, store)


class Listeners(NamedTuple):
    """The open sockets; `side` and `admin` None = the main one serves that as well."""

    main: socket.socket
    side: socket.socket | None = None
    admin: socket.socket | None = None

    def sockets(self) -> list[socket.socket]:
        """Those there are."""
        return [one for one in self if one is not None]

    def groups(self) -> Mapping[int, frozenset[Group]]:
        """Path groups of each port."""
        ports = [one.getsockname()[1] if one is not None else 0 for one in self]
        return groups_by_port(*ports)


def bind(settings: Settings) -> Listeners:
    """Open the listening sockets. Raises OSError."""
    listen = settings.listen
    return Listeners(
        _bound(listen.host, listen.port),
        _bound(listen.host, listen.side_port) if listen.side_port else None,
        _bound(listen.admin_host, listen.admin_port) if listen.admin_port else None,
    )


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
    listener.bind((host, port))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    listener.set_inheritable(True)
    return listener


class Supervisor:
    """Keeps `workers` data processes, one jobs process and one that counts tokens running.

    Children are forked, so they start in a fraction of the time that Python takes to import us, share its memory, and
    run this very code until the service is restarted. The file is watched here, and the children follow what was taken:
    so they follow the same edits, and a child that is started again begins with the last good one.
    """

    def __init__(
        self, settings: Settings, keys: Mapping[str, Secret], config_path: Path | None, listeners: Listeners
    ) -> None:
        """Children inherit the settings and the sockets."""
        self._settings, self._keys, self._config, self._listeners = settings, keys, config_path, listeners
        self._children: dict[str, ForkProcess] = {}
        self._restart_at: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._started: dict[str, float] = {}
        self._stopping = False
        self._pid, self._started_at = os.getpid(), time.time()
        self._flusher = secrets.token_hex(8)  # kept by the next jobs process: its share need not wait for a name to end
        self._counting = listening()  # kept here: who asks while the counter is started again waits for it
        self._folder = Path(tempfile.mkdtemp(prefix="tollkeeper-"))  # which nobody else can read
        self._herald = Herald()
        self._watcher = Watcher(Judge(config_path, settings, check_keys)) if config_path is not None else None

    def run(self) -> int:
        """Start everything and keep it running until SIGTERM or SIGINT; the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for name in (JOBS, COUNTER, *(f"worker-{number}" for number in range(self._settings.listen.workers))):
            self._start(name)
        turn = 0
        while not self._stopping:
            time.sleep(TICK_SECONDS)
            turn += 1
            if turn % LOOK_TICKS == 0:
                with contextlib.suppress(
                    OSError
                ):  # whatever cleans /tmp may have taken it, or take it now: children need it to start
                    self._folder.mkdir(mode=0o700, exist_ok=True)
                self._look_at_file()
            for name in list(self._children):
                if not self._tend(name):
                    self._stop_all()
                    return EXIT_CONFIGURATION
        self._stop_all()
        return 0

    def _tend(self, name: str) -> bool:
        """Start a child again that has ended; False when it could not even start with the service."""
        child, now = self._children[name], time.monotonic()
        if child.exitcode is None or self._stopping:
            return True
        if name in self._restart_at:
            if now >= self._restart_at[name]:
                del self._restart_at[name]
                self._start(name)
            return True
        unable = child.exitcode == EXIT_CONFIGURATION
        if unable and name not in self._failures:
            return False
        failed = unable or (child.exitcode in CRASHES and now < self._started[name] + SHORT_LIFE_SECONDS)
        self._failures[name] = self._failures.get(name, 0) + 1 if failed else 0
        log.error("%s ended with %s; starting it again", name, child.exitcode)
        self._forget_metrics(child.pid)
        # a store may be away for long, a disk full: who cannot live because of it tries again, less and less often
        self._restart_at[name] = now + min(RESTART_SECONDS * 2 ** self._failures[name], LONGEST_RESTART_SECONDS)
        return True

    def _start(self, name: str) -> None:
        child = self._children[name] = ForkProcess(target=self._run_child, args=(name,), name=name)
        self._started[name] = time.monotonic()
        child.start()

    def _run_child(self, name: str) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        die_with_parent(self._pid)
        name_process(f"tk-{name}")
        if name == COUNTER:
            serve_counter(self._counting)
            return
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self._folder)
        values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]  # chosen when the library was imported, before there were children
        edits = (
            Follower(self._herald.memory, Judge(self._config, self._settings, check_keys))
            if self._config is not None
            else None
        )
        if name == JOBS:
            sys.exit(serve_jobs(self._settings, edits, self._started_at, self._flusher))
        counter = self._counting.getsockname()
        sys.exit(serve_worker(self._settings, self._keys, self._listeners, edits, counter=counter, with_jobs=False))

    def _look_at_file(self) -> None:
        """Look at the file; children follow what is taken: those that run, and those that will be started."""
        if self._watcher is None:
            return
        try:
            edit = self._watcher.look()
        except Exception:
            # no edit may end the service; the same content is not looked at again, so this is said once
            log.exception("an edit of proxy.toml cannot be judged")
            edit = Edit(None, "the last edit cannot be judged, which is a fault of ours. Fix: undo it")
        if edit is None:
            self._herald.looked()
        elif edit.settings is None:
            self._herald.refused(edit.problem)
        elif self._watcher.taken is not None:
            self._settings = edit.settings
            self._herald.took(self._watcher.taken)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _stop_all(self) -> None:
        """Workers first: they still count, and the jobs process flushes what they settled last."""
        for listener in self._listeners.sockets():
            listener.close()
        deadline = time.monotonic() + self._settings.listen.drain_seconds + STOP_EXTRA_SECONDS
        beside = [self._children[JOBS], self._children[COUNTER]]
        workers = [child for child in self._children.values() if child not in beside]
        for group in (workers, beside):
            for child in group:
                child.terminate()
            for child in group:
                child.join(max(0.1, deadline - time.monotonic()))
                if child.exitcode is None:
                    child.kill()
                    child.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _forget_metrics(self, pid: int | None) -> None:
        """Gauges of a dead process must not count any more (counters stay)."""
        for leftover in self._folder.glob(f"gauge_live*_{pid}.db"):
            leftover.unlink(missing_ok=True)


def _already_stopped(_number: int, _frame: object) -> None:
    """Nothing is left to do."""


def die_with_parent(parent: int) -> None:
    """In a child: be killed when its parent is (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def name_process(name: str) -> None:
    """Name this process for `ps -o comm` and `top` (Linux; at most 15 bytes)."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode()[:15])


def tune_process() -> None:
    """Once, before children are forked.

    Room for many sockets; fewer garbage collections (requests make hardly any cycles); and large blocks from the heap:
    uvloop's 256 KB read buffers going through mmap cost 15 µs each (docs/architecture.md#the-hot-path).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)
    gc.enable()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
