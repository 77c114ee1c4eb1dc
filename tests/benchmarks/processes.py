"""Two processes of one thread beside one process of two threads, on the batches of one loader."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
import torch.distributed as dist
from tasks import TASKS
from torch import nn

import quotientnet as qn

RANKS = 2
BATCHES, SIZE = 8, 128


@dataclass(frozen=True)
class Row:
    """One operation, one way to run it.

    Attributes:
        task: What was done, on what.
        processes: How many, of ``threads`` threads each.
        threads: Of each process.
        milliseconds: The median time of rank 0.
        cpu_milliseconds: The median of processor time, of all processes and threads.
    """

    task: str
    processes: int
    threads: int
    milliseconds: float
    cpu_milliseconds: float


def operations(network: str, rank: int, ranks: int) -> dict[str, Callable]:
    """What is timed, by name, on this rank's batches."""
    model = TASKS[network].build()
    inputs, targets = TASKS[network].data(BATCHES * SIZE)
    batches = list(zip(inputs.split(SIZE), targets.split(SIZE)))[rank::ranks]
    group = "world" if ranks > 1 else None
    objective = qn.Objective(
        model, nn.CrossEntropyLoss(), batches, products="graph", process_group=group
    )
    point = objective.at(objective.layout.flatten(model))
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(len(point.w), 8, generator=generator)
    return {
        f"{network}, gradient": lambda: objective.value_and_gradient(point.w),
        f"{network}, product with the Hessian": lambda: point.hessian @ block[:, 0],
        f"{network}, products with 8 vectors": lambda: point.hessian @ block,
    }


def measured(function: Callable, rounds: int) -> tuple[float, float]:
    """The median seconds by the clock and of processor time."""
    function()
    times = []
    for _ in range(rounds):
        clock, used = perf_counter(), process_time()
        function()
        times.append((perf_counter() - clock, process_time() - used))
    clocks, used = zip(*times)
    return median(clocks), median(used)


def run(rank: int, ranks: int, threads: int, rounds: int, folder: str) -> None:
    """Time everything on one rank, and leave the times in a file."""
    torch.set_num_threads(threads)
    if ranks > 1:
        meeting = f"file://{folder}/meeting"
        dist.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=ranks
        )
    found = {
        name: measured(function, rounds)
        for network in ("MLP",)
        for name, function in operations(network, rank, ranks).items()
    }
    Path(folder, str(rank)).write_text(json.dumps(found))
    if ranks > 1:
        dist.destroy_process_group()


def rows(ranks: int, threads: int, rounds: int) -> list[Row]:
    """The times of all operations with so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ranks, threads, rounds, folder
        torch.multiprocessing.spawn(run, arguments, ranks)
        parts = [json.loads(Path(folder, str(r)).read_text()) for r in range(ranks)]
    return [
        Row(
            name, ranks, threads, 1e3 * clock, 1e3 * sum(part[name][1] for part in parts)
        )
        for name, (clock, _) in parts[0].items()
    ]  # fmt: skip


def main() -> None:
    """Print the table, and write it where ``--output`` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = [row for n in (1, RANKS) for row in rows(n, RANKS // n, options.rounds)]
    for row in sorted(found, key=lambda row: row.task):
        print(
            f"{row.task:36} {row.processes} × {row.threads} threads "
            f"{row.milliseconds:9.1f} ms {row.cpu_milliseconds:9.1f} ms of processors"
        )
    if options.output is not None:
        result = {"load": os.getloadavg()[0], "rows": [asdict(row) for row in found]}
        options.output.write_text(
            json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        )


if __name__ == "__main__":
    main()
