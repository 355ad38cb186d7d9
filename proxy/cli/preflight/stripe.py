"""Preflight's checks of Stripe's account and of the webhook endpoint registered there."""

import time

from billing.money.errors import StoreUnavailable, StripeRefused
from billing.payments.stripe.event_types import API_VERSION, KINDS
from billing.payments.stripe.objects import StripeAccount, WebhookEndpoint
from proxy.cli.preflight.clocks import add_clock
from proxy.cli.preflight.site import Check, Site, list_some

TOO_OLD_STRIPE = "set API version {version} on the endpoint (Workbench → Webhooks), then roll traffic over to it"


async def stripe_checks(site: Site) -> list[Check]:
    """Check that the Stripe account can charge, and that its webhook endpoint is ours and complete."""
    conf = site.settings.stripe
    if site.stripe is None:
        fix = "set STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET, or billing.purchase_enabled = false"
        selling = site.settings.billing.purchase_enabled
        return [
            Check(
                "stripe", "keys", "FAIL" if selling else "WARN", "Stripe is not configured; nothing can be bought", fix
            )
        ]
    # takes a second and memory: only where Stripe is configured
    from billing.payments.stripe.gateway import StripeGateway

    mode = "live" if conf.livemode else "test"
    fix = "" if conf.livemode else "with the live keys in place, set stripe.livemode = true"
    checks = [
        Check("stripe", "mode", "PASS" if conf.livemode else "WARN", f"key and stripe.livemode agree: {mode} mode", fix)
    ]
    gateway = StripeGateway(site.stripe.api_key.reveal(), api_base=conf.api_base)
    try:
        sent = time.time()
        account, date = await gateway.account()
        add_clock(site, "Stripe", date, sent)
        checks += [
            _account_check(account),
            *_endpoint_checks(site, await gateway.endpoints()),
            _rights_check(await gateway.unreadable(invoices=conf.invoices)),
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


def _account_check(account: StripeAccount) -> Check:
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


def _endpoint_checks(site: Site, endpoints: list[WebhookEndpoint]) -> list[Check]:
    ours = [endpoint for endpoint in endpoints if endpoint.url == site.webhook_url]
    if not ours:
        fix = (
            f"make one at Stripe with the URL {site.webhook_url} (portal.public_url decides it) "
            "and the events of docs/stripe.md"
        )
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
                f"not sent to us: {list_some(missing)}",
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
