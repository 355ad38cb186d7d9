"""The Lua scripts as the server will run them: common.lua before each body."""

from importlib.resources import files

NAMES = (
    "hold",
    "settle",
    "rehold",
    "resettle",
    "renew",
    "mark",
    "shrink",
    "reap",
    "credit",
    "load",
    "rewrite",
    "advance",
    "extend",
    "figures",
    "holds",
    "acknowledge",
    "share",
)


def load_scripts() -> dict[str, bytes]:
    """Return the source of each script, by its name."""
    folder = files("billing.balances.redis").joinpath("lua")
    common = folder.joinpath("common.lua").read_bytes()
    return {name: common + b"\n" + folder.joinpath(f"{name}.lua").read_bytes() for name in NAMES}
