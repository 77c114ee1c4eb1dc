"""Weights that are computed, and recurrent layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quotientnet.testing.drawn.registry import (
    WIDTHS,
    Kind,
    Operation,
    Tensors,
    family,
)

__all__: list[str] = []


def _out(choose, x: Kind, *_) -> dict:
    return {"out": choose(WIDTHS)}


def _by(function: Callable[[nn.Module], Tensor], **shapes: str) -> Operation:
    """``x @ function(parameters)``: of ``i`` inputs, ``o`` outputs, 1 or 2 along each axis."""

    def make(x: Kind, out: int) -> Tensors:
        sizes = {"i": x.shape[-1], "o": out, "1": 1, "2": 2}
        return Tensors(**{k: [sizes[a] for a in v] for k, v in shapes.items()})

    return Operation(
        lambda layer, x, out: x @ function(layer), options=_out, layer=make
    )


def _weight_norm(layer, x: Tensor, out: int, written: bool) -> Tensor:
    if written:
        size = layer.direction.norm(dim=1, keepdim=True)
        return F.linear(x, layer.length * layer.direction / size, layer.bias)
    weight = torch._weight_norm(layer.direction, layer.length, 0)
    return F.linear(x, weight, layer.bias)


def _standardised(layer) -> Tensor:
    centred = layer.weight - layer.weight.mean(0)
    return centred / centred.square().sum(0).sqrt()


family(
    "weight",
    product=_by(lambda layer: layer.weight, weight="io"),
    low_rank=_by(lambda layer: layer.left @ layer.right, left="i2", right="2o"),
    adapted=_by(
        lambda layer: layer.weight + layer.left @ layer.right, weight="io", left="i2", right="2o"
    ),
    scaled_weight=_by(lambda layer: layer.weight * layer.scale, weight="io", scale="1o"),
    sum_of_weights=_by(lambda layer: layer.weight + layer.other.abs(), weight="io", other="1o"),
    squared_weight=_by(lambda layer: layer.weight.square(), weight="io"),
    outer_weight=_by(lambda layer: torch.outer(layer.left, layer.right), left="i", right="o"),
    normalised_weight=_by(lambda layer: F.normalize(layer.weight, dim=0), weight="io"),
    gated_weight=_by(lambda layer: layer.weight * torch.sigmoid(layer.gate), weight="io", gate="o"),
    mixing_weight=_by(lambda layer: layer.weight.softmax(0), weight="io"),
    symmetric=Operation(
        lambda layer, x: x @ (layer.weight + layer.weight.mT),
        layer=lambda x: Tensors(weight=2 * x.shape[-1:]),
    ),
    triangular=Operation(
        lambda layer, x: x @ layer.weight.tril(), layer=lambda x: Tensors(weight=2 * x.shape[-1:])
    ),
    fused=Operation(
        lambda layer, x, out: tuple(F.linear(x, w) for w in layer.weight.chunk(2)),
        options=_out,
        layer=lambda x, out: Tensors(weight=(2 * out, x.shape[-1])),
    ),
    standardised_weight=Operation(
        lambda layer, x, out: x @ _standardised(layer),
        lambda x: x.shape[-1] >= 3,
        _out,
        lambda x, out: Tensors(weight=(x.shape[-1], out)),
    ),
    weight_norm=Operation(
        _weight_norm,
        options=lambda choose, x: _out(choose, x) | {"written": choose((False, True))},
        layer=lambda x, out, written: Tensors(
            direction=(out, x.shape[-1]), length=(out, 1), bias=(out,)
        ),
    ),
    bilinear=Operation(
        lambda layer, x, y, **_: layer(x, y),
        lambda x, y: x.shape[:-1] == y.shape[:-1],
        lambda choose, x, y: {"out": choose(WIDTHS), "bias": choose((True, False))},
        lambda x, y, out, bias: nn.Bilinear(x.shape[-1], y.shape[-1], out, bias),
        arity=2,
    ),
    heads=Operation(  # a matrix for each head
        lambda layer, x: torch.einsum("n...i,hio->n...ho", x, layer.weight).flatten(-2),
        layer=lambda x: Tensors(weight=(2, x.shape[-1], 2)),
    ),
)  # fmt: skip

family(
    "recurrence",
    recurrent=Operation(
        lambda layer, x, kind: layer(x)[0],
        lambda x: len(x.shape) == 2 and x.shape[0] > 1,
        lambda choose, x: {"kind": choose(("RNN", "GRU", "LSTM"))},
        lambda x, kind: getattr(nn, kind)(
            x.shape[1],
            2,
            batch_first=True,
            **({"nonlinearity": "relu"} if kind == "RNN" else {}),
        ),
    ),
    steps=Operation(  # the same layer at each step, its state kept
        lambda layer, x: _steps(layer, x),
        lambda x: len(x.shape) == 2 and 1 < x.shape[0] < 4,
        layer=lambda x: nn.ModuleDict(
            {"first": nn.Linear(x.shape[1], 2), "own": nn.Linear(2, 2)}
        ),
    ),
)


def _steps(layer, x: Tensor) -> Tensor:
    """The states of a recurrence that starts at zero."""
    states = [torch.zeros_like(x[:, 0, :1]).expand(-1, 2)]
    for step in x.unbind(1):
        states.append(F.relu(layer["first"](step) + layer["own"](states[-1])))
    return torch.stack(states[1:], 1)
