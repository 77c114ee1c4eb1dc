"""Manifolds without the directions of translations, which leave the function unchanged."""

from __future__ import annotations

from copy import copy
from functools import cache

import torch
from torch import Tensor

from quotientnet.manifolds.base import QuotientManifold
from quotientnet.manifolds.log_polar import LogPolarQuotient
from quotientnet.manifolds.vectors import LayoutManifold, listed
from quotientnet.symmetry.translations.gauge import Gauge
from quotientnet.symmetry.translations.sound import translations_of

__all__ = ["without_translations"]


def without_translations(manifold: LayoutManifold, symmetry) -> LayoutManifold:
    r"""The part of a manifold where translations are fixed: entries that are zero, means that are.

    With ``P`` the orthogonal projection to these points and ``V`` the directions it takes out, the
    reflection :math:`I - 2 V V^\top` is an isometry that commutes with the group, as long as each
    direction lies where the metric's frame and the exponents are uniform: in one tensor or filter
    of a log-polar metric, among entries of equal exponents of a balanced one. Its fixed points are
    totally geodesic. So geodesics, logarithms, distances, transports and retractions are those of
    ``manifold``, and ``P`` after its projection is the projection.

    A block of a log-polar metric that is zero altogether is held there.

    Args:
        manifold: A quotient, or a :class:`~quotientnet.ProductOblique`.
        symmetry: What ``discover`` returned, or some of its translations.

    Returns:
        A manifold of the same class otherwise. Its points are those that
        :func:`~quotientnet.symmetry.fix_translations` returns, and what is on their orbits.

    Raises:
        TypeError: ``manifold`` is none on a layout, or ``symmetry`` has no translations.
        ValueError: A translation adds to entries where the metric differs, by name: to several
            entries alike under a node-wise metric. Or it is taken out already, or the layouts
            differ.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
        >>> symmetry = qn.discover(model, torch.randn(5, 2))
        >>> manifold = qn.LayerScaleQuotient(symmetry)
        >>> manifold.dimension, qn.without_translations(manifold, symmetry).dimension
        (14, 11)
    """
    caller = "without_translations"
    if not isinstance(manifold, LayoutManifold):
        raise TypeError(
            f"{caller}: manifold must be one on a layout, such as LayerScaleQuotient(symmetry), "
            f"got {type(manifold).__name__}"
        )
    translations, layout = translations_of(symmetry, caller)
    if layout != manifold.layout:
        raise ValueError(
            f"{caller}: the translations have another layout than the manifold; build both from "
            "the same module"
        )
    if isinstance(manifold, _Fixed):
        _require_new(translations, manifold._gauge.translations)
        translations = (*manifold._gauge.translations, *translations)
        (manifold,) = manifold._whole
    return _restricted(manifold, Gauge(layout, translations))


def _require_new(translations, taken) -> None:
    known = {(t.name, t.dimension) for t in taken}
    again = [t.name for t in translations if (t.name, t.dimension) in known]
    if again:
        names = ", ".join(map(repr, again[:3])) + (", ..." if len(again) > 3 else "")
        raise ValueError(
            f"without_translations: {len(again)} of the translations are taken out of this "
            f"manifold already: {names}; pass only the others"
        )


def _restricted(base: LayoutManifold, gauge: Gauge) -> LayoutManifold:
    held = base.holding(gauge.zeros) if isinstance(base, LogPolarQuotient) else base
    manifold = copy(held)
    manifold.__class__ = _class_of(type(held))
    manifold._whole, manifold._gauge = (base,), gauge  # no submodule
    manifold._taken = _taken(held, gauge)
    _require_uniform(held, gauge)
    return manifold


@cache
def _class_of(kind: type) -> type:
    return type(kind.__name__, (_Fixed, kind), {"__module__": kind.__module__})


class _Fixed:
    """What a manifold's class does, on the fixed points of a reflection."""

    _whole: tuple[LayoutManifold]
    _gauge: Gauge
    _taken: int

    def __reduce__(self):
        return _restricted, (*self._whole, self._gauge)

    def __deepcopy__(self, memo):
        return _restricted(*self._whole, self._gauge)

    @property
    def dimension(self) -> int:
        """That of the whole manifold, less one for each translation."""
        return super().dimension - self._taken

    def extra_repr(self) -> str:
        own = super().extra_repr()
        taken = f"{self._gauge.dimension} directions of translations taken out"
        return f"{own}, {taken}" if own else taken

    def proju(self, x: Tensor, u: Tensor, **out) -> Tensor:
        """As on the whole manifold, without the directions of translations."""
        return self._projected(super().proju(x, u, **out), **out)

    def egrad2rgrad(self, x: Tensor, u: Tensor, **out) -> Tensor:
        """As on the whole manifold, without the directions of translations."""
        return self._projected(super().egrad2rgrad(x, u, **out), **out)

    def _projected(self, u: Tensor, out: Tensor | None = None) -> Tensor:
        result = self._gauge.project(u)
        return result if out is None else out.copy_(result)

    def projx(self, x: Tensor) -> Tensor:
        """The nearest point; what is a point up to rounding is returned as it is."""
        self.layout.check(x, f"{self.name}.projx", "x")
        return super().projx(x if self._off(x) is None else self._gauge.project(x))

    def random(self, *size, **options) -> Tensor:
        """A random point whose translations are fixed."""
        return self._brought(super().random(*size, **options))

    def origin(self, *size, **options) -> Tensor:
        """A random point whose translations are fixed: entries alike have none."""
        options.pop("seed", None)
        device = options.get("device") or "cpu"
        generator = torch.Generator(device).manual_seed(42)
        return self.random(*size, generator=generator, **options)

    def steepest(self, g: Tensor) -> Tensor:
        """As on the whole manifold, among points whose translations are fixed."""
        return super().steepest(self._gauge.project(g))

    def _brought(self, x: Tensor) -> Tensor:
        return super().projx(self._gauge.project(x))

    def _admitted(self, u: Tensor) -> Tensor:
        return self._gauge.project(super()._admitted(u))

    def _off(self, x: Tensor) -> str | None:
        """Where translations are not fixed, beyond rounding."""
        gap = (x - self._gauge.project(x)).abs()
        size = 64 * torch.finfo(x.dtype).eps * x.abs().amax()
        return listed(self.layout.count(gap > size)) if (gap > size).any() else None

    def _point_defect(self, x: Tensor) -> str | None:
        return self._not_fixed(x) or super()._point_defect(x)

    def _defect(self, x: Tensor) -> str | None:
        return self._not_fixed(x) or super()._defect(x)

    def _not_fixed(self, x: Tensor) -> str | None:
        where = self._off(x) if torch.isfinite(x).all() else None
        return (
            None
            if where is None
            else f"translations are not fixed in {where}; {_REMEDY}"
        )


_REMEDY = (
    "use symmetry.fix_translations(w, symmetry), which leaves the function as it is"
)


def _taken(held: LayoutManifold, gauge: Gauge) -> int:
    """The directions that the manifold itself does not hold already."""
    zeros = int((gauge.zeros & held._frozen.mask).sum())
    return gauge.dimension - zeros


def _require_uniform(manifold: LayoutManifold, gauge: Gauge) -> None:
    """Refuse directions that the reflection does not map to directions of the same length."""
    generator = torch.Generator().manual_seed(0)
    for translation in gauge.translations:
        one = Gauge(gauge.layout, [translation])
        for scale in _scales(manifold, gauge, generator):
            v = torch.randn(len(scale), generator=generator).double()
            gap = one.project(scale * v) - scale * one.project(v)
            if gap.abs().amax() > 1e-9 * (scale * v).abs().amax():
                raise ValueError(
                    f"without_translations: {translation.name!r} adds to entries where the metric "
                    f"of {manifold.name} or the group's exponents differ; leave it out, or use "
                    "LayerScaleQuotient or BalancedQuotient"
                )


def _scales(manifold: LayoutManifold, gauge: Gauge, generator) -> list[Tensor]:
    """Numbers that are equal where a reflection may mix entries."""
    count = manifold.layout.size
    if not isinstance(manifold, QuotientManifold):
        blocks = torch.rand(manifold.blocks.count, generator=generator).double() + 1
        return [manifold.blocks.expand(blocks)]
    group = manifold.group
    t = torch.randn(group.dimension, generator=generator).double()
    x = gauge.project(manifold.random(count, dtype=torch.float64, generator=generator))
    return [group.exponents(t).exp(), manifold.frame(x)]
