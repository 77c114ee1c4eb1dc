"""Random work from all rooms for an hour: does memory grow, does anything fail?

``python tests/benchmarks/soak.py --hours 1`` writes ``soak.json``: failures with their seeds, what
was done in each minute, and the slope of the memory in use over time with its interval.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter

import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))
import calls  # noqa: E402

import quotientnet as qn  # noqa: E402
from quotientnet.files import write_json  # noqa: E402
from quotientnet.runs import Journal  # noqa: E402
from quotientnet.testing import (  # noqa: E402
    check_group,
    check_manifold,
    random_architecture,
)

GROWTH = 20.0
"""MiB an hour, the most by which memory may grow: the lower end of the interval counts."""

SETTLED = 0.25
"""The first part of the time, in which caches fill, has no part in the slope."""

REFUSED = (
    "constant", "no parameter", "still grew", "not finite", "discover_numerically"
)  # fmt: skip
"""Words of what a drawn network may be refused for, as in ``random_architectures.py``."""


def drawn(seed: int) -> None:
    """A random architecture, its symmetry derived and tried."""
    network = random_architecture(seed, most=15)
    inputs = network.inputs()
    try:
        symmetry = qn.discover(network, inputs)
        sound = qn.verify_sound(network, symmetry, inputs, modes=("own",))
    except (RuntimeError, ValueError) as error:
        if any(word in str(error) for word in REFUSED):
            return
        raise
    if not sound.holds:
        raise AssertionError(f"not sound: {sound.violation:.1e}")


def laws(seed: int) -> None:
    """All laws of a quotient of a small network at random points."""
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
    ).double()
    group = qn.discover(model, torch.zeros(2, 2).double()).group
    kinds = qn.NodeWiseQuotient, qn.LayerScaleQuotient, qn.BalancedQuotient
    manifold = kinds[seed % len(kinds)](group)
    for verdict in (*check_manifold(manifold, seed=seed), *check_group(manifold, seed=seed)):
        if not verdict.holds:
            raise AssertionError(str(verdict))


def journal(seed: int) -> None:
    """Runs that are written and read again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "runs.jsonl")
        for _ in range(2):
            with Journal(path) as book:
                for run in range(5):
                    found = book.run({"run": run, "seed": seed}, lambda: {"seed": seed})
                    assert found == {"seed": seed}


def work() -> dict:
    """All kinds, as functions of a seed."""
    every = calls.calls()
    once = {name: lambda _, c=call: c() for name, call in every.items()}
    return {"drawn network": drawn, "laws": laws, "journal": journal, **once}


def soak(hours: float, first: int) -> dict:
    """Rounds with one of each kind, until the time is over."""
    kinds, seed, started = work(), first, perf_counter()
    counts, failures, samples, minutes = Counter(), [], [], Counter()
    while (elapsed := perf_counter() - started) < 3600 * hours or len(samples) < 8:
        for kind, do in kinds.items():
            try:
                do(seed)
            except Exception as error:  # each is reported, and decides the verdict
                words = f"{type(error).__name__}: {error}".splitlines()[0]
                failures.append({"kind": kind, "seed": seed, "error": words})
                print(f"{kind}, seed {seed}: {words}", flush=True)
            counts[kind] += 1
        seed += 1
        samples.append((perf_counter() - started, calls.resident()))
        minutes[int(elapsed // 60)] += len(kinds)
    return {
        "rounds": seed - first, "calls": dict(counts), "failures": failures,
        "calls_per_minute": [minutes[m] for m in range(max(minutes) + 1)],
        "resident_mebibytes": samples,
    }  # fmt: skip


def slope(samples: list) -> dict:
    """MiB an hour by least squares, with an interval at 95 %.

    Successive samples are not independent: they are averaged in ten stretches before.
    """
    later = samples[int(SETTLED * len(samples)) :]
    count = min(10, len(later) // 2)
    parts = [later[k * len(later) // count : (k + 1) * len(later) // count] for k in range(count)]
    means = [[sum(x) / len(part) for x in zip(*part)] for part in parts]
    fit = stats.linregress([m[0] / 3600 for m in means], [m[1] for m in means])
    half = float(stats.t.ppf(0.975, count - 2) * fit.stderr)
    return {"mebibytes_an_hour": float(fit.slope), "half_width": half, "stretches": count}


def main() -> int:
    """Work, write ``soak.json``, print the verdict; 1 if something failed or grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = soak(options.hours, options.seed)
    grown = slope(found["resident_mebibytes"])
    low = grown["mebibytes_an_hour"] - grown["half_width"]
    verdict = "failed" if found["failures"] else "grows" if low > GROWTH else "passed"
    facts = {
        "command": shlex.join(["python", *sys.argv]), "hours": options.hours,
        "seed": options.seed, "torch": torch.__version__, "quotientnet": qn.__version__,
        "python": platform.python_version(), "cores": os.cpu_count(), "threads": 1,
        "verdict": verdict, "growth": grown, **found,
    }  # fmt: skip
    write_json(options.output / "soak.json", facts)
    print(
        f"{found['rounds']} rounds, {sum(found['calls'].values()):,} calls, "
        f"{len(found['failures'])} failures; memory grows by {grown['mebibytes_an_hour']:.1f} ± "
        f"{grown['half_width']:.1f} MiB an hour: {verdict}"
    )
    return 0 if verdict == "passed" else 1


if __name__ == "__main__":
    sys.exit(main())
