"""Tokens of an identity provider: taken when everything is right, refused when any one thing is wrong."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from config.settings import AdminSettings
from proxy.admin.identity.oidc import TokenChecker
from proxy.web.rejections import Rejection
from tests.support import web
from tests.support.customers import new_customer
from tests.support.rsa_keys import rsa_key
from tests.support.servers import Sandbox, Tollkeeper, wait_until

ISSUER, AUDIENCE = "https://id.example.com/", "tollkeeper"
RSA_KEY, OTHER_KEY = rsa_key("provider"), rsa_key("stranger")
EC_KEY = ec.generate_private_key(ec.SECP256R1())


class Issuer:
    """Publishes keys, and counts how often they are fetched."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.fetched, self.status = 0, 200
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetched += 1
                body = json.dumps({"keys": issuer.keys}).encode()
                self.send_response(issuer.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/jwks.json"

    def publish(self, **keys: Any) -> None:
        self.keys = []
        for kid, key in keys.items():
            algorithm: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
            self.keys.append({**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"})


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    made.publish(first=RSA_KEY, curve=EC_KEY)
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox, issuer: Issuer) -> Iterator[Tollkeeper]:
    home = new_folder("oidc")
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_ADMIN__OIDC_ISSUER": ISSUER,
        "TOLLKEEPER_ADMIN__OIDC_AUDIENCE": AUDIENCE,
        "TOLLKEEPER_ADMIN__OIDC_JWKS_URL": issuer.url,
        "TOLLKEEPER_ADMIN__OIDC_ROLE_CLAIM": "realm_access.roles",
    }
    server = Tollkeeper(home, environment).start()
    yield server
    server.kill()


def token(
    key: Any = RSA_KEY, kid: str | None = "first", algorithm: str = "RS256", without: str = "", **changes: Any
) -> str:
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "u1",
        "email": "ann@example.com",
        "iat": now,
        "exp": now + 300,
        "realm_access": {"roles": ["employee", "finance"]},
        **changes,
    }
    claims.pop(without, None)
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


def whoami(server: Tollkeeper, bearer: str) -> httpx.Response:
    return web.get(f"{server.url}/api/admin/whoami", headers={"Authorization": f"Bearer {bearer}"}, timeout=20)


def test_a_good_token_acts_as_its_role(server: Tollkeeper) -> None:
    assert whoami(server, token()).json() == {"actor": "oidc:u1 (ann@example.com)", "role": "finance"}
    assert whoami(server, token(EC_KEY, "curve", "ES256")).json()["role"] == "finance"
    assert whoami(server, token(aud=["other", AUDIENCE])).status_code == 200
    assert whoami(server, token(without="email")).json()["actor"] == "oidc:u1"
    assert whoami(server, token(realm_access={"roles": ["viewer", "owner"]})).json()["role"] == "owner"
    assert whoami(server, token(exp=int(time.time()) - 5)).status_code == 200, "clocks may differ a little"


NOW = int(time.time())
WRONG = {
    "another issuer": {"iss": "https://evil.example/"},
    "another audience": {"aud": "someone-else"},
    "no audience": {"without": "aud"},
    "no subject": {"without": "sub"},
    "no end": {"without": "exp"},
    "over": {"exp": NOW - 3_600},
    "not yet": {"nbf": NOW + 86_400},
    "no role": {"realm_access": {"roles": ["employee"]}},
    "roles of no shape": {"realm_access": "owner?"},
    "another key under the same name": {"key": OTHER_KEY},
    "an unknown key": {"key": OTHER_KEY, "kid": "unknown"},
    "no key named": {"kid": None},
    "a shared secret": {"key": "s" * 64, "algorithm": "HS256"},
    "an algorithm that is not allowed": {"algorithm": "RS512"},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_any_one_thing_wrong_is_enough(wrong: dict[str, Any], server: Tollkeeper) -> None:
    answer = whoami(server, token(**wrong))
    assert answer.status_code == 401, answer.text


def test_tokens_that_are_none(server: Tollkeeper) -> None:
    head, body, signature = token().split(".")
    deep = base64.urlsafe_b64encode(b'{"alg":"RS256","x":' + b"[" * 5_000 + b"]" * 5_000 + b"}").decode().rstrip("=")
    unsigned = jwt.encode({"iss": ISSUER, "aud": AUDIENCE, "sub": "u1", "exp": NOW + 300}, "", algorithm="none")
    for text in (
        unsigned,
        f"{head}.{body}.",
        f"{head}.{body}x.{signature}",
        f"{head}.{body}.{signature[:-4]}AAAA",
        "a.b.c",
        "..",
        f"{deep}.{body}.{signature}",
        f"{body}.{head}.{signature}",
    ):
        assert whoami(server, text).status_code == 401, text


def test_the_keys_are_cached_and_fetched_again_when_they_turn(server: Tollkeeper, issuer: Issuer) -> None:
    whoami(server, token())
    before = issuer.fetched
    for _ in range(20):
        assert whoami(server, token()).status_code == 200
    for _ in range(20):  # nobody can make us ask the issuer again and again
        assert whoami(server, token(OTHER_KEY, "made-up")).status_code == 401
    assert issuer.fetched - before <= 2
    issuer.publish(second=OTHER_KEY, first=RSA_KEY, curve=EC_KEY)
    wait_until(lambda: whoami(server, token(OTHER_KEY, "second")).status_code == 200, 8, "the new key is known")
    issuer.publish(first=RSA_KEY, curve=EC_KEY)


def test_a_role_of_a_token_is_held_to_the_table_and_its_name_is_in_the_audit_log(server: Tollkeeper) -> None:
    customer = new_customer(server, 0)
    url = f"{server.url}/api/admin/accounts/{customer.account_id}/grant"
    body = {"credits": "3", "reason": "sorry"}
    viewer = {"Authorization": f"Bearer {token(realm_access={'roles': ['viewer']})}"}
    assert web.post(url, json=body, headers=viewer).status_code == 403
    finance = {"Authorization": f"Bearer {token()}", "x-request-id": "ticket-7"}
    assert web.post(url, json=body, headers=finance).status_code == 200
    (row,) = web.get(f"{server.url}/api/admin/audit", params={"subject": customer.account_id}, headers=finance).json()[
        "data"
    ]
    assert (row["actor"], row["role"], row["action"], row["reason"]) == (
        "oidc:u1 (ann@example.com)",
        "finance",
        "money.grant",
        "sorry",
    )
    assert (row["requestId"], row["ip"]) == ("ticket-7", "127.0.0.1")


def test_an_issuer_that_is_away_does_not_lock_out_whoever_it_vouched_for(server: Tollkeeper, issuer: Issuer) -> None:
    assert whoami(server, token()).status_code == 200
    issuer.status = 500
    try:
        assert whoami(server, token()).status_code == 200
        assert whoami(server, token(OTHER_KEY, "unknown")).status_code == 401
    finally:
        issuer.status = 200


# -- an issuer in trouble, seen from one process ---------------------------------------------------------------


def key_set(**keys: rsa.RSAPrivateKey) -> list[dict[str, Any]]:
    return [
        {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"} for kid, key in keys.items()
    ]


class Publisher:
    """An issuer's answers, in the order they are asked for; the last one again and again."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers, self.asked, self.hangs = answers, 0, False

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(60)
        found = self.answers[min(self.asked, len(self.answers)) - 1]
        return httpx.Response(found.status_code, content=found.content, request=request)

    def checker(self) -> TokenChecker:
        conf = AdminSettings(
            oidc_issuer=ISSUER,
            oidc_audience=AUDIENCE,
            oidc_jwks_url="https://id.example.com/jwks",
            oidc_role_claim="realm_access.roles",
        )
        return TokenChecker(conf, httpx.AsyncClient(transport=httpx.MockTransport(self)))


def published(*rows: Any) -> httpx.Response:
    return httpx.Response(200, json={"keys": list(rows)})


async def role_of(checker: TokenChecker, bearer: str) -> str:
    """The role a token acts as, or the code of the refusal."""
    try:
        return (await checker.check(bearer)).role
    except Rejection as refused:
        return refused.code


NOTHING_USABLE = {
    "an empty set": published(),
    "too large a set": published(*key_set(first=RSA_KEY), *[{"kty": "x" * 1_000}] * 300),
    "keys of another kind": published({"kty": "OKP", "crv": "X448", "x": "AA", "kid": "odd"}),
    "no set": httpx.Response(200, json=[]),
    "rows that are none": httpx.Response(200, json={"keys": ["first"]}),
    "no JSON": httpx.Response(200, content=b"<html>"),
    "an error": httpx.Response(500),
}


@pytest.mark.parametrize("answer", NOTHING_USABLE.values(), ids=NOTHING_USABLE.keys())
async def test_a_key_set_without_a_usable_key_wipes_none(
    answer: httpx.Response, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = Publisher(published(*key_set(first=RSA_KEY)), answer)
    checker = issuer.checker()
    assert await role_of(checker, token()) == "finance"
    with monkeypatch.context() as patch:
        patch.setattr("proxy.admin.identity.oidc.time.monotonic", later(400))
        assert await role_of(checker, token()) == "finance"
        assert issuer.asked == 2
    with monkeypatch.context() as patch:
        patch.setattr("proxy.admin.identity.oidc.time.monotonic", later(800))
        assert await role_of(checker, token()) == "finance"


def later(seconds: float) -> Any:
    clock = time.monotonic
    return lambda: clock() + seconds


async def test_a_key_that_nobody_can_use_leaves_the_others_good() -> None:
    odd = {"kty": "OKP", "crv": "X448", "x": "AA", "kid": "odd", "use": "sig"}
    checker = Publisher(published({"kid": "odder"}, odd, *key_set(first=RSA_KEY))).checker()
    assert await role_of(checker, token()) == "finance"
    assert await role_of(checker, token(OTHER_KEY, "odd")) == "unknown_signing_key"


@pytest.mark.parametrize("known", [True, False])
async def test_tokens_of_unknown_keys_do_not_make_us_ask_an_issuer_that_is_down(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = Publisher(published(*key_set(first=RSA_KEY)) if known else httpx.Response(500), httpx.Response(500))
    checker = issuer.checker()
    assert await role_of(checker, token()) == ("finance" if known else "issuer_unavailable")
    monkeypatch.setattr("proxy.admin.identity.oidc.time.monotonic", later(10))
    refusals = [await role_of(checker, token(OTHER_KEY, f"unknown-{number}")) for number in range(20)]
    assert set(refusals) == {"unknown_signing_key" if known else "issuer_unavailable"}
    assert issuer.asked == 2


@pytest.mark.slow
async def test_good_tokens_do_not_wait_for_an_issuer_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = Publisher(published(*key_set(first=RSA_KEY)))
    checker = issuer.checker()
    assert await role_of(checker, token()) == "finance"
    issuer.hangs = True
    monkeypatch.setattr("proxy.admin.identity.oidc.time.monotonic", later(400))
    waiting = asyncio.create_task(role_of(checker, token(OTHER_KEY, "unknown")))
    await asyncio.sleep(0)
    assert await role_of(checker, token()) == "finance"  # waits for a moment, once
    started = time.perf_counter()
    assert [await role_of(checker, token()) for _ in range(20)] == ["finance"] * 20
    assert time.perf_counter() - started < 0.5
    assert issuer.asked == 2
    waiting.cancel()


async def test_somebody_is_known_by_the_subject_and_not_by_an_address_that_changes_hands() -> None:
    checker = Publisher(published(*key_set(first=RSA_KEY))).checker()

    async def actor(**claims: Any) -> str:
        return (await checker.check(token(**claims))).actor

    assert await actor() == "oidc:u1 (ann@example.com)"
    assert await actor(email="x" * 200) == f"oidc:u1 ({'x' * 70})"
    assert await actor(email="a\nb@example.com") == "oidc:u1"
    assert await actor(email=["a"]) == "oidc:u1"
    long = await actor(sub="s" * 71)
    assert long.startswith("oidc:" + "s" * 71)
    hashed = {await actor(sub=subject) for subject in ("s" * 255, "s" * 254, "u1 (eve@example.com)", "ü\n")}
    assert len(hashed) == 4
    assert all(len(name) <= 80 and name.startswith("oidc:sha256-") for name in hashed)
