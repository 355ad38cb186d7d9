"""Files that hold what customers own: nobody but the user that we run as may read them."""

import contextlib
import os
import stat
from pathlib import Path

ONLY_OURS, ONLY_OURS_FOLDER = 0o600, 0o700
OTHERS = stat.S_IRWXG | stat.S_IRWXO
BESIDE = ("-wal", "-shm", ".lock")
"""Ends of the names of files that come with a database; SQLite gives its own the database's rights."""


def make_private(path: Path) -> None:
    """Make a file that only we can read, and its folder; take from others what they may do with one of ours that is
    there. A folder that is there stays as it is. Raises OSError.
    """
    if not path.parent.exists():
        path.parent.mkdir(mode=ONLY_OURS_FOLDER, parents=True, exist_ok=True)
    if not path.exists():
        # one that is there is never opened: closing it would end the locks that SQLite holds on it in this process
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, ONLY_OURS))
    for name in (path, *(path.with_name(path.name + end) for end in BESIDE)):
        if not name.exists():
            continue
        found = name.stat()
        # a URL that names /tmp or /dev/null by mistake, and us as root, must not take those from everybody
        if stat.S_ISREG(found.st_mode) and found.st_mode & OTHERS and found.st_uid == os.geteuid():
            name.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS)
