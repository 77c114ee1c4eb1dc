"""Small constants that keep a division from dividing by zero, as a normalisation's ``eps``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from quotientnet.symmetry.nodes import by_position, in_place, name_of

__all__ = ["Guard", "guards_of", "LARGEST", "REDUCTIONS", "PASSING"]

LARGEST = 1e-3
"""A larger constant is part of the function."""

REDUCTIONS = ("mean sum var std linalg_vector_norm norm amax nansum nanmean").split()
"""What the size of a vector is made with."""

PASSING = (
    "sqrt to _to_copy type_as expand expand_as unsqueeze squeeze view reshape clone contiguous "
    "detach alias"
).split()
"""What may lie between a size, its guard and the division."""

_GUARDING = ("add", "clamp_min", "clamp", "clamp_min_")


@dataclass(frozen=True)
class Guard:
    """A constant added to a size, or the least value of it, before something is divided by it.

    Attributes:
        eps: The constant.
        clamps: Whether it is a least value.
        rooted: Whether what is divided by is a square root.
    """

    eps: float
    clamps: bool
    rooted: bool

    def change(self, size: torch.Tensor) -> float:
        """The largest relative change of what is divided when it is halved, at given sizes."""
        size = size[~(size <= 0)].double()
        if not size.numel():
            return 0.0
        factor = 4 if self.rooted else 2

        def guarded(by):
            return size.clamp(min=by) if self.clamps else size + by

        ratio = guarded(self.eps) / guarded(factor * self.eps)
        return float((1 - (ratio.sqrt() if self.rooted else ratio)).max())


def guards_of(graph: torch.fx.Graph, live: set[Node]) -> dict[Node, Guard]:
    """The operations of a graph that do nothing but guard a division by a size."""
    found = {}
    for node in graph.nodes:
        eps = _constant(node)
        if eps is not None and _is_size(node.args[0]) and not _seen_elsewhere(node):
            roots = _divided_by(node, live)
            if roots is not None:
                found[node] = Guard(eps, name_of(node) != "add", roots)
    return found


def _seen_elsewhere(node: Node) -> bool:
    """Whether others than the division may see what an operation in place makes of a size."""
    size = node.args[0]
    own = name_of(size) in REDUCTIONS and len(size.users) == 1
    return in_place(node) and not own


def _constant(node: Node) -> float | None:
    """What an operation adds, or clamps at, if it is a small number."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    args, kwargs = by_position(node)
    if name_of(node) not in _GUARDING or len(args) < 2:
        return None
    rest = [*args[2:], *kwargs.values()]
    small = isinstance(args[1], float) and 0 < args[1] <= LARGEST
    whole = isinstance(args[0], Node) and not any(v is not None for v in rest)
    return args[1] if small and whole else None


def _is_size(node: Node) -> bool:
    while isinstance(node.target, torch._ops.OpOverload):
        if name_of(node) in REDUCTIONS:
            return True
        if name_of(node) not in (*PASSING, "pow"):
            return False
        node = node.args[0]
    return False


def _divided_by(node: Node, live: set[Node]) -> bool | None:
    """Whether a root of ``node`` is what all its users divide by; ``None`` if some do not."""
    rooted = set()
    for user in node.users:
        if user not in live:
            continue
        if not isinstance(user.target, torch._ops.OpOverload):
            return None
        name = name_of(user)
        if name in ("div", "divide", "true_divide"):
            divides = user.args[0] is not node
            rooted.add(False if divides and set(user.kwargs) <= {"out"} else None)
        elif name in ("rsqrt", "reciprocal"):
            rooted.add(name == "rsqrt")
        elif name == "pow" and isinstance(user.args[1], (int, float)):
            by = user.args[1]
            rooted.add(by == -0.5 if by < 0 else _beyond(user, live, by == 0.5))
        elif name in PASSING and user.args[0] is node:
            rooted.add(_beyond(user, live, name == "sqrt"))
        else:
            rooted.add(None)
    return rooted.pop() if len(rooted) == 1 else None


def _beyond(user: Node, live: set[Node], root: bool) -> bool | None:
    further = _divided_by(user, live)
    return None if further is None else further or root
