"""The measures of the five papers, with what a report needs to know of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import hypot

import torch

from quotientnet.estimate import Estimate
from quotientnet.group import ScalingGroup
from quotientnet.manifolds import BalancedQuotient, LayerScaleQuotient, NodeWiseQuotient
from quotientnet.point import Point
from quotientnet.sharpness.euclidean import spectral_norm, trace
from quotientnet.sharpness.riemannian import riemannian_spectral_norm

__all__ = ["Measure", "KINDS", "MEASURES", "as_measures"]

KINDS = {"exact": 1e-8, "search": 1e-6, "sampled": 1e-8}
"""The largest relative change that counts as none, by how a value is found."""


@dataclass(frozen=True)
class Measure:
    """A measure as a report calls it.

    Attributes:
        label: Its name.
        paper: Where it comes from; rows are grouped by it.
        function: ``function(point, group, generator)``. It may refuse with a ``ValueError``.
        kind: ``"exact"`` for formulas; ``"search"`` for an ascent or an eigenvalue, which is known
            to the tolerance of its iteration; ``"sampled"`` for an estimate with a standard error.
        fresh: Whether it gets other random numbers at every point, so that agreement is no
            artefact. An ascent that may end at one of several maxima gets the same ones.
    """

    label: str
    paper: str
    function: Callable[[Point, ScalingGroup, torch.Generator], Estimate]
    kind: str = "exact"
    fresh: bool = True

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"Measure: {self.label!r} is of kind {self.kind!r}, it must be one of "
                f"{', '.join(KINDS)}"
            )

    def same(self, one: Estimate, other: Estimate, eps: float) -> bool:
        """Whether two values agree as well as this kind of measure can tell.

        Args:
            one: At one point.
            other: At another.
            eps: The rounding unit of the dtype.
        """
        a, b = one.value, other.value
        slack = 4 * hypot(one.error, other.error) if self.kind == "sampled" else 0.0
        bound = max(KINDS[self.kind], 1e3 * eps) * max(abs(a), abs(b))
        return a == b or abs(a - b) <= bound + slack


def _on(quotient, measure, **options):
    """A measure on a quotient of the group; blocks that are zero are held at zero."""

    def function(point, group, generator):
        return measure(
            point, quotient(group, frozen_zeros=point.w), generator=generator, **options
        )

    return function


def _balanced_norm(point, group, generator):
    return riemannian_spectral_norm(point, BalancedQuotient(group), generator=generator)


MEASURES: tuple[Measure, ...] = (
    Measure("Hessian, largest eigenvalue", "dinh2017",
            lambda p, g, r: spectral_norm(p, which="algebraic", generator=r), "search"),
    Measure("Hessian, trace", "dinh2017", lambda p, g, r: trace(p, generator=r), "sampled"),
    Measure("layer-scale spectral norm", "rangamani2019",
            _on(LayerScaleQuotient, riemannian_spectral_norm), "search"),
    Measure("node-wise spectral norm", "rangamani2019",
            _on(NodeWiseQuotient, riemannian_spectral_norm), "search"),
    Measure("balanced spectral norm", "rangamani2019", _balanced_norm, "search"),
)  # fmt: skip
"""Every measure that a report makes unless told otherwise."""


def as_measures(measures) -> tuple[Measure, ...]:
    """The measures of a report from what its caller passed.

    Args:
        measures: None for all; a sequence of :class:`Measure` or of labels; or a mapping from a
            label to a callable ``(point, group) -> Estimate``, which is judged by its own error.

    Raises:
        ValueError: A label that is not known, one that is given twice, or nothing.
        TypeError: Something else.
    """
    if measures is None:
        return MEASURES
    if isinstance(measures, Mapping):
        found = tuple(_own(label, m) for label, m in measures.items())
    elif isinstance(measures, str):
        raise TypeError("report: measures is a string; pass a list of labels")
    else:
        found = tuple(_known(m) for m in measures)
    labels = [m.label for m in found]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if not found or twice:
        what = f"{twice!r} is given twice" if twice else "measures is empty"
        raise ValueError(f"report: {what}; leave measures out for all of them")
    return found


def _own(label: str, measure) -> Measure:
    if isinstance(measure, Measure):
        return measure
    if not callable(measure):
        raise TypeError(
            f"report: measures[{label!r}] must be a callable (point, group) -> Estimate, got "
            f"{type(measure).__name__}"
        )
    return Measure(label, "your own", lambda p, g, r: measure(p, g), "sampled")


def _known(measure) -> Measure:
    if isinstance(measure, Measure):
        return measure
    for known in MEASURES:
        if known.label == measure:
            return known
    raise ValueError(
        f"report: no measure is called {measure!r}; there are "
        f"{', '.join(repr(m.label) for m in MEASURES)}"
    )
