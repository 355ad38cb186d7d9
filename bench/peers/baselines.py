"""Who is measured with the peers: nginx, the obvious way in Python, and Tollkeeper itself."""

import importlib.metadata
import subprocess

from bench.peers.peer import ROOT, Peer, tool
from bench.processes import nginx, pass_through, tollkeeper, tollkeeper_embedded
from tests.support.servers import free_port

METERED = "key, limits, hold, settle, usage, ledger, log and metrics"


def nginx_version() -> str:
    """Return nginx's version."""
    said = subprocess.run([tool("nginx", "nginx-light"), "-v"], capture_output=True, text=True, check=True).stderr
    return f"nginx {said.strip().partition('/')[2]}"


def python_version() -> str:
    """Return versions of what the pass-through is made of."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("starlette", "httpx", "uvicorn"))


def tollkeeper_version() -> str:
    """Return Tollkeeper's version and the commit that is checked out."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return f"Tollkeeper {importlib.metadata.version('tollkeeper')} ({commit})"


LIMIT = Peer(
    "nginx proxy_pass", "nothing", nginx_version, lambda folder, upstream: nginx(folder, free_port(), upstream)
)
OBVIOUS = Peer(
    "starlette + httpx pass-through", "nothing", python_version, lambda _, upstream: pass_through(free_port(), upstream)
)
OURS = Peer(
    "tollkeeper, Redis (everysec)",
    METERED,
    tollkeeper_version,
    lambda folder, upstream: tollkeeper(folder, upstream, "everysec"),
)
TWO_WORKERS = Peer(
    "tollkeeper, Redis (everysec), 2 workers",
    METERED,
    tollkeeper_version,
    lambda folder, upstream: tollkeeper(folder, upstream, "everysec", settings={"TOLLKEEPER_LISTEN__WORKERS": "2"}),
)
EMBEDDED = Peer(
    "tollkeeper, embedded store (SQLite)",
    f"{METERED}; jobs in the same process",
    tollkeeper_version,
    tollkeeper_embedded,
)
