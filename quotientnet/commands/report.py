"""The report on one network after the other, printed and written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import torch

from quotientnet.commands.embedded import embedded
from quotientnet.commands.files import can_draw, require_folder, write_figure
from quotientnet.commands.own import own
from quotientnet.commands.refusal import Refusal
from quotientnet.commands.subject import Subject
from quotientnet.files import write_text
from quotientnet.processes import Processes
from quotientnet.sharpness import Report, report
from quotientnet.version import __version__

__all__ = ["run"]


def run(options, processes: Processes) -> None:
    """Report on the user's network, or on the embedded ones if none is given.

    Args:
        options: What was typed.
        processes: Those that share the data; the first one writes.

    Raises:
        Refusal: Something is wrong with an option.
    """
    first = processes.rank == 0
    processes.gather("--output", lambda: first and require_folder(options.output))
    started = perf_counter()
    if options.model is not None:
        reports, facts = _all(own(options, processes), options)
    elif processes.size > 1:
        raise Refusal(
            "the digits' networks are small, and need no several processes; pass --model and --data"
        )
    else:
        with _one_thread():
            reports, facts = _all(embedded(options), options)
    seconds = perf_counter() - started
    processes.gather(
        "--output", lambda: first and _write(options, reports, facts, seconds)
    )


@contextmanager
def _one_thread():
    """These matrices are small: a second thread costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _all(subjects: Iterable[Subject], options) -> tuple[dict[str, Report], dict]:
    """The reports and the facts of each network, printed as they come."""
    reports, facts = {}, {}
    for subject in subjects:
        print(
            _title(subject),
            str(subject.symmetry).split("\noperations")[0],
            "",
            sep="\n",
        )
        objective = subject.objective
        found = report(
            objective.at(objective.layout.flatten(objective.model)),
            subject.symmetry,
            points=subject.points,
            spread=options.spread,
            elements=subject.elements,
            measures=options.measures,
            seed=options.seed,
        )
        print(found, "", sep="\n", flush=True)
        reports[subject.name] = found
        facts[subject.name] = dict(subject.facts) | {
            "mode": "train" if subject.symmetry.training else "eval",
            "symmetry": json.loads(subject.symmetry.to_json()),
        }
    return reports, facts


def _title(subject: Subject) -> str:
    accuracies = [
        f"{key.split('_')[0]} accuracy {subject.facts[key]:.1%}"
        for key in ("train_accuracy", "test_accuracy")
        if key in subject.facts
    ]
    title = ": ".join([subject.name, *([", ".join(accuracies)] if accuracies else [])])
    return f"{title}\n{'=' * len(title)}"


def _write(options, reports: dict[str, Report], facts: dict, seconds: float) -> None:
    found = {
        "quotientnet": __version__, "torch": torch.__version__, "seed": options.seed,
        "dtype": options.dtype, "device": options.device, "seconds": seconds,
        "networks": {
            name: facts[name] | {"report": json.loads(r.to_json())} for name, r in reports.items()
        },
    }  # fmt: skip
    folder: Path = options.output
    write_text(folder / "report.json", json.dumps(found, indent=2, ensure_ascii=False))
    if can_draw():
        from quotientnet.plot import plot_changes

        write_figure(folder / "report.png", plot_changes(reports))
    drawn = " and report.png" if can_draw() else "; a figure needs matplotlib"
    print(f"{seconds:.0f} s; wrote {folder}/report.json{drawn}")
