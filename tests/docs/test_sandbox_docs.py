"""docs/sandbox.md: every line of it, in its order, in one second terminal beside `make run`."""

import json
import re
from pathlib import Path

import pytest

from sandbox.stripe.account.cards import ACCOUNTS, CARDS
from tests.support import web
from tests.support.make_run import MakeRun, make_run
from tests.support.servers import ROOT, free_port

DOCUMENT = (ROOT / "docs" / "sandbox.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
REFUSED = re.compile(r'"error": ?\{')
KINDS = {"paid", "refunded", "refund_failed", "disputed", "dispute_won", "dispute_lost"}


def parts(served: MakeRun) -> list[str]:
    """What each block printed; the shell ends at the first command that fails."""
    script = "\n".join(f"echo; echo '@@ {number}'\n{block}" for number, block in enumerate(BLOCKS))
    done = served.shell(script.replace("http://127.0.0.1:8080", served.url), known=False, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.split(r"\n@@ \d+\n", done.stdout)[1:]


@pytest.mark.served
def test_every_line_does_what_the_text_says(folder: Path) -> None:
    with make_run(folder, free_port()) as served:
        printed = parts(served)
        assert len(printed) == len(BLOCKS)
        for block, text in zip(BLOCKS, printed, strict=True):
            assert text.strip(), block
            assert bool(REFUSED.search(text)) == ("429" in block), (block, text)
        record = web.get(f"{_stripe(served)}/record").json()
        assert {entry["kind"] for entry in record["records"]} == KINDS
        account = json.loads((folder / "var" / "demo.json").read_text())["accountId"]
        rows = json.loads(served.shell(f"tollkeeper stripe purchases {account} --json").stdout)["data"]
        states = [row["state"] for row in rows]
        assert states.count("credited") == sum(entry["kind"] == "paid" for entry in record["records"]), rows
        assert set(states) - {"open"} == {"credited", "failed", "expired"}
    said = "\n".join(printed)
    for words in (
        '"status":"won"',
        '"status":"lost"',
        '"status":"warning_closed"',
        '"status":"failed"',
        '"status":"expired"',
        "upstream_cut",
    ):
        assert words in said
    assert '"status":400' in said  # what our webhook says to a wrong signature
    assert "Everything agrees." in printed[-1]


def test_the_cards_of_the_table_are_those_of_the_simulator() -> None:
    numbers = [digits.replace(" ", "") for digits in re.findall(r"^\| ((?:\d{4} ){3}\d{4}) \|", DOCUMENT, re.MULTILINE)]
    accounts = re.findall(r"^\| bank account (\d+) \|", DOCUMENT, re.MULTILINE)
    assert len(numbers) > 8
    assert set(numbers) <= CARDS.keys()
    assert len(accounts) == 2
    assert set(accounts) <= ACCOUNTS.keys()


@pytest.mark.parametrize("name", re.findall(r"`(sandbox/[\w/]+\.py)`", DOCUMENT))
def test_files_it_names_exist(name: str) -> None:
    assert (ROOT / name).is_file()


def _stripe(served: MakeRun) -> str:
    return served.shell("echo $TOLLKEEPER_STRIPE__API_BASE").stdout.strip() + "/__stripe"
