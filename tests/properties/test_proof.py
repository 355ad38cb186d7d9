"""`make prove`, as far as a test run has time for: the parts that are no tests by themselves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.properties.proof import bad_weather, clocks, fuzz, overspend, seeded

pytestmark = [pytest.mark.served, pytest.mark.timeout(600)]
SEED = 20_261_130
SEED_OF_MASTERS = 17
"""Of six kills that are, among others, a master that is back at once and one whose replica takes over."""


def test_what_peers_serve_for_nothing_is_refused(new_folder: Callable[[str], Path]) -> None:
    figures = overspend.peers_cases(new_folder("peers"), len(overspend.CASES), SEED)
    assert list(figures) == [case.name for case in overspend.CASES]


def test_four_processes_serve_exactly_k(new_folder: Callable[[str], Path]) -> None:
    assert overspend.exactly_k(new_folder("exact"), 1, SEED)["processes"] == 4


def test_four_processes_serve_exactly_k_on_a_cluster(new_folder: Callable[[str], Path]) -> None:
    assert overspend.exactly_k_on_cluster(new_folder("exact"), 1, SEED)["requests"] == 1_000


def test_a_storm_of_kills_on_a_cluster_loses_nothing(new_folder: Callable[[str], Path]) -> None:
    figures = bad_weather.kills_on_cluster(new_folder("kills"), 6, SEED_OF_MASTERS)
    assert {"masters restarted", "replicas took over"} <= figures.keys()


def test_machines_whose_clocks_jump_overspend_and_lose_nothing(new_folder: Callable[[str], Path]) -> None:
    assert clocks.jumping_clocks(new_folder("clocks"), 1, SEED)["taken from who lived"] == 0


def test_replies_of_every_store_and_of_upstream_are_lost(new_folder: Callable[[str], Path]) -> None:
    figures = bad_weather.lost_replies(new_folder("replies"), 10, SEED)
    assert {"reply lost", "reply cut", "reply late", "request lost"} <= figures.keys()


def test_whatever_is_sent_is_no_fault_and_nothing_is_unmetered(new_folder: Callable[[str], Path]) -> None:
    figures = fuzz.fuzzed(new_folder("fuzz"), 600, SEED)
    assert {*fuzz.KINDS, "answers of upstream"} <= figures.keys()


@pytest.mark.parametrize("bug", [bug for bug in seeded.SEEDED if bug.check in (seeded.exactly, seeded.books)][:3:2])
def test_a_money_bug_that_is_put_in_is_found(bug: seeded.Seeded, new_folder: Callable[[str], Path]) -> None:
    """The others are put in by `make prove`."""
    assert seeded.is_found(bug, new_folder("bug") / bug.name, SEED)
