"""``python -m quotientnet``: train two networks, rescale them, and see which numbers move."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from quotientnet.digits import Digits, load_digits, make_network, train
from quotientnet.invariance import Row, format_table, measure_points
from quotientnet.objective import Objective
from quotientnet.progress import progress
from quotientnet.symmetry import Symmetry, discover
from quotientnet.version import __version__

NETWORKS = {"small batch (32)": (32, 60), "large batch (1437)": (1437, 300)}
"""Batch size and epochs of each network."""

TOLERANCES = {torch.float64: (1e-6, 1e-6), torch.float32: (2e-4, 1e-4)}
"""By dtype: the relative residual of eigenvalues, and the change that counts as none."""


def main(arguments: list[str] | None = None) -> int:
    """Run the main job; returns the exit status."""
    options = _parser().parse_args(arguments)
    dtype, started = getattr(torch, options.dtype), perf_counter()
    device, problem = _usable(options)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    digits = load_digits(options.seed, dtype, device)
    tables, networks, symmetry = {}, {}, None
    for name in NETWORKS:
        networks[name], found, tables[name] = _run(
            name, digits, options.seed, dtype, device
        )
        if symmetry is None:
            symmetry = found
            print(
                "The scalings that leave the network unchanged, derived from its graph:"
            )
            print(symmetry, "", sep="\n")
        print(
            _summary(name, networks[name]),
            format_table(tables[name], TOLERANCES[dtype][1]),
            "",
            sep="\n",
        )
    print(_LEGEND)
    report = {
        "quotientnet": __version__, "torch": torch.__version__, "seed": options.seed,
        "dtype": options.dtype, "device": str(device), "seconds": perf_counter() - started,
        "symmetry": json.loads(symmetry.to_json()),
        "networks": {n: networks[n] | {"points": [asdict(r) for r in tables[n]]} for n in tables},
    }  # fmt: skip
    _write(
        options.output / "report.json", json.dumps(report, indent=2, ensure_ascii=False)
    )
    _save_figure(options.output / "invariance.png", tables)
    print(
        f"\n{report['seconds']:.0f} s; wrote {options.output}/report.json and invariance.png"
    )
    return 0


def _usable(options) -> tuple[torch.device | None, str | None]:
    """The device, or what is wrong with the options, before any work is done."""
    try:
        device = torch.device(options.device)
        float(torch.zeros(1, device=device))
    except (RuntimeError, AssertionError) as error:
        return None, f"--device {options.device}: {str(error).splitlines()[0]}"
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        _write(options.output / ".probe", "")
        (options.output / ".probe").unlink()
    except OSError as error:
        return None, f"--output {options.output}: {error.strerror}"
    if not -(2**62) < options.seed < 2**62:
        return None, f"--seed {options.seed}: out of range"
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        return None, (
            f"this needs {', '.join(missing)}: pip install quotientnet[examples]"
        )
    return device, None


_NEEDS = ("sklearn", "matplotlib")

_LEGEND = """\
λ: largest eigenvalue of the Hessian, Euclidean or Riemannian on the named quotient.
=  the same as at w; ≠ moved. All rows of a table compute the same function.
Random unit scales are outside the layer-scale group: on its quotient they are another point."""


def _run(
    name: str, digits: Digits, seed: int, dtype, device
) -> tuple[dict, Symmetry, list[Row]]:
    """Train one network and measure it: its accuracies, its symmetry, the rows of its table."""
    batch_size, epochs = NETWORKS[name]
    network = make_network(seed, dtype, device)
    train(
        network, digits, batch_size=batch_size, epochs=epochs, seed=seed, progress=True
    )
    data = (digits.train_inputs, digits.train_targets)
    objective = Objective(network, nn.CrossEntropyLoss(), data)
    symmetry = discover(network, data[0][:8], layout=objective.layout)
    rows = measure_points(
        objective,
        objective.layout.flatten(network),
        symmetry,
        seed=seed,
        tolerance=TOLERANCES[dtype][0],
        wrap=lambda points: progress(points, "measuring"),
    )
    facts = {
        "batch_size": batch_size,
        "epochs": epochs,
        "train_accuracy": _accuracy(network, *data),
        "test_accuracy": _accuracy(network, digits.test_inputs, digits.test_targets),
    }
    return facts, symmetry, rows


@torch.no_grad()
def _accuracy(network, inputs, targets) -> float:
    return float((network(inputs).argmax(1) == targets).double().mean())


def _summary(name: str, facts: dict) -> str:
    train_accuracy, test_accuracy = facts["train_accuracy"], facts["test_accuracy"]
    return f"{name}: training accuracy {train_accuracy:.1%}, test accuracy {test_accuracy:.1%}"


def _save_figure(path: Path, tables) -> None:
    from quotientnet.plot import plot_invariance

    temporary = path.with_suffix(".tmp.png")
    plot_invariance(tables).savefig(temporary, dpi=150)
    os.replace(temporary, path)


def _write(path: Path, text: str) -> None:
    """Replace the file as a whole, so that an interrupted run leaves the previous one."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m quotientnet",
        description="Train a network on handwritten digits with a small and with a large batch, "
        "then measure each at equivalent points: which numbers move, and which do not.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    output = Path("quotientnet-report")
    parser.add_argument(
        "--output", type=Path, default=output, help="folder for the results"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of data split, start and vectors"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float64"), default="float64", help="precision"
    )
    parser.add_argument(
        "--device", default="cpu", help="torch device, such as cpu or cuda"
    )
    return parser


if __name__ == "__main__":
    # The matrices are small: a second thread costs more than it saves, above all on a busy machine.
    torch.set_num_threads(1)
    sys.exit(main())
