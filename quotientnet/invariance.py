"""Measures of one network at equivalent points: which numbers move, and which do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quotientnet import sharpness
from quotientnet.manifolds import LayerScaleQuotient, NodeWiseQuotient
from quotientnet.objective import Objective
from quotientnet.reparametrisation import layer_scales
from quotientnet.symmetry import Symmetry

__all__ = ["Row", "equivalent_points", "measure_points", "format_table"]

PAPER_SCALES = {
    "λ = (5, 4, 1/20)": (5, 4, 1 / 20),
    "λ = (100, 30, 1/3000)": (100, 30, 1 / 3000),
}
"""The layer scales of rangamani2019 Table 2."""

COLUMNS = {
    "loss": "loss",
    "spectral_norm": "Euclidean λ",
    "trace": "Euclidean trace",
    "layer_scale_norm": "layer-scale λ",
    "node_wise_norm": "node-wise λ",
    "layer_scale_distance": "layer-scale distance",
    "node_wise_distance": "node-wise distance",
}


@dataclass(frozen=True)
class Row:
    """All numbers at one point.

    Attributes:
        point: What was done to ``w``.
        values: Each measured number, by column.
        errors: Its uncertainty: a residual, a standard error, or 0 for exact formulas.
        converged: Whether every iteration reached its tolerance.
    """

    point: str
    values: Mapping[str, float]
    errors: Mapping[str, float]
    converged: bool


def equivalent_points(
    w: Tensor, symmetry: Symmetry, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """``w``, its images under the paper's layer scales, and under random elements of each group.

    Args:
        w: A point of a three-layer network, shape ``(n,)``.
        symmetry: Its symmetry.
        seed: Of the random elements.
    """
    generator = torch.Generator().manual_seed(seed)
    layers, units = symmetry.layer_scales, symmetry.group
    yield "w", w
    for name, scales in PAPER_SCALES.items():
        yield name, layers.act(w, layer_scales(layers, scales))
    yield "random layer scales", layers.act(
        w, layers.random(spread=2.0, generator=generator)
    )
    yield "random unit scales", units.act(
        w, units.random(spread=1.0, generator=generator)
    )


def measure_points(
    objective: Objective,
    w: Tensor,
    symmetry: Symmetry,
    *,
    seed: int = 0,
    tolerance: float = 1e-6,
    trace_samples: int = 500,
    wrap: Callable = iter,
) -> list[Row]:
    """Measure a network of three layers at ``w`` and at equivalent points.

    Every power iteration starts from its own random vector, so that agreement is no artefact.

    Args:
        objective: The loss.
        w: The point, shape ``(n,)``.
        symmetry: What :func:`discover` says of its model.
        seed: Of the group elements and starting vectors.
        tolerance: Relative residual of the eigenvalues.
        trace_samples: Sign vectors of each trace.
        wrap: Wraps the iteration over points, as a progress bar does.
    """
    coarse, fine = LayerScaleQuotient(symmetry), NodeWiseQuotient(symmetry)
    generator = torch.Generator(w.device).manual_seed(seed + 1)
    rows = []
    for name, y in wrap(list(equivalent_points(w, symmetry, seed))):
        point = objective.at(y)
        options = {"tolerance": tolerance, "generator": generator}
        estimates = {
            "spectral_norm": sharpness.spectral_norm(
                point, which="algebraic", **options
            ),
            "trace": sharpness.trace(point, samples=trace_samples, generator=generator),
            "layer_scale_norm": sharpness.riemannian_spectral_norm(
                point, coarse, **options
            ),
            "node_wise_norm": sharpness.riemannian_spectral_norm(
                point, fine, **options
            ),
        }
        exact = {
            "loss": float(point.value),
            "layer_scale_distance": float(coarse.dist(w, y)),
            "node_wise_distance": float(fine.dist(w, y)),
        }
        values = exact | {key: estimate.value for key, estimate in estimates.items()}
        errors = dict.fromkeys(exact, 0.0) | {k: e.error for k, e in estimates.items()}
        converged = all(estimate.converged for estimate in estimates.values())
        rows.append(Row(name, {key: values[key] for key in COLUMNS}, errors, converged))
    return rows


def change(row: Row, first: Row, column: str) -> float:
    """How far a number moved from the first row: relative; absolute for distances."""
    value, reference = row.values[column], first.values[column]
    return abs(value - reference) / (
        1.0 if column.endswith("distance") else abs(reference)
    )


def format_table(rows: Sequence[Row], tolerance: float = 1e-6) -> str:
    """The rows as text, numbers that stayed marked ``=`` and numbers that moved ``≠``.

    Args:
        rows: The first is the reference.
        tolerance: The largest relative change that counts as none.
    """
    heads = ["", *COLUMNS.values()]
    lines = [
        [row.point, *(_cell(row, rows[0], c, tolerance) for c in COLUMNS)]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [heads, *lines]) for i in range(len(heads))]
    text = [_aligned(line, widths) for line in [heads, *lines]]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The first cell to the left, the numbers to the right."""
    numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))
    return "  ".join([cells[0].ljust(widths[0]), *numbers])


def _cell(row: Row, first: Row, column: str, tolerance: float) -> str:
    value = row.values[column]
    if column.endswith("distance"):
        text = "0" if value < tolerance else f"{value:.3g}"
    else:
        text = f"{value:.6g}"
    if row is first:
        return f"{text}  "
    # A trace is an estimate: it has moved if it left the reach of both standard errors.
    slack = (
        4 * (row.errors[column] + first.errors[column]) if column == "trace" else 0.0
    )
    stayed = (
        change(row, first, column) <= tolerance
        or abs(value - first.values[column]) <= slack
    )
    return f"{text} {'=' if stayed else '≠'}"
