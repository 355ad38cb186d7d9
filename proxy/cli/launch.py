"""`tollkeeper preflight` and `tollkeeper smoke`: before going live, and right after."""

from pathlib import Path
from typing import Any

from config.errors import ConfigError
from proxy.cli.context import Add, Context, Result, not_negative
from proxy.cli.preflight.run import as_result, broken, preflight
from proxy.cli.smoke import smoke

WITHOUT_DATABASE = ("preflight",)
"""Commands that must not create a schema: they say what is there."""


def register(commands: Any, add: Add) -> None:
    """Add the commands to the parser."""
    look = add(
        commands,
        "preflight",
        _preflight,
        "May this go live? Checks everything, changes nothing; exit 1 when something fails.",
    )
    look.add_argument("--backup", type=Path, metavar="PATH", help="a backup file, or the directory that holds them")
    look.add_argument("--backup-hours", type=not_negative, default=26, help="how old the newest may be (default 26)")
    look.add_argument(
        "--min-free-gib", type=not_negative, default=1, help="free space that data paths need (default 1)"
    )
    try_ = add(
        commands, "smoke", smoke, "Me, buy, call, reconcile, 402: against a running server, with an account of its own."
    )
    try_.add_argument("--url", help="the server (default: portal.public_url, else listen.host and port)")
    try_.add_argument("--model", default="gpt-4o-mini", help="what the calls ask (default gpt-4o-mini)")
    try_.add_argument("--package", default="starter", help="what is bought (default starter)")
    try_.add_argument("--skip-purchase", action="store_true", help="grant the package's credits instead of buying them")
    try_.add_argument(
        "--wait", type=not_negative, default=300, metavar="SECONDS", help="how long to wait for a payment by hand"
    )
    try_.add_argument("--keep", action="store_true", help="leave the account open, and print its key")


async def _preflight(context: Context) -> Result:
    given = context.arguments
    checks = await preflight(
        context.settings,
        context.database,
        backup=given.backup,
        backup_hours=given.backup_hours,
        min_free_gib=given.min_free_gib,
    )
    return as_result(checks)


def broken_config(error: ConfigError) -> Result:
    """What preflight says when not even the file can be read."""
    return as_result([broken(error)])
