"""Responses of the Credits page: its templates, and the headers under which browsers show them."""

from typing import Any, NamedTuple
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader
from starlette.responses import RedirectResponse, Response

from proxy.customer_api.money_in import MoneyIn

STRIPE_PAGES = "https://checkout.stripe.com https://billing.stripe.com"
TEMPLATES = Environment(
    loader=PackageLoader("proxy.credits_page", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


class PageResponses(NamedTuple):
    """Makes responses. `money` says where the payment pages are."""

    money: MoneyIn

    def message(self, title: str, text: str, status: int, *, back: bool = False) -> Response:
        """Page that says one thing; `back`: with the way back to the credits."""
        return self.page("message.html", {"title": title, "text": text, "back": back}, status)

    def page(self, name: str, content: dict[str, Any], status: int = 200) -> Response:
        """Page from a template."""
        html = TEMPLATES.get_template(name).render({**content, "app": self._app()})
        return Response(html, status, self.headers(), "text/html; charset=utf-8")

    def _app(self) -> dict[str, Any]:
        """Return the operator's product as every page shows it; an edit of the file shows at once."""
        app = self.money.settings.app
        colored = f"{app.color}{app.dark_color}".replace("#", "")
        links = (("Support", app.support_url), ("Terms", app.terms_url), ("Privacy", app.privacy_url))
        return {
            "name": app.name,
            "url": app.url,
            "logo": bool(app.logo_file),
            "colors": colored,
            "links": [(words, url) for words, url in links if url],
        }

    def redirect(self, url: str) -> Response:
        """Send on to another page, by GET."""
        return RedirectResponse(url, 303, self.headers())

    def headers(self) -> dict[str, str]:
        """Headers by which nothing is cached, framed, sniffed, or loaded from elsewhere.

        Forms go to us and on to the payment provider.
        """
        stripe = self.money.settings.stripe
        base = urlsplit(stripe.api_base)
        pages = STRIPE_PAGES + (f" https://{stripe.checkout_domain}" if stripe.checkout_domain else "")
        simulator = f" {base.scheme}://{base.netloc}" if base.netloc else ""
        policy = (
            "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; base-uri 'none'; "
            f"frame-ancestors 'none'; form-action 'self' {pages}{simulator}"
        )
        return {
            "content-security-policy": policy,
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
        }
