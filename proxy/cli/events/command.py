"""`tollkeeper events`: who listens to what happens, and what they were told."""

from typing import Any

from billing.ledger.events.endpoints import BadEndpoint, EventEndpoints
from billing.ledger.notices import NoticeFilters, NoticeQueue
from config.errors import ConfigError
from proxy.admin.events.api import STATES
from proxy.admin.events.listing import endpoint_row, notice_row
from proxy.admin.events.registration import check_url
from proxy.cli.context import Add, Context, Refusal, Result, because, not_negative, short_text, table, who
from proxy.web.times import iso_time

HOUR_MS = 3_600_000
MOST_GRACE_HOURS = 720


def register(commands: Any, add: Add) -> None:
    """Add the group to the parser."""
    events = commands.add_parser("events", help="Who listens to events, and what they were told.").add_subparsers(
        dest="verb", required=True
    )
    add(events, "endpoints", _endpoints, "The endpoints that events are sent to.")
    make = add(events, "add", _add, "Register an endpoint; its secret is shown this once.")
    make.add_argument("url", help="where events are POSTed, such as https://app.example.com/events")
    change = add(events, "change", _change, "Change an endpoint, or let its events wait.")
    change.add_argument("endpoint")
    change.add_argument("--url", help="another address")
    change.add_argument("--disable", action="store_true", help="its events wait until it is enabled")
    change.add_argument("--enable", action="store_true", help="it is told again, first of all what waits")
    because(change)
    for command in (make, change):
        command.add_argument("--kinds", nargs="+", help='such as balance.low "key.*" usage.charged (docs/events.md)')
        command.add_argument("--description", type=short_text(200), help="what it is for")
    rotate = add(events, "rotate", _rotate, "Give an endpoint another secret, shown this once.")
    rotate.add_argument("endpoint")
    rotate.add_argument("--grace-hours", type=not_negative, default=24, help="how long the old one signs as well")
    because(rotate)
    remove = add(events, "remove", _remove, "Send an endpoint nothing more.")
    remove.add_argument("endpoint")
    because(remove)
    log = add(events, "list", _list, "What was told, newest first.")
    log.add_argument("--state", choices=STATES)
    log.add_argument("--endpoint", help="only what is for this one")
    log.add_argument("--account", dest="of_account", help="only what happened to this account")
    log.add_argument("--kind", help="only of this kind")
    log.add_argument("--limit", type=not_negative, default=100)
    add(events, "replay", _replay, "Send something again, under the same id.").add_argument(
        "notice", help="its id, as `tollkeeper events list` shows it"
    )


async def _endpoints(context: Context) -> Result:
    rows = await EventEndpoints(context.database).everyone()
    shown = [
        (row.id, "disabled" if row.disabled_at else "active", row.url, " ".join(row.patterns), row.description)
        for row in rows
    ]
    text = table("endpoint state url kinds description", shown) or "No endpoint is registered."
    return {"data": [endpoint_row(row) for row in rows]}, text, 0


async def _add(context: Context) -> Result:
    given = context.arguments
    try:
        url = await check_url(given.url, private=context.settings.notices.private_endpoints)
        kinds = tuple(given.kinds or ("*",))
        row, secret = await EventEndpoints(context.database).add(url, kinds, given.description or "", who())
    except BadEndpoint as error:
        raise Refusal(f"not registered: {error}") from None
    text = f"{row.id} hears of what happens from now on.\nSecret (shown this once): {secret}"
    return {**endpoint_row(row), "secret": secret}, text, 0


async def _change(context: Context) -> Result:
    given = context.arguments
    changes: dict[str, Any] = {
        name: value for name in ("url", "description") if (value := getattr(given, name)) is not None
    }
    if given.kinds:
        changes["kinds"] = tuple(given.kinds)
    if given.disable != given.enable:
        changes["disabled"] = given.disable
    if not changes:
        raise Refusal("nothing to change: give --url, --kinds, --description, --disable or --enable")
    try:
        if "url" in changes:
            await check_url(given.url, private=context.settings.notices.private_endpoints)
        row = await EventEndpoints(context.database).change(given.endpoint, changes, who(), given.reason)
    except BadEndpoint as error:
        raise Refusal(f"not changed: {error}") from None
    return endpoint_row(row), f"{row.id} is changed.", 0


async def _rotate(context: Context) -> Result:
    given = context.arguments
    if given.grace_hours > MOST_GRACE_HOURS:
        raise ConfigError("command line", "--grace-hours", f"is more than {MOST_GRACE_HOURS}", "choose fewer")
    endpoints = EventEndpoints(context.database)
    secret = await endpoints.rotate(given.endpoint, given.grace_hours * HOUR_MS, who(), given.reason)
    text = f"Secret (shown this once): {secret}\nThe old one signs as well for {given.grace_hours} hours."
    return {"endpointId": given.endpoint, "secret": secret}, text, 0


async def _remove(context: Context) -> Result:
    endpoint_id = context.arguments.endpoint
    await EventEndpoints(context.database).remove(endpoint_id, who(), context.arguments.reason)
    return {"endpointId": endpoint_id, "removed": True}, f"{endpoint_id} is sent nothing more.", 0


async def _list(context: Context) -> Result:
    given = context.arguments
    filters = NoticeFilters(given.state, given.endpoint, given.of_account, given.kind)
    rows = await NoticeQueue(context.database, wanted=False).found(filters, given.limit)
    shown = [
        (iso_time(row.created_at), row.kind, row.state, str(row.attempts), row.account_id, row.id, row.last_error)
        for row in rows
    ]
    text = table("time kind state >attempts account notice last-error", shown) or "Nothing was told."
    return {"data": [notice_row(row) for row in rows]}, text, 0


async def _replay(context: Context) -> Result:
    notice_id = context.arguments.notice
    await NoticeQueue(context.database, wanted=False).revive(notice_id, who())
    return {"noticeId": notice_id, "state": "pending"}, f"{notice_id} is sent again.", 0
