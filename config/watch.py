"""proxy.toml while serving: an edit is validated whole, then its live part replaces ours; a bad edit changes nothing.

The file is read, not subscribed to: that works on every file system, and a look costs microseconds. An edit is taken when two
looks in a row found the same content, so that a file which is being written is not taken half.

Of several processes one watches the file and the others follow what it took. Each for itself, they could look at different moments:
an edit that stood for less than two looks before a broken one would be in force in some of them only, for as long as the file is broken.
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

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


class Edits(Protocol):
    """Where a process hears of edits."""

    @property
    def looked_at(self) -> float:
        """When somebody last looked at the file, in Unix seconds."""
        ...

    def look(self) -> Edit | None:
        """The edit since the last one that was taken; None when there is none. Raises OSError when that cannot be told."""
        ...


class Judge:
    """Says what a content of the file means for a process. `running` are the settings that it started with."""

    def __init__(
        self,
        path: Path,
        running: Settings,
        check: Callable[[Settings], object] = lambda _: None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """`check` raises ConfigError for what a file alone cannot know, such as keys that do not fit it."""
        self.path, self._running, self._check, self._environ = path, running, check, environ

    def __call__(self, raw: bytes) -> Edit:
        """The edit that this content is."""
        where = str(self.path)
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


class Watcher:
    """Looks at the file itself."""

    def __init__(self, judge: Judge) -> None:
        """`judge` knows the file."""
        self._judge = judge
        self._seen: bytes | None = None
        self.taken: bytes | None = None
        self.looked_at = time.time()

    def look(self) -> Edit | None:
        """The edit since the last one that was taken; None when there is none, or it has not come to rest."""
        raw, before = self._read(), self._seen
        self._seen, self.looked_at = raw, time.time()
        if raw == self.taken or raw != before:
            return None
        self.taken = raw
        return self._judge(raw)

    def _read(self) -> bytes:
        """The content; empty when it cannot be read."""
        try:
            return self._judge.path.read_bytes()
        except OSError:
            return b""


class Verdict(msgspec.Struct, frozen=True):
    """What the watching process tells the others: the last content it took (None: none yet), and what is wrong with the one there is."""

    good: str | None = None
    problem: str = ""


class Herald:
    """The watching process's side of a file of its own, which is only ever replaced whole. Its time is that of the last look."""

    def __init__(self, path: Path) -> None:
        """`path` in a folder that nobody else can read: it will hold what the configuration holds."""
        self.path, self._verdict, self._told = path, Verdict(), False

    def took(self, raw: bytes) -> None:
        """The content there is now is in force."""
        self._verdict, self._told = Verdict(raw.decode()), False

    def refused(self, problem: str) -> None:
        """The content there is now changes nothing."""
        self._verdict, self._told = Verdict(self._verdict.good, problem), False

    def tell(self) -> None:
        """After every look. Raises OSError; then the next call tries again."""
        if self._told:
            os.utime(self.path)
            return
        beside = self.path.with_suffix(".new")
        beside.write_bytes(msgspec.json.encode(self._verdict))
        beside.replace(self.path)
        self._told = True


class Follower:
    """Hears of edits from the process that watches the file."""

    def __init__(self, path: Path, judge: Judge) -> None:
        """`path` is the herald's."""
        self._path, self._judge = path, judge
        self._told: bytes | None = None
        self._good: str | None = None
        self._looked_at = time.time()

    @property
    def looked_at(self) -> float:
        """When the other process last looked, in Unix seconds; it may have stopped doing so."""
        with contextlib.suppress(OSError):
            self._looked_at = self._path.stat().st_mtime
        return self._looked_at

    def look(self) -> Edit | None:
        """What there is that we were not told yet: first what is in force, then what is wrong with the content there is."""
        raw = self._path.read_bytes()
        if raw == self._told:
            return None
        verdict = msgspec.json.decode(raw, type=Verdict)
        missed = verdict.good != self._good
        if verdict.problem and not missed:
            self._told = raw
            return Edit(None, verdict.problem)
        if not verdict.problem:
            self._told = raw
        self._good = verdict.good
        return self._judge(verdict.good.encode()) if verdict.good is not None else None


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
