"""Write mutants of a file as JSON: .venv-mutants/bin/python generate.py FILE...

Operators are mutmut's, and three of our own: a condition is turned round, `min` and `max` change places, what is
returned is None. Left alone is what is for people or for mypy: words of `raise`, docstrings, annotations, `Literal`,
decorators, `frozen=True`; and a string is changed in one way, not in three.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

OTHER = {"min": "max", "max": "min"}
FOR_PEOPLE_OR_MYPY = (cst.Raise, cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom)
LITERALS = m.Assign(value=m.Subscript(value=m.Name("Literal")) | m.Call(func=m.Name("NewType")))
FROZEN = m.Arg(keyword=m.Name("frozen"))
DOCSTRING = m.Expr(value=m.SimpleString())


def turned(node: cst.If | cst.While | cst.CompIf) -> Iterator[cst.CSTNode]:
    """Turn a condition round, where mutmut changes no operator of it."""
    if not m.matches(node.test, m.Comparison() | m.UnaryOperation(operator=m.Not())):
        inside = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), inside))


def other_bound(node: cst.Call) -> Iterator[cst.CSTNode]:
    """Take the smallest for the largest."""
    if isinstance(node.func, cst.Name) and node.func.value in OTHER:
        yield node.with_changes(func=cst.Name(OTHER[node.func.value]))


def nothing_returned(node: cst.Return) -> Iterator[cst.CSTNode]:
    """Return None."""
    if node.value is not None and not m.matches(node.value, m.Name("None")):
        yield node.with_changes(value=cst.Name("None"), whitespace_after_return=cst.SimpleWhitespace(" "))


def one_string(node: cst.BaseString) -> Iterable[cst.CSTNode]:
    """Change a string in the first of mutmut's ways."""
    return list(operator_string(node))[:1]


OPERATORS = (
    *((kind, one_string if operator is operator_string else operator) for kind, operator in mutation_operators),
    ((cst.If, cst.While, cst.CompIf), turned),
    (cst.Call, other_bound),
    (cst.Return, nothing_returned),
)


class Mutants(cst.CSTVisitor):
    """Finds the mutants of a module: (qualified name of the function or class, line, node, what stands in its place,
    number of the module's statement that it is in).
    """

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int, cst.CSTNode, cst.CSTNode, int]] = []
        self._inside: list[str] = []
        self._places: dict[cst.CSTNode, int] = {}
        self._place = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, FOR_PEOPLE_OR_MYPY) or m.matches(node, LITERALS | FROZEN | DOCSTRING):
            return False
        if isinstance(node, cst.Module):
            self._places = {statement: number for number, statement in enumerate(node.body)}
        self._place = self._places.get(node, self._place)
        if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
            self._inside.append(node.name.value)
        for kind, operator in OPERATORS:
            if isinstance(node, kind):
                where, others = ".".join(self._inside), list(operator(node))
                line = self.get_metadata(PositionProvider, node).start.line if others else 0
                self.found.extend((where, line, node, other, self._place) for other in others)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, (cst.FunctionDef, cst.ClassDef)):
            self._inside.pop()


def changed_lines(before: str, after: str) -> tuple[str, str]:
    """(before, after) of the lines that differ, their blanks as one."""
    old, new = before.splitlines(), after.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return " ".join(" ".join(old).split()), " ".join(" ".join(new).split())


def mutants(path: str) -> Iterator[dict[str, str | int]]:
    """Every mutant of a file that is Python, each once."""
    text = Path(path).read_text()
    wrapper = MetadataWrapper(cst.parse_module(text))
    visitor, seen = Mutants(), {text}
    wrapper.visit(visitor)
    module = wrapper.module
    parts = [module.code_for_node(statement) for statement in module.body]
    head = text[: text.index("".join(parts))]
    for where, line, node, other, place in visitor.found:
        part = module.code_for_node(module.body[place].deep_replace(node, other))  # type: ignore[arg-type]
        source = head + "".join((*parts[:place], part, *parts[place + 1 :]))
        if source in seen:
            continue
        seen.add(source)
        try:
            compile(source, path, "exec")
        except (SyntaxError, ValueError):
            continue
        before, after = changed_lines(text, source)
        yield {"file": path, "inside": where, "line": line, "before": before, "after": after, "source": source}


if __name__ == "__main__":
    json.dump([found for path in sys.argv[1:] for found in mutants(path)], sys.stdout)
