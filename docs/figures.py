"""The figures of the manual, drawn by every build with the library itself, for light and dark pages."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import quotientnet as qn

TARGET = Path(__file__).parent / "_generated"
INK = {"light": "#222222", "dark": "#dddddd"}
COLOURS = {
    "light": ("#0072b2", "#d55e00", "#00805d"),
    "dark": ("#56b4e9", "#f5a35c", "#4fd1a5"),
}
"""Of lines and fields; the colour-blind can tell them apart."""


def write() -> None:
    """Draw every figure in both themes, with a file to include for each."""
    TARGET.mkdir(exist_ok=True)
    networks = _equivalent_networks()
    for draw, data in (
        (draw_start, networks),
        (draw_exponents, None),
        (draw_orbits, None),
    ):
        name = draw.__name__.removeprefix("draw_")
        text = ""
        for theme, ink in INK.items():
            with matplotlib.rc_context(_style(ink)):
                figure = draw(data, COLOURS[theme])
                figure.savefig(
                    TARGET / f"{name}_{theme}.svg", metadata={"Date": None}
                )
            caption = " ".join(draw.__doc__.split())
            text += (
                f".. figure:: /_generated/{name}_{theme}.svg\n   :figclass: only-{theme}\n"
                f"   :alt: {caption.replace('*', '').replace(':doc:', '')}\n\n   {caption}\n\n"
            )
        (TARGET / f"{name}_figure.rst").write_text(text)


def _style(ink: str) -> dict:
    keys = "text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"
    return {
        **dict.fromkeys(keys, ink),
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "font.size": 10,
        "svg.hashsalt": "quotientnet",
        "lines.color": ink,
    }


def _equivalent_networks():
    """Largest eigenvalues along the orbit of one unit of the network of the first page."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    data = torch.randn(100, 8).double(), torch.randint(0, 3, (100,))
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data, products="graph")
    symmetry = qn.discover(model, data[0])
    manifolds = qn.NodeWiseQuotient(symmetry), qn.BalancedQuotient(symmetry)
    w, t = objective.layout.flatten(model), symmetry.group.identity()
    rows = []
    for scale in np.linspace(-3, 3, 9):
        t[0] = scale
        point = objective.at(symmetry.group.act(w, t))
        operators = [point.hessian, *(m.riemannian_hessian(point) for m in manifolds)]
        rows.append([scale, *(_largest(operator) for operator in operators)])
    return np.array(rows).T


def _largest(operator) -> float:
    return float(torch.linalg.eigvalsh(operator.to_dense()).max())


def draw_start(networks, colours) -> Figure:
    """The largest eigenvalue of the Hessian at equivalent networks, one hidden unit of which is
    scaled by *t*. The Euclidean one takes any value above some least one; those on two quotients
    do not move."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    scales, *values = networks
    names = "Euclidean", "on the node-wise quotient", "on the balanced quotient"
    for value, name, colour, mark in zip(values, names, colours, "os^"):
        axes.semilogy(scales, value, mark + "-", color=colour, label=name, markersize=4)
    axes.set_xlabel("t, natural logarithm of the scale of one hidden unit")
    axes.set_ylabel("largest eigenvalue\n(units of the loss)")
    axes.legend(frameon=False)
    return figure


def draw_exponents(_, colours) -> Figure:
    """The exponents of a network of two inputs, three hidden units and two outputs, as
    *discover* finds them. Each colour is one generator, a column of *A*: it scales a row into its
    unit and the bias by exponent +1 and the column out of it by −1. The last bias is in no
    generator."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    group = qn.discover(model, torch.ones(2, 2).double()).group
    columns = [group.exponents(t) for t in torch.eye(group.dimension).double()]
    tensors = [group.layout.unflatten(column) for column in columns]
    figure = Figure(figsize=(6.4, 2.2), layout="constrained")
    widths = [2, 1, 3, 1]
    for axes, name in zip(
        figure.subplots(1, 4, gridspec_kw={"width_ratios": widths}), group.layout.names
    ):
        shape = tensors[0][name].shape
        rows, width = shape if len(shape) == 2 else (*shape, 1)
        for unit, colour in zip(tensors, colours):
            for (i, j), exponent in np.ndenumerate(unit[name].reshape(rows, width).numpy()):
                if exponent:
                    axes.add_patch(
                        matplotlib.patches.Rectangle((j, i), 1, 1, color=colour)
                    )
                    axes.text(
                        j + 0.5, i + 0.5, f"{exponent:+.0f}".replace("-", "−"),
                        ha="center", va="center", color="#ffffff" if colours == COLOURS["light"] else "#111111",
                    )  # fmt: skip
        axes.set(xlim=(0, width), ylim=(rows, 0), aspect="equal", xticks=[], yticks=[])
        axes.set_title(name, fontsize=10)
        axes.set_xticks(range(width + 1), [""] * (width + 1))
        axes.set_yticks(range(rows + 1), [""] * (rows + 1))
        axes.grid(True, linewidth=0.5)
        axes.tick_params(length=0)
    return figure


def draw_orbits(_, colours) -> Figure:
    """Two layers of one weight each, with a loss of their product. Left, in parameter space: orbits
    are hyperbolas, and the loss is constant on each. *w* and *t·w* are the same network. At *w*,
    the vertical direction goes along the orbit and the horizontal one across, at a right angle in
    the metric. The dotted line is that of the balanced networks. Right, in logarithms: the same
    angle is a right one to the eye."""
    layout = qn.ParameterLayout({"first": (1,), "second": (1,)})
    scales = qn.Scale("first", 0), qn.Scale("second", 0, -1)
    group = qn.ScalingGroup.from_units(layout, [qn.Unit("hidden", 1, scales)])
    manifold = qn.NodeWiseQuotient(group)
    w, t = torch.tensor([0.6, 1.5]).double(), torch.tensor([0.9]).double()
    y = group.act(w, t)
    vertical = group.generate(w, torch.full((1,), 0.5).double())
    horizontal = manifold.proju(w, torch.tensor([0.7, 0.0]).double())
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    path = torch.linspace(-3, 3, 200).double()[:, None]
    for axes, to_plane, push in zip(
        figure.subplots(1, 2), (lambda x: x, torch.log), (lambda u: u, lambda u: u / w)
    ):
        for level in (0.2, 0.4, 1.6, 2.5):
            start = torch.tensor([level**0.5, level**0.5]).double()
            _line(axes, to_plane(group.act(start, path)), color="#888888", linewidth=0.8)
        _line(axes, to_plane(group.act(w, path)), color=colours[0], label="orbit of w")
        ray = to_plane(torch.ones(1, 2).double() * torch.exp(path))
        _line(axes, ray, color="#888888", linestyle=":", label="balanced")
        for u, colour, name in (
            (vertical, colours[0], "vertical"), (horizontal, colours[1], "horizontal"),
        ):  # fmt: skip
            tail, head = to_plane(w), to_plane(w) + push(u)
            axes.annotate(
                "", head.tolist(), tail.tolist(),
                arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2},
            )  # fmt: skip
            axes.annotate(
                name, head.tolist(), xytext=(3, 4), textcoords="offset points", color=colour
            )
        for x, name in ((w, "w"), (y, "t·w")):
            axes.plot(*to_plane(x).tolist(), "o", color=colours[0])
            axes.annotate(name, to_plane(x).tolist(), xytext=(-14, -12), textcoords="offset points")
        axes.set_aspect("equal")
    left, right = figure.axes
    left.set(xlim=(0, 2.8), ylim=(0, 2.8), xlabel="first weight", ylabel="second weight")
    right.set(xlim=(-1.7, 1.3), ylim=(-1.5, 1.5))
    right.set(xlabel="ln (first weight)", ylabel="ln (second weight)")
    figure.legend(*left.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    return figure


def _line(axes, points, **style) -> None:
    axes.plot(points[:, 0].tolist(), points[:, 1].tolist(), **style)
