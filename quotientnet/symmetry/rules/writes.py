"""Rules of operations that write or add entries of one tensor into places of another."""

from __future__ import annotations

import torch
from torch import Tensor

from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import LogScale

__all__ = []


def _accumulated(call, x, dim: int, source) -> LogScale:
    """Sums at any places along an axis: there, and where sizes differ, all has one scale."""
    eq, x, source = call.equations, call.scale(x), call.scale(source)
    dim = dim % len(x.shape)
    if not source.shape:
        return eq.equal(eq.resolve(x), source)
    pairs = zip(x.shape, source.shape)
    axes = [a for a, (n, m) in enumerate(pairs) if a == dim or n != m]
    return call.spread(eq.equal(eq.uniform(x, axes), eq.uniform(source, axes)))


@rule("aten::scatter_add", "aten::index_add", "aten::index_copy", "aten::index_reduce")
def add_at(call, x, dim, places, source, *args, **kwargs):
    return _accumulated(call, x, dim, source)


@rule("aten::scatter")
def scatter(call, x, dim, places, source, *args, **kwargs):
    """Literally, if places are constant."""
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
