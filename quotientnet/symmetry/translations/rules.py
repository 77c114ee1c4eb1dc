"""Rules of operations on moves: what passes them, what they forget; all else may not move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from quotientnet.symmetry.rules.shapes import MOVES
from quotientnet.symmetry.translations.shifts import (
    Averages,
    Seen,
    Shift,
    Term,
)
from quotientnet.symmetry.translations.unknowns import Unknowns

__all__ = ["SHIFT_RULES", "ShiftCall", "shift_rule"]

SHIFT_RULES: dict[str, Callable] = {}
"""The rule of each operation that a move survives, by its name."""

_INFINITE = 1e30
"""Numbers beyond this stay what they are under any move."""


@dataclass
class ShiftCall:
    """One call of an operation.

    Attributes:
        unknowns: Where the rule imposes what the operation needs.
        shape: Of the result, or of the first of several.
        operation: Its name, such as ``"aten::add"``.
    """

    unknowns: Unknowns
    shape: tuple[int, ...]
    operation: str

    def shift(self, x) -> Shift:
        """By how much an argument moves."""
        return self.unknowns.shift(x)

    def pin(self, *values) -> Shift:
        """Let values not move; a result that does not."""
        self.unknowns.pin(*values)
        return Shift(self.shape)

    def spread(self, x: Shift) -> Shift:
        """``x`` broadcast to the shape of the result."""
        return Shift(self.shape, x.terms)

    def uniform(self, x, axes, *, absorb: bool = False) -> Shift:
        """See :meth:`Unknowns.uniform`."""
        return self.unknowns.uniform(self.shift(x), axes, absorb=absorb)


def shift_rule(*names: str) -> Callable[[Callable], Callable]:
    """Register the rule of operations, by their names in aten."""

    def register(function: Callable) -> Callable:
        SHIFT_RULES.update({f"aten::{name}": function for name in names})
        return function

    return register


# -- moves of entries ---


def moved(operation, x, args, kwargs):
    """The operation applied to what tells where entries come from."""
    shape = x.shape
    example = operation(
        torch.zeros((), dtype=torch.long).expand(shape), *args, **kwargs
    )
    if isinstance(example, Tensor):
        return x.map(lambda t: operation(t, *args, **kwargs))
    return [
        x.map(lambda t, i=i: operation(t, *args, **kwargs)[i])
        for i in range(len(example))
    ]


def _register(name: str) -> None:
    as_view = name in ("view", "_unsafe_view")
    operation = getattr(torch.ops.aten, "reshape" if as_view else name)

    @shift_rule(name)
    def moving(call, x, *args, **kwargs):
        odd = (Shift, Seen, torch.dtype)
        if any(isinstance(a, odd) for a in (*args, *kwargs.values())):
            return call.pin(x, *args)
        return moved(operation, x, args, kwargs)


for _name in MOVES:
    if hasattr(torch.ops.aten, _name):
        _register(_name)


@shift_rule("expand_as", "view_as", "reshape_as")
def like_another(call, x, other):
    change = "expand" if call.operation.endswith("expand_as") else "reshape"
    return _mapped(x, lambda t: getattr(t, change)(call.shape))


@shift_rule("index")
def index(call, x, indices):
    by_data = [a for a, i in enumerate(indices) if isinstance(i, (Shift, Seen))]
    if by_data:
        x = call.uniform(x, by_data)
        indices = [
            torch.zeros(i.shape, dtype=torch.long) if a in by_data else i
            for a, i in enumerate(indices)
        ]
    return moved(torch.ops.aten.index, x, (indices,), {})


@shift_rule("index_select", "gather")
def index_along(call, x, dim, places, **kwargs):
    if isinstance(places, (Shift, Seen)):
        x, places = call.uniform(x, [dim]), torch.zeros(places.shape, dtype=torch.long)
    single = len(places.shape) <= 1
    operation = torch.ops.aten.index_select if single else torch.ops.aten.gather
    return moved(operation, x, (dim, places), {})


def _join(name: str) -> None:
    operation = getattr(torch.ops.aten, name)

    @shift_rule(name)
    def joined(call, tensors, *args, **kwargs):
        shifts = [call.shift(x) for x in tensors]
        kinds = sorted({_kind(t) for s in shifts for t in s.terms})
        terms = []
        for kind in kinds:
            own = [[t for t in s.terms if _kind(t) == kind] for s in shifts]
            for n in range(max(map(len, own))):
                each = [o[n] if n < len(o) else _still(s) for o, s in zip(own, shifts)]
                site, places = (
                    operation([getattr(t, field) for t in each], *args, **kwargs)
                    for field in ("site", "index")
                )
                terms.append(Term(kind[0], site, places))
        return Shift(call.shape, terms)


def _kind(term: Term) -> tuple[float, bool]:
    """Terms of one kind may share one tensor of sites."""
    return term.coefficient, term.constant


def _still(x: Shift) -> Term:
    zeros = torch.zeros((), dtype=torch.long).expand(x.shape)
    return Term(1.0, zeros, zeros)


for _name in ("cat", "concat", "stack", "hstack", "vstack", "dstack", "column_stack"):
    _join(_name)


@shift_rule("pad", "constant_pad_nd")
def pad(call, x, padding, mode="constant", value=None):
    if mode != "constant" and isinstance(mode, str):
        return call.pin(x)
    x = call.shift(x)
    return x.map(lambda t: torch.nn.functional.pad(t, padding))


# -- entry by entry ---

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


# -- sums, maxima ---


def _axes(x, dim) -> list[int]:
    if dim is None or dim == []:
        return list(range(len(x.shape)))
    return [dim] if isinstance(dim, int) else list(dim)


def _reduced(call, x, axes) -> Shift:
    """``x``, alike along axes, in the shape of the result."""
    x, axes = call.uniform(x, axes), [a % max(len(x.shape), 1) for a in axes]
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
    x = call.uniform(x, [dim])
    if len(call.shape) < len(x.shape):
        return [x.map(lambda t: t.select(dim, 0)), Shift(call.shape)]
    return [x.map(lambda t: t.narrow(dim, 0, call.shape[dim])), Shift(call.shape)]


def _pooling(dims: int) -> None:
    @shift_rule(f"max_pool{dims}d", f"adaptive_avg_pool{dims}d", f"adaptive_max_pool{dims}d",
                f"_adaptive_avg_pool{dims}d", f"max_pool{dims}d_with_indices")  # fmt: skip
    def pool(call, x, *args, **kwargs):
        x = call.uniform(x, range(-dims, 0))
        first = (..., *[slice(0, 1)] * dims)
        result = call.spread(x.map(lambda t: t[first].expand(call.shape)))
        pairs = "indices" in call.operation or "adaptive_max" in call.operation
        return [result, Shift(call.shape)] if pairs else result

    @shift_rule(f"avg_pool{dims}d")
    def average(call, x, size, stride=None, padding=0, ceil_mode=False, *args):
        padded = any([padding] if isinstance(padding, int) else padding)
        return call.pin(x) if padded or ceil_mode or args else pool(call, x)


for _dims in (1, 2, 3):
    _pooling(_dims)


# -- normalisations and softmax ---


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


# -- products ---


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
    if isinstance(other, Averages) and other.along(axes):
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
        y = _mapped(y, lambda t: t.mT)
    row, column = len(x.shape) == 1, len(y.shape) == 1
    x = _mapped(x, lambda t: t[None]) if row else x
    y = _mapped(y, lambda t: t[:, None]) if column else y
    x = _mapped(x, lambda t: t.unsqueeze(-2))
    y = _mapped(y, lambda t: t.transpose(-1, -2).unsqueeze(-3))
    out = contract(call, x, y, [-1]).map(lambda t: t[..., 0])
    out = out.map(lambda t: t.squeeze(-2)) if row else out
    return call.spread(out.map(lambda t: t.squeeze(-1)) if column else out)


def _mapped(x, function):
    return function(x) if isinstance(x, Tensor) else x.map(function)


@shift_rule("linear")
def linear(call, x, weight, bias=None):
    out = matmul(
        call, x, _mapped(weight, lambda t: t.t()) if len(weight.shape) > 1 else weight
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
