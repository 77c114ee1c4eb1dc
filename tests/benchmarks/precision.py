"""Every quantity of the report in float32 against float64, on every network of the tests.

``python tests/benchmarks/precision.py [--output FOLDER]`` takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import quotientnet as qn
from quotientnet.testing import BOUNDS, precision

sys.path.insert(0, str(Path(__file__).parents[1]))
from cases import NETWORKS  # noqa: E402


def measured() -> list[dict]:
    """Each quantity of each network: its difference and what is allowed."""
    found = []
    for name, network in NETWORKS.items():
        objective = network.objective()
        point = objective.at(objective.layout.flatten(objective.model))
        symmetry = qn.discover(objective.model, network.data()[0])
        for each in precision(point, symmetry, measures=None):
            found.append({"network": name, **vars(each)})
    return found


def worst(found: list[dict]) -> list[dict]:
    """For each kind the quantity that uses most of its bound."""
    rows = []
    for kind in BOUNDS:
        own = [each for each in found if each["kind"] == kind]
        most = max(own, key=lambda each: each["difference"] / each["bound"])
        rows.append({**most, "quantities": len(own)})
    return rows


def main() -> None:
    """Print the table and write ``precision.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args()
    found = measured()
    rows = worst(found)
    for row in rows:
        print(
            f"{row['kind']:16} {row['difference']:.1e} of {row['bound']:.1e}  {row['name']}, "
            f"{row['network']}, worst of {row['quantities']}"
        )
    facts = {
        "torch": torch.__version__,
        "bounds": {kind: bound.units for kind, bound in BOUNDS.items()},
        "networks": list(dict.fromkeys(each["network"] for each in found)),
        "quantities": list(dict.fromkeys(each["name"] for each in found)),
        "rows": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "precision.json"
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
