"""Run every measurement and print it beside its bound: python -m bench. Exits 1 above a bound.

One proxy at a time works, on core 0; load, upstream and Redis have the other cores. All of them run side by side and
are loaded in turn, round by round; what is shown are medians. Bounds are ratios to nginx in the same run: absolute
figures belong to a machine.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import hold_ratio
from bench.processes import (
    ALONE,
    JSON,
    PROXY_CORE,
    STREAM,
    Burst,
    Load,
    Subject,
    body,
    burst,
    cpu_seconds,
    nginx,
    pass_through,
    tollkeeper,
    upstream,
)
from tests.support.servers import ROOT, TOLLKEEPER, free_port
from tests.support.tls import Authority

SECONDS = int(os.environ.get("BENCH_SECONDS", "2"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
SLOW_STREAMS, CHUNKS = 1_000, 102


LARGE, HUGE = Load("JSON, 100 kB", body(100_000)), Load("JSON, 1 MB", body(1_000_000))
SMALL = (JSON, ALONE, STREAM)
TLS = "over TLS to the upstream"
NGINX, OBVIOUS, OURS, SAFE = (
    "nginx proxy_pass",
    "starlette + httpx pass-through",
    "tollkeeper, Redis (everysec)",
    "tollkeeper, Redis (always)",
)


class Bound(NamedTuple):
    """A line of the report: a figure, the most (or, `least`, the least) that it may be, and how it is written."""

    what: str
    figure: float
    bound: float
    unit: str = "x"
    least: bool = False

    @property
    def kept(self) -> bool:
        """True where the figure is within its bound."""
        return self.figure >= self.bound if self.least else self.figure <= self.bound


Found = Mapping[tuple[str, str], Sequence[Burst]]


def main() -> int:
    """Measure everything and print the tables."""
    for tool in ("wrk", "nginx", "taskset"):
        if shutil.which(tool) is None:
            print(f"`make bench` needs {tool}: apt-get install -y wrk nginx-light util-linux", file=sys.stderr)
            return 2
    folder = Path(tempfile.mkdtemp(prefix="tkb"))
    found, megabytes = measure(folder)
    slow = {name: run_slow(folder / f"slow-{number}", name) for number, name in enumerate((NGINX, OURS))}
    show(found)
    kept = [_shown(line) for line in (*bounds(found, megabytes), *slow_bounds(slow), *starts())]
    for name, ratio in hold_ratio.measure(folder / "ratio").items():
        print(f"{'hold / charge, plain chat with a max, ' + name:58}{ratio:9.2f}")
    shutil.rmtree(folder, ignore_errors=True)
    print(
        "\nBeside LiteLLM, Portkey's gateway, Envoy and nginx + Lua + Redis: `make bench-peers`, which installs them first."
    )
    return 0 if all(kept) else 1


def measure(folder: Path) -> tuple[Found, Mapping[str, float]]:
    """Load everybody in turn; return what was found by (subject, load), and the worker's megabytes after the loads of 1 kB
    and after the large prompts, which leave what was in flight and the vocabulary of the answers that were broken off.
    """
    found: defaultdict[tuple[str, str], list[Burst]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(upstream())
        subjects = [
            Subject("direct to the upstream", f"{plain}/v1/chat/completions", "x", []),
            stack.enter_context(nginx(folder / "nginx", free_port(), plain)),
            stack.enter_context(pass_through(free_port(), plain)),
            stack.enter_context(tollkeeper(folder / "everysec", plain, "everysec")),
            stack.enter_context(tollkeeper(folder / "always", plain, "always")),
        ]
        authority = Authority(folder / "authority")
        secure = stack.enter_context(upstream(*authority.issue("localhost", "127.0.0.1")))
        behind = (
            stack.enter_context(nginx(folder / "nginx-tls", free_port(), secure)),
            stack.enter_context(tollkeeper(folder / "tls", secure, "everysec", str(authority.ca))),
        )
        small = [(subject, load) for subject in subjects for load in SMALL]
        small += [(subject._replace(name=f"{subject.name} {TLS}"), JSON) for subject in behind]
        large = [(subject, load) for subject in subjects for load in (LARGE, HUGE)]
        megabytes = dict[str, float]()
        for what, todo in (("of 1 kB", small), ("of 1 MB", large)):
            for number in range(ROUNDS + 1):
                for subject, load in todo:
                    seconds = SECONDS if number else min(1, SECONDS)
                    one = burst(subject, load, seconds)
                    if number:  # the first warms up
                        found[subject.name, load.name].append(one)
            megabytes[what] = subjects[3].processes[0].memory_info().rss / 1e6
        return found, megabytes


def run_slow(
    folder: Path, name: str, streams: int = SLOW_STREAMS, settings: Mapping[str, str] | None = None
) -> dict[str, float]:
    """So many streams of 100 chunks, 50 ms apart, through one worker. `settings`: more of Tollkeeper's environment."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(upstream(pace_ms=50, repeat=2))
        if name == NGINX:
            made = nginx(folder, free_port(), place)
        else:
            made = tollkeeper(folder, place, "everysec", settings=settings)
        subject = stack.enter_context(made)
        before, peak = cpu_seconds(subject.processes), 0.0
        client = subprocess.Popen(
            [sys.executable, "-m", "bench.slow_streams", subject.url, subject.key, str(streams)],
            stdout=subprocess.PIPE,
            text=True,
        )
        while client.poll() is None:
            peak = max(peak, sum(one.memory_info().rss for one in subject.processes) / 1e6)
            time.sleep(0.1)
        said: dict[str, float] = json.loads(client.communicate()[0])
        spent = (cpu_seconds(subject.processes) - before) / (streams * CHUNKS) * 1e6
        return {**said, "peak_mb": peak, "cpu_us": spent}


def show(found: Found) -> None:
    """Print what was measured of each, absolute."""
    print(f"\n{ROUNDS} rounds of {SECONDS:g} s, core {PROXY_CORE}; CPU µs a request (requests/s) [p50 ms]\n")
    for load in dict.fromkeys(load for _, load in found):
        print(load)
        for name in dict.fromkeys(name for name, its in found if its == load):
            one = [statistics.median(getattr(burst, field) for burst in found[name, load]) for field in Burst._fields]
            print(f"    {name:56}{one[2]:10,.0f}  ({one[0]:9,.0f})  [{one[1]:7.2f}]")
    print()


def bounds(found: Found, megabytes: Mapping[str, float]) -> list[Bound]:
    """Bounds of what was measured under load (design of the hot path: docs/architecture.md#the-hot-path)."""

    def median(name: str, load: Load, field: str = "cpu_us") -> float:
        return float(statistics.median(getattr(one, field) for one in found[name, load.name]))

    def ratio(load: Load, place: str = "") -> float:
        return median(f"{OURS}{place}", load) / median(f"{NGINX}{place}", load)

    direct = median("direct to the upstream", ALONE, "p50_ms")
    return [
        Bound("JSON, 1 kB: CPU to nginx's", ratio(JSON), 6),
        Bound(
            "the same: requests/s to the pass-through's",
            median(OURS, JSON, "rate") / median(OBVIOUS, JSON, "rate"),
            10,
            least=True,
        ),
        Bound(f"the same {TLS}", ratio(JSON, f" {TLS}"), 6),
        Bound("50-chunk stream at full speed: CPU to nginx's", ratio(STREAM), 1.2),
        Bound("100 kB prompt: CPU to nginx's", ratio(LARGE), 3),
        Bound("1 MB prompt: CPU to nginx's", ratio(HUGE), 3),
        Bound("added p50 alone, everysec", median(OURS, ALONE, "p50_ms") - direct, 0.3, " ms"),
        Bound("added p50 alone, always", median(SAFE, ALONE, "p50_ms") - direct, 0.6, " ms"),
        Bound("RSS of the worker after requests of 1 kB", megabytes["of 1 kB"], 100, " MB"),
        Bound("RSS of the worker after requests of 1 MB", megabytes["of 1 MB"], 200, " MB"),
    ]


def slow_bounds(slow: Mapping[str, Mapping[str, float]]) -> list[Bound]:
    """Bounds of many slow streams."""
    ours = slow[OURS]
    return [
        Bound("1,000 slow streams: CPU a chunk to nginx's", ours["cpu_us"] / slow[NGINX]["cpu_us"], 1.6),
        Bound("1,000 slow streams at once: the last began after", ours["last_began_s"], 0.25, " s"),
        Bound("1,000 slow streams: longest gap in one", ours["longest_gap_s"], 0.25, " s"),
        Bound("1,000 slow streams: peak RSS", ours["peak_mb"], 150, " MB"),
        Bound("1,000 slow streams: ended whole", ours["completed"], SLOW_STREAMS, "", least=True),
    ]


def starts() -> list[Bound]:
    """Bounds of starting: the least of five."""
    took = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run([str(TOLLKEEPER), "--help"], cwd=ROOT, capture_output=True, check=True)
        took.append(time.monotonic() - began)
    return [Bound("tollkeeper --help", min(took), 0.3, " s")]


def _shown(line: Bound) -> bool:
    side = ">=" if line.least else "<="
    verdict = "" if line.kept else "  ABOVE" if not line.least else "  BELOW"
    print(f"{line.what:58}{line.figure:9.2f}{line.unit:4}{side} {line.bound:g}{line.unit}{verdict}")
    return line.kept


if __name__ == "__main__":
    sys.exit(main())
