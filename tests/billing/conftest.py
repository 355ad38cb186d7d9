"""`clock` sets the time at which the ledger books; `busy` is an account with a week of charges."""

from collections.abc import Callable

import pytest

import billing.ledger.ledger
from billing.accounting.daily_finance import DAY_MS
from billing.ledger.audit_log import AuditLog, Change
from tests.support.charges import MODELS, NOW, WHO, settled
from tests.support.stores import Books


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the time at which the ledger books."""

    def set_to(milliseconds: int) -> None:
        monkeypatch.setattr(billing.ledger.ledger, "now_ms", lambda: milliseconds)

    return set_to


@pytest.fixture
async def busy(sql: Books, clock: Callable[[int], None]) -> tuple[Books, str]:
    """An account with charges of seven days, and an audit log."""
    clock(NOW - 6 * DAY_MS)
    account = await sql.account(100_000_000)
    for number in range(7):
        booked = NOW - (6 - number) * DAY_MS + 500
        clock(booked)
        await sql.ledger.post(
            [settled(f"c{number}", account, booked - 500, MODELS[number % 3], (900 + number, 100 + number))]
        )
    for number in range(3):
        await AuditLog(sql.database).write(WHO, Change("test", f"{number}", None, None, "a reason"))
    return sql, account
