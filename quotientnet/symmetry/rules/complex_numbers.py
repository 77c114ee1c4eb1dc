"""Rules of complex numbers: real and imaginary part have one scale."""

from __future__ import annotations

from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import LogScale

__all__ = []


@rule("aten::view_as_complex")
def view_as_complex(call, x):
    return call.spread(call.equations.uniform(x, [-1]).map(lambda t: t[..., 0]))


@rule("aten::view_as_real")
def view_as_real(call, x):
    return call.scale(x).map(lambda t: t.unsqueeze(-1).expand(call.shape))


@rule("aten::complex")
def from_parts(call, real, imaginary):
    return call.spread(call.equations.equal(call.scale(real), call.scale(imaginary)))


@rule("aten::polar")
def polar(call, length, angle):
    if isinstance(angle, LogScale):
        call.equations.pin(angle)
    return call.spread(call.equations.resolve(call.scale(length)))


@rule("aten::real", "aten::imag", "aten::conj", "aten::_conj", "aten::conj_physical",
      "aten::resolve_conj", "aten::resolve_neg")  # fmt: skip
def part(call, x):
    return x


@rule("aten::angle")
def angle(call, x):
    """Unchanged by any positive scale."""
    return call.equations.pinned(*call.shape)


@rule(
    "aten::fft_fft", "aten::fft_ifft", "aten::fft_rfft", "aten::fft_irfft", "aten::fft_hfft",
    "aten::fft_ihfft",
)  # fmt: skip
def fourier(call, x, n=None, dim=-1, norm=None):
    """Every frequency is a sum over all positions."""
    return call.spread(call.equations.uniform(x, [dim]))


@rule("aten::fft_fft2", "aten::fft_ifft2", "aten::fft_rfft2", "aten::fft_irfft2")
def fourier_of_images(call, x, s=None, dim=(-2, -1), norm=None):
    return call.spread(call.equations.uniform(x, dim))
