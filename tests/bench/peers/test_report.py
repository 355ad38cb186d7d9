"""The table tells medians and ratios of neighbours; the bars are on a logarithmic scale."""

import re
from contextlib import AbstractContextManager
from pathlib import Path
from xml.etree import ElementTree as ET

from bench.peers import report
from bench.peers.__main__ import LOADS
from bench.peers.peer import Peer
from bench.processes import Burst, Subject


def never(_folder: Path, _upstream: str) -> AbstractContextManager[Subject]:
    raise AssertionError("it is not run")


LIMIT, OTHER = (Peer(name, "nothing", lambda: "1", never) for name in ("nginx", "other"))


def found(name: str, *cpu_us: float, beside: float = 0) -> dict[tuple[str, str], list[Burst]]:
    return {(name, load.name): [Burst(1_000, 2.5, cpu, beside) for cpu in cpu_us] for load in LOADS}


def test_a_ratio_is_of_two_bursts_of_the_same_round() -> None:
    bursts = {**found("nginx", 10, 20, 40), **found("other", 40, 60, 120)}  # 4, 3, 3
    assert report.ratio(bursts, "other", "nginx", LOADS[0].name) == 3
    assert report.median(bursts, "other", LOADS[0].name, "cpu_us") == 60


def test_a_line_a_peer_with_what_works_beside_it() -> None:
    bursts = {**found("nginx", 10), **found("other", 125, beside=31)}
    head, rule, *lines = report.table(bursts, [LIMIT, OTHER], "nginx", {"nginx": 12.3, "other": 490}).splitlines()
    assert lines == [
        "| nginx | nothing | 10 | 1.0x | 1,000 [2.5] | 2.50 | 10 | 1.0x | 1,000 | 12 |",
        "| other | nothing | 125 (31) | 12x | 1,000 [2.5] | 2.50 | 125 (31) | 12x | 1,000 | 490 |",
    ]
    assert {line.count("|") for line in (head, rule, *lines)} == {11}


def test_ten_times_as_much_is_a_bar_longer_by_a_decade() -> None:
    picture = report.bars("CPU <µs>", {"a": 10.0, "b & c": 100.0, "d": 1_000.0})
    ET.fromstring(picture)
    first, second, third = (float(width) for width in re.findall(r'width="([\d.]+)" height="18"', picture))
    assert second - first == third - second > 0


def test_the_report_is_written_with_its_picture(tmp_path: Path) -> None:
    bursts = {**found("nginx", 10), **found("other", 125)}
    report.write(tmp_path / "out", "text\n", bursts, [OTHER, LIMIT])
    assert (tmp_path / "out" / "peers.md").read_text() == "text\n"
    assert (tmp_path / "out" / "peers.svg").read_text().index("nginx") < (
        tmp_path / "out" / "peers.svg"
    ).read_text().index("other")
