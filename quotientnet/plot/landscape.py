"""The loss along lines and over planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quotientnet.options import require_kind
from quotientnet.plot.canvas import (
    COLOURS,
    STYLES,
    new_figure,
    require_named,
    require_results,
)

__all__ = ["plot_lines", "plot_plane"]


def plot_lines(lines: Mapping[str, Sequence], *, log: bool = True):
    """Loss along random directions, one colour a network: Figure 2 of [Rangamani2019]_.

    Args:
        lines: By the network's name, what :func:`~quotientnet.sharpness.loss_along` returned for
            each direction.
        log: Whether the loss has a logarithmic axis.

    Returns:
        The matplotlib figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError: ``lines`` is no mapping of lists of lines.
        ValueError: It is empty.
    """
    require_named("plot_lines", "lines", lines)
    for name, found in lines.items():
        what = f"lines[{name!r}]"
        require_kind(found, Sequence, "plot_lines", what, "pass a list of lines")
        require_results("plot_lines", f"each of {what}", found, "loss_along", "steps", "losses")
    figure = new_figure("plot_lines", 6.4, 4.2)
    axis = figure.subplots()
    for number, (name, found) in enumerate(lines.items()):
        for repeat, line in enumerate(found):
            axis.plot(
                line.steps.cpu(),
                line.losses.cpu(),
                STYLES[number % 4],
                color=COLOURS[number % 7],
                alpha=0.75,
                label=None if repeat else name,
            )
    if log:
        axis.set_yscale("log")
    axis.set_xlabel("step along the direction (1: every tensor moves by its own size)")
    axis.set_ylabel("loss")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def plot_plane(plane, *, title: str = ""):
    """Loss over two directions, as contours of its logarithm.

    Args:
        plane: What :func:`~quotientnet.sharpness.loss_over` returned.
        title: Of the figure.

    Returns:
        The matplotlib figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError: ``plane`` is something else.
        ValueError: The loss is nowhere positive and finite.
    """
    require_results("plot_plane", "plane", [plane], "loss_over", "losses")
    losses = plane.losses.cpu().numpy().astype(float)
    fine = np.isfinite(losses) & (losses > 0)
    if not fine.any():
        raise ValueError("plot_plane: the loss is nowhere positive and finite")
    logarithms = np.where(fine, np.log10(np.where(fine, losses, 1.0)), np.nan)
    figure = new_figure("plot_plane", 5.6, 4.6)
    axis = figure.subplots()
    x, y = plane.first.cpu(), plane.second.cpu()
    filled = axis.contourf(x, y, logarithms.T, levels=20, cmap="cividis")
    axis.contour(
        x,
        y,
        logarithms.T,
        levels=10,
        colors="white",
        linewidths=0.5,
        linestyles="solid",
        alpha=0.6,
    )
    axis.plot(0, 0, "+", color="white", markersize=12, markeredgewidth=2)
    figure.colorbar(filled, ax=axis, label="log10 of the loss")
    axis.set_aspect("equal")
    axis.locator_params(nbins=5)
    axis.set_xlabel("step along the first direction")
    axis.set_ylabel("step along the second direction")
    axis.set_title(title)
    return figure
