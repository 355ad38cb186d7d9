"""`httpx.get` and its like with one TLS context for all: httpx would read the CA bundle anew at every call, which takes longer than the call.

Each call still has a connection of its own, so that a server which a test kills leaves no half-dead one behind.
"""

import re
import ssl
from contextlib import AbstractContextManager
from typing import Any

import httpx

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody: tests speak plain HTTP to their own servers."""


def request(method: str, url: str, **named: Any) -> httpx.Response:
    return httpx.request(method, url, verify=PLAIN, trust_env=False, **named)


def get(url: str, **named: Any) -> httpx.Response:
    return request("GET", url, **named)


def post(url: str, **named: Any) -> httpx.Response:
    return request("POST", url, **named)


def put(url: str, **named: Any) -> httpx.Response:
    return request("PUT", url, **named)


def delete(url: str, **named: Any) -> httpx.Response:
    return request("DELETE", url, **named)


def stream(method: str, url: str, **named: Any) -> AbstractContextManager[httpx.Response]:
    return httpx.stream(method, url, verify=PLAIN, trust_env=False, **named)


def client(**named: Any) -> httpx.Client:
    return httpx.Client(verify=PLAIN, trust_env=False, **named)


def sign_in(browser: httpx.Client, link: str) -> httpx.Response:
    """Follow a link to the Credits page and press the button of the form it shows, as a browser without a script; where that leads."""
    asking = browser.get(link)
    fields = dict(re.findall(r'<input[^>]* name="([^"]+)" value="([^"]*)"', asking.text))
    here = asking.url.copy_with(query=None)
    return browser.post(
        here, data=fields, headers={"origin": str(here.copy_with(path="")).rstrip("/")}, follow_redirects=True
    )
