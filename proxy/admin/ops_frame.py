"""The frame of every page under /admin: how one is rendered, how a form is read, and where it leads."""

import hashlib
import hmac
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from proxy.admin.auth import Caller
from proxy.admin.ops_formatting import DONE, FILTERS
from proxy.web.forms import NOT_REFUSED

COOKIE = "tk_admin"
ROWS = 50
POLICY = (
    "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
)
HEADERS = {"content-security-policy": POLICY, "cache-control": "no-store"}
MENU = (
    ("/admin", "Overview", "overview.read"),
    ("/admin/purchases", "Purchases", "usage.read"),
    ("/admin/flags", "Flags", "flags.read"),
    ("/admin/rates", "Rate cards", "rates.read"),
    ("/admin/plans", "Price plans", "plans.read"),
    ("/admin/promos", "Promo codes", "promos.read"),
    ("/admin/upstreams", "Upstreams", "overview.read"),
    ("/admin/reconciliation", "Reconciliation", "reconciliation.read"),
    ("/admin/events", "Events", "events.read"),
    ("/admin/webhooks", "Webhooks", "webhooks.read"),
    ("/admin/admins", "Admins", "admins.read"),
    ("/admin/audit", "Audit log", "audit.read"),
)
TEMPLATES = Environment(
    loader=PackageLoader("proxy.admin", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.filters.update(FILTERS)


def page(request: Request, caller: Caller, name: str, content: dict[str, Any]) -> Response:
    """Render a page for whoever is signed in, in the frame that all have."""
    frame = {
        "actor": caller.admin.actor,
        "role": caller.admin.role,
        "may": caller.may,
        "menu": [(path, text) for path, text, action in MENU if caller.may(action)],
        "here": getattr(request.state, "here", request.url.path),
        "wrong": getattr(request.state, "wrong", NOT_REFUSED),
        "done": DONE.get(request.query_params.get("done", "")),
        "token": csrf_of(request.cookies.get(COOKIE, "")),
    }
    return render(name, {**content, **frame})


def message(title: str, text: str, status: int) -> Response:
    """Render a page of words alone."""
    return render("ops_message.html", {"title": title, "text": text, "wrong": NOT_REFUSED}, status)


def render(name: str, content: dict[str, Any], status: int = 200) -> Response:
    """Render a template."""
    return Response(TEMPLATES.get_template(name).render(content), status, HEADERS, "text/html; charset=utf-8")


def headers_to(url: str) -> dict[str, str]:
    """Return the headers of a page whose forms lead on to that address, which may be another listener's."""
    parts = urlsplit(url)
    return {**HEADERS, "content-security-policy": f"{POLICY} {parts.scheme}://{parts.netloc}"}


def csrf_of(token: str) -> str:
    """Token that every form of this sign-in carries."""
    return hmac.new(token.encode(), b"ops page forms", hashlib.sha256).hexdigest()


async def fields_of(request: Request) -> Callable[[str], str]:
    """Read a form: a function from a field's name to its text, "" where there is none."""
    form = await request.form()
    return lambda name: str(form.get(name, "")).replace("\0", "").strip()


def back_to(path: str, done: str) -> Response:
    """Send on to the page that shows what was done; reloading it does not do it again."""
    return RedirectResponse(f"{path}?done={done}", 303, HEADERS)
