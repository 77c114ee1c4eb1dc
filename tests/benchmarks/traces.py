"""Layer-wise Gauss-Newton traces in gradient units, beside BackPACK where it is installed."""

from __future__ import annotations

import argparse
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from tasks import TASKS
from timing import Measurement, extra_peak, peak_of, ratios, report
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import quotientnet as qn
from quotientnet.curvature import ggn_diagonal, ggn_traces, ggn_traces_estimate

try:
    import backpack
except ImportError:
    backpack = None


class Problem:
    """A network, a batch, and what is timed on them."""

    def __init__(self, name: str, batch: int = 512, classes: int = 10):
        task = replace(TASKS[name], classes=classes)
        self.model, (self.x, self.y) = task.build(), task.data(batch)
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


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--peak", nargs=2, help="a network and a task: only its memory")
    options = parser.parse_args()
    if options.peak:
        problem = Problem(options.peak[0])
        problem.gradient()
        return print(extra_peak(getattr(problem, options.peak[1])))
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
        unit = "gradient of the same loss"
        rows = ratios(problem.gradient, tasks, name=unit, rounds=options.rounds)
        methods = ("traces", "diagonal", "estimate", "peer")
        found += [_beside(problem, name, *pair) for pair in zip(rows, methods)]
    found += _linearity(options.rounds)
    report("traces", found, options.output)


def _beside(problem: Problem, name: str, row: Measurement, method: str) -> Measurement:
    """The row with multiply-adds and memory."""
    return replace(
        row,
        operations=problem.operations(getattr(problem, method)),
        mebibytes=peak_of(__file__, name, method),
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
