"""Forms of our own pages: their size, whose page sent them, and the token of the session they were made for."""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import FormData
from starlette.requests import Request

from proxy.rejections import forbidden, invalid

MAX_BYTES = 16_384
MOST_FIELDS = 20


async def own_form(request: Request, *, unnamed: bool) -> FormData:
    """The form, when a page of this host sent it. Raises Rejection.

    `unnamed`: also when the browser does not say whose page it was, as it does not of one that sends no referrers.
    """
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > MAX_BYTES:
        raise invalid("The form is too large.")
    origin = request.headers.get("origin", "null")
    ours = unnamed if origin == "null" else urlsplit(origin).netloc == request.headers.get("host")
    if not ours:
        raise forbidden("This form was sent from another site.", "wrong_origin")
    return await request.form(max_files=0, max_fields=MOST_FIELDS)


async def session_form(request: Request, token: str) -> FormData:
    """The form, when it was made for the session of that `csrf` token. Raises Rejection."""
    form = await own_form(request, unnamed=True)
    if not hmac.compare_digest(str(form.get("csrf", "")).encode(), token.encode()):
        raise forbidden("This form has expired. Open the page again.", "wrong_csrf_token")
    return form
