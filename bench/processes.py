"""Processes that are measured, pinned to cores, and load on them."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import psutil

from tests.support.servers import RedisServer, Tollkeeper, free_port, wait_until

PROXY_CORE = 0
OTHERS = [core for core in range(os.cpu_count() or 1) if core != PROXY_CORE] or [0]
STOP_SECONDS = 20
UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Burst(NamedTuple):
    """A burst of load: requests a second, p50 in milliseconds, CPU microseconds a request, and those of who helps it."""

    rate: float
    p50_ms: float
    cpu_us: float
    beside_us: float = 0.0


class Subject(NamedTuple):
    """Something that answers /v1/chat/completions, and the processes whose CPU counts.

    `key`: of who asks; several, with blanks between, take turns; `headers`: what it wants besides. `beside`: processes that
    it needs and that have other cores (Redis, jobs).
    """

    name: str
    url: str
    key: str
    processes: Sequence[psutil.Process]
    beside: Sequence[psutil.Process] = ()
    headers: Mapping[str, str] = MappingProxyType({})


class Load(NamedTuple):
    """A kind of load: the text that is posted, over so many connections."""

    name: str
    text: str
    connections: int = 16


def body(size: int, *, stream: bool = False) -> str:
    """A chat of about so many bytes, as an SDK writes it."""
    tail = ',"stream":true' if stream else ""
    text = "x" * (size - 100)
    return '{"model":"gpt-4o-mini","max_tokens":100,"messages":[{"role":"user","content":"' + text + '"}]' + tail + "}"


JSON = Load("JSON, 1 kB, 16 connections", body(1_000))
ALONE = Load("JSON, 1 kB, one connection", body(1_000), 1)
STREAM = Load("50-chunk stream at full speed", body(1_000, stream=True))


def pin(process: psutil.Process, cores: list[int]) -> None:
    """Keep a process and its children, with all their threads, on these cores."""
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            for thread in one.threads():
                os.sched_setaffinity(thread.id, cores)


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """User and system time so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@contextlib.contextmanager
def running(
    command: list[str], port: int, cores: list[int], *, patience: float = 15, **environment: str
) -> Iterator[psutil.Process]:
    """Run a server process that listens on its port within `patience` seconds; it and its threads have these cores."""
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *command]
    with tempfile.TemporaryFile() as log:
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(pinned, env={**inherited, **environment}, stdout=log, stderr=log)
        try:
            wait_until(lambda: process.poll() is not None or _listens(port), patience, f"{command[0]} listens")
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"{command} ended:\n{log.read()[-2000:].decode(errors='replace')}")
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()
            process.wait()


@contextlib.contextmanager
def upstream(*pem: Path, pace_ms: int = 0, repeat: int = 1) -> Iterator[str]:
    """Run the static upstream; `pem`: certificate and key, for TLS. Yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "bench.upstream", str(port), str(pace_ms), str(repeat), *map(str, pem)]
    with running(command, port, OTHERS):
        yield f"https://localhost:{port}" if pem else f"http://127.0.0.1:{port}"


def _listens(port: int) -> bool:
    return any(one.laddr.port == port and one.status == "LISTEN" for one in psutil.net_connections("tcp"))


IN_TURN = """
local keys, number = {{{keys}}}, 0
function request()
  number = number % #keys + 1
  wrk.headers['Authorization'] = 'Bearer ' .. keys[number]
  return wrk.format()
end
"""


def wrk(subject: Subject, load: Load, seconds: int) -> tuple[float, float]:
    """(requests a second, p50 in ms) as wrk measures them. Raises RuntimeError unless every answer was a 2xx."""
    keys = subject.key.split()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {keys[0]}", **subject.headers}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "body").write_text(load.text)
        script = Path(name) / "post.lua"
        script.write_text(
            f"wrk.method='POST'\nlocal f=io.open('{name}/body')\nwrk.body=f:read('*a')\nf:close()\n"
            + "".join(f"wrk.headers['{header}']='{value}'\n" for header, value in headers.items())
            + (IN_TURN.format(keys=",".join(f"'{one}'" for one in keys)) if len(keys) > 1 else "")
        )
        core = str(OTHERS[-1])
        command = ["taskset", "-c", core, "wrk", "-t1", f"-c{load.connections}", f"-d{seconds}s", "--latency"]
        shown = subprocess.run(
            [*command, "-s", str(script), subject.url], capture_output=True, text=True, check=True
        ).stdout
    rate, p50 = re.search(r"Requests/sec:\s+([\d.]+)", shown), re.search(r"50%\s+([\d.]+)(us|ms|s)", shown)
    if "Non-2xx" in shown or rate is None or p50 is None or not float(rate[1]):
        raise RuntimeError(f"{subject.name}, {load.name}:\n{shown}")
    return float(rate[1]), float(p50[1]) * UNITS[p50[2]]


def burst(subject: Subject, load: Load, seconds: int, rest: float = 0.0) -> Burst:
    """Load a subject for a while. What it does in the `rest` seconds after the last answer counts as well."""
    before, beside = cpu_seconds(subject.processes), cpu_seconds(subject.beside)
    rate, p50 = wrk(subject, load, seconds)
    time.sleep(rest)
    us_a_request = 1e6 / (rate * seconds)
    return Burst(
        rate,
        p50,
        (cpu_seconds(subject.processes) - before) * us_a_request,
        (cpu_seconds(subject.beside) - beside) * us_a_request,
    )


@contextlib.contextmanager
def nginx(folder: Path, port: int, upstream: str, name: str = "nginx proxy_pass", **more: str) -> Iterator[Subject]:
    """proxy_pass with keep-alive, unbuffered, one worker: the limit. `upstream`: http://HOST:PORT or https://."""
    folder.mkdir(parents=True)
    (folder / "nginx.conf").write_text(nginx_conf(folder, port, upstream, **more))
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    with running(command, port, [PROXY_CORE]) as process:
        yield Subject(name, chat_url(port), "x", [process, *process.children()])


def nginx_conf(folder: Path, port: int, upstream: str, *, main: str = "", http: str = "", location: str = "") -> str:
    """Write nginx's configuration, with more lines at its top, for all of HTTP, and where it passes on."""
    scheme, _, authority = upstream.partition("://")
    return f"""{main}
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{ access_log off; client_max_body_size 8m; client_body_buffer_size 4m; client_body_temp_path {folder}/b;
  proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream up {{ server {authority}; keepalive 256; }}
{http}  server {{ listen 127.0.0.1:{port} backlog=4096; keepalive_requests 1000000000;
    location / {{
{location}      proxy_pass {scheme}://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }} }}
"""


@contextlib.contextmanager
def pass_through(port: int, upstream: str) -> Iterator[Subject]:
    """Starlette and httpx, no metering: the obvious way."""
    command = [sys.executable, "-m", "uvicorn", "bench.httpx_baseline:app", "--port", str(port)]
    command += ["--log-level", "critical", "--no-access-log"]
    with running(command, port, [PROXY_CORE], BENCH_UPSTREAM=upstream) as process:
        yield Subject("starlette + httpx pass-through", chat_url(port), "x", [process])


@contextlib.contextmanager
def tollkeeper(
    folder: Path,
    upstream: str,
    fsync: str,
    ca_file: str = "",
    accounts: int = 1,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Subject]:
    """Everything on: authentication, hold, settle, metrics, access log. Each worker on a core, Redis and jobs beside.

    `fsync`: Redis' appendfsync; `accounts`: those that ask in turn; `settings`: more of its environment.
    """
    folder.mkdir(parents=True)
    redis = RedisServer(folder / "redis", fsync)
    redis.start()
    environment = {
        **(settings or {}),
        "TOLLKEEPER_UPSTREAM__CA_FILE": ca_file,
        "TOLLKEEPER_REDIS__URL": redis.url,
    }
    try:
        with _serving(folder, upstream, environment, accounts) as (url, key, parent):
            serving = [child for child in parent.children() if child.name().startswith("tk-worker")]
            for number, worker in enumerate(serving):
                pin(worker, [(PROXY_CORE + number) % (os.cpu_count() or 1)])
            store = psutil.Process(redis.process.pid)  # type: ignore[union-attr]
            pin(store, OTHERS)
            beside = [store, parent, *(child for child in parent.children() if child not in serving)]
            name = f"tollkeeper, Redis ({fsync})" + (f", {len(serving)} workers" if len(serving) > 1 else "")
            yield Subject(name, url, key, serving, beside)
    finally:
        redis.kill()


@contextlib.contextmanager
def tollkeeper_embedded(folder: Path, upstream: str) -> Iterator[Subject]:
    """Everything on, in one process that keeps its balances in SQLite and does its jobs by itself."""
    folder.mkdir(parents=True)
    with _serving(folder, upstream, {}) as (url, key, process):
        pin(process, [PROXY_CORE])
        yield Subject("tollkeeper, embedded store (SQLite)", url, key, [process])


@contextlib.contextmanager
def _serving(
    folder: Path, upstream: str, environment: Mapping[str, str], accounts: int = 1
) -> Iterator[tuple[str, str, psutil.Process]]:
    """Serve Tollkeeper; yield the address of chat, keys of so many rich accounts, and its first process."""
    common = {"TOLLKEEPER_UPSTREAM__BASE_URL": f"{upstream}/v1", "TOLLKEEPER_JOURNAL__MAX_PENDING": "100000000"}
    server = Tollkeeper(folder, {**common, **environment})
    try:
        server.start()
        keys = [server.account("900000000").api_key for _ in range(accounts)]
        if server.process is None:
            raise RuntimeError("Tollkeeper did not start")
        parent = psutil.Process(server.process.pid)
        pin(parent, OTHERS)
        yield f"{server.v1}/chat/completions", " ".join(keys), parent
    finally:
        server.kill()


def chat_url(port: int) -> str:
    """Address of chat completions of a local server."""
    return f"http://127.0.0.1:{port}/v1/chat/completions"
