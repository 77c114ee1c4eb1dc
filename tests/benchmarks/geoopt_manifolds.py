"""The laws on geoopt's own manifolds: what does not hold, and by how much.

Writes ``docs/results/geoopt_manifolds.json``: ``python tests/benchmarks/geoopt_manifolds.py``.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

import geoopt
import torch

from quotientnet.testing import Unrolled, check_manifold
from quotientnet.testing.manifold_laws import laws_of

TARGET = Path(__file__).parents[2] / "docs/results/geoopt_manifolds.json"

MANIFOLDS = {
    "Euclidean(ndim=1)": (geoopt.Euclidean(ndim=1), (5,)),
    "Sphere": (geoopt.Sphere(), (5,)),
    "SphereExact": (geoopt.SphereExact(), (5,)),
    "ProductManifold of spheres": (
        geoopt.ProductManifold((geoopt.Sphere(), 4), (geoopt.Sphere(), 3)),
        (7,),
    ),
    "CanonicalStiefel": (geoopt.CanonicalStiefel(), (5, 3)),
    "EuclideanStiefel": (geoopt.EuclideanStiefel(), (5, 3)),
    "EuclideanStiefelExact": (geoopt.EuclideanStiefelExact(), (5, 3)),
    "PoincareBall": (geoopt.PoincareBall(), (4,)),
    "PoincareBallExact": (geoopt.PoincareBallExact(), (4,)),
    "SphereProjection": (geoopt.SphereProjection(), (4,)),
    "Lorentz": (geoopt.Lorentz(), (5,)),
    "SymmetricPositiveDefinite": (geoopt.SymmetricPositiveDefinite(), (3, 3)),
    "BirkhoffPolytope": (geoopt.BirkhoffPolytope(), (4, 4)),
}


def measure(profile: str = "ci") -> dict:
    """The violations by manifold."""
    rows = []
    for name, (manifold, shape) in MANIFOLDS.items():
        verdicts = check_manifold(manifold, shape=shape, profile=profile)
        failed = [v for v in verdicts if not v.holds]
        rows.append({
            "manifold": name,
            "shape": list(shape),
            "laws": len(laws_of(Unrolled(manifold, shape))),
            "measured": len(verdicts),
            "failed": [
                {
                    "law": v.law,
                    "violation": v.violation if isfinite(v.violation) else str(v.violation),
                    "tolerance": v.tolerance,
                    "reason": v.reason.splitlines()[0] if v.reason else "",
                    "order": v.slope.order if v.slope and isfinite(v.slope.order) else None,
                    "length": v.sample.length,
                    "antipodal": v.sample.antipodal,
                    "dtype": str(v.sample.dtype)[6:],
                    "seed": v.seed,
                }
                for v in failed
            ],
        })  # fmt: skip
    return {
        "torch": torch.__version__, "geoopt": geoopt.__version__, "profile": profile,
        "rows": rows, "small_distances": small_distances(),
    }  # fmt: skip


def small_distances() -> list[dict]:
    """What ``Sphere.dist`` says of points that are so far apart."""
    sphere, rows = geoopt.Sphere(), []
    for dtype in (torch.float32, torch.float64):
        for exponent in range(1, 9):
            angle = torch.tensor(10.0**-exponent, dtype=torch.float64)
            y = torch.stack([angle.cos(), angle.sin(), 0 * angle]).to(dtype)
            x = torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
            found = float(sphere.dist(x, y))
            rows.append({"dtype": str(dtype)[6:], "apart": float(angle), "dist": found})
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    TARGET.write_text(json.dumps(measure()) + "\n")
