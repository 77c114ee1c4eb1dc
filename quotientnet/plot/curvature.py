"""Spectral densities, and the parts of layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from quotientnet.options import require_kind, require_number
from quotientnet.plot.canvas import (
    COLOURS,
    STYLES,
    new_figure,
    require_named,
    require_results,
)

__all__ = ["plot_density", "plot_layers"]


def plot_density(
    densities: Mapping[str, object], *, width: float | None = None, unit: str = ""
):
    """Densities of eigenvalues on a logarithmic axis, with a band of two standard errors.

    Args:
        densities: What :func:`~quotientnet.curvature.spectral_density` returned, by name.
        width: Standard deviation of the Gaussian that smooths them, in the operator's unit; a
            hundredth of the range if omitted.
        unit: Of eigenvalues, for the axis.

    Returns:
        The matplotlib figure. The axis ends four decades below the peak.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError: ``densities`` is no mapping, or has something else; ``width`` is no number.
        ValueError: It is empty, or ``width`` is not positive and finite, or so small that the
            density is beyond all numbers.
    """
    require_named("plot_density", "densities", densities)
    require_kind(unit, str, "plot_density", "unit")
    results = densities.values()
    require_results("plot_density", "densities", results, "spectral_density", "nodes", "weights")
    if width is not None:
        require_number(width, "plot_density", "width", strict=True)
    used = [d.nodes[d.weights > 0] for d in densities.values()]
    low, high = min(float(x.min()) for x in used), max(float(x.max()) for x in used)
    width = width or max(high - low, 1e-12 * max(abs(high), 1.0)) / 100
    grid = torch.linspace(low - 4 * width, high + 4 * width, 1000, dtype=torch.float64)
    figure = new_figure("plot_density", 6.4, 4.2)
    axis, peak = figure.subplots(), 0.0
    for number, (name, density) in enumerate(densities.items()):
        values, errors = density.density(grid, width)
        if not torch.isfinite(values).all():
            raise ValueError(
                f"plot_density: smoothed over width={width:g} the density is beyond all numbers; "
                "leave it out for a hundredth of the range"
            )
        peak, colour = max(peak, float(values.max())), COLOURS[number % 7]
        axis.plot(grid, values, STYLES[number % 4], color=colour, label=name)
        axis.fill_between(
            grid, (values - 2 * errors).clamp(min=0), values + 2 * errors, color=colour,
            alpha=0.2, linewidth=0,
        )  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(peak * 1e-4, peak * 2)
    axis.set_xlabel(f"eigenvalue{f' ({unit})' if unit else ''}")
    axis.set_ylabel(f"density, smoothed over {width:.2g}")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def plot_layers(estimates: Mapping[str, object], *, unit: str = "", log: bool = True):
    """Bars of the parts of parameter tensors, side by side for several networks or measures.

    Args:
        estimates: By name, an :class:`~quotientnet.Estimate` with parts in ``layers``, or what
            :func:`~quotientnet.curvature.ggn_traces` returned.
        unit: Of the parts, for the axis.
        log: Whether they have a logarithmic axis, if they span more than a factor of ten; parts
            that are not positive are then missing.

    Returns:
        The matplotlib figure; errors are one standard error or residual.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError: ``estimates`` is no mapping, or ``unit`` no text.
        ValueError: It is empty, or an estimate without parts.
    """
    require_named("plot_layers", "estimates", estimates)
    require_kind(unit, str, "plot_layers", "unit")
    parts = {name: _parts(name, each) for name, each in estimates.items()}
    layers = list(dict.fromkeys(layer for found in parts.values() for layer in found))
    figure = new_figure(
        "plot_layers", 6.4, 0.34 * len(layers) * len(parts) ** 0.5 + 1.4
    )
    axis, height = figure.subplots(), 0.8 / len(parts)
    for number, (name, found) in enumerate(parts.items()):
        here = [layer for layer in layers if layer in found]
        places = [layers.index(layer) + (number + 0.5) * height - 0.4 for layer in here]
        axis.barh(
            places, [found[n].value for n in here], height, label=name,
            xerr=[found[n].error for n in here], color=COLOURS[number % 7],
            hatch=("", "//", "..", "xx")[number % 4], edgecolor="white",
        )  # fmt: skip
    if log and _spread(parts) > 10:
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter("")
    axis.set_yticks(range(len(layers)), layers)
    axis.invert_yaxis()
    axis.set_xlabel(unit or "part of the tensor")
    axis.grid(axis="x", alpha=0.3)
    if len(parts) > 1:
        axis.legend()
    else:
        axis.set_title(next(iter(parts)))
    return figure


def _spread(parts) -> float:
    """The ratio of the largest to the smallest positive part."""
    sizes = [e.value for found in parts.values() for e in found.values() if e.value > 0]
    return max(sizes) / min(sizes) if sizes else 1.0


def _parts(name: str, estimate) -> dict:
    found = getattr(estimate, "layers", None) or getattr(estimate, "traces", None)
    if not found:
        raise ValueError(
            f"plot_layers: {name!r} has no parts; use a measure with layers=True, or ggn_traces"
        )
    return dict(found)
