"""Preflight's checks of OpenAI: the key, the models that it sees, the admin key."""

import time
from datetime import timedelta
from fnmatch import fnmatchcase

import httpx

from billing.accounting.daily_finance import day_of
from billing.ledger.rate_cards import RateCards
from billing.money.errors import BillingError, StoreUnavailable
from billing.money.pricing import PriceBook
from billing.storage.database import now_ms
from config.errors import ConfigError
from config.secrets import Secret
from config.settings import UpstreamEntry
from config.upstreams import entries_of
from proxy.cli.preflight.clocks import add_clock
from proxy.cli.preflight.site import Check, Site, error_text, list_some
from proxy.gateway.admission import models_on_sale
from proxy.gateway.endpoints import SERVED
from proxy.gateway.services import utc_today
from proxy.gateway.upstream.control import headers_for
from proxy.server.openai_costs import cost_places


async def upstream_checks(site: Site, prices: PriceBook | None) -> list[Check]:
    """Check that each upstream's key is there, works, and that together they see what we sell."""
    checks: list[Check] = []
    visible: set[str] | None = None
    entries = entries_of(site.settings)
    for entry in entries:
        suffix = f" {entry.name}" if site.settings.upstreams else ""
        found, seen = await _upstream(site, entry, f"key{suffix}")
        checks.append(found)
        if seen is not None:
            served = {name for name in seen if any(fnmatchcase(name, glob) for glob in entry.models)}
            visible = (visible or set()) | served | entry.deployments.keys()
        if entry.rate_card:
            checks.append(await _card(site, entry, f"card{suffix}"))
    if prices is None or visible is None:
        return checks
    return checks + _visible_models(site, visible, prices)


async def _card(site: Site, entry: UpstreamEntry, name: str) -> Check:
    """Check that the rate card that an upstream names is there."""
    try:
        card = await RateCards(site.database).get(entry.rate_card)
    except BillingError as error:
        return Check("prices", name, "FAIL", str(error), "`tollkeeper rates import` it, or correct the entry")
    return Check("prices", name, "PASS", f"{entry.rate_card} prices {len(card['models'])} models")


async def _upstream(site: Site, entry: UpstreamEntry, name: str) -> tuple[Check, set[str] | None]:
    """Return (the row of an upstream's key, the models that it sees; None where that is not known)."""
    key = site.upstream_keys.get(entry.name, Secret(""))
    if not key and entry.dialect != "generic":
        fix = "set OPENAI_API_KEY, or upstream.api_key_file" if not site.settings.upstreams else "name its key's file"
        return Check(
            "openai", name, "FAIL", f"{'OPENAI_API_KEY' if name == 'key' else 'its key'} is not set", fix
        ), None
    base, sent = entry.base_url, time.time()
    try:
        answer = await site.http.get(f"{base}/models", headers=headers_for(entry, key))
    except httpx.HTTPError as error:
        fix = "open the way out to it (DNS, proxy, firewall)"
        return Check("openai", name, "FAIL", f"{base} is not reached: {error_text(error)}", fix), None
    add_clock(site, "OpenAI" if name == "key" else entry.name, answer.headers.get("date", ""), sent)
    if answer.status_code in (401, 403):
        fix = "use a live key of the right project that may list models and call them"
        who = "OpenAI" if name == "key" else entry.name
        return Check("openai", name, "FAIL", f"{who} does not accept the key (status {answer.status_code})", fix), None
    try:
        visible = {str(row["id"]) for row in answer.json()["data"]}
    except (ValueError, KeyError, TypeError):
        found = f"GET {base}/models answers {answer.status_code} without a list"
        if entry.dialect != "openai":
            return Check("openai", name, "WARN", found, "send a request to see whether it serves"), None
        return Check("openai", name, "FAIL", found, "check upstream.base_url"), None
    return Check("openai", name, "PASS", f"accepted by {base}; {len(visible)} models are visible to it"), visible


async def cost_checks(site: Site) -> list[Check]:
    """Check that each admin key, where there is one, reads costs: asked once, for yesterday."""
    try:
        places = cost_places(site.settings)
    except ConfigError:
        return []  # the row of the configuration says it
    yesterday = day_of(now_ms()) - timedelta(days=1)
    checks = []
    for place in places:
        name = f"admin key {place.name}".rstrip()
        try:
            await place.costs.days(yesterday, yesterday)
        except StoreUnavailable as error:
            fix = (
                "use an admin key of the organization that may read usage, not a project's key; "
                "unset it to do without the job `costs`"
            )
            checks.append(Check("openai", name, "FAIL", str(error), fix))
        else:
            checks.append(Check("openai", name, "PASS", "reads the organization's costs"))
    return checks


def _served(prices: PriceBook) -> list[str]:
    """Priced models that work at an endpoint of ours, also those that ended: prices.end_checks speaks of them."""
    return [name for name in prices.names() if (model := prices.find(name)) is not None and model.endpoints & SERVED]


def _visible_models(site: Site, visible: set[str], prices: PriceBook) -> list[Check]:
    billing = site.settings.billing
    allowlist = billing.model_allowlist
    named = [glob for glob in allowlist if glob != "*"]
    sold = [model.name for model in models_on_sale(prices, billing, utc_today())]
    unseen = [name for name in sold if name not in visible and any(fnmatchcase(name, glob) for glob in named)]
    unpriced = [
        name for name in visible if any(fnmatchcase(name, glob) for glob in named) and prices.find(name) is None
    ]
    dead = [glob for glob in named if not any(fnmatchcase(name, glob) for name in _served(prices))]
    checks = []
    if dead or unpriced:
        found = f"no complete rate card for {list_some(dead + sorted(unpriced))}"
        checks.append(
            Check(
                "prices",
                "allowlist",
                "FAIL",
                found,
                "import a rate card that prices them, or take them off model_allowlist",
            )
        )
    else:
        checks.append(
            Check("prices", "allowlist", "PASS", f"every allowlisted model is priced ({', '.join(allowlist)})")
        )
    if unseen:
        fix = "give the OpenAI project access to them, or take them off billing.model_allowlist"
        return [*checks, Check("openai", "models", "FAIL", f"the key does not see {list_some(unseen)}", fix)]
    if "*" in allowlist:
        number = len([name for name in sold if name in visible])
        if not number:
            return [
                *checks,
                Check(
                    "openai",
                    "models",
                    "FAIL",
                    "the key sees none of the models we sell",
                    "use a key of another project",
                ),
            ]
        fix = "name what you sell in billing.model_allowlist; then this check holds the key to it"
        return [
            *checks,
            Check(
                "openai",
                "models",
                "WARN",
                f"everything is allowed; the key sees {number} of {len(sold)} priced models",
                fix,
            ),
        ]
    return [*checks, Check("openai", "models", "PASS", "the key sees every allowlisted model")]
