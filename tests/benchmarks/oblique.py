"""Directions for BN-sharpness on ResNet-50's 26,560 filters, beside geoopt's spheres.

``python tests/benchmarks/oblique.py [--output FOLDER]``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import geoopt
import torch
from geometry import resnet50_shapes
from timing import Measurement, ratios, report

import quotientnet as qn

METHODS = ("proju", "expmap")
TARGETS = {"proju": 1 / 5, "expmap": 1 / 10}


def filters() -> qn.ProductOblique:
    """Spheres of radius 1, as geoopt's are: all convolution filters, and the rest as one."""
    layout = qn.ParameterLayout(resnet50_shapes())
    convs = [entry for entry in layout.entries if len(entry.shape) == 4]
    blocks, count = {}, 0
    for entry in convs:
        numbers = torch.arange(count, count + entry.shape[0])
        blocks[entry.name] = numbers.reshape(-1, 1, 1, 1)
        count += entry.shape[0]
    assert (len(layout.entries), layout.size, count) == (161, 25_557_032, 26_560)
    return qn.ProductOblique(layout, torch.ones(count), blocks)


class Spheres:
    """geoopt's product of one sphere a filter and one for the rest, filters first."""

    def __init__(self, ours: qn.ProductOblique):
        shapes = [e.shape for e in ours.layout.entries if len(e.shape) == 4]
        lengths = [torch.Size(s[1:]).numel() for s in shapes for _ in range(s[0])]
        rest = ours.layout.size - sum(lengths)
        sphere = geoopt.Sphere()
        parts = [(sphere, (length,)) for length in (*lengths, rest)]
        self.manifold = geoopt.ProductManifold(*parts)
        mask = torch.zeros(ours.layout.size, dtype=torch.bool)
        for entry in ours.layout.entries:
            mask[entry.slice] = len(entry.shape) == 4
        self.order = torch.cat([torch.nonzero(m).reshape(-1) for m in (mask, ~mask)])


def by_tensor(layout: qn.ParameterLayout, name: str, x, u) -> torch.Tensor:
    """The operation as a user would write it by hand: one ``geoopt.Sphere`` on the rows of each
    convolution, and one on the rest in one piece."""
    method = getattr(geoopt.Sphere(), name)
    pieces, joint = [], []
    for entry, a, b in zip(layout.entries, layout.split(x), layout.split(u)):
        if len(entry.shape) == 4:
            rows = (t.reshape(entry.shape[0], -1) for t in (a, b))
            pieces.append(method(*rows).reshape(-1))
        else:
            joint.append((len(pieces), a, b))
            pieces.append(None)
    rest = (torch.cat([each[i] for each in joint]) for i in (1, 2))
    moved = method(*rest).split([len(a) for _, a, _ in joint])
    for (place, _, _), piece in zip(joint, moved):
        pieces[place] = piece
    return torch.cat(pieces)


def vectors(ours: qn.ProductOblique) -> tuple[torch.Tensor, torch.Tensor]:
    """A random point and a tangent vector of length 1/2 on each sphere, float32."""
    generator = torch.Generator().manual_seed(0)
    x = ours.random(generator=generator)
    u = ours.proju(x, torch.randn(len(x), generator=generator))
    lengths = ours.blocks.dot(u, u).sqrt().clamp(min=1e-9)
    return x, 0.5 * u / ours.blocks.expand(lengths).to(u)


def calls(name: str) -> tuple:
    """The three ways, and ours into a buffer that is there already, checked to agree."""
    ours = filters()
    x, u = vectors(ours)
    spheres, out = Spheres(ours), torch.empty_like(x)
    x_sorted, u_sorted = x[spheres.order], u[spheres.order]
    method, theirs = getattr(ours, name), getattr(spheres.manifold, name)
    expected = theirs(x_sorted, u_sorted)
    tensors = by_tensor(ours.layout, name, x, u)
    for result in (method(x, u), method(x, u, out=out), tensors):
        torch.testing.assert_close(
            result[spheres.order], expected, rtol=1e-4, atol=1e-6
        )
    return (
        lambda: theirs(x_sorted, u_sorted),
        lambda: method(x, u),
        lambda: method(x, u, out=out),
        lambda: by_tensor(ours.layout, name, x, u),
    )


def measured(name: str, rounds: int) -> list[Measurement]:
    """The table's rows for one operation."""
    spheres, plain, preallocated, tensors = calls(name)
    tasks = {
        f"{name}: ProductOblique": (plain, TARGETS[name]),
        f"{name}: ProductOblique, preallocated out": (preallocated, TARGETS[name]),
        f"{name}: geoopt.Sphere on the rows of each tensor": (tensors, None),
    }
    unit = "geoopt.ProductManifold of 26,561 spheres"
    return ratios(spheres, tasks, name=unit, rounds=rounds)


def main() -> None:
    """Print the table and write ``oblique.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with torch.no_grad():
        results = [m for name in METHODS for m in measured(name, options.rounds)]
    report("oblique", results, options.output)


if __name__ == "__main__":
    main()
