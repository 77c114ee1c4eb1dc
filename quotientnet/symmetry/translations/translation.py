"""Translations of parameters that leave a module's function unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from quotientnet.layout import ParameterLayout
from quotientnet.symmetry.translations.field import MoveField
from quotientnet.symmetry.translations.parts import Part
from quotientnet.symmetry.translations.solving import Solved, solve
from quotientnet.symmetry.translations.walk import ShiftWalk

__all__ = ["Translation", "derive_translations"]


@dataclass(frozen=True, eq=False)
class Translation:
    r"""Moves ``w + D(w) s`` of parameters that leave the function unchanged, for any ``s``.

    The coefficients ``s`` are added to entries of one parameter, its *home*, or to all of a row, a
    column or a group of them; what others do to make up for it may depend on further parameters, as
    :math:`b_o \leftarrow b_o - W_o s` for the bias of values in attention.

    Attributes:
        name: What is moved, and what makes up for it or forgets it.
        dimension: The number of coefficients.
        parameter: The home.
        moved: The parameters and running means that move, by name, each with a mask of its entries.
        absorbed_by: The operations that forget the move, by name and place.
    """

    name: str
    dimension: int
    parameter: str
    moved: dict[str, Tensor] = field(repr=False)
    absorbed_by: tuple[str, ...]
    field: MoveField = field(repr=False)

    def act(self, w: Tensor, s: Tensor) -> Tensor:
        """``w + D(w) s``, an equivalent point.

        Args:
            w: A point, shape ``(n,)``.
            s: Coefficients, shape ``(dimension,)``, finite.

        Raises:
            TypeError: ``w`` or ``s`` is no tensor.
            ValueError: Of another shape, or ``s`` is not finite.
        """
        self._check_point(w, "act")
        if not isinstance(s, Tensor):
            raise TypeError(
                f"Translation.act: s must be a torch.Tensor of {self.dimension} coefficients, got "
                f"{type(s).__name__}; use torch.tensor(s)"
            )
        if s.shape != (self.dimension,):
            raise ValueError(
                f"Translation.act: needs one point and {self.dimension} coefficients, got shapes "
                f"{tuple(w.shape)} and {tuple(s.shape)}"
            )
        if not torch.isfinite(s).all():
            raise ValueError(
                f"Translation.act: {int((~torch.isfinite(s)).sum())} of the {self.dimension} "
                "coefficients s are not finite; pass finite ones"
            )
        return self._moved(w, s)

    def _check_point(self, w: Tensor, method: str) -> None:
        caller = f"Translation.{method}"
        self.field.layout.check(w, caller)
        if w.ndim != 1:
            raise ValueError(
                f"{caller}: needs one point, shape ({self.field.layout.size},), got w of shape "
                f"{tuple(w.shape)}; call it for each"
            )

    def _moved(self, w: Tensor, s: Tensor) -> Tensor:
        return self.field.move_(w.clone(), self._spread(s.to(w)))

    def _spread(self, s: Tensor) -> Tensor:
        """Coefficients as values of the free unknowns; those of mean zero have one fewer."""
        home = self.field.home
        if not home.centred:
            return s.view(-1, home.length)
        return s.view(-1, home.length - 1) @ _centred_basis(home.length).to(s)

    def basis(self, w: Tensor) -> Tensor:
        """``D(w)``, shape ``(n, dimension)``, at a point ``w`` of shape ``(n,)``."""
        self._check_point(w, "basis")
        each = torch.eye(self.dimension, dtype=w.dtype, device=w.device)
        return torch.stack([self._moved(w, s) - w for s in each], 1)

    def __str__(self) -> str:
        return f"{self.dimension:>5}  {self.name}"


def derive_translations(program, layout: ParameterLayout) -> tuple[Translation, ...]:
    """The translations of an exported module, in the order of the parameters in its graph."""
    walk = ShiftWalk(program, layout)
    solved = solve(walk.unknowns)
    return tuple(_translations(walk, solved, layout))


def _translations(walk: ShiftWalk, solved: Solved, layout: ParameterLayout):
    events = solved.unknowns.absorbed
    reach = _reach(solved, [e.unknowns for e in events])
    for part, own in _homes(solved):
        for group, forgotten in _grouped(reach[:, own].toarray() > 0, own, len(events)):
            move = MoveField(layout, solved, part, group)
            records = sorted({e.record for e, here in zip(events, forgotten) if here})
            names = tuple(dict.fromkeys(_place(*walk.places[r]) for r in records))
            dimension = len(group) * (part.length - part.centred)
            yield Translation(
                _named(part, move, names),
                dimension,
                part.leaf.name,
                move.moved,
                names,
                move,
            )


def _homes(solved: Solved):
    """The parts that move first, each with its free unknowns."""
    left = solved.free.copy()
    for part in solved.unknowns.parts:
        if part.length - part.centred < 1:
            continue
        here = solved.expression[part.start : part.slice.stop]
        mine = np.unique(here.indices[here.data != 0])
        mine = mine[left[mine]]
        left[mine] = False
        if len(mine):
            yield part, mine


def _grouped(table: np.ndarray, free: np.ndarray, events: int):
    """Free unknowns that move the same parameters and are forgotten by the same operations."""
    _, first, which = np.unique(table, axis=1, return_index=True, return_inverse=True)
    for number in np.argsort(first):
        yield free[which.reshape(-1) == number], table[
            len(table) - events :, first[number]
        ]


def _reach(solved: Solved, sets: Sequence[np.ndarray]) -> sparse.csc_array:
    """Which parts, and which sets of unknowns, depend on which free ones: nonzero where they do."""
    parts = [np.arange(p.start, p.slice.stop) for p in solved.unknowns.parts]
    pattern = abs(solved.expression)
    made: list[sparse.csr_array] = []

    def resolved(matrix: sparse.csr_array) -> sparse.csr_array:
        """Products replaced by what they are made of."""
        columns, total = matrix.tocsc(), matrix
        for product, rows in zip(solved.products, made):
            here = columns[:, product.slice]
            if here.nnz:
                lines = np.arange(len(product.pairs))
                shape = (len(lines), rows.shape[0])
                ones = np.ones(len(lines))
                which = sparse.csr_array(
                    (ones, (lines, product.pairs[:, 0])), shape=shape
                )
                total = total + (here @ which) @ rows
        return total.tocsr()

    for product in solved.products:
        made.append(resolved(_summed(list(product.inputs), pattern)))
    return resolved(_summed([*parts, *sets], pattern)).tocsc()


def _summed(sets: Sequence[np.ndarray], pattern: sparse.csr_array) -> sparse.csr_array:
    """The sum of the rows of each set, their zeros left out."""
    lines = np.repeat(np.arange(len(sets)), [s.size for s in sets])
    chosen = np.concatenate(
        [np.zeros(0, dtype=np.int64), *(s.reshape(-1) for s in sets)]
    )
    shape = (len(sets), pattern.shape[0])
    return (
        sparse.csr_array((np.ones(len(lines)), (lines, chosen)), shape=shape) @ pattern
    )


def _centred_basis(length: int) -> Tensor:
    """Rows that span the vectors of mean zero, shape ``(length − 1, length)``."""
    eye = torch.eye(length, dtype=torch.float64)
    return eye[:-1] - 1 / length


def _place(operation: str, place: str, kind: str) -> str:
    return f"{operation} in {place}" if place else operation


# -- names ---


def _named(part: Part, move: MoveField, absorbers: Sequence[str]) -> str:
    """``attn.v.bias[0:8] into attn.o.bias``, and the like."""
    home = part.leaf.name
    text = _entries(home, part, move)
    others = [n for n in move.moved if n != home]
    if others:
        text += f", made up for by {', '.join(others[:3])}{', …' if len(others) > 3 else ''}"
    if absorbers:
        more = ", …" if len(absorbers) > 3 else ""
        text += f", forgotten by {', '.join(absorbers[:3])}{more}"
    return text


def _entries(home: str, part: Part, move: MoveField) -> str:
    mask, count = move.moved[home], len(move.free)
    if part.flat:
        return f"{home}: all rows alike"
    if part.centred:
        return f"{home}: each row by itself, all columns alike"
    if int(mask.sum()) == count * part.length:
        if bool(mask.all()):
            return f"{home}: all entries"
        if mask.ndim == 1:
            first, last = torch.nonzero(mask)[[0, -1], 0].tolist()
            if last - first + 1 == count:
                return f"{home}[{first}:{last + 1}]"
        return f"{home}: {count * part.length} entries"
    if part.length > 1:
        axes = (
            "rows"
            if part.kept == (0,)
            else "columns" if part.kept == (1,) else "slices"
        )
        return f"{home}: all {axes} alike" + (
            "" if count == 1 else f", in {count} groups"
        )
    return (
        f"{home}: all entries alike"
        if count == 1
        else f"{home}: alike in {count} groups"
    )
