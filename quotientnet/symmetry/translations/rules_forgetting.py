"""Rules on moves of sums, maxima and normalisations: what they pass on, and what they forget."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from quotientnet.symmetry.translations.registry import shift_rule
from quotientnet.symmetry.translations.shifts import Averages, Seen, Shift, plain

__all__ = []


def _axes(x, dim) -> list[int]:
    if dim is None or dim == []:
        return list(range(len(x.shape)))
    return [dim] if isinstance(dim, int) else list(dim)


def _reduced(call, x, axes) -> Shift:
    """``x``, alike along axes, in the shape of the result."""
    if 0 in x.shape:
        return Shift(call.shape)
    x, axes = call.uniform(x, axes), [a % max(len(x.shape), 1) for a in axes]
    # Of weights that add up to one, only means over other axes do so, too.
    x = x if call.operation.endswith("::mean") else plain(x)
    first = tuple(
        slice(0, 1) if a in axes else slice(None) for a in range(len(x.shape))
    )
    return x.map(lambda t: t[first].reshape(call.shape))


@shift_rule("mean", "amax", "amin", "sum", "nansum", "nanmean", "logsumexp")
def reduction(call, x, dim=None, *args, **kwargs):
    dim = None if isinstance(dim, bool) else dim
    axes, x = _axes(x, dim), call.shift(x)
    result = _reduced(call, x, axes)
    adds = call.operation.removeprefix("aten::") in ("sum", "nansum")
    return result * prod(x.shape[a] for a in axes) if adds else result


@shift_rule("max", "min", "median", "mode", "nanmedian")
def extremum(call, x, dim=None, keepdim=False):
    if isinstance(dim, (Shift, Seen, Tensor)):
        return call.pin(x, dim)
    if dim is None:
        return _reduced(call, x, _axes(x, None))
    return [_reduced(call, x, [dim]), Shift(call.shape)]


@shift_rule("var", "std", "argmax", "argmin")
def spread_of(call, x, dim=None, *args, **kwargs):
    """A shift of everything is forgotten."""
    call.uniform(x, _axes(x, None if isinstance(dim, bool) else dim), absorb=True)
    return Shift(call.shape)


@shift_rule("topk", "kthvalue", "sort")
def ordered(call, x, *args, **kwargs):
    numbers = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    if not call.operation.endswith("sort"):
        numbers = numbers[1:]
    dim = kwargs.get("dim", numbers[0] if numbers else -1)
    x = plain(call.uniform(x, [dim]))
    if len(call.shape) < len(x.shape):
        return [x.map(lambda t: t.select(dim, 0)), Shift(call.shape)]
    return [x.map(lambda t: t.narrow(dim, 0, call.shape[dim])), Shift(call.shape)]


def _pooling(dims: int) -> None:
    @shift_rule(f"max_pool{dims}d", f"adaptive_avg_pool{dims}d", f"adaptive_max_pool{dims}d",
                f"_adaptive_avg_pool{dims}d", f"max_pool{dims}d_with_indices")  # fmt: skip
    def pool(call, x, *args, **kwargs):
        x = plain(call.uniform(x, range(-dims, 0)))
        first = (..., *[slice(0, 1)] * dims)
        result = call.spread(x.map(lambda t: t[first].expand(call.shape)))
        pairs = "indices" in call.operation or "adaptive_max" in call.operation
        return [result, Shift(call.shape)] if pairs else result

    @shift_rule(f"avg_pool{dims}d")
    def average(
        call, x, size, stride=None, padding=0, ceil=False, counted=True, divisor=None
    ):
        padded = any([padding] if isinstance(padding, int) else padding)
        return call.pin(x) if padded or ceil or divisor else pool(call, x)


for _dims in (1, 2, 3):
    _pooling(_dims)


def _affine(call, weight, bias, axis: int | None = None) -> Shift:
    """What a normalisation's own shift makes of its result."""
    call.unknowns.pin(weight)
    if bias is None:
        return Shift(call.shape)
    bias, ndim = call.shift(bias), len(call.shape)
    if axis is not None:
        bias = bias.map(lambda t: t.view([-1 if a == axis else 1 for a in range(ndim)]))
    return call.spread(bias)


@shift_rule("layer_norm")
def layer_norm(call, x, shape, weight=None, bias=None, *args):
    call.uniform(x, range(-len(shape), 0), absorb=True)
    return _affine(call, weight, bias)


@shift_rule("group_norm")
def group_norm(call, x, groups, weight=None, bias=None, *args):
    split = call.shift(x).map(lambda t: t.reshape(t.shape[0], groups, -1))
    call.uniform(split, [2], absorb=True)
    return _affine(call, weight, bias, 1)


@shift_rule("batch_norm", "instance_norm")
def batch_norm(call, x, weight, bias, mean, variance, training, *args):
    """A shift of a channel is forgotten, and its running mean moves along."""
    x, u = call.shift(x), call.unknowns
    for group in [g for g in x.groups() if not g[0].constant]:
        if "batch" in call.operation:
            u.pin(Shift(x.shape, group))
    axes = [a for a in range(len(x.shape)) if a != 1]
    if "batch" not in call.operation and training and mean is None:
        axes = axes[1:]
    u.uniform(x, axes, absorb=training or mean is not None)
    if mean is not None:
        view = [-1 if a == 1 else 1 for a in range(len(x.shape))]
        own = u.shift(mean).map(lambda t: t.view(view))
        u.pin(Shift(x.shape, x.terms) + Shift(x.shape, own.terms) * -1.0)
    return _affine(call, weight, bias, 1)


@shift_rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def softmax(call, x, dim, *args):
    call.uniform(x, [dim], absorb=True)
    if "log" in call.operation:
        return Shift(call.shape)
    length = x.shape[dim]
    order = torch.arange(prod(call.shape)).view(*_without(call.shape, dim), length)
    return Averages(order.movedim(-1, dim), length)


def _without(shape, dim: int) -> list[int]:
    return [n for a, n in enumerate(shape) if a != dim % len(shape)]


@shift_rule("cross_entropy_loss")
def cross_entropy(call, x, target, *args):
    call.unknowns.pin(target, *args)
    call.uniform(x, [1 if len(x.shape) > 1 else 0], absorb=True)
    return Shift(call.shape)
