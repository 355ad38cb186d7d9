"""Run every measurement and print the table.

One proxy at a time on core 0; load, upstream and Redis on the other cores.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil

from bench import hold_ratio
from tests.support.servers import RedisServer, Tollkeeper, free_port, wait_until

PROXY_CORE = 0
SECONDS = int(os.environ.get("BENCH_SECONDS", "6"))
CONNECTIONS = 16
SLOW_STREAMS = 1_000
TARGETS = {
    "cpu_us": "<= 90 µs CPU a metered request",
    "rps": ">= 10x the httpx pass-through",
    "stream": "50-chunk stream <= 1.5x nginx's CPU",
    "latency": "added p50 at concurrency 1 <= 0.5 ms",
    "slow": "1,000 slow streams: <= 150 MB RSS, none stalled",
}


def body(*, stream: bool) -> str:
    """About 1 kB."""
    tail = ',"stream":true' if stream else ""
    return (
        '{"model":"gpt-4o-mini","max_tokens":100,"messages":[{"role":"user","content":"'
        + "x" * 900
        + '"}]'
        + tail
        + "}"
    )


def pin(process: psutil.Process, cores: list[int]) -> None:
    """Keep a process on these cores."""
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.cpu_affinity(cores)


@contextlib.contextmanager
def running(command: list[str], port: int, cores: list[int], **environment: str) -> Iterator[psutil.Process]:
    """Run a server process, pinned, that answers on its port."""
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(
            lambda: (
                httpx.get(f"http://127.0.0.1:{port}/", timeout=1).status_code > 0
                if "bench.upstream" not in command
                else True
            ),
            15,
            str(command),
        )
        time.sleep(0.3)
        found = psutil.Process(process.pid)
        pin(found, cores)
        yield found
    finally:
        process.terminate()
        process.wait()


def wrk(url: str, key: str, *, stream: bool, connections: int, seconds: int, core: int) -> tuple[float, float]:
    """(requests/s, p50 latency in ms) as wrk measures them; asserts that every answer was a 2xx."""
    script = Path(tempfile.mkdtemp()) / "post.lua"
    script.write_text(
        f"wrk.method='POST'\nwrk.body='{body(stream=stream)}'\nwrk.headers['Content-Type']='application/json'\n"
        f"wrk.headers['Authorization']='Bearer {key}'\n"
    )
    command = [
        "taskset",
        "-c",
        str(core),
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(script),
        url,
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in text, text
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]
    value, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return rate, float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """User + system time so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def measure(
    url: str, key: str, processes: list[psutil.Process], *, stream: bool, connections: int = CONNECTIONS
) -> dict[str, float]:
    """Requests/s, p50 ms, CPU µs a request."""
    core = (os.cpu_count() or 2) - 1
    wrk(url, key, stream=stream, connections=connections, seconds=2, core=core)
    before, started = cpu_seconds(processes), time.monotonic()
    rate, p50 = wrk(url, key, stream=stream, connections=connections, seconds=SECONDS, core=core)
    requests = rate * SECONDS
    used = cpu_seconds(processes) - before
    return {"rps": rate, "p50_ms": p50, "cpu_us": used / requests * 1e6, "seconds": time.monotonic() - started}


def nginx_config(folder: Path, port: int, upstream: int) -> Path:
    """proxy_pass with keep-alive, unbuffered, one worker."""
    path = folder / "nginx.conf"
    path.write_text(f"""
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 256; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; keepalive_requests 1000000000;
    location / {{
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }} }}
""")
    return path


def main() -> int:
    """Measure everything and print the table."""
    for tool in ("wrk", "nginx", "taskset"):
        if shutil.which(tool) is None:
            print(f"`make bench` needs {tool}: apt-get install -y wrk nginx-light util-linux", file=sys.stderr)
            return 2
    others = [core for core in range(os.cpu_count() or 1) if core != PROXY_CORE] or [0]
    folder = Path(tempfile.mkdtemp(prefix="tkb"))
    results: dict[str, dict[str, dict[str, float]]] = {}
    upstream = free_port()
    with running([sys.executable, "-m", "bench.upstream", str(upstream)], upstream, others) as static:
        del static
        results["direct to the upstream"] = both(f"http://127.0.0.1:{upstream}/v1/chat/completions", "x", [])
        results["nginx proxy_pass"] = run_nginx(folder, upstream)
        results["starlette + httpx pass-through"] = run_httpx(upstream)
        for fsync in ("everysec", "always"):
            results[f"tollkeeper, Redis ({fsync})"], rss = run_tollkeeper(folder / fsync, upstream, fsync, others)
    slow = run_slow(folder / "slow", others)
    report(results, slow, rss)
    for name, ratio in hold_ratio.measure(folder / "ratio").items():
        print(f"{'hold / charge, plain chat with a max, ' + name:52} measured: {ratio:.2f}")
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def both(url: str, key: str, processes: list[psutil.Process]) -> dict[str, dict[str, float]]:
    """JSON at 16 and at 1 connection, and 50-chunk streams."""
    return {
        "json": measure(url, key, processes, stream=False),
        "alone": measure(url, key, processes, stream=False, connections=1),
        "stream": measure(url, key, processes, stream=True),
    }


def run_nginx(folder: Path, upstream: int) -> dict[str, dict[str, float]]:
    """Measure nginx, which is the limit."""
    port = free_port()
    config = nginx_config(folder, port, upstream)
    with running(["nginx", "-c", str(config), "-p", str(folder)], port, [PROXY_CORE]) as process:
        return both(f"http://127.0.0.1:{port}/v1/chat/completions", "x", [process, *process.children()])


def run_httpx(upstream: int) -> dict[str, dict[str, float]]:
    """Measure Starlette and httpx, which is the obvious way."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "bench.httpx_baseline:app",
        "--port",
        str(port),
        "--log-level",
        "critical",
        "--no-access-log",
    ]
    with running(command, port, [PROXY_CORE], BENCH_UPSTREAM=f"http://127.0.0.1:{upstream}") as process:
        return both(f"http://127.0.0.1:{port}/v1/chat/completions", "x", [process])


@contextlib.contextmanager
def served(
    folder: Path, upstream: int, fsync: str, others: list[int]
) -> Iterator[tuple[Tollkeeper, str, psutil.Process]]:
    """Tollkeeper with one worker on core 0, Redis and the jobs process elsewhere; an account with much credit."""
    folder.mkdir(parents=True)
    redis = RedisServer(folder / "redis", fsync)
    redis.start()
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": f"http://127.0.0.1:{upstream}/v1",
        "TOLLKEEPER_REDIS__URL": redis.url,
        "TOLLKEEPER_JOURNAL__MAX_PENDING": "100000000",
    }
    server = Tollkeeper(folder, environment)
    try:
        server.start()
        account = server.account("900000000")
        parent = psutil.Process(server.process.pid)  # type: ignore[union-attr]
        pin(parent, others)
        worker = next(child for child in parent.children() if child.name().startswith("tk-worker"))
        worker.cpu_affinity([PROXY_CORE])
        psutil.Process(redis.process.pid).cpu_affinity(others)  # type: ignore[union-attr]
        yield server, account.api_key, worker
    finally:
        server.kill()
        redis.kill()


def run_tollkeeper(
    folder: Path, upstream: int, fsync: str, others: list[int]
) -> tuple[dict[str, dict[str, float]], float]:
    """Everything on: auth, hold, settle, metrics, access log."""
    with served(folder, upstream, fsync, others) as (server, key, worker):
        found = both(f"{server.v1}/chat/completions", key, [worker])
        return found, worker.memory_info().rss / 1e6


def run_slow(folder: Path, others: list[int]) -> dict[str, float]:
    """1,000 streams of 100 chunks, 50 ms apart, in one worker."""
    upstream = free_port()
    with (
        running([sys.executable, "-m", "bench.upstream", str(upstream), "50", "2"], upstream, others),
        served(folder, upstream, "everysec", others) as (server, key, worker),
    ):
        before = cpu_seconds([worker])
        client = subprocess.Popen(
            [sys.executable, "-m", "bench.slow_streams", str(server.port), key, str(SLOW_STREAMS)],
            stdout=subprocess.PIPE,
            text=True,
        )
        peak = 0.0
        while client.poll() is None:
            peak = max(peak, worker.memory_info().rss / 1e6)
            time.sleep(0.1)
        assert client.stdout is not None
        found: dict[str, float] = json.loads(client.stdout.read())
        chunks = SLOW_STREAMS * 102
        return {**found, "peak_rss_mb": peak, "cpu_us_per_chunk": (cpu_seconds([worker]) - before) / chunks * 1e6}


def report(results: dict[str, dict[str, dict[str, float]]], slow: dict[str, float], rss: float) -> None:
    """Print the table, then each target with the figure measured."""
    print(f"\n{'':34}{'json req/s':>12}{'CPU µs':>9}{'p50 ms c=1':>12}{'stream req/s':>14}{'CPU µs/50 chunks':>18}")
    for name, found in results.items():
        print(
            f"{name:34}{found['json']['rps']:12,.0f}{found['json']['cpu_us']:9.0f}{found['alone']['p50_ms']:12.2f}"
            f"{found['stream']['rps']:14,.0f}{found['stream']['cpu_us']:18.0f}"
        )
    direct, nginx = results["direct to the upstream"], results["nginx proxy_pass"]
    httpx_found, ours = results["starlette + httpx pass-through"], results["tollkeeper, Redis (everysec)"]
    always = results["tollkeeper, Redis (always)"]
    lines: list[tuple[str, Callable[[], str]]] = [
        ("cpu_us", lambda: f"{ours['json']['cpu_us']:.0f} µs"),
        ("rps", lambda: f"{ours['json']['rps'] / httpx_found['json']['rps']:.1f}x"),
        ("stream", lambda: f"{ours['stream']['cpu_us'] / nginx['stream']['cpu_us']:.2f}x"),
        (
            "latency",
            lambda: (
                f"{ours['alone']['p50_ms'] - direct['alone']['p50_ms']:.2f} ms (everysec), "
                f"{always['alone']['p50_ms'] - direct['alone']['p50_ms']:.2f} ms (always)"
            ),
        ),
        (
            "slow",
            lambda: (
                f"{slow['peak_rss_mb']:.0f} MB, {slow['completed']:.0f} completed, "
                f"longest gap {slow['longest_gap_s']} s, {slow['cpu_us_per_chunk']:.1f} µs/chunk"
            ),
        ),
    ]
    print()
    for name, value in lines:
        print(f"{TARGETS[name]:48} measured: {value()}")
    print(f"{'RSS of the worker after the load':48} measured: {rss:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
