"""Every measure at a point and at equivalent points: what moves, and what does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf, isfinite
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from quotientnet.estimate import Estimate
from quotientnet.group import ScalingGroup, as_group
from quotientnet.orbit import require_invariant
from quotientnet.point import Point
from quotientnet.progress import progress
from quotientnet.sharpness.catalogue import as_measures
from quotientnet.sharpness.measure import Measure
from quotientnet.sharpness.typeset import as_html, as_text

__all__ = ["Report", "Row", "report"]


@dataclass(frozen=True)
class Row:
    """One measure at all points.

    Attributes:
        label: The measure.
        paper: Where it comes from.
        kind: How its value is found: ``"exact"``, ``"search"``, ``"sampled"`` or ``"rough"``.
        values: Its value at each point; empty if it was refused.
        errors: The uncertainty of each.
        converged: Whether every value reached the accuracy asked for.
        change: The largest relative change from the first point.
        invariant: Whether every value agrees with the first, to 1e-8 for formulas, 1e-6 for
            searches, 1e-2 for rough ones, and within 4 standard errors for estimates; None if the
            measure was refused.
        claims: What the measure says it is invariant to.
        seconds: For one point, on average.
        gradients: The same in units of one gradient on the same data.
        reason: Why it was refused.
    """

    label: str
    paper: str
    kind: str
    values: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    converged: bool = True
    change: float | None = None
    invariant: bool | None = None
    claims: tuple[str, ...] = ()
    seconds: float = 0.0
    gradients: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """Measures side by side; ``print`` it, or leave it as a notebook cell's last line.

    Attributes:
        rows: One for each measure.
        points: What was done to ``w`` for each column.
        losses: The loss at each point.
        drift: The largest relative change of the loss; where it is more than rounding, a
            normalisation's ``eps`` makes the symmetry approximate.
        dimension: Of the group.
        parameters: The number of parameters.
        dtype: Of the parameters.
        spread: Of the random elements.
        seed: Of elements and measures.
        gradient_seconds: One gradient on the same data, in the same run.
        seconds: All of it.
    """

    rows: tuple[Row, ...]
    points: tuple[str, ...]
    losses: tuple[float, ...]
    drift: float
    dimension: int
    parameters: int
    dtype: str
    spread: float
    seed: int
    gradient_seconds: float
    seconds: float

    def __getitem__(self, label: str) -> Row:
        """The row of a measure, by its label."""
        for row in self.rows:
            if row.label == label:
                return row
        raise KeyError(
            f"the report has no {label!r}; it has {', '.join(repr(r.label) for r in self.rows)}"
        )

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_json(self) -> str:
        """Everything as JSON; numbers that are not finite are null."""
        return json.dumps(_plain(asdict(self)), ensure_ascii=False, allow_nan=False)

    def to_frame(self):
        """A pandas data frame, one row a measure and point.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Report.to_frame needs pandas: pip install pandas"
            ) from error
        return DataFrame.from_records(
            [record for row in self.rows for record in _records(row, self.points)]
        )


def report(
    point: Point,
    group: ScalingGroup,
    *,
    points: int = 2,
    spread: float = 1.0,
    elements: Mapping[str, Tensor] | None = None,
    measures=None,
    seed: int = 0,
) -> Report:
    """Every measure at ``w`` and at equivalent points, with its errors, claims and cost.

    The equivalent points are images of ``w`` under random elements of the group, which move the
    running statistics of batch normalisation along. Estimates and eigenvalues start from other
    random numbers at every point, so that agreement is no artefact.

    Args:
        point: A :class:`~quotientnet.Point`.
        group: The group, or what :func:`~quotientnet.discover` returned.
        points: How many random elements.
        spread: Standard deviation of their coordinates: scales vary by about ``e^{±spread}``.
        elements: More elements by name, coordinates of shape ``(dimension,)``, such as
            :func:`~quotientnet.reparametrisation.layer_scales` gives.
        measures: All of them if omitted; labels or :class:`~quotientnet.sharpness.Measure` to
            choose, or a mapping from labels to callables ``(point, group) -> Estimate``.
        seed: Of elements and measures.

    Returns:
        A row for each measure. One that refuses has its reason in place of numbers.

    Raises:
        TypeError: Arguments of another kind.
        ValueError: No equivalent point to compare with, an unknown measure, or a network that
            does not have this group: the message has the violation.

    Note:
        A few thousand gradients by default; every row says what it took.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.digits import load_digits, make_network
        >>> model, digits = make_network(), load_digits()
        >>> data = digits.train_inputs[:100], digits.train_targets[:100]
        >>> objective = qn.Objective(model, torch.nn.CrossEntropyLoss(), data)
        >>> symmetry = qn.discover(model, data[0])
        >>> point = objective.at(objective.layout.flatten(model))
        >>> measures = ["Hessian, largest eigenvalue", "node-wise spectral norm"]
        >>> found = qn.sharpness.report(point, symmetry, measures=measures)
        >>> [(row.label, row.invariant) for row in found.rows]
        [('Hessian, largest eigenvalue', False), ('node-wise spectral norm', True)]
    """
    started = perf_counter()
    group, measures = _checked(point, group, points, spread), as_measures(measures)
    places = _places(point.w, group, points, spread, elements, seed)
    require_invariant(point, group, "report")
    losses, drift = _losses(point, places)
    unit = gradient_seconds(point)
    rows = tuple(
        _row(measure, number, point.objective, group, places, seed, unit)
        for number, measure in enumerate(progress(measures, "measuring"))
    )
    return Report(
        rows=rows,
        points=tuple(places),
        losses=losses,
        drift=drift,
        dimension=group.dimension,
        parameters=group.layout.parameter_size,
        dtype=str(point.w.dtype).removeprefix("torch."),
        spread=spread,
        seed=seed,
        gradient_seconds=unit,
        seconds=perf_counter() - started,
    )


def _checked(point, group, points: int, spread: float) -> ScalingGroup:
    if not isinstance(point, Point):
        raise TypeError(
            f"report: point must be a Point, got {type(point).__name__}; objective.at(w) makes one"
        )
    group = as_group(group, "report")
    if group.layout != point.layout:
        raise ValueError(
            "report: the group acts on another layout than the point's; derive it from the "
            "objective's model, with layout=objective.layout"
        )
    if points < 0 or not 0 < spread < inf:
        raise ValueError(
            f"report: needs points >= 0 and a positive finite spread, got {points} and {spread}"
        )
    return group


def _places(w, group, points, spread, elements, seed) -> dict[str, Tensor]:
    """The points by name, ``w`` first."""
    places = {"w": w}
    for name, t in (elements or {}).items():
        places[name] = group.act(w, t)
    generator = torch.Generator().manual_seed(seed)
    for number in range(points):
        t = group.random(spread=spread, generator=generator)
        places[f"random {number + 1}"] = group.act(w, t)
    if len(places) == 1:
        raise ValueError("report: nothing to compare with; pass points=1 or elements")
    return places


def _losses(point: Point, places) -> tuple[tuple[float, ...], float]:
    """The loss at each point, and how far it moves: by rounding or a normalisation's ``eps``."""
    with torch.no_grad():
        losses = tuple(float(point.objective(w)) for w in places.values())
    return losses, max(relative(loss, losses[0]) for loss in losses)


def gradient_seconds(point: Point, repetitions: int = 5) -> float:
    """The time of one gradient of the point's objective, the median of a few."""
    times = []
    for _ in range(repetitions + 1):
        started = perf_counter()
        point.objective.value_and_gradient(point.w)
        times.append(perf_counter() - started)
    return median(times[1:])


def _row(measure: Measure, number: int, objective, group, places, seed, unit) -> Row:
    """One measure at all points, each made anew: nothing is shared, each pays its whole cost."""
    found: list[Estimate] = []
    started = perf_counter()
    try:
        for place, w in enumerate(places.values()):
            generator = torch.Generator(w.device)
            generator.manual_seed(
                seed + 1 + 1009 * number + (place * 10**6 if measure.fresh else 0)
            )
            found.append(measure.function(objective.at(w), group, generator))
    except (ValueError, NotImplementedError) as error:
        return Row(measure.label, measure.paper, measure.kind, reason=str(error))
    seconds = (perf_counter() - started) / len(places)
    first, eps = found[0], torch.finfo(places["w"].dtype).eps
    return Row(
        label=measure.label,
        paper=measure.paper,
        kind=measure.kind,
        values=tuple(e.value for e in found),
        errors=tuple(e.error for e in found),
        converged=all(e.converged for e in found),
        change=max(relative(e.value, first.value) for e in found),
        invariant=all(measure.same(first, e, eps) for e in found[1:]),
        claims=tuple(first.invariant_to),
        seconds=seconds,
        gradients=seconds / unit,
    )


def relative(value: float, reference: float) -> float:
    """``|value − reference| / |reference|``; 0 for equal values, infinities included."""
    if value == reference:
        return 0.0
    return abs(value - reference) / abs(reference) if reference else inf


def _plain(value):
    """Mappings, lists and numbers for JSON."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _records(row: Row, points: tuple[str, ...]):
    """The rows of the data frame: one for each point, or one with a reason."""
    common = {"measure": row.label, "paper": row.paper, "kind": row.kind}
    tail = {
        "change": row.change, "invariant": row.invariant, "claims": ", ".join(row.claims),
        "converged": row.converged, "seconds": row.seconds, "gradients": row.gradients,
        "reason": row.reason,
    }  # fmt: skip
    if row.reason is not None:
        yield common | {"point": None, "value": None, "error": None} | tail
    for name, value, error in zip(points, row.values, row.errors):
        yield common | {"point": name, "value": value, "error": error} | tail
