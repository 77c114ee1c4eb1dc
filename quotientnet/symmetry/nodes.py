"""What a node of a graph is: its operation, its arguments, and whose memory its result shares."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

__all__ = [
    "graphs",
    "writes_floats",
    "name_of",
    "operands",
    "changed",
    "is_written",
    "aliased",
    "live_nodes",
    "in_place",
    "shape_of",
    "dtype_of",
    "module_of",
    "operation_of",
    "by_position",
    "arguments_of",
    "keeps_state",
    "SHAPE_ONLY",
]

SHAPE_ONLY = {
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros",
    "new_ones", "new_full", "new_empty", "randint_like", "sym_size", "size", "zero", "fill",
}  # fmt: skip
"""Operations that need only the shape of their first argument."""


def graphs(module: torch.fx.GraphModule) -> list[torch.fx.GraphModule]:
    """A graph and those that it calls."""
    return [m for m in module.modules() if isinstance(m, torch.fx.GraphModule)]


def writes_floats(graph: torch.fx.Graph) -> bool:
    """Whether an operation writes to floating-point numbers, or into what the graph made.

    Masks and numbers of places that are written step by step count; counters of the module do not.
    """
    return any(
        isinstance(operand, Node)
        and is_written(argument)
        and (dtype_of(operand).is_floating_point or operand.op != "placeholder")
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        for argument, given in operands(node)
        for operand in tree_leaves(given)
    )


def name_of(node: Node) -> str:
    return node.target._schema.name.removeprefix("aten::")


def operands(node: Node) -> list[tuple]:
    """The arguments of a call, each with what its schema says of it."""
    given = zip(node.target._schema.arguments, node.args)
    named = {argument.name: argument for argument in node.target._schema.arguments}
    return [*given, *((named[name], value) for name, value in node.kwargs.items())]


def changed(node: Node) -> list[Node]:
    """The arguments that an operation writes into, where its results are other tensors."""
    if any(result.alias_info is not None for result in node.target._schema.returns):
        return []
    given = (operand for argument, operand in operands(node) if is_written(argument))
    return [n for n in tree_leaves(list(given)) if isinstance(n, Node)]


def is_written(argument) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def aliased(node: Node) -> list[Node]:
    """The argument whose memory the result shares, found out on tensors without values."""
    stand_ins = {}

    def stand_in(argument: Node):
        value = argument.meta.get("val")
        if isinstance(value, Tensor):
            strides = {"dtype": value.dtype, "device": "meta"}
            value = torch.empty_strided(value.shape, value.stride(), **strides)
            stand_ins[argument] = value.untyped_storage()._cdata
        return value

    if name_of(node) in ("to", "type_as", "_to_copy"):
        return [node.args[0]] if _keeps_memory(node) else []
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), stand_in)
    kwargs = dict(kwargs) | ({"device": "meta"} if "device" in kwargs else {})
    try:
        results = tree_leaves(node.target(*args, **kwargs))
    except (RuntimeError, NotImplementedError):  # it needs values: as if it were a view
        return node.all_input_nodes[:1]
    results = {t.untyped_storage()._cdata for t in results if isinstance(t, Tensor)}
    return [argument for argument, storage in stand_ins.items() if storage in results][
        :1
    ]


def _keeps_memory(node: Node) -> bool:
    """Whether a conversion changes nothing, and so returns its argument."""
    source = node.args[0]
    copied = any(a is True for a in (*node.args[1:], node.kwargs.get("copy")))
    form = node.kwargs.get("memory_format")
    plain = form in (None, torch.preserve_format)
    plain = (
        plain or form is torch.contiguous_format and source.meta["val"].is_contiguous()
    )
    return plain and not copied and dtype_of(node) == dtype_of(source)


def live_nodes(graph: torch.fx.Graph) -> set[Node]:
    """The nodes that results or state depend on; the others cannot limit a symmetry."""
    live: set[Node] = set()
    for node in reversed(graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload):
            state = node.target._schema.is_mutable or _writes_statistics(node)
        else:
            state = isinstance(node.target, torch._ops.HigherOrderOperator)
        if node.op in ("placeholder", "output") or state or node in live:
            live.add(node)
            live.update(node.all_input_nodes)
    return live


def _writes_statistics(node: Node) -> bool:
    """Whether a normalisation updates its running statistics, which its schema does not say."""
    normalises = node.target._schema.name in ("aten::batch_norm", "aten::instance_norm")
    return normalises and by_position(node)[0][5] is True


def keeps_state(node: Node) -> bool:
    """Whether an operation writes to its arguments, or may to the running statistics it has."""
    return in_place(node) or (
        node.target._schema.name in ("aten::batch_norm", "aten::instance_norm")
        and by_position(node)[0][3] is not None
    )


def arguments_of(node: Node) -> dict:
    """The arguments of a call by their names, defaults included."""
    given = {argument.name: value for argument, value in operands(node)}
    defaults = {
        argument.name: argument.default_value
        for argument in node.target._schema.arguments
        if argument.has_default_value()
    }
    return defaults | given


def by_position(node: Node) -> tuple[tuple, dict]:
    """The arguments of a call, by position as far as its schema allows."""
    args, kwargs = list(node.args), dict(node.kwargs)
    if isinstance(node.target, torch._ops.OpOverload):
        for argument in node.target._schema.arguments[len(args) :]:
            if argument.kwarg_only or not (
                argument.name in kwargs or argument.has_default_value()
            ):
                break
            args.append(kwargs.pop(argument.name, argument.default_value))
    return tuple(args), kwargs


def in_place(node: Node) -> bool:
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
    )


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of the result, or of the first of several."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        value = value[0]
    if not isinstance(value, Tensor):
        return ()
    if not all(isinstance(n, int) for n in value.shape):
        place = " in ".join([operation_of(node), *filter(None, module_of(node)[:1])])
        raise ValueError(
            f"discover: the shape {tuple(value.shape)} of the result of {place} depends on data; "
            "its channels cannot be told apart"
        )
    return tuple(value.shape)


def dtype_of(node: Node) -> torch.dtype:
    """The dtype of the result, or of the first of several."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return value.dtype if isinstance(value, Tensor) else torch.float32


def module_of(node: Node) -> tuple[str, str]:
    """The name of the module that called an operation, and its class."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return "", ""
    name, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    return name.split("@")[0], kind.rpartition(".")[2]


def operation_of(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.removeprefix("aten::")
    plain = getattr(node.target, "__name__", str(node.target))
    return {"placeholder": "input", "output": "output"}.get(node.op, plain)
