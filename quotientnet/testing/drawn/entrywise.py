"""Operations entry by entry: of one result, with a parameter, of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from quotientnet.testing.drawn.registry import (
    Kind,
    Operation,
    Tensors,
    alike,
    an_axis,
    family,
)

__all__: list[str] = []

# -- one parameter an entry ---


def _where(choose, x: Kind) -> dict:
    """Along which axes a parameter varies; on images, only along channels."""
    if x.image:
        return {"axes": (0,)}
    every = tuple(range(len(x.shape)))
    return {"axes": choose(list(dict.fromkeys([every[-1:], every, (), (0,)])))}


def _weight_of(x: Kind, axes: Sequence[int]) -> Tensors:
    shape = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    return Tensors(weight=shape)


def _by_parameter(function: Callable) -> Operation:
    return Operation(
        lambda layer, x, axes: function(x, layer.weight), lambda x: True, _where, _weight_of,
        image=True,
    )  # fmt: skip


family(
    "parameter",
    scaled=_by_parameter(torch.mul),
    shifted=_by_parameter(torch.add),
    divided=_by_parameter(torch.div),
    gated=_by_parameter(lambda x, w: x * torch.sigmoid(w)),
    prelu=Operation(
        lambda layer, x: layer(x),
        lambda x: x.mixed,  # else a slope is a factor, or has no effect
        layer=lambda x: nn.PReLU(x.shape[0]),
        image=True,
    ),
)


def _plain(function: Callable, fits=lambda x: True) -> Operation:
    return Operation(lambda _, x: function(x), fits, image=True)


# -- entry by entry ---

family("relu", relu=_plain(F.relu))

family(
    "homogeneous",
    leaky_relu=_plain(F.leaky_relu),
    abs=_plain(torch.abs),
    neg=_plain(torch.neg),
    tripled=_plain(lambda x: 3.0 * x),
    square=_plain(torch.square),
    cube=_plain(lambda x: x**3),
    root=_plain(lambda x: x.abs().sqrt(), lambda x: not x.zeros),
    reciprocal=_plain(lambda x: 1.0 / x.abs().sqrt(), lambda x: not x.zeros),
    clamp=_plain(lambda x: x.clamp(max=0.0)),
)

family(
    "pinning",
    gelu=_plain(F.gelu),
    tanh=_plain(torch.tanh),
    sigmoid=_plain(torch.sigmoid),
    softplus=_plain(F.softplus),
    plus_one=_plain(lambda x: x + 1.0),
    logsumexp=Operation(
        lambda _, x, dim: x.logsumexp(dim, True), lambda x: min(x.shape) > 1, an_axis
    ),
    softmax=Operation(
        lambda _, x, dim: x.softmax(dim), lambda x: min(x.shape) > 1, an_axis
    ),
    log_softmax=Operation(
        lambda _, x, dim: x.log_softmax(dim), lambda x: min(x.shape) > 1, an_axis
    ),
)


def _two(function: Callable, fits: Callable = alike) -> Operation:
    return Operation(lambda _, x, y: function(x, y), fits, arity=2, image=True)


family("add", add=_two(torch.add))

family(
    "two",
    mul=_two(torch.mul),
    sub=_two(torch.sub),
    div=_two(torch.div, lambda x, y: alike(x, y) and not y.zeros),
    maximum=_two(torch.maximum),
    minimum=_two(torch.minimum),
    gate=_two(lambda x, y: x * torch.sigmoid(y)),
    swiglu=_two(lambda x, y: F.silu(x) * y),
    hypot=_two(torch.hypot, lambda x, y: alike(x, y) and not (x.zeros or y.zeros)),
    addcmul=Operation(
        lambda _, x, y, z: torch.addcmul(x, y, z), alike, arity=3, image=True
    ),
    cosine=Operation(
        lambda _, x, y: F.cosine_similarity(x, y, -1),
        lambda x, y: alike(x, y)
        and len(x.shape) > 1 < x.shape[-1]
        and not (x.zeros or y.zeros),
        arity=2,
    ),
    distances=Operation(
        lambda _, x, y: torch.cdist(x, y),
        lambda x, y: len(x.shape) == len(y.shape) == 2 and x.shape[1] == y.shape[1],
        arity=2,
    ),
    kron=Operation(
        lambda _, x, y: torch.einsum("ni,nj->nij", x, y).flatten(1),
        lambda x, y: len(x.shape) == len(y.shape) == 1,
        arity=2,
    ),
    lerp=_two(lambda x, y: torch.lerp(x, y, 0.3)),
    # Both without a jump where the condition changes: derivatives say nothing of jumps.
    where_positive=Operation(
        lambda _, x, y, z: torch.where(x > 0, x * y, x * z),
        lambda x, y, z: alike(x, y, z) and x.mixed,
        arity=3,
        image=True,
    ),
    where_greater=_two(lambda x, y: torch.where(x > y, x - y, y - x)),
    where_input=Operation(
        lambda _, x, y, z: torch.where(
            x.flatten(1)[:, 0].view(-1, *[1] * (y.ndim - 1)) > 0, y, z
        ),
        lambda x, y, z: x.given and alike(y, z),
        arity=3,
        image=True,
    ),
    per_row=Operation(  # a number for each row
        lambda _, x, y: x * y.unsqueeze(-1),
        lambda x, y: len(x.shape) > 1 and x.shape[:-1] == y.shape,
        arity=2,
    ),
)  # fmt: skip
