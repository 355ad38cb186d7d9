"""Parts that every command works with, and types and texts of its arguments and results."""

import argparse
import contextlib
import os
import pwd
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from billing.ledger.accounts import Accounts
from billing.ledger.audit_log import Who
from billing.ledger.customers.search import AccountFilters, AccountSearch
from billing.ledger.ledger import Ledger
from billing.ledger.records.plain_text import is_plain_text
from billing.storage.database import Database, now_ms
from config.errors import ConfigError
from config.settings import Settings
from proxy.web.times import read_time

MAX_WHOLE_NUMBER = 2**31 - 1
SPAN = re.compile(r"([0-9]{1,5})([dhms])")
SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
LONGEST_REASON = 2_000
ACCOUNT_ID = "acct_"
MOST_NAMESAKES = 20


WHOLE_TABLES_SECONDS = 86_400.0
"""Bound of one statement of a migration or of the books: whoever waits for it can end it."""


class Refusal(Exception):
    """The command cannot be carried out; exit code 1."""


@dataclass(slots=True)
class Context:
    """Parts that a command works with."""

    settings: Settings
    database: Database
    ledger: Ledger
    accounts: Accounts
    arguments: argparse.Namespace
    file: Path | None = None
    """The configuration that was read; None: built-in defaults."""


Result = tuple[dict[str, Any], str, int]
"""(the JSON object, the text for people, the exit code)."""
Command = Callable[[Context], Awaitable[Result]]


class Add(Protocol):
    """Adds a command to a group, with the options that all have."""

    def __call__(self, group: Any, name: str, run: Command | None, text: str) -> argparse.ArgumentParser:
        """Return the command's parser, for its own arguments."""
        ...


@contextlib.asynccontextmanager
async def open_database(settings: Settings, statement_seconds: float | None = None) -> AsyncIterator[Database]:
    """Database of these settings, closed at the end. `statement_seconds`: for what reads or changes whole tables."""
    conf = settings.database
    database = Database(conf.url, conf.pool_size, conf.timeout_seconds, statement_seconds)
    try:
        yield database
    finally:
        await database.close()


def say_begun(database: Database, file: Path | None) -> None:
    """Say that a ledger was begun, and where: whoever is in a wrong folder sees it at once."""
    where = (
        Path(database.url.database or "").absolute()
        if database.is_sqlite
        else database.url.render_as_string(hide_password=True)
    )
    read = file.absolute() if file else f"built-in defaults: there is no proxy.toml in {Path.cwd()}"
    print(f"tollkeeper: began a new ledger at {where} (settings: {read})", file=sys.stderr)


async def find_account(search: AccountSearch, words: str) -> str:
    """Return the id that somebody means by an account's id, its name, or their own id of it.

    Raises Refusal when several have that name.
    """
    if words.startswith(ACCOUNT_ID):
        return words
    rows = await search.find(AccountFilters(words), MOST_NAMESAKES)
    found = [row for row in rows if words in (row.id, row.name, row.external_id)]
    if len(found) > 1:
        raise Refusal(
            f"{len(found)} accounts are called {words!r}: name one by its id: {', '.join(row.id for row in found)}"
        )
    return found[0].id if found else words


def who() -> Who:
    """Name who runs the command, for the audit log: whoever may run it may do everything."""
    return Who(actor(), "cli")


def actor() -> str:
    """Name of who runs the command, for rows that say who did something."""
    return f"cli:{os.environ.get('USER') or _login_name()}"[:80]


def _login_name() -> str:
    """Name of the uid, or its number if it has none: for a container or a cron job, whose environment says nothing."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def expiry(text: str | None) -> int | None:
    """Read ISO 8601, or 30d / 12h / 15m from now, as Unix milliseconds.

    Raises ConfigError, also for what is no time to come.
    """
    if text is None:
        return None
    span, now = SPAN.fullmatch(text), now_ms()
    if span is not None:
        ends = now + int(span[1]) * SECONDS[span[2]] * 1_000
    else:
        try:
            ends = read_time(text)
        except ValueError:
            fix = "write 2026-12-31T00:00:00Z, or 30d, 12h, 15m"
            raise ConfigError(
                "command line", "--expires", f"{text!r} is not a time of the years 1 to 9999", fix
            ) from None
    if ends <= now:
        raise ConfigError(
            "command line", "--expires", f"{text!r} is in the past", "write a later time, or 30d, 12h, 15m"
        )
    return ends


def local_url(settings: Settings, port: int) -> str:
    """Address at which this machine reaches its own server."""
    host = "127.0.0.1" if settings.listen.host in ("0.0.0.0", "::") else settings.listen.host  # noqa: S104 - compared, not bound
    return f"http://{host}:{port}"


def in_credits(millicredits: int) -> str:
    """Write an amount for people: 12,345.678 credits, always to the millicredit, so that columns line up."""
    sign, amount = ("-" if millicredits < 0 else ""), abs(millicredits)
    return f"{sign}{amount // 1_000:,}.{amount % 1_000:03}"


def table(columns: str, rows: Sequence[Sequence[str]]) -> str:
    """Write rows under a line of column names; `>` before a name aligns its column to the right. Empty without rows."""
    if not rows:
        return ""
    names = columns.split()
    lines = [[name.lstrip(">").replace("-", " ").upper() for name in names], *rows]
    widths = [max(len(line[number]) for line in lines) for number in range(len(names))]
    aligned = [
        "  ".join(
            cell.rjust(width) if name.startswith(">") else cell.ljust(width)
            for cell, width, name in zip(line, widths, names, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join(aligned)


def not_negative(text: str) -> int:
    """Read a whole number for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) > MAX_WHOLE_NUMBER:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 0 to {MAX_WHOLE_NUMBER}")
    return int(text)


def because(command: argparse.ArgumentParser) -> None:
    """Let a command be told why, for the audit log; it need not be."""
    check = short_text(LONGEST_REASON)
    command.add_argument(
        "--reason", default="", type=lambda text: check(text) if text else "", help="for the audit log"
    )


def short_text(longest: int) -> Callable[[str], str]:
    """Make argparse's reader of text that fits its column in every database."""

    def check(text: str) -> str:
        if not is_plain_text(text, longest):
            raise argparse.ArgumentTypeError(f"must be 1 to {longest} printable characters")
        return text

    return check
