"""A cluster under load: slots move, a master dies or freezes. Nothing is lost, nothing charged twice, others go on."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from billing.money.buckets import bucket_of
from tests.faults.cluster import accounts_apart, buckets_away
from tests.faults.load import Load, assert_books_match_the_record, serves, two_workers
from tests.support import web
from tests.support.processes import frozen, jobs_process
from tests.support.redis_groups import PROGRAMS, RedisCluster, cut_replication, started
from tests.support.servers import Sandbox, Serve, Tollkeeper, wait_until

START = 1_000_000_000


@pytest.fixture(scope="module", params=PROGRAMS)
def six_nodes(request: pytest.FixtureRequest, new_folder: Callable[[str], Path]) -> Iterator[RedisCluster]:
    cluster = RedisCluster(new_folder("six"), request.param)
    with started(cluster):
        yield cluster


@pytest.fixture
def cluster(six_nodes: RedisCluster) -> RedisCluster:
    six_nodes.wait_whole()
    six_nodes.clear()
    return six_nodes


@pytest.fixture
def server(make_tollkeeper: Serve, cluster: RedisCluster) -> Tollkeeper:
    return two_workers(make_tollkeeper, cluster.url)


def test_slots_are_moved_under_load(server: Tollkeeper, cluster: RedisCluster, sandbox: Sandbox) -> None:
    """Key by key, with a stop half-way; and as a whole, where the server can."""
    account = server.account(str(START // 1_000))
    account.wait_balance(START)
    bucket = bucket_of(account.account_id)
    with Load(account) as load:
        load.more(60)
        for _ in range(2):
            move = cluster.begin_move(bucket)
            move.step()
            refused = load.statuses.get(503, 0)
            wait_until(lambda: load.statuses.get(503, 0) > refused, 10, "a bucket on its way does not serve")  # noqa: B023
            assert web.get(f"{server.url}/readyz", timeout=5).status_code == 200
            move.end()
            load.more(60)
        if cluster.program == "valkey-server":
            cluster.move_at_once(bucket)
            load.more(60)
    assert_books_match_the_record(account, sandbox, load, START)
    assert set(load.statuses) <= {200, 503}


def test_a_master_that_dies_with_its_last_writes_under_load(
    server: Tollkeeper, cluster: RedisCluster, sandbox: Sandbox
) -> None:
    account, other = accounts_apart(server, cluster, START)
    master, said = cluster.master_of(bucket_of(account.account_id)), dict[str, str]()
    with Load(account) as load:
        load.more(60)
        with frozen([jobs_process(server)]):  # so that none of them is in SQL
            cut_replication(master)
            load.more(80)
            master.kill()
        wait_until(lambda: buckets_away(server) > 0, 5, "its buckets are said to be away")
        while not serves(account):
            assert serves(other), "a bucket of another master is not served"
            ready = web.get(f"{server.url}/readyz", timeout=5)
            assert ready.status_code == 200, ready.text
            said.update(ready.json()["notes"])
        load.more(60)
    assert "buckets of balances are not served" in said["balances"]
    wait_until(lambda: buckets_away(server) == 0, 5, "every bucket serves again")
    assert web.get(f"{server.url}/readyz", timeout=5).json()["notes"] == {}
    assert_books_match_the_record(account, sandbox, load, START)
    assert set(load.statuses) <= {200, 503}


@pytest.mark.parametrize("six_nodes", PROGRAMS[1:], indirect=True)
def test_a_master_that_was_frozen_comes_back_to_nobody(
    server: Tollkeeper, cluster: RedisCluster, sandbox: Sandbox
) -> None:
    """It still takes itself for the master, with the run id and the tokens that it had."""
    account = server.account(str(START // 1_000))
    account.wait_balance(START)
    master = cluster.master_of(bucket_of(account.account_id))
    with Load(account) as load:
        load.more(60)
        master.signal(signal.SIGSTOP)
        wait_until(lambda: serves(account), 15, "its replica serves")
        load.more(40)
        master.signal(signal.SIGCONT)
        load.more(60)
    assert_books_match_the_record(account, sandbox, load, START)
    assert set(load.statuses) <= {200, 503}
