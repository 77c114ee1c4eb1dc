"""One measure at all points of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from numbers import Real
from time import perf_counter

import torch
from torch import Tensor

from quotientnet.estimate import Estimate
from quotientnet.group import ScalingGroup
from quotientnet.objective import Objective
from quotientnet.sharpness.measure import Measure, covers

__all__ = ["APPROXIMATE", "Plan", "Row", "measured", "records", "relative"]

APPROXIMATE = 2e-2
"""The largest relative change that is put down to an approximate symmetry."""


@dataclass(frozen=True)
class Row:
    """One measure at all points.

    Attributes:
        label: The measure.
        paper: Where it comes from.
        kind: How its value is found: ``"exact"``, ``"search"``, ``"sampled"`` or ``"rough"``.
        values: Its value at each point, None where it was refused; empty if it was refused at
            ``w``.
        errors: The uncertainty of each.
        converged: Whether every value reached the accuracy asked for.
        change: The largest relative change from the first point; None without two finite values
            to compare.
        invariant: Whether every value agrees with the first, to 1e-8 for formulas, 1e-6 for
            searches, 1e-2 for rough ones, and within 4 standard errors for estimates; None if
            there is nothing to compare, or if only the symmetry's being approximate explains why
            they do not.
        approximate: Whether the latter is so: the measure claims the symmetry, which is
            approximate, and changes by less than 2e-2.
        claims: What the measure says it is invariant to.
        seconds: For one point, on average.
        gradients: The same in units of one gradient on the same data.
        reason: Why it was refused at ``w``, and so altogether.
        refusals: Why it was refused at other points, by their names.
        note: What a reader of the value must know.
    """

    label: str
    paper: str
    kind: str
    values: tuple[float | None, ...] = ()
    errors: tuple[float | None, ...] = ()
    converged: bool = True
    change: float | None = None
    invariant: bool | None = None
    approximate: bool = False
    claims: tuple[str, ...] = ()
    seconds: float = 0.0
    gradients: float = 0.0
    reason: str | None = None
    refusals: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None

    @property
    def finite(self) -> bool:
        """Whether any value is a finite number."""
        return any(v is not None and isfinite(v) for v in self.values)


@dataclass(frozen=True)
class Plan:
    """What every row of a report is measured with.

    Attributes:
        objective: The loss.
        group: Its group.
        places: The points by name, ``w`` first.
        seed: Of the measures.
        unit: Seconds of one gradient.
        approximate: The words for what an approximate symmetry moves; none if it is exact.
    """

    objective: Objective
    group: ScalingGroup
    places: Mapping[str, Tensor]
    seed: int
    unit: float
    approximate: tuple[str, ...] = ()


def measured(measure: Measure, number: int, plan: Plan) -> Row:
    """One measure at all points, each made anew: nothing is shared, each pays its whole cost.

    Args:
        measure: The measure.
        number: Of its row, which its random numbers depend on.
        plan: Where, and with what.

    Raises:
        TypeError: It returns something else than an ``Estimate`` of a number.
        RuntimeError: It fails, with anything but a refusal.
    """
    found: dict[str, Estimate] = {}
    refusals: dict[str, str] = {}
    seconds = 0.0
    for place, (name, w) in enumerate(plan.places.items()):
        generator = torch.Generator(w.device)
        generator.manual_seed(
            plan.seed + 1 + 1009 * number + (place * 10**6 if measure.fresh else 0)
        )
        started = perf_counter()
        try:
            found[name] = _called(measure, name, w, plan, generator)
            seconds += perf_counter() - started
        except (ValueError, NotImplementedError) as error:
            refusals[name] = str(error)
        if not found:
            return Row(
                measure.label, measure.paper, measure.kind, reason=refusals[name]
            )
    seconds /= len(found)
    return Row(
        label=measure.label,
        paper=measure.paper,
        kind=measure.kind,
        values=tuple(found[n].value if n in found else None for n in plan.places),
        errors=tuple(found[n].error if n in found else None for n in plan.places),
        converged=all(e.converged for e in found.values()),
        claims=tuple(found["w"].invariant_to),
        seconds=seconds,
        gradients=seconds / plan.unit,
        refusals=refusals,
        note=(
            measure.note(plan.objective.at(plan.places["w"])) if measure.note else None
        ),
        **_verdict(measure, list(found.values()), plan),
    )


def _called(measure: Measure, name: str, w: Tensor, plan: Plan, generator) -> Estimate:
    """The value at one point; a refusal passes, any other failure gets the measure's label."""
    try:
        value = measure.function(plan.objective.at(w), plan.group, generator)
    except (ValueError, NotImplementedError):
        raise
    except Exception as error:
        raise RuntimeError(
            f"report: measure {measure.label!r} failed at {name}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, Estimate):
        raise TypeError(
            f"report: measures[{measure.label!r}] must return an Estimate, got "
            f"{type(value).__name__}; use qn.Estimate(value, error, converged, cost)"
        )
    for part, each in (("value", value.value), ("error", value.error)):
        if not isinstance(each, Real):
            raise TypeError(
                f"report: measures[{measure.label!r}] returned an Estimate whose {part} is a "
                f"{type(each).__name__}; use float(...)"
            )
    return value


def _verdict(measure: Measure, found: list[Estimate], plan: Plan) -> dict:
    """The change, and what it says of invariance."""
    first, others = found[0], found[1:]
    if not others or not any(isfinite(e.value) for e in found):
        return {"change": None, "invariant": None}
    change = max(relative(e.value, first.value) for e in others)
    eps = torch.finfo(plan.places["w"].dtype).eps
    if all(measure.same(first, e, eps) for e in others):
        return {"change": change, "invariant": True}
    approximate = (
        bool(plan.approximate)
        and all(covers(first.invariant_to, moves) for moves in plan.approximate)
        and change < APPROXIMATE
    )
    return {
        "change": change,
        "invariant": None if approximate else False,
        "approximate": approximate,
    }


def relative(value: float, reference: float) -> float:
    """``|value − reference| / |reference|``; 0 for equal values, infinities included, and infinite
    where a number has become NaN."""
    if value == reference:
        return 0.0
    change = abs(value - reference) / abs(reference) if reference else inf
    return change if change == change else inf


def records(row: Row, points: tuple[str, ...]) -> Iterator[dict]:
    """The rows of the data frame: one for each point, or one with a reason."""
    common = {"measure": row.label, "paper": row.paper, "kind": row.kind}
    tail = {
        "change": row.change, "invariant": row.invariant, "approximate": row.approximate,
        "claims": ", ".join(row.claims), "converged": row.converged, "seconds": row.seconds,
        "gradients": row.gradients, "note": row.note,
    }  # fmt: skip
    if row.reason is not None:
        nothing = {"point": None, "value": None, "error": None}
        yield common | nothing | tail | {"reason": row.reason}
    for name, value, error in zip(points, row.values, row.errors):
        here = {"point": name, "value": value, "error": error}
        yield common | here | tail | {"reason": row.refusals.get(name)}
