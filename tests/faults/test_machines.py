"""Two machines on the same stores: they share the flush, and one may stop or die under load of both."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.load import Load, account_with, assert_books_match_the_record
from tests.properties.proof.hosts import at, host, shared_stores
from tests.support.processes import children
from tests.support.servers import Tollkeeper, wait_until

START = 1_000_000_000
ACCOUNTS = 6
"""Of several buckets."""
HALF = "booking the charges of 8 of 16 buckets, as one of 2"
ALL = "booking the charges of 16 of 16 buckets, as one of 1"


def wait_said(server: Tollkeeper, words: str, times: int = 1) -> None:
    wait_until(lambda: server.log().count(words) >= times, 15, f"its log says {times} times: {words}")


@pytest.mark.timeout(300)
def test_of_two_machines_one_stops_and_one_is_lost_and_no_charge_is(new_folder: Callable[[str], Path]) -> None:
    folder = new_folder("machines")
    with (
        shared_stores(folder) as stores,
        host(folder / "one", stores.environment) as one,
        host(folder / "other", stores.environment) as other,
    ):
        wait_said(one, HALF)
        wait_said(other, HALF)
        accounts = [account_with(one, START) for _ in range(ACCOUNTS)]
        with contextlib.ExitStack() as under_load:
            here = [under_load.enter_context(Load(account, 1, 7)) for account in accounts]
            there = [under_load.enter_context(Load(at(other, account), 1, 8)) for account in accounts]
            for load in (here[0], there[0]):
                load.more(30, 60)
            (jobs,) = [child for child in children(other) if child.name() == "tk-jobs"]
            jobs.kill()
            here[0].more(30, 60)
            assert one.stop() == 0, "it ends, whatever the other one's customers do meanwhile"
            wait_said(other, ALL)
            there[0].more(30, 60)
            one.start()
            wait_said(one, HALF, times=2)
            other.kill()
            here[0].more(30, 60)
            other.start()
            there[0].more(30, 60)
        for account, load, beside in zip(accounts, here, there, strict=True):
            load.shown |= beside.shown
            assert beside.bad == []
            assert_books_match_the_record(account, stores.sandbox, load, START)
