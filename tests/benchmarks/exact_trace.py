"""The exact trace of curvature beside the naive diagonal: Figure 1 of ibayashi2021."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import nn

import quotientnet as qn
from quotientnet.curvature import ggn_diagonal, ggn_traces
from quotientnet.digits import load_digits

SAMPLES, TIMED = 1000, 300


def networks() -> dict[str, tuple[nn.Module, int]]:
    """The paper's two small networks and the ratio that is the target."""
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(),
        nn.Linear(20, 10),
    )  # fmt: skip
    convolutional = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 20, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(320, 10),
    )  # fmt: skip
    return {"FCNN": (dense.double(), 1000), "CNN": (convolutional.double(), 500)}


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Digits of 8 × 8 pixels, interpolated to 28 × 28."""
    digits = load_digits()
    images = digits.train_inputs[:SAMPLES].reshape(-1, 1, 8, 8)
    images = F.interpolate(images, (28, 28), mode="bilinear", align_corners=False)
    return images, digits.train_targets[:SAMPLES]


def naive(
    model: nn.Module, images, targets, places
) -> tuple[torch.Tensor, float, float]:
    """Second derivatives one parameter at a time, the seconds of the gradient, and of the rest."""
    parameters = list(model.parameters())
    start = perf_counter()
    loss = F.cross_entropy(model(images), targets)
    grads = torch.autograd.grad(loss, parameters, create_graph=True)
    gradient_seconds = perf_counter() - start
    owners = torch.cat([torch.full((p.numel(),), i) for i, p in enumerate(parameters)])
    starts = [0, *torch.tensor([p.numel() for p in parameters]).cumsum(0).tolist()]
    found = []
    start = perf_counter()
    for place in places.tolist():
        owner = int(owners[place])
        own = place - starts[owner]
        entry = grads[owner].reshape(-1)[own]
        (second,) = torch.autograd.grad(entry, parameters[owner], retain_graph=True)
        found.append(second.reshape(-1)[own])
    return torch.stack(found), gradient_seconds, perf_counter() - start


def measure(name: str, model: nn.Module, target: int) -> dict:
    """One line."""
    images, targets = data()
    objective = qn.Objective(model, nn.CrossEntropyLoss(), (images, targets))
    w = objective.layout.flatten(model)
    point = objective.at(w)
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(len(w), generator=generator)[:TIMED]
    entries, gradient, rest = naive(model, images, targets, places)
    exact, times = ggn_diagonal(point), []
    ggn_traces(point)
    for _ in range(5):
        start = perf_counter()
        found = ggn_traces(objective.at(w))
        times.append(perf_counter() - start)
    scaled = gradient + rest * len(w) / TIMED
    return {
        "network": name, "parameters": len(w), "samples": SAMPLES, "timed": TIMED,
        "trace": found.total.value, "seconds": median(times), "naive_timed_seconds": rest,
        "naive_seconds": scaled, "ratio": scaled / median(times), "target": target,
        "difference": float((exact[places] - entries).abs().max() / entries.abs().max()),
        "traces_difference": abs(float(exact.sum()) / found.total.value - 1),
        "kinds": sorted(set(found.kinds.values())),
    }  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    rows = []
    for name, (model, target) in networks().items():
        rows.append(measure(name, model, target))
        r = rows[-1]
        met = r["difference"] <= 1e-6 and r["ratio"] >= target
        print(
            f"{name}: {r['parameters']} parameters, exact trace {r['trace']:.6g} in "
            f"{1e3 * r['seconds']:.1f} ms; naive {r['naive_seconds']:.1f} s, scaled up from "
            f"{TIMED} entries in {r['naive_timed_seconds']:.2f} s; ratio {r['ratio']:.0f} (target "
            f"{target}), entries differ by {r['difference']:.0e}: {'met' if met else 'MISSED'}",
            flush=True,
        )
    facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    path = options.output / "exact_trace.json"
    path.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
