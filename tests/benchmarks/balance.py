"""The canonical form and one projection of the balanced quotient, in gradient units."""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

import torch
from timing import ratios, report
from torch import nn

import quotientnet as qn

LAYERS, WIDTH, BATCH = 10, 2048, 512


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    stacked = [m for layer in layers for m in (layer, nn.ReLU())][:-1]
    model = nn.Sequential(*stacked).to(device)
    group = qn.discover(model, torch.randn(2, WIDTH, device=device)).group
    inputs = torch.randn(BATCH, WIDTH, device=device)
    targets = torch.randint(WIDTH, (BATCH,), device=device)

    def gradient():
        loss = nn.functional.cross_entropy(model(inputs), targets)
        return torch.autograd.grad(loss, list(model.parameters()))

    w = group.layout.flatten(model)
    far = group.act(w, group.random(spread=5.0, device=device))
    u = torch.randn_like(w)
    gradient()
    before = _peak()
    qn.canonical(w, group)
    extra = _peak() - before
    manifold = qn.BalancedQuotient(group)
    gram = group.gram(manifold.canonical(w).double().square())
    rates = group.adjoint(w.double() * u)

    def fresh_projection():
        qn.BalancedQuotient(group).proju(w, u)

    tasks = {
        "canonical form, at initialisation": (lambda: qn.canonical(w, group), 12.0),
        "canonical form, scales e^±5 apart": (lambda: qn.canonical(far, group), 12.0),
        "one projection": (lambda: manifold.proju(w, u), 2.0),
        "its solve": (lambda: gram.solve(rates), 2.0),
        "first projection at a point": (fresh_projection, None),
    }
    print(f"{group.dimension:,} generators, {w.numel():,} parameters")
    measurements = ratios(
        gradient, tasks, name=f"gradient at batch {BATCH}", rounds=options.rounds
    )
    report("balance", measurements, options.output)
    size = w.numel() * w.element_size() // 2**20
    print(
        f"extra peak memory of the canonical form {extra} MiB, of a vector {size} MiB"
    )


def _peak() -> int:
    """The largest resident size so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
