"""Lines of a TOML file: where each key stands, and what is wrong with a line that cannot be read. Pure.

The standard library's reader says neither: it keeps no positions, and gives up at its first complaint, which for a list
that is never closed is the end of the file.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any, NamedTuple

HEADER = re.compile(r"\s*\[\[?\s*([^\[\]#]+?)\s*(?:\]|#|$)")
KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
FIRST_WORD = re.compile(r"[A-Za-z0-9_-]+")
BARE_WORD = re.compile(r"=\s*([A-Za-z~/][^\s\"'#,]*)\s*(?:#.*)?$")
AT_LINE = re.compile(r" ?\(at (?:line ([0-9]+), column [0-9]+|end of document)\)")
MOST_PROBLEMS = 20
QUOTES = ('"""', "'''", '"', "'")


class TomlProblem(NamedTuple):
    """A place that cannot be read: its line, the key there (or the file), what is wrong and what to do."""

    line: int | None
    key: str
    reason: str
    fix: str


class _Beginning(NamedTuple):
    """A line outside every string: its number, its table, the key that begins in it, whether it is a header."""

    number: int
    table: str
    key: str
    header: bool
    opened: int
    """Line of the list or string that is still open at its end; 0: none."""


def key_lines(text: str) -> dict[str, int]:
    """Return the line of each table and key, dotted; of the tables of a list `packages[0]`, `packages[0].usd`."""
    found: dict[str, int] = {}
    for line in _lines(text):
        name = ".".join(part for part in (line.table, line.key) if part)
        if name:
            found.setdefault(name, line.number)
            found.setdefault(name.partition("[")[0], line.number)
    return found


def read_toml(text: str) -> tuple[dict[str, Any], list[TomlProblem]]:
    """Return the document without what cannot be read, and what that is: each problem once, in order.

    Raises ValueError or RecursionError for what the reader cannot cope with at all.
    """
    lines, problems = text.splitlines(), list[TomlProblem]()
    while True:
        try:
            return tomllib.loads("\n".join(lines)), sorted(problems, key=lambda problem: problem.line or 0)
        except tomllib.TOMLDecodeError as error:
            problem, first, last = _locate(lines, str(error))
            problems.append(problem)
            if not first or len(problems) == MOST_PROBLEMS:
                return {}, problems
            lines[first - 1 : last] = [""] * (last - first + 1)  # and see what else there is


def _locate(lines: list[str], complaint: str) -> tuple[TomlProblem, int, int]:
    """Return the problem, and the first and last line to leave out in order to go on (0: nothing can go on)."""
    at = AT_LINE.search(complaint)
    reason = f"is not valid TOML: {AT_LINE.sub('', complaint)}"
    number = int(at[1]) if at and at[1] else len(lines)
    seen = list(_lines("\n".join(lines)))
    unclosed = next(
        (line for line in seen if line.opened and line.number <= number and _never_closed(line, seen)), None
    )
    if unclosed is not None:
        end = next((line.number for line in seen if line.number > unclosed.number), len(lines) + 1)
        name = ".".join(part for part in (unclosed.table, unclosed.key) if part) or "(file)"
        what = "the list or text that begins here is never closed"
        fix = "close it with the ], }, or quotes that it began with"
        return TomlProblem(unclosed.number, name, f"is not valid TOML: {what}", fix), unclosed.number, end - 1
    text = lines[number - 1] if 0 < number <= len(lines) else ""
    here = next((line for line in reversed(seen) if line.number <= number), None)
    if here is None or not text.strip():
        return TomlProblem(None, "(file)", reason, "correct the end of the file"), 0, 0
    if here.header:
        end = next((line.number for line in seen if line.header and line.number > here.number), len(lines) + 1)
        return (
            TomlProblem(here.number, here.table or "(file)", reason, _header_fix(text, complaint)),
            here.number,
            end - 1,
        )
    word = here.key or getattr(FIRST_WORD.search(text), "group", str)() or "(file)"
    name = ".".join(part for part in (here.table, word) if part)
    return TomlProblem(number, name, reason, _line_fix(word, text)), min(here.number, number), number


def _never_closed(line: _Beginning, seen: list[_Beginning]) -> bool:
    """Tell whether what is open at the end of this line swallowed the next one that begins a key or a table."""
    following = next((other for other in seen if other.number > line.number), None)
    return following is None or following.opened < 0


def _header_fix(text: str, complaint: str) -> str:
    if "Cannot declare" in complaint:
        return "a table stands once: move these keys under the first of that name"
    name = text.strip().strip("[]").partition("#")[0].strip()
    return f"write it as [{name}]"


def _line_fix(key: str, text: str) -> str:
    word = BARE_WORD.search(text)
    if word and word[1].lower() in ("true", "false"):
        return f"write {key} = {word[1].lower()}"
    if word:
        return f'put text in quotes: {key} = "..."'
    if "=" not in text:
        return f"write it as {key} = value"
    if not text.partition("=")[2].partition("#")[0].strip():
        return "give it a value, or remove the line"
    if re.search(r"=\s*[0-9][0-9_.]*[^0-9_.\s#]", text):
        return "a number stands alone, without unit or comma; text stands in quotes"
    if text.count('"') % 2 or text.count("'") % 2:
        return "close the quotes"
    return "correct that line, or remove it"


def _lines(text: str) -> Iterator[_Beginning]:
    """Walk over the lines that begin a table or a key.

    A line inside a list that looks like a key or a table ends the list there: lists of ours hold texts and numbers, so
    somebody forgot to close it. Its `opened` is then below 0.
    """
    table, lists, depth, quote, began = "", dict[str, int](), 0, "", 0
    for number, line in enumerate(text.splitlines(), 1):
        swallowed = bool(depth and not quote and (KEY.match(line) or re.match(r"\s*\[\[?[a-z_]+\]\]?\s*(#.*)?$", line)))
        if swallowed:
            depth = 0
        inside = bool(depth or quote)
        header = None if inside else HEADER.match(line)
        key = None if inside or header else KEY.match(line)
        code, quote = _without_strings(line, quote)
        if header:
            table = header[1].strip()
            if line.lstrip().startswith("[["):
                lists[table] = lists.get(table, -1) + 1
                table = f"{table}[{lists[table]}]"
        else:
            depth = max(0, depth + sum(code.count(sign) for sign in "[{") - sum(code.count(sign) for sign in "]}"))
        if inside:
            continue
        began = number
        if header or key or line.partition("#")[0].strip():
            opened = began if depth or quote else 0
            yield _Beginning(number, table, _plain(key[1]) if key else "", bool(header), -1 if swallowed else opened)


def _plain(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))


def _without_strings(line: str, quote: str) -> tuple[str, str]:
    """Return the line without strings and comment, and the quote that is still open at its end ("": none).

    `quote` is the one that was open at its beginning. Only the long quotes go over the end of a line.
    """
    code, at = [], 0
    while at < len(line):
        if quote:
            if quote[0] == '"' and line[at] == "\\":
                at += 2
            elif line.startswith(quote, at):
                at, quote = at + len(quote), ""
            else:
                at += 1
        elif line[at] == "#":
            break
        elif opened := next((mark for mark in QUOTES if line.startswith(mark, at)), ""):
            at, quote = at + len(opened), opened
        else:
            code.append(line[at])
            at += 1
    return "".join(code), quote if len(quote) == 3 else ""
