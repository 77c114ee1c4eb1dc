"""Where the rules of operations on moves are registered: what has none may not move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quotientnet.symmetry.translations.shifts import Shift
from quotientnet.symmetry.translations.unknowns import Unknowns

__all__ = ["SHIFT_RULES", "ShiftCall", "shift_rule"]

SHIFT_RULES: dict[str, Callable] = {}
"""The rule of each operation that a move survives, by its name."""


@dataclass
class ShiftCall:
    """One call of an operation.

    Attributes:
        unknowns: Where the rule imposes what the operation needs.
        shape: Of the result, or of the first of several.
        operation: Its name, such as ``"aten::add"``.
    """

    unknowns: Unknowns
    shape: tuple[int, ...]
    operation: str

    def shift(self, x) -> Shift:
        """By how much an argument moves."""
        return self.unknowns.shift(x)

    def pin(self, *values) -> Shift:
        """Let values not move; a result that does not."""
        self.unknowns.pin(*values)
        return Shift(self.shape)

    def spread(self, x: Shift) -> Shift:
        """``x`` broadcast to the shape of the result."""
        return Shift(self.shape, x.terms)

    def uniform(self, x, axes, *, absorb: bool = False) -> Shift:
        """See :meth:`Unknowns.uniform`."""
        return self.unknowns.uniform(self.shift(x), axes, absorb=absorb)


def shift_rule(*names: str) -> Callable[[Callable], Callable]:
    """Register the rule of operations, by their names in aten."""

    def register(function: Callable) -> Callable:
        SHIFT_RULES.update({f"aten::{name}": function for name in names})
        return function

    return register
