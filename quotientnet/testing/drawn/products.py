"""Products of results, and attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quotientnet.testing.drawn.registry import (
    Kind,
    Operation,
    family,
)

__all__: list[str] = []


def _attention(_, q: Tensor, k: Tensor, v: Tensor, causal: bool, written: bool):
    if not written:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(-1) @ v


def _attends(q: Kind, k: Kind, v: Kind) -> bool:
    """Causal or not: as many queries as keys, two at least, or scores have no effect."""
    several = len(q.shape) == len(k.shape) == len(v.shape) >= 2
    return (
        several
        and q.shape == k.shape
        and q.shape[:-1] == v.shape[:-1]
        and q.shape[-2] > 1
    )


def _shared_heads(_, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.unflatten(-1, (2, -1)).transpose(1, 2), k.unsqueeze(1), v.unsqueeze(1)
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return out.transpose(1, 2).flatten(2)


def _share_heads(q: Kind, k: Kind, v: Kind) -> bool:
    tokens = len(q.shape) == len(k.shape) == len(v.shape) == 2
    return (
        tokens
        and k.shape == v.shape
        and q.shape == (k.shape[0], 2 * k.shape[1])
        and (k.shape[0] > 1)
    )


family(
    "contraction",
    matmul=Operation(
        lambda _, x, y: x @ y.mT,
        lambda x, y: len(x.shape) == len(y.shape) > 1
        and x.shape[:-2] == y.shape[:-2]
        and x.shape[-1] == y.shape[-1],
        arity=2,
    ),
    bmm=Operation(
        lambda _, x, y: torch.bmm(x, y),
        lambda x, y: len(x.shape) == len(y.shape) == 2 and x.shape[1] == y.shape[0],
        arity=2,
    ),
    einsum=Operation(
        lambda _, x, y: torch.einsum("nti,ntj->nij", x, y),
        lambda x, y: len(x.shape) == len(y.shape) == 2 and x.shape[0] == y.shape[0],
        arity=2,
    ),
    outer=Operation(
        lambda _, x, y: torch.einsum("ni,nj->nij", x, y),
        lambda x, y: len(x.shape) == len(y.shape) == 1,
        arity=2,
    ),
    attention=Operation(
        _attention,
        _attends,
        lambda choose, *_: {"causal": choose((False, True)), "written": choose((False, True))},
        arity=3,
    ),
    shared_heads=Operation(_shared_heads, _share_heads, arity=3),
    self_attention=Operation(
        lambda layer, x, heads, bias: layer(x, x, x, need_weights=False)[0],
        lambda x: len(x.shape) == 2 and x.shape[0] > 1 and x.shape[1] in (2, 4),
        lambda choose, x: {"heads": choose((2, 1)), "bias": choose((True, False))},
        lambda x, heads, bias: nn.MultiheadAttention(
            x.shape[1], heads, bias=bias, batch_first=True
        ),
    ),
    glu=Operation(lambda _, x: F.glu(x), lambda x: x.shape[-1] % 2 == 0),
)  # fmt: skip
