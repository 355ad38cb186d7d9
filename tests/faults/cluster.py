"""Customers whose balances are on different masters of a cluster, and masters that die under their load."""

import random
from collections.abc import Callable

from billing.money.buckets import BUCKETS, bucket_of
from tests.faults.load import Strike
from tests.support import web
from tests.support.redis_groups import RedisCluster
from tests.support.servers import Account, Tollkeeper, wait_until

TAKES_OVER_SECONDS = 15


def accounts_apart(server: Tollkeeper, cluster: RedisCluster, start: int, number: int = 2) -> list[Account]:
    """So many customers with `start` millicredits each, no two on the same master."""
    found: dict[int, Account] = {}
    while len(found) < number:
        account = server.account()
        found.setdefault(cluster.master_of(bucket_of(account.account_id)).port, account)
    for account in found.values():
        if start:
            account.grant(str(start // 1_000))
            account.wait_balance(start)
    return list(found.values())


def buckets_away(server: Tollkeeper) -> float:
    """Buckets of balances that are not served now, as the product says."""
    text = web.get(f"{server.url}/metrics", timeout=5).text
    (line,) = [line for line in text.splitlines() if line.startswith("tollkeeper_buckets_away")]
    return float(line.split()[-1])


def masters_die(cluster: RedisCluster, server: Tollkeeper, count: Callable[[str], None]) -> Strike:
    """Kill a master at random, and start it again: at once, or when its replica has taken over. `count` hears which.

    What dies next dies after this is over: that a master loses its last writes while the process that made them dies
    is the gap that docs/ledger.md states.
    """

    def strike(chance: random.Random) -> None:
        cluster.wait_whole()
        bucket = chance.randrange(BUCKETS)
        master = cluster.master_of(bucket)
        master.kill()
        if chance.random() < 0.5:
            count("masters restarted")
        else:
            wait_until(lambda: cluster.master_of(bucket) is not master, TAKES_OVER_SECONDS, "its replica takes over")
            count("replicas took over")
        master.start()
        wait_until(lambda: buckets_away(server) == 0, TAKES_OVER_SECONDS, "every bucket serves again")

    return strike
