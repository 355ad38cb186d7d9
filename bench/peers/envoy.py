"""Envoy as a pass-through, one worker thread."""

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.peers.peer import Absent, Peer, program
from bench.processes import PROXY_CORE, Subject, chat_url, running
from tests.support.servers import free_port

ENVIRONMENT = ".venv-envoy"
NAME = "Envoy, pass-through"
TYPE = "type.googleapis.com/envoy.extensions.filters"


def version() -> str:
    """Return Envoy's version."""
    said = subprocess.run([program(ENVIRONMENT, "envoy"), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"/(\d+\.\d+\.\d+)/", said.stdout)
    if found is None:
        raise Absent(f"envoy does not say its version: {said.stdout.strip()}")
    return f"Envoy {found[1]}"


def config(port: int, upstream: str) -> dict[str, Any]:
    """Return a configuration that passes everything to the upstream."""
    place = urlsplit(upstream)
    route = {"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}
    manager = {
        "@type": f"{TYPE}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "HTTP1",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{TYPE}.http.router.v3.Router"}}
        ],
    }
    listener = {
        "address": _address("127.0.0.1", port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    endpoint = {"endpoint": {"address": _address(place.hostname or "", place.port or 80)}}
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


@contextlib.contextmanager
def run(folder: Path, upstream: str) -> Iterator[Subject]:
    """Run it on a core."""
    command = [
        str(program(ENVIRONMENT, "envoy")),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "error",
    ]
    folder.mkdir(parents=True)
    port = free_port()
    (folder / "envoy.json").write_text(json.dumps(config(port, upstream)))
    with running([*command, "--config-path", str(folder / "envoy.json")], port, [PROXY_CORE]) as process:
        yield Subject(NAME, chat_url(port), "x", [process])


PEER = Peer(NAME, "nothing", version, run)
