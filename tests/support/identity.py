"""An identity provider of the tests' own: discovery, the page that asks who it is, the token endpoint, the keys.

Its endpoints check what a real one checks (the client and its secret, the address to come back to, PKCE, a code once);
what it says of whoever signs in, a test may set, also wrongly.
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote_plus, urlencode, urlsplit

import jwt
from jwt.algorithms import RSAAlgorithm

from tests.support.rsa_keys import rsa_key

CLIENT, SECRET = "tollkeeper-admin", "s3cret/with+signs"
PERSON = {"sub": "u1", "email": "ann@example.com", "email_verified": True}


class Idp:
    """One provider on a port of its own. `claims`: of the next id tokens, over the usual ones; None leaves one out."""

    def __init__(self, callback: str = "", host: str = "127.0.0.1") -> None:
        """`host`: by what name it is known; "localhost" is another site than 127.0.0.1 for a browser."""
        self.callback, self.claims, self.signing_key = callback, dict[str, Any](), rsa_key("provider")
        self.document_changes, self.down, self.kid = dict[str, Any](), False, "first"
        self.public_client, self.described = False, 0
        self.grants: dict[str, dict[str, str]] = {}
        self.asked: list[dict[str, str]] = []
        self.exchanged: list[dict[str, str]] = []
        idp = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                idp.answer_get(self)

            def do_POST(self) -> None:
                idp.answer_post(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://{host}:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reset(self) -> None:
        """As it was at first."""
        self.claims, self.document_changes, self.down, self.public_client = {}, {}, False, False
        self.signing_key, self.kid = rsa_key("provider"), "first"

    def document(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
            **self.document_changes,
        }

    def answer_get(self, handler: BaseHTTPRequestHandler) -> None:
        path, _, query = handler.path.partition("?")
        self.described += path.startswith("/.well-known")
        if self.down:
            send(handler, 503, {})
        elif path == "/.well-known/openid-configuration":
            send(handler, 200, self.document())
        elif path == "/jwks":
            published = RSAAlgorithm.to_jwk(rsa_key("provider").public_key(), as_dict=True)
            send(handler, 200, {"keys": [{**published, "kid": "first", "use": "sig"}]})
        elif path == "/authorize":
            location = self.authorize({name: values[0] for name, values in parse_qs(query).items()})
            handler.send_response(302)
            handler.send_header("location", location)
            handler.send_header("content-length", "0")
            handler.end_headers()
        else:
            send(handler, 404, {})

    def authorize(self, asked: dict[str, str]) -> str:
        """Where the browser is sent back to: whoever asks is Ann, who is signed in already."""
        self.asked.append(asked)
        wanted = {"client_id": CLIENT, "response_type": "code", "redirect_uri": self.callback}
        assert {name: asked.get(name) for name in wanted} == wanted
        assert "openid" in asked["scope"].split()
        assert asked["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self.grants[code] = asked
        return f"{self.callback}?{urlencode({'code': code, 'state': asked['state'], 'iss': self.url})}"

    def answer_post(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"])).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        self.exchanged.append(form)
        grant = self.grants.pop(form.get("code", ""), None)
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(verifier).rstrip(b"=").decode()
        basic = base64.b64encode(f"{quote_plus(CLIENT)}:{quote_plus(SECRET)}".encode()).decode()
        known = handler.headers.get("authorization") == f"Basic {basic}" or self.public_client
        fits = (
            grant is not None and grant["code_challenge"] == challenge and grant["redirect_uri"] == form["redirect_uri"]
        )
        if self.down or not known or not fits or grant is None:
            send(handler, 503 if self.down else 400, {"error": "invalid_grant"})
            return
        send(handler, 200, {"access_token": "opaque", "token_type": "Bearer", "id_token": self.token(grant["nonce"])})

    def token(self, nonce: str) -> str:
        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT, "iat": now, "exp": now + 60, "nonce": nonce, **PERSON, **self.claims}
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, self.signing_key, algorithm="RS256", headers={"kid": self.kid})


def send(handler: BaseHTTPRequestHandler, status: int, value: Any) -> None:
    body = json.dumps(value).encode()
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
