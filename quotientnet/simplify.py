"""Simpler forms of a traced derivative: fewer operations, the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.fx import Graph, Node

__all__ = ["simplify", "reuse_memory"]

aten = torch.ops.aten

_COPIES = (
    aten.alias.default,
    aten.detach.default,
    aten.clone.default,
    aten._to_copy.default,
)
_ZEROS = (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)
_VIEWS = (
    aten.view.default, aten.expand.default, aten.t.default, aten.transpose.int,
    aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim, aten.slice.Tensor,
    aten.select.int, aten._unsafe_view.default, aten.reshape.default,
)  # fmt: skip
_ADDS = (aten.add.Tensor, aten.sub.Tensor)
_POOL, _POOL_BACK = (
    aten.max_pool2d_with_indices.default,
    aten.max_pool2d_with_indices_backward.default,
)
_MASK = aten.threshold_backward.default


def simplify(graph: Graph) -> None:
    """Rewrite a functional graph of aten operations in place: no copies, no sums with zero, no
    value computed twice, masks of rectifiers on the small side of a pool.

    Every rewriting keeps values, shapes and strides; results change by the order of a product's
    sums at most.
    """
    _drop_copies(graph)
    _drop_zeros(graph)
    _merge_equal(graph)
    _pool_by_its_own_input(graph)
    graph.eliminate_dead_code()
    _mask_after_pooling(graph)
    graph.eliminate_dead_code()


def reuse_memory(graph: Graph, fresh: Callable[[Node], bool]) -> None:
    """Let sums and masks write over an operand that nothing else reads.

    Args:
        graph: A simplified graph.
        fresh: Whether a node's memory may be written to: it is made by this graph.
    """
    for node in list(graph.nodes):
        if node.target is aten.add.Tensor and not node.kwargs:
            _add_in_place(graph, node, fresh)
        elif node.target is aten.mul.Tensor and _writable(node.args[0], node, fresh):
            node.target = aten.mul_.Tensor
        elif node.target is _MASK and _writable(node.args[0], node, fresh):
            node.target = aten.threshold_backward.grad_input
            node.kwargs = {"grad_input": node.args[0]}


def _add_in_place(graph: Graph, node: Node, fresh) -> None:
    for mine, other in (node.args, node.args[::-1]):
        if not _writable(mine, node, fresh):
            continue
        if _is_private_product(other, node):
            node.target, node.args = aten.addmm_.default, (mine, *other.args)
            graph.erase_node(other)
        else:
            node.target, node.args = aten.add_.Tensor, (mine, other)
        return


def _is_private_product(node, user: Node) -> bool:
    return (
        isinstance(node, Node)
        and node.target is aten.mm.default
        and set(node.users) == {user}
    )


def _writable(node, user: Node, fresh) -> bool:
    """Whether ``user`` may leave its result, of equal form, in the memory of ``node``."""
    if not isinstance(node, Node) or set(node.users) != {user} or not fresh(node):
        return False
    if user.args.count(node) > 1 or not _alike(node, user):
        return False
    source = node.args[0] if _is_getitem(node) else node
    return source.op == "call_function" and not _may_alias(source)


def _may_alias(node: Node) -> bool:
    """Whether an operation's result can share memory with its arguments."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return True
    return node.target in _COPIES + _VIEWS or any(r.alias_info for r in schema.returns)


def _drop_copies(graph: Graph) -> None:
    for node in graph.nodes:
        if node.target in _COPIES + _VIEWS and _alike(node.args[0], node):
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.t.default and node.args[0].target is aten.t.default:
            node.replace_all_uses_with(node.args[0].args[0])


def _drop_zeros(graph: Graph) -> None:
    """Tangents that are zero by construction: forward mode computes with them as with others."""
    zero: set[Node] = set()
    for node in graph.nodes:
        if _is_zero(node, zero):
            zero.add(node)
        elif node.target in _ADDS and not node.kwargs:
            a, b = node.args
            if b in zero and _alike(a, node):
                node.replace_all_uses_with(a)
            elif a in zero and node.target is aten.add.Tensor and _alike(b, node):
                node.replace_all_uses_with(b)


def _is_zero(node: Node, zero: set[Node]) -> bool:
    target, args = node.target, node.args
    if target in _ZEROS:
        return True
    if target in _VIEWS or _is_getitem(node):
        return args[0] in zero
    if target is aten.convolution.default:
        return args[2] is None and (args[0] in zero or args[1] in zero)
    if target is aten.convolution_backward.default:
        wanted = tuple(args[-1])
        return (
            args[0] in zero
            or (wanted == (False, True, False) and args[1] in zero)
            or (wanted == (True, False, False) and args[2] in zero)
        )
    if target in (aten.mm.default, aten.bmm.default):
        return args[0] in zero or args[1] in zero
    return False


def _merge_equal(graph: Graph) -> None:
    seen: dict = {}
    for node in graph.nodes:
        if node.op not in ("call_function", "get_attr"):
            continue
        key = (node.op, node.target, _frozen(node.args), _frozen(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
        else:
            seen[key] = node


def _frozen(value):
    """A hashable form of a node's arguments, in which 1, 1.0 and True differ."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((key, _frozen(each)) for key, each in sorted(value.items()))
    return value if isinstance(value, Node) else (type(value), str(value))


def _pool_by_its_own_input(graph: Graph) -> None:
    """A pool's backward reads of its input the shape only, of which a tangent has another copy."""
    for node in graph.nodes:
        if node.target is _POOL_BACK:
            pool = node.args[-1].args[0]
            if pool.target is _POOL and _alike(node.args[1], pool.args[0]):
                node.update_arg(1, pool.args[0])


def _mask_after_pooling(graph: Graph) -> None:
    """Where a rectified ``x`` is pooled, ``x > 0`` at a maximum is ``max > 0``."""
    for node in list(graph.nodes):
        if node.target is _MASK and node.args[2] == 0:
            _mask_before_unpooling(graph, node)
        elif node.target is aten.gather.default:
            _mask_after_gathering(graph, node)


def _mask_before_unpooling(graph: Graph, mask: Node) -> None:
    back, x = mask.args[0], mask.args[1]
    if back.target is not _POOL_BACK or len(back.users) != 1:
        return
    pool = back.args[-1].args[0]
    if pool.target is not _POOL or pool.args[0] is not x:
        return
    pooled = _first_output(graph, pool)
    if not _alike(pooled, back.args[0]):
        return
    with graph.inserting_before(back):
        small = graph.call_function(_MASK, (back.args[0], pooled, 0))
        small.meta = back.args[0].meta
    back.update_arg(0, small)
    mask.replace_all_uses_with(back)


def _mask_after_gathering(graph: Graph, gather: Node) -> None:
    flat, _, index = gather.args
    if flat.target is not aten.view.default or index.target is not aten.view.default:
        return
    mask, indices = flat.args[0], index.args[0]
    if mask.target is not _MASK or mask.args[2] != 0 or not _is_getitem(indices):
        return
    pool = indices.args[0]
    private = len(mask.users) == 1 and len(flat.users) == 1
    if not private or pool.target is not _POOL or pool.args[0] is not mask.args[1]:
        return
    pooled = _first_output(graph, pool)
    if not _alike(mask.args[0], mask) or not pooled.meta["val"].is_contiguous():
        return
    flat.update_arg(0, mask.args[0])
    users = list(gather.users)
    with graph.inserting_after(gather):
        shape = list(gather.meta["val"].shape)
        kept = graph.call_function(aten.view.default, (pooled, shape))
        kept.meta = gather.meta
    with graph.inserting_after(kept):
        small = graph.call_function(_MASK, (gather, kept, 0))
        small.meta = gather.meta
    for user in users:
        user.replace_input_with(gather, small)


def _first_output(graph: Graph, node: Node) -> Node:
    found = (u for u in node.users if _is_getitem(u) and u.args[1] == 0)
    first = next(found, None)
    if first is None:
        raise AssertionError("a pool whose result nobody reads has no backward")
    return first


def _is_getitem(node) -> bool:
    return isinstance(node, Node) and getattr(node.target, "__name__", "") == "getitem"


def _alike(a, b: Node) -> bool:
    """Whether two nodes' values have the same form in memory."""
    if not isinstance(a, Node):
        return False
    x, y = a.meta.get("val"), b.meta.get("val")
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        return False
    return _form(x) == _form(y)


def _form(x: torch.Tensor) -> Iterable:
    return x.shape, x.stride(), x.dtype, x.device
