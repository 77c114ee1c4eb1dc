"""Figures, for those who have matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quotientnet.invariance import COLUMNS, Row, change

__all__ = ["plot_invariance"]

_FLOOR = 1e-16
_MARKERS = dict(zip(COLUMNS, "osPDv^X"))


def plot_invariance(tables: Mapping[str, Sequence[Row]]):
    """How far each number moved at equivalent points, one panel a network, on a log scale.

    Args:
        tables: Rows by the network's name; the first row of each is the reference.

    Returns:
        The matplotlib figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot_invariance needs matplotlib: pip install quotientnet[plot]"
        ) from error
    figure = Figure(figsize=(5.2 * len(tables) + 1.8, 4.6), layout="constrained")
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axis, (name, rows) in zip(axes, tables.items()):
        for shift, (column, label) in enumerate(COLUMNS.items()):
            moved = [max(change(row, rows[0], column), _FLOOR) for row in rows[1:]]
            places = [i + (shift - 3) * 0.09 for i in range(len(moved))]
            axis.plot(places, moved, _MARKERS[column], label=label)
        axis.set_yscale("log")
        axis.set_title(name)
        labels = [
            row.point.replace(" scales", "\nscales").replace("λ = ", "λ =\n")
            for row in rows[1:]
        ]
        axis.set_xticks(range(len(labels)), labels)
        axis.set_xlabel("equivalent point")
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("relative change from w (distances: the distance itself)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure
