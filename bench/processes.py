"""Processes that are measured, pinned to cores, and load on them."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.support.servers import RedisServer, Tollkeeper, wait_until

PROXY_CORE = 0
OTHERS = [core for core in range(os.cpu_count() or 1) if core != PROXY_CORE] or [0]
UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Burst(NamedTuple):
    """A burst of load: requests a second, p50 in milliseconds, CPU microseconds a request."""

    rate: float
    p50_ms: float
    cpu_us: float


class Subject(NamedTuple):
    """Something that answers /v1/chat/completions, and the processes whose CPU counts.

    `key`: of who asks; several, with blanks between, take turns.
    """

    name: str
    url: str
    key: str
    processes: list[psutil.Process]


def body(size: int, *, stream: bool = False) -> str:
    """A chat of about so many bytes, as an SDK writes it."""
    tail = ',"stream":true' if stream else ""
    text = "x" * (size - 100)
    return '{"model":"gpt-4o-mini","max_tokens":100,"messages":[{"role":"user","content":"' + text + '"}]' + tail + "}"


def pin(process: psutil.Process, cores: list[int]) -> None:
    """Keep a process and its children on these cores."""
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.cpu_affinity(cores)


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """User and system time so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@contextlib.contextmanager
def running(command: list[str], port: int, cores: list[int], **environment: str) -> Iterator[psutil.Process]:
    """Run a server process, pinned, that listens on its port."""
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: _listens(port), 15, str(command))
        found = psutil.Process(process.pid)
        pin(found, cores)
        yield found
    finally:
        process.terminate()
        process.wait()


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


def wrk(url: str, key: str, text: str, *, connections: int, seconds: int) -> tuple[float, float]:
    """(requests a second, p50 in ms) as wrk measures them. Raises RuntimeError unless every answer was a 2xx."""
    keys = key.split()
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "body").write_text(text)
        script = Path(name) / "post.lua"
        script.write_text(
            f"wrk.method='POST'\nlocal f=io.open('{name}/body')\nwrk.body=f:read('*a')\nf:close()\n"
            f"wrk.headers['Content-Type']='application/json'\nwrk.headers['Authorization']='Bearer {keys[0]}'\n"
            + (IN_TURN.format(keys=",".join(f"'{one}'" for one in keys)) if len(keys) > 1 else "")
        )
        core = str(OTHERS[-1])
        command = ["taskset", "-c", core, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
        shown = subprocess.run([*command, "-s", str(script), url], capture_output=True, text=True, check=True).stdout
    rate, p50 = re.search(r"Requests/sec:\s+([\d.]+)", shown), re.search(r"50%\s+([\d.]+)(us|ms|s)", shown)
    if "Non-2xx" in shown or rate is None or p50 is None:
        raise RuntimeError(shown)
    return float(rate[1]), float(p50[1]) * UNITS[p50[2]]


def burst(subject: Subject, text: str, *, connections: int, seconds: int) -> Burst:
    """Load a subject for a while."""
    before = cpu_seconds(subject.processes)
    rate, p50 = wrk(subject.url, subject.key, text, connections=connections, seconds=seconds)
    return Burst(rate, p50, (cpu_seconds(subject.processes) - before) / (rate * seconds) * 1e6)


@contextlib.contextmanager
def nginx(folder: Path, port: int, upstream: str) -> Iterator[Subject]:
    """proxy_pass with keep-alive, unbuffered, one worker: the limit. `upstream`: http://HOST:PORT or https://."""
    folder.mkdir(parents=True)
    scheme, _, authority = upstream.partition("://")
    (folder / "nginx.conf").write_text(f"""
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{ access_log off; client_max_body_size 8m; client_body_buffer_size 4m; client_body_temp_path {folder}/b;
  proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream up {{ server {authority}; keepalive 256; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; keepalive_requests 1000000000;
    location / {{
      proxy_pass {scheme}://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }} }}
""")
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    with running(command, port, [PROXY_CORE]) as process:
        yield Subject("nginx proxy_pass", _chat(port), "x", [process, *process.children()])


@contextlib.contextmanager
def pass_through(port: int, upstream: str) -> Iterator[Subject]:
    """Starlette and httpx, no metering: the obvious way."""
    command = [sys.executable, "-m", "uvicorn", "bench.httpx_baseline:app", "--port", str(port)]
    command += ["--log-level", "critical", "--no-access-log"]
    with running(command, port, [PROXY_CORE], BENCH_UPSTREAM=upstream) as process:
        yield Subject("starlette + httpx pass-through", _chat(port), "x", [process])


@contextlib.contextmanager
def tollkeeper(
    folder: Path,
    upstream: str,
    fsync: str,
    ca_file: str = "",
    accounts: int = 1,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Subject]:
    """Everything on: authentication, hold, settle, metrics, access log. One worker on its core, Redis and jobs beside.

    `fsync`: Redis' appendfsync; `accounts`: those that ask in turn; `settings`: more of its environment.
    """
    folder.mkdir(parents=True)
    redis = RedisServer(folder / "redis", fsync)
    redis.start()
    environment = {
        **(settings or {}),
        "TOLLKEEPER_UPSTREAM__BASE_URL": f"{upstream}/v1",
        "TOLLKEEPER_UPSTREAM__CA_FILE": ca_file,
        "TOLLKEEPER_REDIS__URL": redis.url,
        "TOLLKEEPER_JOURNAL__MAX_PENDING": "100000000",
    }
    server = Tollkeeper(folder, environment)
    try:
        server.start()
        keys = [server.account("900000000").api_key for _ in range(accounts)]
        if server.process is None or redis.process is None:
            raise RuntimeError("a server did not start")
        parent = psutil.Process(server.process.pid)
        pin(parent, OTHERS)
        worker = next(child for child in parent.children() if child.name().startswith("tk-worker"))
        worker.cpu_affinity([PROXY_CORE])
        psutil.Process(redis.process.pid).cpu_affinity(OTHERS)
        yield Subject(f"tollkeeper, Redis ({fsync})", f"{server.v1}/chat/completions", " ".join(keys), [worker])
    finally:
        server.kill()
        redis.kill()


def _chat(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1/chat/completions"
