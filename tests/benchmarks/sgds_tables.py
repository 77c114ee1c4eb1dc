"""Tables 1 and 2 of yi2019 on digits: SGD, SGDS, Entropy-SGD, SAM and ASAM, small and large batch.

``python tests/benchmarks/sgds_tables.py [--seeds 10] [--output FOLDER]``

A batch-normalised convolutional network in float32, trained by each algorithm around the same SGD
with momentum and a cosine schedule, for the same number of steps. Each seed has its own split,
start and shuffling, the same for all algorithms, so that differences are paired; but Entropy-SGD
draws a new batch for each inner step. Learning rates are tuned for each algorithm and batch size
over one grid, without weight decay, on seeds that the tables do not use. All else is as in the
papers, but for one row with a regularisation a thousand times stronger. Every run is a line of
``sgds_runs.jsonl``; a second call goes on where the first one stopped, and writes the tables once
all are there. About half an hour on one core.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from itertools import product
from math import ceil
from pathlib import Path
from statistics import mean
from time import process_time

import torch
from torch import nn

import quotientnet as qn
from quotientnet.digits import Digits, load_digits, make_normalised_network
from quotientnet.intervals import student_interval
from quotientnet.progress import progress
from quotientnet.runs import Journal
from quotientnet.training import ASAM, SAM, SGDS, EntropySGD, NotFiniteError, train

EPOCHS = {32: 8, 512: 32}
DECAYS = (0.0, 5e-4)
RATES = {32: (0.03, 0.1, 0.3), 512: (0.1, 0.3, 1.0)}
TUNING = (1000, 1001)
MOMENTUM = 0.9
STRONG = "SGDS-0, λ = 0.1"
GRADIENTS = {
    "SGD": 1, "SGDS-0": 3, STRONG: 3, "SGDS-5": 13, "Entropy-SGD": 20, "SAM": 2, "ASAM": 2,
}  # fmt: skip
IMAGES = 512
MEASURES = ("test_accuracy", "train_loss", "bn_sharpness", "normalised_sharpness")


@dataclass(frozen=True)
class Run:
    """What a training is told."""

    algorithm: str
    batch: int
    decay: float
    rate: float
    seed: int


def optimizer_of(run: Run, network: nn.Module, digits: Digits, steps: int):
    """The algorithm around SGD with momentum; ``steps`` make an epoch."""
    base = torch.optim.SGD(
        network.parameters(), run.rate, MOMENTUM, weight_decay=run.decay
    )
    if run.algorithm.startswith("SGDS"):
        return SGDS(
            network, base, qn.discover(network, digits.train_inputs[:8]),
            regularization=0.1 if run.algorithm == STRONG else 1e-4, growth=1.02,
            growth_every=steps, search_steps=5 if run.algorithm == "SGDS-5" else 0,
        )  # fmt: skip
    if run.algorithm == "Entropy-SGD":
        generator = torch.Generator().manual_seed(run.seed)
        return EntropySGD(network, base, gamma=1e-4, growth=1.001, generator=generator)
    kinds = {"SAM": SAM, "ASAM": ASAM}
    return kinds[run.algorithm](network, base) if run.algorithm in kinds else base


def batches_of(run: Run, digits: Digits):
    """Shuffled batches by epoch; for Entropy-SGD one that is drawn anew at each evaluation."""
    generator = torch.Generator().manual_seed(run.seed)
    inputs, targets = digits.train_inputs, digits.train_targets

    def draw():
        rows = torch.randperm(len(targets), generator=generator)[: run.batch]
        return inputs[rows], targets[rows]

    def epoch(_):
        if run.algorithm == "Entropy-SGD":
            return [draw] * ceil(len(targets) / run.batch)
        order = torch.randperm(len(targets), generator=generator)
        return [(inputs[rows], targets[rows]) for rows in order.split(run.batch)]

    return epoch


def carried_out(run: Run, measure: bool) -> dict:
    """Train, and measure the network."""
    digits = load_digits(run.seed, torch.float32)
    network = make_normalised_network(run.seed, torch.float32)
    steps, started = ceil(len(digits.train_targets) / run.batch), process_time()
    optimizer = optimizer_of(run, network, digits, steps)
    total = steps * EPOCHS[run.batch]
    try:
        train(
            network, optimizer, nn.functional.cross_entropy, batches_of(run, digits),
            epochs=EPOCHS[run.batch],
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total),
        )  # fmt: skip
    except NotFiniteError as error:
        return asdict(run) | {"stopped": str(error)}
    facts = {"steps": total, "training_seconds": round(process_time() - started, 2)}
    return (
        asdict(run)
        | facts
        | losses(network, digits)
        | (flatness(network, digits) if measure else {})
    )


@torch.no_grad()
def losses(network: nn.Module, digits: Digits) -> dict:
    """In eval mode: accuracy and loss on held-out images, loss on those of the training."""
    network.eval()
    outputs, targets = network(digits.test_inputs), digits.test_targets
    own = network(digits.train_inputs)
    return {
        "test_accuracy": float((outputs.argmax(1) == targets).double().mean()),
        "test_loss": float(nn.functional.cross_entropy(outputs, targets)),
        "train_loss": float(nn.functional.cross_entropy(own, digits.train_targets)),
    }


def flatness(network: nn.Module, digits: Digits) -> dict:
    """In float64 on images of the training: BN-sharpness (p = 2, δ = 1e-3) in train mode, as one
    batch, and normalised sharpness in eval mode."""
    network.double()
    data = digits.train_inputs[:IMAGES].double(), digits.train_targets[:IMAGES]
    objective = qn.Objective(network.train(), nn.CrossEntropyLoss(), data)
    group = qn.discover(network, data[0][:8], layout=objective.layout).group
    point = objective.at(objective.layout.flatten(network))
    own = qn.sharpness.bn_sharpness(point, group, restarts=1, max_iterations=30)
    objective = qn.Objective(network.eval(), nn.CrossEntropyLoss(), data)
    point = objective.at(objective.layout.flatten(network))
    normalised = qn.sharpness.normalised_sharpness(point)
    return {
        "bn_sharpness": own.value, "bn_sharpness_error": own.error,
        "normalised_sharpness": normalised.value,
    }  # fmt: skip


def run(journal: Journal, told: Run, measure: bool = True) -> dict:
    """What a run gave, by carrying it out unless it is known."""
    settings = asdict(told) | {"measured": measure}
    return journal.run(settings, lambda: carried_out(told, measure))


def tuned(journal: Journal) -> list[dict]:
    """The learning rate of the highest mean accuracy on held-out images, then the lowest loss."""
    found = []
    for algorithm, batch in progress(list(product(GRADIENTS, EPOCHS)), "tuning"):
        grid = []
        for rate in RATES[batch]:
            told = [Run(algorithm, batch, 0.0, rate, seed) for seed in TUNING]
            runs = [run(journal, each, measure=False) for each in told]
            if not any("stopped" in run for run in runs):
                keys = "test_accuracy", "test_loss"
                means = {key: mean(run[key] for run in runs) for key in keys}
                grid.append({"rate": rate} | means)
        best = max(grid, key=lambda r: (r["test_accuracy"], -r["test_loss"]))
        found.append(
            {"algorithm": algorithm, "batch": batch, "rate": best["rate"], "grid": grid}
        )
    return found


def row(runs: list[dict], references: list[dict], rate: float) -> dict:
    """A line of the tables: intervals of each measure, and of its difference to SGD's, paired."""
    pairs = zip(runs, references)
    whole = [(a, b) for a, b in pairs if "stopped" not in a and "stopped" not in b]
    name = {key: runs[0][key] for key in ("algorithm", "batch", "decay")}
    found = name | {"rate": rate, "runs": len(whole), "stopped": len(runs) - len(whole)}
    found["gradients"] = GRADIENTS[name["algorithm"]]
    found["seconds"] = mean(a["training_seconds"] for a, _ in whole)
    for key in MEASURES:
        found[key] = student_interval([a[key] for a, _ in whole])
        found[f"{key}_difference"] = student_interval(
            [a[key] - b[key] for a, b in whole]
        )
    return found | {"values": {key: [a[key] for a, _ in whole] for key in MEASURES}}


def tables(journal: Journal, seeds: int) -> dict:
    """All runs, seed by seed, then the lines."""
    rates = tuned(journal)
    chosen = {(r["algorithm"], r["batch"]): r["rate"] for r in rates}
    cells = list(product(EPOCHS, DECAYS, GRADIENTS))
    runs = {cell: [] for cell in cells}
    for seed in progress(seeds, "seeds"):
        for batch, decay, algorithm in cells:
            told = Run(algorithm, batch, decay, chosen[algorithm, batch], seed)
            runs[batch, decay, algorithm].append(run(journal, told))
    rows = [
        row(runs[cell], runs[*cell[:2], "SGD"], chosen[cell[2], cell[0]])
        for cell in cells
    ]
    return {
        "threads": torch.get_num_threads(), "seeds": seeds,
        "epochs": EPOCHS, "momentum": MOMENTUM, "images": IMAGES, "rates": RATES,
        "tuning_seeds": TUNING, "tuning": rates, "rows": rows,
    }  # fmt: skip


def show(facts: dict) -> None:
    """Print the lines."""
    for r in facts["rows"]:
        head = f"{r['batch']:4} {r['decay']:6g} {r['algorithm']:12} {r['rate']:5g} {r['runs']:3}"
        cells = []
        for key in MEASURES:
            (value, width), (change, around) = r[key], r[f"{key}_difference"]
            cells.append(f"{value:.4g} ± {width:.2g} ({change:+.2g} ± {around:.2g})")
        print(head, "; ".join(cells))


def main() -> None:
    """Carry out what is missing, print the tables and write ``sgds_tables.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args()
    with Journal(options.output / "sgds_runs.jsonl") as journal:
        facts = tables(journal, options.seeds)
        path = options.output / "sgds_tables.json"
        journal.write_results(path, facts)
    show(facts)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
