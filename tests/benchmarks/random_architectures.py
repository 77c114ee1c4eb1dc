"""Both oracles on random architectures: how many networks, of what, and what they say."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from time import perf_counter

import torch

import quotientnet as qn
from quotientnet.symmetry import discover_numerically
from quotientnet.testing import Architecture, random_architecture

DECIDED = ("sound and complete", "not sound", "not complete", "a rule is missing")
"""Other outcomes are reasons for which an oracle could not decide."""


def judged(network: Architecture, third: bool) -> dict:
    """What the oracles say of a network; the search by derivatives as well, on request."""
    inputs, started = network.inputs(), perf_counter()
    try:
        symmetry = qn.discover(network, inputs)
        discovered = perf_counter() - started
        sound = qn.verify_sound(network, symmetry, inputs, modes=("own",))
        complete = qn.verify_complete(network, symmetry, inputs)
    except (RuntimeError, ValueError) as error:
        return {"outcome": reason(str(error)), "seconds": perf_counter() - started}
    outcome = "sound and complete"
    if complete.missing:
        jumps = complete.jump > 1e-6
        outcome = "a jump that derivatives do not see" if jumps else "not complete"
    if symmetry.unknown:
        outcome = "a rule is missing"
    if (
        complete.extra
    ):  # by derivatives, while outputs do not change over twelve decades
        outcome = "derivatives lost to rounding"
    if not sound.holds:
        outcome = "not sound"
    row = {
        "outcome": outcome, "generators": symmetry.group.dimension, "violation": sound.violation,
        "gap": complete.gap, "discover": discovered, "seconds": perf_counter() - started,
    }  # fmt: skip
    return row | {"third": third_opinion(network, symmetry)} if third else row


def third_opinion(network: Architecture, symmetry) -> str:
    """Whether the search by derivatives finds the same; it may refuse to answer."""
    try:
        found = discover_numerically(network, network.inputs())
    except (RuntimeError, ValueError) as error:
        return reason(str(error))
    return "the same" if same(network, symmetry, found) else "another group"


def same(network: Architecture, symmetry, found) -> bool:
    """Whether both groups scale what has an effect alike."""
    group, layout = symmetry.group, symmetry.group.layout
    live = torch.ones(layout.size, dtype=torch.bool)
    for name in (*found.idle, *found.unseen):
        live &= ~layout.mask(name)

    def exponents(g):
        return g.exponents(torch.eye(g.dimension, dtype=torch.float64))[:, live]

    a, b = exponents(group), exponents(found.group)
    rank = torch.linalg.matrix_rank
    both = torch.cat([a, b])
    return int(rank(a)) == int(rank(b)) == int(rank(both)) if len(both) else True


def reason(message: str) -> str:
    """Why an oracle could not decide, in few words."""
    for part, words in (
        ("constant", "a constant channel is normalised"),
        ("no parameter has an effect", "no parameter has an effect"),
        ("no parameters", "no parameters"),
        ("still grew", "the rank still grew"),
        ("not finite", "a derivative is not finite"),
        ("discover_numerically", "no answer"),
    ):
        if part in message:
            return words
    return message.splitlines()[0]


def summary(rows: dict[str, dict]) -> dict:
    """Counts over all networks."""
    outcomes = Counter(row["outcome"] for row in rows.values())
    operations: Counter = Counter()
    for row in rows.values():
        operations.update(row["operations"])
    sizes = Counter(5 * (sum(r["operations"].values()) // 5) for r in rows.values())
    decided = [r for r in rows.values() if r["outcome"] in DECIDED]
    third = Counter(r["third"] for r in decided if "third" in r)
    return {
        "networks": len(rows),
        "decided": len(decided),
        "outcomes": dict(outcomes.most_common()),
        "operations_per_network": {f"{n}-{n + 4}": sizes[n] for n in sorted(sizes)},
        "operations": dict(operations.most_common()),
        "with_generators": sum(r.get("generators", 0) > 0 for r in decided),
        "largest_violation": max((r["violation"] for r in decided), default=0.0),
        "smallest_gap": min((r["gap"] for r in decided if r["gap"] < 1e200), default=0.0),
        "third_opinion": dict(third.most_common()),
        "seconds": sum(r["seconds"] for r in rows.values()),
    }  # fmt: skip


def main() -> None:
    """Go on where the last run stopped; print the table and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--third", type=int, default=20, help="every so many, a third opinion"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument(
        "--log", type=Path, default=Path("benchmark-results/networks.jsonl")
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    lines = options.log.read_text().splitlines() if options.log.exists() else []
    rows = {row["seed"]: row for row in map(json.loads, lines)}
    with options.log.open("a") as log:
        for seed in range(options.first, options.first + options.networks):
            if seed in rows:
                continue
            network = random_architecture(seed)
            row = {"seed": seed} | judged(network, seed % options.third == 0)
            row["operations"] = dict(network.operations)
            rows[seed] = row
            print(json.dumps(row), file=log, flush=True)
            if row["outcome"] in DECIDED[1:] or row.get("third") == "another group":
                print(f"seed {seed}: {row['outcome']}\n{network!r}", flush=True)
    report = summary(rows)
    for name, value in report.items():
        print(f"{name}: {value}")
    path = options.output / "random_architectures.json"
    path.write_text(json.dumps({"torch": torch.__version__} | report, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
