"""Heads of the audit log outside of its database: kept by the hour, and compared."""

import re
import stat
from pathlib import Path

import pytest

from billing.ledger.audit_log import ChainHead, keep_head, read_heads
from tests.support.servers import Serve, wait_until

FIRST, SECOND = ChainHead(1, "a" * 64), ChainHead(2, "b" * 64)


def test_a_file_of_heads_grows_by_what_is_new_and_is_ours_alone(folder: Path) -> None:
    path = folder / "heads"
    for head in (FIRST, FIRST, SECOND, SECOND):
        keep_head(path, head)
    assert read_heads(path) == [FIRST.hash, SECOND.hash]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("line", ["", "1", "x " + "a" * 64, "1 " + "a" * 63, "1 " + "A" * 64, "1  " + "a" * 64, "ü"])
def test_a_file_that_holds_anything_else_is_no_file_of_heads(line: str, folder: Path) -> None:
    path = folder / "heads"
    path.write_text(f"1 {'a' * 64}\n{line}\n")
    with pytest.raises(ValueError, match=r"line 2|ascii"):
        read_heads(path)


def test_reconciliation_logs_the_head_keeps_it_and_finds_what_does_not_have_it(make_tollkeeper: Serve) -> None:
    server = make_tollkeeper(TOLLKEEPER_JOBS__AUDIT_HEAD_FILE="heads").start()
    # first: once a command has run the job, the service's own run is not due
    wait_until(lambda: re.search(r"the audit log's head is \d+ [0-9a-f]{64}", server.log()), 10, "the head is logged")
    server.cli("flags", "set", "auto_recharge", "true", "--reason", "a trial")
    server.cli("jobs", "run", "reconcile")
    head = server.cli("audit", "head")
    heads = server.folder / "heads"
    assert heads.read_text() == f"1 {head['head']}\n"
    server.cli("flags", "set", "auto_recharge", "false", "--reason", "a trial")
    server.cli("jobs", "run", "reconcile")
    assert len(heads.read_text().splitlines()) == 2
    heads.write_text(heads.read_text() + f"3 {'c' * 64}\n")
    found = server.run("jobs", "run", "reconcile")
    assert (found.returncode, "cut off or written anew" in found.stdout) == (1, True)
    assert len(heads.read_text().splitlines()) == 3  # of a chain that may be a forged one no head is kept
