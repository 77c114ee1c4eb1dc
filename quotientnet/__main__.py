"""``python -m quotientnet``: every measure of a network at equivalent points, which compute the
same function. Which numbers move?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from quotientnet.commands.launched import launched
from quotientnet.commands.refusal import Refusal
from quotientnet.commands.report import run
from quotientnet.sharpness.catalogue import as_measures

_DESCRIPTION = """\
Measure a network at equivalent points, which compute the same function: which numbers move, and
which do not. Without --model, train three small networks on handwritten digits and report on them.
"""

_EXAMPLE = """\
example: a file mine.py in the current directory has the functions model(), which returns a
torch.nn.Module, and batches(), which returns (inputs, targets), a list of such batches or a
DataLoader; a batch may be a dict of keyword arguments with the targets under 'labels', or under
--target-key:
  python -m quotientnet report --model mine:model --data mine:batches --checkpoint weights.pt
with several processes each calls batches(), which returns its own part of the data:
  torchrun --nproc-per-node 2 -m quotientnet report --model mine:model --data mine:batches
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 for what was refused."""
    options = _parser().parse_args(arguments)
    with launched(options) as processes:
        try:
            processes.gather("the options", lambda: _require_usable(options))
            run(options, processes)
        except (ValueError, TypeError) as error:
            if options.model is None and not isinstance(error, Refusal):
                raise
            place = "" if isinstance(error, Refusal) else f"{options.model}: "
            print(f"{place}{error}", file=sys.stderr)
            return 2
    return 0


def _require_usable(options) -> None:
    """Refuse what is wrong with the options, before any work is done."""
    try:
        float(torch.zeros(1, device=torch.device(options.device)))
    except (RuntimeError, AssertionError) as error:
        raise Refusal(
            f"--device {options.device}: {str(error).splitlines()[0]}"
        ) from error
    if not 0 <= options.seed < 2**62:
        raise Refusal(f"--seed {options.seed}: must be between 0 and 2**62")
    if not (options.points >= 1 and 0 < options.spread <= 10):
        raise Refusal(
            f"--points {options.points} --spread {options.spread:g}: needs at least one point and "
            "a spread above 0 and up to 10"
        )
    if options.measures is not None:
        try:
            as_measures(options.measures)
        except ValueError as error:
            raise Refusal(
                f"--measures: {str(error).removeprefix('report: ')}"
            ) from error
    for name in ("data", "checkpoint"):
        if options.model is None and getattr(options, name) is not None:
            raise Refusal(f"--{name} needs --model package.module:function")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m quotientnet",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("command", nargs="?", choices=["report"], default="report", help="the default")
    own = parser.add_argument_group("your own network")
    own.add_argument("--model", metavar="PLACE", help="package.module:function")
    own.add_argument(
        "--data", metavar="PLACE",
        help="package.module:function; in dict batches the targets are under --target-key",
    )  # fmt: skip
    own.add_argument(
        "--target-key", default="labels", metavar="KEY", help="(%(default)s)"
    )
    own.add_argument(
        "--loss",
        default="CrossEntropyLoss",
        help="a name in torch.nn or a PLACE (%(default)s)",
    )
    own.add_argument(
        "--checkpoint", type=Path, metavar="FILE",
        help="a state dict: .safetensors, or of torch.save; code in it is refused",
    )  # fmt: skip
    own.add_argument(
        "--points", type=int, default=2, help="equivalent points (%(default)s)"
    )
    add(
        "--measures", nargs="+", metavar="LABEL",
        help="some rows of the report by their labels (all)",
    )  # fmt: skip
    add(
        "--mode",
        choices=["train", "eval"],
        help="of the model (eval)",
    )
    add("--spread", type=float, default=1.0, help="of random log-scales (%(default)s)")
    add("--seed", type=int, default=0, help="of all that is random (%(default)s)")
    add(
        "--dtype",
        choices=["float32", "float64"],
        default="float64",
        help="(%(default)s)",
    )
    add(
        "--device",
        default="cpu",
        help="torch device, such as cpu or cuda (%(default)s)",
    )
    add(
        "--output", type=Path, default=Path("quotientnet-report"),
        help="folder for the results (%(default)s)",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
