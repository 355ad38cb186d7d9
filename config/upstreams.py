"""The upstreams that settings name: `[upstream]` alone, or each `[[upstreams]]`. Pure.

What is wrong with them is said all at once: an operator who adds three meets every mistake in one complaint.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from urllib.parse import urlsplit

from config.errors import ConfigError
from config.settings import Settings, Upstream, UpstreamEntry

DEFAULT_NAME = "openai"
"""Name of the only upstream of `[upstream]`, and of what was made or owed before there were several: where none has it,
that is nowhere, and no other is asked for it."""
DEFAULT_VARIABLE = "OPENAI_API_KEY"
RESERVED = ("tax",)
"""Names that the ledger owes something else under."""
CHARACTERS = re.compile(r"[!-~]+")


def entries_of(settings: Settings) -> tuple[UpstreamEntry, ...]:
    """Return the upstreams, the one of `[upstream]` as an entry like the others."""
    if settings.upstreams:
        return settings.upstreams
    only = settings.upstream
    return (
        UpstreamEntry(
            name=DEFAULT_NAME,
            base_url=only.base_url,
            api_key_file=only.api_key_file,
            api_key_variable=DEFAULT_VARIABLE,
        ),
    )


def default_of(entries: tuple[UpstreamEntry, ...]) -> UpstreamEntry:
    """Return the upstream whose prices customers are shown: `openai`, else the first."""
    return next((entry for entry in entries if entry.name == DEFAULT_NAME), entries[0])


def recorded_name(name: str) -> str:
    """Return the name that records have: the default upstream stands in none."""
    return "" if name == DEFAULT_NAME else name


def takes_tier(entry: UpstreamEntry) -> bool:
    """Tell whether it takes `service_tier`, and says which one it used."""
    return entry.dialect == "openai" if entry.service_tier is None else entry.service_tier


def takes_usage_option(entry: UpstreamEntry) -> bool:
    """Tell whether it takes `stream_options.include_usage`."""
    return True if entry.include_usage is None else entry.include_usage


def keeps_objects(entry: UpstreamEntry) -> bool:
    """Tell whether it stores responses, conversations and files, and gives them back."""
    return entry.dialect == "openai" if entry.store is None else entry.store


def is_plain_url(url: str) -> bool:
    """Tell whether a URL is http(s) and no more than a place: no query, no user, nothing that breaks a line."""
    if not CHARACTERS.fullmatch(url):
        return False
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    plain = not (parts.query or parts.fragment or parts.username)
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname)


def find_upstream_problems(settings: Settings, where: str) -> Iterator[ConfigError]:
    """Yield why `[[upstreams]]` could not serve, or not be told apart; every reason in one."""
    problems = list(_problems(settings))
    if problems:
        yield ConfigError(where, "upstreams", "; ".join(problems), "correct these entries, or remove them")


def find_two_ways(settings: Settings, where: str) -> Iterator[ConfigError]:
    """Yield the keys of a file that names its upstreams in both ways: which one would be asked."""
    for key in ("base_url", "api_key_file") if settings.upstreams else ():
        if getattr(settings.upstream, key) != getattr(Upstream(), key):
            fix = "write it in an entry of [[upstreams]], and not here"
            yield ConfigError(where, f"upstream.{key}", "is set beside [[upstreams]]", fix)


def _problems(settings: Settings) -> Iterator[str]:
    entries = settings.upstreams
    if not entries:
        return
    names = [entry.name for entry in entries]
    yield from (f"two are named {name!r}" for name in sorted({name for name in names if names.count(name) > 1}))
    if all(entry.draining for entry in entries):
        yield "every one is draining, so nobody would serve"
    for entry in entries:
        yield from (f"{entry.name}: {problem}" for problem in _problems_of(entry))


def _problems_of(entry: UpstreamEntry) -> Iterator[str]:
    if entry.name in RESERVED:
        yield "the ledger has an account of that name already, choose another"
    if not is_plain_url(entry.base_url):
        yield 'base_url is not a plain http(s) URL such as "https://eu.api.openai.com/v1"'
    if entry.api_key_file and entry.api_key_variable:
        yield "has both api_key_file and api_key_variable, name one"
    if not entry.api_key_file and not entry.api_key_variable and entry.dialect != "generic":
        yield "has no key, name api_key_file or api_key_variable"
    if not Decimal(entry.price_adjustment):
        yield "price_adjustment would make it cost nothing"
    if entry.dialect != "openai" and not entry.rate_card:
        yield f"needs a rate_card of its own, since OpenAI's prices are not those of dialect {entry.dialect!r}"
    if entry.deployments and entry.dialect == "openai":
        yield "has deployments, which OpenAI does not know"
    bad = [name for pair in entry.deployments.items() for name in pair if not CHARACTERS.fullmatch(name)]
    if bad:
        yield f"deployments: {bad[0]!r} is no name of a model"
