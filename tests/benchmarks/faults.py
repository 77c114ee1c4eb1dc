"""Malformed arguments and damaged files: how many were tried, and which are not answered.

Every argument of every call in ``tests/hostile.py`` is replaced by every value of
``tests/malformed.py``; every byte of a checkpoint and of a journal has a bit flipped, and every
length is cut off. Writes ``docs/results/faults.json``:

    python tests/benchmarks/faults.py --before 1e8fc1f

With ``--before`` the same inputs are given to the library of an earlier commit as well: what was
wrong then, and is answered now, has been found and mended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections import Counter
from io import BytesIO
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TARGET = ROOT / "docs/results/faults.json"
sys.path.insert(0, str(HERE.parent))


def of_calls(seconds: int) -> list[tuple[str, str, str | None]]:
    """The part of the package, the input in words, and what is wrong with its answer."""
    from answers import CALLS, chosen, fault

    return [
        (CALLS[label].room, f"{label}({name}={kind})", fault(label, name, other, seconds))
        for label in CALLS
        for name, kind, other in chosen(label, None)
    ]


def of_checkpoints(folder: Path) -> list[tuple[str, str, str | None]]:
    """The same of damaged checkpoints."""
    from test_files import network, same

    from quotientnet.commands.loading import load_state
    from quotientnet.commands.refusal import Refusal

    found, path, state = [], folder / "weights.pt", network().state_dict()
    for zipped in (True, False):
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        data = path.read_bytes()
        for name, other in damaged(data):
            path.write_bytes(other)
            what = None
            try:
                if zipped and not same(load_state(path), state):
                    what = "other values without a word"
                if not zipped:  # which has no checksums
                    load_state(path)
            except Refusal:
                pass
            except Exception as error:
                what = f"undocumented: {type(error).__name__}"
            found.append(("checkpoints", f"{'zip' if zipped else 'pickle'}, {name}", what))
    return found


def of_journals(folder: Path) -> list[tuple[str, str, str | None]]:
    """The same of damaged journals."""
    from test_files import squares

    found, path = [], folder / "runs.jsonl"
    squares(path, range(3))
    for name, other in damaged(path.read_bytes()):
        path.write_bytes(other)
        what = None
        try:
            if squares(path, range(3)) != {0: 0, 1: 1, 2: 4}:
                what = "other values without a word"
        except ValueError as error:
            what = None if "is no run" in str(error) else f"undocumented: {error!r}"
        except Exception as error:
            what = f"undocumented: {type(error).__name__}"
        found.append(("journals", name, what))
    return found


def damaged(data: bytes):
    """Labels and contents: a bit flipped in each byte, and each length."""
    for place in range(len(data)):
        other = bytearray(data)
        other[place] ^= 1 << place % 8
        yield f"a bit of byte {place} flipped", bytes(other)
        yield f"cut at byte {place}", data[:place]


def measure(seconds: int) -> list[tuple[str, str, str | None]]:
    """All of them, with the library that is imported."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = of_checkpoints(Path(folder)) + of_journals(Path(folder))
        return of_calls(seconds) + files


def measure_before(commit: str, seconds: int) -> list:
    """The same with the library of an earlier commit, in a process of its own."""
    archive = subprocess.run(
        ["git", "archive", commit, "quotientnet"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        tarfile.open(fileobj=BytesIO(archive)).extractall(folder, filter="data")
        options = ["--only", "--seconds", str(seconds)]
        found = subprocess.run(
            [sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": folder},
        ).stdout  # fmt: skip
    return json.loads(found.splitlines()[-1])


def table(now: list, before: list | None) -> list[dict]:
    """A row for each part of the package."""
    tried = Counter(room for room, _, _ in now)
    left = Counter(room for room, _, what in now if what)
    rows = [{"room": room, "tried": tried[room], "left": left[room]} for room in sorted(tried)]
    if before is not None:
        answered = {(room, name) for room, name, what in now if not what}
        mended = Counter(room for room, name, what in before if what and (room, name) in answered)
        for row in rows:
            row["mended"] = mended[row["room"]]
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", help="an earlier commit to compare with")
    parser.add_argument("--seconds", type=int, default=120, help="for one call, before it hangs")
    parser.add_argument("--only", action="store_true", help="print what is found, and no more")
    options = parser.parse_args()
    now = measure(options.seconds)
    if options.only:
        print(json.dumps(now))
        return
    before = measure_before(options.before, options.seconds) if options.before else None
    facts = {
        "torch": torch.__version__, "before": options.before, "rows": table(now, before),
        "left": [f"{name}: {what}" for _, name, what in now if what],
    }  # fmt: skip
    print(json.dumps(facts, indent=1))
    TARGET.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
