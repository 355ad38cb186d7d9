"""Forms of our own pages: whose page sent them, and that what is no form of ours is refused in plain words."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from proxy.web.forms import own_form
from proxy.web.rejections import Rejection

FORM = "application/x-www-form-urlencoded"
PART = b'--x\r\nContent-Disposition: form-data; name="token"\r\n\r\n%b\r\n--x--\r\n'


async def send(
    body: bytes, *, kind: str = FORM, origin: str = "http://meter.test", host: str = "meter.test", public: str = ""
) -> httpx.Response:
    async def take(request: Request) -> Response:
        try:
            form = await own_form(request, public, unnamed=False)
        except Rejection as rejection:
            return PlainTextResponse(rejection.message, rejection.status)
        return PlainTextResponse(str(form.get("token", "")))

    app = Starlette(routes=[Route("/", take, methods=["POST"])])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://meter.test") as client:
        return await client.post("/", content=body, headers={"content-type": kind, "origin": origin, "host": host})


@pytest.mark.parametrize(
    ("origin", "host", "public"),
    [
        ("https://meter.test", "meter.test", ""),
        ("https://meter.test", "meter.test:443", ""),
        ("http://meter.test", "meter.test:80", ""),
        ("https://meter.test:8443", "METER.test:8443", ""),
        ("https://meter.test", "tollkeeper:8080", "https://meter.test"),
        ("https://meter.test", "tollkeeper:8080", "https://Meter.test:443/"),
        ("http://[::1]:8080", "[::1]:8080", ""),
    ],
)
async def test_our_own_page_by_every_name_it_has(origin: str, host: str, public: str) -> None:
    answer = await send(b"token=a", origin=origin, host=host, public=public)
    assert (answer.status_code, answer.text) == (200, "a")


@pytest.mark.parametrize(
    ("origin", "host", "public"),
    [
        ("https://evil.test", "meter.test", "https://meter.test"),
        ("http://meter.test", "tollkeeper:8080", "https://meter.test"),
        ("https://meter.test:444", "meter.test:443", "https://meter.test"),
        ("https://meter.test@evil.test", "meter.test", ""),
        ("https://x@meter.test", "x@meter.test", ""),
        ("http://[", "[", "http://["),
        ("http://meter.test:x", "meter.test:x", ""),
        ("null", "null", ""),
        ("", "", ""),
        ("https://", "meter.test", ""),
        ("file://meter.test", "meter.test", ""),
    ],
)
async def test_any_other_page_is_another_site(origin: str, host: str, public: str) -> None:
    assert (await send(b"token=a", origin=origin, host=host, public=public)).status_code == 403


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (PART % b"+2AA-", "multipart/form-data; boundary=x; charset=utf-7"),
        (PART % b"xn--a", "multipart/form-data; boundary=x; charset=idna"),
        (PART % b"abc", "multipart/form-data; boundary=x; charset=undefined"),
        (PART % b"abc", "multipart/form-data; boundary=x"),
        (b"abc", "multipart/form-data; boundary=x"),
        (b"abc", "multipart/form-data"),
        (b'{"token": "a"}', "application/json"),
        (b"token=a", ""),
        (b"&".join(b"a%d=1" % number for number in range(21)), FORM),
        (b"token=" + b"a" * 16_384, FORM),
    ],
)
async def test_what_is_no_form_of_ours_is_refused(body: bytes, kind: str) -> None:
    answer = await send(body, kind=kind)
    assert answer.status_code == 400
    assert answer.text.startswith(("This is not sent", "The form"))


async def test_an_empty_form_is_one() -> None:
    for kind in (FORM, ""):
        assert (await send(b"", kind=kind)).status_code == 200
    assert (await send(b"token=%ED%A0%80", kind=f"{FORM}; charset=utf-7")).status_code == 200
