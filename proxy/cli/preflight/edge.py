"""Preflight's checks of the edge: readiness, headers, CORS, TLS, the admin listener, as the world sees them."""

from urllib.parse import urlsplit

import httpx

from proxy.cli.preflight.site import Check, Site, error_text, is_private

WANTED_HEADERS = ("content-security-policy", "x-content-type-options", "x-frame-options", "referrer-policy")
STRANGER = "https://stranger.example"


async def edge_checks(site: Site) -> list[Check]:
    """Check readiness, headers, CORS and who may see admin paths, as the world sees them."""
    base, checks = site.base_url, _static_checks(site)
    try:
        ready = await site.http.get(f"{base}/readyz")
        page = await site.http.get(f"{base}/credits")
        admin = await site.http.get(f"{base}/api/admin/overview")
        metrics = await site.http.get(f"{base}/metrics")
        api = await site.http.options(
            f"{base}/v1/chat/completions", headers={"Origin": STRANGER, "Access-Control-Request-Method": "POST"}
        )
        side = await site.http.get(f"{base}/api/billing/me", headers={"Origin": STRANGER})
    except httpx.HTTPError as error:
        fix = "start the server; portal.public_url (else listen.host and port) must lead to it"
        return [*checks, Check("edge", "reachable", "FAIL", f"{base}: {error_text(error)}", fix)]
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
