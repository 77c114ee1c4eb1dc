"""Rules of losses that are homogeneous; the others are in ``pins``."""

from __future__ import annotations

from torch import Tensor

from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import LogScale

__all__ = []


def reduced(call, x: LogScale, reduction: int) -> LogScale:
    """``x`` as it is, or with one scale everywhere where it is averaged or summed up."""
    if reduction == 0:
        return call.spread(x)
    return call.equations.uniform(x, range(len(x.shape))).map(lambda t: t.reshape(()))


@rule("aten::mse_loss")
def mse_loss(call, x, y, reduction=1):
    """A difference, squared: both sides have one scale."""
    eq = call.equations
    return reduced(call, 2 * eq.equal(call.scale(x), call.scale(y)), reduction)


@rule("aten::l1_loss")
def l1_loss(call, x, y, reduction=1):
    """The size of a difference: both sides have one scale."""
    return reduced(call, call.equations.equal(call.scale(x), call.scale(y)), reduction)


@rule("aten::pairwise_distance")
def pairwise_distance(call, x, y, p=2, eps=1e-6, keepdim=False):
    """Both sides have one scale; pinned by an ``eps`` added to each difference, and by order 0."""
    if eps != 0 or p == 0:
        return call.pin(x, y)
    eq = call.equations
    both = eq.uniform(eq.equal(call.scale(x), call.scale(y)), [-1])
    return both.map(lambda t: t.reshape(call.shape))


@rule("aten::margin_ranking_loss")
def margin_ranking_loss(call, x, y, target, margin=0.0, reduction=1):
    """A difference that is cut at a margin: both sides have one scale, pinned but for margin 0."""
    if margin != 0:
        return call.pin(x, y, target)
    eq = call.equations
    eq.pin(call.scale(target))
    return reduced(call, eq.equal(call.scale(x), call.scale(y)), reduction)


@rule("aten::nll_loss", "aten::nll_loss_nd", "aten::nll_loss2d")
def nll_loss(call, x, target, weight=None, reduction=1, ignore_index=-100):
    """A score for each sample: literally if classes are constant, else one scale for all."""
    eq, x = call.equations, call.scale(x)
    if weight is not None:
        eq.uniform(eq.pin(call.scale(weight)), [])
    axis = 1 if len(x.shape) > 1 else 0
    if isinstance(target, Tensor) and bool((target >= 0).all()):
        places = target.unsqueeze(axis)
        chosen = eq.resolve(x).map(lambda t: t.gather(axis, places).squeeze(axis))
    else:
        chosen = eq.uniform(x, [axis]).map(lambda t: t.squeeze(axis))
    return reduced(call, chosen, reduction)
