"""The figures of the experiments, from their JSON."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
from large_batch import BATCHES, MOMENTS, SMALL, steps_of
from measures import EUCLIDEAN, LAYERS, UNITS

from quotientnet.plot.canvas import COLOURS, MARKERS, STYLES

RESULTS = Path(__file__).parents[2] / "docs" / "results"
"""Where the JSON of the whole experiments is kept."""


def kept(name: str) -> dict:
    """The facts of a whole experiment."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def origin(facts: dict) -> str:
    """Where facts are from, in three lines."""
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"][0].items())
    return (
        f"{facts['runs']} runs of `{facts['command']}`,\n"
        f"{facts['seconds'] / 60:.0f} minutes of the processor, {facts['date'][:10]},\n{versions}"
    )


PANELS = (
    ("normalised sharpness", "as_trained"),
    ("minimum sharpness", "as_trained"),
    ("trace of the Hessian", "as_trained"),
    ("trace of the Hessian", "equivalent"),
)
UNIT = {
    "normalised sharpness": "√loss",
    "minimum sharpness": "loss per squared parameter",
    "trace of the Hessian": "loss per squared parameter",
}


def label_noise(facts: dict):
    """Networks by sharpness and gap, and τ of every measure with its interval."""
    figure = plt.figure(figsize=(7.5, 11), layout="constrained")
    above, below = figure.subfigures(2, 1)
    axes = above.subplots(2, 2, sharey=True)
    networks = facts["networks"]
    gaps = [100 * gap for gap in networks["gap"]]
    for axis, (name, place) in zip(axes.flat, PANELS):
        values = facts["measures"][name][place]
        shares = [100 * share for share in networks["share"]]
        dots = axis.scatter(values, gaps, 14, shares, cmap="viridis", alpha=0.8)
        if max(values) > 10 * min(values):
            axis.set_xscale("log")
        row = next(r for r in facts["correlations"] if r["measure"] == name)
        axis.set_title(f"τ = {row[f'all_{place}'][0]:+.2f}", fontsize="medium")
        where = ", equivalent networks" if place == "equivalent" else ""
        axis.set_xlabel(f"{name}{where}\n({UNIT[name]})", fontsize="small")
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("generalisation gap\n(percentage points)", fontsize="small")
    above.colorbar(dots, ax=axes, label="random labels (%)", aspect=40)
    _correlations(below.subplots(), facts)
    return figure


SERIES = (
    ("all_as_trained", "all networks, as trained"),
    ("all_equivalent", "all networks, at random equivalent points"),
    ("within_as_trained", "only pairs with the same share of random labels"),
)


def _correlations(axis, facts: dict) -> None:
    """τ and its interval, three a measure, those of one kind together."""
    kinds = (UNITS, LAYERS, EUCLIDEAN)
    rows = sorted(facts["correlations"], key=lambda r: kinds.index(r["kind"]))
    for number, (key, label) in enumerate(SERIES):
        heights = [i + 0.22 * (number - 1) for i in range(len(rows))]
        tau, low, high = zip(*(r[key] for r in rows))
        ends = [[t - a for t, a in zip(tau, low)], [b - t for t, b in zip(tau, high)]]
        axis.errorbar(
            tau, heights, xerr=ends, fmt=MARKERS[number], color=COLOURS[number],
            markersize=4, linewidth=1.2, label=label,
        )  # fmt: skip
    _rule_off(axis, [r["kind"] for r in rows])
    axis.set_yticks(range(len(rows)), [r["measure"] for r in rows], fontsize="small")
    axis.invert_yaxis()
    axis.axvline(0, color="0.5", linewidth=0.8)
    axis.set_xlim(-1, 1)
    axis.set_xlabel("Kendall's τ with the gap, 95 % intervals (no unit)")
    axis.set_ylabel("measure", fontsize="small")
    axis.grid(alpha=0.3, axis="x")
    axis.figure.legend(loc="outside lower center", fontsize="small", ncols=2)


def _rule_off(axis, kinds: list[str]) -> None:
    """A line between kinds, and their names."""
    for i, kind in enumerate(kinds):
        if i == 0 or kinds[i - 1] != kind:
            axis.axhline(i - 0.5, color="0.7", linewidth=0.8)
            axis.text(-0.98, i - 0.42, kind, fontsize="small", color="0.35", va="top")


RATIOS = (
    "trace of the Hessian", "largest eigenvalue of the Hessian", "layer-scale trace",
    "layer-scale spectral norm", "node-wise spectral norm", "balanced trace",
    "balanced spectral norm", "minimum sharpness", "matrix-normalised sharpness",
    "normalised sharpness, cross-entropy", "normalised sharpness", "training loss",
)  # fmt: skip


def large_batch(facts: dict):
    """Loss along random directions, and quotients of measures to those with small batches."""
    names = list(dict.fromkeys(r["network"] for r in facts["table"]))
    figure = plt.figure(figsize=(7.5, 8 * len(names)), layout="constrained")
    parts = iter(figure.subfigures(2 * len(names), 1))
    small = {"fontsize": "small"}
    for network in names:
        above, below = next(parts), next(parts)
        for axis, moment in zip(above.subplots(1, 2), MOMENTS):
            _lines(axis, _rows(facts, network, moment), facts)
            axis.set_title(f"{network}, {moment.replace('_', ' ')}", fontsize="medium")
        title = "batches; full line: straight, dashed: geodesic"
        labels = axis.get_legend_handles_labels()
        above.legend(*labels, loc="outside upper center", title=title, ncols=3, **small)
        ratios = below.subplots()
        _quotients(ratios, facts, network)
        ratios.set_title(network, fontsize="medium")
        below.legend(loc="outside lower center", ncols=2, **small)
    return figure


def _rows(facts: dict, network: str, moment: str) -> list[dict]:
    return [
        r
        for r in facts["table"]
        if r["network"] == network and r["moment"] == moment and r["runs"]
    ]


def _lines(axis, rows: list[dict], facts: dict) -> None:
    """A colour for each kind of batches."""
    steps = steps_of(facts["recipe"])
    for r in rows:
        colour = COLOURS[list(BATCHES).index(r["batches"])]
        for key, style in zip(("straight", "geodesic"), STYLES):
            label = r["batches"] if key == "straight" else None
            axis.plot(steps, r["lines"][key], style, color=colour, label=label)
    axis.set_yscale("log")
    axis.set_xlabel(
        "step along a random direction\n(1: every tensor moves by its own size)"
    )
    axis.set_ylabel("loss (nats per image)")
    axis.grid(alpha=0.3)


def _quotients(axis, facts: dict, network: str) -> None:
    """Quotients with intervals: large batches over small ones, at both moments."""
    cells = [(m, b) for m in MOMENTS for b in BATCHES if b != SMALL]
    for number, (moment, batches) in enumerate(cells):
        row = next(
            (r for r in _rows(facts, network, moment) if r["batches"] == batches), None
        )
        if row is None:
            continue
        known = [(i, row["ratios"][n]) for i, n in enumerate(RATIOS)]
        known = [(i, r) for i, r in known if None not in r]
        heights = [i + 0.18 * (number - 1.5) for i, _ in known]
        centre = [r[0] for _, r in known]
        ends = [[r[0] - r[1] for _, r in known], [r[2] - r[0] for _, r in known]]
        axis.errorbar(
            centre, heights, xerr=ends, fmt=MARKERS[number], markersize=4, linewidth=1.2,
            color=COLOURS[list(BATCHES).index(batches)],
            fillstyle="full" if moment == MOMENTS[0] else "none",
            label=f"{batches}, {moment.replace('_', ' ')}",
        )  # fmt: skip
    axis.set_xscale("log")
    axis.axvline(1, color="0.5", linewidth=0.8)
    axis.set_yticks(range(len(RATIOS)), RATIOS, fontsize="small")
    axis.invert_yaxis()
    axis.set_xlabel("value over that with small batches, and 95 % interval (no unit)")
    axis.set_ylabel("measure")
    axis.grid(alpha=0.3, axis="x")
