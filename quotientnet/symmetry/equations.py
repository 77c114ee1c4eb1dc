"""Linear equations between log-scales, collected without solving them, and their null space."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from quotientnet.symmetry.choices import Choices
from quotientnet.symmetry.scales import (
    PINNED,
    ZERO,
    LogScale,
    Unset,
    compact,
    first,
    varies,
)
from quotientnet.symmetry.solution import Solution, solve
from quotientnet.symmetry.terms import Terms, collected, groups_of_axes, narrowed
from quotientnet.symmetry.unions import Unions
from quotientnet.symmetry.zeros import (
    any_scale,
    focused,
    merged,
    with_any_scale,
    without_gaps,
)

__all__ = ["Equations"]


class Equations:
    """Unknown log-scales and the linear equations that the operations of a network impose.

    Equalities of two unknowns are merged at once (union-find); what involves more is kept and
    eliminated exactly at the end. Rules of operations are written with :meth:`fresh`,
    :meth:`equal`, :meth:`uniform`, :meth:`contract` and :meth:`pin`, and with sums and differences
    of :class:`~quotientnet.symmetry.LogScale`, which stand for products and quotients of tensors.
    """

    def __init__(self):
        self._unknowns = Unions()
        self._shifts: list[int] = []
        self._rows: list[tuple[np.ndarray, np.ndarray, int]] = []
        self._reason = -1
        self.choices = Choices()

    # -- unknowns ---

    def fresh(self, *shape: int) -> LogScale:
        """One new unknown for each entry of a tensor."""
        number = torch.Size(shape).numel()
        start = self._unknowns.new(number)
        index = torch.arange(start, start + number).view(shape)
        return LogScale([(1, index)], shape)

    def pinned(self, *shape: int) -> LogScale:
        """The log-scale 0 of a tensor that cannot be scaled."""
        return LogScale((), shape)

    def constant(self, value: Tensor | float | bool) -> LogScale:
        """The log-scale of a constant: 0, and anything where the constant is zero or infinite."""
        value = torch.as_tensor(value).cpu()
        any_scale = (value == 0) | torch.isinf(value)
        if not bool(any_scale.any()):
            return self.pinned(*value.shape)
        return LogScale([(1, torch.where(any_scale, ZERO, PINNED))], value.shape)

    def without_zeros(self, x: LogScale) -> LogScale:
        """``x`` with an unknown of its own wherever it would fit any scale."""
        x = self.resolve(x)
        if not self.has_zeros(x):
            return x
        index = compact(self.single(x).terms[0][1])
        own = self.fresh(*index.shape).terms[0][1]
        return LogScale([(1, torch.where(index == ZERO, own, index))], x.shape)

    def resolve(self, x: LogScale) -> LogScale:
        """``x`` with unknowns for the entries whose log-scale was not determined yet."""
        if not isinstance(x, Unset):
            return x
        if x.leaf.known is None and x.order() is not None:
            x.leaf.complete_with(self.fresh(*x.leaf.shape).terms)
        elif not x.leaf.complete:
            self._fill(x)
        return x.read()

    def _fill(self, x: Unset) -> None:
        """Determine the entries of ``x`` that are not, by new unknowns."""
        entries = x.entries.reshape(-1).unique()
        if x.leaf.known is not None:
            entries = entries[~x.leaf.known[entries]]
        if len(entries):
            Unset(x.leaf, entries).determine(self.fresh(len(entries)))

    # -- equations ---

    def equal(self, x: LogScale, y: LogScale) -> LogScale:
        """Impose ``x = y`` after broadcasting, and return the common log-scale.

        Entries that are always zero fit any scale.
        """
        shape = torch.broadcast_shapes(x.shape, y.shape)
        if isinstance(y, Unset):
            x, y = y, x
        y = self.resolve(y)
        if isinstance(x, Unset) and not self.has_zeros(y):
            return self._define(x, y, shape)
        x = self.resolve(x)
        self._impose(x - y)
        if self.has_zeros(x) or self.has_zeros(y):
            gaps, others = any_scale(x), any_scale(y)
            if not bool((others & ~gaps).any()):
                return LogScale(y.terms, shape)
            if not bool((gaps & ~others).any()):
                return LogScale(x.terms, shape)
            a, b = (compact(self.single(z).terms[0][1]) for z in (x, y))
            return LogScale([(1, torch.where(a == ZERO, b, a))], shape)
        return LogScale(min(x.terms, y.terms, key=len), shape)

    def uniform(self, x: LogScale, axes: Sequence[int]) -> LogScale:
        """Impose that ``x`` does not vary along ``axes``, and return it with these of length 1."""
        axes = sorted({axis % len(x.shape) for axis in axes}) if x.shape else []
        if isinstance(x, Unset) and x.leaf.known is None and x.distinct:
            common = self.fresh(*(1 if a in axes else n for a, n in enumerate(x.shape)))
            x.determine(LogScale(common.terms, x.shape))
            return common
        x = self.simplify(self.resolve(x))
        if self.has_zeros(x):
            apart = without_gaps(x, axes)
            if apart is None:
                return self._uniform_with_zeros(x, axes)
            return with_any_scale(self.uniform(apart[0], axes), apart[1])
        others = [a for a in range(len(x.shape)) if a not in axes]
        result = LogScale([t for t in x.terms if not varies(t[1], axes)], x.shape)
        varying = [(i.numpy(), c) for c, i in x.terms if varies(i, axes)]
        # A sum of functions of different axes is uniform iff each of them is.
        for group in self._joined(varying):
            part = LogScale([(c, torch.from_numpy(i)) for i, c in group], x.shape)
            local = len(group) > 1 and not any(varies(i, others) for _, i in part.terms)
            common = self._shift(len(x.shape)) if local else first(part, axes)
            self._impose(part - common)
            result = result + common
        return first(result, axes)

    def pin(self, x: LogScale) -> LogScale:
        """Impose that nothing of ``x`` can be scaled."""
        return self.equal(x, self.pinned(*x.shape))

    def power(self, x: LogScale, exponent: Fraction) -> LogScale:
        """The log-scale of ``x^exponent``: ``exponent`` times that of ``x``."""
        if exponent.denominator == 1:
            return int(exponent) * x
        x = self.simplify(self.resolve(x))
        if all((exponent * c).denominator == 1 for c, _ in x.terms):
            # The root of a square needs no unknown of its own.
            return LogScale([(int(exponent * c), i) for c, i in x.terms], x.shape)
        x = self.single(x)
        index = compact(x.terms[0][1])
        root = self._fresh_like(index.reshape(-1, 1)).view(index.shape)
        root = LogScale([(1, root)], index.shape)
        whole = LogScale([(exponent.numerator, index)], index.shape)
        self._impose(exponent.denominator * root - whole)
        if self.has_zeros(x):
            root = LogScale(
                [(1, torch.where(index == ZERO, ZERO, root.terms[0][1]))], root.shape
            )
        return LogScale(root.terms, x.shape)

    def contract(self, w: LogScale, x: LogScale, axes: Sequence[int]) -> LogScale:
        """The log-scale of ``Σ w x`` over ``axes``: each term of a sum has the same scale.

        Args:
            w: The left factor, shape broadcastable against ``x``; a parameter that has not been
                used yet is determined by this, with one unknown for each of its outputs.
            x: The right factor.
            axes: The axes summed over, counted from the end.

        Returns:
            Their sum's log-scale, with ``axes`` of length 1.
        """
        if isinstance(x, Unset) and not isinstance(w, Unset):
            w, x = x, w
        x = self.simplify(self.resolve(x))
        if self.has_zeros(x):
            return self._contract_with_zeros(w, x, axes)
        if not isinstance(w, Unset) or w.leaf.known is not None:
            return self.uniform(self.resolve(w) + x, axes)
        dims = max(len(w.shape), len(x.shape))
        w = w.map(lambda t: t[(None,) * (dims - t.ndim)])
        x = x.map(lambda t: t[(None,) * (dims - t.ndim)])
        axes = [axis % dims for axis in axes]
        rows = [a for a in range(dims) if w.shape[a] == 1 and a not in axes]
        kept = [a for a in range(dims) if a not in axes and a not in rows]
        out = self.fresh(*(w.shape[a] if a in kept else 1 for a in range(dims)))
        if not any(varies(index, rows) for _, index in x.terms):
            column, row = first(x, rows), self.pinned(*(1,) * dims)
        else:
            row = first(x, axes)
            column = self.uniform(x - row, rows)
        self._define(w, out - column, torch.broadcast_shapes(w.shape, column.shape))
        whole = torch.broadcast_shapes(w.shape, x.shape)
        shape = [1 if a in axes else n for a, n in enumerate(whole)]
        return LogScale((out + row).terms, shape)

    def single(self, x: LogScale) -> LogScale:
        """``x`` as one unknown an entry, new ones where it was a sum."""
        x = self.simplify(self.resolve(x))
        if not x.terms:
            return LogScale([(1, torch.tensor(PINNED))], x.shape)
        if len(x.terms) == 1 and x.terms[0][0] == 1:
            return x
        if self.has_zeros(x) and (known := merged(x)) is not None:
            return known
        indices = torch.broadcast_tensors(*(compact(index) for _, index in x.terms))
        rows = torch.stack(indices, -1).reshape(-1, len(indices))
        unique, inverse = torch.unique(rows, dim=0, return_inverse=True)
        new = LogScale([(1, self._fresh_like(unique))], [len(unique)])
        sums = LogScale(
            [(c, unique[:, m]) for m, (c, _) in enumerate(x.terms)], new.shape
        )
        self._impose(new - sums)
        index = torch.where((unique == ZERO).any(1), ZERO, new.terms[0][1])[inverse]
        return LogScale([(1, index.view(indices[0].shape))], x.shape)

    def where_read(self, x: LogScale, read: Tensor) -> LogScale:
        """``x``, and any scale outside of a mask, of a shape that broadcasts to that of ``x``.

        Of a parameter only what is read is determined.
        """
        if isinstance(x, Unset):
            effect = with_any_scale(self.pinned(*x.shape), ~read)
            x = self.resolve_with_effect(x, effect)
        return with_any_scale(x, ~read)

    def has_zeros(self, x: LogScale) -> bool:
        """Whether an entry of ``x`` is known to be always zero."""
        return any(bool((compact(index) == ZERO).any()) for _, index in x.terms)

    def simplify(self, x: LogScale) -> LogScale:
        """``x`` with merged unknowns, equal terms added up and terms that are 0 left out."""
        terms = collected(x.terms, self._merged)
        return LogScale([(c, torch.from_numpy(i)) for i, c in terms], x.shape)

    @contextmanager
    def because(self, reason: int):
        """Give equations imposed inside a reason, for the solution's ``reasons``."""
        previous, self._reason = self._reason, reason
        try:
            yield
        finally:
            self._reason = previous

    def chosen_unknowns(self, tables: Sequence[np.ndarray], variables) -> np.ndarray:
        """For each pair of a table and a variable, the unknown for the entry it chooses."""
        numbers = []
        for table, variable in zip(tables, variables.tolist()):
            key = self.choices.key(variable, len(table))
            number = self.choices.known(table, key)
            if number is None:
                number = int(self._plain(1)[0])
                self.choices.add(np.array([number]), [table], np.array([key]))
                self.choices.remember(table, key, number)
            numbers.append(number)
        return np.array(numbers, dtype=np.int64)

    def solve(self) -> Solution:
        """The null space: every log-scale as an integer combination of free ones."""
        return solve(self._unknowns, self._rows, self._shifts)

    # -- inside ---

    def _fresh_like(self, rows: Tensor) -> Tensor:
        """A new unknown for each row of others, chosen by the data as they are."""
        keys = self.choices.keys(rows.numpy())
        key, new = keys.max(1, initial=-1), self._plain(len(rows))
        one = (key >= 0) & ((keys < 0) | (keys == key[:, None])).all(1)
        tables = []
        for row in rows.numpy()[one]:
            size = max(
                len(t) for t in self.choices.tables(row[self.choices.among(row)])
            )
            tables.append(self._plain(size))
        # Numbers of chosen unknowns grow, and tables are made before them.
        own = self._plain(int(one.sum()))
        self.choices.add(own, tables, key[one])
        new[one] = own
        return torch.from_numpy(new)

    def _settled(self, x: LogScale) -> LogScale:
        """``x``, which cannot depend on a choice, without unknowns that do.

        It is their sum that does not: single ones may.
        """
        terms = [(c, compact(index)) for c, index in x.terms]
        chosen = [bool(self.choices.among(index.numpy()).any()) for _, index in terms]
        if not any(chosen):
            return x
        own = [term for term, by_data in zip(terms, chosen) if by_data]
        shape = torch.broadcast_shapes(*(index.shape for _, index in own))
        plain = self.fresh(*shape)
        self._impose(LogScale(own, shape) - plain)
        others = [term for term, by_data in zip(x.terms, chosen) if not by_data]
        return LogScale([*others, *plain.terms], x.shape)

    def _shift(self, dims: int) -> LogScale:
        """A new unknown common to many entries; free where it can be: generators stay local."""
        shift = self.fresh(*(1,) * dims)
        self._shifts.append(int(shift.terms[0][1]))
        return shift

    def resolve_with_effect(self, w: LogScale, x: LogScale) -> LogScale:
        """``w``, its entries left undetermined where ``x`` is always zero: they have no effect."""
        if not isinstance(w, Unset) or w.leaf.complete:
            return self.resolve(w)
        entries, other = torch.broadcast_tensors(w.entries, self.single(x).terms[0][1])
        self._fill(Unset(w.leaf, entries[other != ZERO]))
        return LogScale(
            [(c, i.reshape(-1)[w.entries]) for c, i in w.leaf.terms], w.shape
        )

    def _define(self, w: Unset, value: LogScale, shape: Sequence[int]) -> LogScale:
        """Impose ``w = value``; a definition where the entries of ``w`` are still undetermined."""
        lead = len(shape) - len(w.shape)
        extra = [a for a, n in enumerate(shape) if a < lead or w.shape[a - lead] != n]
        value = self.uniform(LogScale(value.terms, shape), extra)
        narrow = LogScale([(c, i[(0,) * lead]) for c, i in value.terms], w.shape)
        narrow = self._settled(narrow)
        if w.undetermined and w.distinct:
            w.determine(narrow)
        else:
            self._impose(self.resolve(w) - narrow)
        return LogScale(narrow.terms, shape)

    def _uniform_with_zeros(self, x: LogScale, axes: Sequence[int]) -> LogScale:
        """As :meth:`uniform`, where entries that are always zero do not count."""
        x = self.single(x)
        index = compact(x.terms[0][1])
        reference = index.amax(axes, keepdim=True) if axes else index
        self._impose(LogScale([(1, index), (-1, reference)], index.shape))
        return LogScale([(1, reference)], first(x, axes).shape)

    def _contract_with_zeros(self, w: LogScale, x: LogScale, axes) -> LogScale:
        """As :meth:`contract`; whole rows that fit any scale do not count."""
        dims = max(len(w.shape), len(x.shape))
        x = x.map(lambda t: t[(None,) * (dims - t.ndim)])
        of_w = [a for a in range(-len(w.shape), 0) if w.shape[a] > 1]
        apart = without_gaps(x, [*axes, *of_w]) if isinstance(w, Unset) else None
        if apart is None:
            return self.uniform(self.resolve_with_effect(w, x) + x, axes)
        return with_any_scale(self.contract(w, apart[0], axes), apart[1])

    def _impose(self, x: LogScale) -> None:
        """Impose ``x = 0`` on every entry."""
        terms = collected(x.terms, self._merged)
        if any((index == ZERO).any() for index, _ in terms):
            terms = focused(terms)
        chosen = sum(bool(self.choices.among(index).any()) for index, _ in terms)
        if chosen > 1 or any((index == ZERO).any() for index, _ in terms):
            self._add_rows(terms)
            return
        groups = self._joined(terms)
        if len(groups) <= 1:
            self._add_rows(terms)
            return
        # A sum of functions of different axes vanishes iff each is constant, and these add to 0.
        shifts = self.fresh(len(groups) - 1).terms[0][1].tolist()
        self._shifts += shifts
        constants = [[(np.array(s), -1)] for s in shifts]
        constants.append([(np.array(s), 1) for s in shifts])
        for group, constant in zip(groups, constants):
            self._add_rows(group + constant)

    def _joined(self, terms: Terms):
        """Terms joined while they vary along a common axis, or depend on a choice."""
        groups = groups_of_axes(terms)
        if len(groups) < 2:
            return groups
        own = [
            group
            for group in groups
            if any(self.choices.among(narrowed(i)).any() for i, _ in group)
        ]
        if len(own) < 2:
            return groups
        return [g for g in groups if g not in own] + [sum(own, [])]

    def _add_rows(self, terms: Terms) -> None:
        if not terms:
            return
        indices = np.broadcast_arrays(*(index for index, _ in terms))
        rows = np.stack([index.reshape(-1) for index in indices], axis=1)
        rows = rows[(rows != ZERO).all(1)]
        coefficients = np.array([c for _, c in terms])
        rows, coefficients = rows[:, coefficients != 0], coefficients[coefficients != 0]
        chosen = (
            self.choices.among(rows).any(1) if rows.size else np.zeros(0, dtype=bool)
        )
        if chosen.any():
            several, rows = np.unique(rows[chosen], axis=0), rows[~chosen]
            for lines, by in self.choices.spelled_out(
                several, coefficients, self._plain
            ):
                self._add_lines(lines, by)
        self._add_lines(rows, coefficients)

    def _plain(self, number: int) -> np.ndarray:
        return self.fresh(number).terms[0][1].numpy()

    def _add_lines(self, rows: np.ndarray, coefficients: np.ndarray) -> None:
        if not len(coefficients) or not len(rows):
            return
        if len(coefficients) == 2 and coefficients.sum() == 0:
            self._unknowns.merge(rows[:, 0], rows[:, 1], self._reason)
        elif len(coefficients) == 1:
            self._unknowns.merge(rows[:, 0], np.zeros_like(rows[:, 0]), self._reason)
        else:
            self._rows.append((np.unique(rows, axis=0), coefficients, self._reason))

    def _merged(self, index: np.ndarray) -> np.ndarray:
        """The representative of each unknown; those chosen alike, whatever the choice, as well."""
        merged = self._unknowns.find(index)
        return self.choices.collapsed(merged, self._unknowns.find)
