"""Preflight's checks of OpenAI: the key, the models that it sees, the admin key."""

import time
from datetime import timedelta
from fnmatch import fnmatchcase

import httpx

from billing.accounting.daily_finance import day_of
from billing.money.errors import StoreUnavailable
from billing.money.pricing import PriceBook
from billing.storage.database import now_ms
from config.errors import ConfigError
from config.secrets import openai_admin_key
from proxy.cli.preflight.clocks import add_clock
from proxy.cli.preflight.site import Check, Site, error_text, list_some
from proxy.gateway.endpoints import METERED
from proxy.server.openai_costs import OpenAICosts


async def upstream_checks(site: Site, prices: PriceBook | None) -> list[Check]:
    """Check that the OpenAI key is there, works, and sees what we sell."""
    if not site.upstream_key:
        return [
            Check("openai", "key", "FAIL", "OPENAI_API_KEY is not set", "set OPENAI_API_KEY, or upstream.api_key_file")
        ]
    base, headers = site.settings.upstream.base_url, {"Authorization": f"Bearer {site.upstream_key.reveal()}"}
    sent = time.time()
    try:
        answer = await site.http.get(f"{base}/models", headers=headers)
    except httpx.HTTPError as error:
        return [
            Check(
                "openai",
                "key",
                "FAIL",
                f"{base} is not reached: {error_text(error)}",
                "open the way out to it (DNS, proxy, firewall)",
            )
        ]
    add_clock(site, "OpenAI", answer.headers.get("date", ""), sent)
    if answer.status_code in (401, 403):
        fix = "use a live key of the right project that may list models and call them"
        return [Check("openai", "key", "FAIL", f"OpenAI does not accept the key (status {answer.status_code})", fix)]
    try:
        visible = {str(row["id"]) for row in answer.json()["data"]}
    except (ValueError, KeyError, TypeError):
        return [
            Check(
                "openai",
                "key",
                "FAIL",
                f"GET {base}/models answers {answer.status_code} without a list",
                "check upstream.base_url",
            )
        ]
    checks = [Check("openai", "key", "PASS", f"accepted by {base}; {len(visible)} models are visible to it")]
    return checks + (_visible_models(site, visible, prices) if prices is not None else [])


async def cost_checks(site: Site) -> list[Check]:
    """Check that OpenAI's admin key, where there is one, reads costs: asked once, for yesterday."""
    try:
        key = openai_admin_key(site.settings)
    except ConfigError:
        return []  # the row of the configuration says it
    if key is None:
        return []
    yesterday = day_of(now_ms()) - timedelta(days=1)
    try:
        await OpenAICosts(site.settings.advanced.openai_costs_url, key).days(yesterday, yesterday)
    except StoreUnavailable as error:
        fix = (
            "use an admin key of the organization that may read usage, not a project's key; "
            "unset it to do without the job `costs`"
        )
        return [Check("openai", "admin key", "FAIL", str(error), fix)]
    return [Check("openai", "admin key", "PASS", "reads the organization's costs")]


def _visible_models(site: Site, visible: set[str], prices: PriceBook) -> list[Check]:
    allowlist = site.settings.billing.model_allowlist
    offered = {endpoint.name for endpoint in METERED.values()}
    named = [glob for glob in allowlist if glob != "*"]
    sold = [name for name in prices.names() if (model := prices.find(name)) is not None and model.endpoints & offered]
    unseen = [name for name in sold if name not in visible and any(fnmatchcase(name, glob) for glob in named)]
    unpriced = [
        name for name in visible if any(fnmatchcase(name, glob) for glob in named) and prices.find(name) is None
    ]
    dead = [glob for glob in named if not any(fnmatchcase(name, glob) for name in sold)]
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
