"""How cost grows with a ledger: `make bench-growth ARGS="--rows 10000 100000 1000000 --database postgresql"`.

Small by default. Prints a table a database and writes it with its curves into `--output`; exits 1 where a page is above
its bound. Figures are of this machine, and of whatever else runs on it.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.growth import curves
from bench.growth.data import Size, database_bytes, ledger
from bench.growth.flushing import flushed
from bench.growth.measure import flush, in_a_process_of_its_own, per_call, reports, timed
from bench.growth.rebuilding import rebuild
from bench.growth.serving import accounts, streams

PAGE_MS = 20.0
PAGES = ("me", "usage, first page", "ledger, first page")
"""First pages, whose p99 is bounded whatever the size."""
Found = dict[str, dict[str, float]]


async def measure(kind: str, size: Size) -> Found:
    """Make a ledger of this size, and measure it."""
    with tempfile.TemporaryDirectory(prefix="growth") as folder:
        async with ledger(kind, Path(folder), size) as database:
            found = {name: await timed(call, folder) for name, call in per_call(database).items()}
            for name in reports(database):
                found[name] = in_a_process_of_its_own(database.url.render_as_string(hide_password=False), folder, name)
            found["flush"] = await flush(database, size.accounts, folder)
            found["database"] = {"bytes a row": await database_bytes(database) / size.rows}
    return found


def table(results: dict[Size, Found]) -> str:
    """Write a table: a line a figure, a column a size."""
    sizes = list(results)
    lines = ["| | " + " | ".join(f"{size.rows:,} rows, {size.accounts:,} accounts" for size in sizes) + " |"]
    lines.append("|---|" + "---|" * len(sizes))
    for name in results[sizes[0]]:
        cells = ["; ".join(f"{what} {value:,.1f}" for what, value in results[size][name].items()) for size in sizes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(kind: str, results: dict[Size, Found], folder: Path) -> None:
    """Write the curves of a database."""
    names = next(iter(results.values()))
    pages = {
        name: [(size.rows, found[name]["CPU"]) for size, found in results.items()]
        for name in names
        if "p99" in names[name]
    }
    slow = {
        name: [(size.rows, found[name]["CPU s"]) for size, found in results.items()]
        for name in names
        if "seconds" in names[name]
    }
    where = f"{kind}, account 0 has a tenth of all"
    curves.write(folder / f"growth-pages-{kind}.svg", f"Pages ({where})", "rows of usage", "ms of CPU time", pages)
    curves.write(
        folder / f"growth-reports-{kind}.svg", f"Reports ({where})", "rows of usage", "seconds of CPU time", slow
    )


def main() -> int:
    """Measure what is asked for."""
    given = arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    words = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    ]
    too_slow, kept = [], {}
    for kind in given.database:
        results = {}
        for rows in given.rows:
            size = Size(rows, given.accounts or max(10, rows // 10))
            results[size] = asyncio.run(measure(kind, size))
            too_slow += [f"{kind}, {rows:,} rows: {name}" for name in PAGES if results[size][name]["p99"] > PAGE_MS]
        draw(kind, results, given.output)
        words += ["", f"## {kind}", "", table(results)]
        kept[kind] = [{**size._asdict(), **found} for size, found in results.items()]
    if given.rebuild:
        done = [(number, rebuild(number)) for number in given.rebuild]
        rows = [f"{number:,} | {one.seconds:.1f} | {one.first:.2f}" for number, one in done]
        head = "accounts | seconds | first bucket serves after"
        words += section("An emptied Redis, rebuilt from PostgreSQL", head, rows)
        whole = {
            "whole": [(number, one.seconds) for number, one in done],
            "first bucket": [(n, one.first) for n, one in done],
        }
        curves.write(
            given.output / "growth-rebuild.svg",
            "An emptied Redis, rebuilt from PostgreSQL",
            "accounts",
            "seconds",
            whole,
        )
    if given.flushers:
        rows = [f"{number} | {flushed(number):,.0f}" for number in given.flushers]
        words += section("A backlog, flushed into PostgreSQL", "jobs processes | charges/s", rows)
    words += serving(given)
    (given.output / "growth.md").write_text("\n".join(words) + "\n")
    (given.output / "growth.json").write_text(json.dumps(kept, indent=1))
    print("\n".join(words))
    for one in too_slow:
        print(f"p99 above {PAGE_MS:.0f} ms: {one}", file=sys.stderr)
    return 1 if too_slow else 0


def serving(given: argparse.Namespace) -> list[str]:
    """Measure a worker that serves, and write a table of it."""
    words = []
    if given.streams:
        done = [(number, streams(number)) for number in given.streams]
        rows = [f"{number:,} | {one.cpu_us:.1f} | {one.longest_gap_s:.2f} | {one.peak_mb:.0f}" for number, one in done]
        words += section("Streams at once", "streams | CPU us a chunk | longest gap, s | worker, MB", rows)
    if given.hot:
        found = [(number, accounts(number)) for number in given.hot]
        rows = [f"{number:,} | {one.rate:,.0f} | {one.cpu_us:.0f} | {one.p50_ms:.1f}" for number, one in found]
        words += section("Accounts that ask at once", "accounts | requests/s | CPU us | p50, ms", rows)
    return words


def section(title: str, head: str, rows: Sequence[str]) -> list[str]:
    """Write a section with a table."""
    rule = "|".join("---" for _ in head.split("|"))
    return ["", f"## {title}", "", f"| {head} |", f"|{rule}|", *(f"| {row} |" for row in rows)]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make bench-growth", description=__doc__)
    both = ["postgresql", "sqlite"]
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000], help="sizes of usage")
    parser.add_argument("--accounts", type=int, help="accounts (a tenth of the rows)")
    parser.add_argument("--database", nargs="+", choices=both, default=both)
    parser.add_argument("--rebuild", type=int, nargs="*", default=[1_000, 10_000], help="accounts of an emptied Redis")
    parser.add_argument("--flushers", type=int, nargs="*", default=[1, 2], help="jobs processes that flush a backlog")
    parser.add_argument("--streams", type=int, nargs="*", default=[10, 100, 1_000], help="slow streams at once")
    parser.add_argument("--hot", type=int, nargs="*", default=[1, 64], help="accounts that ask in turn")
    parser.add_argument("--output", type=Path, default=Path("build/growth"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
