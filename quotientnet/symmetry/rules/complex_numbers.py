"""Rules of complex numbers: real and imaginary part have one scale."""

from __future__ import annotations

from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import LogScale

__all__ = []


@rule("aten::view_as_complex")
def view_as_complex(call, x):
    """Real and imaginary part have one scale."""
    return call.spread(call.equations.uniform(x, [-1]).map(lambda t: t[..., 0]))


@rule("aten::view_as_real")
def view_as_real(call, x):
    """Real and imaginary part have one scale."""
    return call.scale(x).map(lambda t: t.unsqueeze(-1).expand(call.shape))


@rule("aten::complex")
def from_parts(call, real, imaginary):
    """Real and imaginary part have one scale."""
    return call.spread(call.equations.equal(call.scale(real), call.scale(imaginary)))


@rule("aten::polar")
def polar(call, length, angle):
    """The scale is that of the length; angles are pinned."""
    if isinstance(angle, LogScale):
        call.equations.pin(angle)
    return call.spread(call.equations.resolve(call.scale(length)))


@rule("aten::real", "aten::imag", "aten::conj", "aten::_conj", "aten::conj_physical",
      "aten::resolve_conj", "aten::resolve_neg")  # fmt: skip
def part(call, x):
    """The scale passes."""
    return x


@rule("aten::angle")
def angle(call, x):
    """Unchanged by any positive scale."""
    return call.equations.pinned(*call.shape)


@rule("aten::atan2", "aten::arctan2")
def angle_of_both(call, y, x):
    """Unchanged by a scale common to both sides."""
    call.equations.equal(call.scale(x), call.scale(y))
    return call.equations.pinned(*call.shape)
