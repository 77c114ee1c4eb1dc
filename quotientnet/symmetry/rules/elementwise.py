"""Rules of operations that act on each entry by itself."""

from __future__ import annotations

from fractions import Fraction
from math import isfinite

import torch
from torch import Tensor

from quotientnet.symmetry.chosen import choose
from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import LogScale, Unset, compact

__all__ = []

HOMOGENEOUS = (
    "relu leaky_relu rrelu abs neg dropout feature_dropout positive clone detach alias contiguous "
    "lift_fresh lift_fresh_copy detach_copy deg2rad rad2deg"
).split()


@rule(*(f"aten::{name}" for name in HOMOGENEOUS))
def homogeneous(call, x, *args, **kwargs):
    """Positively homogeneous: the scale passes."""
    return x


@rule("aten::alpha_dropout", "aten::feature_alpha_dropout")
def alpha_dropout(call, x, p, train):
    """Dropped entries get a fixed value in train mode, which pins; otherwise the scale passes."""
    return call.pin(x) if train and p > 0 else x


@rule("aten::prelu")
def prelu(call, x, slope):
    """The scale passes; slopes are pinned."""
    call.equations.pin(call.scale(slope))
    return call.scale(x)


@rule("aten::threshold")
def threshold(call, x, threshold, value):
    """Homogeneous at zero only; pinned at other thresholds."""
    return x if threshold == value == 0 else call.pin(x)


@rule("aten::clamp", "aten::clip")
def clamp(call, x, min=None, max=None):
    """A maximum and a minimum: homogeneous in ``x`` and the bounds together; zero fits any."""
    x = call.scale(x)
    for bound in (min, max):
        if bound is not None:
            x = call.equations.equal(x, call.scale(bound))
    return call.spread(call.equations.resolve(x))


@rule("aten::clamp_min", "aten::clamp_max")
def clamp_one_side(call, x, bound):
    """A maximum or minimum: homogeneous in both arguments together."""
    return clamp(call, x, bound)


@rule("aten::normal")
def normal(call, mean, deviation, *args, **kwargs):
    """Mean and deviation have one scale."""
    return call.spread(call.equations.equal(call.scale(mean), call.scale(deviation)))


@rule("aten::add", "aten::sub", "aten::rsub", "aten::subtract")
def add(call, x, y, *args, alpha=1):
    """Terms of a sum have one scale."""
    return call.equations.equal(call.scale(x), call.scale(y))


@rule(
    "aten::maximum",
    "aten::minimum",
    "aten::fmax",
    "aten::fmin",
    "aten::lerp",
    "aten::hypot",
)
def alike(call, x, y, *args):
    """Homogeneous in both arguments together; a weight after them is pinned."""
    for other in args:
        call.equations.pin(call.scale(other))
    return call.spread(call.equations.equal(call.scale(x), call.scale(y)))


@rule("aten::where")
def where(call, condition, x, y):
    """What is selected from has one scale; each its own where whole rows are selected."""
    eq = call.equations
    rows = torch.Size(condition.shape).numel() < torch.Size(call.shape).numel()
    known = any(isinstance(each, (Tensor, float, int)) for each in (condition, x, y))
    x, y = call.scale(x), call.scale(y)
    if known or not rows or eq.has_zeros(x) or eq.has_zeros(y):
        return call.spread(eq.equal(x, y))
    ids = (compact(eq.single(each).terms[0][1]) for each in (x, y))
    both = torch.stack(torch.broadcast_tensors(*ids), -1)
    which = eq.choices.variables(*condition.shape)
    return call.spread(choose(eq, LogScale([(1, both)], (*call.shape, 2)), which))


@rule("aten::masked_fill")
def masked_fill(call, x, mask, value):
    """What is filled in has the scale of the rest; zeros and infinities fit any."""
    return call.spread(call.equations.equal(call.scale(x), call.scale(value)))


@rule("aten::mul", "aten::multiply")
def mul(call, x, y):
    """Scales of factors multiply."""
    x, y = call.scale(x), call.scale(y)
    for factor, other in ((x, y), (y, x)):
        if _without_effect(other) and factor.shape == call.shape:
            return factor
    eq = call.equations
    return eq.simplify(eq.resolve(x) + eq.resolve(y))


@rule("aten::div", "aten::divide", "aten::true_divide")
def div(call, x, y, *, rounding_mode=None):
    """Scales divide; pinned by rounding, and by a divisor that is zero somewhere."""
    if rounding_mode is not None:
        return call.pin(x, y)
    eq, x, y = call.equations, call.scale(x), call.scale(y)
    if _without_effect(y) and x.shape == call.shape:
        return x
    return eq.simplify(eq.resolve(x) - eq.resolve(y))


def _without_effect(x) -> bool:
    """Whether multiplying by ``x`` changes no scale."""
    return not isinstance(x, Unset) and not x.terms


@rule("aten::addcmul")
def addcmul(call, x, y, z, *, value=1):
    """A sum with a product."""
    return add(call, x, mul(call, y, z))


@rule("aten::addcdiv")
def addcdiv(call, x, y, z, *, value=1):
    """A sum with a quotient."""
    return add(call, x, div(call, y, z))


def power_rule(name: str, exponent: Fraction) -> None:
    """Register ``x^exponent``."""

    @rule(f"aten::{name}")
    def fixed_power(call, x):
        """Scales take the power."""
        return _power(call, x, exponent)


for _name, _exponent in (
    ("square", Fraction(2)), ("sqrt", Fraction(1, 2)), ("rsqrt", Fraction(-1, 2)),
    ("reciprocal", Fraction(-1)),
):  # fmt: skip
    power_rule(_name, _exponent)


@rule("aten::nan_to_num")
def nan_to_num(call, x, nan=None, posinf=None, neginf=None):
    """Zeros in place of what is no number pass; other fixed numbers are pinned."""
    fixed = nan or posinf is not None or neginf is not None
    return call.pin(x) if fixed else call.scale(x)


@rule("aten::pow", "aten::float_power")
def pow(call, x, exponent):
    """A rational power of small denominator; others are pinned."""
    if isinstance(exponent, torch.Tensor) and exponent.numel() == 1:
        exponent = exponent.item()
    if isinstance(exponent, (int, float)) and isfinite(exponent):
        fraction = Fraction(exponent).limit_denominator(64)
        if float(fraction) == float(exponent):
            return call.spread(_power(call, call.scale(x), fraction))
    return call.pin(x, exponent)


def _power(call, x, exponent: Fraction):
    return call.equations.power(call.equations.resolve(x), exponent)


@rule("aten::glu")
def glu(call, x, dim=-1):
    """Values pass, gates are pinned."""
    half = x.shape[dim] // 2
    value, gate = (x.map(lambda t: t.narrow(dim, start, half)) for start in (0, half))
    call.equations.pin(gate)
    return value


@rule("aten::_assert_tensor_metadata", "aten::_assert_async", "aten::sym_size")
def no_result(call, *args, **kwargs):
    """Checks of shapes and types."""
    return None


@rule(
    "aten::sign", "aten::sgn", "aten::signbit", "aten::isnan", "aten::isinf", "aten::isfinite",
    "aten::logical_not", "aten::logical_and", "aten::logical_or", "aten::logical_xor",
    "aten::count_nonzero", "aten::any", "aten::all", "aten::isneginf", "aten::isposinf",
)  # fmt: skip
def sign(call, x, *args, **kwargs):
    """Unchanged by any positive scale."""
    return call.equations.pinned(*call.shape)


@rule("aten::copysign")
def copysign(call, x, sign):
    """The scale of the first; of the second only signs count."""
    return call.spread(call.equations.resolve(call.scale(x)))


@rule("aten::heaviside")
def heaviside(call, x, values):
    """Unchanged by any positive scale; what is taken at zero is pinned."""
    return call.equations.pin(call.scale(values).map(lambda t: t.expand(call.shape)))


@rule("aten::ldexp")
def ldexp(call, x, exponent):
    """The scale passes; exponents are pinned."""
    call.equations.pin(call.scale(exponent))
    return call.spread(call.equations.resolve(call.scale(x)))


@rule("aten::gt", "aten::ge", "aten::lt", "aten::le", "aten::eq", "aten::ne")
def compare(call, x, y):
    """Unchanged by a scale common to both sides, any scale against zero."""
    call.equations.equal(call.scale(x), call.scale(y))
    return call.equations.pinned(*call.shape)


@rule("aten::copy", "aten::copy_")
def copy(call, target, source, non_blocking=False):
    """The scale of what is copied."""
    return call.spread(call.equations.resolve(call.scale(source)))


@rule("aten::fill", "aten::zero")
def fill(call, x, value=0.0):
    """The scale of what is filled in; zero fits any."""
    return call.spread(call.scale(value))


@rule("aten::to", "aten::_to_copy", "aten::type_as")
def to(call, x, *args, **kwargs):
    """A change of dtype or device; to integers, it pins as every integer result does."""
    return call.scale(x)
