"""Sentinels fail over under load, to a replica that lacks the last writes: nothing is lost, nothing charged twice."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.load import Load, account_with, assert_books_match_the_record, serves, two_workers
from tests.support import web
from tests.support.processes import frozen, jobs_process
from tests.support.redis_groups import PROGRAMS, SentinelGroup, cut_replication, started
from tests.support.servers import Account, Sandbox, Serve, wait_until

START = 1_000_000_000


@pytest.fixture(params=PROGRAMS)
def group(request: pytest.FixtureRequest, folder: Path) -> Iterator[SentinelGroup]:
    group = SentinelGroup(folder, request.param)
    with started(group):
        yield group


@pytest.fixture
def account(make_tollkeeper: Serve, group: SentinelGroup) -> Account:
    return account_with(two_workers(make_tollkeeper, group.url), START)


def test_the_primary_dies_with_its_last_writes_under_load(
    account: Account, group: SentinelGroup, sandbox: Sandbox
) -> None:
    former = group.primary()
    with Load(account) as load:
        load.more(60)
        with frozen([jobs_process(account.server)]):  # so that none of them is in SQL
            cut_replication(former)
            load.more(80)
            former.kill()
        ready = f"{account.server.url}/readyz"
        wait_until(lambda: web.get(ready, timeout=5).status_code == 503, 2, "readyz goes red")
        wait_until(lambda: serves(account), 15, "the promoted replica serves")
        load.more(60)
    assert group.primary() is not former
    assert_books_match_the_record(account, sandbox, load, START)
    assert set(load.statuses) <= {200, 503}


@pytest.mark.parametrize("group", PROGRAMS[1:], indirect=True)
def test_a_primary_that_was_frozen_comes_back_to_nobody(
    account: Account, group: SentinelGroup, sandbox: Sandbox
) -> None:
    """It still takes itself for the primary, with the run id and the tokens that it had."""
    former = group.primary()
    with Load(account) as load:
        load.more(60)
        former.signal(signal.SIGSTOP)
        wait_until(lambda: serves(account), 15, "the promoted replica serves")
        load.more(40)
        former.signal(signal.SIGCONT)
        load.more(60)
    assert_books_match_the_record(account, sandbox, load, START)
    assert set(load.statuses) <= {200, 503}
