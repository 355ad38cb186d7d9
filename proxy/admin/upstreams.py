"""Upstreams as staff see them, by API, page and command line: settings, health, what is in flight, errors, spend."""

from typing import Any

from billing.accounting.upstream_spend import Spend, UpstreamSpend
from billing.money.amounts import display_usd
from billing.storage.database import now_ms
from config.settings import Settings, UpstreamEntry
from config.upstreams import entries_of
from proxy.observability.upstream_metrics import UpstreamSeries
from proxy.web.rejections import Rejection, not_found

DAY_MS = 86_400_000


async def list_upstreams(
    settings: Settings, books: UpstreamSpend, series: dict[str, UpstreamSeries] | None
) -> list[dict[str, Any]]:
    """Every upstream that is configured, and those that are not any more and still keep something.

    `series`: what the servers' metrics say, None where no server was asked. Raises StoreUnavailable.
    """
    spend, kept = await books.since(now_ms() - DAY_MS), await books.kept()
    entries = {entry.name: entry for entry in entries_of(settings)}
    rows = []
    for name in (*entries, *sorted(kept.keys() - entries.keys())):
        entry, spent = entries.get(name), spend.get(name, Spend())
        seen = (series or {}).get(name, UpstreamSeries()) if series is not None else None
        rows.append(
            {
                "upstream": name,
                "baseUrl": entry.base_url if entry is not None else "",
                "dialect": entry.dialect if entry is not None else "",
                "region": entry.region if entry is not None else "",
                "models": list(entry.models) if entry is not None else [],
                "weight": entry.weight if entry is not None else 0,
                "state": _state(entry is not None, entry is not None and entry.draining, seen),
                "inFlight": seen.in_flight if seen is not None else None,
                "served": seen.served if seen is not None else None,
                "failed": seen.failed if seen is not None else None,
                "requestsOfADay": spent.requests,
                "costMillicreditsOfADay": str(spent.cost),
                "costUsdOfADay": display_usd(spent.cost),
                "abandonedMillicreditsOfADay": str(spent.abandoned),
                "kept": kept.get(name, 0),
            }
        )
    return rows


def check_may_drain(settings: Settings, name: str) -> None:
    """Raise Rejection where an upstream is not there, or would leave nobody to serve."""
    _find(settings, name)
    if not any(entry.name != name and not entry.draining for entry in settings.upstreams):
        raise Rejection(409, "nobody_would_serve", f"Nobody else serves: {name} cannot be drained.")


def check_may_serve(file: Settings, name: str) -> None:
    """Raise Rejection where an upstream is not there, or `file` itself drains it."""
    if _find(file, name).draining:
        raise Rejection(409, "drained_in_file", f"proxy.toml drains {name}: edit its entry there.")


def _find(settings: Settings, name: str) -> UpstreamEntry:
    found = next((entry for entry in settings.upstreams if entry.name == name), None)
    if found is None:
        raise not_found("There is no such upstream in [[upstreams]].", "upstream_not_found")
    return found


def _state(configured: bool, draining: bool, seen: UpstreamSeries | None) -> str:
    if not configured:
        return "removed"
    if draining:
        return "draining"
    if seen is None:
        return "unknown"
    return "well" if seen.is_well else "failing"
