"""What the commands of the experiments have in common: options, a journal, and the JSON."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from quotientnet.runs import Journal


@dataclass(frozen=True)
class Experiment:
    """An experiment in two sizes.

    Attributes:
        name: Of its files.
        description: For ``--help``.
        make: ``make(journal, seeds=..., **size)``, which returns the facts for the JSON.
        show: Prints the facts.
        full: The options of the whole experiment.
        miniature: Those of a small one.
        seeds: How many seeds the two have.
    """

    name: str
    description: str
    make: Callable[..., dict]
    show: Callable[[dict], None]
    full: dict
    miniature: dict
    seeds: tuple[int, int]


def run(experiment: Experiment) -> None:
    """Carry out what is missing, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        description=experiment.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--full", action="store_true", help="the whole experiment")
    parser.add_argument(
        "--seeds", type=int, help="how many, in place of its own number"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = experiment.name if options.full else f"{experiment.name}_miniature"
    size = experiment.full if options.full else experiment.miniature
    seeds = options.seeds or experiment.seeds[not options.full]
    path = options.output / f"{name}.json"
    with Journal(path.with_suffix(".jsonl")) as journal:
        facts = experiment.make(journal, seeds=range(seeds), **size)
        journal.write_results(path, facts)
    experiment.show(facts)
    print(f"wrote {path}")
