"""docs/runbook.md: its commands run, and everything that its table calls a proof exists."""

import ast
import json
import re
import shlex
import sqlite3
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from billing.payments.stripe.event_types import API_VERSION, KINDS
from proxy.cli.main import _parser
from tests.support.live import SECRET, control, start_bank, stripe_environment
from tests.support.servers import ROOT, Sandbox, Tollkeeper

DOCS = ROOT / "docs"
RUNBOOK = (DOCS / "runbook.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", RUNBOOK, re.DOTALL) for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("tollkeeper ")]
TOOLS = {"pg_dump", "pg_restore", "createdb", "sqlite3"}
"""Commands that are not ours; tests/launch/test_restore.py dumps and restores with PostgreSQL's."""
TABLES = RUNBOOK[RUNBOOK.index("## Every line, and its proof") :]
ROWS = re.findall(r"^\| (?!line \||---)(.+?[^\\]) \| (.+) \|$", TABLES, re.MULTILINE)
QUOTED = sorted({word for _, proof in ROWS for word in re.findall(r"`([^`]+)`", proof)})
LINKS = sorted(set(re.findall(r"\]\(([a-z]+\.md(?:#[^)]*)?)\)", RUNBOOK)))
STEPS = {"me", "purchase", "webhook again", "call", "stream", "reconcile", "402"}
VALUES = {"LIST": '["gpt-4o-mini"]', "CREDITS": "10", "HASH": 64 * "0", "N": "1"}


@pytest.fixture(scope="module")
def served(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    """The smallest installation: SQLite, the embedded store, Stripe's simulator."""
    home = new_folder("runbook")
    bank, process = start_bank()
    server = Tollkeeper(
        home, {**stripe_environment(bank), "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}
    ).start()
    about = {"secret": SECRET, "enabled_events": list(KINDS), "api_version": API_VERSION}
    control(bank, "endpoints", url=f"{server.url}/webhooks/stripe", **about)
    yield server
    server.kill()
    process.kill()
    process.communicate()


def test_its_commands_run_one_after_the_other(served: Tollkeeper) -> None:
    """As written, on a live server, in the order of the document; then nothing is left switched off."""
    backup = served.folder / "tonight.db"
    with sqlite3.connect(served.folder / "var" / "tollkeeper.db") as source, sqlite3.connect(backup) as target:
        source.backup(target)
    assert len(COMMANDS) > 20
    for line in COMMANDS:
        words = shlex.split(line.replace("$BACKUP", str(backup)))
        done = served.run(*words[1:])
        assert done.returncode == 0, (line, done.stdout[-2_000:], done.stderr)
        assert done.stdout.strip(), line
    flags = json.loads(served.run("flags", "list", "--json").stdout)["data"]
    assert flags
    assert [flag for flag in flags if flag["override"] is not None] == []


def test_other_tools_are_those_that_are_tested() -> None:
    assert {line.split()[0] for line in LINES if not line.startswith("tollkeeper ")} == TOOLS


@pytest.mark.parametrize("name", ["runbook.md", "alerts.md", "stripe.md", "metrics.md", "operations.md"])
def test_commands_in_the_text_are_commands(name: str) -> None:
    """With their capitals and `...` in the place of values."""
    for line in re.findall(r"`(tollkeeper [^`]+)`", (DOCS / name).read_text()):
        for one in alternatives(line):
            try:
                whole_parser().parse_args(one)
            except SystemExit:
                pytest.fail(f"{name}: {line}")


def alternatives(line: str) -> list[list[str]]:
    """A command as documents write it: `a|b` is two, [optional] is left out, capitals and ... are values; what a shell
    would write into a file is left to it.
    """
    line = re.sub(r"\s*\[[^\]\"]*\]", "", line.replace("\\|", "|"))
    words = [VALUES.get(word, word) for word in shlex.split(re.sub(r" > \S+$", "", line))[1:]]
    if words[:1] == ["grant"] and len(words) < 3:
        return []
    found = [[]]  # type: list[list[str]]
    for word in words:
        found = [[*before, choice] for before in found for choice in word.split("|")]
    return found


@cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def is_test(word: str) -> bool:
    path, _, name = word.partition("::")
    return path.startswith("tests/") and (ROOT / path).is_file() and (not name or name in names_in(path))


def is_file(word: str) -> bool:
    return "/" in word and " " not in word and (ROOT / word).is_file()


whole_parser = cache(_parser)


@cache
def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "proxy.toml").read_text())


@cache
def routes() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "proxy" / "customer_api" / "openapi.json").read_text())["paths"]
    return found


@cache
def panels() -> set[str]:
    boards = [json.loads(path.read_text()) for path in (ROOT / "deploy" / "dashboards").glob("*.json")]
    return {panel["title"] for board in boards for panel in board["panels"]}


def is_metric(word: str) -> bool:
    return f"| `{word}` |" in (DOCS / "metrics.md").read_text()


def is_setting(word: str) -> bool:
    section, _, key = word.partition(".")
    found = settings().get(section)
    return word == "[[packages]]" or (isinstance(found, dict) and key in found)


def is_command(word: str) -> bool:
    return word.startswith("tollkeeper ")  # parsed above


def is_route(word: str) -> bool:
    method, _, path = word.partition(" ")
    return method.lower() in routes().get(path, {})


def is_panel(word: str) -> bool:
    return word in panels()


def is_row(word: str) -> bool:
    """A row of preflight's table: its area and name are in the code that makes it; of several, each has a name more."""
    area, _, name = word.partition(" ")
    code = "".join(path.read_text() for path in (ROOT / "proxy" / "cli" / "preflight").glob("*.py"))
    made = f'"{name}"' in code or f'"{name} {{' in code
    return f'"{area}"' in code and (made or (area == "flags" and is_setting(f"billing.{name}")))


def is_step(word: str) -> bool:
    return word in STEPS and f'("{word}", steps.' in (ROOT / "proxy" / "cli" / "smoke" / "command.py").read_text()


KINDS_OF_PROOF: tuple[Callable[[str], bool], ...] = (
    is_test,
    is_file,
    is_metric,
    is_setting,
    is_command,
    is_route,
    is_panel,
    is_row,
    is_step,
)


def test_every_line_has_a_proof() -> None:
    assert len(ROWS) == 63
    assert [line for line, proof in ROWS if len(proof) < len("the same")] == []


@pytest.mark.parametrize("word", QUOTED)
def test_what_it_names_exists(word: str) -> None:
    assert any(kind(word) for kind in KINDS_OF_PROOF), word


@pytest.mark.parametrize("link", LINKS)
def test_its_links_lead_somewhere(link: str) -> None:
    name, _, anchor = link.partition("#")
    text = (DOCS / name).read_text()
    headings = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert not anchor or anchor in headings, headings


def test_every_alert_has_its_row() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (ROOT / "deploy" / "alerts" / "tollkeeper.yml").read_text()))
    incidents = RUNBOOK[RUNBOOK.index("## Incidents") : RUNBOOK.index("## Backups")]
    assert set(re.findall(r"^\| \[(\w+)\]\(alerts\.md#\w+\)", incidents, re.MULTILINE)) == alerts
