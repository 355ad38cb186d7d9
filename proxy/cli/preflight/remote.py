"""Preflight's checks of what is not ours: OpenAI, Stripe, and the clocks."""

import json
import time
from datetime import timedelta
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase

import httpx

from billing.accounting.daily_finance import day_of
from billing.money.errors import StoreUnavailable, StripeRefused
from billing.money.pricing import PriceBook
from billing.payments.stripe.event_types import API_VERSION, KINDS
from billing.payments.stripe.inbox import Inbox
from billing.payments.stripe.objects import Account, Endpoint
from billing.payments.stripe.signatures import sign
from billing.storage.database import now_ms
from config.errors import ConfigError
from config.secrets import openai_admin_key
from proxy.cli.preflight.site import Check, Offset, Site, words
from proxy.customer_api.checkout import PROBE_TYPE, UNSIGNED_PROBE
from proxy.gateway.endpoints import METERED
from proxy.server.openai_costs import OpenAICosts

MOST_CLOCK_SECONDS = 2.0
DAY_MS = 86_400_000
SHOWN = 8
TOO_OLD_STRIPE = "set API version {version} on the endpoint (Workbench → Webhooks), then roll traffic over to it"


async def upstream_checks(site: Site, prices: PriceBook | None) -> list[Check]:
    """The OpenAI key is there, works, and sees what we sell."""
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
                f"{base} is not reached: {words(error)}",
                "open the way out to it (DNS, proxy, firewall)",
            )
        ]
    note_clock(site, "OpenAI", answer.headers.get("date", ""), sent)
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
    """The admin key of OpenAI's, where there is one, reads costs: asked once, for yesterday."""
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
        fix = "use an admin key of the organization that may read usage, not a project's key; unset it to do without the job `costs`"
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
        found = f"no complete rate card for {_some(dead + sorted(unpriced))}"
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
        return [*checks, Check("openai", "models", "FAIL", f"the key does not see {_some(unseen)}", fix)]
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


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


async def stripe_checks(site: Site) -> list[Check]:
    """The Stripe account can charge, and its webhook endpoint is ours and complete."""
    conf = site.settings.stripe
    if site.stripe is None:
        fix = "set STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET, or billing.purchase_enabled = false"
        selling = site.settings.billing.purchase_enabled
        return [
            Check(
                "stripe", "keys", "FAIL" if selling else "WARN", "Stripe is not configured; nothing can be bought", fix
            )
        ]
    from billing.payments.stripe.gateway import (
        StripeGateway,  # takes a second and memory: only where Stripe is configured
    )

    mode = "live" if conf.livemode else "test"
    fix = "" if conf.livemode else "with the live keys in place, set stripe.livemode = true"
    checks = [
        Check("stripe", "mode", "PASS" if conf.livemode else "WARN", f"key and stripe.livemode agree: {mode} mode", fix)
    ]
    gateway = StripeGateway(site.stripe.api_key.reveal(), api_base=conf.api_base)
    try:
        sent = time.time()
        account, date = await gateway.account()
        note_clock(site, "Stripe", date, sent)
        checks += [
            _account_check(account),
            *_endpoint_checks(site, await gateway.endpoints()),
            _rights_check(await gateway.unreadable()),
        ]
    except StripeRefused as refused:
        fix = "give the restricted key read access to the account and to webhook endpoints, or use another key"
        checks.append(Check("stripe", "account", "FAIL", str(refused), fix))
    except StoreUnavailable as error:
        checks.append(
            Check(
                "stripe",
                "account",
                "FAIL",
                f"Stripe is not reached: {error}",
                "check the key, and the way out to api.stripe.com",
            )
        )
    finally:
        await gateway.close()
    return checks


def _rights_check(unreadable: list[str]) -> Check:
    if unreadable:
        fix = "give the restricted key at least read access to them (docs/stripe.md lists every right it needs)"
        return Check("stripe", "rights", "FAIL", f"the key may not read {', '.join(unreadable)}", fix)
    return Check("stripe", "rights", "PASS", "the key reads payments, refunds, disputes and events")


def _account_check(account: Account) -> Check:
    if not account.charges_enabled:
        fix = "finish the account's activation in Stripe's dashboard"
        return Check("stripe", "account", "FAIL", f"{account.id} may not take charges", fix)
    if not account.payouts_enabled:
        return Check(
            "stripe",
            "account",
            "WARN",
            f"{account.id} takes charges, but pays nothing out",
            "add a bank account at Stripe",
        )
    return Check("stripe", "account", "PASS", f"{account.id} takes charges and pays out")


def _endpoint_checks(site: Site, endpoints: list[Endpoint]) -> list[Check]:
    ours = [endpoint for endpoint in endpoints if endpoint.url == site.webhook_url]
    if not ours:
        fix = f"make one at Stripe with the URL {site.webhook_url} (portal.public_url decides it) and the events of docs/stripe.md"
        return [Check("webhook", "endpoint", "FAIL", f"none of {len(endpoints)} endpoints at Stripe has our URL", fix)]
    enabled = [endpoint for endpoint in ours if endpoint.status == "enabled"]
    if not enabled:
        return [
            Check("webhook", "endpoint", "FAIL", f"{ours[0].id} is {ours[0].status}", "enable it in Stripe's Workbench")
        ]
    found = enabled[0]
    checks = [Check("webhook", "endpoint", "PASS", f"{found.id} delivers to {found.url}")]
    if len(enabled) > 1:
        fix = "disable the others once the new one works; each signs with a secret of its own"
        checks = [Check("webhook", "endpoint", "WARN", f"{len(enabled)} enabled endpoints have our URL", fix)]
    missing = [] if "*" in found.enabled_events else sorted(KINDS.keys() - set(found.enabled_events))
    if missing:
        checks.append(
            Check(
                "webhook",
                "events",
                "FAIL",
                f"not sent to us: {_some(missing)}",
                "enable every type of billing/payments/stripe/event_types.py",
            )
        )
    else:
        checks.append(Check("webhook", "events", "PASS", f"all {len(KINDS)} types that we handle"))
    if found.api_version == API_VERSION:
        return [*checks, Check("webhook", "api version", "PASS", API_VERSION)]
    told = found.api_version or "the account's default"
    fix = TOO_OLD_STRIPE.format(version=API_VERSION)
    return [*checks, Check("webhook", "api version", "WARN", f"{told}, we were made for {API_VERSION}", fix)]


async def webhook_checks(site: Site) -> list[Check]:
    """Our own endpoint is reached from here, takes what is signed and refuses what is not.

    The probe is dropped once verified.
    """
    if site.stripe is None:
        return []
    now, url = int(time.time()), site.webhook_url
    event = {
        "id": "evt_preflight",
        "object": "event",
        "type": PROBE_TYPE,
        "created": now,
        "livemode": site.settings.stripe.livemode,
    }
    body = json.dumps(event).encode()
    signature = sign(body, site.stripe.webhook_secrets[0].reveal(), now)
    try:
        signed = await site.http.post(url, content=body, headers={"Stripe-Signature": signature})
        unsigned = await site.http.post(url, content=UNSIGNED_PROBE)
    except httpx.HTTPError as error:
        fix = "start the server, and let portal.public_url lead to it (DNS, TLS, load balancer)"
        return [Check("webhook", "reachable", "FAIL", f"{url} is not reached: {words(error)}", fix)]
    checks = []
    if signed.is_success and b'"probe"' in signed.content:
        checks.append(Check("webhook", "signature", "PASS", f"{url} verifies our signature"))
    else:
        fix = "the server runs with another STRIPE_WEBHOOK_SECRET (or mode) than this command, or something else answers there"
        checks.append(
            Check("webhook", "signature", "FAIL", f"a signed event is answered with {signed.status_code}", fix)
        )
    if unsigned.status_code == httpx.codes.BAD_REQUEST:
        checks.append(Check("webhook", "unsigned", "PASS", "what is not signed is refused"))
    else:
        fix = "look who answers there; nobody may take unsigned events"
        checks.append(
            Check("webhook", "unsigned", "FAIL", f"an unsigned event is answered with {unsigned.status_code}", fix)
        )
    return checks


async def inbox_checks(site: Site) -> list[Check]:
    """What of Stripe's events waits, and whether they speak our version. Raises StoreUnavailable."""
    inbox = Inbox(site.database)
    depth = await inbox.depth()
    late = depth.oldest_ms > 5 * 60_000
    fix = "`tollkeeper stripe inbox --state parked` says why; then `tollkeeper stripe replay EVENT`"
    waiting = f"{depth.waiting} events wait, the oldest for {depth.oldest_ms // 1_000} s"
    checks = [Check("webhook", "inbox", "FAIL" if late else "PASS", waiting, fix if late else "")]
    others = [version for version in await inbox.versions(now_ms() - 7 * DAY_MS) if version not in (API_VERSION, "")]
    if others:
        found = f"events of the last 7 days also had {', '.join(others)}"
        return [*checks, Check("webhook", "event version", "WARN", found, TOO_OLD_STRIPE.format(version=API_VERSION))]
    return [
        *checks,
        Check("webhook", "event version", "PASS", f"no event of another version than {API_VERSION} in 7 days"),
    ]


def note_clock(site: Site, clock: str, date: str, sent: float) -> None:
    """Compare an answer's Date, which has whole seconds, with the middle of the call."""
    try:
        theirs = parsedate_to_datetime(date).timestamp() + 0.5
    except (TypeError, ValueError):
        return
    site.clocks.append(Offset(clock, theirs - (sent + time.time()) / 2))


def clock_checks(site: Site) -> list[Check]:
    """Whether every clock that was heard agrees with ours."""
    if not site.clocks:
        return [Check("clocks", "offset", "WARN", "no other clock was heard", "look at the checks that failed above")]
    checks = []
    for clock, seconds in site.clocks:
        far = abs(seconds) > MOST_CLOCK_SECONDS
        fix = (
            "run chrony or systemd-timesyncd on both machines; signatures, holds and days depend on the time"
            if far
            else ""
        )
        checks.append(Check("clocks", clock, "FAIL" if far else "PASS", f"{seconds:+.1f} s from ours", fix))
    return checks
