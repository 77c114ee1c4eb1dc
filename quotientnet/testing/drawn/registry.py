"""What random architectures are made of: operations, when they fit, how they are drawn and run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["Kind", "Operation", "OPERATIONS", "Tensors", "WIDTHS", "family"]

WIDTHS = (3, 2, 4, 5)
"""The sizes that are drawn; simple ones first."""


@dataclass(frozen=True)
class Kind:
    """What is known of a result while a network is drawn.

    Attributes:
        shape: Of one sample.
        image: Whether its axes after the first are positions, over which filters may slide. No
            parameter has scaled single positions: filters take these to have one scale.
        zeros: Whether an entry may be exactly zero, where a root has no derivative.
        given: Whether it is an input.
        mixed: Whether every channel has entries of both signs.
    """

    shape: tuple[int, ...]
    image: bool = False
    zeros: bool = False
    given: bool = False
    mixed: bool = True


@dataclass(frozen=True)
class Operation:
    """One kind of step.

    Attributes:
        run: The result, from the step's layer (``None`` without one), operands and options; a
            tuple if there are several.
        fits: Whether it takes operands of these kinds.
        options: Draws what else it needs, from ``choose`` and the operands' kinds.
        layer: Makes the module that holds its parameters, from the operands' shapes and options.
        arity: The number of operands.
        image: Whether its result is an image if its operands are.
    """

    run: Callable
    fits: Callable = lambda *kinds: True
    options: Callable = lambda choose, *kinds: {}
    layer: Callable | None = None
    arity: int = 1
    image: bool = False


class Tensors(nn.Module):
    """Parameters without a layer around them, of shapes given by name."""

    def __init__(self, **shapes: Sequence[int]):
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.ones(*shape)))


OPERATIONS: dict[str, dict[str, Operation]] = {}
"""By family; a step's operation is drawn from a drawn family."""


def family(name: str, **operations: Operation) -> None:
    """Register operations."""
    OPERATIONS[name] = operations


# -- when operations fit, and what many of them draw ---


def an_axis(choose, x: Kind, *_) -> dict:
    """An axis, counted without that of the samples, so that the last is −1."""
    return {"dim": choose(range(-1, -1 - len(x.shape), -1))}


def a_bias(choose) -> bool:
    """Whether a layer has one."""
    return choose((True, False))


def deep(x: Kind) -> bool:
    """Whether it has an axis besides that of its features."""
    return len(x.shape) > 1


def positioned(x: Kind) -> bool:
    """Whether filters may slide over it."""
    return x.image and deep(x)


def alike(*kinds: Kind) -> bool:
    """Whether all have one shape."""
    return len({kind.shape for kind in kinds}) == 1
