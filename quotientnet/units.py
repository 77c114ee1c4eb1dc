"""What a scaling group is described by: terms of its exponents, or units of a network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import numpy as np

__all__ = ["Term", "Scale", "Unit", "unit_index"]


def _integer(value, what: str) -> int:
    if not isinstance(value, Real):
        raise TypeError(f"{what} must be an integer, got {type(value).__name__}")
    if value % 1:
        raise ValueError(f"{what} must be an integer, got {value}")
    return int(value)


class Term:
    """How one index array of a parameter scales it: entry ``i`` by ``coefficient * s[index[i]]``.

    ``index`` has as many axes as the parameter and broadcasts to its shape; an axis along
    which it does not vary has length 1. Immutable, compared by value.
    """

    def __init__(self, index: np.ndarray, coefficient: int):
        index = np.asarray(index)
        for axis in range(index.ndim):
            first = index.take([0], axis) if index.shape[axis] else index
            if index.shape[axis] > 1 and (index == first).all():
                index = first
        self.index = np.array(index, dtype=np.int64, order="C")
        self.index.setflags(write=False)
        self.coefficient = _integer(coefficient, "Term: coefficient")

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """The axes of the parameter along which the scale varies."""
        return tuple(axis for axis, length in enumerate(self.index.shape) if length > 1)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Term)
            and self.coefficient == other.coefficient
            and self.index.shape == other.index.shape
            and bool((self.index == other.index).all())
        )

    def __hash__(self) -> int:
        return hash((self.coefficient, self.index.shape, self.index.tobytes()))

    def __repr__(self) -> str:
        return (
            f"Term(index of shape {self.index.shape}, coefficient={self.coefficient})"
        )


@dataclass(frozen=True)
class Scale:
    """A unit's effect on one tensor: along ``axis`` its channels scale it by ``e^{exponent t}``.

    The axis is as long as the unit has channels, or a multiple (after a flatten each channel
    owns a run of consecutive columns). ``axis=None`` scales the whole tensor.

    Raises:
        TypeError: An axis or exponent that is no number.
        ValueError: One that is no integer.
    """

    name: str
    axis: int | None
    exponent: int = 1

    def __post_init__(self):
        _integer(self.exponent, f"Scale of {self.name!r}: exponent")
        if self.axis is not None:
            _integer(self.axis, f"Scale of {self.name!r}: axis")


@dataclass(frozen=True)
class Unit:
    """``channels`` generators of the same shape, one a channel, and the tensors they scale.

    Raises:
        TypeError: A number of channels that is none, or something among the scales that is none.
        ValueError: Fewer than one channel, or no integer.
    """

    name: str
    channels: int
    scales: tuple[Scale, ...]

    def __post_init__(self):
        if _integer(self.channels, f"Unit {self.name!r}: channels") < 1:
            raise ValueError(f"Unit {self.name!r}: needs a channel or more, got {self.channels}")
        if not (
            isinstance(self.scales, (tuple, list))
            and all(isinstance(scale, Scale) for scale in self.scales)
        ):
            raise TypeError(
                f"Unit {self.name!r}: scales must be a tuple of Scale, got {self.scales!r}"
            )


def unit_index(unit: Unit, scale: Scale, shape: tuple[int, ...]) -> np.ndarray:
    """The channel of each entry, as an array that broadcasts to ``shape``."""
    index_shape = [1] * len(shape)
    if scale.axis is None:
        if unit.channels != 1:
            raise ValueError(
                f"ScalingGroup.from_units: unit {unit.name!r} has {unit.channels} channels, so "
                f"its scale of {scale.name!r} needs an axis"
            )
        return np.zeros(index_shape, dtype=np.int64)
    if not -len(shape) <= scale.axis < len(shape):
        raise ValueError(
            f"ScalingGroup.from_units: {scale.name!r} has no axis {scale.axis}"
        )
    length = shape[scale.axis]
    if length % unit.channels:
        raise ValueError(
            f"ScalingGroup.from_units: axis {scale.axis} of {scale.name!r} has length {length}, "
            f"no multiple of the {unit.channels} channels of unit {unit.name!r}"
        )
    index_shape[scale.axis] = length
    return (np.arange(length) // (length // unit.channels)).reshape(index_shape)
