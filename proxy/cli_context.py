"""What every command of the CLI works with, and what it gives back."""

import argparse
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from billing.accounts import Accounts
from billing.database import Database
from billing.ledger import Ledger
from config.settings import Settings


class Refusal(Exception):
    """The command cannot be carried out; exit code 1."""


@dataclass(slots=True)
class Context:
    """What a command works with."""

    settings: Settings
    database: Database
    ledger: Ledger
    accounts: Accounts
    arguments: argparse.Namespace


Result = tuple[dict[str, Any], str, int]
"""(the JSON object, the text for people, the exit code)."""
Command = Callable[[Context], Awaitable[Result]]


class Add(Protocol):
    """Adds a command to a group, with the options that all have."""

    def __call__(self, group: Any, name: str, run: Command | None, text: str) -> argparse.ArgumentParser:
        """The command's parser, for its own arguments."""
        ...


def actor() -> str:
    """Who runs the command, for rows that say who did something."""
    return f"cli:{os.environ.get('USER', 'unknown')}"[:80]
