"""Roles and their actions: the one table. Every admin route names an action of this table, and nothing else decides.

`owner` may do everything. `service` is the operator's own app, which creates accounts and keys and acts for accounts;
it sees no books and flips no switch. Roles do not include one another: what a role may do is what its row says.
"""

from collections.abc import Mapping
from typing import Literal

Role = Literal["viewer", "support", "finance", "ops", "owner", "service"]
ROLES: tuple[Role, ...] = ("viewer", "support", "finance", "ops", "owner", "service")

_PEOPLE = frozenset[Role]({"viewer", "support", "finance", "ops", "owner"})

MAY: Mapping[str, frozenset[Role]] = {
    # reading
    "accounts.read": _PEOPLE | {"service"},
    "usage.read": _PEOPLE,
    "overview.read": _PEOPLE,
    "flags.read": _PEOPLE,
    "rates.read": _PEOPLE,
    "plans.read": _PEOPLE | {"service"},
    "reconciliation.read": _PEOPLE,
    "webhooks.read": _PEOPLE,
    "events.read": _PEOPLE | {"service"},
    "promos.read": _PEOPLE,
    "whoami": _PEOPLE | {"service"},
    # accounts
    "accounts.create": frozenset({"support", "ops", "owner", "service"}),
    "accounts.update": frozenset({"support", "ops", "owner", "service"}),
    "accounts.block": frozenset({"support", "ops", "owner", "service"}),
    "accounts.close": frozenset({"support", "finance", "ops", "owner", "service"}),
    "accounts.erase": frozenset({"ops", "owner", "service"}),
    "keys.create": frozenset({"ops", "owner", "service"}),
    "keys.update": frozenset({"ops", "owner", "service"}),
    "keys.revoke": frozenset({"support", "ops", "owner", "service"}),
    "end_users.write": frozenset({"ops", "owner", "service"}),
    "tokens.create": frozenset({"ops", "owner", "service"}),
    "tokens.revoke": frozenset({"support", "ops", "owner", "service"}),
    "portal.open": frozenset({"support", "owner", "service"}),
    "plans.assign": frozenset({"finance", "ops", "owner", "service"}),
    "act_for": frozenset({"service"}),
    # money
    "money.grant": frozenset({"support", "finance", "owner"}),
    "money.welcome": frozenset({"service", "finance", "owner"}),
    "money.grant_any": frozenset({"finance", "owner"}),
    "money.adjust": frozenset({"finance", "owner"}),
    "promos.write": frozenset({"finance", "owner"}),
    "purchases.decide": frozenset({"finance", "owner"}),
    "purchases.refund": frozenset({"finance", "owner"}),
    "books.export": frozenset({"finance", "owner"}),
    # operating
    "flags.write": frozenset({"ops", "owner"}),
    "rates.write": frozenset({"ops", "owner"}),
    "upstreams.drain": frozenset({"ops", "owner"}),
    "plans.write": frozenset({"finance", "ops", "owner"}),
    "webhooks.replay": frozenset({"finance", "ops", "owner"}),
    "events.write": frozenset({"ops", "owner", "service"}),
    "jobs.run": frozenset({"finance", "ops", "owner"}),
    "audit.read": frozenset({"finance", "ops", "owner"}),
    "admins.read": frozenset({"ops", "owner"}),
    "admins.write": frozenset({"owner"}),
}
"""Action → roles. `money.grant` is capped by admin.support_grant_credits for whoever may not do `money.grant_any`.
`money.welcome` is bounded by admin.welcome_credits, once an account, and admin.welcome_credits_a_day.
`accounts.close` keeps what is left; giving it back takes `purchases.refund` as well.
`purchases.decide`: what becomes of a payment in review. `purchases.refund`: also who has no key here may refund, at
Stripe itself."""


def may(role: str, action: str) -> bool:
    """Tell whether a role may do an action. Raises KeyError for an action that is not in the table."""
    return role in MAY[action]
