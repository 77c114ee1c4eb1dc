"""Curvature along an orbit: the balanced quotient's stays, the Euclidean one does not."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import quotientnet as qn

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_balanced import (  # noqa: E402
    mlp_with_zeros,
    normalised,
    prepared,
    residual,
)

NETWORKS = {
    "MLP with biases and zeros": mlp_with_zeros,
    "residual network": residual,
    "normalised CNN": normalised,
}
TARGET = 1e-9


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument(
        "--decades", type=float, default=12.0, help="orders of magnitude of a scale"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    rows = []
    for name, make in NETWORKS.items():
        rows.append(measure(name, make, options.points, options.decades))
        r = rows[-1]
        met = max(r["trace_moved"], r["norm_moved"]) <= TARGET
        print(
            f"{name:26} trace ±{r['trace_moved']:.1e}  λmax ±{r['norm_moved']:.1e}  Euclidean "
            f"trace ×{r['euclidean_trace']:.1e}  λmax ×{r['euclidean_norm']:.1e}  "
            f"{'met' if met else 'MISSED'}",
            flush=True,
        )
    facts = {"torch": torch.__version__, "points": options.points, "rows": rows}
    facts["decades"] = options.decades
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "orbit_curvature.json"
    path.write_text(json.dumps(facts, indent=2) + "\n")


def measure(name: str, make, points: int, decades: float) -> dict:
    """The largest relative changes of trace and largest eigenvalue, over random orbit points."""
    objective, group = prepared(make)
    manifold = qn.BalancedQuotient(group)
    w = objective.layout.flatten(objective.model)
    generator = torch.Generator().manual_seed(0)
    reach = decades * 2.302585093
    found = []
    for i in range(points + 1):
        t = reach * (torch.rand(group.dimension, generator=generator).double() - 0.5)
        point = objective.at(group.act(w, t) if i else w)
        operators = manifold.riemannian_hessian(point), point.hessian
        dense = [operator.to_dense() for operator in operators]
        found.append([(m.trace(), torch.linalg.eigvalsh(m)[-1]) for m in dense])
    balanced, euclidean = torch.tensor(found, dtype=torch.float64).unbind(1)
    moved = ((balanced - balanced[0]) / balanced[0]).abs().amax(0)
    grown = (euclidean / euclidean[0]).abs().amax(0)
    return {
        "network": name, "parameters": len(w), "generators": group.dimension,
        "trace_moved": float(moved[0]), "norm_moved": float(moved[1]),
        "euclidean_trace": float(grown[0]), "euclidean_norm": float(grown[1]),
    }  # fmt: skip


if __name__ == "__main__":
    main()
