"""Rules of operations that write or add entries of one tensor into places of another."""

from __future__ import annotations

import torch
from torch import Tensor

from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import LogScale

__all__ = ["collected"]


def collected(eq, target: Tensor, places: Tensor, source: Tensor) -> Tensor:
    """Unknowns after entries of one tensor met those of another at constant places: one a place.

    Args:
        eq: Where they are unknowns.
        target: What is there, of any shape.
        places: The position in the flattened target of each entry of ``source``.
        source: What is added to it, or compared with it.
    """
    common = target.reshape(-1).scatter_reduce(
        0, places.reshape(-1), source.reshape(-1), "amax"
    )
    for own, there in (
        (target, common.view(target.shape)),
        (source, common[places.reshape(-1)].view(source.shape)),
    ):
        eq.equal(LogScale([(1, own)], own.shape), LogScale([(1, there)], own.shape))
    return common.view(target.shape)


def _met(call, x, dim: int, places, source) -> LogScale:
    """Entries that meet along an axis: literally, if places are constant."""
    if not (isinstance(places, Tensor) and call.scale(source).shape):
        return _accumulated(call, x, dim, source)
    eq = call.equations
    x, source = (eq.single(call.scale(z)).terms[0][1] for z in (x, source))
    positions = torch.arange(x.numel()).view(x.shape)
    if call.operation.startswith("aten::scatter"):
        positions = positions.gather(dim, places)
        source = source[tuple(slice(0, n) for n in places.shape)]
    else:
        positions = positions.index_select(dim, places.reshape(-1))
    index = collected(eq, x, positions, source)
    return LogScale([(1, index)], index.shape)


def _accumulated(call, x, dim: int, source) -> LogScale:
    """Sums at any places along an axis: there, and where sizes differ, all has one scale."""
    eq, x, source = call.equations, call.scale(x), call.scale(source)
    dim = dim % len(x.shape)
    if not source.shape:
        return eq.equal(eq.resolve(x), source)
    pairs = zip(x.shape, source.shape)
    axes = [a for a, (n, m) in enumerate(pairs) if a == dim or n != m]
    return call.spread(eq.equal(eq.uniform(x, axes), eq.uniform(source, axes)))


@rule("aten::scatter_add", "aten::index_add", "aten::index_copy")
def add_at(call, x, dim, places, source, *args, **kwargs):
    """What meets at a place has one scale; all along the axis if data choose the places."""
    return _met(call, x, dim, places, source)


@rule("aten::scatter")
def scatter(call, x, dim, places, source, *args, **kwargs):
    """Literally, if places are constant; products at places that meet are pinned."""
    if "multiply" in (*args, *kwargs.values()):
        return call.pin(x, source)
    if isinstance(places, Tensor) and isinstance(source, LogScale) and not kwargs:
        eq = call.equations
        x, source = (eq.single(call.scale(z)).terms[0][1] for z in (x, source))
        index = x.contiguous().scatter(dim, places, source.contiguous())
        return LogScale([(1, index)], index.shape)
    return _accumulated(call, x, dim, source)


@rule("aten::index_put")
def index_put(call, x, indices, values, accumulate=False):
    """Literally, if places are constant and what was there is lost."""
    eq, x, values = call.equations, call.scale(x), call.scale(values)
    constant = all(i is None or isinstance(i, Tensor) for i in indices)
    if constant and not accumulate:
        x, values = (eq.single(z).terms[0][1] for z in (x, values))
        index = torch.ops.aten.index_put(x.contiguous(), list(indices), values)
        return LogScale([(1, index)], index.shape)
    if any(i is None for i in indices):
        return call.unsupported(x, values)
    rest = len(x.shape) - len(indices)
    x = eq.uniform(x, range(len(indices)))
    lead = range(max(len(values.shape) - rest, 0))
    values = eq.uniform(values, lead).map(lambda t: t.reshape(t.shape[len(lead) :]))
    return call.spread(eq.equal(x, values))


@rule("aten::scatter_reduce", "aten::index_reduce")
def reduce_at(call, x, dim, places, source, how, *args, **kwargs):
    """What meets at a place has one scale, as by sums; products are pinned."""
    if how == "prod":
        return call.pin(x, source)
    return _met(call, x, dim, places, source)


@rule("aten::put")
def put(call, x, places, source, accumulate=False):
    """What is written has the scale of the rest."""
    eq, x, source = call.equations, call.scale(x), call.scale(source)
    one = eq.uniform(source, range(len(source.shape))).map(lambda t: t.reshape(()))
    return call.spread(eq.equal(eq.uniform(x, range(len(x.shape))), one))


@rule("aten::index_fill")
def index_fill(call, x, dim, places, value):
    """Literally, if places are constant; else what is filled in has the scale of the rest."""
    eq, value = call.equations, call.scale(value)
    if not isinstance(places, Tensor):
        return call.spread(eq.equal(eq.uniform(call.scale(x), [dim]), value))
    index, value = (eq.single(z).terms[0][1] for z in (call.scale(x), value))
    index = index.contiguous().index_fill(dim, places, value)
    return LogScale([(1, index)], index.shape)


@rule("aten::masked_scatter")
def masked_scatter(call, x, mask, source):
    """What is written in order has one scale, and what is left that of it."""
    eq, source = call.equations, call.scale(source)
    one = eq.uniform(source, range(len(source.shape))).map(lambda t: t.reshape(()))
    return call.spread(eq.equal(call.scale(x), one))


@rule("aten::select_scatter", "aten::slice_scatter", "aten::diagonal_scatter")
def write_view(call, x, source, *args, **kwargs):
    """Moves entries of one tensor into another."""
    eq = call.equations
    x, source = (eq.single(call.scale(z)).terms[0][1] for z in (x, source))
    operation = getattr(torch.ops.aten, call.operation.removeprefix("aten::"))
    index = operation(x.contiguous(), source, *args, **kwargs)
    return LogScale([(1, index)], index.shape)
