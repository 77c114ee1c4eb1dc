"""The largest eigenvalue and all layers' traces of a network of 50 million parameters, and the
memory they take."""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

import quotientnet as qn

LIMIT = 16.0


def network() -> nn.Module:
    """784-3072×6-10: 49.6 million parameters."""
    widths, layers = [784, *[3072] * 6, 10], []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    torch.manual_seed(0)
    model = network()
    count = options.batches * options.size
    data = torch.randn(count, 784), torch.randint(0, 10, (count,))
    batches = list(zip(*(t.split(options.size) for t in data)))
    objective = qn.Objective(model, nn.CrossEntropyLoss(), batches)
    point = objective.at(objective.layout.flatten(model))
    rows = []

    def row(task: str, seconds: float, **more) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append({"task": task, "seconds": seconds, "peak_gibibytes": peak, **more})
        print(
            f"{task:28} {seconds:7.1f} s   peak {peak:5.2f} GiB   {more or ''}",
            flush=True,
        )

    found, seconds = timed(lambda: point.gradient)
    row("gradient", seconds)
    found, seconds = timed(lambda: qn.curvature.ggn_traces(point))
    row("exact traces of all layers", seconds, total=found.total.value)
    found, seconds = timed(lambda: qn.curvature.ggn_traces_estimate(point))
    row(
        "the same from two draws",
        seconds,
        total=found.total.value,
        error=found.total.error,
    )
    found, seconds = timed(lambda: qn.curvature.lanczos(point.hessian, tolerance=1e-3))
    row(
        "largest eigenvalue", seconds, value=float(found.values[0]),
        residual=float(found.residuals[0]), products=found.products,
    )  # fmt: skip
    verdict = "met" if rows[-1]["peak_gibibytes"] <= LIMIT else "MISSED"
    print(f"{point.layout.size:,} parameters, at most {LIMIT:g} GiB: {verdict}")
    facts = {
        "torch": torch.__version__, "threads": torch.get_num_threads(),
        "parameters": point.layout.size, "batches": options.batches, "size": options.size,
        "rows": rows,
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "large.json").write_text(json.dumps(facts, indent=2) + "\n")


def timed(function):
    """A result and its seconds."""
    start = perf_counter()
    return function(), perf_counter() - start


if __name__ == "__main__":
    main()
