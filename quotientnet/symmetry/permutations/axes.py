"""What an axis of a tensor is made of, as far as the operations of a network tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

__all__ = ["Axis", "fix", "fixed", "joined", "new", "product", "segment", "unify"]


class Axis:
    """An axis: unknown so far, the same as another, a product of axes, or axes end to end.

    A product is what a reshape merges, the first factor slowest; a sum is what a concatenation
    joins. Axes without structure that are not *fixed* can be permuted, each wherever it occurs.
    Identity is that of the object that :attr:`found` returns.

    Args:
        size: Its length.
        fixed: Whether its places differ: those of inputs, outputs and constants.
    """

    __slots__ = ("size", "fixed", "same", "factors", "parts")

    def __init__(self, size: int, fixed: bool = False):
        self.size, self.fixed = int(size), fixed
        self.same: Axis | None = None
        self.factors: list[Axis] | None = None
        self.parts: list[Axis] | None = None

    @property
    def found(self) -> Axis:
        """The axis that this one is the same as."""
        axis = self
        while axis.same is not None:
            axis = axis.same
        if axis is not self:
            self.same = axis
        return axis

    @property
    def plain(self) -> bool:
        """Whether it has no structure."""
        axis = self.found
        return axis.factors is None and axis.parts is None

    def __repr__(self) -> str:
        axis = self.found
        for members, sign in ((axis.factors, "·"), (axis.parts, "+")):
            if members is not None:
                return f"({sign.join(map(repr, members))})"
        return f"{axis.size}{'!' if axis.fixed else ''}"


def new(size: int) -> Axis:
    """An axis of which nothing is known but its length."""
    return Axis(size)


def fixed(size: int) -> Axis:
    """An axis whose places differ."""
    return Axis(size, True)


def product(axes: Sequence[Axis]) -> Axis:
    """The axis that several make when they are merged by a reshape."""
    axes = [a for axis in axes for a in factors_of(axis)]
    if len(axes) == 1:
        return axes[0]
    whole = Axis(prod(a.size for a in axes))
    if axes:
        whole.factors = axes
    return whole


def joined(axes: Sequence[Axis]) -> Axis:
    """Axes end to end."""
    axes = [a for axis in axes for a in parts_of(axis) if a.size]
    if len(axes) == 1:
        return axes[0]
    whole = Axis(sum(a.size for a in axes))
    whole.parts = axes
    return whole


def factors_of(axis: Axis) -> list[Axis]:
    """What an axis is a product of, axes of length 1 left out."""
    axis = axis.found
    if axis.factors is None:
        return [] if axis.size == 1 else [axis]
    return [a for factor in axis.factors for a in factors_of(factor)]


def parts_of(axis: Axis) -> list[Axis]:
    """What an axis is a sum of."""
    axis = axis.found
    if axis.parts is None:
        return [axis]
    return [a for part in axis.parts for a in parts_of(part)]


def leaves(axis: Axis) -> Iterator[Axis]:
    """The axes without structure that an axis is made of."""
    axis = axis.found
    members = axis.factors if axis.factors is not None else axis.parts
    if members is None:
        yield axis
    else:
        for member in members:
            yield from leaves(member)


def fix(axis: Axis) -> Axis:
    """No place of an axis can be exchanged with another."""
    for leaf in leaves(axis):
        leaf.fixed = True
    return axis


def unify(a: Axis, b: Axis) -> Axis:
    """Two axes are permuted together; what cannot be told is fixed."""
    a, b = a.found, b.found
    if a is b or a.size == b.size == 1:
        return a
    if a.size != b.size:
        raise ValueError(f"axes of lengths {a.size} and {b.size} are no one axis")
    if not a.plain and b.plain:
        a, b = b, a
    if a.plain:
        if any(leaf is a for leaf in leaves(b)):
            fix(b)
        elif a.fixed:
            fix(b)
            a.same = b
        else:
            a.same = b
        return b
    if a.factors is not None and b.factors is not None:
        _align(factors_of(a), factors_of(b), factors_of, _split_factor)
    elif a.parts is not None and b.parts is not None:
        _align(parts_of(a), parts_of(b), parts_of, _split_part)
    else:
        _distribute(*((a, b) if a.factors is not None else (b, a)))
    return a


def _align(left: list[Axis], right: list[Axis], flat, split) -> None:
    """Unify two rows of axes one by one; a longer one is split, if it has no structure."""
    while left and right:
        left[:1], right[:1] = flat(left[0]), flat(right[0])
        if not left or not right:
            continue
        a, b = left[0].found, right[0].found
        if a.size != b.size:
            long, short = (a, b) if a.size > b.size else (b, a)
            if split(long, short.size):
                continue
            for axis in (*left, *right):
                fix(axis)
            return
        unify(left.pop(0), right.pop(0))


def _split_factor(axis: Axis, size: int) -> bool:
    if not axis.plain or axis.size % size:
        return False
    axis.factors = [Axis(size, axis.fixed), Axis(axis.size // size, axis.fixed)]
    return True


def _split_part(axis: Axis, size: int) -> bool:
    if not axis.plain:
        return False
    axis.parts = [Axis(size, axis.fixed), Axis(axis.size - size, axis.fixed)]
    return True


def _distribute(a: Axis, b: Axis) -> None:
    """A product that is also a sum of equal parts: its first factor counts the parts."""
    first, rest = a.factors[0].found, product(a.factors[1:])
    parts = parts_of(b)
    if first.size == len(parts) and all(p.size == rest.size for p in parts):
        fix(first)
        for part in parts:
            unify(rest, part)
    else:
        fix(a)
        fix(b)


def segment(axis: Axis, start: int, length: int) -> Axis:
    """The axis of the places from ``start``."""
    axis = axis.found
    if length == axis.size:
        return axis
    if axis.plain:
        if axis.fixed or length == 0:
            return fixed(length)
        sizes = (start, length, axis.size - start - length)
        axis.parts = [Axis(size) for size in sizes if size]
        return axis.parts[1 if start else 0]
    if axis.parts is not None:
        return _segment_of_sum(axis, start, length)
    first, rest = axis.factors[0].found, product(axis.factors[1:])
    if start % rest.size == 0 and length % rest.size == 0:
        own = segment(first, start // rest.size, length // rest.size)
        return product([own, rest])
    fix(axis)
    return fixed(length)


def _segment_of_sum(axis: Axis, start: int, length: int) -> Axis:
    found, at, end = [], 0, start + length
    for part in parts_of(axis):
        low, high = max(start, at), min(end, at + part.size)
        if low < high:
            found.append(segment(part, low - at, high - low))
        at += part.size
    return joined(found) if found else fixed(0)
