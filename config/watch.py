"""proxy.toml while serving: an edit is validated whole, then its live part replaces ours; a bad edit changes nothing.

The file is read, not subscribed to: that works on every file system, and a look costs microseconds. An edit is taken when two
looks in a row found the same content, so that a file which is being written is not taken half. Pure but for reading the file.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from config.load import ConfigError, parse_settings
from config.settings import LIVE_SECTIONS, RESTART_KEYS, Settings

LOOK_SECONDS = 0.2


class Edit(NamedTuple):
    """What an edit of the file came to: either new settings, or the problem with it.

    `restart`: dotted keys that differ from what this process started with and were therefore not applied.
    """

    settings: Settings | None
    problem: str
    restart: tuple[str, ...] = ()


class Watcher:
    """Looks at one file. `running` are the settings that this process started with."""

    def __init__(
        self,
        path: Path,
        running: Settings,
        check: Callable[[Settings], object] = lambda _: None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """`check` raises ConfigError for what a file alone cannot know, such as keys that do not fit it."""
        self._path, self._running, self._check, self._environ = path, running, check, environ
        self._taken: bytes | None = None
        self._seen: bytes | None = None

    def look(self) -> Edit | None:
        """The edit since the last one that was taken; None when there is none, or it has not come to rest."""
        raw, before = self._read(), self._seen
        self._seen = raw
        if raw == self._taken or raw != before:
            return None
        self._taken = raw
        return self._judge(raw)

    def _read(self) -> bytes:
        """The content; empty when it cannot be read."""
        try:
            return self._path.read_bytes()
        except OSError:
            return b""

    def _judge(self, raw: bytes) -> Edit:
        where = str(self._path)
        if not raw.strip():
            # an empty file would be valid, and mean all the defaults: nobody wants that by accident
            return Edit(None, f"{where}: is missing, unreadable or empty. Fix: put it back")
        try:
            found = parse_settings(raw, where, self._environ)
            self._check(found)
        except ConfigError as error:
            return Edit(None, str(error))
        except (RecursionError, ValueError) as error:
            # what no reader of the file foresaw is still one bad edit, not the end of following the file
            return Edit(None, f"{where}: cannot be taken ({type(error).__name__}). Fix: undo the last edit")
        return Edit(live_part(self._running, found), "", changed_at_restart(self._running, found))


def live_part(running: Settings, found: Settings) -> Settings:
    """`running`, with everything of `found` that may change without a restart."""
    merged = msgspec.structs.replace(running, **{section: getattr(found, section) for section in LIVE_SECTIONS})
    for key in RESTART_KEYS:
        section, _, name = key.partition(".")
        kept = msgspec.structs.replace(getattr(merged, section), **{name: getattr(getattr(running, section), name)})
        merged = msgspec.structs.replace(merged, **{section: kept})
    return merged


def changed_at_restart(running: Settings, found: Settings) -> tuple[str, ...]:
    """The keys of which `found` says something else, and which only a restart can change."""
    keys = []
    for section in running.__struct_fields__:
        ours, theirs = getattr(running, section), getattr(found, section)
        if ours == theirs or not isinstance(ours, msgspec.Struct):
            continue
        names = [f"{section}.{name}" for name in ours.__struct_fields__ if getattr(ours, name) != getattr(theirs, name)]
        keys += [name for name in names if section not in LIVE_SECTIONS or name in RESTART_KEYS]
    return tuple(keys)
