"""Where the samples of a batch are inside tensors, found by running two and three of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

__all__ = ["SampleAxis", "Readout", "sample_axis", "take", "count"]


@dataclass(frozen=True)
class SampleAxis:
    """An axis that enumerates samples, alone or merged with others (after a flatten).

    Attributes:
        axis: The axis.
        major: Whether each sample's entries are contiguous along it.
    """

    axis: int
    major: bool = True

    def front(self, tensor: Tensor, n: int, lead: int = 0) -> Tensor:
        """``(*lead, n, entries, *others)``: the axis split, and moved behind ``lead`` axes."""
        split = self.split(tensor, n, lead)
        a = self.axis + lead
        own = (a, a + 1) if self.major else (a + 1, a)
        return split.movedim(own, (lead, lead + 1))

    def split(self, tensor: Tensor, n: int, lead: int = 0) -> Tensor:
        """The axis split in place into samples and entries, in the order they lie in."""
        sizes = (n, -1) if self.major else (-1, n)
        return tensor.unflatten(self.axis + lead, sizes)

    def back(self, tensor: Tensor, lead: int = 0) -> Tensor:
        """The inverse of :meth:`front`."""
        a = self.axis + lead
        own = (a, a + 1) if self.major else (a + 1, a)
        return tensor.movedim((lead, lead + 1), own).flatten(a, a + 1)


def sample_axis(two: Tensor, three: Tensor) -> SampleAxis | None:
    """The axis of the samples, from values for two samples ``a, b`` and for ``b, c, a``; None if
    there is none or two could be it, or if a sample's values depend on its place or on others.
    """
    if two.ndim != three.ndim:
        return None
    differ = [i for i, (a, b) in enumerate(zip(two.shape, three.shape)) if a != b]
    if len(differ) != 1:
        return None
    axis = differ[0]
    if three.shape[axis] * 2 != two.shape[axis] * 3:
        return None
    majors = (True, False) if three.shape[axis] > 3 else (True,)
    fitting = [
        candidate
        for candidate in (SampleAxis(axis, major) for major in majors)
        if _close(candidate.front(two, 2), candidate.front(three, 3)[[2, 0]])
    ]
    return fitting[0] if len(fitting) == 1 else None


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    if not a.numel():
        return True
    finite = torch.isfinite(b)
    bound = (
        4e3 * torch.finfo(a.dtype).eps * b[finite].abs().max() if finite.any() else 0
    )
    gap = torch.where(a == b, torch.zeros_like(a), a - b).abs()
    return bool((gap <= bound).all())


def count(inputs, targets) -> int:
    """The number of samples of a batch: the length of its first input tensor.

    Raises:
        ValueError: No tensor, or targets of another length.
    """
    lengths = [
        {len(t) for t in tree_flatten(tree)[0] if isinstance(t, Tensor) and t.ndim}
        for tree in (inputs, targets)
    ]
    first = next(
        t
        for t in (*tree_flatten(inputs)[0], None)
        if isinstance(t, (Tensor, type(None)))
    )
    n = 0 if first is None or not first.ndim else len(first)
    if not n or n not in lengths[1]:
        raise ValueError(
            f"ggn: the first axis of the inputs and of the targets must count the samples, got "
            f"lengths {sorted(lengths[0])} and {sorted(lengths[1])}; transpose inside the model"
        )
    return n


def take(tree, n: int, chosen):
    """The tensors of a tree at some samples, along the first axis where it is ``n`` long."""
    return tree_map(
        lambda t: t[chosen] if isinstance(t, Tensor) and t.ndim and len(t) == n else t,
        tree,
    )


@dataclass(frozen=True)
class Readout:
    """The tensors of a model's outputs that the loss depends on, and where their samples are.

    Attributes:
        places: Their positions among the leaves of the outputs.
        axes: The sample axis of each.
    """

    places: tuple[int, ...]
    axes: tuple[SampleAxis, ...]

    def tensors(self, outputs) -> list[Tensor]:
        """The tensors, in order."""
        leaves = tree_flatten(outputs)[0]
        return [leaves[place] for place in self.places]

    def replace(self, outputs, tensors):
        """Outputs with other tensors in these places."""
        leaves, form = tree_flatten(outputs)
        for place, tensor in zip(self.places, tensors):
            leaves[place] = tensor
        return tree_unflatten(leaves, form)

    def rows(self, tensors, n: int) -> Tensor:
        """All entries of each sample, shape ``(n, entries)``."""
        fronts = (a.front(t, n).reshape(n, -1) for a, t in zip(self.axes, tensors))
        return torch.cat(list(fronts), dim=1)

    def unrows(self, rows: Tensor, like: list[Tensor]) -> list[Tensor]:
        """From ``(columns, n, entries)`` to ``(columns, *shape)`` for the tensors of ``n``
        samples."""
        columns, n, _ = rows.shape
        pieces = rows.split([t.numel() // n for t in like], dim=2)
        return [
            axis.back(piece.reshape(columns, *axis.front(t, n).shape), lead=1)
            for axis, piece, t in zip(self.axes, pieces, like)
        ]
