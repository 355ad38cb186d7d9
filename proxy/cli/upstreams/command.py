"""`tollkeeper upstreams`: health, what is in flight, errors and spend of each upstream."""

from typing import Any

import httpx

from billing.accounting.upstream_spend import UpstreamSpend
from config.settings import Settings
from proxy.admin.upstreams import list_upstreams
from proxy.cli.context import Add, Context, Result, in_credits, local_url, table
from proxy.observability.upstream_metrics import UpstreamSeries, read_series

ASK_SECONDS = 5.0


def register(commands: Any, add: Add) -> None:
    """Add the command to the parser."""
    add(commands, "upstreams", _upstreams, "Health, load, errors and spend of each upstream.")


async def _upstreams(context: Context) -> Result:
    series = await _ask_server(context.settings)
    data = await list_upstreams(context.settings, UpstreamSpend(context.database), series)
    shown = [
        (
            row["upstream"],
            row["state"],
            _number(row["inFlight"]),
            _number(row["served"]),
            _number(sum(row["failed"].values()) if row["failed"] is not None else None),
            str(row["requestsOfADay"]),
            in_credits(int(row["costMillicreditsOfADay"])),
            in_credits(int(row["abandonedMillicreditsOfADay"])),
            str(row["kept"]),
            row["region"] or "-",
            " ".join(row["models"]),
        )
        for row in data
    ]
    columns = "upstream state >in-flight >served >failed >requests-24h >cost-24h >given-up-24h >kept region models"
    text = table(columns, shown)
    if series is None:
        text += "\nNo server answers here, so health and load are not known."
    return {"data": data}, text, 0


async def _ask_server(settings: Settings) -> dict[str, UpstreamSeries] | None:
    """Read the metrics of the server on this machine; None where none answers."""
    listen = settings.listen
    port = listen.admin_port or listen.port
    try:
        async with httpx.AsyncClient(timeout=ASK_SECONDS, trust_env=False) as client:
            answer = await client.get(f"{local_url(settings, port)}/metrics")
    except httpx.HTTPError:
        return None
    return read_series(answer.text) if answer.status_code == httpx.codes.OK else None


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)
