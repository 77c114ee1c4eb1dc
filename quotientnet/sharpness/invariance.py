"""The invariance matrix, computed: which measure is unchanged under which symmetry."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from time import perf_counter

import torch

from quotientnet.estimate import Estimate
from quotientnet.options import require_count, require_kind, require_seed
from quotientnet.progress import progress
from quotientnet.sharpness.catalogue import as_measures
from quotientnet.sharpness.measure import KINDS, Measure, covers
from quotientnet.sharpness.row import relative
from quotientnet.sharpness.trials import Trial, digits_trials
from quotientnet.sharpness.typeset import matrix_as_text

__all__ = ["Cell", "InvarianceMatrix", "invariance_matrix"]


@dataclass(frozen=True)
class Cell:
    """One measure under one kind of move.

    Attributes:
        change: Its largest relative change over random moves; None if it does not apply.
        invariant: Whether that is none, to 1e-8, or 1e-6 for searches; None if it does not apply
            or the symmetry is approximate.
        claimed: Whether the measure says that it is invariant to these moves.
        reason: Why it does not apply.
    """

    change: float | None
    invariant: bool | None
    claimed: bool
    reason: str | None = None

    @property
    def symbol(self) -> str:
        """``✓``, ``✗``, ``≈`` where the symmetry is approximate, ``—`` where nothing applies."""
        if self.reason is not None:
            return "—"
        return {True: "✓", False: "✗", None: "≈"}[self.invariant]


@dataclass(frozen=True)
class InvarianceMatrix:
    """Measures × symmetries; ``print`` it.

    Attributes:
        measures: Labels of the rows.
        papers: Where each comes from.
        trials: Names of the columns.
        keys: Short names of the columns.
        cells: ``cells[row][column]``.
        drifts: How far the loss itself moves, for each column: more than rounding where a
            normalisation's ``eps`` makes the symmetry approximate, or where the move is none.
        elements: Random moves a column.
        seconds: All of it.
    """

    measures: tuple[str, ...]
    papers: tuple[str, ...]
    trials: tuple[str, ...]
    keys: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    drifts: tuple[float, ...]
    elements: int
    seconds: float

    def __getitem__(self, place: tuple[str, str]) -> Cell:
        """The cell of a measure's label and a column's name."""
        row, column = place
        return self.cells[self.measures.index(row)][self.trials.index(column)]

    def __str__(self) -> str:
        return matrix_as_text(self)

    def to_json(self) -> str:
        """Everything as JSON; numbers that are not finite are null."""
        facts = asdict(self)
        for row in facts["cells"]:
            for cell in row:
                if cell["change"] is not None and not isfinite(cell["change"]):
                    cell["change"] = None
        return json.dumps(facts, ensure_ascii=False, allow_nan=False, indent=1)


def invariance_matrix(
    measures=None,
    trials: Sequence[Trial] | None = None,
    *,
    elements: int = 3,
    seed: int = 0,
) -> InvarianceMatrix:
    """Move a network along each symmetry at random and see which measures change.

    Measures that draw random numbers get the same ones before and after a move: an invariant
    estimator then agrees to rounding, not only within its standard error.

    Args:
        measures: As for :func:`~quotientnet.sharpness.report`.
        trials: The columns; by default :func:`~quotientnet.sharpness.digits_trials`.
        elements: Random moves a column.
        seed: Of the moves.

    Returns:
        A cell for each measure and column.

    Raises:
        TypeError: An argument of another kind.
        ValueError: No moves, or an unknown measure.
    """
    require_count(elements, "invariance_matrix", "elements")
    require_seed(seed, "invariance_matrix")
    started, measures = perf_counter(), as_measures(measures)
    if trials is not None:
        require_kind(trials, Iterable, "invariance_matrix", "trials")
    trials = digits_trials() if trials is None else tuple(trials)
    for trial in trials:
        require_kind(trial, Trial, "invariance_matrix", "each of trials")
    columns, drifts = [], []
    for number, trial in enumerate(progress(trials, "invariance")):
        generator = torch.Generator().manual_seed(seed + number)
        w = trial.w
        points = [w, *(trial.move(w, generator) for _ in range(elements))]
        drifts.append(_drift(trial, points))
        columns.append([_cell(measure, trial, points) for measure in measures])
    return InvarianceMatrix(
        measures=tuple(m.label for m in measures),
        papers=tuple(m.paper for m in measures),
        trials=tuple(t.name for t in trials),
        keys=tuple(t.key for t in trials),
        cells=tuple(zip(*columns)),
        drifts=tuple(drifts),
        elements=elements,
        seconds=perf_counter() - started,
    )


def _drift(trial: Trial, points) -> float:
    with torch.no_grad():
        losses = [float(trial.objective(w)) for w in points]
    return max(relative(loss, losses[0]) for loss in losses)


def _cell(measure: Measure, trial: Trial, points) -> Cell:
    found: list[Estimate] = []
    try:
        for w in points:
            generator = torch.Generator().manual_seed(1)
            found.append(
                measure.function(trial.objective.at(w), trial.group, generator)
            )
    except (ValueError, NotImplementedError) as error:
        return Cell(None, None, False, str(error))
    change = max(relative(e.value, found[0].value) for e in found)
    claimed = covers(found[0].invariant_to, trial.claim)
    invariant = None if trial.approximate else change <= KINDS[measure.kind]
    return Cell(change if change < inf else None, invariant, claimed)
