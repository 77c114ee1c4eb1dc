"""What a module computes in float64 when the ``eps`` of its normalisations has no effect."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from quotientnet.symmetry.guards import LARGEST, PASSING, REDUCTIONS

__all__ = ["Degenerate", "Exact", "EXACT", "refuse_constant"]

EXACT = 1e-200
"""The ``eps`` that stands in for 0, which batch normalisation refuses in train mode."""


class Degenerate(ArithmeticError):
    """A channel is constant where it is to be normalised."""


class Exact(TorchFunctionMode):
    """Normalisations with an ``eps`` that has no effect, float64 where a module asks for less.

    Normalisations may be functions of torch, or written out: a small constant that guards a
    division by a size is left out there. Constant channels are refused.
    """

    def __init__(self):
        super().__init__()
        self.normalises = False
        self._sizes: dict[int, Tensor] = {}
        self._unguarded: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(isinstance(a, torch.dtype) for a in (*args, *kwargs.values())):
            args, kwargs = tree_map_only(torch.dtype, _double, (args, kwargs))
        function = Tensor.double if function in _SHORTENS else function
        if getattr(function, "__name__", "") in ("grouped_mm", "_grouped_mm"):
            function = _grouped_product
        if function not in _EPS:
            return self._without_guards(function, args, kwargs)
        self.normalises = True
        if function in _GROUPS:
            x, groups = [*args, *kwargs.values()][:2]
            _refuse_constant_groups(x, groups)
        if function in _SIGNATURES:
            bound = _SIGNATURES[function].bind(*args, **kwargs)
            if bound.arguments.get("training") or bound.arguments.get(
                "use_input_stats"
            ):
                x = bound.arguments["input"]
                first = 2 if function is F.instance_norm else 0
                refuse_constant(x, [a for a in range(x.ndim) if a >= first and a != 1])
            bound.arguments["eps"] = EXACT
            return function(*bound.args, **bound.kwargs)
        place = _EPS[function]
        if len(args) > place:
            return function(*args[:place], EXACT, *args[place + 1 :], **kwargs)
        return function(*args, **kwargs | {"eps": EXACT})

    # -- normalisations that are written out ---

    def _without_guards(self, function, args, kwargs):
        """A call, its divisors without the constants that guard them; keeps track of those."""
        name = getattr(function, "__name__", "").strip("_")
        place = _DIVISOR.get(name)
        if name == "pow" and len(args) == 2 and isinstance(args[1], (int, float)):
            place = 0 if args[1] < 0 else None
        if place is not None and self._divides_guarded(place, args, kwargs):
            self.normalises = True
            free = self._unguarded[id(args[place])][1] + EXACT
            args = (*args[:place], free, *args[place + 1 :])
        result = function(*args, **kwargs)
        if args and isinstance(result, Tensor) and isinstance(args[0], Tensor):
            self._follow(name, function, args, kwargs, result)
        return result

    def _divides_guarded(self, place: int, args, kwargs) -> bool:
        """Whether a call divides something else by a size and its guard, without rounding."""
        if len(args) <= place or kwargs or id(args[place]) not in self._unguarded:
            return False
        return not any(a is args[place] for i, a in enumerate(args) if i != place)

    def _follow(self, name: str, function, args, kwargs, result: Tensor) -> None:
        """Remember a result if it is a size, or a size and a guard, with what it is without."""
        first, passes = id(args[0]), name in (*PASSING, *_ALSO_PASSING)
        if name in REDUCTIONS or (passes and first in self._sizes):
            self._sizes[id(result)] = result
        elif passes and first in self._unguarded:
            free = function(self._unguarded[first][1], *args[1:], **kwargs)
            self._unguarded[id(result)] = result, free
        elif first in self._sizes and _guards(name, args, kwargs):
            self._unguarded[id(result)] = result, args[0]


def _guards(name: str, args, kwargs) -> bool:
    """Whether a call adds a small number to its first argument, or clamps it from below."""
    if (
        name not in ("add", "radd", "clamp_min", "clamp")
        or kwargs.get("max") is not None
    ):
        return False
    options = [v for name, v in kwargs.items() if (name, v) != ("alpha", 1)]
    numbers = [v for v in (*args[1:], *options) if v is not None]
    lower = name != "clamp" or len(args) < 2 or args[1] is not None
    return (
        lower and len(numbers) == 1
        and isinstance(numbers[0], float) and 0 < numbers[0] <= LARGEST
    )  # fmt: skip


def _double(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def _grouped_product(x: Tensor, weights: Tensor, *, offs: Tensor, bias=None, **options):
    """Rows of ``x``, in groups that end where ``offs`` says, times one of many matrices each.

    torch's own has no float64. Rows after the last group are zero.
    """
    ends = [0, *offs.tolist()]
    parts = [x[a:b] @ w for a, b, w in zip(ends, ends[1:], weights)]
    rest = x.new_zeros(len(x) - ends[-1], weights.shape[-1])
    product = torch.cat([*parts, rest])
    return product if bias is None else product + bias


_SHORTENS = {Tensor.float, Tensor.half, Tensor.bfloat16}

_DIVISOR = {
    "div": 1, "divide": 1, "true_divide": 1, "truediv": 1, "itruediv": 1, "div_": 1,
    "rsqrt": 0, "reciprocal": 0, "rtruediv": 0, "rdiv": 0,
}  # fmt: skip
"""Which argument a function divides by, or by the root of."""

_ALSO_PASSING = ("float", "double", "half", "bfloat16", "pow", "type", "getitem")

_EPS = {
    F.batch_norm: 7, F.instance_norm: 7, F.layer_norm: 4, F.group_norm: 4, F.rms_norm: 3,
    torch.batch_norm: 7, torch.instance_norm: 7, torch.layer_norm: 4, torch.group_norm: 4,
    torch.rms_norm: 3, F.normalize: 3, F.cosine_similarity: 3, torch.cosine_similarity: 3,
}  # fmt: skip
"""Where normalisations have their ``eps``."""

_GROUPS = {F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm}
"""Those that centre groups of each sample: the shape of one is their second argument, or how many
groups of channels there are."""

_SIGNATURES = {
    function: inspect.signature(function)
    for function in (F.batch_norm, F.instance_norm)
}


def _refuse_constant_groups(x: Tensor, groups) -> None:
    if isinstance(groups, int):
        refuse_constant(x.reshape(len(x), groups, -1), [2])
    else:
        refuse_constant(x, list(range(-len(groups), 0)))


def refuse_constant(x: Tensor, axes, *, zeros: bool = False) -> None:
    """Refuse channels whose variance is lost to rounding; those that are zero on request."""
    if all(x.shape[a] == 1 for a in axes):
        return  # nothing but the shift is left, without rounding
    square = x.detach().square().mean(axes)
    lost = x.detach().var(axes, correction=0) <= 1e-20 * square
    if (lost if zeros else lost & (square > 0)).any():
        raise Degenerate("a channel is constant where it is to be normalised")
