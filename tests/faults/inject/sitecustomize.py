"""Kills the process with SIGKILL at a named point. Python imports this by itself when the folder is on PYTHONPATH.

TK_CRASH_AT = "module:Class.method:before|after[:n]" — at the nth call (default the first), once: TK_CRASH_MARK names a
file that is made right before the kill, and that keeps later processes of the same environment alive.
TK_CRASH_HOW = "raise" raises a RuntimeError there instead.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import os
import signal
import sys

POINT = os.environ.get("TK_CRASH_AT", "")
MARK = os.environ.get("TK_CRASH_MARK", "")


def die():
    try:
        os.close(os.open(MARK, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if os.environ.get("TK_CRASH_HOW") == "raise":
        raise RuntimeError("injected")
    os.kill(os.getpid(), signal.SIGKILL)


def wrap(function, when, count):
    calls = [0]

    def hit():
        calls[0] += 1
        if calls[0] == count:
            die()

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapped(*args, **kwargs):
            if when == "before":
                hit()
            result = await function(*args, **kwargs)
            if when == "after":
                hit()
            return result

    else:

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            if when == "before":
                hit()
            result = function(*args, **kwargs)
            if when == "after":
                hit()
            return result

    return wrapped


class Patching(importlib.abc.MetaPathFinder):
    def __init__(self, module, path, when, count):
        self.module, self.path, self.when, self.count = module, path, when, count

    def find_spec(self, name, path, target=None):
        if name != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        original = spec.loader.exec_module

        def exec_module(module):
            original(module)
            owner = module
            *outer, last = self.path.split(".")
            for part in outer:
                owner = getattr(owner, part)
            setattr(owner, last, wrap(getattr(owner, last), self.when, self.count))

        spec.loader.exec_module = exec_module
        return spec


if POINT and "serve" in " ".join(sys.orig_argv):
    module, path, when, *rest = POINT.split(":")
    sys.meta_path.insert(0, Patching(module, path, when, int(rest[0]) if rest else 1))
