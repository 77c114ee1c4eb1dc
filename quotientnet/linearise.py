"""Linear maps in two programs: what depends on the point, run once, and what does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from quotientnet.simplify import reuse_memory, simplify

__all__ = ["Linearised", "NotTraceable", "linearise"]


class NotTraceable(Exception):
    """A function that cannot be recorded as a program of tensor operations, and why."""


class Linearised:
    """A function ``f(v, *inputs)``, linear in ``v``, as two programs.

    ``prepare(*inputs)`` computes all that does not depend on ``v``, once; ``apply(kept, v)`` the
    rest. The split is that of partial evaluation: no operation is in both.

    Attributes:
        bytes_kept: The size of what ``prepare`` keeps for ``apply``, inputs not counted.
    """

    def __init__(self, first: GraphModule, second: GraphModule, bytes_kept: int):
        self._first, self._second, self.bytes_kept = first, second, bytes_kept

    @torch.no_grad()
    def prepare(self, *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The outputs that do not depend on ``v``, and what :meth:`apply` needs."""
        outputs, kept = self._first(*inputs)
        return outputs, kept

    @torch.no_grad()
    def apply(self, kept: tuple[Tensor, ...], v: Tensor) -> Tensor:
        """``f(v)`` for the inputs that were prepared."""
        return self._second(v, *kept)


def linearise(function: Callable, v: Tensor, inputs: Sequence[Tensor]) -> Linearised:
    """Record ``function(v, *inputs) -> (outputs, product)`` and split it.

    Args:
        function: Written with :mod:`torch.func`; ``outputs`` is a tuple of tensors that do not
            depend on ``v``, ``product`` a tensor linear in it.
        v: An example.
        inputs: Example tensors; the program holds for tensors of the same form.

    Raises:
        NotTraceable: The function reads values in Python, draws random numbers, or uses an
            operation without the derivatives it needs.
    """
    try:
        with torch.no_grad():
            traced = make_fx(torch.func.functionalize(function))(v, *inputs)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise NotTraceable(f"{type(error).__name__}: {error}") from error
    graph = traced.graph
    _drop_private_writes(graph)
    graph.eliminate_dead_code()
    _require_pure(graph)
    simplify(graph)
    return _split(traced, graph)


def _drop_private_writes(graph: Graph) -> None:
    """Forget what is written to a copy that nobody reads, such as a counter of batches."""
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable or node.users:
            continue
        copy = node.args[0]
        if copy.target is torch.ops.aten.clone.default and set(copy.users) == {node}:
            graph.erase_node(node)


def _require_pure(graph: Graph) -> None:
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            if node.target._schema.is_mutable:
                raise NotTraceable(f"{node.target} writes to its arguments")
            if torch.Tag.nondeterministic_seeded in node.target.tags:
                raise NotTraceable(f"{node.target} draws random numbers")
            if _has_changing_shape(node):
                raise NotTraceable(f"the shape of {node.target} depends on values")


def _has_changing_shape(node: Node) -> bool:
    if node.target is not torch.ops.aten.index.Tensor:
        return torch.Tag.dynamic_output_shape in node.target.tags
    indices = (each.meta.get("val") for each in node.args[1] if each is not None)
    return any(index.dtype == torch.bool for index in indices)


def _split(traced: GraphModule, graph: Graph) -> Linearised:
    """Everything that ``v``, the first placeholder, reaches goes to the second program."""
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    depends = {placeholders[0]}
    for node in graph.nodes:
        if any(each in depends for each in node.all_input_nodes):
            depends.add(node)
    outputs, product = next(n for n in graph.nodes if n.op == "output").args[0]
    body = [n for n in graph.nodes if n.op in ("call_function", "get_attr")]
    early = [n for n in body if n not in depends]
    late = [n for n in body if n in depends]
    kept = list(
        dict.fromkeys(
            source
            for node in late
            for source in node.all_input_nodes
            if source not in depends
        )
    )
    if product not in depends:  # constant in v, hence zero
        kept.append(product)
    first = _program(traced, placeholders[1:], early, (tuple(outputs), tuple(kept)))
    second = _program(traced, [placeholders[0], *kept], late, product)
    own = set(late)
    fresh = {n.name for n in own}
    reuse_memory(second.graph, lambda node: node.name in fresh)
    second.graph.lint()
    second.recompile()
    return Linearised(first, second, _size(kept, set(placeholders)))


def _program(root: GraphModule, inputs, body, result) -> GraphModule:
    graph, copies = Graph(), {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = node.meta
    for node in body:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(torch.fx.node.map_arg(result, copies.__getitem__))
    return GraphModule(root, graph)


def _size(nodes: list[Node], inputs: set[Node]) -> int:
    """Bytes of the storages behind nodes, each counted once."""
    owners = {_owner(node): node for node in nodes}
    sizes = {owner: owner.meta.get("val") for owner in owners if owner not in inputs}
    return sum(
        value.numel() * value.element_size()
        for value in sizes.values()
        if isinstance(value, Tensor)
    )


def _owner(node: Node) -> Node:
    """The node that made the memory which a view shows."""
    schema = getattr(node.target, "_schema", None)
    while schema is not None and any(r.alias_info for r in schema.returns):
        node = node.all_input_nodes[0]
        schema = getattr(node.target, "_schema", None)
    return node
