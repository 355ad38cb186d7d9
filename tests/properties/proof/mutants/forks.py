"""Runs of pytest in forks of a process that has loaded every library and nothing of ours, each with one module changed."""

import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

import hypothesis
import pytest

OURS = ("billing", "proxy", "config", "sandbox", "scripts", "tests", "__main__")
LOADED = "import sys, pytest; pytest.main(['--collect-only', '-qq', '--noconftest', *sys.argv[1:]]); print('|', *sys.modules)"
PLAIN = (
    "-p no:cacheprovider -p no:randomly -p no:xdist --noconftest -W ignore::pytest.PytestAssertRewriteWarning".split()
)
CPU_SECONDS = 20
"""Of a mutant that goes round for ever, however much else this machine has to do; the tests take a few."""
ENDS = {0: "survived", 1: "killed", 2: "killed", 3: "killed", -signal.SIGXCPU: "out of time"}
"""Exit codes of pytest: a failed test, one that could not be imported or begun. Every other is a fault of this runner."""
EXAMPLES = 10
"""Examples that a property has a mutant shown: the same ones each time."""


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module, and loads other source for it."""

    def __init__(self, file: str, source: str) -> None:
        self._name, self._file, self._source = module_name(file), os.path.abspath(file), source

    def find_spec(self, fullname: str, _path: object, _target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._file, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._source, self._file, "exec"), module.__dict__)


class FewExamples:
    """Lets a property have few examples, whatever it says itself."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            test = getattr(item, "obj", None)
            if hasattr(test, "hypothesis"):
                own = test._hypothesis_internal_use_settings
                test._hypothesis_internal_use_settings = hypothesis.settings(
                    own, max_examples=EXAMPLES, derandomize=True, database=None, deadline=None
                )


def module_name(file: str) -> str:
    """Name of the module in a file."""
    return file.removesuffix(".py").replace("/", ".")


def load_libraries(tests: Sequence[str]) -> None:
    """Import what these tests import, but for what is ours."""
    command = (sys.executable, "-c", LOADED, *tests)
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in said.rpartition("|")[2].split():
        if name.partition(".")[0] not in OURS and name not in sys.modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def outcome(file: str, source: str, stages: Sequence[Sequence[str]], seconds: float) -> str:
    """Import everything anew with this source for a file, and run tests, stage by stage, until one fails."""
    return _in_fork(lambda: _anew(file, source, stages), seconds)


def quick_outcomes(file: str, sources: Sequence[str], tests: Sequence[str], seconds: float) -> list[str]:
    """Change functions where they are, in forks of a run that has collected its tests; an outcome for each source.

    What is no change of a function's code "survived", and so may what is only seen by what was made at import before:
    both are for `outcome`. Most mutants end here, in a tenth of the time.
    """
    reader, writer = os.pipe()
    if not (child := os.fork()):
        loop = _Loop(file, sources, seconds, writer)
        _end_with(lambda: _pytest(["-s", *tests], loop))
    os.close(writer)
    with os.fdopen(reader) as said:
        found: list[str] = json.load(said)
    os.waitpid(child, 0)
    return found


class _Loop:
    """Takes the place of the loop that runs the tests: one fork a source."""

    def __init__(self, file: str, sources: Sequence[str], seconds: float, writer: int) -> None:
        self._file, self._sources, self._seconds, self._writer = file, sources, seconds, writer

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        before, gone_in = functions_of(Path(self._file).read_text(), self._file), sys.modules[module_name(self._file)]
        gc.collect()
        gc.freeze()
        found = []
        for source in self._sources:
            after = functions_of(source, self._file)
            changed = [name for name, code in after.items() if name in before and shape(before[name]) != shape(code)]
            function = (
                function_named(gone_in, changed[0]) if len(changed) == 1 and after.keys() == before.keys() else None
            )
            if function is None or function.__code__.co_freevars != after[changed[0]].co_freevars:
                found.append("survived")
            else:
                found.append(_in_fork(partial(_patched, session, function, after[changed[0]]), self._seconds))
        with os.fdopen(self._writer, "w") as answer:
            json.dump(found, answer)
        return True


def functions_of(source: str, file: str) -> dict[str, CodeType]:
    """Code of every function of a module and of its classes by its name; what they make inside is part of them."""
    found = {}

    def look(code: CodeType, inside: str) -> None:
        for one in code.co_consts:
            if isinstance(one, CodeType) and one.co_name.isidentifier():
                name = inside + one.co_name
                if one.co_flags & inspect.CO_NEWLOCALS:
                    found[name] = one
                else:
                    look(one, f"{name}.")

    look(compile(source, os.path.abspath(file), "exec"), "")
    return found


def shape(code: CodeType) -> tuple[object, ...]:
    """Return what a function does, wherever it stands."""
    inner = [shape(one) if isinstance(one, CodeType) else (type(one), one) for one in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, inner


def function_named(module: ModuleType, name: str) -> FunctionType | None:
    """Return a module's function, out of its class, property or cache; None where there is no such thing."""
    found: Any = module
    for part in name.split("."):
        found = vars(found).get(part)
        if found is None:
            return None
    found = getattr(found, "fget", None) or getattr(found, "__func__", found)
    if hasattr(found, "cache_clear"):
        found.cache_clear()
    found = inspect.unwrap(found)
    return found if isinstance(found, FunctionType) else None


def _patched(session: pytest.Session, function: FunctionType, code: CodeType) -> int:
    function.__code__ = code
    for item, following in zip(session.items, [*session.items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return 1
    return 0


def _anew(file: str, source: str, stages: Sequence[Sequence[str]]) -> int:
    sys.meta_path.insert(0, Mutated(file, source))
    return next((ended for tests in stages if (ended := _pytest(["-x", *tests]))), 0)


def _pytest(arguments: Sequence[str], *plugins: object) -> int:
    return int(pytest.main([*PLAIN, *arguments], plugins=[FewExamples(), *plugins]))


def _in_fork(work: Callable[[], int], seconds: float) -> str:
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        _end_with(work)
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return ENDS[os.waitstatus_to_exitcode(status)]
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "out of time"
        time.sleep(0.003)


def _end_with(work: Callable[[], int]) -> NoReturn:
    """End this process with what the work returns; nobody hears of what its tests say."""
    status = 99
    try:
        if "TOLLKEEPER_MUTANTS_TALK" not in os.environ:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
