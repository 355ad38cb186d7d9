"""The installation that `tollkeeper preflight` checks, and the rows that it makes of it."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import httpx

from billing.ledger.flag_overrides import FlagOverride
from billing.storage.database import Database
from config.secrets import Secret, StripeKeys
from config.settings import Settings
from proxy.cli.context import local_url

SHOWN = 8

State = Literal["PASS", "WARN", "FAIL"]


class Check(NamedTuple):
    """One row of the table. `fix`: what to do, in plain words; "" when there is nothing to do."""

    area: str
    name: str
    state: State
    found: str
    fix: str = ""


class Offset(NamedTuple):
    """Seconds by which another clock is ahead of ours."""

    clock: str
    seconds: float


@dataclass(slots=True)
class Site:
    """The installation: settings in force, its keys, its stores, and where it is served."""

    settings: Settings
    database: Database
    overrides: tuple[FlagOverride, ...]
    upstream_keys: Mapping[str, Secret]
    stripe: StripeKeys | None
    http: httpx.AsyncClient
    base_url: str
    backup: Path | None
    backup_hours: int
    min_free_gib: int
    migrated: bool = True
    clocks: list[Offset] = field(default_factory=list)

    @property
    def webhook_url(self) -> str:
        """URL to which Stripe must deliver."""
        return f"{self.base_url}/webhooks/stripe"


def base_url_of(settings: Settings) -> str:
    """Address of the side API: portal.public_url, else this machine's own listener."""
    if settings.portal.public_url:
        return settings.portal.public_url.rstrip("/")
    return local_url(settings, settings.listen.side_port or settings.listen.port)


def is_private(host: str) -> bool:
    """Tell an address of this machine or a private network; 0.0.0.0 and :: are every address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_private and not address.is_unspecified


def error_text(error: BaseException) -> str:
    """Text of an error, without anything secret."""
    return f"{type(error).__name__}: {error}"[:300]


def list_some(names: list[str]) -> str:
    """Write the first of these, and the number of the others."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
