"""What ``discover`` makes of every operation of many networks, and whether it is right.

Members of families of transformers (if that library is there), our own networks and every layer of
``torch.nn``: the derived group, tried in full and compared with all that derivatives allow.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import torch

import quotientnet as qn
from quotientnet.symmetry.control import CONTROL
from quotientnet.symmetry.rules import reason_of

sys.path.insert(0, str(Path(__file__).parent.parent))
from architectures import ARCHITECTURES  # noqa: E402
from attention_networks import ATTENTION  # noqa: E402
from family_networks import FAMILY_BLOCKS  # noqa: E402
from recurrent_networks import RECURRENT  # noqa: E402
from torch_layers import LAYERS, NO_GRAPH  # noqa: E402

TAUGHT_NOTHING = "unknown operation"
"""A network of ours that is there to have one."""


def networks() -> Iterator[tuple[str, str, object]]:
    """Groups, names, and what builds a model and its inputs."""
    try:
        from families import FAMILIES, TIED, Member, Sizes
    except ImportError:
        print("without transformers")
    else:
        for family in FAMILIES:
            sizes = Sizes(layers=2) if family == "ViT" else Sizes()
            for attention in ("sdpa",) if "T5" in family else ("sdpa", "eager"):
                yield "transformers", f"{family}, {attention}", Member(
                    family, attention, sizes=sizes
                )
            if family in TIED:
                yield "transformers", f"{family}, tied", Member(family, tied=True)
    for table in (ARCHITECTURES, ATTENTION, FAMILY_BLOCKS, RECURRENT):
        for name, made in table.items():
            if name != TAUGHT_NOTHING:
                yield "our own", name, made
    for name, made in LAYERS.items():
        if name not in NO_GRAPH:
            yield "torch.nn", name, made


def examined(group: str, name: str, made, known: dict | None) -> dict:
    """The group of one network, its operations, and how it was verified, unless that is known."""
    model, inputs = made.build(), made.inputs()
    if group == "our own":
        model.eval()
    started = perf_counter()
    symmetry = qn.discover(model, inputs)
    seconds = perf_counter() - started
    operations: dict[str, list[str]] = {}
    for c in symmetry.coverage:
        operations.setdefault(c.operation, []).append(c.treatment)
    facts = json.dumps(symmetry.facts(), sort_keys=True).encode()
    row = {
        "group": group, "name": name, "parameters": symmetry.group.layout.parameter_size,
        "dimension": symmetry.group.dimension, "seconds": round(seconds, 2),
        "operations": operations, "digest": sha256(facts).hexdigest()[:12],
    }  # fmt: skip
    if known and known.get("digest") == row["digest"]:
        return known | {"operations": operations}
    if group == "transformers":
        from families import verifiable

        verifiable(model)
    sound = qn.verify_sound(model, symmetry, inputs, modes=["own"])
    complete = qn.verify_complete(model, symmetry, inputs)
    return row | {
        "sound": sound.holds, "violation": sound.violation, "complete": complete.holds,
        "missing": complete.missing, "extra": complete.extra, "jump": complete.jump,
    }  # fmt: skip


def summary(rows: list[dict]) -> list[dict]:
    """For every operation: how it was treated, why, and where it occurs."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        for name in row["operations"]:
            found.setdefault(name, []).append(row)
    return [
        {
            "operation": name,
            "treatments": sorted({t for row in where for t in row["operations"][name]}),
            "reason": CONTROL[name].__doc__ if name in CONTROL else reason_of(name),
            "networks": dict(Counter(row["group"] for row in where)),
        }
        for name, where in sorted(found.items())
    ]


def write(path: Path, rows: list[dict]) -> None:
    """One line a network and an operation."""
    facts = {
        "torch": torch.__version__,
        "transformers": getattr(sys.modules.get("transformers"), "__version__", None),
    }
    lines = [f'"{key}": {json.dumps(value)}' for key, value in facts.items()]
    for key, table in (("models", rows), ("operations", summary(rows))):
        entries = ",\n".join(json.dumps(entry) for entry in table)
        lines.append(f'"{key}": [\n{entries}\n]')
    path.write_text("{" + ",\n".join(lines) + "}\n")


def main() -> None:
    """Derive all groups, verify those that the file does not have, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--fresh", action="store_true", help="verify all of them again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path, known = options.output / "operations.json", {}
    if path.exists() and not options.fresh:
        known = {
            (row["group"], row["name"]): row
            for row in json.loads(path.read_text())["models"]
        }
    rows = []
    for group, name, made in networks():
        before = known.pop((group, name), None)
        rows.append(examined(group, name, made, before))
        if not before or before.get("digest") != rows[-1]["digest"]:
            _print(rows[-1])
            write(path, [*rows, *known.values()])
    write(path, rows)
    print(f"{len(rows)} networks; wrote {path}")


def _print(row: dict) -> None:
    verdict = "complete" if row["complete"] else f"{row['missing']} missing"
    print(
        f"{row['group']}: {row['name']}: dimension {row['dimension']}, changes by "
        f"{row['violation']:.0e}, {verdict}, {row['seconds']:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
