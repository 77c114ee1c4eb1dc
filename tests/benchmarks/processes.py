"""Two gloo ranks against one process on the same batches in all: what sharing them saves or costs.

``python tests/benchmarks/processes.py``: ratios are wall times of two ranks, one thread each, over
those of one process with one thread; 0.5 would be ideal. It says something only on a machine with
two cores free; the load when it began is written beside the results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import torch.distributed as dist
from torch import nn

import quotientnet as qn

RANKS, BATCHES = 2, 4
"""Processes, and the batches that they share."""

WIDTHS = (64, 512)
SIZES = (32, 512)
"""Units of the hidden layers; samples of a batch."""


def tasks(width: int, size: int, rank: int | None) -> dict:
    """Functions by name: on all batches, or on this rank's."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    inputs, targets = torch.randn(BATCHES, size, 64), torch.randint(10, (BATCHES, size))
    batches, options = list(zip(inputs, targets)), {}
    if rank is not None:
        batches, options = batches[rank::RANKS], {"process_group": "world"}
    function = qn.Objective(model, nn.CrossEntropyLoss(), batches, products="graph", **options)
    w = function.layout.flatten(model)
    hessian, v = function.at(w).hessian, torch.randn_like(w)
    return {
        "gradient": lambda: function.value_and_gradient(w)[1],
        "Hessian-vector product": lambda: hessian @ v,
        "exact traces of layers": lambda: qn.curvature.ggn_traces(function.at(w)).total.value,
    }


def measure(rank: int | None, rounds: int) -> list[dict]:
    """Medians of seconds with the results' norms, on this rank or in one process alone."""
    torch.set_num_threads(1)
    rows = []
    for width in WIDTHS:
        for size in SIZES:
            for name, task in tasks(width, size, rank).items():
                seconds = []
                for _ in range(rounds + 1):
                    if rank is not None:
                        dist.barrier()
                    started = perf_counter()
                    found = task()
                    seconds.append(perf_counter() - started)
                norm = float(torch.as_tensor(found, dtype=torch.float64).norm())
                row = {"task": name, "width": width, "size": size, "norm": norm}
                rows.append(row | {"seconds": median(seconds[1:])})
    return rows


def share(rank: int, folder: str, rounds: int) -> None:
    """One rank's part; the first one writes what it measured."""
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    rows = measure(rank, rounds)
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def main() -> None:
    """Print the table and write ``processes.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args()
    load, alone = os.getloadavg()[0], measure(None, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(share, (folder, options.rounds), RANKS)
        together = json.loads(Path(folder, "rows.json").read_text())
    rows = []
    for one, two in zip(alone, together, strict=True):
        gap = abs(one["norm"] - two["norm"]) / one["norm"]
        if gap > 1e-4:
            raise AssertionError(f"{one['task']}: the results differ by {gap:.1e}")
        ratio = two["seconds"] / one["seconds"]
        overhead = two["seconds"] - one["seconds"] / RANKS
        row = {key: one[key] for key in ("task", "width", "size")}
        row |= {"one": one["seconds"], "two": two["seconds"], "ratio": ratio, "overhead": overhead}
        rows.append(row)
        print(
            f"{row['task']:24} width {row['width']:4}, {BATCHES} batches of {row['size']:4}: one "
            f"{1e3 * row['one']:7.1f} ms, two ranks {1e3 * row['two']:7.1f} ms, ratio "
            f"{ratio:5.2f}, {1e3 * overhead:6.1f} ms above half"
        )
    facts = {
        "command": " ".join(["python", *sys.argv]), "torch": torch.__version__,
        "quotientnet": qn.__version__, "python": platform.python_version(), "seed": 0,
        "cores": os.cpu_count(), "load_before": load, "ranks": RANKS, "batches": BATCHES,
        "rounds": options.rounds, "rows": rows,
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "processes.json"
    path.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"load before {load:.1f} on {os.cpu_count()} cores; wrote {path}")


if __name__ == "__main__":
    main()
