"""Every measure at a point and at equivalent points: what moves, and what does not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from quotientnet.files import plain
from quotientnet.group import ScalingGroup, as_group
from quotientnet.options import require_count, require_number
from quotientnet.orbit import require_invariant
from quotientnet.point import Point
from quotientnet.progress import progress
from quotientnet.sharpness.catalogue import as_measures
from quotientnet.sharpness.row import Plan, Row, measured, records, relative
from quotientnet.sharpness.typeset import as_html, as_text

__all__ = ["Report", "report"]

NEGLIGIBLE = 1e-9
"""Up to this relative change when its input is halved, a normalisation counts as exact."""


@dataclass(frozen=True)
class Report:
    """Measures side by side; ``print`` it, or leave it as a notebook cell's last line.

    Attributes:
        rows: One for each measure.
        points: What was done to ``w`` for each column.
        losses: The loss at each point.
        drift: The largest relative change of the loss.
        approximate: Whether a normalisation's ``eps`` makes the symmetry approximate: the loss
            drifts by more than rounding, 1e-10 in float64 and 1e-5 in float32, or the symmetry
            says so.
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
    approximate: bool
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

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __contains__(self, label: object) -> bool:
        """Whether a measure of this label was made."""
        return any(row.label == label for row in self.rows)

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_json(self) -> str:
        """Everything as JSON; numbers that are not finite are null."""
        return json.dumps(plain(asdict(self)), ensure_ascii=False, allow_nan=False)

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
            [record for row in self.rows for record in records(row, self.points)]
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
        A row for each measure. Where one refuses, with a ``ValueError`` or a
        ``NotImplementedError``, the reason is in the place of the number.

    Raises:
        TypeError: Arguments of another kind, or a measure that returns no ``Estimate``.
        RuntimeError: A measure failed in another way; the message has its label.
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
    approximations = getattr(group, "approximate", ())
    moves = _moves(group)
    group, measures = _checked(point, group, points, spread), as_measures(measures)
    places = _places(point.w, group, points, spread, elements, seed)
    require_invariant(point, group, "report")
    losses, drift = _losses(point, places)
    unit = gradient_seconds(point)
    approximate = drift > max(1e-10, 100 * torch.finfo(point.w.dtype).eps) or any(
        a.size is None or a.size > NEGLIGIBLE for a in approximations
    )
    plan = Plan(
        point.objective, group, places, seed, unit, moves if approximate else ()
    )
    rows = tuple(
        measured(measure, number, plan)
        for number, measure in enumerate(progress(measures, "measuring"))
    )
    return Report(
        rows=rows,
        points=tuple(places),
        losses=losses,
        drift=drift,
        approximate=approximate,
        dimension=group.dimension,
        parameters=group.layout.parameter_size,
        dtype=str(point.w.dtype).removeprefix("torch."),
        spread=spread,
        seed=seed,
        gradient_seconds=unit,
        seconds=perf_counter() - started,
    )


def _moves(group) -> tuple[str, ...]:
    """The words of ``Estimate.invariant_to`` that random elements of the group need."""
    normalised = {naming.normalised for naming in getattr(group, "namings", ())}
    words = (("unit scales", False), ("filter scales", True))
    return tuple(word for word, flag in words if flag in (normalised or {False}))


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
    require_count(points, "report", "points", least=0)
    require_number(spread, "report", "spread", strict=True)
    return group


def _places(w, group, points, spread, elements, seed) -> dict[str, Tensor]:
    """The points by name, ``w`` first."""
    places = {"w": w}
    for name, t in (elements or {}).items():
        places[name] = group.act(w, t)
    generator = torch.Generator().manual_seed(seed)
    for number in range(points):
        t = group.random(spread=spread, generator=generator)
        places[f"random {number + 1}"] = moved = group.act(w, t)
        if not torch.isfinite(moved).all():
            raise ValueError(
                f"report: with spread={spread:g} a random equivalent point leaves the range of "
                f"{w.dtype}; use a smaller spread"
            )
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
