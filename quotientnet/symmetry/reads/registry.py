"""Where it is registered what operations read; masks of entries.

Masks are 1 long along axes that they do not vary along, and ``None`` where all is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.fx import Node

from quotientnet.symmetry.nodes import arguments_of, shape_of
from quotientnet.symmetry.scales import compact

__all__ = ["LITERAL", "READS", "Reading", "reads", "united", "simplified", "fitted", "anywhere",
           "axes_of"]  # fmt: skip

Mask = Tensor | None

READS: dict[str, Callable[[Reading], dict[Node, Mask] | None]] = {}
"""For each operation, masks of what is read of its arguments; all of those that it leaves out."""

LITERAL: set[str] = set()
"""Operations that only move entries: their rules impose nothing."""


@dataclass
class Reading:
    """An operation, and which entries of its results are read.

    Attributes:
        node: The operation.
        outputs: Masks of its results by their numbers; those left out are not read.
        constant: The value of a node that depends on nothing, else ``None``.
    """

    node: Node
    outputs: Mapping[int, Mask]
    constant: Callable[[Node], Tensor | None]

    @cached_property
    def arguments(self) -> dict:
        """The arguments by their names in the schema, defaults included."""
        return arguments_of(self.node)

    @property
    def mask(self) -> Mask:
        """Of the only result, with all its axes; ``None`` if all of it is read."""
        mask, dims = self.outputs[0], len(shape_of(self.node))
        return mask if mask is None else mask[(None,) * (dims - mask.ndim)]

    def __getitem__(self, name: str):
        return self.arguments[name]

    def read(self, masks: Mapping[str, Mask]) -> dict[Node, Mask]:
        """Masks by the names of arguments, as masks of nodes; several of one node united."""
        found: dict[Node, Mask] = {}
        for name, mask in masks.items():
            argument = self.arguments.get(name)
            if isinstance(argument, Node):
                own = fitted(mask, shape_of(argument))
                found[argument] = (
                    united(found[argument], own) if argument in found else own
                )
        return found


def reads(*names: str, literal: bool = False) -> Callable:
    """Register what operations read; ``literal`` ones only move entries."""

    def register(function: Callable) -> Callable:
        READS.update(dict.fromkeys(names, function))
        if literal:
            LITERAL.update(names)
        return function

    return register


def united(a: Mask, b: Mask) -> Mask:
    """What is in either mask."""
    return None if a is None or b is None else simplified(a | b)


def simplified(mask: Tensor) -> Mask:
    """``mask`` 1 long along axes that it does not vary along, ``None`` if it is everything."""
    mask = compact(mask)
    return None if mask.numel() == 1 and bool(mask) else mask


def fitted(mask: Mask, shape: Sequence[int]) -> Mask:
    """The mask of an argument that is broadcast: wherever any of its copies is in the mask."""
    if mask is None:
        return None
    lead = mask.ndim - len(shape)
    if lead < 0:
        mask, lead = mask[(None,) * -lead], 0
    wide = [a + lead for a, n in enumerate(shape) if n == 1]
    mask = anywhere(mask, [*range(lead), *wide])
    mask = mask.reshape(mask.shape[lead:])
    fits = all(m in (1, n) for m, n in zip(mask.shape, shape))
    return simplified(mask) if fits else None


def anywhere(mask: Mask, axes: Sequence[int]) -> Mask:
    """Whether anything along axes is in the mask; they are kept with length 1."""
    if mask is None:
        return None
    for axis in axes:
        if mask.shape[axis] > 1:
            mask = mask.any(axis, keepdim=True)
    return mask


def axes_of(dim, count: int) -> list[int]:
    """Axes from an argument ``dim``: all if it is none."""
    dims = [dim] if isinstance(dim, int) else list(dim or range(count))
    return sorted(axis % count for axis in dims) if count else []
