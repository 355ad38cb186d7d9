"""Forms of our own pages: their size and kind, the site that sent them, the token of their session; those refused."""

import hmac
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from proxy.web.rejections import Rejection, forbidden, invalid

MAX_BYTES = 16_384
MOST_FIELDS = 20
KIND = "application/x-www-form-urlencoded"
"""Media type of our forms.

Multipart has charsets, files and errors of its own, and none of our pages asks for it.
"""
DEFAULT_PORTS = {"http": 80, "https": 443}
TOKEN_FIELD = "csrf"  # noqa: S105 - the name of a field


class RefusedForm(NamedTuple):
    """A form that was refused, for the page to show it again: the words at their field, what was typed still in it.

    `form`: its name on the page; `field`: what the words are about, "" for the form as a whole.
    """

    form: str
    field: str
    text: str
    typed: Mapping[str, str]

    def is_of(self, form: str) -> bool:
        """Tell whether it was this form."""
        return self.form == form

    def said(self, form: str, field: str) -> str:
        """Return the words to stand at a field of a form; "" where nothing is wrong with it."""
        return self.text if (self.form, self.field) == (form, field) else ""

    def value(self, form: str, field: str, otherwise: str = "") -> str:
        """Return what was typed into a field; `otherwise` in a form that was not refused."""
        return self.typed.get(field, "") if self.form == form else otherwise


NOT_REFUSED = RefusedForm("", "", "", {})


async def refused_form(request: Request, form: str, refusal: Rejection, fields: Mapping[str, str]) -> RefusedForm:
    """Return the form that was just read and refused. `fields`: names that refusals have → those of the forms."""
    typed = {name: str(value) for name, value in (await request.form()).items() if name != TOKEN_FIELD}
    words = refusal.message.replace("`", "")  # names of the API, which people read as words
    return RefusedForm(form, fields.get(refusal.param or "", refusal.param or ""), words, typed)


async def own_form(request: Request, public_url: str, *, unnamed: bool) -> FormData:
    """Read the form, when a page of this host or of `public_url` ("": there is none) sent it. Raises Rejection.

    `unnamed`: also when the browser does not say whose page it was, as it does not of one that sends no referrers.
    """
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()) or len(length) > len(str(MAX_BYTES)) or int(length) > MAX_BYTES:
        raise invalid("The form is too large.")
    origin = request.headers.get("origin", "null")
    if not (unnamed if origin == "null" else _is_ours(origin, request.headers.get("host", ""), public_url)):
        raise forbidden("This form was sent from another site.", "wrong_origin")
    if int(length) and request.headers.get("content-type", "").partition(";")[0].strip().lower() != KIND:
        raise invalid("This is not sent as a form of ours is.")
    try:
        return await request.form(max_files=0, max_fields=MOST_FIELDS)
    except (MultiPartException, HTTPException):
        raise invalid("The form has too many fields.") from None


async def session_form(request: Request, public_url: str, token: str) -> FormData:
    """Read the form, when it was made for the session of that `csrf` token. Raises Rejection."""
    form = await own_form(request, public_url, unnamed=True)
    if not hmac.compare_digest(str(form.get(TOKEN_FIELD, "")).encode(), token.encode()):
        raise forbidden("This form has expired. Open the page again.", "wrong_csrf_token")
    return form


def _is_ours(origin: str, host: str, public_url: str) -> bool:
    """Tell whether a page's origin is this host, as the request names it, or where we say that we are reached.

    The second is for a proxy in front that asks us by another name. Whether TLS ends in front of us the first cannot
    tell.
    """
    sender = _place(origin)
    return sender is not None and sender in (_place(f"{sender[0]}://{host}"), _place(public_url))


def _place(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of a URL, the port also where it is the usual one; None when it is no address of pages."""
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    if not parts.hostname or port is None or "@" in parts.netloc:
        return None
    return parts.scheme, parts.hostname, port
