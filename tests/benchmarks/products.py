"""Hessian-vector products beside curvlinops, in units of one gradient on the same data."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from tasks import TASKS
from timing import Measurement, ratios, report
from torch import nn

import quotientnet as qn

LOSS = nn.CrossEntropyLoss()
BATCHES, BLOCK = 8, 8
LARGEST = {"MLP": 2.0, "LeNet": 1.5}
"""Gradient units that a product at a fixed point may take."""
QUICKER = {"MLP": 1.0, "LeNet": 2.0}
"""How much quicker than the peer a block of vectors must be, on a loader."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    rows = []
    for name in TASKS:
        rows += fixed_point(name, options.rounds)
    for name in QUICKER:
        rows += loader(name, options.rounds)
    report("products", rows, options.output)


def fixed_point(name: str, rounds: int) -> list[Measurement]:
    """One vector, one batch, what does not depend on the vector done."""
    model, data = TASKS[name].build(), TASKS[name].data()
    operators = {way: hessian(model, data, way) for way in ("auto", "graph", "record")}
    v = torch.randn(operators["graph"].size)
    v[sum(p.numel() for p in model.parameters()) :] = 0
    for operator in operators.values():
        for _ in range(40):  # until "auto" has chosen
            operator @ v
    tasks = {
        f"{name}: product ({way})": (lambda o=o: o @ v, None)
        for way, o in operators.items()
    }
    target = LARGEST.get(name)
    tasks[f"{name}: product (auto)"] = (tasks[f"{name}: product (auto)"][0], target)
    theirs = peer(model, [data])
    if theirs is not None:
        u = v[: theirs.shape[0]]
        check(operators["auto"] @ v, theirs @ u)
        tasks[f"{name}: product (curvlinops)"] = (lambda: theirs @ u, None)
    unit = f"gradient, {len(data[0])} samples"
    found = ratios(lambda: gradient(model, data), tasks, name=unit, rounds=rounds)
    return with_speedup(found, name, 1.5)


def loader(name: str, rounds: int) -> list[Measurement]:
    """One vector and a block of vectors on a loader."""
    model, whole = TASKS[name].build(), TASKS[name].data()
    batches = list(zip(*(t.chunk(BATCHES) for t in whole)))
    operator = hessian(model, batches, "auto")
    v = torch.randn(operator.size, BLOCK)
    for _ in range(3):
        operator @ v
    tasks = {
        f"{name}, {BATCHES} batches: 1 vector (auto)": (
            lambda: operator @ v[:, 0],
            None,
        ),
        f"{name}, {BATCHES} batches: {BLOCK} vectors (auto)": (
            lambda: operator @ v,
            None,
        ),
    }
    theirs = peer(model, batches)
    if theirs is not None:
        check(operator @ v, theirs @ v)
        tasks |= {
            f"{name}, {BATCHES} batches: 1 vector (curvlinops)": (
                lambda: theirs @ v[:, 0],
                None,
            ),
            f"{name}, {BATCHES} batches: {BLOCK} vectors (curvlinops)": (
                lambda: theirs @ v,
                None,
            ),
        }

    def unit():
        for batch in batches:
            gradient(model, batch)

    found = ratios(unit, tasks, name=f"gradient, {BATCHES} batches", rounds=rounds)
    one = [m for m in found if ": 1 vector" in m.task]
    block = [m for m in found if ": 1 vector" not in m.task]
    return with_speedup(one, name, 1.0) + with_speedup(block, name, QUICKER[name])


def with_speedup(
    rows: list[Measurement], name: str, target: float
) -> list[Measurement]:
    """The rows, and how our time compares to the peer's."""
    by_way = {row.task.rpartition("(")[2].rstrip(")"): row for row in rows}
    if "curvlinops" not in by_way:
        return rows
    ours, theirs = by_way["auto"], by_way["curvlinops"]
    task = ours.task.replace("(auto)", f"at most 1/{target:g} of curvlinops")
    ratio = ours.milliseconds / theirs.milliseconds
    return [
        *rows,
        Measurement(task, "curvlinops", ratio, 1 / target, ours.milliseconds),
    ]


def hessian(model: nn.Module, data, way: str) -> qn.Operator:
    """Our operator."""
    objective = qn.Objective(model, LOSS, data, products=way)
    return objective.at(objective.layout.flatten(model)).hessian


def peer(model: nn.Module, data):
    """The peer's operator, or None if it is not installed."""
    try:
        from curvlinops import HessianLinearOperator
    except ModuleNotFoundError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parameters = dict(model.named_parameters())
        try:
            return HessianLinearOperator(
                model, LOSS, parameters, data, check_deterministic=False
            )
        except (TypeError, AttributeError):
            return HessianLinearOperator(
                model, LOSS, list(parameters.values()), data, check_deterministic=False
            )


def check(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Both compute the same."""
    ours = ours[: theirs.shape[0]]
    gap = float((ours - theirs).norm() / theirs.norm())
    assert gap < 1e-3, f"the products differ by {gap:.1e}"


def gradient(model: nn.Module, batch) -> tuple[torch.Tensor, ...]:
    """The unit: one eager gradient."""
    inputs, targets = batch
    return torch.autograd.grad(LOSS(model(inputs), targets), list(model.parameters()))


if __name__ == "__main__":
    main()
