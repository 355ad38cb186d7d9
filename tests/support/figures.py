"""Figures of a running server: read from /metrics, and changed by hand in its embedded store."""

import sqlite3
from contextlib import closing

from tests.support import web
from tests.support.customers import Customer
from tests.support.servers import Tollkeeper, wait_until


def metric(server: Tollkeeper, name: str) -> float:
    lines = web.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), -1.0)


def change_figures(server: Tollkeeper, customer: Customer, by: int) -> None:
    def changed() -> bool:
        with closing(sqlite3.connect(server.folder / "var" / "embedded.db", timeout=10)) as store, store:
            return (
                store.execute(
                    "UPDATE figures SET balance = balance + ? WHERE account_id = ?", (by, customer.account_id)
                ).rowcount
                == 1
            )

    wait_until(changed, 5, "there is a row to change")
