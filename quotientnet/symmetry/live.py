"""Which entries of intermediate results anything depends on; the others impose nothing.

A symmetry need not keep what is computed and never read: the last layer's results at positions
whose outputs are dropped. One pass back over a graph finds it, from what operations read of their
arguments and never from numbers: what is zero here need not be zero elsewhere.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from quotientnet.symmetry.nodes import is_written, keeps_state, name_of, operands
from quotientnet.symmetry.reads import LITERAL, READS, Reading, united

__all__ = ["needed_entries"]


def needed_entries(
    graph: torch.fx.Graph, live: set[Node], constants: Mapping[Node, Tensor]
) -> dict[Node, dict[Node, Tensor]]:
    """What operations need of their arguments, where that is not all.

    Args:
        graph: The graph; all that it returns is read.
        live: Its nodes that anything depends on.
        constants: The values of its constant inputs, as far as they are known.

    Returns:
        For each operation and argument a mask of the entries that what it writes and somebody
        reads depends on; it is 1 long along axes that it does not vary along. Operations that
        only move entries impose nothing, and are left out.
    """
    known = _Constants({**constants, **dict.fromkeys(_overwritten(graph))})
    read: dict[Node, Tensor | None] = {}
    parts: dict[Node, dict[int, Tensor | None]] = {}
    found: dict[Node, dict[Node, Tensor]] = {}
    for node in reversed(graph.nodes):
        if node not in live or not node.all_input_nodes:
            continue
        if node.target is operator.getitem and isinstance(node.args[1], int):
            container, number = node.args
            parts.setdefault(container, {})[number] = read.get(node, NOTHING)
            continue
        needs = _needs(node, read, parts, known)
        for argument, mask in needs.items():
            read[argument] = united(read.get(argument, NOTHING), mask)
        partial = {a: m for a, m in needs.items() if m is not None}
        if partial and name_of(node) not in LITERAL:
            found[node] = partial
    return found


NOTHING = torch.zeros((), dtype=torch.bool)
"""The mask of what nobody reads, of any shape."""


def _needs(node: Node, read, parts, known) -> dict[Node, Tensor | None]:
    """Masks of what an operation needs of each argument; ``None`` stands for all."""
    everything = dict.fromkeys(node.all_input_nodes)
    if not isinstance(node.target, torch._ops.OpOverload) or keeps_state(node):
        return everything
    several = isinstance(node.meta.get("val"), (list, tuple))
    outputs = parts.get(node, {}) if several else {0: read.get(node, NOTHING)}
    if several and node in read:  # as a whole
        return everything
    if all(mask is not None and not mask.any() for mask in outputs.values()):
        return {argument: NOTHING for argument in everything}
    reads = READS.get(name_of(node))
    if reads is None and not several and torch.Tag.pointwise in node.target.tags:
        reads = READS["relu"]
    if reads is None or not isinstance(_shape(node), tuple):
        return everything
    found = reads(Reading(node, outputs, known))
    return everything if found is None else everything | found


def _shape(node: Node):
    """A sign that all sizes are numbers."""
    sizes = [
        n
        for value in tree_leaves(node.meta.get("val"))
        if isinstance(value, Tensor)
        for n in value.shape
    ]
    return tuple(sizes) if all(isinstance(n, int) for n in sizes) else None


def _overwritten(graph: torch.fx.Graph) -> set[Node]:
    """What operations write into, and what that may be a view of: its value is not what made it."""
    found: set[Node] = set()
    for node in graph.nodes:
        if (
            isinstance(node.target, torch._ops.OpOverload)
            and node.target._schema.is_mutable
        ):
            written = (
                given for argument, given in operands(node) if is_written(argument)
            )
            for operand in tree_leaves(list(written)):
                while isinstance(operand, Node) and operand not in found:
                    found.add(operand)
                    operand = operand.args[0] if operand.args else None
    return found


class _Constants:
    """The values of nodes that depend on nothing, computed when they are asked for."""

    def __init__(self, known: Mapping[Node, Tensor | None]):
        self._known: dict[Node, Tensor | None] = dict(known)

    def __call__(self, node: Node) -> Tensor | None:
        if node not in self._known:
            self._known[node] = self._computed(node)
        return self._known[node]

    def _computed(self, node: Node) -> Tensor | None:
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(node.graph.owning_module)
        if not isinstance(node.target, torch._ops.OpOverload) or keeps_state(node):
            return None
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            return None
        values = {argument: self(argument) for argument in node.all_input_nodes}
        if any(value is None for value in values.values()):
            return None
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.get)
        kwargs = dict(kwargs) | ({"device": "cpu"} if "device" in kwargs else {})
        result = node.target(*args, **kwargs)
        return result if isinstance(result, Tensor) else None
