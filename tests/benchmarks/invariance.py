"""The invariance matrix on small networks of real digits, written for the docs."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from quotientnet.sharpness import invariance_matrix


def main() -> None:
    """Compute, print and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    matrix = invariance_matrix(elements=options.elements)
    print(matrix)
    path = options.output / "invariance.json"
    path.write_text(matrix.to_json() + "\n")
    print(f"{matrix.seconds:.0f} s; wrote {path}")


if __name__ == "__main__":
    main()
