"""Time and memory against the number of parameters, from 1e4 to 5e7, and the exponents of both.

``python tests/benchmarks/scaling.py [--largest 5e7] [--family wide]`` goes on where it was stopped:
each family and size is a process of its own, and a line of ``scaling.jsonl``. Seconds are those of
the processor, on one thread, for others may use the machine.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from math import ceil, sqrt
from pathlib import Path
from time import process_time

import torch
from scipy import stats
from timing import extra_peak
from torch import nn

import quotientnet as qn
from quotientnet.runs import Journal

SIZES = [round(1e4 * 5e3 ** (k / 9)) for k in range(10)]
"""Numbers of parameters that are aimed at."""

BATCH, CLASSES, INPUTS, DEEP = 16, 10, 64, 256
"""Samples, classes, inputs of the wide networks, units a layer of the deep ones."""

CLEAR, LEAST = 10, 4
"""A size counts if its cost is so many times the overhead; there must be so many of them."""

NOISE = 0.25
"""MiB by which the memory of a process varies by itself."""

MORE = 1.05
"""What is above this, with its whole interval, is more than linear."""

SLOW, BLINK, RUNS = 1.0, 0.02, 3
"""Seconds of a task whose run for its memory counts as well; of what is repeated until it takes as
long; and how many runs there are at least."""


# --- networks of any size


def wide(parameters: int) -> nn.Module:
    """Three hidden layers, whose width gives the size."""
    b = INPUTS + 3 + CLASSES
    width = max(round((sqrt(b * b + 8 * parameters) - b) / 4), 1)
    return dense(INPUTS, [width] * 3)


def deep(parameters: int) -> nn.Module:
    """Hidden layers of one width, whose number gives the size."""
    return dense(DEEP, [DEEP] * max(round(parameters / (DEEP * (DEEP + 1))), 1))


def convolutional(parameters: int) -> nn.Module:
    """Four convolutions with batch normalisation, whose channels give the size."""
    channels, layers, into = max(round(sqrt(parameters / 27)), 1), [], 3
    for _ in range(4):
        layers += [nn.Conv2d(into, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        into = channels
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)
    return nn.Sequential(*layers, *head).eval()


def dense(inputs: int, widths: list[int]) -> nn.Module:
    """Hidden layers whose outputs neither vanish nor explode, however many there are."""
    layers, h = [], torch.randn(64, inputs)
    with torch.no_grad():
        for width in widths:
            layer = nn.Linear(inputs, width)
            for parameter in layer.parameters():
                parameter /= layer(h).relu().std()
            layers += [layer, nn.ReLU()]
            h, inputs = layer(h).relu(), width
    return nn.Sequential(*layers, nn.Linear(inputs, CLASSES))


FAMILIES = {
    "wide": (wide, (INPUTS,), 0),
    "deep": (deep, (DEEP,), 100_000),
    "convolutional": (convolutional, (3, 4, 4), 0),
}
"""What makes a network, the shape of its inputs, and the least size that makes sense."""


# --- what is measured


class Subject:
    """A network with everything that is measured on it, made when it is needed."""

    def __init__(self, family: str, size: int):
        make, shape, _ = FAMILIES[family]
        torch.manual_seed(0)
        self.model = make(size)
        self.inputs = torch.randn(BATCH, *shape)
        targets = torch.randint(CLASSES, (BATCH,))
        # One way of products for all sizes.
        self.objective = qn.Objective(
            self.model, nn.CrossEntropyLoss(), (self.inputs, targets), products="graph"
        )
        self.w = self.objective.layout.flatten(self.model)

    @cached_property
    def group(self):
        """What ``discover`` derives."""
        return qn.discover(self.model, self.inputs).group

    @cached_property
    def hessian(self):
        """The operator, its set-up done."""
        return self.objective.at(self.w).hessian

    def tasks(self) -> dict[str, Callable]:
        """Functions by name; nothing that they are given is computed in them."""
        v = torch.randn_like(self.w)
        at = self.objective.at
        return {
            "discover": lambda: qn.discover(self.model, self.inputs),
            "torch.add": lambda: self.w + v,
            **self._geometry("node-wise", qn.NodeWiseQuotient(self.group)),
            **self._geometry("layer-scale", qn.LayerScaleQuotient(self.group)),
            "canonical form": lambda: qn.canonical(self.w, self.group),
            "balanced: proju": lambda: qn.BalancedQuotient(self.group).proju(self.w, v),
            "gradient": lambda: self.objective.value_and_gradient(self.w),
            "Hessian-vector product": lambda: self.hessian @ v,
            "exact traces of layers": lambda: qn.curvature.ggn_traces(at(self.w)),
            "trace, two draws": lambda: qn.curvature.hutchinson_trace(self.hessian, samples=2),
            "traces of layers, two draws": lambda: qn.curvature.ggn_traces_estimate(
                at(self.w), draws=2
            ),
        }

    def _geometry(self, name: str, manifold) -> dict[str, Callable]:
        dice = torch.Generator().manual_seed(1)
        x = manifold.random(manifold.layout.size, generator=dice)
        u = 0.1 * x * torch.randn(x.shape, generator=dice)
        y = manifold.retr(x, u)
        calls = {
            "inner": lambda: manifold.inner(x, u, u),
            "proju": lambda: manifold.proju(x, u),
            "retr": lambda: manifold.retr(x, u),
            "expmap": lambda: manifold.expmap(x, u),
            "dist": lambda: manifold.dist(x, y),
        }
        return {f"{name}: {call}": function for call, function in calls.items()}


def cost(task: Callable, budget: float) -> dict[str, float]:
    """Seconds of the processor, the least of several runs after a first one, and MiB at the peak
    beyond before."""
    _seconds(task)  # what is set up once
    first = []
    peak = _extra(lambda: first.append(_seconds(task)))
    number = max(ceil(BLINK / max(first[0], 1e-7)), 1)
    seconds = first if first[0] > SLOW else []
    while len(seconds) < RUNS or sum(seconds) * number < budget:
        seconds.append(_seconds(task, number) / number)
    return {"seconds": min(seconds), "mebibytes": peak, "repeats": len(seconds)}


def _seconds(task: Callable, number: int = 1) -> float:
    started = process_time()
    for _ in range(number):
        task()
    return process_time() - started


def _extra(task: Callable) -> float:
    """The extra peak, after what is free has been given back, for its reuse would hide some."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return extra_peak(task)


def measure(family: str, size: int, budget: float, gibibytes: float) -> dict:
    """All tasks on one network, in this process, which may take no more memory."""
    torch.set_num_threads(1)
    limit = int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    subject = Subject(family, size)
    costs = {}
    for name, task in subject.tasks().items():
        with torch.set_grad_enabled(":" not in name):
            costs[name] = cost(task, budget)
    return {
        "parameters": subject.objective.layout.parameter_size,
        "generators": subject.group.dimension,
        "peak_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "costs": costs,
    }


# --- exponents


@dataclass(frozen=True)
class Exponent:
    """The slope of a cost over the number of parameters, in logarithms.

    Attributes:
        value: By least squares; None where too few sizes cost more than the overhead.
        half_width: Of its interval at 95 %, after Student.
        sizes: How many sizes were fitted.
        start: The smallest of them; the largest of all if there are none.
        growth: The cost at the largest size over that at the smallest.
        span: The ratio of these sizes.
    """

    value: float | None
    half_width: float | None
    sizes: int
    start: float
    growth: float
    span: float

    @property
    def verdict(self) -> str:
        """In words."""
        if self.value is None:
            return "overhead"
        if self.value + self.half_width <= MORE:
            return "at most linear"
        return "more than linear" if self.value - self.half_width > MORE else "undecided"


def exponent(sizes: list[float], costs: list[float], noise: float = 0.0) -> Exponent:
    """Fitted where the cost is ten times that of the smallest network, all of which is taken for
    overhead, and ten times the noise.

    Args:
        sizes: In rising order.
        costs: One for each.
        noise: Below which a cost is unknown.
    """
    least = max(costs[0], noise)
    first = len(costs)
    while first and costs[first - 1] >= CLEAR * least:
        first -= 1
    count, growth = len(costs) - first, max(costs[-1], noise) / least
    span = sizes[-1] / sizes[0]
    if count < LEAST:
        return Exponent(None, None, 0, sizes[-1], growth, span)
    logs = [[torch.tensor(x).log().item() for x in xs[first:]] for xs in (sizes, costs)]
    fit = stats.linregress(*logs)
    half = float(stats.t.ppf(0.975, count - 2) * fit.stderr)
    return Exponent(float(fit.slope), half, count, sizes[first], growth, span)


def exponents(rows: list[dict]) -> list[dict]:
    """Both exponents of each task of each family."""
    found = []
    for family in FAMILIES:
        own = sorted(
            (row for row in rows if row["family"] == family), key=lambda row: row["parameters"]
        )
        sizes = [row["parameters"] for row in own]
        for task in own[0]["costs"] if own else ():
            row = {"family": family, "task": task}
            for key, noise in (("seconds", 0.0), ("mebibytes", NOISE)):
                fit = exponent(sizes, [r["costs"][task][key] for r in own], noise)
                row[key] = asdict(fit) | {"verdict": fit.verdict}
            found.append(row)
    return found


def main() -> None:
    """Measure what is missing, print the exponents and write ``scaling.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--largest", type=float, default=5e7, help="number of parameters")
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--seconds", type=float, default=0.1, help="of a task's repetitions")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB that a network may take")
    parser.add_argument("--cell", type=int, help="one size of one family: its costs as JSON")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(*options.family, options.cell, options.seconds, options.memory)))
        return
    rows = []
    with Journal(options.output / "scaling.jsonl") as journal:
        for size in SIZES:
            for family in options.family or FAMILIES:
                if size > 1.01 * options.largest or size < FAMILIES[family][2]:
                    continue
                settings = {"family": family, "size": size, "seconds": options.seconds}
                command = [sys.executable, __file__, "--family", family, "--cell", str(size)]
                command += ["--seconds", str(options.seconds), "--memory", str(options.memory)]
                row = journal.run(settings, lambda c=command: _in_process(c))
                rows.append({"family": family} | row)
                print(f"{family}: {row['parameters']:,} parameters", flush=True)
        found = exponents(rows)
        facts = {"seed": 0, "threads": 1, "cores": os.cpu_count(), "rows": rows}
        journal.write_results(options.output / "scaling.json", facts | {"exponents": found})
    _print(found)


def _in_process(command: list[str]) -> dict:
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | one
    )
    return json.loads(done.stdout.splitlines()[-1])


def _print(found: list[dict]) -> None:
    for row in found:
        texts = []
        for key in ("seconds", "mebibytes"):
            fit = row[key]
            text = (
                f"{fit['growth']:.1f} times over all sizes"
                if fit["value"] is None
                else f"{fit['value']:.3f} ± {fit['half_width']:.3f}"
            )
            texts.append(f"{key} {text} ({fit['verdict']})")
        print(f"{row['family']:13} {row['task']:28} {'; '.join(texts)}")


if __name__ == "__main__":
    main()
