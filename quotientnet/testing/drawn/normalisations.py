"""Normalisations, whole and written out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quotientnet.testing.drawn.registry import (
    Kind,
    Operation,
    family,
    positioned,
)

__all__: list[str] = []

EPS = 1e-30
"""Of normalisations: so small that their symmetries are exact."""


def _layer(make: Callable, fits: Callable, image: bool = True) -> Operation:
    return Operation(
        lambda layer, x, affine: layer(x),
        fits,
        lambda choose, x: {"affine": choose((True, False))},
        make,
        image=image,
    )


def _batch_norm(x: Kind, affine: bool) -> nn.Module:
    make = nn.BatchNorm2d if len(x.shape) == 3 else nn.BatchNorm1d
    return make(x.shape[0], eps=EPS, affine=affine)


def _instance_norm(x: Kind, affine: bool) -> nn.Module:
    make = nn.InstanceNorm1d if len(x.shape) == 2 else nn.InstanceNorm2d
    return make(x.shape[0], eps=EPS, affine=affine)


def _written(function: Callable, entries: int = 2) -> Operation:
    return Operation(
        lambda _, x: function(x),
        lambda x: x.shape[-1] >= entries and not x.zeros,
    )


def _standardised(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


family(
    "normalisation",
    batch_norm=_layer(_batch_norm, lambda x: True),
    layer_norm=_layer(
        lambda x, affine: nn.LayerNorm(x.shape[-1], EPS, affine),
        lambda x: x.shape[-1] >= 3,
        image=False,
    ),
    rms_norm=_layer(
        lambda x, affine: nn.RMSNorm(x.shape[-1], EPS, affine),
        lambda x: x.shape[-1] >= 2 and not x.zeros,
        image=False,
    ),
    group_norm=_layer(
        lambda x, affine: nn.GroupNorm(2, x.shape[0], EPS, affine),
        lambda x: positioned(x) and x.shape[0] == 4,
    ),
    instance_norm=_layer(
        _instance_norm,
        lambda x: positioned(x) and torch.Size(x.shape[1:]).numel() >= 3,
    ),
    by_norm=_written(lambda x: x / x.norm(dim=-1, keepdim=True)),
    by_mean_square=_written(
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
    ),
    standardised=_written(_standardised, 3),
    normalize=_written(lambda x: F.normalize(x, dim=-1, eps=EPS)),
    by_sum=_written(lambda x: x / x.abs().sum(-1, keepdim=True)),
    by_largest=_written(lambda x: x / x.abs().amax(-1, keepdim=True)),
)
