"""Sharpness and the generalisation gap of networks that learnt random labels by heart.

``python examples/experiments/label_noise.py [--full] [--output FOLDER]``

Figures 1, 3 and 4 of tsuzuku2019 and Figure 2 of ibayashi2021 on digits: dense networks of three
hidden layers, trained with Adam until all labels are learnt, of which a share from none to all is
random. Every network is measured as it was trained and at a random equivalent point. Each seed has
its own split, start, shuffling, random labels and scales. Every network is a line of a journal; a
second call goes on where the first one stopped. With ``--full`` 110 networks, about a quarter of an
hour on one core; without, eight of fewer steps, in seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import ceil, nan

import torch
from command import Experiment, run
from measures import MEASURES, UNITS, Measured, measured
from networks import accuracy, dense, shuffled, symmetry_of
from scipy.stats import kendalltau
from torch import nn

import quotientnet as qn
from quotientnet.digits import Digits, load_digits
from quotientnet.intervals import RankCorrelation, kendall_tau
from quotientnet.progress import progress
from quotientnet.runs import Journal

FULL = {"shares": [round(0.1 * tenths, 1) for tenths in range(11)], "epochs": 200}
MINIATURE = {"shares": [0.0, 0.3, 0.6, 0.9], "epochs": 100}
RECIPE = {
    "images": 300, "width": 64, "hidden": 3, "batch_size": 100, "learning_rate": 5e-3, "spread": 2.0
}  # fmt: skip
RESAMPLES = 5_000
REFERENCE = "trace of the Hessian"
SHOWN = "normalised sharpness", "minimum sharpness", REFERENCE


def settings_of(share: float, seed: int, epochs: int) -> dict:
    """All that decides what a network is and measures."""
    return {"share": share, "seed": seed, "epochs": epochs} | RECIPE


def noisy_digits(settings: dict) -> Digits:
    """Few images, a share of them with labels drawn from all ten at random; tests keep theirs."""
    digits, images = load_digits(settings["seed"], torch.float32), settings["images"]
    generator = torch.Generator().manual_seed(settings["seed"])
    drawn = torch.rand(images, generator=generator) < settings["share"]
    labels = torch.randint(0, 10, (images,), generator=generator)
    return dataclasses.replace(
        digits,
        train_inputs=digits.train_inputs[:images],
        train_targets=torch.where(drawn, labels, digits.train_targets[:images]),
    )


def carried_out(settings: dict) -> dict:
    """Train a network, and measure it as it is and at a random equivalent point, in float64."""
    digits = noisy_digits(settings)
    network = dense(settings["seed"], settings["width"], settings["hidden"])
    learn(network, digits, settings)
    network.double()
    data = digits.train_inputs.double(), digits.train_targets
    tests = digits.test_inputs.double(), digits.test_targets
    symmetry = symmetry_of(dense)
    w = symmetry.group.layout.flatten(network)
    generator = torch.Generator().manual_seed(settings["seed"])
    t = symmetry.group.random(spread=settings["spread"], generator=generator)
    places = {"as_trained": w, "equivalent": symmetry.group.act(w, t)}
    return {
        "train_accuracy": accuracy(network, *data),
        "test_accuracy": accuracy(network, *tests),
    } | {
        place: measured(Measured(network, data, symmetry, point))
        for place, point in places.items()
    }


def learn(network: nn.Module, digits: Digits, settings: dict) -> None:
    """Adam with a cosine schedule on shuffled batches."""
    batches = shuffled(
        digits.train_inputs, digits.train_targets, settings["batch_size"], settings["seed"]
    )  # fmt: skip
    optimizer = torch.optim.Adam(
        network.parameters(), settings["learning_rate"], fused=True
    )
    steps = settings["epochs"] * ceil(settings["images"] / settings["batch_size"])
    qn.training.train(
        network, optimizer, nn.functional.cross_entropy, batches, epochs=settings["epochs"],
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    )  # fmt: skip


def experiment(
    journal: Journal, seeds: Sequence[int], shares: Sequence[float], epochs: int
) -> dict:
    """All networks, seed by seed, and what the ranks of measures and gaps say."""
    every = [(seed, share) for seed in seeds for share in shares]
    rows = []
    for seed, share in progress(every, "networks"):
        settings = settings_of(share, seed, epochs)
        found = journal.run(settings, lambda: carried_out(settings))
        rows.append({"share": share, "seed": seed} | found)
    columns = {
        key: [row[key] for row in rows]
        for key in ("share", "seed", "train_accuracy", "test_accuracy")
    }
    columns["gap"] = [row["train_accuracy"] - row["test_accuracy"] for row in rows]
    values = {
        name: {
            place: [row[place][name] for row in rows]
            for place in ("as_trained", "equivalent")
        }
        for name in MEASURES
    }
    return {
        "recipe": RECIPE | {"epochs": epochs}, "shares": list(shares), "seeds": len(seeds),
        "resamples": RESAMPLES, "correlations": correlations(values, columns),
        "networks": columns, "measures": values,
    }  # fmt: skip


def correlations(values: dict, columns: dict) -> list[dict]:
    """Kendall's τ of every measure with the gap, over all networks and within a share.

    Networks of one seed share their split, their start and their scales: only networks of different
    seeds are compared, and intervals are from whole seeds drawn with replacement.
    """
    gaps, shares, seeds = columns["gap"], columns["share"], columns["seed"]

    def tau(column, within=False):
        return kendall_tau(
            column, gaps, shares, within=within, clusters=seeds, resamples=RESAMPLES
        )

    reference, found = tau(values[REFERENCE]["as_trained"]), []
    for name, places in values.items():
        own = places["as_trained"]
        row = {"measure": name, "kind": MEASURES[name][0]}
        moved = [after / before - 1 for before, after in zip(own, places["equivalent"])]
        row["moved"] = max(map(abs, moved))
        for place, column in places.items():
            row[f"all_{place}"] = ends(tau(column))
            row[f"within_{place}"] = ends(tau(column, within=True))
        row["above_trace"] = tau(own).less(reference)
        row["by_share"] = [
            _of_share(share, own, columns) for share in sorted(set(shares))
        ]
        found.append(row)
    return found


def ends(tau: RankCorrelation) -> tuple[float, float, float]:
    """τ and the ends of its interval."""
    return tau.tau, tau.low, tau.high


def _of_share(share: float, values: list[float], columns: dict) -> float:
    """τ over the networks of one share; NaN for a single one."""
    chosen = [i for i, each in enumerate(columns["share"]) if each == share]
    if len(chosen) < 2:
        return nan
    gaps = [columns["gap"][i] for i in chosen]
    return float(kendalltau([values[i] for i in chosen], gaps).statistic)


def show(facts: dict) -> None:
    """Print two lines a measure: τ over all networks, within a share, of equivalent networks."""
    heads = "all networks", "same share", "equivalent networks"
    print("   " + "".join(f" {head:>20}" for head in heads) + "   moved")
    for row in facts["correlations"]:
        keys = "all_as_trained", "within_as_trained", "all_equivalent"
        cells = "".join(f" {interval_text(row[key]):>20}" for key in keys)
        print(f"{row['measure']}\n   {cells}   {row['moved']:.0e}")


def interval_text(interval: Sequence[float]) -> str:
    """τ and its interval."""
    if any(end is None or end != end for end in interval):
        return "undefined"
    tau, low, high = interval
    return f"{tau:+.2f} [{low:+.2f}, {high:+.2f}]"


def invariant(facts: dict) -> list[dict]:
    """The rows of measures that no scale of a unit moves."""
    return [row for row in facts["correlations"] if row["kind"] == UNITS]


if __name__ == "__main__":
    run(
        Experiment(
            "label_noise", __doc__, experiment, show, FULL, MINIATURE, seeds=(10, 2)
        )
    )
