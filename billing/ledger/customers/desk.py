"""Everything about keys, and whom they serve, of one database, for whoever needs it: an API, a page, a command."""

from typing import NamedTuple

from billing.ledger.accounts import Accounts
from billing.ledger.customers.access_tokens import AccessTokens
from billing.ledger.customers.changes import KeyChanges
from billing.ledger.customers.end_users import EndUsers
from billing.ledger.customers.shown import ShownOnce
from billing.ledger.customers.use import KeyUses
from billing.storage.database import Database, Readable


class KeyDesk(NamedTuple):
    """The parts."""

    accounts: Accounts
    changes: KeyChanges
    uses: KeyUses
    shown: ShownOnce
    end_users: EndUsers
    tokens: AccessTokens


def key_desk(database: Database, shown_from: Readable | None = None) -> KeyDesk:
    """Return the parts over a migrated database; the use of keys may be read from a replica of it."""
    return KeyDesk(
        Accounts(database),
        KeyChanges(database),
        KeyUses(shown_from or database),
        ShownOnce(database),
        EndUsers(database),
        AccessTokens(database),
    )
