"""Where the rules of operations are registered: one function an operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quotientnet.symmetry.equations import Equations
from quotientnet.symmetry.scales import LogScale

__all__ = ["Call", "RULES", "rule", "find_rule", "reason_of"]

RULES: dict[str, Callable] = {}
"""The rule of each operation, by its name, such as ``"aten::linear"``."""


@dataclass
class Call:
    """One call of an operation in the graph of a module.

    Attributes:
        equations: Where the rule imposes what the operation needs.
        shape: Of the result, or of the first of several.
        dtype: Likewise.
        outputs: Output channels that the rule declares, an index tensor along the channel axis.
        eps: What a normalisation adds to its variance, and the log-scales of its channels.
        pinned: Whether the rule pinned its inputs as such.
        unknown: Whether it did so because it does not know these arguments.
        operation: Its name, such as ``"aten::relu"``.
    """

    equations: Equations
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    outputs: LogScale | None = None
    eps: tuple[float, LogScale] | None = None
    pinned: bool = False
    unknown: bool = False
    operation: str = ""

    def scale(self, x: LogScale | Tensor | float) -> LogScale:
        """The log-scale of an argument: its own, or that of a constant."""
        return x if isinstance(x, LogScale) else self.equations.constant(x)

    def spread(self, x: LogScale) -> LogScale:
        """``x`` broadcast to the shape of the result."""
        return LogScale(x.terms, self.shape)

    def unsupported(self, *arguments) -> LogScale:
        """As :meth:`pin`, for arguments the rule does not know; the call is listed as unknown."""
        self.unknown = True
        return self.pin(*arguments)

    def pin(self, *arguments) -> LogScale:
        """Pin every tensor among the arguments; the result is pinned, too."""
        self.pinned = True
        for x in arguments:
            if isinstance(x, LogScale):
                self.equations.pin(x)
            elif isinstance(x, (list, tuple)):
                self.pin(*x)
        return self.equations.pinned(*self.shape)


def rule(*names: str) -> Callable[[Callable], Callable]:
    """Register the rule of operations, replacing the present ones.

    A rule is called as ``rule(call, *args, **kwargs)`` with the arguments of the operation.
    Tensors that depend on parameters or inputs are :class:`~quotientnet.symmetry.LogScale`,
    constants are tensors, the rest is as it is. It imposes equations on ``call.equations`` and
    returns the log-scale of the result. One rule serves all overloads of an operation and its
    in-place form.

    Args:
        names: Names of operations, such as ``"aten::relu"`` or ``"mylib::gate"``.

    Example:
        A gate ``sigmoid(a) * b`` of a library: ``a`` cannot be scaled, ``b`` can.

        >>> from quotientnet.symmetry import RULES, rule
        >>> @rule("mylib::gate")
        ... def gate(call, a, b):
        ...     return call.equations.pin(a) + b
        >>> del RULES["mylib::gate"]
    """
    for name in names or [""]:
        if not isinstance(name, str) or "::" not in name:
            raise ValueError(
                f"rule: {name!r} is not the name of an operation; it needs the form "
                "'namespace::name', such as 'aten::relu'"
            )

    def register(function: Callable) -> Callable:
        if not callable(function):
            raise TypeError(
                f"rule: the rule of {', '.join(names)} must be a function, got "
                f"{type(function).__name__}"
            )
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def find_rule(operation: torch._ops.OpOverload) -> Callable | None:
    """The rule of an operation, or that of its form which is not in-place."""
    name = operation._schema.name
    return RULES.get(name) or (
        RULES.get(name.removesuffix("_")) if operation._schema.is_mutable else None
    )


def reason_of(operation: str) -> str:
    """What the rule of an operation does, or why it pins: the first line of its docstring.

    Args:
        operation: Its name, without its namespace if that is aten.
    """
    name = operation if "::" in operation else f"aten::{operation}"
    found = RULES.get(name) or RULES.get(name.removesuffix("_"))
    return (found.__doc__ or "").strip().partition("\n")[0] if found else ""
