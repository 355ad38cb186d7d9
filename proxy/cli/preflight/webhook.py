"""Preflight's checks of our own webhook and of the events that wait."""

import json
import time

import httpx

from billing.payments.stripe.event_types import API_VERSION
from billing.payments.stripe.inbox import Inbox
from billing.payments.stripe.signatures import sign
from billing.storage.database import now_ms
from proxy.cli.preflight.site import Check, Site, error_text
from proxy.cli.preflight.stripe import TOO_OLD_STRIPE
from proxy.customer_api.stripe_webhook import PROBE_TYPE, UNSIGNED_PROBE

DAY_MS = 86_400_000


async def webhook_checks(site: Site) -> list[Check]:
    """Check that our own endpoint is reached from here, takes what is signed and refuses what is not.

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
        return [Check("webhook", "reachable", "FAIL", f"{url} is not reached: {error_text(error)}", fix)]
    checks = []
    if signed.is_success and b'"probe"' in signed.content:
        checks.append(Check("webhook", "signature", "PASS", f"{url} verifies our signature"))
    else:
        fix = (
            "the server runs with another STRIPE_WEBHOOK_SECRET (or mode) than this command, "
            "or something else answers there"
        )
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
    """Check which of Stripe's events wait, and that they have our API version. Raises StoreUnavailable."""
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
