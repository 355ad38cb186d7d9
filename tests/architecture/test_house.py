"""Rules of the house: how much a folder and a file hold, what a README says, what names mean, where tests stand.

That nothing refers to a document outside the repository is in test_contributing.py.
"""

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.servers import ROOT
from tests.support.source_trees import nodes_in

PRODUCT = ("proxy", "billing", "config")
ROOMS = (*PRODUCT, "sandbox")
MEASURED = (*ROOMS, "scripts", "bench")
MOST_FILES, MOST_LINES = 14, 450
README_LINES = range(10, 26)
APART = {"__init__.py", "__main__.py"}
HISTORY = "billing/storage/migrations/versions"
"""Grows by a file a migration, and is explained one folder above."""
SAME_NAME: dict[str, str] = {}
"""Class names that may stand for two things, each with its reason."""
ASKING = ("What", "Who", "Whether", "Which", "How many", "Where")
MIRRORED = ("billing", "proxy", "config", "sandbox", "deploy", "scripts", "bench")
AXIS = (
    "architecture",
    "behaviour",
    "browser",
    "clients",
    "docs",
    "faults",
    "launch",
    "properties",
    "samples",
    "support",
)
"""Folders of tests that are of no folder of the product."""
FINDERS = re.compile(r"review(ed|er)|pitfall|odd_|again$|_core$|audit(ed|or)$|finding|bug|issue|regression|misc")


@cache
def listed() -> tuple[str, ...]:
    """Files of the repository, also those that nobody has added yet."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(name for name in done.stdout.splitlines() if (ROOT / name).is_file())


def files_in(*folders: str, end: str = ".py") -> list[str]:
    return sorted(name for name in listed() if name.partition("/")[0] in folders and name.endswith(end))


def in_room(room: str) -> list[str]:
    """Python files of a folder itself."""
    return [name for name in files_in(*ROOMS) if str(Path(name).parent) == room and Path(name).name not in APART]


def rooms() -> list[str]:
    """Folders with Python files of their own."""
    folders = {str(Path(name).parent) for name in files_in(*ROOMS) if Path(name).name not in APART}
    return sorted(folders - {HISTORY})


def definitions(kinds: tuple[type[ast.AST], ...], *folders: str) -> Iterator[tuple[str, ast.AST]]:
    return ((name, node) for name in files_in(*folders) for node in nodes_in(ROOT / name, *kinds))


def test_the_rules_look_at_the_whole_house() -> None:
    assert {"proxy/gateway", "billing/money", "config", "sandbox/openai"} <= set(rooms())
    assert len(files_in(*ROOMS)) > 150


@pytest.mark.parametrize("room", rooms())
def test_a_folder_holds_at_most_14_python_files(room: str) -> None:
    assert len(in_room(room)) <= MOST_FILES, in_room(room)


def test_a_file_holds_at_most_450_lines() -> None:
    long = [name for name in files_in(*MEASURED) if len((ROOT / name).read_text().splitlines()) > MOST_LINES]
    assert long == []


@pytest.mark.parametrize("room", rooms())
def test_a_folder_opens_with_a_readme(room: str) -> None:
    readme = ROOT / room / "README.md"
    assert readme.is_file()
    assert len(readme.read_text().splitlines()) in README_LINES


def paths_named(readme: str) -> list[str]:
    """Whatever stands between backticks or behind a link and is written as a path: with a slash, or as a file's name."""
    text = (ROOT / readme).read_text()
    words = re.findall(r"`([\w.*-][\w./*-]*)`", text) + re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    suffixes = (".py", ".md", ".toml", ".json", ".lua", ".html", ".css", ".js", ".yml", ".sql", ".xz")
    folders = {name.partition("/")[0] for name in listed() if "/" in name}
    return [
        word for word in words if word.endswith((*suffixes, "/")) or ("/" in word and word.partition("/")[0] in folders)
    ]


@pytest.mark.parametrize("readme", files_in(*ROOMS, end="README.md"))
def test_every_path_that_a_readme_names_exists(readme: str) -> None:
    around = [ROOT / folder for folder in Path(readme).parents]  # as seen from its folder, or from one above
    missing = [word for word in paths_named(readme) if not any(list(place.glob(word)) for place in around)]
    assert missing == []


def test_a_class_name_has_one_meaning() -> None:
    where = defaultdict(set)
    for name, node in definitions((ast.ClassDef,), *PRODUCT):
        assert isinstance(node, ast.ClassDef)
        where[node.name].add(f"{name}:{node.lineno}")
    twice = {name: sorted(places) for name, places in where.items() if len(places) > 1}
    assert {name: places for name, places in twice.items() if name not in SAME_NAME} == {}
    assert set(SAME_NAME) - set(twice) == set(), "no longer defined twice"


def test_no_function_notes() -> None:
    """It inserts, logs, counts, remembers, records or reports: one verb each."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        f"{name}:{node.lineno} {node.name}"
        for name, node in definitions(functions, *PRODUCT)
        if isinstance(node, functions) and re.match(r"_*note(_|$)", node.name)
    ]
    assert found == []


def test_no_docstring_begins_like_a_question() -> None:
    """It is imperative or a noun phrase."""
    begins = re.compile(rf"({'|'.join(ASKING)})\b")
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    found = [
        f"{name}:{getattr(node, 'lineno', 1)}"
        for name, node in definitions(documented, *ROOMS)
        if isinstance(node, documented) and begins.match(ast.get_docstring(node) or "")
    ]
    assert found == []


def test_no_test_file_is_named_after_its_finder() -> None:
    """A word of the field finds its test: its rule is its file's name."""
    names = [Path(name).stem for name in files_in("tests") if Path(name).name.startswith("test_")]
    assert [name for name in names if FINDERS.search(name) and name != "test_audit_log"] == []


def test_every_folder_of_tests_is_in_the_axis() -> None:
    """It mirrors a folder of the repository, or is one of those that look at the product from outside."""
    outside = []
    for folder in sorted({str(Path(name).parent) for name in files_in("tests")} - {"tests"}):
        first, *_ = inside = Path(folder).parts[1:]
        mirrored = first in MIRRORED and ROOT.joinpath(*inside).is_dir()
        if not mirrored and first not in AXIS:
            outside.append(folder)
    assert outside == []


def test_no_test_stands_outside_a_folder() -> None:
    assert [name for name in files_in("tests") if re.fullmatch(r"tests/test_\w+\.py", name)] == []


def test_no_test_file_imports_another() -> None:
    """What several need is in tests/support, or a fixture of the nearest conftest.py."""
    another = re.compile(r"\btests\.[\w.]*\btest_\w+|\btests\.test_\w+")
    suspects = [
        name for name in files_in("tests") if another.search((ROOT / name).read_text())
    ]  # to parse the rest is 1 s
    found = [
        f"{name}:{node.lineno}"
        for name in suspects
        for node in nodes_in(ROOT / name, ast.ImportFrom)
        if isinstance(node, ast.ImportFrom) and re.search(r"^tests\..*\btest_\w+$", node.module or "")
    ]
    assert found == []
