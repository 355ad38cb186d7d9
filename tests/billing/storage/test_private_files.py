"""What customers own lies in files that only we can read, also those that an earlier version left open."""

import os
import stat
from pathlib import Path

import pytest

from billing.storage.private_files import make_private
from tests.support.servers import Serve


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_new_file_and_its_folder_are_ours_alone_whatever_the_umask(umask: int, folder: Path) -> None:
    before = os.umask(umask)
    try:
        make_private(folder / "var" / "a.db")
    finally:
        os.umask(before)
    assert (mode(folder / "var"), mode(folder / "var" / "a.db")) == (0o700, 0o600)


def test_a_file_that_was_open_to_others_is_closed_and_keeps_what_is_in_it(folder: Path) -> None:
    for name in ("a.db", "a.db-wal", "a.db-shm", "a.db.lock"):
        (folder / name).write_text("kept")
        (folder / name).chmod(0o644)
    make_private(folder / "a.db")
    for name in ("a.db", "a.db-wal", "a.db-shm", "a.db.lock"):
        assert (mode(folder / name), (folder / name).read_text()) == (0o600, "kept")
    assert mode(folder) == 0o755  # not our folder: it was there


@pytest.mark.parametrize("named", ["folder", "pipe"])
def test_what_is_no_file_keeps_its_rights(named: str, folder: Path) -> None:
    """A URL that names /tmp or /dev/null took those from everybody, where we run as root."""
    place = folder / named
    if named == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    place.chmod(0o777)
    make_private(place)
    assert mode(place) == 0o777


def test_nothing_under_var_is_open_to_others_while_it_serves(make_tollkeeper: Serve) -> None:
    server = make_tollkeeper().start()
    account = server.account("10")
    account.wait_balance(10_000)
    assert account.chat(max_tokens=5).status_code == 200
    files = [path for path in (server.folder / "var").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"tollkeeper.db", "tollkeeper.db-wal", "embedded.db", "embedded.db-wal"}
    assert {path.name: oct(mode(path)) for path in files if mode(path) & 0o077} == {}
