"""Tensors that share memory: what is written to one of them is read from the others."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from quotientnet.symmetry.choices import Choice
from quotientnet.symmetry.equations import Equations
from quotientnet.symmetry.nodes import in_place, shape_of
from quotientnet.symmetry.scales import LogScale

__all__ = ["Views", "opaque", "chooses", "as_scale"]


class Views:
    """Which nodes of a graph are views of others, and how each is made from its base.

    Args:
        equations: Where writing imposes what it needs.
        values: The log-scale of each node, kept up to date.
    """

    def __init__(self, equations: Equations, values: Mapping[Node, object]):
        self.equations, self.values = equations, values
        self._base: dict[Node, Node] = {}
        self._replay: dict[Node, Callable] = {}
        self._uncertain: set[Node] = set()

    def same(self, node: Node, other) -> None:
        """``node`` is the same tensor as ``other``."""
        if isinstance(other, Node):
            self._base[node], self._replay[node] = other, lambda value: value

    def item(self, node: Node, container: Node, index: int) -> None:
        """``node`` is one of several tensors, which may be views of one."""
        if container in self._base:
            self._base[node] = container
            self._replay[node] = operator.itemgetter(index)

    def note(self, node: Node, base: Node, replay: Callable | None) -> None:
        """``node`` is a view of ``base``, made by ``replay``; None if it is not known how."""
        self._base[node] = base
        if replay is None:
            self._replay[node] = lambda value: opaque(self.equations, node)
            self._uncertain.add(self._root(base))
        else:
            self._replay[node] = replay

    def _root(self, node: Node) -> Node:
        while node in self._base:
            node = self._base[node]
        return node

    def write(self, target: Node, result) -> None:
        """``target`` now holds ``result``: so do the tensor it is a view of and all its views."""
        eq, root = self.equations, self._root(target)
        family = [node for node in self._base if self._root(node) is root]
        chain, node = [], target
        while node is not root:
            chain.insert(0, node)
            node = self._base[node]
        if root.op == "placeholder" and isinstance(self.values[root], Choice):
            for node in (root, *family):
                self.values[node] = opaque(eq, node)
            return
        if root.op == "placeholder" and isinstance(self.values[root], LogScale):
            # State keeps its scale from call to call.
            eq.equal(as_scale(eq, self.values[target]), as_scale(eq, result))
            return
        if root in self._uncertain or not isinstance(root.meta.get("val"), Tensor):
            eq.pin(as_scale(eq, self.values[root]))
            eq.pin(as_scale(eq, result))
            self.values[root] = opaque(eq, root)
        elif all(in_place(node) for node in chain):
            self.values[root] = result
        else:
            self.values[root] = self._written(root, chain, result)
        for node in family:
            value = self.values[self._base[node]]
            self.values[node] = self._replay[node](
                value if isinstance(value, list) else as_scale(eq, value)
            )

    def _written(self, root: Node, chain: Sequence[Node], result) -> LogScale:
        """``root`` after a view of it, at the end of a chain of views, was overwritten."""
        eq, old = self.equations, as_scale(self.equations, self.values[root])
        result = as_scale(eq, result)
        index = eq.single(old).terms[0][1].clone(memory_format=torch.contiguous_format)
        view = LogScale([(1, index)], index.shape)
        for node in chain:
            view = self._replay[node](view)
        seen = view.terms[0][1] if view.terms else None
        memory = index.untyped_storage().data_ptr()
        if seen is None or seen.untyped_storage().data_ptr() != memory:  # a copy
            eq.pin(old)
            eq.pin(result)
            return eq.pinned(*shape_of(root))
        seen.copy_(eq.single(result).terms[0][1])
        return LogScale([(1, index)], index.shape)


def opaque(equations: Equations, node: Node):
    """The pinned results of an operation about which nothing is known."""

    def pinned(value):
        if isinstance(value, Tensor) and chooses(value.dtype):
            return equations.choices.variables(*value.shape)
        if isinstance(value, Tensor):
            return equations.pinned(*value.shape)
        symbolic = isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
        return equations.pinned() if symbolic else value

    values = node.meta.get("val")
    several = isinstance(values, (list, tuple))
    return [pinned(value) for value in values] if several else pinned(values)


def chooses(dtype: torch.dtype) -> bool:
    """Whether numbers of a type can choose entries of a table."""
    real = dtype.is_floating_point or dtype.is_complex
    return not real and dtype != torch.bool


def as_scale(equations: Equations, value) -> LogScale:
    return value if isinstance(value, LogScale) else equations.constant(value)
