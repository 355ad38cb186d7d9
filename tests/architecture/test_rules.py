"""Rules that keep the code what it is; each is checked on the source itself. Import directions: see pyproject's import contracts."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.servers import ROOT
from tests.support.source_trees import nodes_in, tree_of

PACKAGES = ("proxy", "billing", "config")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MONEY_CORE = (
    *(f"money/{name}" for name in ("amounts", "usage", "pricing", "postings", "holds", "revenue_recognition")),
    *(f"payments/{name}" for name in ("purchase", "claims", "stripe/signatures")),
    "balances/book",
)
FUNCTION_LINES = 70
MUTABLE = {"list", "dict", "set", "bytearray", "deque", "defaultdict", "OrderedDict", "Counter"}
# where anything may go wrong and must not stop everything else
CATCH_ALL = {
    "billing/balances/redis/epochs.py",  # a bucket must not stay closed, nor its epoch unlooked at
    "billing/ledger/flush.py",
    "billing/jobs/schedule.py",
    "billing/payments/stripe/sweeper.py",
    "proxy/server/app.py",
    "proxy/server/jobs.py",
    "proxy/server/supervisor.py",
    "proxy/gateway/upstream/connection.py",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def for_every_source(rule: Callable[[Path], None]) -> Callable[[], None]:
    """One test of a rule that is asked of each source file; it names every file that breaks it."""

    def test() -> None:
        broken = []
        for path in SOURCES:
            try:
                rule(path)
            except AssertionError as error:
                broken.append(f"{name_of(path)}: {error}")
        assert broken == []

    test.__name__, test.__doc__ = rule.__name__, rule.__doc__
    return test


def test_the_rules_look_at_the_whole_product() -> None:
    assert len(SOURCES) > 40
    assert {name_of(path) for path in SOURCES} >= {
        "proxy/gateway/exchange.py",
        "billing/money/holds.py",
        "billing/balances/book.py",
        "config/load.py",
    }


@pytest.mark.parametrize("module", MONEY_CORE)
def test_no_float_touches_money(module: str) -> None:
    path = ROOT / "billing" / f"{module}.py"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Name) and node.id == "float":
            # numbers for display leave the money core by two functions, and never come back
            assert module == "money/amounts"
            assert enclosing(path, node.lineno) in {"display_credits", "display_usd"}
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), f"{path.name}:{node.lineno}"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            assert enclosing(path, node.lineno) in {
                "display_credits",
                "display_usd",
                "package_credits",
            } or "Fraction" in ast.unparse(node), f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def enclosing(path: Path, line: int) -> str:
    """The function around a line."""
    for node in nodes_in(path, ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.lineno <= line <= (node.end_lineno or 0):
            return node.name
    return ""


@pytest.mark.parametrize("module", MONEY_CORE)
def test_the_money_core_reads_no_clock_and_does_no_io(module: str) -> None:
    forbidden = {
        "time",
        "asyncio",
        "os",
        "io",
        "socket",
        "random",
        "secrets",
        "logging",
        "sqlalchemy",
        "redis",
        "httpx",
        "threading",
    }
    imported = set()
    for node in nodes_in(ROOT / "billing" / f"{module}.py", ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported & forbidden == set()


@for_every_source
def test_there_is_no_global_and_no_mutable_module_state(path: Path) -> None:
    tree = tree_of(path)
    assert list(nodes_in(path, ast.Global)) == []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names, value = [target.id for target in node.targets if isinstance(target, ast.Name)], node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            names, value = [node.target.id], node.value
        else:
            continue
        if is_mutable(value):
            assert all(re.fullmatch("_?[A-Z][A-Z0-9_]*", name) for name in names), (
                f"{name_of(path)}:{node.lineno}: {names}"
            )
            for name in names:
                assert not mutations(path, name), f"{name_of(path)}: {name} is changed at {mutations(path, name)}"


def is_mutable(value: ast.AST) -> bool:
    if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp):
        return True
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in MUTABLE


def mutations(path: Path, name: str) -> list[int]:
    """Lines that change the object of that name."""
    changing = {
        "append",
        "add",
        "update",
        "pop",
        "clear",
        "extend",
        "setdefault",
        "insert",
        "remove",
        "discard",
        "popitem",
    }
    found = []
    for node in nodes_in(path, ast.Call, ast.Subscript, ast.AugAssign):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in changing:
            target: ast.AST = node.func.value
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            target = node.value
        elif isinstance(node, ast.AugAssign):
            target = node.target
        else:
            continue
        if isinstance(target, ast.Name) and target.id == name:
            found.append(node.lineno)
    return found


@for_every_source
def test_functions_stay_readable(path: Path) -> None:
    for node in nodes_in(path, ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        lines = (node.end_lineno or 0) - node.lineno + 1
        # a migration is one list of columns, and the command line one list of commands
        if "migrations" not in path.parts:
            assert lines <= FUNCTION_LINES, f"{name_of(path)}:{node.lineno} {node.name} has {lines} lines"


@for_every_source
def test_anything_is_caught_only_where_the_work_must_go_on(path: Path) -> None:
    for node in nodes_in(path, ast.ExceptHandler):
        assert isinstance(node, ast.ExceptHandler)
        assert node.type is not None, f"{name_of(path)}:{node.lineno}: a bare except"
        caught = {ast.unparse(part) for part in (node.type.elts if isinstance(node.type, ast.Tuple) else [node.type])}
        if "Exception" in caught:
            assert name_of(path) in CATCH_ALL, f"{name_of(path)}:{node.lineno}"
        if "BaseException" in caught and name_of(path) != "proxy/server/app.py":
            # elsewhere only to clean up on the way out, or to pick one kind of panic and raise the rest
            assert any(isinstance(inner, ast.Raise) for inner in ast.walk(node)), f"{name_of(path)}:{node.lineno}"
        assert not all(isinstance(statement, ast.Pass) for statement in node.body), (
            f"{name_of(path)}:{node.lineno}: swallowed"
        )


@for_every_source
def test_invariants_raise_and_never_assert(path: Path) -> None:
    assert not [node.lineno for node in nodes_in(path, ast.Assert) if isinstance(node, ast.Assert)]


@for_every_source
def test_no_detached_settling_and_no_unfinished_work(path: Path) -> None:
    text = path.read_text()
    if path.is_relative_to(ROOT / "proxy"):
        assert "asyncio.shield" not in text  # it settles detached
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)


def test_every_metric_name_stands_in_the_documentation() -> None:
    modules = (ROOT / "proxy" / "observability").rglob("*.py")
    names = [
        name for path in modules for name in re.findall(r'(?:Counter|Gauge|Histogram)\(\s*"(\w+)"', path.read_text())
    ]
    documented = (ROOT / "docs" / "metrics.md").read_text()
    assert len(names) > 45
    assert [name for name in names if f"| `{name}` |" not in documented] == []


def test_every_key_of_the_configuration_is_commented() -> None:
    uncommented = [
        line
        for line in (ROOT / "proxy.toml").read_text().splitlines()
        if re.match(r"\w+ = ", line) and not re.search(r"\s#\s\S", line)
    ]
    # a second package repeats keys that the first one explains
    assert [line for line in uncommented if not line.startswith(("code = ", "usd = ", "bonus_percent = "))] == []


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_no_secret_of_ours_is_in_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(rb"sk-(proj-|live_|test_)?[A-Za-z0-9]{32,}|sk_live_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9]{24,}")
    found = [name for name in listed if (ROOT / name).is_file() and pattern.search((ROOT / name).read_bytes())]
    assert found == []
