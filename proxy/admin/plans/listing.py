"""Price plans as rows: for the admin API, the ops page and the command line."""

from collections.abc import Sequence
from typing import Any

import msgspec

from billing.accounting.margins import selling_below
from billing.ledger.plans.in_force import PlansInForce
from billing.ledger.plans.price_plans import AssignmentRow, PricePlans, VersionRow
from billing.money.pricing import PriceBook
from billing.payments.purchase import Offer
from proxy.web.times import iso_time


def warning_of(row: VersionRow, prices: PriceBook, offers: Sequence[Offer]) -> str:
    """Say where a version sells below what it costs, by everyone's prices and packages of now; "" for nowhere."""
    words, below = selling_below(prices.under(row.read().prices), offers)
    return f"{row.version_id} sells below what it costs: {words}" if below else ""


def version_row(row: VersionRow, warning: str = "") -> dict[str, Any]:
    """Return a version as it is shown."""
    return {
        "planId": row.plan_id,
        "version": row.version,
        "versionId": row.version_id,
        "prices": msgspec.json.decode(row.document),
        "startsAt": iso_time(row.starts_at),
        "endsAt": iso_time(row.ends_at) if row.ends_at is not None else None,
        "createdAt": iso_time(row.created_at),
        "actor": row.actor,
        "warning": warning or None,
    }


def assignment_row(row: AssignmentRow) -> dict[str, Any]:
    """Return an assignment as it is shown."""
    return {
        "planId": row.plan_id,
        "startsAt": iso_time(row.starts_at),
        "endsAt": iso_time(row.ends_at) if row.ends_at is not None else None,
        "createdAt": iso_time(row.created_at),
        "actor": row.actor,
    }


async def list_plans(plans: PricePlans, prices: PriceBook, offers: Sequence[Offer], now: int) -> list[dict[str, Any]]:
    """List every version, newest first, with whether it applies now and how many accounts its plan was given to."""
    rows, counts, known = await plans.versions(), await plans.assigned(), PlansInForce()
    known.take([row.read() for row in rows], [])
    found = []
    for row in reversed(rows):
        applies = known.version(row.plan_id, now)
        warning = warning_of(row, prices, offers) if row.ends_at is None or row.ends_at > now else ""
        more = {"applies": applies is not None and applies.row_id == row.id, "accounts": counts.get(row.plan_id, 0)}
        found.append({**version_row(row, warning), **more})
    return found


async def plan_of(plans: PricePlans, account_id: str, now: int) -> dict[str, Any]:
    """Say which plan and version an account is priced by now, and what it was assigned to, newest first."""
    rows, known = await plans.assignments(account_id), PlansInForce()
    known.take([row.read() for row in await plans.versions()], [row.read() for row in rows])
    given, applies = known.assignment(account_id, now), known.prices_for(account_id, now)
    return {
        "accountId": account_id,
        "planId": given.plan_id if given is not None else None,
        "versionId": applies.version_id if applies is not None else None,
        "assignments": [assignment_row(row) for row in reversed(rows)],
    }


async def warnings(plans: PricePlans, prices: PriceBook, offers: Sequence[Offer], now: int) -> list[str]:
    """Say where plans that apply, or will, sell below what it costs."""
    rows = [row for row in await plans.versions() if row.ends_at is None or row.ends_at > now]
    newest = {(row.plan_id, row.starts_at): row for row in rows}
    known = PlansInForce()
    known.take([row.read() for row in rows], [])
    to_come = [
        row
        for row in newest.values()
        if row.starts_at > now or ((one := known.version(row.plan_id, now)) is not None and one.row_id == row.id)
    ]
    return [warning for row in to_come if (warning := warning_of(row, prices, offers))]
