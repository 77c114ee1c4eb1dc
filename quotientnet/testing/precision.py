"""How far numbers in float32 are from the same in float64, and how far they may be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf, isfinite, sqrt

import torch
from torch import nn

from quotientnet.curvature.draws import normal
from quotientnet.estimate import Estimate
from quotientnet.group import as_group
from quotientnet.manifolds import LayerScaleQuotient, NodeWiseQuotient
from quotientnet.point import Point, require_point
from quotientnet.sharpness.catalogue import as_measures
from quotientnet.sharpness.measure import KINDS, Measure
from quotientnet.symmetry import canonical
from quotientnet.testing.laws import Verdict

__all__ = ["BOUNDS", "Bound", "Precision", "check_precision", "precision"]


@dataclass(frozen=True)
class Bound:
    """How far a quantity in float32 may be from the same one in float64.

    Attributes:
        units: The error in units of ``eps √n``, with ``n`` the number of parameters.
        relative_to: What the error is relative to.
        plus: What is allowed besides.
    """

    units: float
    relative_to: str
    plus: str = ""


BOUNDS = {
    "value": Bound(2, "the loss"),
    "gradient": Bound(4, "its norm"),
    "Hessian product": Bound(4, "its norm"),
    "canonical form": Bound(4, "its norm"),
    "distance": Bound(4, "the distance"),
    "geodesic": Bound(4, "the norm of its end"),
    "sum": Bound(4, "the absolute parts of the layers"),
    "sampled sum": Bound(4, "the absolute parts of the layers", "8 units of rounding of the loss"),
    "eigenvalue": Bound(4, "the value", "the errors that both state"),
    "ascent": Bound(4, "the value", "the errors that both state"),
    "rough": Bound(4, "the value", "a hundredth"),
}
"""Bounds of single precision by kind of quantity. Rounding adds up like a random walk, by
``eps √n``: the bounds allow for layers, samples and operations in between."""


@dataclass(frozen=True)
class Precision:
    """One quantity in both dtypes.

    Attributes:
        kind: A key of :data:`~quotientnet.testing.precision.BOUNDS`.
        name: The quantity.
        difference: Between float32 and float64, relative.
        bound: What is allowed, relative to the same.
    """

    kind: str
    name: str
    difference: float
    bound: float


def precision(
    point: Point, group=None, *, measures: Iterable | None = (), seed: int = 0
) -> Iterator[Precision]:
    """Every quantity of a point in float32 and in float64, at the same numbers.

    Args:
        point: The point, which is rounded to float32; of either dtype. Nothing is changed.
        group: A group, or what ``discover`` returned; without it neither measures nor geometry.
        measures: Labels of the report or :class:`~quotientnet.sharpness.Measure`; None for all.
        seed: Of everything random, which is the same in both dtypes.

    Yields:
        A :class:`Precision` for each. Measures that refuse in both dtypes are left out; one that
        refuses in float32 alone has an infinite difference.
    """
    require_point(point, "precision")
    wide, single = (in_dtype(point, dtype) for dtype in (torch.float64, torch.float32))
    unit = torch.finfo(torch.float32).eps * sqrt(point.layout.parameter_size)
    for kind, name, quantity in tensors(group, seed):
        a, b = quantity(wide).double(), quantity(single).double()
        difference = float((a - b).norm() / a.norm()) if a.any() else float(b.norm())
        yield Precision(kind, name, difference, BOUNDS[kind].units * unit)
    if group is None or (measures is not None and not list(measures)):
        return
    group = as_group(group, "precision")
    for measure in as_measures(measures):
        found = [value_of(measure, each, group, seed) for each in (wide, single)]
        if found[0] is not None:
            yield _compared(measure, *found, unit, float(wide.value))


def check_precision(
    point: Point, group=None, *, measures: Iterable | None = (), seed: int = 0
) -> Verdict:
    """Whether everything in float32 is as near to the same in float64 as
    :data:`~quotientnet.testing.precision.BOUNDS` says.

    Args:
        point: As in :func:`precision`.
        group: As in :func:`precision`.
        measures: As in :func:`precision`.
        seed: As in :func:`precision`.

    Returns:
        The verdict on the quantity that uses most of its bound; ``case`` names it. The violation
        is in units of the bound.

    Raises:
        TypeError: ``point`` is none.

    Example:
        >>> import torch, quotientnet as qn
        >>> from quotientnet.testing import check_precision
        >>> x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> model = torch.nn.Linear(3, 2).double()
        >>> objective = qn.Objective(model, torch.nn.MSELoss(), (x, x[:, :2]))
        >>> check_precision(objective.at(torch.ones(8).double())).holds
        True
    """
    found = list(precision(point, group, measures=measures, seed=seed))
    worst = max(found, key=lambda p: p.difference / p.bound if isfinite(p.difference) else inf)
    reason = f"{worst.difference:.1e} from float64, {worst.bound:.1e} is allowed"
    return Verdict(
        "float32_is_near_float64", worst.difference / worst.bound, 1.0, seed, worst.name, reason,
        tried=len(found),
    )  # fmt: skip


def in_dtype(point: Point, dtype: torch.dtype) -> Point:
    """The same point, rounded to float32, of a copy of its model in another dtype."""
    objective = point.objective.of(copy.deepcopy(point.objective.model).float().to(dtype))
    if isinstance(objective.loss, nn.Module):
        objective.loss = copy.deepcopy(objective.loss).float().to(dtype)
    return objective.at(point.w.float().to(dtype))


def tensors(group, seed: int) -> Iterator[tuple[str, str, Callable]]:
    """What does not need a measure: kind, name, and the function of a point."""

    def drawn(point, key):
        generator = torch.Generator(point.w.device).manual_seed(1_000_003 * seed + key)
        return normal(*point.w.shape, like=point.w, generator=generator)

    yield "value", "the loss", lambda p: p.value
    yield "gradient", "the gradient", lambda p: p.gradient
    yield "Hessian product", "a product with the Hessian", lambda p: p.hessian @ drawn(p, 1)
    if group is None:
        return
    group = as_group(group, "precision")

    def balanced(p):
        return canonical(p.w, group, runaways="exclude")

    if group.dimension:
        yield "canonical form", "the canonical point", balanced
    for quotient in (LayerScaleQuotient, NodeWiseQuotient):

        def ends(p, quotient=quotient):
            manifold = quotient(group, frozen_zeros=p.w)
            near = p.w * (0.1 * drawn(p, 2)).exp()
            return manifold, near, manifold.proju(p.w, 0.1 * p.w * drawn(p, 3))

        def distance(p, ends=ends):
            manifold, near, _ = ends(p)
            return manifold.dist(p.w, near)

        def geodesic(p, ends=ends):
            manifold, _, along = ends(p)
            return manifold.expmap(p.w, along)

        yield "distance", f"a distance of {quotient.__name__}", distance
        yield "geodesic", f"a geodesic of {quotient.__name__}", geodesic


def value_of(measure: Measure, point: Point, group, seed: int) -> Estimate | None:
    generator = torch.Generator(point.w.device).manual_seed(seed)
    try:
        return measure.function(point, group, generator)
    except (ValueError, NotImplementedError):
        return None


def _compared(measure: Measure, a: Estimate, b: Estimate | None, unit, loss) -> Precision:
    """A measure's difference and bound, both relative to its size."""
    kind = {"exact": "sum", "sampled": "sampled sum", "rough": "rough"}.get(measure.kind)
    kind = kind or ("eigenvalue" if measure.fresh else "ascent")
    size = abs(a.value)
    if kind in ("sum", "sampled sum"):
        size = max(size, sum(abs(part.value) for part in a.layers.values()))
    if b is None or not size:
        gap = 0.0 if b is not None and b.value == a.value else inf
        return Precision(kind, measure.label, gap, unit)
    besides = {
        "sampled sum": 8 * torch.finfo(torch.float32).eps * abs(loss),
        "eigenvalue": a.error + b.error,
        "ascent": a.error + b.error,
        "rough": KINDS["rough"] * size,
    }.get(kind, 0.0)
    bound = BOUNDS[kind].units * unit + besides / size
    return Precision(kind, measure.label, abs(a.value - b.value) / size, bound)
