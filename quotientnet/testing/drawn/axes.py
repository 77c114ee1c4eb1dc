"""Operations along axes, and those that move entries."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from quotientnet.testing.drawn.registry import (
    Kind,
    Operation,
    alike,
    an_axis,
    deep,
    family,
)

__all__: list[str] = []


def _reduction(function: Callable, roots: bool = False, least: int = 1) -> Operation:
    return Operation(
        lambda _, x, dim, keepdim: function(x, dim=dim, keepdim=keepdim),
        lambda x: min(x.shape) >= least and not (roots and x.zeros),
        lambda choose, x: an_axis(choose, x)
        | {"keepdim": len(x.shape) == 1 or choose((False, True))},
    )


# -- along axes ---


def _drawn_parts(choose, x: Kind) -> dict:
    dim = choose([a for a in range(-1, -1 - len(x.shape), -1) if x.shape[a] > 1])
    return {"dim": dim, "first": choose(range(1, x.shape[dim]))}


family(
    "along",
    mean=_reduction(torch.mean),
    sum=_reduction(torch.sum),
    amax=_reduction(torch.amax),
    norm=_reduction(torch.linalg.vector_norm, roots=True),
    std=_reduction(torch.std, True, least=3),
    var=_reduction(torch.var, least=2),
    largest=Operation(
        lambda _, x, dim: x.topk(2, dim).values, lambda x: min(x.shape) > 2, an_axis
    ),
    cumsum=Operation(lambda _, x, dim: x.cumsum(dim), options=an_axis),
    cummax=Operation(lambda _, x, dim: x.cummax(dim).values, options=an_axis),
    sort=Operation(lambda _, x, dim: x.sort(dim).values, options=an_axis),
)

# -- moving entries ---


def _split_axis(choose, x: Kind) -> dict:
    axis = choose([a for a, n in enumerate(x.shape) if n % 2 == 0 and n > 2])
    return {"dim": axis + 1, "sizes": choose(((2, -1), (-1, 2)))}


family(
    "move",
    transpose=Operation(
        lambda _, x, dim: x.transpose(-1, dim),
        deep,
        lambda choose, x: {"dim": choose(range(-2, -1 - len(x.shape), -1))},
    ),
    permute=Operation(lambda _, x: x.permute(0, 2, 3, 1), lambda x: len(x.shape) == 3),
    flatten=Operation(lambda _, x: x.flatten(1), deep),
    flatten_last=Operation(lambda _, x: x.flatten(2), lambda x: len(x.shape) == 3),
    unflatten=Operation(
        lambda _, x, dim, sizes: x.unflatten(dim, sizes),
        lambda x: len(x.shape) < 3 and any(n % 2 == 0 and n > 2 for n in x.shape),
        _split_axis,
    ),
    reshape=Operation(lambda _, x: x.reshape(x.shape[0], *x.shape[:0:-1]), deep),
    permuted=Operation(
        lambda _, x: x[..., [*range(1, x.shape[-1], 2), *range(0, x.shape[-1], 2), 0]],
        lambda x: x.shape[-1] in (3, 4),
    ),
    padded=Operation(
        lambda _, x, mode: F.pad(x, (1, 1), mode=mode),
        lambda x: len(x.shape) == 2 and 2 <= x.shape[1] <= 3,
        lambda choose, x: {"mode": choose(("replicate", "reflect", "circular"))},
    ),
    windows=Operation(
        lambda _, x: x.unfold(-1, 2, 1),
        lambda x: len(x.shape) < 3 and 3 <= x.shape[-1] <= 5,
    ),
    flip=Operation(lambda _, x, dim: x.flip(dim), options=an_axis),
    roll=Operation(lambda _, x, dim: x.roll(1, dim), options=an_axis),
    repeat=Operation(
        lambda _, x, dim: x.repeat_interleave(2, dim),
        lambda x: max(x.shape) <= 4,
        an_axis,
    ),
    unsqueeze=Operation(lambda _, x: x.unsqueeze(-1), lambda x: len(x.shape) < 3),
    # Parts of which one is thrown away would leave entries that nothing reads: what those limit is
    # a limit of the derivation. So a part that nothing reads is an output.
    split=Operation(
        lambda _, x, dim, first: tuple(x.split([first, x.shape[dim] - first], dim)),
        lambda x: max(x.shape) > 1,
        _drawn_parts,
    ),
    unbind=Operation(lambda _, x: x.unbind(1), lambda x: deep(x) and x.shape[0] <= 3),
    chunk=Operation(lambda _, x: x.chunk(2, -1), lambda x: x.shape[-1] % 2 == 0),
)


# -- joining two ---


def _other_than(axis: int) -> Callable[..., bool]:
    """Whether two shapes are the same but for one axis, counted from the end."""

    def fits(x: Kind, y: Kind) -> bool:
        if len(x.shape) != len(y.shape) or len(x.shape) < -axis:
            return False
        a, b = list(x.shape), list(y.shape)
        return (
            a[axis] + b[axis] <= 6
            and a[:axis] == b[:axis]
            and (axis == -1 or a[axis + 1 :] == b[axis + 1 :])
        )

    return fits


family(
    "join",
    cat=Operation(lambda _, x, y: torch.cat([x, y], -1), _other_than(-1), arity=2),
    cat_first=Operation(
        lambda _, x, y: torch.cat([x, y], 1),
        lambda x, y: len(x.shape) == len(y.shape) > 1
        and x.shape[1:] == y.shape[1:]
        and x.shape[0] + y.shape[0] <= 6,
        arity=2,
        image=True,
    ),
    stack=Operation(
        lambda _, x, y, dim: torch.stack([x, y], dim),
        lambda x, y: alike(x, y) and len(x.shape) < 3,
        lambda choose, x, y: {"dim": choose((1, -1))},
        arity=2,
    ),
)
