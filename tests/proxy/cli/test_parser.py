"""The command line as it is typed: every command has an example, every argument a sentence, and mistakes their cure."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.cli import main as command_line
from proxy.cli.parser.sentences import ARGUMENTS, EXAMPLES
from proxy.cli.parser.table import TABLE
from tests.support.command import run_command
from tests.support.schema import lay_sqlite
from tests.support.servers import ROOT, Tollkeeper

COMMAND = [sys.executable, "-m", "proxy.cli"]


def walk(
    parser: argparse.ArgumentParser, before: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield " ".join(before), parser
    for group in groups:
        for name, inner in group.choices.items():
            yield from walk(inner, (*before, name))


PARSER = command_line._parser()
COMMANDS = dict(walk(PARSER))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_is_that_command(name: str) -> None:
    words = shlex.split(EXAMPLES[name])
    assert " ".join(words[1 : 1 + len(name.split())]) == name
    found = command_line._parse([word for word in words[1:] if word != "--json"])
    assert found.run is not None or name in ("serve", "demo")
    assert f"example: {EXAMPLES[name]}" in COMMANDS[name].format_help()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_has_a_sentence(name: str) -> None:
    for action in COMMANDS[name]._actions:
        assert action.help, f"{name}: {action.dest}"
        assert len(action.help.split()) > 1, f"{name}: {action.dest}: {action.help}"


def test_no_example_and_no_sentence_is_left_over() -> None:
    assert set(EXAMPLES) == set(COMMANDS)
    used = {action.dest for parser in COMMANDS.values() for action in parser._actions}
    assert set(ARGUMENTS) <= used


def test_the_first_words_are_those_that_the_modules_register_with_the_same_sentence() -> None:
    (group,) = [action for action in PARSER._actions if isinstance(action, argparse._SubParsersAction)]
    assert sorted(group.choices) == sorted(TABLE)
    assert {choice.dest: choice.help for choice in group._choices_actions} == {
        name: first.text for name, first in TABLE.items()
    }


def test_help_and_version_import_no_command() -> None:
    look = (
        "import sys; from proxy.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = [n for n in sys.modules if n.partition('.')[0] in "
        "('sqlalchemy', 'redis', 'httpx', 'starlette', 'stripe', 'msgspec', 'billing', 'config', 'asyncpg')]\n"
        "ours = [n for n in sys.modules if n.startswith('proxy.')]\n"
        "print(len(heavy), len(ours), file=sys.stderr)"
    )
    for word in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", look, word], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip()
        assert done.stderr.split() == ["0", "7"], word  # proxy.cli, its main, and the parser with its four modules


def test_a_command_imports_its_own_module_only() -> None:
    look = (
        "import sys; from proxy.cli.main import main\n"
        "try: main(['account', '--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in sys.modules if n.startswith(('proxy.cli.preflight', 'proxy.cli.smoke', 'stripe.'))], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("acount list", "there is no command 'acount'; did you mean account?"),
        ("xyzzy", "there is no command 'xyzzy'\n`tollkeeper --help` lists them"),
        ("key crate", "key: there is no 'crate'; did you mean create? There are create, list, update, rotate, revoke"),
        ("account list --limt 3", "account list: it does not know --limt 3; did you mean --limit?"),
        ("account list more", "account list: it does not know more"),
        ("admin create x --role boss", "--role: there is no 'boss'. There are viewer, support"),
        ("account create", "account create: the following arguments are required: name"),
        ("key create acct_x --rpm many", "argument --rpm: 'many' is not a whole number"),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_a_mistake_is_one_line_with_what_was_meant_and_no_wall(typed: str, said: str, tmp_path: Path) -> None:
    done = run_command(tmp_path, {}, typed.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "usage:" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    as_json = run_command(tmp_path, {}, ["--json", *typed.split()])
    assert as_json.returncode == 2
    assert said in json.loads(as_json.stdout)["error"]


def with_ledger(folder: Path) -> Tollkeeper:
    """A place where a ledger is, which is quicker than to let a command begin one."""
    lay_sqlite(folder / "var" / "tollkeeper.db")
    return Tollkeeper(folder, {})


def test_json_and_config_stand_anywhere(folder: Path) -> None:
    server = with_ledger(folder)
    server.cli("account", "create", "Acme")
    (folder / "other.toml").write_text("")
    for words in (
        ["--json", "account", "list"],
        ["account", "--json", "list"],
        ["account", "list", "--json"],
        ["--config", "other.toml", "account", "list", "--json"],
        ["account", "--config=other.toml", "list", "--json"],
    ):
        assert [row["name"] for row in json.loads(server.run(*words).stdout)["data"]] == ["Acme"], words
    assert "other.toml" in server.run("account", "--config", "none/other.toml", "list").stderr


def test_a_word_after_two_dashes_is_a_value(folder: Path) -> None:
    server = with_ledger(folder)
    assert "(--json)" in server.run("account", "create", "--", "--json").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_two_dashes_are_no_value_of_an_option(name: str) -> None:
    words = shlex.split(EXAMPLES[name])[1:]
    for action in COMMANDS[name]._actions:
        if action.option_strings and action.nargs != 0 and action.dest != "config":
            with pytest.raises(command_line.UsageError) as refused:
                command_line._parse([*words, f"{action.option_strings[-1]}=--"])
            assert "--" in refused.value.message


def test_two_dashes_in_the_place_of_a_limit_take_none_away(folder: Path) -> None:
    server = with_ledger(folder)
    made = json.loads(server.run("account", "create", "x", "--json").stdout)
    server.run("key", "update", made["keyId"], "--models", "gpt-6-luna")
    for option in ("--models=--", "--tags=--", "--spend-limit=--", "--expires=--", "--name=--"):
        assert server.run("key", "update", made["keyId"], option).returncode == 2, option
    (key,) = json.loads(server.run("key", "list", made["accountId"], "--json").stdout)["data"]
    assert key["models"] == ["gpt-6-luna"]


def test_an_account_may_be_called_by_its_name(folder: Path) -> None:
    server = with_ledger(folder)
    first = server.cli("account", "create", "Acme Ltd")["accountId"]
    assert server.cli("account", "show", "Acme Ltd")["accountId"] == first
    assert server.cli("grant", "Acme Ltd", "5", "--reason", "pilot")["accountId"] == first
    second = server.cli("account", "create", "Acme Ltd")["accountId"]
    said = server.cli("account", "show", "Acme Ltd", code=1)["error"]
    assert first in said
    assert second in said
    assert "`tollkeeper account list --search`" in server.cli("account", "show", "Acme", code=1)["error"]


def test_a_list_of_accounts_is_searched_and_bounded(folder: Path) -> None:
    server = with_ledger(folder)
    for name in ("Alpha", "Beta", "Alphabet"):
        server.cli("account", "create", name)

    def listed(*words: str) -> list[str]:
        return sorted(row["name"] for row in server.cli("account", "list", *words)["data"])

    assert listed() == ["Alpha", "Alphabet", "Beta"]
    assert listed("--search", "alpha") == ["Alpha", "Alphabet"]
    assert listed("--search", "alpha", "--limit", "1") == ["Alphabet"]
    assert len(listed("--limit", "2")) == 2
    assert listed("--limit", "0") == []


def test_every_listing_has_a_line_of_headers(folder: Path) -> None:
    server = with_ledger(folder)
    account = server.cli("account", "create", "Acme")["accountId"]
    server.cli("admin", "create", "Ada", "--role", "owner")
    server.cli("grant", account, "5", "--reason", "pilot")
    for words, head in (
        (["account", "list"], "ACCOUNT"),
        (["admin", "list"], "KEY"),
        (["flags", "list"], "FLAG"),
        (["jobs", "list"], "JOB"),
        (["key", "list", account], "KEY"),
        (["ledger", account], "TIME"),
    ):
        assert server.run(*words).stdout.split()[0] == head, words


def test_a_new_ledger_is_never_begun_in_silence(folder: Path) -> None:
    server = Tollkeeper(folder, {})
    for words in (["account", "create", "x"], ["admin", "create", "Ada", "--role", "owner"]):
        place = folder / words[0]
        place.mkdir()
        refused = run_command(place, {}, words)
        assert (refused.returncode, list(place.iterdir())) == (1, []), "a wrong folder: nothing is made"
        assert f"there is no ledger at {place}/var/tollkeeper.db" in refused.stderr
        (place / "proxy.toml").touch()
        done = run_command(place, {}, [*words, "--json"])
        assert f"began a new ledger at {place}/var/tollkeeper.db" in done.stderr
        assert f"(settings: {place}/proxy.toml)" in done.stderr
        json.loads(done.stdout)
        assert "began" not in run_command(place, {}, words).stderr
    assert server.run("account", "create", "first").stderr.startswith("tollkeeper: began a new ledger at ")


READ_BYTES = [
    "--help",
    "account list --help",
    "flags list",
    "rates show --json",
    "account list",
    "check-config",
    "nonsense",
]


@pytest.mark.served
@pytest.mark.parametrize("typed", READ_BYTES)
def test_a_reader_that_leaves_ends_the_command_quietly(typed: str, folder: Path) -> None:
    """As in `| head -0`: the pipe has no reader when the command writes; it ends as others do, by SIGPIPE."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-x"}
    for typed_before in (["migrate"], ["account", "create", "Acme"]):
        subprocess.run([*COMMAND, *typed_before], cwd=folder, env=environment, capture_output=True, check=True)
    reader, writer = os.pipe()
    os.close(reader)
    to_stderr = typed == "nonsense"
    done = subprocess.run(
        [*COMMAND, *typed.split()],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE if to_stderr else writer,
        stderr=writer if to_stderr else subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert done.returncode == -signal.SIGPIPE
    assert not (done.stderr or b"") + (done.stdout or b"")
