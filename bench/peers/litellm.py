"""LiteLLM's proxy, as its production guide says: one worker, quiet, no database.

Its virtual keys live in PostgreSQL behind Prisma, whose query engine is a binary that only Prisma's own servers have. So
there is a row with the master key, which checks no money, and one where its auth hook hands out a key with a budget and
Redis keeps what was spent: LiteLLM's own check, reservation and count of spend, without writing it down.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from bench.peers.peer import Peer, installed, program
from bench.processes import OTHERS, PROXY_CORE, Subject, chat_url, pin, running
from tests.support.servers import RedisServer, free_port

ENVIRONMENT = ".venv-litellm"
KEY = "sk-bench"
AUTH = Path(__file__).parent / "litellm_auth.py"
START_SECONDS = 180
QUIET = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_DOCS": "True",
}
PLAIN_NAME = "LiteLLM, master key, no budget"
BUDGET_NAME = "LiteLLM, budget by its auth hook, no database"


def version() -> str:
    """Return the proxy's version."""
    return f"litellm {installed(ENVIRONMENT, 'litellm')}"


def config(upstream: str, general: Mapping[str, Any]) -> dict[str, Any]:
    """Return the proxy's configuration: one model, served by the upstream."""
    served = {"model": "openai/gpt-4o-mini", "api_base": f"{upstream}/v1", "api_key": "x"}
    return {
        "model_list": [{"model_name": "gpt-4o-mini", "litellm_params": served}],
        "litellm_settings": {"request_timeout": 600, "set_verbose": False, "telemetry": False},
        "general_settings": {"master_key": "sk-master", **general},
    }


def plain(upstream: str) -> dict[str, Any]:
    """Return the configuration of a proxy that knows one key."""
    return config(upstream, {"master_key": KEY})


def with_budget(upstream: str, redis_port: int) -> dict[str, Any]:
    """Return the configuration of a proxy that checks a budget, and reserves and counts what is spent in Redis."""
    hook = {"custom_auth": f"{AUTH.stem}.check", "custom_auth_run_common_checks": True}
    return config(upstream, {**hook, "coordination_redis": {"host": "127.0.0.1", "port": redis_port}})


@contextlib.contextmanager
def run_plain(folder: Path, upstream: str) -> Iterator[Subject]:
    """Run it with the master key."""
    with _running(folder, plain(upstream)) as (url, processes):
        yield Subject(PLAIN_NAME, url, KEY, processes)


@contextlib.contextmanager
def run_with_budget(folder: Path, upstream: str) -> Iterator[Subject]:
    """Run it with a key that has a budget."""
    program(ENVIRONMENT, "litellm")
    redis = RedisServer(folder / "redis", "everysec")
    redis.start()
    try:
        store = psutil.Process(redis.process.pid)  # type: ignore[union-attr]
        pin(store, OTHERS)
        with _running(folder, with_budget(upstream, redis.port)) as (url, processes):
            yield Subject(BUDGET_NAME, url, KEY, processes, [store])
    finally:
        redis.kill()


@contextlib.contextmanager
def _running(folder: Path, configuration: Mapping[str, Any]) -> Iterator[tuple[str, list[psutil.Process]]]:
    command = str(program(ENVIRONMENT, "litellm"))
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(AUTH, folder)
    (folder / "config.yaml").write_text(json.dumps(configuration))  # JSON is YAML
    port = free_port()
    flags = ["--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with running([command, *flags], port, [PROXY_CORE], patience=START_SECONDS, **QUIET) as process:
        yield chat_url(port), [process, *process.children(recursive=True)]


WITHOUT_BUDGET = Peer(PLAIN_NAME, "key; usage is read, nothing is held or refused", version, run_plain)
WITH_BUDGET = Peer(
    BUDGET_NAME,
    "key, budget check and reservation, spend counted in Redis; nothing is written down",
    version,
    run_with_budget,
)
