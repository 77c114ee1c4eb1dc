"""Rules on moves of operations that act on each entry by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from quotientnet.symmetry.translations.registry import shift_rule
from quotientnet.symmetry.translations.rules_products import contract
from quotientnet.symmetry.translations.shifts import Seen, Shift

__all__ = []

_INFINITE = 1e30
"""Numbers beyond this stay what they are under any move."""

_PASSING = (
    "clone detach alias contiguous lift_fresh lift_fresh_copy detach_copy positive to _to_copy "
    "type_as"
).split()


@shift_rule(*_PASSING)
def passing(call, x, *args, **kwargs):
    return x


@shift_rule("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(call, x, p, train):
    return call.pin(x) if train and p > 0 else x


@shift_rule("add", "sub", "rsub")
def add(call, x, y, alpha=1, **kwargs):
    alpha = kwargs.get("alpha", alpha)
    x, y = call.shift(x), call.shift(y)
    if call.operation.removesuffix("_").endswith("rsub"):
        x, y = y, x
    sign = 1.0 if call.operation.removesuffix("_").endswith("add") else -1.0
    return call.spread(x + y * (sign * alpha))


@shift_rule("neg")
def neg(call, x):
    return call.shift(x) * -1.0


@shift_rule("mul", "multiply", "div", "divide", "true_divide")
def mul(call, x, y, **kwargs):
    divides = "div" in call.operation
    if divides and kwargs.get("rounding_mode") is not None:
        return call.pin(x, y)
    if divides and isinstance(y, (Shift, Seen)):
        call.unknowns.pin(y)
        y = Shift(y.shape)
    if isinstance(y, (int, float)) or _is_number(y):
        number = float(y)
        return call.spread(call.shift(x) * (1 / number if divides else number))
    if isinstance(x, (int, float)) or _is_number(x):
        return call.spread(call.shift(y) * float(x))
    if divides:
        y = 1 / y if isinstance(y, Tensor) else y
    for a in (x, y):
        if isinstance(a, Seen):
            call.unknowns.pin(a)
    return call.spread(
        contract(call, _last(x), _last(y), [-1]).map(lambda t: t[..., 0])
    )


def _is_number(x) -> bool:
    return isinstance(x, Tensor) and x.numel() == 1


def _last(x):
    """With one more axis, of length one."""
    if isinstance(x, (int, float)):
        x = torch.tensor(float(x))
    return x[..., None] if isinstance(x, Tensor) else x.map(lambda t: t[..., None])


@shift_rule("masked_fill")
def masked_fill(call, x, mask, value):
    return where(call, mask, value, x)


@shift_rule("where")
def where(call, condition, x, y):
    """Both move alike; what is infinite moves with everything."""
    call.unknowns.pin(condition)
    for a, b in ((x, y), (y, x)):
        if isinstance(a, (int, float, Tensor)):
            if bool((torch.as_tensor(a).abs() > _INFINITE).all()):
                return call.spread(call.shift(b))
    x, y = (Shift(call.shape, call.shift(z).terms) for z in (x, y))
    return call.unknowns.equal(x, y) if x.terms or y.terms else Shift(call.shape)
