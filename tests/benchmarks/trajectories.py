"""Training on quotients: one path for each orbit, beside Adam's losses, and what a step costs."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time

import torch
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits, make_network
from quotientnet.training import RiemannianAdam, RiemannianSGD, bind

MANIFOLDS = {
    "layer-scale": qn.LayerScaleQuotient,
    "node-wise": qn.NodeWiseQuotient,
    "balanced": qn.BalancedQuotient,
}

RATES = {
    "SGD": (0.01, 0.03, 0.1, 0.2, 0.3, 0.6, 1.0),
    "Adam": (3e-3, 1e-2, 2e-2, 3e-2, 6e-2, 0.1, 0.2),
    "SGD, layer-scale": (1e-3, 2e-3, 3e-3, 6e-3, 1e-2, 2e-2, 3e-2),
    "SGD, node-wise": (0.3, 1.0, 2.0, 3.0, 6.0, 10.0, 20.0),
    "SGD, balanced": (0.03, 0.1, 0.2, 0.3, 0.6, 1.0, 2.0),
    "Adam, layer-scale": (0.03, 0.06, 0.1, 0.2, 0.3, 0.6, 1.0),
    "Adam, node-wise": (0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.3),
    "Adam by entries, layer-scale": (1e-3, 2e-3, 3e-3, 5e-3, 6e-3, 1e-2, 2e-2),
    "Adam, balanced": (0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.3),
    "Adam by blocks, balanced": (0.1, 0.2, 0.3, 0.6, 1.0, 2.0, 3.0),
}
"""Learning rates at the start of a cosine, seven for each optimizer."""

HORIZONS = (1.0, 1.25, 1.5, 2.0, 3.0)
"""Lengths of training, in units of Adam's."""

IDENTICAL, ALLOWED = 1e-8, 1.5
"""The largest relative difference of loss curves, and the largest multiple of Adam's steps."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    tuned = tune(options.steps)
    curves = compare_curves({row["optimizer"]: row["rate"] for row in tuned})
    times = time_steps()
    facts = {
        "torch": torch.__version__, "steps": options.steps, "tuned": tuned, "curves": curves,
        "times": times,
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "trajectories.json"
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def make(name: str, network: nn.Module, symmetry, rate: float):
    """The optimizer of this name."""
    method, _, manifold = name.partition(", ")
    if not manifold:
        parameters = network.parameters()
        if method == "Adam":
            return torch.optim.Adam(parameters, lr=rate)
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    w = bind(network, MANIFOLDS[manifold](symmetry))
    if method.startswith("Adam"):
        moments = method.removeprefix("Adam by ") if " by " in method else None
        return RiemannianAdam([w], lr=rate, moments=moments)
    return RiemannianSGD([w], lr=rate, momentum=0.9)


class Task:
    """The digits and a ReLU network with biases, 64-32-32-10, in float64."""

    def __init__(self):
        digits = load_digits()
        self.inputs, self.targets = digits.train_inputs, digits.train_targets
        self.symmetry = qn.discover(make_network(), self.inputs[:4])

    def batches(self, steps: int, size: int = 128):
        """Shuffled batches, the same at each call."""
        generator, made = torch.Generator().manual_seed(0), 0
        while True:
            order = torch.randperm(len(self.targets), generator=generator)
            for rows in order.split(size):
                if made == steps:
                    return
                made += 1
                yield self.inputs[rows], self.targets[rows]

    def train(self, name: str, rate: float, steps: int, network=None) -> list[float]:
        """The loss of each batch, and that of all images at the end."""
        network = make_network() if network is None else network
        optimizer = make(name, network, self.symmetry, rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses = []
        for inputs, targets in self.batches(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs), targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        with torch.no_grad():
            outputs = network(self.inputs)
        return [*losses, float(nn.functional.cross_entropy(outputs, self.targets))]

    def curve(self, *arguments) -> torch.Tensor:
        """The losses of :meth:`train` in float64."""
        return torch.tensor(self.train(*arguments), dtype=torch.float64)

    def final(self, name: str, rate: float, steps: int) -> float:
        """The training loss at the end; infinite where an optimizer refuses a step."""
        try:
            found = self.train(name, rate, steps)[-1]
        except (FloatingPointError, ValueError, RuntimeError):
            return float("inf")
        return found if found == found else float("inf")


def tune(steps: int) -> list[dict]:
    """The best of seven learning rates of each, and how many steps reach tuned Adam's loss."""
    task, rows, target = Task(), [], None
    print("optimizer                    best rate   loss  steps to Adam's loss")
    for name in ("Adam", *(key for key in RATES if key != "Adam")):
        losses = {rate: task.final(name, rate, steps) for rate in RATES[name]}
        best = min(losses, key=losses.get)
        target = losses[best] if target is None else target
        multiple, rate = reach(task, name, steps, target, near(losses, best))
        verdict = "met" if multiple and multiple <= ALLOWED else "MISSED"
        needed = (
            f"{multiple} N at {rate}" if multiple else f"more than {HORIZONS[-1]} N"
        )
        edge = (
            " (at the end of its list)"
            if best in (RATES[name][0], RATES[name][-1])
            else ""
        )
        print(
            f"{name:28} {best:9g} {losses[best]:8.2g}  {needed} {verdict}{edge}",
            flush=True,
        )
        rows.append({
            "optimizer": name, "rate": best, "loss": losses[best], "losses": losses,
            "multiple": multiple, "reached_with": rate,
        })  # fmt: skip
    return rows


def near(losses: dict[float, float], best: float) -> list[float]:
    """The best learning rate and its two neighbours in the list."""
    rates = list(losses)
    i = min(max(rates.index(best), 1), len(rates) - 2)
    return rates[i - 1 : i + 2]


def reach(task: Task, name: str, steps: int, target: float, rates: list[float]):
    """The shortest training with which one of the learning rates reaches a loss, and that rate."""
    allowed = reaches(task, name, ALLOWED * steps, target, rates)
    shorter = [h for h in HORIZONS if h < ALLOWED] if allowed else []
    longer = [h for h in HORIZONS if h > ALLOWED] if not allowed else []
    for multiple in (*shorter, *longer):
        rate = reaches(task, name, multiple * steps, target, rates)
        if rate:
            return multiple, rate
    return (ALLOWED, allowed) if allowed else (None, None)


def reaches(task: Task, name: str, steps: float, target: float, rates: list[float]):
    """One of the learning rates that reaches a loss in so many steps, or None."""
    for rate in rates:
        if task.final(name, rate, round(steps)) <= target:
            return rate
    return None


def compare_curves(
    rates: dict[str, float], steps: int = 200, points: int = 5
) -> list[dict]:
    """The loss curves from equivalent points beside that from the start itself."""
    task, rows = Task(), []
    print(
        f"\nlargest relative difference of {steps} losses, {points} equivalent points"
    )
    for name, rate in rates.items():
        # What the manifold divides by: for layer scales, the coarsest subgroup.
        kind = MANIFOLDS.get(name.partition(", ")[2])
        group = kind(task.symmetry).group if kind else task.symmetry.group
        reference = task.curve(name, rate, steps)
        generator, worst = torch.Generator().manual_seed(1), 0.0
        for _ in range(points):
            t = group.random(spread=1.0, generator=generator)
            twin = qn.transform(make_network(), group, t)
            curve = task.curve(name, rate, steps, twin)
            gap = float(((curve - reference) / reference).abs().max())
            worst = max(worst, gap if gap == gap else float("inf"))
        verdict = "" if "," not in name else "met" if worst <= IDENTICAL else "MISSED"
        print(f"{name:28} {worst:9.1e} {verdict}", flush=True)
        rows.append({"optimizer": name, "rate": rate, "difference": worst})
    return rows


def time_steps() -> list[dict]:
    """A step beside a gradient of the same network and batch."""
    task, tasks = Task(), {}
    inputs, targets = next(task.batches(1))

    def gradient(network):
        network.zero_grad()
        nn.functional.cross_entropy(network(inputs), targets).backward()

    network = make_network()
    tasks["gradient"] = partial(gradient, network)
    for name in RATES:
        network = make_network()
        optimizer = make(name, network, task.symmetry, 1e-6)
        gradient(network)
        tasks[name] = optimizer.step
    found = cpu_seconds(tasks)
    unit = found.pop("gradient")
    print("\na step without its gradient, in units of the gradient of a batch of 128")
    for name, seconds in found.items():
        print(f"{name:28} {seconds / unit:6.2f}  {1e3 * seconds:6.2f} ms")
    return [
        {"optimizer": name, "ratio": seconds / unit, "milliseconds": 1e3 * seconds}
        for name, seconds in found.items()
    ]


def cpu_seconds(tasks: dict, rounds: int = 31) -> dict[str, float]:
    """Medians of the processor's time, the tasks in turn, each after a call that warms caches."""
    times = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            task()
            start = process_time()
            task()
            times[name].append(process_time() - start)
    return {name: median(seconds) for name, seconds in times.items()}


if __name__ == "__main__":
    main()
