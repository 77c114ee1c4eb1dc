"""What a step of SGDS costs in gradients of its batch, and its memory beside momentum's.

``python tests/benchmarks/sgds_steps.py [--output FOLDER]``
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from time import perf_counter, process_time

import torch
from tasks import Task, resnet20
from timing import Measurement, extra_peak, peak_of, ratios, report
from torch import nn

import quotientnet as qn
from quotientnet.training import SGDS

SEARCH_STEPS = (0, 1, 5)
MARGIN = 1.15
MEMORY = 1.3


def mlp(classes: int) -> nn.Module:
    """784-512×5-classes with batch normalisation."""
    layers = []
    for a in (784, *[512] * 4):
        layers += [nn.Linear(a, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, classes))


def lenet(classes: int) -> nn.Module:
    """Two convolutions with pools and two hidden linear layers, all batch-normalised."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.BatchNorm1d(120), nn.ReLU(),
        nn.Linear(120, 84), nn.BatchNorm1d(84), nn.ReLU(), nn.Linear(84, classes),
    )  # fmt: skip


TASKS = {
    "MLP with BN": Task(mlp, (784,)),
    "MLP with BN, batch 2048": Task(mlp, (784,), 2048),
    "LeNet with BN": Task(lenet, (1, 28, 28)),
    "ResNet-20": Task(resnet20, (3, 32, 32), 128),
}


@cache
def symmetry(task: Task) -> qn.Symmetry:
    """The filters of a network."""
    return qn.discover(task.build().train(), task.data(2)[0])


class Step:
    """A network in train mode, one batch, and an optimizer that moves hardly at all.

    Args:
        task: The network.
        search_steps: Of SGDS; None for SGD with momentum alone.
        device: Where.
    """

    def __init__(self, task: Task, search_steps: int | None, device: str):
        self.model = task.build().train().to(device)
        self.batch = [t.to(device) for t in task.data()]
        parameters = self.model.parameters()
        self.optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9)
        if search_steps is not None:
            self.optimizer = SGDS(
                self.model, self.optimizer, symmetry(task), search_steps=search_steps
            )

    def gradient(self) -> torch.Tensor:
        """The loss with its gradient: the unit of time."""
        self.model.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.batch[0]), self.batch[1])
        loss.backward()
        return loss

    def step(self) -> None:
        """One step."""
        self.optimizer.step(self.gradient)


def measured(name: str, rounds: int, device: str) -> list[Measurement]:
    """The table's rows for one network."""
    steps = {k: Step(TASKS[name], k, device) for k in SEARCH_STEPS}
    plain = Step(TASKS[name], None, device)
    tasks = {f"{name}: SGD with momentum": (plain.step, None)}
    for k, step in steps.items():
        tasks[f"{name}: SGDS-{k}"] = (step.step, (3 + 2 * k) * MARGIN)
    # Of one thread, the processor's time is the wall clock's without what others take.
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = process_time if alone else perf_counter
    rows = ratios(
        plain.gradient,
        tasks,
        name="a gradient of the batch",
        rounds=rounds,
        clock=clock,
    )
    if device != "cpu":
        return rows
    return [replace(row, mebibytes=peak) for row, peak in zip(rows, memory(name))]


def memory(name: str) -> list[float]:
    """The peaks of SGD with momentum and one vector more, and of SGDS, each in its own process.

    There are 5 vectors of all parameters beside the activations where no search is made, against 3
    of the other: within the target where activations are as large as 3.7 vectors.
    """
    # Memory that is in use, not what malloc keeps for later.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    base, *peaks = (
        peak_of(__file__, name, k) for k in ("sgd", *map(str, SEARCH_STEPS))
    )
    for k, peak in zip(SEARCH_STEPS, peaks):
        print(f"{name}: memory of SGDS-{k} is {peak / base:.2f} times, target {MEMORY}")
    return [base, *peaks]


def print_peak(name: str, what: str) -> None:
    """The rise of this process's memory in three steps, with the network's own."""
    task, small = TASKS[name], Task(lenet, (1, 28, 28), 4)
    Step(small, 1, "cpu").step()  # libraries
    symmetry(task)

    def run():
        step = Step(task, None if what == "sgd" else int(what), "cpu")
        size = sum(p.numel() for p in step.model.parameters())
        vector = torch.ones(size if what == "sgd" else 0)
        for _ in range(3):
            step.step()
        return vector

    print(extra_peak(run))


def main() -> None:
    """Print the tables and write ``sgds_steps.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--peak", nargs=2)
    options = parser.parse_args()
    if options.peak:
        print_peak(*options.peak)
        return
    results = [
        row
        for name in options.tasks
        for row in measured(name, options.rounds, options.device)
    ]
    report("sgds_steps", results, options.output)


if __name__ == "__main__":
    main()
