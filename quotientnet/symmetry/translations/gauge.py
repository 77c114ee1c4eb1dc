"""One point for each family of translated ones: where entries, or means, are zero."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from quotientnet.layout import ParameterLayout
from quotientnet.symmetry.translations.field import MoveField, decoded, encoded
from quotientnet.symmetry.translations.parts import Part
from quotientnet.symmetry.translations.sound import translations_of
from quotientnet.symmetry.translations.translation import Translation

__all__ = ["Gauge", "fix_translations"]

_DENSE = 4096
"""The largest number of coefficients of one parameter whose directions overlap."""


def fix_translations(w: Tensor, symmetry) -> Tensor:
    """Move a point along its translations to where their coefficients are zero.

    There, the entries that a translation adds to are zero; where it adds one number to several
    entries alike, their mean is. The function does not change: what makes up for it moves along.

    Args:
        w: A point, shape ``(n,)``.
        symmetry: What ``discover`` returned, or some of its translations.

    Returns:
        The equivalent point, shape ``(n,)``. Equal for translated points, up to rounding.

    Raises:
        TypeError: ``symmetry`` has no translations.
        ValueError: One that begins at a running mean, or none at all; ``w`` is not finite or not
            one point.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3)).double()
        >>> symmetry = qn.discover(model, torch.randn(5, 2).double())
        >>> w = qn.symmetry.fix_translations(symmetry.group.layout.flatten(model), symmetry)
        >>> bool(symmetry.group.layout.unflatten(w)["0.bias"].mean().abs() < 1e-15)
        True
    """
    translations, layout = translations_of(symmetry, "fix_translations")
    layout.check(w, "fix_translations")
    if w.ndim != 1:
        raise ValueError(
            f"fix_translations: needs one point, got shape {tuple(w.shape)}"
        )
    bad = layout.count(~torch.isfinite(w))
    if bad:
        raise ValueError(
            f"fix_translations: w has numbers that are not finite, in {', '.join(list(bad)[:4])}; "
            "repair these parameters first"
        )
    return Gauge(layout, translations).fix(w)


@dataclass(frozen=True)
class _Fixed:
    """The directions in one part: columns ``f`` with coefficients ``c`` at rows ``r``."""

    part: Part
    fields: tuple[MoveField, ...]
    r: Tensor
    f: Tensor
    c: Tensor
    inverse: Tensor

    def coefficients(self, values: Tensor) -> Tensor:
        """The least-squares coefficients, shape ``(batch, columns, length)``."""
        c = self.c.to(values)[:, None]
        shape = (values.shape[0], len(self.inverse), values.shape[2])
        at = self.f.to(values.device)
        sums = values.new_zeros(shape).index_add(
            1, at, values[:, self.r.to(values.device)] * c
        )
        inverse = self.inverse.to(values)
        return sums * inverse[:, None] if inverse.ndim == 1 else inverse @ sums

    def along(self, coefficients: Tensor, like: Tensor) -> Tensor:
        """The directions with given coefficients, in the shape of ``like``."""
        own = coefficients[:, self.f.to(like.device)] * self.c.to(like)[:, None]
        return torch.zeros_like(like).index_add(1, self.r.to(like.device), own)


class Gauge:
    """The linear space of points whose translations are fixed, and the projection to it.

    Args:
        layout: The coordinates.
        translations: Some of those of a module.

    Attributes:
        translations: These.
        dimension: The sum of their dimensions.
    """

    def __init__(self, layout: ParameterLayout, translations: Iterable[Translation]):
        self.layout, self.translations = layout, tuple(translations)
        self.dimension = sum(t.dimension for t in self.translations)
        homes: dict[int, list[Translation]] = {}
        for translation in self.translations:
            if layout[translation.parameter].passive:
                raise ValueError(
                    f"the translation {translation.name!r} begins at a running statistic, which is "
                    "no direction; leave it out"
                )
            homes.setdefault(id(translation.field.home), []).append(translation)
        self._fixed = [_fixed(own) for own in homes.values()]

    def project(self, x: Tensor) -> Tensor:
        """The orthogonal projection, shape ``(..., n)``."""
        flat = x.reshape(-1, x.shape[-1])
        result = flat.clone()
        for fixed in self._fixed:
            entry = self.layout[fixed.part.leaf.name]
            values = _encoded(fixed.part, result[:, entry.slice])
            off = fixed.along(fixed.coefficients(values), values)
            pieces = result[:, : entry.start], result[:, entry.slice.stop :]
            own = result[:, entry.slice] - _decoded(fixed.part, off)
            result = torch.cat([pieces[0], own, pieces[1]], 1)
        return torch.where(self.zeros.to(x.device), 0.0, result).reshape(x.shape)

    def fix(self, w: Tensor) -> Tensor:
        """The point of the space that differs from ``w`` by translations."""
        w = w.clone()
        for fixed in self._fixed:
            entry = self.layout[fixed.part.leaf.name]
            values = _encoded(fixed.part, w[None, entry.slice])
            coefficients, start = fixed.coefficients(values)[0], 0
            for move in fixed.fields:
                own = coefficients[start : start + len(move.free)]
                start += len(move.free)
                move.move_(w, -own)
        return torch.where(self.zeros.to(w.device), torch.zeros_like(w), w)

    @property
    def zeros(self) -> Tensor:
        """The coordinates that are zero, a mask of shape ``(n,)``."""
        if not hasattr(self, "_zeros"):
            probe = torch.zeros(self.layout.size, dtype=torch.bool)
            for fixed in self._fixed:
                if fixed.part.flat or fixed.part.centred:
                    continue
                sizes = torch.bincount(fixed.f, minlength=len(fixed.inverse))
                alone = torch.zeros(1, fixed.part.count, fixed.part.length)
                alone[:, fixed.r[sizes[fixed.f] == 1]] = 1.0
                probe[self.layout[fixed.part.leaf.name].slice] |= (
                    _decoded(fixed.part, alone)[0] > 0
                )
            self._zeros = probe
        return self._zeros


def _fixed(translations: list[Translation]) -> _Fixed:
    part, columns = translations[0].field.home, []
    for translation in translations:
        move = translation.field
        matrix = next(m for p, m in move.parts if p is part)
        columns.append(matrix[:, move.sources.numpy()])
    matrix = sparse.hstack(columns).tocoo()
    gram = (matrix.T @ matrix).tocsr()
    if (gram - sparse.diags_array(gram.diagonal())).count_nonzero() == 0:
        inverse = 1 / gram.diagonal()
    else:
        inverse = _inverse(gram, translations)
    fields = tuple(t.field for t in translations)
    r, f, c = (
        torch.from_numpy(np.ascontiguousarray(a))
        for a in (matrix.row, matrix.col, matrix.data)
    )
    return _Fixed(part, fields, r.long(), f.long(), c, torch.from_numpy(inverse))


def _inverse(gram: sparse.csr_array, translations) -> np.ndarray:
    names = ", ".join(repr(t.name) for t in translations[:3])
    if len(set(map(id, translations))) < len(translations):
        raise ValueError(f"among the translations {names} is one twice; pass each once")
    if gram.shape[0] > _DENSE or np.linalg.matrix_rank(gram.toarray()) < gram.shape[0]:
        raise ValueError(
            f"the translations {names} move the same entries in ways that cannot be told apart "
            "there; leave one of them out"
        )
    return np.linalg.inv(gram.toarray())


def _encoded(part: Part, flat: Tensor) -> Tensor:
    """Values of a part's unknowns, shape ``(batch, count, length)``."""
    if not len(flat):
        return flat.new_zeros(0, part.count, part.length)
    return torch.stack([encoded(part, row.view(part.leaf.shape)) for row in flat])


def _decoded(part: Part, values: Tensor) -> Tensor:
    """The parameters, one a row."""
    shape = (len(values), prod(part.leaf.shape))
    return torch.stack([decoded(part, v).reshape(-1) for v in values]).view(shape)
