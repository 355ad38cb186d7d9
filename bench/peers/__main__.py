"""Measure Tollkeeper beside others in the same run: `make bench-peers`. Who is not installed is named, with the reason.

All run side by side and are loaded in turn, round by round, over the same upstream; what is shown are medians, and
ratios of those who came next to each other. There are no bounds here: figures are of this machine and what else it did.
"""

import argparse
import contextlib
import os
import platform
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx

from bench.peers import baselines, envoy, litellm, nginx_lua, portkey, report
from bench.peers.peer import Absent, Peer, tool
from bench.processes import ALONE, JSON, STREAM, Burst, Load, Subject, burst, upstream

PEERS = (
    baselines.LIMIT,
    envoy.PEER,
    nginx_lua.PEER,
    baselines.OURS,
    baselines.TWO_WORKERS,
    baselines.EMBEDDED,
    baselines.OBVIOUS,
    portkey.PEER,
    litellm.WITHOUT_BUDGET,
    litellm.WITH_BUDGET,
)
LOADS = (JSON, ALONE, STREAM)
REST_SECONDS, WARM_SECONDS = 0.5, 3
CHUNKS = 50


def main() -> int:
    """Measure whoever is there."""
    given = arguments()
    try:
        for name, package in (("wrk", "wrk"), ("nginx", "nginx-light"), ("taskset", "util-linux")):
            tool(name, package)
    except Absent as reason:
        print(f"`make bench-peers` needs it: {reason}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="tkp"))
    try:
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(upstream())
            here, absent = start(stack, wanted(given.only), folder, place)
            for subject in here.values():
                check(subject)
            before = os.getloadavg()[0]
            found = measure(list(here.values()), given.rounds, given.seconds)
            megabytes = {name: resident_mb(subject) for name, subject in here.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    peers = [peer for peer in PEERS if peer.name in here]
    words = [
        (
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} cores, Python "
            f"{platform.python_version()}, load {before:.1f} before; {given.rounds} rounds of {given.seconds} s."
        ),
        "",
        report.table(found, peers, baselines.LIMIT.name, megabytes),
        "",
        f"Versions: {'; '.join(dict.fromkeys(peer.version() for peer in peers))}.",
        *(f"Not measured: {name}: {reason}" for name, reason in absent.items()),
    ]
    text = "\n".join(words) + "\n"
    report.write(given.output, text, found, peers)
    print(text)
    return 0


def wanted(words: Sequence[str]) -> list[Peer]:
    """Return the peers with one of these words in their names, and nginx, to which all are compared."""
    return [peer for peer in PEERS if peer is baselines.LIMIT or any(word in peer.name for word in words)]


def start(
    stack: contextlib.ExitStack, peers: Sequence[Peer], folder: Path, place: str
) -> tuple[dict[str, Subject], dict[str, str]]:
    """Start the peers; return those that run, and for each that is not here the reason."""
    here, absent = {}, {}
    for number, peer in enumerate(peers):
        try:
            version = peer.version()
            here[peer.name] = stack.enter_context(peer.run(folder / str(number), place))
        except Absent as reason:
            absent[peer.name] = str(reason)
            print(f"not here: {peer.name}: {reason}", file=sys.stderr)
        else:
            print(f"{peer.name}: {version}", file=sys.stderr)
    return here, absent


def check(subject: Subject) -> None:
    """Look that it answers as the upstream does: with usage, and streams with every chunk."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {subject.key}", **subject.headers}
    for load in (JSON, STREAM):
        answer = httpx.post(subject.url, content=load.text, headers=headers, timeout=60)
        if load is JSON:
            right = answer.is_success and "usage" in answer.json()
        else:
            right = answer.is_success and answer.text.count("data: {") >= CHUNKS and "[DONE]" in answer.text
        if not right:
            raise RuntimeError(f"{subject.name}, {load.name}: {answer.status_code} {answer.text[:500]}")


def measure(subjects: Sequence[Subject], rounds: int, seconds: int) -> Mapping[tuple[str, str], list[Burst]]:
    """Load everybody in turn, load by load; the first round warms up."""
    found: defaultdict[tuple[str, str], list[Burst]] = defaultdict(list)
    for number in range(rounds + 1):
        for load, subject in _turns(subjects):
            if number:
                found[subject.name, load.name].append(burst(subject, load, seconds, REST_SECONDS))
            else:
                with contextlib.suppress(RuntimeError):  # a cold one may answer nothing in time
                    burst(subject, load, WARM_SECONDS)
        print(f"round {number} of {rounds}: load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return found


def resident_mb(subject: Subject) -> float:
    """Return the memory of its processes."""
    return float(sum(process.memory_info().rss for process in subject.processes) / 1e6)


def _turns(subjects: Sequence[Subject]) -> list[tuple[Load, Subject]]:
    return [(load, subject) for load in LOADS for subject in subjects]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each burst of load")
    parser.add_argument("--only", nargs="+", default=[""], help="whose name has one of these in it, and nginx")
    parser.add_argument("--output", type=Path, default=Path("build/peers"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
