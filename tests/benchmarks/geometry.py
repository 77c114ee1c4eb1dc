"""The geometry's operations in units of one preallocated ``torch.add`` of the same vector.

``python tests/benchmarks/geometry.py [--output FOLDER] [--device cpu]``
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import torch
from timing import ratios, report

import quotientnet as qn


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
    """The 161 parameters of ResNet-50: 25,557,032 numbers in 26,560 filters and the rest."""
    shapes = {"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,), "bn1.bias": (64,)}
    inner = 64
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3)), 1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            convs = {
                "1": (width, inner, 1),
                "2": (width, width, 3),
                "3": (4 * width, width, 1),
            }
            for i, (out, into, kernel) in convs.items():
                shapes[f"{prefix}.conv{i}.weight"] = (out, into, kernel, kernel)
                shapes |= {
                    f"{prefix}.bn{i}.weight": (out,),
                    f"{prefix}.bn{i}.bias": (out,),
                }
            if block == 0:
                shapes[f"{prefix}.downsample.0.weight"] = (4 * width, inner, 1, 1)
                shapes |= {
                    f"{prefix}.downsample.1.{m}": (4 * width,)
                    for m in ("weight", "bias")
                }
            inner = 4 * width
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def filter_group(layout: qn.ParameterLayout) -> qn.ScalingGroup:
    """One generator for each convolution filter, as batch normalisation after it gives."""
    convs = [entry for entry in layout.entries if len(entry.shape) == 4]
    units = [qn.Unit(e.name, e.shape[0], (qn.Scale(e.name, 0),)) for e in convs]
    return qn.ScalingGroup.from_units(layout, units)


def tensor_group(layout: qn.ParameterLayout) -> qn.ScalingGroup:
    """One generator for each pair of consecutive convolutions."""
    convs = [entry.name for entry in layout.entries if len(entry.shape) == 4]
    pairs = zip(convs, convs[1:])
    units = [
        qn.Unit(a, 1, (qn.Scale(a, None), qn.Scale(b, None, -1))) for a, b in pairs
    ]
    return qn.ScalingGroup.from_units(layout, units)


def unit_group(layout: qn.ParameterLayout, depth: int, width: int) -> qn.ScalingGroup:
    """One generator for each hidden unit of a chain of dense layers."""
    scales = [(qn.Scale(f"{i}.weight", 0), qn.Scale(f"{i}.bias", 0),
               qn.Scale(f"{i + 1}.weight", 1, -1)) for i in range(depth - 1)]  # fmt: skip
    units = [qn.Unit(str(i), width, scale) for i, scale in enumerate(scales)]
    return qn.ScalingGroup.from_units(layout, units)


def measure(manifold, targets: dict, label: str, device) -> list:
    """Each operation of a manifold on one random point and tangent vector."""
    generator = torch.Generator(device).manual_seed(0)
    size = manifold.layout.size
    x = manifold.random(size, generator=generator, device=device)
    u = 0.1 * x * torch.randn(size, generator=generator, device=device)
    out = torch.empty_like(x)
    calls = {
        "proju": lambda: manifold.proju(x, u, out=out),
        "inner": lambda: manifold.inner(x, u, u),
        "egrad2rgrad": lambda: manifold.egrad2rgrad(x, u, out=out),
        "retr": lambda: manifold.retr(x, u, out=out),
        "expmap": lambda: manifold.expmap(x, u, out=out),
    }
    tasks = {
        f"{label}: {name}": (calls[name], target) for name, target in targets.items()
    }
    return ratios(
        lambda: torch.add(x, u, out=out), tasks, name="torch.add of the same vector"
    )


def main() -> None:
    """Print the table and write ``geometry.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with torch.no_grad():
        resnet = qn.ParameterLayout(resnet50_shapes())
        assert (len(resnet.entries), resnet.size) == (161, 25_557_032)
        limits = {
            "proju": 2.5,
            "inner": 2.5,
            "egrad2rgrad": 2.5,
            "retr": 2.5,
            "expmap": 4.0,
        }
        tensors = qn.LayerScaleQuotient(tensor_group(resnet))
        results = measure(tensors, limits, "161 tensors", options.device)
        filters = qn.LogPolarQuotient(filter_group(resnet))
        doubled = {name: 2 * m.ratio for name, m in zip(limits, results)}
        results += measure(
            filters, doubled, f"{filters.group.dimension} filters", options.device
        )
        chain = {
            f"{i}.{m}": s
            for i in range(10)
            for m, s in (("weight", (2048,) * 2), ("bias", (2048,)))
        }
        layout = qn.ParameterLayout(chain)
        started = perf_counter()
        node_wise = qn.NodeWiseQuotient(unit_group(layout, 10, 2048))
        print(
            f"node-wise set-up of 10 layers of 2,048: {perf_counter() - started:.2f} s"
        )
        limits = {
            "proju": 4.0,
            "inner": None,
            "retr": None,
            "expmap": None,
            "egrad2rgrad": None,
        }
        results += measure(node_wise, limits, "node-wise 10 x 2048", options.device)
        zeros = node_wise.random(generator=torch.Generator().manual_seed(1))
        zeros[:: layout.size // 100] = 0
        started = perf_counter()
        frozen = qn.NodeWiseQuotient(node_wise.group, frozen_zeros=zeros)
        print(
            f"node-wise set-up with 101 frozen zeros: {perf_counter() - started:.2f} s"
        )
        results += measure(
            frozen, {"proju": None}, "node-wise, 101 zeros frozen", options.device
        )
    report("geometry", results, options.output)


if __name__ == "__main__":
    main()
