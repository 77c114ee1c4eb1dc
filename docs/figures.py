"""The manual's figures, drawn by every build with the library, for light and dark pages."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
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
    for draw in (draw_start, draw_exponents, draw_orbits):
        name = draw.__name__.removeprefix("draw_")
        text = ""
        for theme, ink in INK.items():
            with matplotlib.rc_context(_style(ink)):
                figure = draw(COLOURS[theme])
                figure.savefig(TARGET / f"{name}_{theme}.svg", metadata={"Date": None})
            caption = " ".join(draw.__doc__.split())
            text += (
                f".. figure:: /_generated/{name}_{theme}.svg\n   :figclass: only-{theme}\n"
                f"   :alt: {caption.replace('*', '')}\n\n   {caption}\n\n"
            )
        (TARGET / f"{name}_figure.rst").write_text(text)


def _style(ink: str) -> dict:
    keys = (
        "text.color",
        "axes.edgecolor",
        "axes.labelcolor",
        "xtick.color",
        "ytick.color",
    )
    return {
        **dict.fromkeys(keys, ink),
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "font.size": 10,
        "svg.hashsalt": "quotientnet",
        "lines.color": ink,
    }


@cache
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


def draw_start(colours) -> Figure:
    """The largest eigenvalue of the Hessian at equivalent networks, one hidden unit of which is
    scaled by *t*. The Euclidean one takes any value above some least one; those on two quotients
    do not move."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    scales, *values = _equivalent_networks()
    names = "Euclidean", "on the node-wise quotient", "on the balanced quotient"
    for value, name, colour, mark in zip(values, names, colours, "os^"):
        axes.semilogy(scales, value, mark + "-", color=colour, label=name, markersize=4)
    axes.set_xlabel("t, natural logarithm of the scale of one hidden unit")
    axes.set_ylabel("largest eigenvalue\n(units of the loss)")
    axes.legend(frameon=False)
    return figure


def draw_exponents(colours) -> Figure:
    """The exponents of a network of two inputs, three hidden units and two outputs, as
    *discover* finds them. Each colour is one generator, a column of *A*: it scales a row into its
    unit and the bias by exponent +1 and the column out of it by −1. The last bias is in no
    generator."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    group = qn.discover(model, torch.ones(2, 2).double()).group
    columns = [group.exponents(t) for t in torch.eye(group.dimension).double()]
    tensors = [group.layout.unflatten(column) for column in columns]
    figure = Figure(figsize=(6.4, 2.0), layout="constrained")
    axes, left = figure.subplots(), 0
    for name in group.layout.names:
        shape = tensors[0][name].shape
        rows, width = shape if len(shape) == 2 else (*shape, 1)
        exponents = torch.stack([unit[name].reshape(rows, width) for unit in tensors])
        for row, column in np.ndindex(rows, width):
            _cell(axes, left + column, row, exponents[:, row, column], colours)
        axes.text(left + width / 2, -0.2, name, ha="center")
        left += width + 1
    axes.set(xlim=(-0.1, left - 0.9), ylim=(3.1, -0.7), aspect="equal")
    axes.set_axis_off()
    return figure


def _cell(axes, left, top, exponents, colours) -> None:
    """One entry in the colour of the generator that scales it, if one does."""
    ink = matplotlib.rcParams["text.color"]
    style = {"edgecolor": ink, "facecolor": "none"}
    for exponent, colour in zip(exponents.tolist(), colours):
        if exponent:
            style["facecolor"] = colour
            contrast = "white" if ink == INK["light"] else "black"
            text = f"{exponent:+.0f}".replace("-", "−")
            place = left + 0.5, top + 0.5
            axes.text(*place, text, ha="center", va="center", color=contrast)
    axes.add_patch(Rectangle((left, top), 1, 1, **style))


def draw_orbits(colours) -> Figure:
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
    left, right = figure.subplots(1, 2)
    path = torch.linspace(-3, 3, 200).double()[:, None]
    for axes, to_plane, push in (
        (left, lambda x: x, lambda u: u),
        (right, torch.log, lambda u: u / w),
    ):
        for level in (0.2, 0.4, 1.6, 2.5):
            other = torch.full((2,), level**0.5).double()
            _line(
                axes, to_plane(group.act(other, path)), color="#888888", linewidth=0.8
            )
        own = to_plane(group.act(w, path))
        _line(axes, own, color=colours[0], label="orbit of w")
        ray = to_plane(torch.exp(path).expand(-1, 2))
        _line(axes, ray, color="#888888", linestyle=":", label="balanced")
        tail = to_plane(w)
        _arrow(axes, tail, tail + push(vertical), colours[0], "vertical")
        _arrow(axes, tail, tail + push(horizontal), colours[1], "horizontal")
        for x, name in ((w, "w"), (y, "t·w")):
            place = to_plane(x).tolist()
            axes.plot(*place, "o", color=colours[0])
            axes.annotate(name, place, xytext=(-14, -12), textcoords="offset points")
        axes.set_aspect("equal")
    left.set(xlim=(0, 2.8), ylim=(0, 2.8))
    left.set(xlabel="first weight", ylabel="second weight")
    right.set(xlim=(-1.7, 1.3), ylim=(-1.5, 1.5))
    right.set(xlabel="ln (first weight)", ylabel="ln (second weight)")
    lines = left.get_legend_handles_labels()
    figure.legend(*lines, frameon=False, loc="outside lower center", ncols=2)
    return figure


def _arrow(axes, tail, head, colour: str, name: str) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 2}
    axes.annotate("", head.tolist(), tail.tolist(), arrowprops=arrow)
    axes.annotate(
        name, head.tolist(), xytext=(3, 4), textcoords="offset points", color=colour
    )


def _line(axes, points, **style) -> None:
    axes.plot(points[:, 0].tolist(), points[:, 1].tolist(), **style)
