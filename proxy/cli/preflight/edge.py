"""Preflight's checks of what we serve and with what: pages and headers, prices, switches, files and limits of this
machine.
"""

import os
import resource
import shutil
from datetime import UTC, date, datetime
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from billing.ledger.rate_cards import RateCards
from billing.money.amounts import MoneyError, display_credits, package_credits
from billing.money.errors import BillingError
from billing.money.pricing import PriceBook
from config.flags import FLAGS, full_name, value_of
from config.rollout import is_in
from config.settings import Settings
from proxy.cli.preflight.site import Check, Site, is_private, words
from proxy.web.times import iso_time

RUNBOOK_PACKAGES = {"starter": ("9.99", "0"), "plus": ("49.99", "5"), "pro": ("99.99", "10")}
WANTED_HEADERS = ("content-security-policy", "x-content-type-options", "x-frame-options", "referrer-policy")
GIB = 2**30
OLD_CARD_DAYS = 90
SPARE_FILES = 256
STRANGER = "https://stranger.example"
READABLE_BY_OTHERS = 0o007
READABLE_BY_GROUP = 0o070


# -- prices ---------------------------------------------------------------------------------------------------


def package_checks(settings: Settings) -> list[Check]:
    """What is on sale, against the runbook's three packages."""
    if not settings.packages:
        state = settings.billing.purchase_enabled
        fix = "write [[packages]] in proxy.toml, or set billing.purchase_enabled = false"
        return [Check("prices", "packages", "FAIL" if state else "WARN", "there is nothing to buy", fix)]
    shown = []
    for package in settings.packages:
        if (Fraction(package.usd) * 100).denominator != 1:
            return [
                Check(
                    "prices", "packages", "FAIL", f"{package.code} costs ${package.usd}", "Stripe sells in whole cents"
                )
            ]
        sold_credits = display_credits(sum(package_credits(package.usd, package.bonus_percent)))
        shown.append(f"{package.code} ${package.usd} → {sold_credits:,} credits")
    sold = {package.code: (Fraction(package.usd), Fraction(package.bonus_percent)) for package in settings.packages}
    planned = {code: (Fraction(usd), Fraction(bonus)) for code, (usd, bonus) in RUNBOOK_PACKAGES.items()}
    if sold != planned:
        fix = "the runbook sells starter $9.99, plus $49.99 + 5 %, pro $99.99 + 10 %: change [[packages]] unless this is meant"
        return [Check("prices", "packages", "WARN", "; ".join(shown), fix), _margin_check(settings)]
    return [Check("prices", "packages", "PASS", "; ".join(shown)), _margin_check(settings)]


def _margin_check(settings: Settings) -> Check:
    """What is left of the cheapest credits when they are used: a package's bonus is given on top of the markup over
    OpenAI's prices.
    """
    cheapest = max(settings.packages, key=lambda package: Fraction(package.bonus_percent))
    margin = 100 - (100 + Fraction(cheapest.bonus_percent)) / Fraction(settings.billing.markup)
    found = f"{cheapest.code} leaves {float(margin):.1f} % at markup {settings.billing.markup}, before Stripe's fees"
    if margin < settings.jobs.margin_target_percent:
        fix = f"raise billing.markup or lower the bonus: the target is {settings.jobs.margin_target_percent} % (jobs.margin_target_percent)"
        return Check("prices", "margin", "WARN", found, fix)
    return Check("prices", "margin", "PASS", found)


async def rate_checks(site: Site) -> tuple[list[Check], PriceBook | None]:
    """The active rate card is whole and dated. Raises StoreUnavailable."""
    cards, billing = RateCards(site.database), site.settings.billing
    active = await cards.active_id()
    if active is None:
        fix = "`tollkeeper migrate` installs the shipped card; or `tollkeeper rates import` and `activate`"
        return [Check("prices", "rate card", "FAIL", "no rate card is active", fix)], None
    try:
        book = PriceBook(await cards.get(active), billing.markup, billing.rounding_mode)
    except (BillingError, MoneyError) as error:
        return [Check("prices", "rate card", "FAIL", f"{active}: {error}", "import and activate a correct card")], None
    age = (datetime.now(UTC).date() - date.fromisoformat(book.effective_from)).days
    found = f"{active}, dated {book.effective_from}, {len(book.names())} models"
    if age < 0:
        return [
            Check("prices", "rate card", "FAIL", f"{found}: a date to come", "activate it from that date on, not now")
        ], book
    if age > OLD_CARD_DAYS:
        fix = "compare it with OpenAI's price list (`tollkeeper rates diff`), and import what changed"
        return [Check("prices", "rate card", "WARN", f"{found}: {age} days old", fix)], book
    return [Check("prices", "rate card", "PASS", found)], book


# -- switches -------------------------------------------------------------------------------------------------


def flag_checks(site: Site) -> list[Check]:
    """Every switch as it is in force now, and who set it."""
    rows = {row.flag: row for row in site.overrides}
    settings = site.settings
    odd = {
        "purchase_enabled": ("FAIL", "nothing can be bought: `tollkeeper flags set purchase_enabled true --reason ...`")
        if not settings.billing.purchase_enabled
        else None,
        "charging_enabled": ("FAIL", "nothing is charged: `tollkeeper flags set charging_enabled true --reason ...`")
        if not settings.billing.charging_enabled
        else None,
        "percent": ("WARN", "the rollout goes 5 → 25 → 100 (docs/runbook.md)")
        if settings.rollout.percent < 100
        else None,
    }
    checks = []
    for flag in FLAGS:
        value, row, said = value_of(settings, flag), rows.get(flag), odd.get(flag)
        until = f" until {iso_time(row.expires_at)}" if row is not None and row.expires_at is not None else ""
        by = f" (set by {row.actor}{until}: {row.reason})" if row is not None else ""
        found = f"{value if not isinstance(value, (list, tuple)) else ', '.join(value)}{by}"
        if said is not None:
            checks.append(Check("flags", full_name(flag), "FAIL" if said[0] == "FAIL" else "WARN", found, said[1]))
        elif row is not None:
            fix = f"write it into proxy.toml, then `tollkeeper flags clear {full_name(flag)} --reason ...`"
            checks.append(Check("flags", full_name(flag), "WARN", found, fix))
        else:
            checks.append(Check("flags", full_name(flag), "PASS", found))
    shut = [name for name in settings.rollout.include if not is_in(settings.rollout, name)]
    if shut:
        fix = "take them off one of the two lists"
        checks.append(
            Check("flags", "rollout.include", "WARN", f"both included and excluded: {', '.join(shut[:5])}", fix)
        )
    return checks


# -- what browsers see ----------------------------------------------------------------------------------------


async def edge_checks(site: Site) -> list[Check]:
    """Readiness, headers, CORS, who may see admin paths, as the world sees them."""
    base, checks = site.base_url, _static_checks(site)
    try:
        ready = await site.http.get(f"{base}/readyz")
        page = await site.http.get(f"{base}/credits")
        admin = await site.http.get(f"{base}/api/admin/whoami")
        metrics = await site.http.get(f"{base}/metrics")
        api = await site.http.options(
            f"{base}/v1/chat/completions", headers={"Origin": STRANGER, "Access-Control-Request-Method": "POST"}
        )
        side = await site.http.get(f"{base}/api/billing/me", headers={"Origin": STRANGER})
    except httpx.HTTPError as error:
        fix = "start the server; portal.public_url (else listen.host and port) must lead to it"
        return [*checks, Check("edge", "reachable", "FAIL", f"{base}: {words(error)}", fix)]
    if ready.status_code == httpx.codes.OK:
        checks.append(Check("edge", "ready", "PASS", f"{base}/readyz is green"))
    else:
        checks.append(Check("edge", "ready", "FAIL", f"/readyz: {ready.text[:200]}", "see what it names"))
    missing = [name for name in WANTED_HEADERS if name not in page.headers]
    lax = "'none'" not in page.headers.get("content-security-policy", "")
    if missing or lax:
        fix = "a proxy in front of us takes headers away or answers itself: let them through"
        checks.append(Check("edge", "headers", "FAIL", f"/credits lacks {', '.join(missing) or 'a strict CSP'}", fix))
    else:
        checks.append(Check("edge", "headers", "PASS", "/credits has its CSP and security headers"))
    if any("access-control-allow-origin" in answer.headers for answer in (api, side)):
        fix = "something in front of us adds CORS headers: take them out"
        checks.append(Check("edge", "cors", "FAIL", f"a stranger's page ({STRANGER}) may read answers", fix))
    else:
        checks.append(
            Check("edge", "cors", "PASS", "other sites' pages may read nothing but what cors.allowed_origins lists")
        )
    return [*checks, _admin_check(site, admin.status_code, metrics.status_code)]


def _admin_check(site: Site, admin: int, metrics: int) -> Check:
    open_to_all = [
        name for name, status in (("/api/admin", admin), ("/metrics", metrics)) if status != httpx.codes.NOT_FOUND
    ]
    if not open_to_all:
        return Check("edge", "admin listener", "PASS", "admin paths and /metrics are not served where customers are")
    fix = "set listen.admin_port, reachable by operators and Prometheus only"
    local = is_private(urlsplit(site.base_url).hostname or "")
    return Check(
        "edge",
        "admin listener",
        "WARN" if local else "FAIL",
        f"{', '.join(open_to_all)} are served at {site.base_url}",
        fix,
    )


def _static_checks(site: Site) -> list[Check]:
    settings, parts = site.settings, urlsplit(site.base_url)
    live, private = settings.stripe.livemode, is_private(parts.hostname or "")
    checks = []
    if parts.scheme == "https" and not private:
        checks.append(Check("edge", "tls", "PASS", site.base_url))
    else:
        fix = "set portal.public_url to the https address customers and Stripe use; end TLS in front of us"
        checks.append(
            Check(
                "edge",
                "tls",
                "FAIL" if live or not private else "WARN",
                f"{site.base_url} is not a public https address",
                fix,
            )
        )
    plain = [origin for origin in settings.cors.allowed_origins if not origin.startswith("https://")]
    told = ", ".join(settings.cors.allowed_origins) or "none"
    if plain:
        state = "FAIL" if live or not all(is_private(urlsplit(origin).hostname or "") for origin in plain) else "WARN"
        fix = "list https origins only"
        checks.append(
            Check("edge", "origins", "FAIL" if state == "FAIL" else "WARN", f"not https: {', '.join(plain)}", fix)
        )
    else:
        checks.append(Check("edge", "origins", "PASS", f"cors.allowed_origins: {told}"))
    if settings.listen.admin_port and not is_private(settings.listen.admin_host):
        fix = "set listen.admin_host to an address that only operators reach"
        checks.append(Check("admin", "listener", "FAIL", f"admin listens on {settings.listen.admin_host}", fix))
    return checks


# -- this machine ---------------------------------------------------------------------------------------------


def host_checks(site: Site) -> list[Check]:
    """Disks, file limits, secrets' permissions."""
    return [*_disk_checks(site), _files_check(site.settings), _secrets_check(site.settings)]


def _disk_checks(site: Site) -> list[Check]:
    settings = site.settings
    paths = {} if settings.redis.url else {"embedded.path": Path(settings.embedded.path)}
    if site.database.is_sqlite and site.database.url.database:
        paths["database.url"] = Path(site.database.url.database)
    checks = []
    for key, path in paths.items():
        place = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), Path("/"))
        free = shutil.disk_usage(place).free / GIB
        short, writable = free < site.min_free_gib, os.access(place, os.W_OK)
        fix = (
            f"free some, or move {key} to another disk" if short else "" if writable else f"let this user write {place}"
        )
        checks.append(
            Check(
                "host",
                f"disk of {key}",
                "FAIL" if short or not writable else "PASS",
                f"{free:.1f} GiB free at {place}",
                fix,
            )
        )
    return checks


def _files_check(settings: Settings) -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = settings.listen.max_connections + settings.upstream.max_connections + SPARE_FILES
    enough = hard == resource.RLIM_INFINITY or hard >= need
    fix = (
        ""
        if enough
        else "raise LimitNOFILE of the service (or ulimit -Hn), or lower listen. and upstream.max_connections"
    )
    return Check(
        "host", "open files", "PASS" if enough else "FAIL", f"a worker needs {need}, the hard limit here is {hard}", fix
    )


def _secrets_check(settings: Settings) -> Check:
    named = {
        "upstream.api_key_file": settings.upstream.api_key_file,
        "stripe.api_key_file": settings.stripe.api_key_file,
        "stripe.webhook_secret_file": settings.stripe.webhook_secret_file,
        "notices.secret_file": settings.notices.secret_file,
        "portal.service_key_file": settings.portal.service_key_file,
        "jobs.openai_admin_key_file": settings.jobs.openai_admin_key_file,
    }
    files = {key: Path(path) for key, path in named.items() if path and Path(path).exists()}
    modes = {key: path.stat().st_mode for key, path in files.items()}
    world = [key for key, mode in modes.items() if mode & READABLE_BY_OTHERS]
    group = [key for key, mode in modes.items() if mode & READABLE_BY_GROUP]
    if world:
        return Check("host", "secrets", "FAIL", f"every user here can open {', '.join(world)}", "chmod 600 those files")
    if group:
        return Check(
            "host",
            "secrets",
            "WARN",
            f"the group can open {', '.join(group)}",
            "chmod 600 those files, unless this is meant",
        )
    return Check(
        "host", "secrets", "PASS", f"{len(files)} secret files, closed to others" if files else "from the environment"
    )
