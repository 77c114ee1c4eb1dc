"""The measures of the five papers and of their baselines, in the order of a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn

from quotientnet.curvature.layers import ggn_traces
from quotientnet.manifolds import BalancedQuotient, LayerScaleQuotient, NodeWiseQuotient
from quotientnet.orbit import moves_statistics
from quotientnet.sharpness.alternative import alternative_normalised_sharpness
from quotientnet.sharpness.ball import adaptive_sharpness, ball_sharpness
from quotientnet.sharpness.bn import bn_sharpness, bn_sharpness_limit
from quotientnet.sharpness.box import box_sharpness, volume_flatness
from quotientnet.sharpness.euclidean import second_order_sharpness, spectral_norm, trace
from quotientnet.sharpness.fisher_rao import diagonal_fisher_rao_norm, fisher_rao_norm
from quotientnet.sharpness.geodesic import (
    average_riemannian_sharpness,
    riemannian_sharpness,
)
from quotientnet.sharpness.matrix_normalised import matrix_normalised_sharpness
from quotientnet.sharpness.measure import Measure
from quotientnet.sharpness.minimum import minimum_sharpness
from quotientnet.sharpness.normalised import normalised_sharpness
from quotientnet.sharpness.pac_bayes import pac_bayes_terms
from quotientnet.sharpness.relative import relative_flatness
from quotientnet.sharpness.riemannian import riemannian_spectral_norm, riemannian_trace

__all__ = ["MEASURES", "as_measures"]

RADIUS, BOX, RELATIVE = 0.05, 1e-3, 0.1
"""The radius of the ball in units of the parameters, the relative half width of Keskar's box, and
the radius in metrics and for adaptive sharpness, relative to the weights."""

ASCENT = {
    "restarts": 0,
    "max_iterations": 10,
    "tolerance": 1e-4,
    "line_search": "armijo",
}
"""Ascents from the gradient's direction alone: a report's time allows no more. Where one stops
short, the report marks it."""

PRODUCTS = 1000
"""With the Hessian at most, for its exact diagonal."""

CUBE = ASCENT | {"tolerance": 0.5, "max_iterations": 3}
"""The volume's own tolerance is that of the cube's half width, each of which takes an ascent."""


def _on(quotient, measure, **options):
    """A measure on a quotient of the group; blocks that are zero are held at zero.

    Where running statistics are part of the point, which no tangent vector moves, the quotient is
    that of the other scales.
    """

    def function(point, group, generator):
        rest = group
        if not couples_samples(point.objective.model):
            rest = group.without(moves_statistics(group))
        held = {} if quotient is BalancedQuotient else {"frozen_zeros": point.w}
        manifold = quotient(rest, **held)
        found = measure(point, manifold, generator=generator, **options)
        if rest.dimension == group.dimension:
            return found
        kind = "layer scales" if quotient is LayerScaleQuotient else "unit scales"
        return replace(found, invariant_to=(kind,))

    return function


def couples_samples(model: nn.Module) -> bool:
    """Whether samples interact through the statistics of their batch."""
    return any(
        isinstance(module, nn.modules.batchnorm._NormBase) and module.training
        for module in model.modules()
    )


def _trace(point, manifold, generator):
    """Exact; by random signs where exactness would be dear."""
    method = "hutchinson" if _dear(point) else "exact"
    return riemannian_trace(
        point, manifold, method=method, samples=50, generator=generator
    )


def _products(point) -> int:
    """How many with the Hessian its diagonal takes: one for each entry without a closed form."""
    if couples_samples(point.objective.model):
        return point.layout.parameter_size
    try:
        kinds = point.known("ggn traces", lambda: ggn_traces(point)).kinds
    except ValueError:  # no closed form at all
        return point.layout.parameter_size
    return sum(point.layout[name].numel for name, kind in kinds.items() if kind != "Hessian")


def _dear(point) -> bool:
    """Whether the exact diagonal takes more products with the Hessian than a report can wait."""
    return _products(point) > PRODUCTS


def _curvature(point) -> str:
    """The Hessian; where it would be dear its part of Gauss and Newton, or what refuses."""
    return "gauss-newton" if _dear(point) else "hessian"


def _without_products(point) -> str | None:
    """What to say of a value that has not the Hessian's traces."""
    if not _dear(point):
        return None
    return f"of the Gauss-Newton matrix: the Hessian's takes {_products(point):,} products"


def _alternative(point, group, generator):
    return alternative_normalised_sharpness(
        point,
        curvature=_curvature(point),
        samples=4,
        max_iterations=5,
        generator=generator,
    )


def _bound(point, group, generator):
    """For as many samples as the loss is taken over."""
    objective = point.objective
    samples = sum(
        objective._processes.gather("the number of samples", lambda: _samples(point))
    )
    return pac_bayes_terms(point, samples=samples, curvature=_curvature(point))


def _samples(point) -> int:
    """In this process's batches."""
    objective = point.objective
    return sum(len(objective._read(batch, point.w)[-1]) for batch in objective.data)


def _held(quotient):
    """What to say of the zeros that a quotient holds: each entry, or tensors of zeros alone."""

    def note(point):
        pieces = zip(point.layout.split(point.w), point.layout.entries)
        parts = [part for part, entry in pieces if not entry.passive]
        if quotient is LayerScaleQuotient:
            parts = [part for part in parts if not part.any()]
        count = sum(int((part == 0).sum()) for part in parts)
        if not count:
            return None
        what = "zero entry is" if count == 1 else "zero entries are"
        return f"{count:,} {what} held at zero"

    return note


def _exact(measure):
    """A measure that takes no generator."""
    return lambda point, group, generator: measure(point, group)


def _quotients():
    """Rangamani's measures on each quotient."""
    for name, quotient in (
        ("layer-scale", LayerScaleQuotient),
        ("node-wise", NodeWiseQuotient),
        ("balanced", BalancedQuotient),
    ):
        note = None if quotient is BalancedQuotient else _held(quotient)
        yield Measure(
            f"{name} spectral norm", "rangamani2019", _on(quotient, riemannian_spectral_norm),
            "search", note=note,
        )  # fmt: skip
        yield Measure(
            f"{name} trace", "rangamani2019", _on(quotient, _trace), "sampled",
            note=note,
        )  # fmt: skip
    for name, quotient in (
        ("layer-scale", LayerScaleQuotient),
        ("node-wise", NodeWiseQuotient),
    ):
        found = _on(quotient, riemannian_sharpness, epsilon=RELATIVE, **ASCENT)
        ascent = _ascent(f"{name} ε-sharpness", "rangamani2019", found)
        yield replace(ascent, note=_held(quotient))
    yield Measure(
        "node-wise average sharpness", "rangamani2019",
        _on(NodeWiseQuotient, average_riemannian_sharpness, epsilon=RELATIVE, samples=30),
        "sampled", note=_held(NodeWiseQuotient),
    )  # fmt: skip


def _ascent(label: str, paper: str, function) -> Measure:
    """A measure found by ascent, which gets the same random numbers at every point."""
    return Measure(label, paper, function, "search", fresh=False)


MEASURES: tuple[Measure, ...] = (
    Measure("Hessian, largest eigenvalue", "dinh2017",
            lambda p, g, r: spectral_norm(p, which="algebraic", generator=r), "search"),
    Measure("Hessian, trace", "dinh2017",
            lambda p, g, r: trace(p, samples=50, generator=r), "sampled"),
    _ascent("ε-sharpness, ball", "dinh2017",
            lambda p, g, r: ball_sharpness(p, RADIUS, generator=r, **ASCENT)),
    Measure("ε-sharpness, second order", "dinh2017",
            lambda p, g, r: second_order_sharpness(p, RADIUS, generator=r), "search"),
    _ascent("log volume ε-flatness, bound", "dinh2017",
            lambda p, g, r: volume_flatness(p, g, RADIUS, generator=r, **CUBE)),
    _ascent("ε-sharpness, box", "keskar2017",
            lambda p, g, r: box_sharpness(p, BOX, generator=r, **ASCENT)),
    _ascent("ε-sharpness, box, 20 directions", "keskar2017",
            lambda p, g, r: box_sharpness(p, BOX, 20, generator=r, **ASCENT)),
    *_quotients(),
    _ascent("BN-sharpness", "yi2019",
            lambda p, g, r: bn_sharpness(p, g, restarts=0, max_iterations=15, generator=r)),
    Measure("BN-sharpness, small δ", "yi2019", _exact(bn_sharpness_limit)),
    Measure("matrix-normalised sharpness", "tsuzuku2019",
            lambda p, g, r: matrix_normalised_sharpness(p, curvature=_curvature(p)),
            note=_without_products),
    Measure("normalised sharpness", "tsuzuku2019",
            lambda p, g, r: normalised_sharpness(p, curvature=_curvature(p)),
            note=_without_products),
    Measure("normalised sharpness, sampled", "tsuzuku2019", _alternative, "rough", fresh=False,
            note=_without_products),
    Measure("Fisher–Rao norm, diagonal", "tsuzuku2019",
            lambda p, g, r: diagonal_fisher_rao_norm(p)),
    Measure("PAC-Bayes bound", "tsuzuku2019", _bound, note=_without_products),
    Measure("minimum sharpness", "ibayashi2021", _exact(minimum_sharpness)),
    Measure("Fisher–Rao norm", "liang2019", lambda p, g, r: fisher_rao_norm(p)),
    Measure("relative flatness", "petzka2021",
            lambda p, g, r: relative_flatness(p, limit=500)),
    _ascent("adaptive sharpness", "kwon2021",
            lambda p, g, r: adaptive_sharpness(p, RELATIVE, generator=r, **ASCENT)),
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
    elif isinstance(measures, (str, bytes, Measure)) or not isinstance(
        measures, Iterable
    ):
        raise TypeError(
            "report: measures must be a list of labels or of Measure, or a mapping from labels to "
            f"callables, got {type(measures).__name__}"
        )
    else:
        found = tuple(_known(m) for m in measures)
    labels = [m.label for m in found]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise ValueError(
            f"report: {twice!r} is given twice; leave one out, or rename it: "
            "dataclasses.replace(measure, label=...)"
        )
    if not found:
        raise ValueError("report: measures is empty; leave it out for all of them")
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
