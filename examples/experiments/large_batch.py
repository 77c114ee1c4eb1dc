"""Small against large batches: accuracy, sharpness, and the loss around the minima.

``python examples/experiments/large_batch.py [--full] [--seeds N] [--output FOLDER]``

Table 4 and Figure 2 of rangamani2019 on digits: a dense network of three hidden layers and a small
LeNet, without normalisation, trained by Adam with small batches and with batches twenty times as
large. As in the paper the large batch has ten times the learning rate; a third setting has the
large batch with the rate of the small one. Every run is measured after the same number of epochs,
and after the first epoch whose training loss is below the same bound: the curvature of the
cross-entropy falls with the loss, so that a network that has been trained less is sharper whatever
its batches were. Each seed has its own split, start and shuffling, so that differences are paired.

Every run is a line of a journal; a second call goes on where the first one stopped. With ``--full``
sixty runs, about ten minutes on one core; without, six short ones, in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, nan

import torch
from command import Experiment, run
from measures import MEASURES, Measured, measured
from networks import accuracy, convolutional, dense, shuffled, symmetry_of
from torch import Tensor, nn

import quotientnet as qn
from quotientnet.digits import Digits, load_digits
from quotientnet.intervals import student_interval
from quotientnet.progress import progress
from quotientnet.runs import Journal
from quotientnet.sharpness import layer_normalised_direction, loss_along

NETWORKS = {"dense": dense, "convolutional": convolutional}
RATES = {"dense": 1e-3, "convolutional": 2e-3}
BATCHES = {"small": (32, 1), "large": (640, 10), "large, same rate": (640, 1)}
"""Images a step, and the multiple of the network's learning rate."""
MOMENTS = ("equal_epochs", "equal_loss")
SMALL, LARGE, *_ = BATCHES
RECIPE = {"images": 400, "directions": 4, "steps": 21, "limit": 1000}
FULL = {"networks": list(NETWORKS), "epochs": 40, "bound": 0.02}
MINIATURE = {"networks": ["dense"], "epochs": 15, "bound": 0.2}


def settings_of(
    network: str, batches: str, seed: int, epochs: int, bound: float
) -> dict:
    """All that decides what a network is and measures."""
    size, multiple = BATCHES[batches]
    return {
        "network": network, "batch_size": size, "learning_rate": multiple * RATES[network],
        "seed": seed, "epochs": epochs, "bound": bound,
    } | RECIPE  # fmt: skip


def carried_out(settings: dict) -> dict:
    """Train until both moments have come, and measure the network at each of them."""
    digits = load_digits(settings["seed"], torch.float32)
    make = NETWORKS[settings["network"]]
    network = make(settings["seed"])
    optimizer = torch.optim.Adam(
        network.parameters(), settings["learning_rate"], fused=True
    )
    batches = shuffled(
        digits.train_inputs, digits.train_targets, settings["batch_size"], settings["seed"]
    )  # fmt: skip
    found = dict.fromkeys(MOMENTS)
    for epoch in range(1, settings["limit"] + 1):
        qn.training.train(
            network, optimizer, nn.functional.cross_entropy, batches, epochs=1
        )
        loss = _loss(network, digits)
        come = epoch == settings["epochs"], loss <= settings["bound"]
        for moment in (m for m, now in zip(MOMENTS, come) if now and not found[m]):
            point = make(0)
            point.load_state_dict(network.state_dict())
            facts = judged(point.double(), digits, settings, symmetry_of(make))
            found[moment] = {"epoch": epoch, "train_loss": loss} | facts
        if all(found.values()):
            break
    return found


@torch.no_grad()
def _loss(network: nn.Module, digits: Digits) -> float:
    outputs = network(digits.train_inputs)
    return float(nn.functional.cross_entropy(outputs, digits.train_targets))


def judged(
    network: nn.Module, digits: Digits, settings: dict, symmetry: qn.Symmetry
) -> dict:
    """Accuracies, measures and lines of a network in float64; the last two on some images."""
    inputs, tests = digits.train_inputs.double(), digits.test_inputs.double()
    images = settings["images"]
    data = inputs[:images], digits.train_targets[:images]
    w = symmetry.group.layout.flatten(network)
    at = Measured(network, data, symmetry, w)
    return {
        "train_accuracy": accuracy(network, inputs, digits.train_targets),
        "test_accuracy": accuracy(network, tests, digits.test_targets),
        "measures": measured(at),
        "straight": lines(at, settings, straight=True),
        "geodesic": lines(at, settings, straight=False),
    }


def steps_of(settings: dict) -> Tensor:
    """From −1 to 1: at 1 every tensor has moved by its own size."""
    return torch.linspace(-1, 1, settings["steps"], dtype=torch.float64)


def lines(at: Measured, settings: dict, straight: bool) -> list[float]:
    """The loss along random directions, a mean over these for each step."""
    manifold = qn.LayerScaleQuotient(at.symmetry)
    generator = torch.Generator().manual_seed(settings["seed"])
    steps, found = steps_of(settings), []
    for _ in range(settings["directions"]):
        xi = layer_normalised_direction(at.w, manifold, generator=generator)
        line = loss_along(at.point, manifold, xi, steps, straight=straight)
        found.append(line.losses)
    return torch.stack(found).mean(0).tolist()


def experiment(
    journal: Journal,
    seeds: Sequence[int],
    networks: Sequence[str],
    epochs: int,
    bound: float,
) -> dict:
    """All runs, seed by seed, and the table."""
    cells = [(network, batches) for network in networks for batches in BATCHES]
    runs = {cell: [] for cell in cells}
    every = [(seed, cell) for seed in seeds for cell in cells]
    for seed, cell in progress(every, "runs"):
        settings = settings_of(*cell, seed, epochs, bound)
        runs[cell].append(journal.run(settings, lambda: carried_out(settings)))
    table = [
        row(moment, network, batches, runs)
        for moment in MOMENTS
        for network, batches in cells
    ]
    return {
        "recipe": RECIPE | {"epochs": epochs, "bound": bound, "rates": RATES, "batches": BATCHES},
        "seeds": len(seeds), "table": table,
    }  # fmt: skip


def row(moment: str, network: str, batches: str, runs: dict) -> dict:
    """A line of the table: means over the seeds, and what differs from small batches, paired.

    Measures are compared by their quotient, of which the geometric mean and its interval are given.
    Seeds in which a moment never came are left out.
    """
    pairs = [
        (own[moment], small[moment])
        for own, small in zip(runs[network, batches], runs[network, SMALL])
        if own[moment] and small[moment]
    ]
    found = {"moment": moment, "network": network, "batches": batches}
    found["runs"] = len(pairs)
    if not pairs:
        return found
    for key in ("epoch", "train_loss", "train_accuracy", "test_accuracy"):
        found[key] = student_interval([own[key] for own, _ in pairs])
    found["test_accuracy_difference"] = student_interval(
        [own["test_accuracy"] - small["test_accuracy"] for own, small in pairs]
    )
    found["ratios"] = {
        name: _ratio([(o["measures"][name], s["measures"][name]) for o, s in pairs])
        for name in MEASURES
    }
    found["lines"] = {
        key: torch.tensor([own[key] for own, _ in pairs]).log().mean(0).exp().tolist()
        for key in ("straight", "geodesic")
    }
    found["values"] = {
        "test_accuracy": [own["test_accuracy"] for own, _ in pairs],
        "train_loss": [own["train_loss"] for own, _ in pairs],
    } | {name: [own["measures"][name] for own, _ in pairs] for name in MEASURES}
    return found


def _ratio(pairs: list[tuple[float, float]]) -> list[float]:
    """The geometric mean of a measure's quotient and the ends of its interval.

    NaN where the measure is not positive, as a trace with the connection can be away from minima.
    """
    if min(map(min, pairs)) <= 0:
        return [nan] * 3
    centre, half = student_interval([log(own / small) for own, small in pairs])
    return [exp(centre), exp(centre - half), exp(centre + half)]


SHOWN = {
    "trace of the Hessian": "trace",
    "largest eigenvalue of the Hessian": "λmax",
    "layer-scale spectral norm": "layer-scale norm",
    "node-wise spectral norm": "node-wise norm",
    "normalised sharpness": "normalised",
}


def show(facts: dict) -> None:
    """Print accuracies, and the quotients of some measures to those with small batches."""
    for moment in MOMENTS:
        print(f"{moment.replace('_', ' ')}; quotients to small batches:")
        for r in (r for r in facts["table"] if r["moment"] == moment and r["runs"]):
            print(f"  {r['network']}, {r['batches']}, {r['runs']} runs:")
            print(f"    {accuracy_text(r)}")
            if r["batches"] != SMALL:
                ratios = [ratio_text(r, name) for name in SHOWN]
                for first in range(0, len(ratios), 2):
                    print("    " + "; ".join(ratios[first : first + 2]))


def accuracy_text(r: dict) -> str:
    """Accuracy, what it differs by, and the loss."""
    value, width = (100 * each for each in r["test_accuracy"])
    change, around = (100 * each for each in r["test_accuracy_difference"])
    text = f"test accuracy {value:.1f} ± {width:.1f} %"
    if r["batches"] != SMALL:
        text += f" ({change:+.1f} ± {around:.1f})"
    return f"{text}, training loss {r['train_loss'][0]:.2g}, epoch {r['epoch'][0]:.0f}"


def ratio_text(r: dict, name: str) -> str:
    """The quotient of a measure and its interval."""
    ratio, low, high = r["ratios"][name]
    return f"{SHOWN[name]} × {ratio:.3g} [{low:.3g}, {high:.3g}]"


if __name__ == "__main__":
    run(
        Experiment(
            "large_batch", __doc__, experiment, show, FULL, MINIATURE, seeds=(10, 2)
        )
    )
