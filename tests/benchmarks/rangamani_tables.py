"""Tables 2 and 3 of rangamani2019: spectral norms at equivalent points of F1 and C1.

``python tests/benchmarks/rangamani_tables.py [--network F1|C1] [--output FOLDER]``

500 random inputs in R^784 with random labels and softmax cross-entropy, as in the paper. Every
power iteration starts from its own random vector. C1 takes several minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

import quotientnet as qn
from quotientnet.reparametrisation import layer_scales

SCALES = {
    "F1": [(5, 4, 1 / 20), (100, 30, 1 / 3000)],
    "C1": [(5, 4, 3, 2, 1 / 120), (50, 24, 30, 1 / 6, 1 / 6000)],
}
TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-4}
CLAIMS = {torch.float64: 1e-10, torch.float32: 2e-6}


def make(network: str) -> nn.Module:
    """F1 or C1 of Table 1."""
    if network == "F1":
        widths = [
            nn.Linear(784, 300),
            nn.ReLU(),
            nn.Linear(300, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        ]
        return nn.Sequential(*widths)
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 10, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(10, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(320, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def measure(network: str, dtype: torch.dtype) -> list[dict]:
    """The spectral norms at ``w`` and at each equivalent point."""
    torch.manual_seed(0)
    model = make(network).to(dtype)
    inputs = torch.randn(500, 784, dtype=torch.float64).to(dtype)
    objective = qn.Objective(
        model, nn.CrossEntropyLoss(), (inputs, torch.randint(0, 10, (500,)))
    )
    manifold = qn.LayerScaleQuotient(qn.discover(model, inputs))
    w, generator = objective.layout.flatten(model), torch.Generator().manual_seed(1)
    options = {
        "tolerance": TOLERANCES[dtype],
        "generator": generator,
        "max_products": 3000,
    }
    ones = (1,) * len(SCALES[network][0])
    rows = []
    for scales in (ones, *SCALES[network]):
        started = perf_counter()
        point = objective.at(
            manifold.group.act(w, layer_scales(manifold.group, scales))
        )
        riemannian = qn.sharpness.riemannian_spectral_norm(point, manifold, **options)
        # The Euclidean number moves by orders of magnitude: four digits are enough.
        euclidean = qn.sharpness.spectral_norm(point, **options | {"tolerance": 1e-2})
        rows.append({
            "network": network, "dtype": str(dtype), "scales": scales, "value": riemannian.value,
            "residual": riemannian.error / riemannian.value, "products": riemannian.cost,
            "converged": riemannian.converged, "euclidean": euclidean.value,
            "seconds": perf_counter() - started,
        })  # fmt: skip
    for row in rows:
        row["difference"] = abs(row["value"] / rows[0]["value"] - 1)
        row["euclidean_difference"] = abs(row["euclidean"] / rows[0]["euclidean"] - 1)
    return rows


def main() -> None:
    """Print the tables and write ``rangamani_tables_*.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=sorted(SCALES), default="F1")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args()
    rows = []
    for dtype in TOLERANCES:
        for row in measure(options.network, dtype):
            met = row["converged"] and row["difference"] <= CLAIMS[dtype]
            scales = ", ".join(f"{scale:.4g}" for scale in row["scales"])
            print(
                f"{options.network} {str(dtype)[6:]} λ = ({scales}): "
                f"λmax {row['value']:.8g}, relative difference {row['difference']:.1e} "
                f"(claim {CLAIMS[dtype]:.0e}, {'met' if met else 'MISSED'}), residual "
                f"{row['residual']:.0e}, {row['products']} products; "
                f"Euclidean {row['euclidean']:.4g}, relative difference "
                f"{row['euclidean_difference']:.1e}; {row['seconds']:.0f} s",
                flush=True,
            )
            rows.append(row)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"rangamani_tables_{options.network}.json"
    path.write_text(
        json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n"
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
