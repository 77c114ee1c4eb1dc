"""Small changes of a source file, each of which should make a test fail."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
"""What takes the place of an operator; a product of matrices has no counterpart."""

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
"""The boundary moved, and the opposite."""

NAMES = {
    "min": "max", "amin": "amax", "minimum": "maximum", "sin": "cos", "sinh": "cosh",
    "any": "all", "zeros": "ones", "zeros_like": "ones_like", "new_zeros": "new_ones",
    "mul": "div", "mul_": "div_", "add": "sub", "add_": "sub_",
}  # fmt: skip
SWAPS = NAMES | {other: name for name, other in NAMES.items()}
"""Functions that are exchanged for one another."""


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        path: Of the file, relative to the repository.
        line: Where the changed part starts, from 1.
        column: The same, in characters from 0.
        before: The part as it is.
        after: What takes its place.
    """

    path: str
    line: int
    column: int
    before: str
    after: str

    def __str__(self) -> str:
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.path}:{self.line}:{self.column} {before} -> {after}"

    @property
    def place(self) -> str:
        """The change and the line it is on, by their texts: it outlives changes of other lines."""
        line = Path(self.path).read_text().splitlines()[self.line - 1].strip()
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{line} | {before} -> {after}"

    def source(self) -> str:
        """The text of the file with the change.

        Raises:
            ValueError: The file no longer holds what is to be changed there.
        """
        text = Path(self.path).read_text()
        lines = text.splitlines(keepends=True)
        start = sum(map(len, lines[: self.line - 1])) + self.column
        end = start + len(self.before)
        if text[start:end] != self.before:
            raise ValueError(
                f"{self}: the file has changed since; list the mutants again"
            )
        return text[:start] + self.after + text[end:]


def mutants(path: str | Path) -> list[Mutant]:
    """All mutants of a file, in order, each once.

    Annotations, docstrings, imports, ``__all__`` and the texts of errors are left alone. A change
    that does not compile is none.
    """
    text = Path(path).read_text()
    lines = text.splitlines(keepends=True)
    found: dict[Mutant, None] = {}
    for node, changed in _changes(ast.parse(text)):
        before = ast.get_source_segment(text, node)
        column = len(lines[node.lineno - 1].encode()[: node.col_offset].decode())
        after = changed if isinstance(changed, str) else _written(changed)
        mutant = Mutant(str(path), node.lineno, column, before, after)
        if _compiles(mutant):
            found[mutant] = None
    return sorted(found, key=lambda m: (m.line, m.column, m.after))


def _written(node: ast.AST) -> str:
    """Source of a changed part; expressions in parentheses, whatever surrounds them."""
    atom = isinstance(node, (ast.Constant, ast.Attribute, ast.Name, ast.stmt))
    return ast.unparse(node) if atom else f"({ast.unparse(node)})"


def _compiles(mutant: Mutant) -> bool:
    try:
        compile(mutant.source(), mutant.path, "exec")
    except SyntaxError:
        return False
    return True


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | str]]:
    """Pairs of a part and what takes its place, of a tree."""
    yield from _own(node)
    if isinstance(node, _LEFT_ALONE) or _is_listing(node):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _changes(child)


_LEFT_ALONE = (ast.Import, ast.ImportFrom, ast.Raise, ast.JoinedStr)
"""What is not looked into: errors are left out as a whole, but their texts are not changed."""


def _is_listing(node: ast.AST) -> bool:
    """Whether a statement is ``__all__``."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets)


def _own(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | str]]:
    """The changes of one part itself."""
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in ARITHMETIC:
        yield node, _with(node, op=ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            for other in COMPARISONS[type(op)]:
                ops = [*node.ops[:place], other(), *node.ops[place + 1 :]]
                yield node, _with(node, ops=ops)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield node, _with(node, op=other())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node, node.operand
    elif isinstance(node, ast.Constant):
        yield from ((node, other) for other in _other_constants(node))
    elif isinstance(node, ast.Attribute) and node.attr in SWAPS:
        yield node, _with(node, attr=SWAPS[node.attr])
    elif isinstance(node, ast.Name) and node.id in ("min", "max", "any", "all"):
        yield node, SWAPS[node.id]
    elif isinstance(node, (ast.If, ast.While, ast.IfExp, ast.comprehension)):
        tests = node.ifs if isinstance(node, ast.comprehension) else [node.test]
        yield from (
            (test, ast.UnaryOp(ast.Not(), test)) for test in tests if not _turns(test)
        )
    if _can_be_left_out(node):
        yield node, "pass"
    if isinstance(node, (ast.Break, ast.Continue)):
        yield node, "continue" if isinstance(node, ast.Break) else "break"


def _turns(test: ast.AST) -> bool:
    """Whether a change of the condition itself is its opposite."""
    if isinstance(test, ast.Compare):
        return len(test.ops) == 1
    return isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)


def _with(node: ast.AST, **fields) -> ast.AST:
    """A copy with other fields."""
    copied = deepcopy(node)
    for name, value in fields.items():
        setattr(copied, name, value)
    return copied


def _other_constants(node: ast.Constant) -> list[ast.Constant]:
    value = node.value
    if isinstance(value, bool):
        return [ast.Constant(not value)]
    if isinstance(value, int):
        return [ast.Constant(value + 1)]
    if isinstance(value, float):
        return [ast.Constant(2 * value if value else 1.0)]
    return []


def _can_be_left_out(node: ast.AST) -> bool:
    """Whether the rest can be run without a statement."""
    if isinstance(node, ast.Assign):
        return not any(isinstance(t, (ast.Name, ast.Tuple)) for t in node.targets)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    return isinstance(node, (ast.Raise, ast.AugAssign, ast.Delete))
