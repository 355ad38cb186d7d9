"""The parser: argparse with one clear line for what was mistyped, and the options that every command has."""

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any, NoReturn

from proxy.cli.parser.outputs import write
from proxy.cli.parser.sentences import ARGUMENTS, EXAMPLES
from proxy.cli.parser.table import TABLE

PROGRAM = "tollkeeper"
WRONG_CHOICE = re.compile(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)")
UNKNOWN = re.compile(r"unrecognized arguments: (.*)")


class UsageError(SystemExit):
    """A line that is no command; `message` is a line or two for people. Exit code 2."""

    def __init__(self, message: str) -> None:
        """Take the words after `tollkeeper: `."""
        super().__init__(2)
        self.message = message


class Parser(argparse.ArgumentParser):
    """argparse's parser, which says what was meant instead of how all of it is used."""

    def __init__(self, *given: Any, **more: Any) -> None:
        """Take what argparse takes."""
        super().__init__(*given, **{"formatter_class": Formatter, **more})

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{self._where()}{_in_our_words(message)}\n{self._ways_on()}")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; a command that does not know an option names the nearest of its own."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and self._subparsers is None:
            options = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            words = [word for word in unknown if word.startswith("-")]
            meant = [near for word in words if (near := _nearest(word.partition("=")[0], options))]
            hint = f"; did you mean {' '.join(meant)}?" if meant else ""
            self.error(f"it does not know {' '.join(unknown)[:200]}{hint}")
        return found, unknown

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:  # type: ignore[override]
        """Print help without swallowing that nobody reads it, as argparse does."""
        write(message, file or sys.stderr)

    def _where(self) -> str:
        words = self.prog.partition(" ")[2]
        return f"{words}: " if words else ""

    def _ways_on(self) -> str:
        example = EXAMPLES.get(self.prog.partition(" ")[2])
        return f"`{self.prog} --help` says more" + (f"; an example: {example}" if example else "")


class Formatter(argparse.HelpFormatter):
    """Help that leaves examples on their line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("example:"):
            return text
        return super()._fill_text(text, width, indent)


def make_parser(version: str, word: str | None = None) -> Parser:
    """Return the parser of every command; with `word`, one that knows the commands of that first word's module only."""
    parser, commands = _top(version)

    def add(group: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = group.add_parser(name, help=text, description=text)
        _add_common(made)
        made.set_defaults(run=run)
        example = EXAMPLES.get(made.prog.partition(" ")[2])
        made.epilog = f"example: {example}" if example else None
        return made

    names = [TABLE[word].module] if word else dict.fromkeys(first.module for first in TABLE.values())
    for name in names:
        importlib.import_module(f"proxy.cli.{name}").register(commands, add)
    _explain_arguments(parser)
    return parser


def make_first_parser(version: str) -> Parser:
    """Return the parser of `tollkeeper --help` and `--version`: no command is imported for it."""
    parser, commands = _top(version)
    for name, first in TABLE.items():
        commands.add_parser(name, help=first.text)
    return parser


def _top(version: str) -> tuple[Parser, Any]:
    """Return the parser, and where commands are added to it."""
    parser = Parser(
        prog=PROGRAM,
        description="A prepaid meter in front of the OpenAI API.",
        epilog="example: tollkeeper account create --help",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version}", help="say the version, and end")
    _add_common(parser)
    return parser, parser.add_subparsers(dest="command", required=True, metavar="COMMAND")


def take_common(words: Sequence[str]) -> tuple[list[str], bool, str | None]:
    """Take --json and --config out of what was typed, wherever they stand before a `--`.

    Return the other words, whether --json was among them, and the file that --config names.
    """
    rest, json, config, at = list[str](), False, None, 0
    while at < len(words):
        word = words[at]
        if word == "--":
            return [*rest, *words[at:]], json, config
        if word == "--json":
            json = True
        elif word == "--config" and at + 1 < len(words):
            at += 1
            config = words[at]
        elif word.startswith("--config="):
            config = word.partition("=")[2]
        else:
            rest.append(word)
        at += 1
    return rest, json, config


def unknown_word(word: str) -> UsageError:
    """Return the complaint about a first word that is no command."""
    near = _nearest(word, TABLE)
    hint = f"; did you mean {near}?" if near else ""
    return UsageError(f"there is no command {word[:60]!r}{hint}\n`{PROGRAM} --help` lists them")


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Add what `take_common` has taken already, so that the help shows it."""
    parser.add_argument("--config", metavar="FILE", help="the configuration (default: proxy.toml here, else defaults)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    """Give every argument without a sentence the one of its name."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to its arguments
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - the same
            for inner in action.choices.values():
                _explain_arguments(inner)
        elif action.help is None:
            action.help = ARGUMENTS.get(action.dest)


def _in_our_words(message: str) -> str:
    wrong, unknown = WRONG_CHOICE.fullmatch(message), UNKNOWN.fullmatch(message)
    if unknown:
        return f"it does not know {unknown[1][:200]}"
    if not wrong:
        return message
    choices = [choice.strip("'") for choice in wrong[3].split(", ")]
    near = _nearest(wrong[2], choices)
    option = f"{wrong[1]}: " if wrong[1].startswith("-") else ""
    hint = f"; did you mean {near}? " if near else ". "
    return f"{option}there is no {wrong[2][:60]!r}{hint}There are {', '.join(choices)}"


def _nearest(word: str, known: Iterable[str]) -> str | None:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None
