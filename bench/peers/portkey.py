"""Portkey's gateway, as a pass-through to one upstream that its headers name."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from bench.peers.peer import INSTALL, ROOT, Absent, Peer, tool
from bench.processes import PROXY_CORE, Subject, chat_url, running
from tests.support.servers import free_port

PACKAGE = ROOT / "bench" / "peers" / "node" / "node_modules" / "@portkey-ai" / "gateway"
NAME = "Portkey's gateway, pass-through"
START_SECONDS = 60


def version() -> str:
    """Return the gateway's version."""
    if not PACKAGE.is_dir():
        raise Absent(f"bench/peers/node has no @portkey-ai/gateway: {INSTALL}")
    return f"@portkey-ai/gateway {json.loads((PACKAGE / 'package.json').read_text())['version']}"


def headers(upstream: str) -> dict[str, str]:
    """Return what each request says of where it goes."""
    return {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{upstream}/v1"}


@contextlib.contextmanager
def run(folder: Path, upstream: str) -> Iterator[Subject]:
    """Run it on a core, without its console."""
    version()
    node = str(ROOT / ".venv" / "bin" / "node")
    if not Path(node).exists():
        node = tool("node", "nodejs")
    folder.mkdir(parents=True)
    port = free_port()
    command = [node, str(PACKAGE / "build" / "start-server.js"), f"--port={port}", "--headless"]
    with running(command, port, [PROXY_CORE], patience=START_SECONDS, NODE_ENV="production") as process:
        yield Subject(NAME, chat_url(port), "x", [process], headers=headers(upstream))


PEER = Peer(NAME, "nothing", version, run)
