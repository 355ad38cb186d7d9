"""nginx + Lua + Redis that meters as little as one can: key, one hold, usage read from the answer, one settle."""

import contextlib
import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import redis

from bench.peers.peer import INSTALL, ROOT, Absent, Peer, tool
from bench.processes import OTHERS, Subject, nginx, pin
from tests.support.servers import RedisServer, free_port

NAME = "nginx + Lua + Redis, metered"
LUA = Path(__file__).parent / "lua"
CLIENT = ROOT / ".bench" / "lua"
"""Where nginx/redis.lua, Debian's lua-nginx-redis, is unpacked: its package wants every module of nginx."""
KEY, NANO_USD = "sk-bench", 10**15
MODULES = ("ndk_http_module.so", "ngx_http_lua_module.so")


def modules() -> list[Path]:
    """Return nginx's modules that this needs."""
    said = subprocess.run([tool("nginx", "nginx-light"), "-V"], capture_output=True, text=True, check=True).stderr
    found = re.search(r"--modules-path=(\S+)", said)
    paths = [Path(found[1] if found else "/usr/lib/nginx/modules") / name for name in MODULES]
    for path in paths:
        if not path.is_file():
            raise Absent(f"nginx has no {path.name}: apt-get install libnginx-mod-http-lua lua-cjson")
    if not (CLIENT / "nginx" / "redis.lua").is_file():
        raise Absent(f"lua-nginx-redis is not in .bench/lua: {INSTALL}")
    return paths


def version() -> str:
    """Return versions of nginx, of its Lua module and of the Redis client, as Debian counts them."""
    modules()
    said = subprocess.run([tool("nginx", "nginx-light"), "-v"], capture_output=True, text=True, check=True).stderr
    asked = ["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-http-lua"]
    module = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    client = re.search(r"_VERSION = '([\d.]+)'", (CLIENT / "nginx" / "redis.lua").read_text())
    number = said.strip().partition("/")[2]
    return f"nginx {number}, lua-nginx-module {module or '?'}, lua-resty-redis {client[1] if client else '?'}"


def configuration(loaded: list[Path], redis_port: int, hold: str, settle: str) -> dict[str, str]:
    """Return what stands in nginx's configuration besides that of a pass-through; `hold`, `settle`: scripts' SHA1."""
    settings = f'redis_port = {redis_port}, hold = "{hold}", settle = "{settle}"'
    return {
        "main": "".join(f"load_module {path};\n" for path in loaded),
        "http": f"""  lua_package_path "{LUA}/?.lua;{CLIENT}/?.lua;;";
  lua_max_pending_timers 65536; lua_max_running_timers 4096;
  init_by_lua_block {{ metering = require("metering").new{{ {settings} }} }}
""",
        "location": """      access_by_lua_block { metering.hold() }
      body_filter_by_lua_block { metering.read() }
      log_by_lua_block { metering.settle() }
""",
    }


def fill(store: redis.Redis) -> tuple[str, str]:
    """Load the scripts and a rich account; return the scripts' SHA1."""
    account = f"account:{hashlib.sha256(KEY.encode()).hexdigest()}"
    store.hset(account, mapping={"balance": NANO_USD, "held": 0})
    hold, settle = (store.script_load((LUA / f"{name}.lua").read_text()) for name in ("hold", "settle"))
    return str(hold), str(settle)


@contextlib.contextmanager
def run(folder: Path, upstream: str) -> Iterator[Subject]:
    """Run one worker on its core, Redis beside."""
    loaded = modules()
    server = RedisServer(folder / "redis", "everysec")
    server.start()
    try:
        process = psutil.Process(server.process.pid)  # type: ignore[union-attr]
        pin(process, OTHERS)
        with redis.Redis.from_url(server.url) as store:
            more = configuration(loaded, server.port, *fill(store))
        with nginx(folder / "nginx", free_port(), upstream, NAME, **more) as subject:
            yield subject._replace(key=KEY, beside=[process])
    finally:
        server.kill()


PEER = Peer(NAME, "key, hold and settle in Redis, usage read; no limits, jobs, SQL, log or metrics", version, run)
