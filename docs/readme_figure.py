"""Draws the README's figure: the network f(x) = b relu(a x) along its orbit (a e^t, b e^-t).

``python docs/readme_figure.py`` writes ``docs/readme.svg``; ``tests/test_readme.py`` draws it
again and compares.
"""

import io
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import nn

import quotientnet as qn

FILE = Path(__file__).parent / "readme.svg"
TIMES = torch.linspace(-1.2, 1.2, 9, dtype=torch.float64)


def measured():
    """Points of one orbit and their sharpness: rows of (t, a, b, Euclidean, Riemannian)."""
    model = nn.Sequential(nn.Linear(1, 1, False), nn.ReLU(), nn.Linear(1, 1, False))
    inputs = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    objective = qn.Objective(model.double(), nn.MSELoss(), (inputs, inputs.relu()))
    group = qn.discover(model, inputs).group
    manifold = qn.NodeWiseQuotient(group)
    minimum = torch.ones(2, dtype=torch.float64)  # a b = 1 fits the targets
    rows = []
    for t in TIMES:
        point = objective.at(group.act(minimum, t[None]))
        euclidean = qn.sharpness.spectral_norm(point).value
        riemannian = qn.sharpness.riemannian_spectral_norm(point, manifold).value
        rows.append((t.item(), *point.w.tolist(), float(euclidean), float(riemannian)))
    # Rounding errors are not the same everywhere, and the figure is compared byte by byte.
    return [tuple(round(number, 4) for number in row) for row in rows]


def draw() -> str:
    """The figure, as the text of an SVG."""
    times, a, b, euclidean, riemannian = zip(*measured())
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "quotientnet"}):
        figure = Figure(figsize=(8.4, 3.3), layout="constrained")
        plane, curve = figure.subplots(1, 2)
        for product in (0.25, 0.5, 1.0, 2.0, 4.0):
            grid = [0.05 + 0.1 * i for i in range(41)]
            colour = "#1f6fb4" if product == 1 else "#c9ced6"
            plane.plot(grid, [product / x for x in grid], color=colour, zorder=1)
        plane.scatter(a, b, c=times, cmap="viridis", edgecolor="white", s=55, zorder=2)
        plane.set(
            xlim=(0, 4), ylim=(0, 4), aspect="equal",
            xlabel="weight $a$", ylabel="weight $b$",
            title="each line: one function $b\\,\\mathrm{relu}(a x)$",
        )  # fmt: skip
        curve.plot(times, euclidean, color="#b3423a", zorder=1)
        curve.plot(times, riemannian, color="#1f6fb4", zorder=1)
        for values in (euclidean, riemannian):
            curve.scatter(
                times,
                values,
                c=times,
                cmap="viridis",
                edgecolor="white",
                s=55,
                zorder=2,
            )
        for label, height in (("Hessian", 1.2), ("Riemannian Hessian", 0.3)):
            curve.annotate(label, (0, height), ha="center")
        curve.set(
            ylim=(0, 4.5), xlabel="log of the scale $t$", ylabel="largest eigenvalue (loss)",
            title="the points of the blue line",
        )  # fmt: skip
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    lines = (line.rstrip() for line in text.getvalue().splitlines())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(draw())
