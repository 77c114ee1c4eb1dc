"""Rules on moves of products of matrices: ``x' δy + δx y``."""

from __future__ import annotations

import torch
from torch import Tensor

from quotientnet.symmetry.translations.registry import shift_rule
from quotientnet.symmetry.translations.shifts import Averages, Seen, Shift, Term

__all__ = ["contract", "mapped"]


def contract(call, x, y, axes) -> Shift:
    """The product of two aligned values, summed over axes, which are kept with length 1.

    It moves by ``x' δy + δx y``, with ``x'`` what ``x`` moves to: an identity, for any size.
    """
    u, axes = call.unknowns, [
        a - max(len(x.shape), len(y.shape)) if a >= 0 else a for a in axes
    ]
    if isinstance(x, Seen) and isinstance(y, Seen):
        u.pin(x, y)
    shape = list(torch.broadcast_shapes(x.shape, y.shape))
    for a in axes:
        shape[a] = 1
    total = Shift(shape)
    for a, b in ((x, y), (y, x)):
        if isinstance(a, Seen):
            total = total + _moving_rows(u, a, b, axes, shape)
        elif isinstance(a, Shift) and a.terms:
            total = total + _moving_factor(u, a, b, axes, shape)
    return total


def _moving_rows(u, matrix: Seen, other, axes, shape) -> Shift:
    index = u.rows(matrix, axes)
    if index is None or isinstance(other, Seen):
        return Shift(shape)
    lead = [1 if a - len(other.shape) in axes else n for a, n in enumerate(other.shape)]
    return Shift(shape, [Term(1.0, u.sites(lead), index)])


def _moving_factor(u, x: Shift, other, axes, shape) -> Shift:
    alike = all(x.shape[a] == other.shape[a] for a in axes)
    if alike and isinstance(other, Averages) and other.along(axes):
        u.uniform(x, axes)
        first = [
            slice(0, 1) if a - len(x.shape) in axes else slice(None)
            for a in range(len(x.shape))
        ]
        return Shift(shape, x.map(lambda t: t[tuple(first)]).terms)
    known = other if isinstance(other, Seen) else None
    if isinstance(other, Tensor):
        known = u.constant(other)
    return u.product(x, known, Shift(other.shape), axes)


@shift_rule("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner")
def matmul(call, x, y):
    if call.operation.endswith("inner") and len(y.shape) > 1:
        y = mapped(y, lambda t: t.mT)
    row, column = len(x.shape) == 1, len(y.shape) == 1
    x = mapped(x, lambda t: t[None]) if row else x
    y = mapped(y, lambda t: t[:, None]) if column else y
    x = mapped(x, lambda t: t.unsqueeze(-2))
    y = mapped(y, lambda t: t.transpose(-1, -2).unsqueeze(-3))
    out = contract(call, x, y, [-1]).map(lambda t: t[..., 0])
    out = out.map(lambda t: t.squeeze(-2)) if row else out
    return call.spread(out.map(lambda t: t.squeeze(-1)) if column else out)


def mapped(x, function):
    return function(x) if isinstance(x, Tensor) else x.map(function)


@shift_rule("linear")
def linear(call, x, weight, bias=None):
    out = matmul(
        call, x, mapped(weight, lambda t: t.t()) if len(weight.shape) > 1 else weight
    )
    return out if bias is None else call.spread(out + call.shift(bias))


@shift_rule("addmm", "baddbmm", "addmv")
def addmm(call, bias, x, y, *, beta=1, alpha=1):
    out = matmul(call, x, y) * alpha
    return call.spread(out + call.shift(bias) * beta) if beta else out


@shift_rule("embedding")
def embedding(call, weight, places, *args):
    if isinstance(weight, Seen) and weight.leaf.name:
        call.unknowns.pin(places)
        return call.unknowns.table(weight, places.shape)
    return call.pin(weight, places)
