"""Layer-wise Gauss-Newton traces in gradient units, beside BackPACK where it is installed."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import torch
from timing import Measurement, ratios, report
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import quotientnet as qn
from quotientnet.curvature import ggn_diagonal, ggn_traces, ggn_traces_estimate

try:
    import backpack
except ImportError:
    backpack = None


def mlp(classes: int = 10) -> nn.Sequential:
    """784-512×5-classes with ReLU."""
    widths = [784, *[512] * 5, classes]
    layers = [
        m for a, b in zip(widths, widths[1:]) for m in (nn.Linear(a, b), nn.ReLU())
    ]
    return nn.Sequential(*layers[:-1])


def lenet(classes: int = 10) -> nn.Sequential:
    """LeNet on 28 × 28 images."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
    )  # fmt: skip


class Problem:
    """A network, a batch, and what is timed on them."""

    def __init__(self, name: str, batch: int = 512, classes: int = 10):
        torch.manual_seed(0)
        self.model = {"MLP": mlp, "LeNet": lenet}[name](classes)
        shape = (784,) if name == "MLP" else (1, 28, 28)
        self.x, self.y = torch.randn(batch, *shape), torch.randint(classes, (batch,))
        objective = qn.Objective(self.model, nn.CrossEntropyLoss(), (self.x, self.y))
        self.point = objective.at(objective.layout.flatten(self.model))

    def gradient(self):
        """The unit."""
        loss = nn.functional.cross_entropy(self.model(self.x), self.y)
        return torch.autograd.grad(loss, list(self.model.parameters()))

    def traces(self):
        """All traces, exactly."""
        return ggn_traces(self.point)

    def diagonal(self):
        """The whole diagonal."""
        return ggn_diagonal(self.point)

    def estimate(self):
        """One draw."""
        return ggn_traces_estimate(self.point, draws=1)

    def peer(self):
        """BackPACK's exact diagonal, summed."""
        if not hasattr(self, "_extended"):
            self._extended = backpack.extend(deepcopy(self.model))
            self._loss = backpack.extend(nn.CrossEntropyLoss())
        warnings.filterwarnings("ignore", message="Full backward hook")
        loss = self._loss(self._extended(self.x), self.y)
        with backpack.backpack(backpack.extensions.DiagGGNExact()):
            loss.backward()
        found = [p.diag_ggn_exact.sum().item() for p in self._extended.parameters()]
        for p in self._extended.parameters():
            p.grad = None
            del p.diag_ggn_exact
        return found

    def operations(self, task) -> float:
        """Multiply-adds of a task over those of the gradient."""
        counts = []
        for function in (task, self.gradient):
            with FlopCounterMode(display=False) as counter:
                function()
            counts.append(counter.get_total_flops())
        return counts[0] / counts[1]


def _field(name: str) -> int:
    """A line of this process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def peak(problem: str, task: str) -> float:
    """Extra memory at the peak of one task after a gradient, in MiB, in a process of its own."""
    command = [sys.executable, __file__, "--peak", problem, task]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def print_peak(problem: str, task: str) -> None:
    """What :func:`peak` runs."""
    instance = Problem(problem)
    instance.gradient()
    before = _field("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    getattr(instance, task)()
    print((_field("VmHWM") - before) / 1024)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--peak", nargs=2, help="a network and a task: only its memory")
    options = parser.parse_args()
    if options.peak:
        return print_peak(*options.peak)
    targets = {"MLP": 3.2, "LeNet": 6.0}
    found: list[Measurement] = []
    for name, target in targets.items():
        problem = Problem(name)
        tasks = {
            f"{name}: exact traces": (problem.traces, target),
            f"{name}: exact diagonal": (problem.diagonal, None),
            f"{name}: one-backward estimate": (problem.estimate, 1.5),
        }
        if backpack is not None:
            tasks[f"{name}: BackPACK DiagGGNExact"] = (problem.peer, None)
        found += ratios(
            problem.gradient,
            tasks,
            name="gradient of the same loss",
            rounds=options.rounds,
        )
        _print_side(problem, name)
    found += _linearity(options.rounds)
    report("traces", found, options.output)


def _print_side(problem: Problem, name: str) -> None:
    tasks = ("traces", "diagonal", "estimate") + ("peer",) * (backpack is not None)
    for task in tasks:
        count = problem.operations(getattr(problem, task))
        print(
            f"{name} {task:9}: {count:5.2f} × the multiply-adds, {peak(name, task):6.1f} MiB"
        )


def _linearity(rounds: int) -> list[Measurement]:
    """LeNet's traces with twice the samples, and with twice the columns ``K − 1``."""
    unit = Problem("LeNet", 256, 11).traces
    tasks = {
        "LeNet: traces, twice the samples": (Problem("LeNet", 512, 11).traces, 2.2),
        "LeNet: traces, twice the columns": (Problem("LeNet", 256, 21).traces, 2.2),
    }
    return ratios(unit, tasks, name="traces at N=256, K=11", rounds=rounds)


if __name__ == "__main__":
    main()
