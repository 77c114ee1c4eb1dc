"""The unknowns of moves, what is known of them, and the equations between them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from quotientnet.symmetry.scales import compact
from quotientnet.symmetry.translations.parts import Absorbed, Part, Product
from quotientnet.symmetry.translations.places import (
    length,
    rows_of,
    told_apart,
    told_apart_by_strides,
    unique_rows,
    vectors,
)
from quotientnet.symmetry.translations.shifts import (
    ANYWHERE,
    NOTHING,
    Leaf,
    Seen,
    Shift,
    Term,
    narrowed,
)

__all__ = ["Unknowns"]


class Unknowns:
    """Everything that is known about moves; a rule imposes on it what its operation needs."""

    def __init__(self):
        self.count, self.record = 1, -1
        self.parts: list[Part] = []
        self.products: list[Product] = []
        self.absorbed: list[Absorbed] = []
        self.equations: list[tuple[np.ndarray, np.ndarray]] = []
        self.common: list[slice] = []
        self._read: list[np.ndarray] = []
        self._sites = ANYWHERE + 1

    def _new(self, number: int) -> int:
        self.count += number
        return self.count - number

    def sites(self, shape: Sequence[int]) -> Tensor:
        """New sites, one for each entry."""
        number = prod(shape)
        self._sites += number
        return torch.arange(self._sites - number, self._sites).view(*shape)

    # -- parameters ---

    def shift(self, x) -> Shift:
        """By how much a value moves: a parameter entry by entry, a constant not at all."""
        if isinstance(x, Shift):
            return x
        if not isinstance(x, Seen):
            return Shift(x.shape if isinstance(x, Tensor) else ())
        part = self._part(x.leaf, tuple(range(len(x.leaf.shape))))
        return Shift(x.shape, [self._term(part, x.entries)] if part else ())

    def constant(self, value: Tensor) -> Seen:
        """A constant, as a factor."""
        return Seen(Leaf("", tuple(value.shape), value.contiguous()))

    def rows(self, x: Seen, axes: Sequence[int]) -> Tensor | None:
        """For the entries of a matrix that are summed over ``axes``, the unknown of each row.

        Returns:
            Index tensor with ``axes`` of length 1; None if the parameter cannot move.
        """
        if not x.leaf.name or x.leaf.pinned:
            return None
        axes = [a % len(x.shape) for a in axes]
        others = [a for a in range(len(x.shape)) if a not in axes]
        summed = x.entries.permute(*others, *axes)
        kept, index = told_apart_by_strides(x, others, axes) or told_apart(
            summed, len(others), x.leaf.shape
        )
        part = None if kept is None else self._part(x.leaf, kept)
        if part is None:
            self.pin(x)
            return None
        index = (index + part.start).view([x.shape[a] for a in others])
        self._read.append(np.unique(index.numpy()))
        for a in axes:
            index = index.unsqueeze(a)
        return index

    def table(self, x: Seen, places: Sequence[int]) -> Shift:
        """Rows of a table at places that the data choose: shape ``(*places, columns)``.

        Each column moves by a function of the place, a constant and the rest.
        """
        if not x.whole or len(x.shape) != 2:
            self.pin(x)
        part, flat = self._part(x.leaf, (1,), table=True) or (None, None)
        shape = (*places, x.shape[-1])
        if part is None:
            return Shift(shape)
        terms = [self._term(p, torch.arange(p.count)) for p in (part, flat)]
        terms[0] = terms[0]._replace(site=self.sites(places)[..., None])
        return Shift(shape, terms)

    def _term(self, part: Part, places: Tensor) -> Term:
        index = places + part.start
        self._read.append(np.unique(index.numpy()))
        return Term(1.0, torch.tensor(ANYWHERE), index)

    def _part(self, leaf: Leaf, kept: tuple[int, ...], table: bool = False):
        """How a leaf moves in one kind of use; where it has two kinds, it does not move."""
        if not leaf.name or leaf.pinned:
            return None
        key = (kept, table)
        if key not in leaf.parts:
            if leaf.parts:
                leaf.pinned = True
                return None
            number = prod(leaf.shape[a] for a in kept)
            part = Part(leaf, kept, self._new(number), centred=table)
            self.parts.append(part)
            if table:
                flat = Part(leaf, kept, self._new(number), flat=True)
                self.parts.append(flat)
                part = part, flat
            leaf.parts[key] = part
        return leaf.parts[key]

    def pin(self, *values) -> None:
        """Let values not move, nor tensors in lists and mappings among them."""
        for x in values:
            if isinstance(x, Seen):
                x.leaf.pinned = True
            elif isinstance(x, Shift):
                for group in x.groups():
                    self._vanish(group)
                x.terms = []
            elif isinstance(x, (list, tuple)):
                self.pin(*x)
            elif isinstance(x, dict):
                self.pin(*x.values())

    # -- equations ---

    def _vanish(self, terms: Sequence[Term]) -> None:
        rows = unique_rows([t.index for t in terms])
        self.equations.append((rows, np.array([t.coefficient for t in terms])))

    def uniform(self, x: Shift, axes: Sequence[int], *, absorb: bool = False) -> Shift:
        """Let ``x`` move alike along axes, and simplify it.

        Args:
            x: Changed in place: it then has one term for all that depends on the same data.
            axes: Along which it moves alike.
            absorb: Whether the operation forgets such a move.
        """
        axes = [a % len(x.shape) for a in axes] if x.shape else []
        found = []
        for group in x.groups():
            if any(length(group[0].site, a) > 1 for a in axes):
                self._vanish(group)
                continue
            alike = [all(length(t.index, a) == 1 for a in axes) for t in group]
            uneven = [t for t, even in zip(group, alike) if not even]
            group = [t for t, even in zip(group, alike) if even]
            if len(uneven) == 1 and self._multiplied(uneven[0].index):
                group.append(self._first(uneven[0], axes))
            elif uneven:
                group.append(self._common(uneven, axes))
            found += group
        x.terms = Shift(x.shape, found).terms
        if absorb:
            for group in x.groups():
                total = group[0] if len(group) == 1 else self._common(group, ())
                self.absorbed.append(
                    Absorbed(self.record, np.unique(compact(total.index)))
                )
        return x

    def _multiplied(self, index: Tensor) -> bool:
        """Whether all are products that were made by one operation."""
        index = compact(index)
        low, high = int(index.min()), int(index.max())
        return any(p.start <= low and high < p.slice.stop for p in self.products)

    def _first(self, term: Term, axes) -> Term:
        """What entries along axes have in common, which the first of them then is."""
        shape = term.index.shape
        place = tuple(slice(0, 1) if a in axes else slice(None) for a in range(len(shape)))
        first = term.index[place]
        rows = unique_rows(narrowed([term.index, first.expand(shape)]))
        rows = rows[rows[:, 0] != rows[:, 1]]
        self.equations.append((rows, np.array([term.coefficient, -term.coefficient])))
        return Term(term.coefficient, term.site, first)

    def _common(self, group, axes) -> Term:
        """One new unknown for what entries along axes have in common.

        It comes before all others, so that these are what equations are solved for.
        """
        indices = narrowed([t.index for t in group])
        shape = [1 if a in axes else n for a, n in enumerate(indices[0].shape)]
        start = self._new(prod(shape))
        self.common.append(slice(start, start + prod(shape)))
        common = torch.arange(prod(shape)).view(shape) + start
        rows = unique_rows([*indices, common.expand(indices[0].shape)])
        coefficients = [t.coefficient for t in group] + [-1.0]
        self.equations.append((rows, np.array(coefficients)))
        return Term(1.0, group[0].site, common)

    def equal(self, x: Shift, y: Shift) -> Shift:
        """Let both move alike; returns how."""
        self.pin(x + y * -1.0)
        return x

    # -- products ---

    def product(self, x: Shift, factor: Seen | None, data: Shift, axes) -> Shift:
        """What moves of ``x``, times known numbers or data, summed over axes, makes.

        Args:
            x: Aligned with the factor; what depends on the data may not move.
            factor: Known numbers; ``None`` for data.
            data: The factor as a value, for its shape.
            axes: Summed over, negative.
        """
        shape = list(torch.broadcast_shapes(x.shape, data.shape))
        for a in axes:
            shape[a] = 1
        for group in x.groups():
            if not group[0].constant:
                self._vanish(group)
        terms = [t for t in x.terms if t.constant]
        if not terms:
            return Shift(shape)
        extent = data.shape if factor is None else factor.shape
        full = [
            n if a - len(x.shape) not in axes else max(n, extent[a - len(x.shape)])
            for a, n in enumerate(x.shape)
        ]
        indices = [t.index.expand(full) for t in terms]
        inputs, which = vectors(indices, axes)
        coefficients = np.array([t.coefficient for t in terms])
        still = (inputs == NOTHING).all((1, 2))
        if factor is None:
            lead = [1 if a - len(extent) in axes else n for a, n in enumerate(extent)]
            site, entries, other = self.sites(lead), None, torch.zeros_like(which)
        else:
            site = torch.tensor(ANYWHERE)
            entries, other = rows_of(factor, axes)
        size = 1 if entries is None else entries.shape[0]
        joint = which * size + other
        pairs, inverse = np.unique(joint.numpy(), return_inverse=True)
        pairs = np.stack([pairs // size, pairs % size], 1)
        live = ~still[pairs[:, 0]]
        start = self._new(int(live.sum()))
        numbers = np.where(live, start + np.cumsum(live) - 1, NOTHING)
        self.products.append(
            Product(
                start,
                pairs[live],
                inputs,
                coefficients,
                factor and factor.leaf,
                entries,
            )
        )
        index = torch.from_numpy(numbers[inverse.reshape(-1)]).view(joint.shape)
        return Shift(shape, [Term(1.0, site, index)] if live.any() else ())

    # -- what was found ---

    @property
    def rank(self) -> np.ndarray:
        """The place of each unknown in the order of elimination: the latest are solved for."""
        first = np.zeros(self.count, dtype=bool)
        for each in self.common:
            first[each] = True
        rank = np.where(
            first, np.cumsum(first) - 1, first.sum() + np.cumsum(~first) - 1
        )
        return rank

    @property
    def read(self) -> np.ndarray:
        """The unknowns of parameters that an operation has read, a mask."""
        mask = np.zeros(self.count, dtype=bool)
        for index in self._read:
            mask[index] = True
        return mask
