"""proxy.toml while serving: an edit is validated whole, then its live part replaces ours; a bad edit changes nothing.

The file is read, not subscribed to: that works on every file system, and a look costs microseconds. An edit is taken
when two looks in a row found the same content, so that a file which is being written is not taken half.

Of several processes one watches the file and the others follow what it took. Each for itself, they could look at
different moments: an edit that stood for less than two looks before a broken one would be in force in some of them
only, for as long as the file is broken.
"""

import contextlib
import mmap
import os
import stat
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from config.errors import ConfigError
from config.load import parse_settings
from config.settings import LIVE_SECTIONS, Settings

LOOK_SECONDS = 0.2
MOST_BYTES = 1_048_576
"""Of the file; ours has 10,000."""
MOST_WORDS = 16_384
"""Characters of a problem."""
HEADER = struct.Struct("<QdII")
"""Head of an announcement: its number, the last look at the file (Unix seconds), its length and its checksum."""
LOOKED_AT = struct.Struct("<d")
LOOKED_AT_OFFSET = 8


class Edit(NamedTuple):
    """Outcome of an edit of the file: either new settings, or the problem with it.

    `restart`: dotted keys that differ from what this process started with and were therefore not applied.
    """

    settings: Settings | None
    problem: str
    restart: tuple[str, ...] = ()


class Edits(Protocol):
    """A process's source of edits."""

    @property
    def looked_at(self) -> float:
        """Time of the last look at the file, in Unix seconds."""
        ...

    def look(self) -> Edit | None:
        """Return the edit since the last one that was taken; None when there is none."""
        ...


class Judge:
    """Meaning of a content of the file for a process. `running` are the settings that it started with."""

    def __init__(
        self,
        path: Path,
        running: Settings,
        check: Callable[[Settings], object] = lambda _: None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Take `check`: it raises ConfigError for what a file alone cannot know, such as keys that do not fit it."""
        self.path, self._running, self._check, self._environ = path, running, check, environ

    def __call__(self, raw: bytes) -> Edit:
        """Return the edit that this content is."""
        where = str(self.path)
        if not raw.strip():
            # an empty file would be valid, and mean all the defaults: nobody wants that by accident
            return Edit(None, f"{where}: is missing, unreadable or empty. Fix: put it back")
        if len(raw) > MOST_BYTES:
            return Edit(None, f"{where}: is larger than {MOST_BYTES} bytes. Fix: undo the last edit")
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
    """A source of edits that looks at the file itself."""

    def __init__(self, judge: Judge) -> None:
        """Take `judge`, which knows the file."""
        self._judge = judge
        self._seen: bytes | None = None
        self.taken: bytes | None = None
        self.looked_at = time.time()

    def look(self) -> Edit | None:
        """Return the edit since the last one that was taken; None when there is none, or it has not come to rest."""
        raw, before = self._read(), self._seen
        self._seen, self.looked_at = raw, time.time()
        if raw == self.taken or raw != before:
            return None
        self.taken = raw
        return self._judge(raw)

    def _read(self) -> bytes:
        """Return the content, or enough of it to see that it is too large; empty when it cannot be read."""
        try:
            # a pipe of that name would keep us waiting for somebody to write
            descriptor = os.open(self._judge.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b""
        with os.fdopen(descriptor, "rb") as file, contextlib.suppress(OSError):
            return file.read(MOST_BYTES + 1) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        return b""


class Announcement(msgspec.Struct, frozen=True):
    """Word of the watching process: the last content it took (None: none yet), and the problem of the one there is."""

    good: bytes | None = None
    problem: str = ""


class Herald:
    """The watching process's side.

    Tells its children, through memory that it shares with them, so that no disk can be in the way.
    """

    def __init__(self) -> None:
        """Share memory with children that are forked later."""
        self.memory = mmap.mmap(-1, HEADER.size + MOST_BYTES + MOST_WORDS * 4 + 64)
        self._sequence, self._announcement = 0, Announcement()
        self._tell()

    def took(self, raw: bytes) -> None:
        """Tell that the content there is now is in force."""
        self._announcement = Announcement(raw)
        self._tell()

    def refused(self, problem: str) -> None:
        """Tell that the content there is now changes nothing."""
        self._announcement = Announcement(self._announcement.good, problem[:MOST_WORDS])
        self._tell()

    def looked(self) -> None:
        """Tell that there is nothing new, and that somebody looks."""
        LOOKED_AT.pack_into(self.memory, LOOKED_AT_OFFSET, time.time())

    def _tell(self) -> None:
        raw = msgspec.msgpack.encode(self._announcement)
        self._sequence += 1
        self.memory[HEADER.size : HEADER.size + len(raw)] = raw
        HEADER.pack_into(self.memory, 0, self._sequence, time.time(), len(raw), zlib.crc32(raw))


class Follower:
    """A source of edits that hears of them from the process that watches the file."""

    def __init__(self, memory: mmap.mmap, judge: Judge) -> None:
        """Take `memory`, the herald's."""
        self._memory, self._judge = memory, judge
        self._told = 0
        self._good: bytes | None = None

    @property
    def looked_at(self) -> float:
        """Time of the other process's last look, in Unix seconds; it may have stopped looking."""
        (moment,) = LOOKED_AT.unpack_from(self._memory, LOOKED_AT_OFFSET)
        return float(moment)

    def look(self) -> Edit | None:
        """Return news, one at a time: first the content in force, then the problem of the content there is."""
        sequence, _, length, checksum = HEADER.unpack_from(self._memory)
        if sequence == self._told:
            return None
        raw = self._memory[HEADER.size : HEADER.size + length]
        if zlib.crc32(raw) != checksum:
            return None  # it is being told at this moment
        announcement = msgspec.msgpack.decode(raw, type=Announcement)
        if announcement.problem and announcement.good == self._good:
            self._told = sequence
            return Edit(None, announcement.problem)
        edit = self._judge(announcement.good) if announcement.good is not None else None
        self._good = announcement.good
        if not announcement.problem:
            self._told = sequence
        return edit


def live_part(running: Settings, found: Settings) -> Settings:
    """Return `running` with everything of `found` that may change without a restart."""
    return msgspec.structs.replace(running, **{section: getattr(found, section) for section in LIVE_SECTIONS})


def changed_at_restart(running: Settings, found: Settings) -> tuple[str, ...]:
    """Return the keys that differ in `found` and that only a restart can change."""
    keys = []
    for section in running.__struct_fields__:
        ours, theirs = getattr(running, section), getattr(found, section)
        if section not in LIVE_SECTIONS:
            keys += [
                f"{section}.{name}" for name in ours.__struct_fields__ if getattr(ours, name) != getattr(theirs, name)
            ]
    return tuple(keys)
