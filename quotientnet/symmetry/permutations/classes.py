"""Channels that can be exchanged, with all that reads and writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

from quotientnet.layout import ParameterLayout

__all__ = ["Move", "PermutationClass", "PermutationClasses"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class Move:
    """Where the channels of a class are along one axis of a parameter.

    Attributes:
        parameter: Its name.
        axis: The axis.
        channels: The channel at each place along it, −1 where none.
        strides: How far apart the places of neighbouring channels are, at each place.
        each: For each independent permutation of the class, the axis that tells which one, and
            its number at each place along that axis.
        layout: In words: ``2·[4]`` are two blocks of four channels, ``[2]·4`` is two channels that
            are blocks of four.
        dims: The number of axes of the parameter.
    """

    parameter: str
    axis: int
    channels: np.ndarray
    strides: np.ndarray = field(repr=False)
    each: tuple[tuple[int, np.ndarray], ...] = field(repr=False)
    layout: str
    dims: int

    def places(self, permutation: np.ndarray) -> np.ndarray:
        """The place that each place is filled from, broadcastable against the parameter."""

        def along(array: np.ndarray, axis: int) -> np.ndarray:
            return array.reshape([-1 if a == axis else 1 for a in range(self.dims)])

        own = along(self.channels, self.axis)
        index = [along(np.maximum(number, 0), axis) for axis, number in self.each]
        target = permutation[(*index, np.maximum(own, 0))]
        step = np.where(own >= 0, target - own, 0) * along(self.strides, self.axis)
        return along(np.arange(len(self.channels)), self.axis) + step

    def __str__(self) -> str:
        role = ("rows", "columns")[self.axis] if self.axis < 2 else f"axis {self.axis}"
        role = "entries" if self.dims == 1 else role
        plain = self.layout == f"[{len(self.channels)}]"
        return f"{role} of {self.parameter}" + ("" if plain else f" as {self.layout}")


@dataclass(frozen=True, eq=False)
class PermutationClass:
    """Channels of which any permutation leaves the module's function unchanged.

    Attributes:
        size: The number of channels.
        each: The lengths of the axes for each place of which there is a permutation of its own,
            such as the number of heads for channels within heads; mostly none.
        moves: What moves together.
        layout: The coordinates of points.
    """

    size: int
    each: tuple[int, ...]
    moves: tuple[Move, ...] = field(repr=False)
    layout: ParameterLayout = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a permutation of this class, ``(*each, size)``."""
        return (*self.each, self.size)

    def random(self, generator: torch.Generator | None = None) -> Tensor:
        """Random permutations, shape ``(*each, size)``."""
        draws = torch.rand(self.shape, generator=generator, dtype=torch.float64)
        return draws.argsort(-1)

    def apply(self, w: Tensor, permutation: Tensor | Sequence[int]) -> Tensor:
        """The point whose channel ``i`` is channel ``permutation[i]`` of ``w``.

        Args:
            w: Points, shape ``(..., n)``.
            permutation: Shape ``(*each, size)``; one of shape ``(size,)`` is for all.

        Returns:
            A new tensor of the same shape.

        Raises:
            TypeError: Not integers.
            ValueError: ``permutation`` is none, or of another shape.
        """
        self.layout.check(w, "PermutationClass.apply")
        chosen = self._checked(permutation)
        result = w.clone()
        views = self.layout.unflatten(result)
        for move in self.moves:
            view = views[move.parameter]
            places = torch.from_numpy(move.places(chosen)).to(w.device)
            places = places[(None,) * (view.ndim - move.dims)]
            view.copy_(torch.take_along_dim(view, places, move.axis - move.dims))
        return result

    def _checked(self, permutation) -> np.ndarray:
        try:
            given = torch.as_tensor(permutation)
        except (TypeError, ValueError, RuntimeError):
            given = None
        if given is None or (given.numel() and given.dtype not in _INTEGERS):
            got = type(permutation).__name__ if given is None else given.dtype
            raise TypeError(
                "PermutationClass.apply: permutation must be integers, a tensor or a sequence, "
                f"such as random() gives, got {got}"
            )
        found = given.detach().cpu().numpy()
        if found.shape not in (self.shape, (self.size,)):
            raise ValueError(
                f"PermutationClass.apply: permutation must have the shape {self.shape}"
                f"{f' or ({self.size},)' if self.each else ''}, got {found.shape}"
            )
        found = np.broadcast_to(found, self.shape)
        if not (np.sort(found, -1) == np.arange(self.size)).all():
            raise ValueError(
                f"PermutationClass.apply: permutation must have each of 0 to {self.size - 1} once"
            )
        return found

    def __str__(self) -> str:
        texts: list[str] = []
        for move in self.moves:
            text, stem = str(move), move.parameter.rpartition(".")[0]
            parts = text.partition(" of ")[2].partition(" as ")
            previous = texts[-1] if texts else ""
            rows = f"rows of {stem}.weight", f"entries of {stem}.weight"
            same = previous.partition(" as ")[2] == parts[2]
            if (
                stem
                and previous.startswith(rows)
                and same
                and text.startswith("entries")
            ):
                head, _, layout = previous.partition(" as ")
                member = move.parameter.rpartition(".")[2]
                texts[-1] = f"{head} and {member}" + (f" as {layout}" if layout else "")
            else:
                texts.append(text)
        return ", ".join(texts)


class PermutationClasses(Sequence):
    """All classes of a module, in the order of what they move first. Printed, it is a table.

    Attributes:
        layout: The coordinates of points.
        unknown: The operations without a rule; nothing that they touch can be exchanged.
        refused: Classes that the graph suggests, but that change the outputs: not among these.
    """

    def __init__(
        self, layout, classes, unknown: Sequence[str] = (), refused: Sequence = ()
    ):
        self.layout, self._classes = layout, tuple(classes)
        self.unknown, self.refused = tuple(unknown), tuple(refused)

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, number):
        return self._classes[number]

    def random(self, generator: torch.Generator | None = None) -> list[Tensor]:
        """Random permutations, one a class."""
        return [c.random(generator) for c in self]

    def apply(self, w: Tensor, permutations: Sequence[Tensor]) -> Tensor:
        """Permutations of all classes, one after the other; see :meth:`PermutationClass.apply`."""
        if not isinstance(permutations, (Sequence, Tensor)):
            raise TypeError(
                "PermutationClasses.apply: permutations must be a sequence, one a class, such as "
                f"random() gives, got {type(permutations).__name__}"
            )
        if len(permutations) != len(self):
            raise ValueError(
                f"PermutationClasses.apply: needs {len(self)} permutations, one a class, got "
                f"{len(permutations)}"
            )
        for own, permutation in zip(self, permutations):
            w = own.apply(w, permutation)
        return w

    def __str__(self) -> str:
        lines = ["channels  for each of  what moves together"]
        for c in self:
            each = str(prod(c.each)) if c.each else ""
            lines.append(f"{c.size:>8}  {each:>11}  {c}")
        if self.unknown:
            lines.append(f"without a rule: {', '.join(sorted(set(self.unknown)))}")
        lines += [f"refused, for it changes the outputs: {c}" for c in self.refused]
        return "\n".join(lines)
