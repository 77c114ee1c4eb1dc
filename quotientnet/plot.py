"""Figures, for those who have matplotlib."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["plot_changes"]

_FLOOR = 1e-16
_MARKERS = "osD^vP*"


def _figure(what: str, **options):
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs matplotlib: pip install quotientnet[plot]"
        ) from error
    return Figure(layout="constrained", **options)


def plot_changes(reports: Mapping[str, object]):
    """How far each measure moved at each equivalent point, one panel a network, on a log scale.

    Args:
        reports: A :class:`~quotientnet.sharpness.Report` for each network, by its name.

    Returns:
        The matplotlib figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    rows = {r.label: None for report in reports.values() for r in report.rows}
    labels = list(rows)
    figure = _figure(
        "plot_changes", figsize=(4.2 * len(reports) + 2.6, 0.27 * len(labels) + 1.9)
    )
    axes = figure.subplots(1, len(reports), sharey=True, squeeze=False)[0]
    for axis, (name, report) in zip(axes, reports.items()):
        for number, point in enumerate(report.points[1:], 1):
            found = [row for row in report.rows if row.reason is None]
            moved = [
                max(abs(r.values[number] / r.values[0] - 1), _FLOOR) for r in found
            ]
            places = [labels.index(r.label) for r in found]
            axis.plot(moved, places, _MARKERS[number % 7], label=point, alpha=0.8)
        axis.set_xscale("log")
        axis.set_title(name)
        axis.set_xlabel("relative change from w")
        axis.grid(axis="x", alpha=0.3)
        axis.legend(loc="best", fontsize="small")
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    return figure
