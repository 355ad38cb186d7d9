"""Runs the inbox's worker in forked children and kills them: `python -m tests.support.storm_worker URL API_BASE KILLS SEED`.

Forking after the imports makes a restart cost milliseconds, so that 200 SIGKILLs hit the work and not the start-up.
Prints a line when the killing is over; one child then lives until stdin ends.
"""

import asyncio
import os
import random
import signal
import sys
import time

import uvloop

from billing.money.errors import StoreUnavailable
from billing.payments.claim_store import ClaimStore
from billing.payments.crediting import Crediting
from billing.payments.purchase_store import PurchaseStore
from billing.payments.stripe.gateway import StripeGateway
from billing.payments.stripe.inbox import Inbox
from billing.payments.stripe.ownership import Ownership
from billing.payments.stripe.sync import Sync
from billing.payments.stripe.worker import StripeWorker
from billing.payments.stripe_customers import StripeCustomers
from billing.storage.database import Database
from proxy.server.supervisor import die_with_parent


async def work(url: str, api_base: str) -> None:
    database = Database(url, 5, 20)
    gateway = StripeGateway("sk_test_1", api_base=api_base, timeout_seconds=10)
    customers, inbox = StripeCustomers(database), Inbox(database)
    sync = Sync(
        gateway, PurchaseStore(database), Crediting(database), ClaimStore(database), customers, Ownership(database)
    )
    worker = StripeWorker(inbox, sync, customers)
    while True:
        try:
            if not await worker.step():
                await asyncio.sleep(0.02)
        except StoreUnavailable:
            await asyncio.sleep(0.1)


def fork(url: str, api_base: str) -> int:
    pid = os.fork()
    if pid == 0:
        die_with_parent(os.getppid())
        try:
            uvloop.run(work(url, api_base))
        finally:
            os._exit(1)
    return pid


def main() -> None:
    url, api_base, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    dice = random.Random(seed)
    for _ in range(kills):
        pid = fork(url, api_base)
        time.sleep(dice.uniform(0.03, 0.3))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    last = fork(url, api_base)
    print(f"killed {kills}", flush=True)
    sys.stdin.read()
    os.kill(last, signal.SIGKILL)


if __name__ == "__main__":
    main()
