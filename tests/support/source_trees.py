"""Syntax trees of our own sources, parsed and walked once for all rules that look at them. They are read, never changed."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@cache
def _by_kind(path: Path) -> dict[type[ast.AST], list[ast.AST]]:
    """Every node by its kind, from the outside inwards as `ast.walk` gives them."""
    found: dict[type[ast.AST], list[ast.AST]] = {}
    level: list[ast.AST] = [tree_of(path)]
    for node in level:  # which grows meanwhile
        found.setdefault(type(node), []).append(node)
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                level += [inner for inner in value if isinstance(inner, ast.AST)]
            elif isinstance(value, ast.AST):
                level.append(value)
    return found


def nodes_in(path: Path, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
    """Nodes of these kinds, kind by kind."""
    for kind in kinds:
        yield from _by_kind(path).get(kind, ())
