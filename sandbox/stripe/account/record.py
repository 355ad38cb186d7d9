"""The simulator's own account of the money that moved: append-only, in memory and as JSON lines.

It is written at the moment a state changes, before any event or answer tells of it, so that a ledger
can be checked against something that no lost delivery or crash of the client can falsify.
"""

import os
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

Kind = Literal["paid", "refunded", "refund_failed", "disputed", "dispute_won", "dispute_lost"]
_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One movement. Amounts and fees are cents and never negative; `kind` gives the direction."""

    seq: int
    kind: Kind
    at: float
    amount: int
    """paid adds it to the balance; refunded and disputed take it; refund_failed and dispute_won give it back;
    dispute_lost moves nothing."""
    fee: int
    """Stripe's share of this movement (for dispute_won: the share it gives back)."""
    currency: str
    payment_intent: str | None
    charge: str
    session: str | None
    customer: str | None
    refund: str | None = None
    dispute: str | None = None
    balance_transaction: str | None = None
    metadata: dict[str, str] = {}
    """Of the payment intent."""
    client_reference_id: str | None = None
    tax: int = 0
    """Cents of tax in what was paid, as Stripe Tax computed and booked them."""


class Record:
    """All entries, of which the file gets a line each."""

    def __init__(self, path: Path | None) -> None:
        """Go on with an existing file."""
        self.entries: list[Entry] = []
        # Unbuffered O_APPEND writes survive a kill -9.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if path else None

    def add(self, **fields: Any) -> None:
        """Append an entry."""
        entry = Entry(seq=len(self.entries) + 1, **fields)
        self.entries.append(entry)
        if self._file is not None:
            line = memoryview(msgspec.json.encode(entry) + b"\n")
            while line:
                line = line[os.write(self._file, line) :]

    def show(self, since: int = 0, **wanted: str) -> dict[str, Any]:
        """Return the entries with seq above `since` whose fields have the wanted values, and their sums."""
        chosen = [
            entry
            for entry in self.entries
            if entry.seq > since and all(getattr(entry, name) == value for name, value in wanted.items())
        ]
        return {
            "records": msgspec.to_builtins(chosen),
            "lastSeq": len(self.entries),
            "totals": _sums(chosen),
            "payments": self._payments(chosen),
        }

    def _payments(self, chosen: list[Entry]) -> dict[str, Any]:
        """Return the sums per payment intent."""
        grouped: dict[str, list[Entry]] = {}
        for entry in chosen:
            grouped.setdefault(entry.payment_intent or entry.charge, []).append(entry)
        return {
            key: {"session": entries[0].session, "customer": entries[0].customer, "currency": entries[0].currency}
            | _sums(entries)
            for key, entries in grouped.items()
        }

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _sums(entries: list[Entry]) -> dict[str, int]:
    """Cents by kind, the fees, and `net`: what is left of it in the Stripe balance."""
    sums = {kind: sum(entry.amount for entry in entries if entry.kind == kind) for kind in _KINDS}
    fees = sum(-entry.fee if entry.kind == "dispute_won" else entry.fee for entry in entries)
    given = sums["paid"] + sums["refund_failed"] + sums["dispute_won"]
    taken = sums["refunded"] + sums["disputed"]
    return sums | {"fees": fees, "net": given - taken - fees, "held": given - taken}
