"""What `tollkeeper preflight` looks at, and what it says of it."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import httpx

from billing.ledger.flag_overrides import Override
from billing.storage.database import Database
from config.secrets import Secret, StripeKeys
from config.settings import Settings

State = Literal["PASS", "WARN", "FAIL"]


class Check(NamedTuple):
    """One row of the table. `fix`: what to do, in plain words; "" when there is nothing to do."""

    area: str
    name: str
    state: State
    found: str
    fix: str = ""


class Offset(NamedTuple):
    """How many seconds another clock is ahead of ours, and how exactly that can be told."""

    clock: str
    seconds: float


@dataclass(slots=True)
class Site:
    """The installation: settings in force, its keys, its stores, and where it is served."""

    settings: Settings
    database: Database
    overrides: tuple[Override, ...]
    upstream_key: Secret
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
        """Where Stripe must deliver."""
        return f"{self.base_url}/webhooks/stripe"


def base_url_of(settings: Settings) -> str:
    """How the side API is reached: portal.public_url, else this machine's own listener."""
    if settings.portal.public_url:
        return settings.portal.public_url.rstrip("/")
    listen = settings.listen
    host = "127.0.0.1" if listen.host in ("0.0.0.0", "::") else listen.host
    return f"http://{host}:{listen.side_port or listen.port}"


def is_private(host: str) -> bool:
    """An address of this machine or a private network; 0.0.0.0 and :: are every address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_private and not address.is_unspecified


def words(error: BaseException) -> str:
    """An error without anything secret."""
    return f"{type(error).__name__}: {error}"[:300]
