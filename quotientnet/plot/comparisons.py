"""Measures side by side: how far they move, and whether they tell networks apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10

import numpy as np

from quotientnet.plot.canvas import (
    COLOURS,
    MARKERS,
    new_figure,
    require_named,
    require_results,
)

__all__ = ["plot_changes", "plot_matrix", "plot_against_gap"]

_FLOOR, _CEILING = 1e-16, 1e4
"""Relative changes outside are drawn at these."""


def plot_changes(reports: Mapping[str, object]):
    """How far each measure moved at each equivalent point, one panel a network, on a log scale.

    Hollow marks are estimates that moved by no more than their standard errors.

    Args:
        reports: A :class:`~quotientnet.sharpness.Report` for each network, by its name.

    Returns:
        The matplotlib figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError: ``reports`` is no mapping.
        ValueError: It is empty.
    """
    require_named("plot_changes", "reports", reports)
    labels = list(
        dict.fromkeys(r.label for each in reports.values() for r in each.rows)
    )
    figure = new_figure(
        "plot_changes", 3.6 * len(reports) + 2.6, 0.27 * len(labels) + 2
    )
    axes = figure.subplots(1, len(reports), sharey=True, sharex=True, squeeze=False)[0]
    points = list(
        dict.fromkeys(p for each in reports.values() for p in each.points[1:])
    )
    for axis, (name, report) in zip(axes, reports.items()):
        for number, point in enumerate(report.points[1:], 1):
            style = points.index(point)
            _draw_point(
                axis, report, number, labels, MARKERS[style % 7], COLOURS[style % 7]
            )
        _mark_refused(axis, labels, report)
        axis.set_xscale("log")
        axis.set_xlim(_FLOOR / 4, _CEILING * 4)
        axis.set_title(name, fontsize="medium")
        axis.set_xlabel("relative change from w")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=len(handles)
    )
    return figure


def _draw_point(axis, report, number: int, labels, marker: str, colour: str) -> None:
    """One equivalent point's changes; hollow where they are within standard errors."""
    found = [
        row
        for row in report.rows
        if row.reason is None and row.values[number] is not None and row.finite
    ]
    for noisy in (False, True):
        rows = [
            r
            for r in found
            if (r.invariant and r.kind == "sampled" and any(r.errors)) == noisy
        ]
        axis.plot(
            [_bounded(row.values[number], row.values[0]) for row in rows],
            [labels.index(row.label) for row in rows], marker, color=colour, alpha=0.8,
            fillstyle="none" if noisy else "full",
            label="_" if noisy else report.points[number],
        )  # fmt: skip


def _mark_refused(axis, labels, report) -> None:
    """A word in the row of a measure that does not apply."""
    for row in report.rows:
        nothing = row.reason is None and not row.finite
        if row.reason is not None or nothing:
            word = "not finite" if nothing else "does not apply"
            axis.text(
                1e-6, labels.index(row.label), word, color="0.45", fontsize="small",
                ha="center", va="center",
            )  # fmt: skip


def _bounded(value: float, reference: float) -> float:
    """The relative change, within what is drawn."""
    if value == reference:
        return _FLOOR
    change = abs(value - reference) / abs(reference) if reference else _CEILING
    return float(np.clip(np.nan_to_num(change, nan=_CEILING), _FLOOR, _CEILING))


def plot_matrix(matrix):
    """The invariance matrix as a heat map: the colour is the size of the change, the sign the
    verdict.

    Args:
        matrix: What :func:`~quotientnet.sharpness.invariance_matrix` returned.

    Returns:
        The matplotlib figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError: ``matrix`` is something else.
    """
    needs = "measures", "trials", "cells"
    require_results("plot_matrix", "matrix", [matrix], "invariance_matrix", *needs)
    rows, columns = len(matrix.measures), len(matrix.trials)
    figure = new_figure("plot_matrix", 0.55 * columns + 4.6, 0.29 * max(rows, 6) + 3.6)
    axis = figure.subplots()
    sizes = np.array([[_logarithm(cell) for cell in row] for row in matrix.cells])
    low, high = log10(_FLOOR), log10(_CEILING)
    from matplotlib import colormaps

    colours = colormaps["cividis"].with_extremes(bad="0.9")
    image = axis.imshow(sizes, cmap=colours, vmin=low, vmax=high, aspect="auto")
    for i, row in enumerate(matrix.cells):
        for j, cell in enumerate(row):
            light = np.isnan(sizes[i, j]) or sizes[i, j] > (low + high) / 2
            axis.text(
                j, i, cell.symbol, ha="center", va="center", color="black" if light else "white",
                family="DejaVu Sans",
            )  # fmt: skip
    axis.set_yticks(range(rows), matrix.measures)
    axis.set_xticks(range(columns), matrix.trials, rotation=90)
    axis.xaxis.tick_top()
    figure.colorbar(image, ax=axis, label="log10 of the largest change")
    axis.set_xlabel("✓ unchanged   ✗ moved   ≈ approximate symmetry   — does not apply")
    return figure


def _logarithm(cell) -> float:
    if cell.reason is not None:
        return float("nan")
    if cell.change is None:
        return log10(_CEILING)
    return log10(min(max(cell.change, _FLOOR), _CEILING))


def _marker(number: int) -> str:
    """Another one each time round the colours."""
    return MARKERS[(number + number // 7) % 7]


def plot_against_gap(
    sharpness: Mapping[str, Sequence[float]], gaps: Sequence[float], *, labels=None
):
    """A panel a measure: networks by their sharpness and their generalisation gap.

    Args:
        sharpness: The values of a measure at every network, by its name.
        gaps: Test error less training error of every network, as fractions.
        labels: A name for every network, in the order of the values.

    Returns:
        The matplotlib figure; Kendall's rank correlation is in the title of each panel.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError: ``sharpness`` is no mapping.
        ValueError: Nothing to draw, another number of values or labels than of gaps, or NaN or
            infinite numbers.
    """
    from scipy.stats import kendalltau

    require_named("plot_against_gap", "sharpness", sharpness)
    if labels is not None and len(labels) != len(gaps):
        raise ValueError(f"plot_against_gap: {len(labels)} labels for {len(gaps)} gaps")
    for name, values in {"gaps": gaps, **sharpness}.items():
        if not np.isfinite(np.asarray(values, dtype=float)).all():
            raise ValueError(
                f"plot_against_gap: {name!r} has NaN or infinite values; leave those networks out"
            )
        if len(values) != len(gaps):
            raise ValueError(
                f"plot_against_gap: {name!r} has {len(values)} values for {len(gaps)} gaps"
            )
    figure = new_figure("plot_against_gap", 3.6 * len(sharpness) + 0.8, 3.6)
    axes = figure.subplots(1, len(sharpness), sharey=True, squeeze=False)[0]
    for axis, (name, values) in zip(axes, sharpness.items()):
        for number, (value, gap) in enumerate(zip(values, gaps)):
            axis.plot(
                value, 100 * gap, _marker(number), color=COLOURS[number % 7],
                label=None if labels is None else labels[number],
            )  # fmt: skip
        if min(values) > 0 and max(values) > 10 * min(values):
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")
        axis.set_title(
            f"Kendall's τ {kendalltau(values, gaps).statistic:+.2f}", fontsize="medium"
        )
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("generalisation gap (percentage points)")
    if labels is not None:
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=min(len(names), 4)
        )
    return figure
