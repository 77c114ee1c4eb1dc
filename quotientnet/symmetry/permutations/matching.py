"""Aligning one network's channels with another's, by their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from quotientnet.options import require_count
from quotientnet.symmetry.permutations.classes import (
    Move,
    PermutationClass,
    PermutationClasses,
)

__all__ = ["Matching", "match_channels"]

_BETTER = 1e-12
"""A step counts if it adds this part of the largest similarity there can be."""


@dataclass(frozen=True)
class Matching:
    """The outcome of :func:`~quotientnet.symmetry.match_channels`.

    Attributes:
        w: The aligned point, shape ``(n,)``: the same function as before.
        before: The inner product of the parameters of both points before, over their norms.
        after: The same after.
        sweeps: How often all classes were gone over.
        steps: What was done: numbers of classes, and permutations, one after the other.
    """

    w: Tensor = field(repr=False)
    before: float
    after: float
    sweeps: int
    steps: tuple[tuple[int, Tensor], ...] = field(repr=False)


def match_channels(
    w: Tensor,
    reference: Tensor,
    classes: PermutationClasses,
    *,
    sweeps: int = 100,
    generator: torch.Generator | None = None,
) -> Matching:
    r"""Permute the channels of a point such that its parameters are nearest to another's.

    Weight matching of [Ainsworth2023]_ (Sec. 3.2): class by class in random order, an assignment
    maximises :math:`\langle w_{ref}, P w \rangle` with the other classes as they are, until none
    improves it. Scales hide which channels are alike: take both points in their
    :func:`~quotientnet.canonical` form first.

    Args:
        w: The point to be moved, shape ``(n,)``.
        reference: The other point, shape ``(n,)``.
        classes: What :func:`~quotientnet.permutation_classes` returned for the module of both.
        sweeps: The most times that all classes are gone over.
        generator: Of the order of classes; by default a new one, seed 0.

    Returns:
        The aligned point. The result is a local optimum. Running statistics move along, and do
        not count.

    Raises:
        TypeError: ``classes`` are not what ``permutation_classes`` returns, ``generator`` is none,
            ``sweeps`` no integer.
        ValueError: Points of another shape, or not finite; ``sweeps`` below 1.

    Note:
        One matrix product and one assignment of cubic cost in its channels a class and sweep.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 9), torch.nn.Tanh(), torch.nn.Linear(9, 2)).double()
        >>> classes = qn.permutation_classes(model, torch.randn(5, 4).double())
        >>> w = classes.layout.flatten(model)
        >>> other = classes[0].apply(w, torch.arange(9).flip(0))
        >>> found = qn.symmetry.match_channels(other, w, classes)
        >>> bool(found.w.equal(w))
        True
    """
    _require_types(classes, generator)
    layout = classes.layout
    for name, point in (("w", w), ("reference", reference)):
        layout.check(point, "match_channels", name)
        if point.ndim != 1 or not torch.isfinite(point).all():
            raise ValueError(
                f"match_channels: {name} must be one finite point, shape ({layout.size},)"
            )
    require_count(sweeps, "match_channels", "sweeps")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    aligned = _Aligned(w.detach().double(), reference.detach().double(), classes)
    before, done = aligned.similarity, 0
    for done in range(1, sweeps + 1):
        if not aligned.sweep(torch.randperm(len(classes), generator=generator)):
            break
    after, steps = aligned.similarity, tuple(aligned.steps)
    return Matching(aligned.point.to(reference), before, after, done, steps)


class _Aligned:
    """A point while it is aligned: its channels, and the steps so far."""

    def __init__(self, w: Tensor, target: Tensor, classes: PermutationClasses):
        # Similarities are of points of size 1, whose squares are numbers.
        self.point, self.classes = w, classes
        self.w, self.target = (x / (x.abs().max() or 1.0) for x in (w, target))
        self.steps: list[tuple[int, Tensor]] = []
        count = classes.layout.parameter_size
        self._scale = float(self.w[:count].norm() * self.target[:count].norm()) or 1.0
        self.similarity = self._similarity(self.w)

    def _similarity(self, w: Tensor) -> float:
        count = self.classes.layout.parameter_size
        return float(w[:count] @ self.target[:count]) / self._scale

    def sweep(self, order: Tensor) -> bool:
        """Go over all classes once; whether any of them made it better."""
        made = len(self.steps)
        for number in order.tolist():
            chosen = _assignment(self.w, self.target, self.classes[number])
            moved = self.classes[number].apply(self.w, chosen)
            similarity = self._similarity(moved)
            if similarity > self.similarity + _BETTER:
                self.w, self.similarity = moved, similarity
                self.point = self.classes[number].apply(self.point, chosen)
                self.steps.append((number, chosen))
        return len(self.steps) > made


def _require_types(classes, generator) -> None:
    if not isinstance(classes, PermutationClasses):
        raise TypeError(
            "match_channels: classes must be what permutation_classes returned, all of them, got "
            f"{type(classes).__name__}"
        )
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            "match_channels: generator must be a torch.Generator or None, got "
            f"{type(generator).__name__}; torch.Generator().manual_seed(0) makes one"
        )


def _assignment(w: Tensor, target: Tensor, own: PermutationClass) -> Tensor:
    """The permutations of a class that fit best."""
    gains = np.zeros((*own.shape, own.size))
    here, there = own.layout.unflatten(w), own.layout.unflatten(target)
    for move in own.moves:
        if own.layout[move.parameter].passive:
            continue
        for which, columns, places in _slices(move, own):
            a, b = (
                x[move.parameter]
                .movedim(move.axis, 0)
                .cpu()[places]
                .reshape(own.size, -1)
                for x in (there, here)
            )
            gains[which] += (a[:, columns] @ b[:, columns].T).numpy()
    chosen = np.empty(own.shape, dtype=np.int64)
    for which in np.ndindex(own.each):
        chosen[which] = linear_sum_assignment(gains[which], maximize=True)[1]
    return torch.from_numpy(chosen)


def _slices(
    move: Move, own: PermutationClass
) -> Iterator[tuple[tuple, object, Tensor]]:
    """The entries of each channel, for each independent permutation.

    Yields:
        Which permutation; which of a channel's entries; the places of all channels along the axis,
        shape ``(size, places)``.
    """
    at = np.flatnonzero(move.channels >= 0)
    first = at[move.channels[at] == 0]
    places = first + np.arange(own.size)[:, None] * move.strides[first]
    shape = own.layout[move.parameter].shape
    rest = [n for d, n in enumerate(shape) if d != move.axis]
    numbers = []
    for axis, number in move.each:
        if axis == move.axis:
            line = number[first].reshape([-1] + [1] * len(rest))
        else:
            own_axis = 1 + axis - (axis > move.axis)
            line = number.reshape(
                [-1 if d == own_axis else 1 for d in range(1 + len(rest))]
            )
        numbers.append(np.broadcast_to(line, (len(first), *rest)).reshape(-1))
    for which in np.ndindex(own.each):
        columns = slice(None)
        if which:
            mask = np.all([n == v for n, v in zip(numbers, which)], axis=0)
            columns = torch.from_numpy(np.flatnonzero(mask))
        yield which, columns, torch.from_numpy(places)
