"""Dense layers, filters and what images have besides."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from quotientnet.testing.drawn.registry import (
    WIDTHS,
    Kind,
    Operation,
    a_bias,
    family,
    positioned,
)

__all__: list[str] = []


def _drawn_conv(choose, x: Kind) -> dict:
    channels = x.shape[0]
    groups = choose([g for g in (1, channels, 2) if channels % g == 0])
    size = min(x.shape[1:])
    return {
        "out": groups * choose([n for n in (2, 1, 3) if n * groups <= 4] or [1]),
        "size": choose([k for k in (1, 3) if k <= size]),
        "groups": groups,
        "same": choose((True, False)),
        "bias": a_bias(choose),
    }


def _conv(x: Kind, out: int, size: int, groups: int, same: bool, bias: bool):
    make = nn.Conv1d if len(x.shape) == 2 else nn.Conv2d
    return make(
        x.shape[0], out, size, padding="same" if same else 0, groups=groups, bias=bias
    )


def _drawn_transposed(choose, x: Kind) -> dict:
    groups = choose([g for g in (1, 2) if x.shape[0] % g == 0])
    return {
        "out": 2 * groups,
        "size": choose((1, 2)),
        "groups": groups,
        "bias": a_bias(choose),
    }


def _transposed(x: Kind, out: int, size: int, groups: int, bias: bool):
    make = nn.ConvTranspose1d if len(x.shape) == 2 else nn.ConvTranspose2d
    return make(x.shape[0], out, size, groups=groups, bias=bias)


family(
    "linear",
    linear=Operation(
        lambda layer, x, **_: layer(x),
        options=lambda choose, x: {"out": choose(WIDTHS), "bias": a_bias(choose)},
        layer=lambda x, out, bias: nn.Linear(x.shape[-1], out, bias),
    ),
)

family(
    "filter",
    conv=Operation(
        lambda layer, x, **_: layer(x), positioned, _drawn_conv, _conv, image=True
    ),
    transposed_conv=Operation(
        lambda layer, x, **_: layer(x),
        lambda x: positioned(x) and max(x.shape[1:]) <= 4,
        _drawn_transposed,
        _transposed,
        image=True,
    ),
)  # fmt: skip

# -- images ---


def _halves(x: Kind) -> bool:
    return positioned(x) and all(n % 2 == 0 for n in x.shape[1:])


def _pool(function: str) -> Callable:
    return lambda _, x: getattr(F, f"{function}{x.ndim - 2}d")(x, 2)


family(
    "image",
    max_pool=Operation(_pool("max_pool"), _halves, image=True),
    avg_pool=Operation(_pool("avg_pool"), _halves, image=True),
    overlapping_pool=Operation(
        lambda _, x: getattr(F, f"max_pool{x.ndim - 2}d")(x, 3, 1, 1), positioned, image=True
    ),
    global_pool=Operation(lambda _, x: x.flatten(2).mean(2), positioned),
    adaptive_pool=Operation(
        lambda _, x: getattr(F, f"adaptive_max_pool{x.ndim - 2}d")(x, 1).flatten(1), positioned
    ),
    interpolate=Operation(
        lambda _, x, smooth: F.interpolate(
            x, scale_factor=2, mode=["nearest", ["linear", "bilinear"][x.ndim - 3]][smooth]
        ),
        lambda x: positioned(x) and max(x.shape[1:]) <= 3,
        lambda choose, x: {"smooth": choose((0, 1))},
        image=True,
    ),
    shuffle=Operation(
        lambda _, x: F.channel_shuffle(x, 2),
        lambda x: x.image and len(x.shape) == 3 and x.shape[0] == 4,
        image=True,
    ),
    excite=Operation(
        lambda layer, x: x
        * torch.sigmoid(layer(x.flatten(2).mean(2))).view(
            *x.shape[:2], *[1] * (x.ndim - 2)
        ),
        positioned,
        layer=lambda x: nn.Linear(x.shape[0], x.shape[0]),
        image=True,
    ),
)  # fmt: skip
