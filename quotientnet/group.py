"""Scaling groups: a symmetry is a matrix of integer exponents, stored compactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from quotientnet.axis_sums import broadcast_sum, sums_to
from quotientnet.gram import Gram
from quotientnet.layout import ParameterLayout
from quotientnet.options import require_kind, require_number
from quotientnet.units import Term, Unit, unit_index

__all__ = ["ScalingGroup", "as_group"]

_CACHES = "_indices", "_triplets", "_dense", "links", "_derived"

_LISTED = 1 << 17
"""Up to this many coordinates the incidence is also listed entry by entry: fewer, longer calls."""


class ScalingGroup:
    r"""The group :math:`(t \cdot w)_i = e^{(A t)_i} w_i`, with integer exponents ``A = G C``.

    The incidence ``G`` says which *classes* scale an entry; it is stored as broadcastable index
    arrays, never as a matrix. ``C``, classes × generators, is a sparse integer matrix. The group
    is written additively in the coordinates ``t``, shape ``(..., dimension)``; it knows no metric.

    Args:
        layout: The coordinates the group acts on.
        incidence: The terms of each scaled entry, by name.
        classes: ``C``, integer, one row a class; the identity if omitted.
        names: A name for each generator.

    Raises:
        TypeError: A layout, incidence, matrix or names of another kind.
        ValueError: An index array that does not fit its parameter or refers to no class, a name
            that is not in the layout, or a generator that scales nothing.

    Example:
        >>> import quotientnet as qn
        >>> layout = qn.ParameterLayout({"first": (3, 2), "second": (1, 3)})
        >>> hidden = qn.Unit("hidden", 3, (qn.Scale("first", 0), qn.Scale("second", 1, -1)))
        >>> group = qn.ScalingGroup.from_units(layout, [hidden])
        >>> group.dimension, group.names[0]
        (3, 'unit 0 of hidden')
    """

    def __init__(
        self,
        layout: ParameterLayout,
        incidence: Mapping[str, Sequence[Term]],
        classes: sparse.sparray | np.ndarray | None = None,
        names: Sequence[str] | None = None,
    ):
        _require_layout(layout, "ScalingGroup")
        require_kind(incidence, Mapping, "ScalingGroup", "incidence")
        if classes is not None and not (
            (sparse.issparse(classes) or isinstance(classes, np.ndarray)) and classes.ndim == 2
        ):
            raise TypeError(
                "ScalingGroup: classes must be a sparse or dense array of two axes, classes × "
                f"generators, got {type(classes).__name__}"
            )
        self.layout = layout
        self.incidence = _validated(layout, incidence)
        used = [
            int(t.index.max())
            for ts in self.incidence.values()
            for t in ts
            if t.index.size
        ]
        if classes is None:
            classes = sparse.eye_array(max(used, default=-1) + 1, dtype=np.int64)
        self.classes = sparse.csr_array(classes).astype(np.int64)
        if (self.classes != sparse.csr_array(classes)).nnz:
            raise ValueError("ScalingGroup: classes must have integer entries")
        self.classes.sum_duplicates()
        self.classes.eliminate_zeros()
        if max(used, default=-1) >= self.classes.shape[0]:
            raise ValueError(
                f"ScalingGroup: the incidence refers to class {max(used)}, but classes has "
                f"{self.classes.shape[0]} rows"
            )
        count = self.classes.shape[1]
        self.names = (
            tuple(names) if names is not None else tuple(f"t{j}" for j in range(count))
        )
        if len(self.names) != count:
            raise ValueError(
                f"ScalingGroup: {len(self.names)} names for {count} generators"
            )
        self._refuse_idle_generators()

    @classmethod
    def from_units(cls, layout: ParameterLayout, units: Sequence[Unit]) -> ScalingGroup:
        """A group from the hidden units of a network, one generator a channel.

        Args:
            layout: The coordinates.
            units: What each unit scales. Names that are not in the layout are an error.

        Raises:
            TypeError: A layout, or a unit, that is none.
            ValueError: An axis that is no multiple of the unit's channels.

        Example:
            >>> from quotientnet import ParameterLayout, Scale, ScalingGroup, Unit
            >>> layout = ParameterLayout({"W1": (4, 2), "b1": (4,), "W2": (3, 4)})
            >>> hidden = Unit("hidden", 4, (Scale("W1", 0), Scale("b1", 0), Scale("W2", 1, -1)))
            >>> ScalingGroup.from_units(layout, [hidden]).dimension
            4
        """
        incidence: dict[str, list[Term]] = {}
        names: list[str] = []
        _require_layout(layout, "ScalingGroup.from_units")
        if isinstance(units, (Unit, str)) or not isinstance(units, Iterable):
            raise TypeError(
                f"ScalingGroup.from_units: units must be a list of Unit, got {type(units).__name__}"
            )
        for unit in units:
            require_kind(unit, Unit, "ScalingGroup.from_units", "each of units")
            for scale in unit.scales:
                if scale.name not in layout:
                    raise ValueError(
                        f"ScalingGroup.from_units: unit {unit.name!r} scales {scale.name!r}, which "
                        f"is not in the layout; it has {', '.join(layout.names)}"
                    )
                entry = layout[scale.name]
                term = Term(
                    unit_index(unit, scale, entry.shape) + len(names), scale.exponent
                )
                incidence.setdefault(entry.name, []).append(term)
            alone = unit.channels == 1
            names += [
                unit.name if alone else f"unit {i} of {unit.name}"
                for i in range(unit.channels)
            ]
        return cls(
            layout, incidence, sparse.eye_array(len(names), dtype=np.int64), names
        )

    @property
    def dimension(self) -> int:
        """The number of generators ``k``, which is the length of ``t``."""
        return self.classes.shape[1]

    # -- the group law, in additive coordinates ---

    def identity(self, *batch: int, dtype=torch.float64, device=None) -> Tensor:
        """The coordinates of the neutral element, shape ``(*batch, dimension)``."""
        return torch.zeros(*batch, self.dimension, dtype=dtype, device=device)

    def compose(self, s: Tensor, t: Tensor) -> Tensor:
        """The coordinates of "first ``t``, then ``s``"."""
        return s + t

    def inverse(self, t: Tensor) -> Tensor:
        """The coordinates of the inverse element."""
        return -t

    def random(
        self,
        *batch: int,
        spread: float = 1.0,
        generator: torch.Generator | None = None,
        dtype=torch.float64,
        device=None,
    ) -> Tensor:
        """Coordinates drawn from a normal distribution of standard deviation ``spread``.

        Args:
            batch: Leading dimensions.
            spread: Standard deviation of each ``t_j``: scales vary by about ``e^{±spread}``.
            generator: Source of randomness; torch's global one if omitted.

        Raises:
            TypeError: ``spread`` is no number.
            ValueError: It is negative or infinite.
        """
        require_number(spread, "ScalingGroup.random", "spread")
        shape = (*batch, self.dimension)
        return spread * torch.randn(
            shape, generator=generator, dtype=dtype, device=device
        )

    # -- the action ---

    def exponents(self, t: Tensor, *, out: Tensor | None = None) -> Tensor:
        """``A t``, shape ``(..., size)``, from ``t``, shape ``(..., dimension)``.

        Args:
            t: Group coordinates.
            out: Where to write the result, shape ``(size,)``, for ``t`` without batch dimensions.
        """
        batch = self._check_coordinates(t, "exponents").shape[:-1]
        if self.layout.size <= _LISTED:
            rows, classes, coefficients = self._listed(t)
            out = t.new_zeros(*batch, self.layout.size) if out is None else out.zero_()
            return out.index_add_(
                -1, rows, self.to_classes(t).index_select(-1, classes) * coefficients
            )
        compact = self.compact_exponents(t)
        if t.requires_grad:
            pieces = [
                broadcast_sum(compact.get(e.name), t, batch, e.shape)
                for e in self.layout.entries
            ]
            return torch.cat([piece.reshape(*batch, -1) for piece in pieces], dim=-1)
        out = t.new_empty(*batch, self.layout.size) if out is None else out
        for entry in self.layout.entries:
            view = out[..., entry.slice].view(*batch, *entry.shape)
            terms = compact.get(entry.name, ())
            if (
                len(terms) == 2
                and torch.broadcast_shapes(*(t.shape for t in terms)) == view.shape
            ):
                torch.add(*terms, out=view)
            else:
                view.copy_(broadcast_sum(terms, t, batch, entry.shape))
        return out

    def to_dense(self) -> np.ndarray:
        """``A`` as a float64 array, shape ``(size, dimension)``; for small groups. Not to be
        written to."""
        if "_dense" not in self.__dict__:
            eye = torch.eye(self.dimension, dtype=torch.float64)
            self._dense = np.ascontiguousarray(self.exponents(eye).numpy().T)
        return self._dense

    def adjoint(self, rho: Tensor) -> Tensor:
        """``Aᵀ rho``, shape ``(..., dimension)``, from ``rho``, shape ``(..., size)``."""
        self.layout.check(rho, "ScalingGroup.adjoint", "rho")
        sums = rho.new_zeros(*rho.shape[:-1], self.classes.shape[0])
        if self.layout.size <= _LISTED:
            rows, classes, coefficients = self._listed(rho)
            sums.index_add_(-1, classes, rho.index_select(-1, rows) * coefficients)
            return self.to_generators(sums)
        views, batch = self.layout.unflatten(rho), rho.shape[:-1]
        for name, terms in self.incidence.items():
            reduced = sums_to(
                views[name], [term.index.shape for term in terms], len(batch)
            )
            for term, total in zip(terms, reduced):
                index, total = self._index(term, rho.device), total.reshape(*batch, -1)
                sums = sums.index_add(-1, index, total, alpha=term.coefficient)
        return self.to_generators(sums)

    def class_sums(self, rho: Tensor) -> dict[int, Tensor]:
        """Sums of ``rho``, shape ``(size,)``, over the entries that each class scales.

        Returns:
            By coefficient of the class, a vector of shape ``(classes,)``.
        """
        sums: dict[int, Tensor] = {}
        views = self.layout.unflatten(rho)
        for name, terms in self.incidence.items():
            shapes = [term.index.shape for term in terms]
            for term, total in zip(terms, sums_to(views[name], shapes, 0)):
                if term.coefficient not in sums:
                    sums[term.coefficient] = rho.new_zeros(self.classes.shape[0])
                index = self._index(term, rho.device)
                sums[term.coefficient].index_add_(0, index, total.reshape(-1))
        return sums

    def act(self, w: Tensor, t: Tensor) -> Tensor:
        """The equivalent point ``t·w``; batch dimensions of ``w`` and ``t`` broadcast.

        Args:
            w: Points, shape ``(..., size)``.
            t: Group coordinates, shape ``(..., dimension)``, converted to ``w``'s dtype and device.
        """
        self.layout.check(w, "ScalingGroup.act")
        self._check_coordinates(t, "act")
        return w * self.exponents(t.to(w)).exp_()

    def generate(self, w: Tensor, t: Tensor) -> Tensor:
        """The velocity ``(A t) ⊙ w`` of the orbit through ``w``: the vertical vector of ``t``."""
        self.layout.check(w, "ScalingGroup.generate")
        self._check_coordinates(t, "generate")
        return self.exponents(t.to(w)) * w

    def gram(self, weight: Tensor | None = None) -> Gram:
        """A solver for ``Aᵀ diag(weight) A`` with ``weight ≥ 0``, shape ``(size,)``, or 1.

        Raises:
            TypeError: ``weight`` is no tensor.
            ValueError: It is of another shape.
        """
        return Gram(self, weight)

    def without(self, generators) -> ScalingGroup:
        """The subgroup in which the generators of a boolean mask, shape ``(dimension,)``, rest.

        Raises:
            TypeError: What is no mask.
            ValueError: A mask of another shape.
        """
        if isinstance(generators, Tensor):
            dense = generators.layout == torch.strided and not generators.is_meta
            generators = generators.detach().cpu().numpy() if dense else None
        if not isinstance(generators, (np.ndarray, list, tuple)):
            raise TypeError(
                "ScalingGroup.without: generators must be a mask, a dense array of booleans, got "
                f"{type(generators).__name__}"
            )
        generators = np.asarray(generators)
        if generators.shape != (self.dimension,):
            raise ValueError(
                f"ScalingGroup.without: the mask has shape {generators.shape}, it needs "
                f"({self.dimension},), one entry a generator"
            )
        kept = np.flatnonzero(~generators.astype(bool))
        names = [self.names[j] for j in kept]
        return ScalingGroup(self.layout, self.incidence, self.classes[:, kept], names)

    def magnitudes(self) -> ScalingGroup:
        """The group of the absolute exponents: its adjoint bounds this one's sums."""
        terms = {
            name: [Term(term.index, abs(term.coefficient)) for term in terms]
            for name, terms in self.incidence.items()
        }
        return ScalingGroup(self.layout, terms, abs(self.classes), self.names)

    # -- the compact form, for those who loop over parameters ---

    def compact_exponents(self, t: Tensor) -> dict[str, list[Tensor]]:
        """The terms whose broadcast sum is ``A t``, by name: shape ``(..., *index.shape)`` each."""
        scales, batch = self.to_classes(t), t.shape[:-1]
        return {
            name: [
                scales.index_select(-1, self._index(term, t.device)).reshape(
                    (*batch, *term.index.shape)
                )
                * term.coefficient
                for term in terms
            ]
            for name, terms in self.incidence.items()
        }

    def to_classes(self, t: Tensor) -> Tensor:
        """``C t``: the log-scale of each class."""
        rows, columns, values = self._coordinates(t)
        result = t.new_zeros(*t.shape[:-1], self.classes.shape[0])
        return result.index_add(-1, rows, t.index_select(-1, columns) * values)

    @cached_property
    def links(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The nonzero entries of ``C`` by their value: rows (classes) and columns (generators)."""
        coo = self.classes.tocoo()
        own = {int(value): coo.data == value for value in np.unique(coo.data)}
        return {value: (coo.row[at], coo.col[at]) for value, at in own.items()}

    def to_generators(self, sums: Tensor) -> Tensor:
        """``Cᵀ s``: sums over classes gathered into generators."""
        rows, columns, values = self._coordinates(sums)
        result = sums.new_zeros(*sums.shape[:-1], self.dimension)
        return result.index_add(-1, columns, sums.index_select(-1, rows) * values)

    # -- inside ---

    def derived(self, key: str, make):
        """What ``make()`` returned at the first call with this key; not pickled."""
        cache = self.__dict__.setdefault("_derived", {})
        return cache[key] if key in cache else cache.setdefault(key, make())

    def _index(self, term: Term, device) -> Tensor:
        cache = self.__dict__.setdefault("_indices", {})
        key = (id(term), device)
        if key not in cache:
            cache[key] = torch.from_numpy(term.index.reshape(-1).copy()).to(device)
        return cache[key]

    def _coordinates(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The nonzero entries of ``C``: rows, columns, values."""

        def make():
            coo = self.classes.tocoo()
            return coo.row, coo.col, coo.data

        return self._on_device("classes", like, make)

    def _listed(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The nonzero entries of ``G`` one by one: coordinates, classes, coefficients."""

        def make():
            rows, classes, coefficients = [], [], []
            for name, terms in self.incidence.items():
                entry = self.layout[name]
                for term in terms:
                    rows.append(np.arange(entry.start, entry.start + entry.numel))
                    classes.append(np.broadcast_to(term.index, entry.shape).reshape(-1))
                    coefficients.append(np.full(entry.numel, term.coefficient))
            empty = [np.empty(0, dtype=np.int64)]
            return tuple(
                np.concatenate(parts + empty) for parts in (rows, classes, coefficients)
            )

        return self._on_device("incidence", like, make)

    def _on_device(self, key: str, like: Tensor, make) -> tuple[Tensor, Tensor, Tensor]:
        """Cached triplets of a sparse matrix: two int64 index vectors and values like ``like``."""
        cache = self.__dict__.setdefault("_triplets", {})
        key = (key, like.device, like.dtype)
        if key not in cache:
            rows, columns, values = make()
            cache[key] = (
                torch.from_numpy(rows.astype(np.int64)).to(like.device),
                torch.from_numpy(columns.astype(np.int64)).to(like.device),
                torch.from_numpy(values.astype(np.int64)).to(like),
            )
        return cache[key]

    def _check_coordinates(self, t: Tensor, method: str) -> Tensor:
        if not isinstance(t, Tensor) or t.ndim < 1 or t.shape[-1] != self.dimension:
            got = (
                f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            )
            raise ValueError(
                f"ScalingGroup.{method}: t must be a tensor with a last dimension of "
                f"{self.dimension}, one coordinate a generator; got {got}"
            )
        return t

    def _refuse_idle_generators(self) -> None:
        touched = np.zeros(self.classes.shape[0], dtype=bool)
        for terms in self.incidence.values():
            for term in terms:
                touched[term.index.reshape(-1)] = True
        reach = (abs(self.classes).T @ touched.astype(np.int64)) > 0
        if not reach.all():
            name = self.names[int(np.flatnonzero(~reach)[0])]
            raise ValueError(
                f"ScalingGroup: generator {name!r} scales no parameter; leave it out"
            )

    def _key(self):
        terms = tuple(
            (name, tuple(terms)) for name, terms in sorted(self.incidence.items())
        )
        c = self.classes
        matrix = (c.shape, c.indptr.tobytes(), c.indices.tobytes(), c.data.tobytes())
        return (self.layout, self.names, terms, matrix)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScalingGroup) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.layout, self.names))

    def __deepcopy__(self, memo) -> ScalingGroup:
        return self

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in _CACHES}

    def __repr__(self) -> str:
        return f"ScalingGroup(dimension={self.dimension}, size={self.layout.size})"


def _require_layout(layout, caller: str) -> None:
    remedy = "ParameterLayout.from_module(model) makes one"
    require_kind(layout, ParameterLayout, caller, "layout", remedy)


def as_group(group, caller: str) -> ScalingGroup:
    """A scaling group, or that of what :func:`discover` returned."""
    found = getattr(group, "group", group)
    if not isinstance(found, ScalingGroup):
        raise TypeError(
            f"{caller}: group must be a ScalingGroup or what discover returned, got "
            f"{type(group).__name__}"
        )
    return found


def _validated(layout: ParameterLayout, incidence) -> dict[str, tuple[Term, ...]]:
    result = {}
    for name, terms in incidence.items():
        if name not in layout:
            raise ValueError(f"ScalingGroup: {name!r} is not in the layout")
        entry = layout[name]
        for term in terms:
            require_kind(term, Term, "ScalingGroup", f"each of the terms of {name!r}")
            ok = term.index.ndim == len(entry.shape) and all(
                i in (1, s) for i, s in zip(term.index.shape, entry.shape)
            )
            if not ok or (term.index.size and term.index.min() < 0):
                raise ValueError(
                    f"ScalingGroup: an index array of shape {term.index.shape} does not fit "
                    f"{name!r}, which has shape {entry.shape}; it needs as many axes, each of "
                    "full length or 1, and classes from 0"
                )
        if terms:
            result[entry.name] = tuple(terms)
    order = {entry.name: i for i, entry in enumerate(layout.entries)}
    return dict(sorted(result.items(), key=lambda item: order[item[0]]))
