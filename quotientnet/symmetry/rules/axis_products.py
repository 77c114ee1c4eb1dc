"""Rules of products along an axis: scales multiply."""

from __future__ import annotations

import torch

from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import PINNED, LogScale, compact

__all__ = []

LONGEST = 64
"""Products of more entries are pinned: exponents would be as large."""


@rule("aten::prod")
def product(call, x, dim=None, keepdim=False, **kwargs):
    """Scales multiply along the axis; pinned beyond 64 entries, and where one is always zero."""
    eq, x = call.equations, call.equations.resolve(call.scale(x))
    if dim is None:
        x, dim = x.map(lambda t: t.reshape(-1)), 0
    if eq.has_zeros(x) or x.shape[dim] > LONGEST:
        return call.pin(x)
    terms = []
    for c, index in eq.simplify(x).terms:
        if compact(index).shape[dim] == 1:
            terms.append((c * x.shape[dim], index.select(dim, 0)))
        else:
            terms += [(c, part) for part in index.unbind(dim)]
    return LogScale([(c, t.reshape(call.shape)) for c, t in terms], call.shape)


@rule("aten::cumprod")
def cumulative_product(call, x, dim, **kwargs):
    """Scales multiply along the axis; pinned beyond 64 entries, and where one is always zero."""
    eq, x = call.equations, call.equations.resolve(call.scale(x))
    if eq.has_zeros(x) or x.shape[dim] > LONGEST:
        return call.pin(x)
    terms, size = [], x.shape[dim]
    shape = [1] * len(x.shape)
    shape[dim] = -1
    for n in range(size):
        reached = (torch.arange(size) >= n).view(shape)
        terms += [
            (c, torch.where(reached, index.narrow(dim, n, 1), PINNED))
            for c, index in eq.simplify(x).terms
        ]
    return LogScale(terms, call.shape)
