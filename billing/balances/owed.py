"""Charges that SQL does not take, for whatever is wrong with them: they stay in the journal, and are owed all the same.

Balances and budgets that are read from SQL do not have them, so they are taken off, or added. Pure.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from billing.money.holds import Entry
from billing.money.model_rates import fits_any
from billing.money.usage_record import UsageRecord, decode_record


class Owed(NamedTuple):
    """A charge that SQL does not take: where it is in the journal, and its millicredits."""

    position: str
    record: UsageRecord
    charged: int

    def counts_for(self, owner: str, account_id: str, since_ms: int, globs: tuple[str, ...] | None) -> bool:
        """Tell whether a budget has it: of the key `owner`, or of the end user of that name of an account."""
        record = self.record
        mine = (record.account_id, record.end_user) == (account_id, owner) if account_id else record.key_id == owner
        return mine and record.created_at >= since_ms and (globs is None or fits_any(record.model, globs))


def owed_of(left: Iterable[Entry]) -> list[Owed]:
    """Return what is owed for what is left in a journal; of an unreadable record nobody can tell whose it is."""
    owed = []
    for entry in left:
        try:
            owed.append(Owed(entry.position, decode_record(entry.record), entry.charged))
        except msgspec.MsgspecError:
            continue
    return owed


def owed_by(account_id: str, owed: Sequence[Owed]) -> int:
    """Return what an account owes, in millicredits."""
    return sum(one.charged for one in owed if one.record.account_id == account_id)
