"""Forms of our own pages: their size and kind, the site that sent them, and the token of their session."""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from proxy.web.rejections import forbidden, invalid

MAX_BYTES = 16_384
MOST_FIELDS = 20
KIND = "application/x-www-form-urlencoded"
"""Media type of our forms.

Multipart has charsets, files and errors of its own, and none of our pages asks for it.
"""
DEFAULT_PORTS = {"http": 80, "https": 443}


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
    if not hmac.compare_digest(str(form.get("csrf", "")).encode(), token.encode()):
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
