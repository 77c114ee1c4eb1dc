"""Hessian-vector products beside curvlinops, in units of one gradient on the same data."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tasks import TASKS
from timing import Measurement, extra_peak, peak_of, ratios, report
from torch import nn

import quotientnet as qn

try:
    from curvlinops import HessianLinearOperator
except ModuleNotFoundError:
    HessianLinearOperator = None

LOSS = nn.CrossEntropyLoss()
WARM = 10
"""Products before the first that counts: by then "auto" has chosen."""


@dataclass(frozen=True)
class Case:
    """A network, its data, and the vectors of a product.

    Attributes:
        name: The network.
        batches: Of the loader; 1 for a fixed point on one batch.
        size: Samples a batch.
        vectors: Columns of the block.
        units: Gradient units allowed, if the issue names them.
        quicker: How much quicker than the peer, if the issue says.
    """

    name: str
    batches: int
    size: int
    vectors: int
    units: float | None
    quicker: float | None

    def __str__(self) -> str:
        return f"{self.name}, {self.batches} × {self.size}, {self.vectors} vectors"


CASES = [
    Case("MLP", 1, 512, 1, 2.0, 1.5),
    Case("LeNet", 1, 512, 1, 1.5, 1.5),
    Case("ResNet-20, BN in eval", 1, 128, 1, None, 1.5),
    Case("MLP", 8, 512, 1, None, 1.0),
    Case("MLP", 8, 512, 8, None, 1.0),
    Case("LeNet", 8, 512, 1, None, None),
    Case("LeNet", 8, 512, 8, None, 2.0),
    Case("LeNet", 8, 64, 8, None, 2.0),
]


class Problem:
    """A case, ready to be timed."""

    def __init__(self, case: Case):
        self.case, task = case, TASKS[case.name]
        self.model = task.build()
        inputs, targets = task.data(case.batches * case.size)
        self.data = list(zip(inputs.split(case.size), targets.split(case.size)))
        self.parameters = list(self.model.parameters())
        count = sum(p.numel() for p in self.parameters)
        self.vectors = torch.randn(count, case.vectors)
        if case.vectors == 1:
            self.vectors = self.vectors[:, 0]

    def gradient(self) -> None:
        """The unit."""
        for inputs, targets in self.data:
            loss = LOSS(self.model(inputs), targets)
            torch.autograd.grad(loss, self.parameters)

    def product(self, way: str):
        """A function that multiplies, its set-up done; None if there is no such peer."""
        if way == "curvlinops":
            return None if HessianLinearOperator is None else self._peer()
        data = self.data[0] if self.case.batches == 1 else self.data
        objective = qn.Objective(self.model, LOSS, data, products=way)
        point = objective.at(objective.layout.flatten(self.model))
        passive = point.layout.size - len(self.vectors)
        pad = (0, passive) if self.vectors.ndim == 1 else (0, 0, 0, passive)
        v = nn.functional.pad(self.vectors, pad)
        for _ in range(WARM if self.case.batches == 1 else 3):
            point.hessian @ v
        return lambda: (point.hessian @ v)[: len(self.vectors)]

    def _peer(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {"check_deterministic": False}
            args = self.model, LOSS, self.parameters, self.data
            operator = HessianLinearOperator(*args, **options)
        return lambda: operator @ self.vectors


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--case", type=int, help="one case's number: its rows as JSON")
    parser.add_argument("--peak", nargs=2, help="a case's number and a way: its memory")
    options = parser.parse_args()
    if options.peak:
        problem = Problem(CASES[int(options.peak[0])])
        problem.gradient()
        task = partial(_set_up_and_multiply, problem, options.peak[1])
        return print(extra_peak(task))
    if options.case is not None:
        rows = measure(options.case, CASES[options.case], options.rounds)
        return print(json.dumps([asdict(row) for row in rows]))
    rows = []
    for number in range(len(CASES)):
        # Each in a process of its own: what others have done to the allocator changes its times.
        command = [sys.executable, __file__, "--case", str(number)]
        command += ["--rounds", str(options.rounds)]
        found = subprocess.run(command, capture_output=True, check=True, text=True)
        last = found.stdout.strip().splitlines()[-1]
        rows += [Measurement(**row) for row in json.loads(last)]
    report("products", rows, options.output)


def measure(number: int, case: Case, rounds: int) -> list[Measurement]:
    """Every way of one case, with what each takes in memory, and ours over the peer's."""
    problem = Problem(case)
    ways = ["auto", *(["graph"] if case.batches == 1 else []), "curvlinops"]
    made = {way: problem.product(way) for way in ways}
    made = {way: function for way, function in made.items() if function is not None}
    tasks = {
        f"{case} ({way})": (function, case.units if way == "auto" else None)
        for way, function in made.items()
    }
    unit = "gradient on the same data"
    rows = [
        replace(row, mebibytes=peak_of(__file__, str(number), way))
        for row, way in zip(
            ratios(problem.gradient, tasks, name=unit, rounds=rounds), made
        )
    ]
    if "curvlinops" in made:
        check(made["auto"](), made["curvlinops"]())
        ratio = rows[0].milliseconds / rows[-1].milliseconds
        target = None if case.quicker is None else 1 / case.quicker
        task = f"{case}: ours over curvlinops'"
        rows.append(
            Measurement(task, "curvlinops", ratio, target, rows[0].milliseconds)
        )
    return rows


def check(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Both compute the same."""
    gap = float((ours - theirs).norm() / theirs.norm())
    if gap > 1e-3:
        raise AssertionError(f"the products differ by {gap:.1e}")


def _set_up_and_multiply(problem: Problem, way: str) -> None:
    problem.product(way)()


if __name__ == "__main__":
    main()
