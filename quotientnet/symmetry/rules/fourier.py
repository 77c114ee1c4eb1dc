"""Rules of Fourier transforms: every frequency is a sum over all positions."""

from __future__ import annotations

import torch

from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import LogScale

__all__ = []


@rule(
    "aten::fft_fft", "aten::fft_ifft", "aten::fft_rfft", "aten::fft_irfft", "aten::fft_hfft",
    "aten::fft_ihfft",
)  # fmt: skip
def fourier(call, x, n=None, dim=-1, norm=None):
    """Every frequency is a sum over all positions."""
    return call.spread(call.equations.uniform(x, [dim]))


@rule("aten::fft_fft2", "aten::fft_ifft2", "aten::fft_rfft2", "aten::fft_irfft2")
def fourier_of_images(call, x, s=None, dim=(-2, -1), norm=None):
    """Every frequency is a sum over all positions."""
    return call.spread(call.equations.uniform(x, dim))


@rule(
    "aten::fft_fftn", "aten::fft_ifftn", "aten::fft_rfftn", "aten::fft_irfftn", "aten::fft_hfftn",
    "aten::fft_ihfftn",
)  # fmt: skip
def fourier_of_many(call, x, s=None, dim=None, norm=None):
    """Every frequency is a sum over all positions."""
    axes = range(len(x.shape)) if dim is None else dim
    return call.spread(call.equations.uniform(x, axes))


@rule("aten::stft")
def short_time(call, x, size, hop=None, window_size=None, window=None, *args, **kwargs):
    """Each frame is a sum over times of signal times window."""
    eq = call.equations
    x = eq.uniform(call.scale(x), [-1])
    if isinstance(window, LogScale):
        x = x + eq.uniform(window, [0])
    return call.spread(x.map(lambda t: t.unsqueeze(-1)))


@rule("aten::istft")
def inverse_short_time(
    call, x, size, hop=None, window_size=None, window=None, *args, **kwargs
):
    """Sums over frequencies and frames, divided by the window, which has one scale."""
    eq = call.equations
    x = eq.uniform(call.scale(x), [-1, -2]).map(lambda t: t[..., 0])
    if isinstance(window, LogScale):
        x = x - eq.uniform(window, [0])
    return call.spread(x)


@rule("aten::fft_fftshift", "aten::fft_ifftshift")
def shift(call, x, dim=None):
    """Moves entries: runs literally on the numbers of their unknowns."""
    operation = getattr(torch.ops.aten, call.operation.removeprefix("aten::"))
    return call.scale(x).map(lambda t: operation(t, dim))
