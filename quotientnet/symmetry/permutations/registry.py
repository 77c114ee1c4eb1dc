"""How operations treat axes: one function an operation, and what it may do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quotientnet.symmetry.permutations.axes import fix, fixed, new, unify

__all__ = ["AXIS_RULES", "Axes", "Steps", "axis_rule"]

AXIS_RULES: dict[str, Callable] = {}
"""What each operation does to axes, by its name, such as ``"aten::linear"``."""


class Axes(tuple):
    """The axes of a tensor."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Their lengths."""
        return tuple(axis.size for axis in self)


class Steps:
    """One call of an operation.

    Attributes:
        name: Of the operation.
        shape: Of the result, or of the first of several.
        shapes: Of all results.
        noted: Axes of tensors that do not occur as such: where an operation mixes places along
            an axis, what is left without this axis.
    """

    def __init__(self, name: str, shapes: Sequence[tuple[int, ...]]):
        self.name, self.shapes = name, shapes
        self.shape = shapes[0] if shapes else ()
        self.noted: list[Axes] = []

    def together(self, *tensors: Axes) -> Axes:
        """Tensors that are broadcast against each other and combined entry by entry."""
        dims = len(self.shape)
        result = []
        for axis in range(dims):
            own = [t[axis - dims] for t in tensors if len(t) >= dims - axis]
            own = [a for a in own if a.size == self.shape[axis]]
            for other in own[1:]:
                unify(own[0], other)
            result.append(own[0] if own else new(self.shape[axis]))
        return Axes(result)

    def mixed(self, x: Axes, dims: Sequence[int], *, ordered: bool = False) -> Axes:
        """``x`` after an operation that mixes places along ``dims``.

        Args:
            x: A tensor.
            dims: Its axes.
            ordered: Whether the order of these places matters.
        """
        dims = {d % len(x) for d in dims} if x else set()
        self.noted.append(Axes(a for d, a in enumerate(x) if d not in dims))
        if ordered:
            for d in dims:
                fix(x[d])
        return x

    def fresh(self, x: Axes) -> Axes:
        """``x`` with other axes that are fixed wherever the result has another length."""
        return Axes(
            a if a.size == n else fixed(n) for a, n in zip(x, self.shape, strict=True)
        )


def axis_rule(*names: str) -> Callable[[Callable], Callable]:
    """Register what operations do to axes.

    The rule is called as ``rule(steps, **arguments)`` with all arguments of the operation by the
    names of its schema. Tensors are :class:`Axes`. It returns the axes of the result.
    """

    def register(function: Callable) -> Callable:
        AXIS_RULES.update((n if "::" in n else f"aten::{n}", function) for n in names)
        return function

    return register
