"""Rules of normalisations, which forget the scale of what they normalise."""

from __future__ import annotations

import torch

from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import LogScale

__all__ = []


@rule("aten::batch_norm", "aten::instance_norm")
def batch_norm(
    call, x, weight, bias, mean, variance, training, momentum, eps, cudnn_enabled
):
    """One scale a channel; running mean and variance scale along, in either mode."""
    eq = call.equations
    x = eq.uniform(x, [a for a in range(len(x.shape)) if a != 1])
    call.eps = (eps, x)
    # Statistics of a channel that is always zero have a scale of their own.
    channels = eq.without_zeros(x.map(lambda t: t.reshape(-1)))
    if mean is not None:
        eq.equal(call.scale(mean), channels)
        eq.equal(call.scale(variance), 2 * channels)
    out = _affine(call, channels.shape, weight, bias)
    return LogScale(_spread(out, len(call.shape), 1).terms, call.shape)


@rule("aten::layer_norm")
def layer_norm(call, x, shape, weight=None, bias=None, eps=1e-5, *args):
    """One scale a normalised group."""
    x = call.equations.uniform(x, range(-len(shape), 0))
    call.eps = (eps, x)
    return call.spread(_affine(call, tuple(shape), weight, bias))


@rule("aten::rms_norm")
def rms_norm(call, x, shape, weight=None, eps=None):
    """One scale a normalised group."""
    eps = torch.finfo(call.dtype).eps if eps is None else eps
    return layer_norm(call, x, shape, weight, None, eps)


@rule("aten::group_norm")
def group_norm(call, x, groups, weight=None, bias=None, eps=1e-5, *args):
    """One scale a normalised group."""
    split = x.map(lambda t: t.reshape(t.shape[0], groups, -1))
    call.eps = (eps, call.equations.uniform(split, [2]))
    out = _affine(call, (x.shape[1],), weight, bias)
    return LogScale(_spread(out, len(call.shape), 1).terms, call.shape)


def _affine(call, shape, weight, bias) -> LogScale:
    """The scale of ``weight · normalised + bias``: that of the weight, and the bias has it, too."""
    eq = call.equations
    out = eq.pinned(*shape)
    if weight is not None:
        call.outputs = out = eq.resolve(call.scale(weight))
    return out if bias is None else eq.equal(out, call.scale(bias))


def _spread(x: LogScale, dims: int, axis: int) -> LogScale:
    """A vector along one axis of a tensor."""
    return x.map(lambda t: t.view(*(-1 if a == axis else 1 for a in range(dims))))
