"""Credits that expire, for tests."""

from sqlalchemy import text

from billing.money.amounts import Millicredits
from billing.money.holds import Entry
from billing.money.postings import GrantTerms
from billing.storage.database import now_ms
from tests.support.stores import Books, record

DAY_MS = 86_400_000


async def give(books: Books, account: str, amount: int, reference: str, days: float = 1, **terms: object) -> None:
    """Credits that expire in so many days; in the store as well."""
    ends = now_ms() + round(days * DAY_MS)
    await books.ledger.grant(
        account,
        Millicredits(amount),
        reference,
        "test",
        "why",
        terms=GrantTerms(ends, **terms),  # type: ignore[arg-type]
    )
    await relayed(books)


async def relayed(books: Books) -> None:
    for row in await books.ledger.outbox_pending(1_000):
        await books.store.credit(row.account_id, row.sequence, row.delta)
        await books.ledger.outbox_applied([row.row_id])


async def used(books: Books, account: str, amount: int, name: str) -> None:
    """A charge, in the ledger alone."""
    await books.ledger.post([Entry(name, amount, 0, record(name, account))])


async def left(books: Books, account: str) -> dict[str, int]:
    """What is left of each lot, by its reference."""
    return {row.reference_id: row.remaining_millicredits for row in await books.ledger.expiring(account)}


async def run_out(books: Books, *references: str) -> None:
    """Let the time of these lots come."""
    async with books.database.write() as connection:
        for reference in references:
            values = {"now": now_ms() - 1, "reference": reference}
            statement = "UPDATE expiring_lots SET expires_at = :now WHERE reference_id = :reference"
            await connection.execute(text(statement), values)
