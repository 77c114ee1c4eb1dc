"""Ascents: BN-sharpness beside a thousand restarts, and optima that are known."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import geoopt
import torch
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits, make_normalised_network, train
from quotientnet.optimization import frechet_mean, maximize
from quotientnet.sharpness import bn_sharpness, bn_sharpness_limit, integral_diameter

WITHIN = 0.01
"""How far below the best of all restarts BN-sharpness may be, relative."""

EXACT = 1e-10
"""How far from a known optimum a maximum may be, relative."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=1000)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    point, symmetry = normalised_point(options.images, options.epochs)
    print(
        "BN-sharpness: p, delta, value, best of restarts, relative gap, share, monotone"
    )
    restarts = [
        beside_restarts(point, symmetry, p, delta, options.restarts)
        for p, delta in ((2.0, 1e-3), (2.0, 0.1), (1.0, 0.1))
    ]
    print("\nKnown optima: problem, method, relative error")
    known = [*rayleigh(), *small_delta(point, symmetry), *mean_on_a_geodesic(symmetry)]
    for row in known:
        met = "met" if row["error"] <= EXACT else "MISSED"
        print(f"{row['problem']:40} {row['method']:20} {row['error']:.1e} {met}")
    facts = {"torch": torch.__version__, "restarts": restarts, "known": known}
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "ascents.json"
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def normalised_point(images: int, epochs: int):
    """A batch-normalised network on digits, shortly trained, in train mode."""
    digits = load_digits()
    network = make_normalised_network()
    train(network, digits, batch_size=100, epochs=epochs)
    data = digits.train_inputs[:images], digits.train_targets[:images]
    objective = qn.Objective(network, nn.CrossEntropyLoss(), data)
    symmetry = qn.discover(network, data[0][:8], layout=objective.layout)
    return objective.at(objective.layout.flatten(network)), symmetry


def beside_restarts(point, symmetry, p: float, delta: float, count: int) -> dict:
    """The measure with its defaults, and the same ascent from random directions."""
    found = bn_sharpness(point, symmetry, p, delta)
    value = integral_diameter(point, p, delta)
    manifold = qn.ProductOblique.at(point.w, symmetry)
    generator = torch.Generator().manual_seed(1)
    starts = torch.stack([
        manifold.random(dtype=point.w.dtype, generator=generator) for _ in range(count)
    ])  # fmt: skip
    ends = maximize(
        lambda v: value(v) / found.value, manifold, starts, method="power", batched=False,
        tolerance=1e-3, max_iterations=30,
    )  # fmt: skip
    steps = ends.history.values.diff(dim=0)
    monotone = bool((steps[~torch.isnan(steps)] >= -1e-12).all())
    best = float(ends.values.max()) * found.value
    row = {
        "p": p, "delta": delta, "value": found.value, "best": best, "gap": 1 - found.value / best,
        "share": float((ends.values > 1 - WITHIN).double().mean()), "monotone": monotone,
        "restarts": count, "gradients": found.cost,
    }  # fmt: skip
    met = "met" if row["gap"] <= WITHIN and monotone else "MISSED"
    print(
        f"{p:4.1f} {delta:7.3f} {found.value:12.6g} {best:12.6g} {row['gap']:9.1e} "
        f"{row['share']:6.1%} {monotone} {met}"
    )
    return row


def rayleigh():
    """The largest eigenvalue of a matrix, by every method."""
    a = torch.randn(60, 60, generator=torch.Generator().manual_seed(0)).double()
    a = a + a.T
    exact = float(torch.linalg.eigvalsh(a)[-1])
    start = torch.nn.functional.normalize(torch.ones(60).double(), dim=0)
    for method in ("gradient", "conjugate-gradient", "power", "trust-region"):
        found = maximize(
            lambda x: torch.einsum("...i,ij,...j->...", x, a, x), geoopt.Sphere(), start,
            method=method, max_iterations=5000,
        )  # fmt: skip
        if method == "trust-region":
            print(found)
        yield known("Rayleigh quotient", method, found.value, exact)


def small_delta(point, symmetry):
    """The BN-sharpness of a loss that is linear: its limit of small delta."""
    exact = bn_sharpness_limit(point, symmetry, 1.0).value
    manifold = qn.ProductOblique.at(point.w, symmetry)
    start = manifold.random(
        dtype=point.w.dtype, generator=torch.Generator().manual_seed(2)
    )
    for method in ("conjugate-gradient", "power", "trust-region"):
        found = maximize(
            lambda v: v @ point.gradient / exact, manifold, start, method=method, batched=False,
        )  # fmt: skip
        yield known("limit of small delta", method, found.value, 1.0)


def mean_on_a_geodesic(symmetry):
    """Fréchet means of points on one geodesic of a quotient."""
    manifold = qn.NodeWiseQuotient(symmetry)
    generator = torch.Generator().manual_seed(3)
    w = manifold.random(dtype=torch.float64, generator=generator)
    u = manifold.proju(w, w * torch.randn(len(w), generator=generator).double())
    u = u / manifold.norm(w, u)
    times = torch.tensor([-1.0, 0.2, 1.5]).double()
    points = torch.stack([manifold.expmap(w, t * u) for t in times])
    mean = frechet_mean(manifold, points)
    error = float(manifold.dist(mean.point, manifold.expmap(w, times.mean() * u)))
    yield {"problem": "mean on a geodesic", "method": "frechet_mean", "error": error}


def known(problem: str, method: str, value: float, exact: float) -> dict:
    """A row."""
    error = abs(value - exact) / abs(exact)
    return {"problem": problem, "method": method, "error": error}


if __name__ == "__main__":
    main()
