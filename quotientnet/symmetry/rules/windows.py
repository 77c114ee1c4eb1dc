"""Rules of windows, grids of positions and the way back from pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.rules.writes import collected
from quotientnet.symmetry.scales import ZERO, LogScale

__all__ = []


def _filled(function, index: torch.Tensor) -> torch.Tensor:
    """A function that moves numbers and fills with 0, on unknowns; what it fills fits any scale."""
    return function((index - ZERO).double()).long() + ZERO


@rule("aten::im2col")
def im2col(call, x, size, dilation, padding, stride):
    """Moves entries of windows into columns."""
    x = call.equations.single(call.scale(x))
    index = x.terms[0][1]
    if len(x.shape) == 3:
        index = index[None]
    columns = _filled(lambda t: F.unfold(t, size, dilation, padding, stride), index)
    return call.spread(LogScale([(1, columns.view(call.shape))], call.shape))


@rule("aten::col2im")
def col2im(call, x, output, size, dilation, padding, stride):
    """What is summed up at one pixel has one scale."""
    eq, x = call.equations, call.scale(x)
    pixels = torch.arange(output[0] * output[1]).view(1, 1, *output)
    where = _filled(lambda t: F.unfold(t, size, dilation, padding, stride), pixels)[0]
    index = (
        eq.single(x).terms[0][1].reshape(-1, where.numel())
    )  # (N · channels, entries)
    seen, first = where.flatten() >= 0, pixels.numel() * torch.arange(len(index))
    places = where.flatten()[seen] + first[:, None]
    nothing = index.new_full((len(index), pixels.numel()), ZERO)
    index = collected(eq, nothing, places, index[:, seen])
    return LogScale([(1, index.view(call.shape))], call.shape)


@rule("aten::grid_sampler")
def grid_sampler(call, x, grid, *args):
    """Positions are pinned, and what is read at them has one scale."""
    eq = call.equations
    eq.pin(call.scale(grid))
    x = eq.uniform(call.scale(x), range(2, len(x.shape)))
    return call.spread(x)


@rule("aten::affine_grid_generator")
def affine_grid(call, theta, size, align_corners):
    """Each coordinate is a sum along a row."""
    rows = call.equations.uniform(call.scale(theta), [-1])
    ones = [1] * (len(call.shape) - 2)
    return call.spread(rows.map(lambda t: t.view(len(t), *ones, -1)))


@rule("aten::max_unpool2d", "aten::max_unpool3d")
def max_unpool(call, x, places, *args):
    """Entries go to places that the data choose: one scale for all of a channel."""
    dims = 2 if call.operation.endswith("2d") else 3
    return call.spread(call.equations.uniform(call.scale(x), range(-dims, 0)))


@rule("aten::fractional_max_pool2d", "aten::fractional_max_pool3d")
def fractional_max_pool(call, x, *args):
    """Random windows: one scale for all of a channel."""
    dims = 2 if call.operation.endswith("2d") else 3
    return [call.spread(call.equations.uniform(call.scale(x), range(-dims, 0))), None]
