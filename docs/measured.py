"""Numbers of kept results that the text quotes, as substitutions."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def substitutions() -> dict[str, str]:
    """What stands for ``|name|`` in the pages."""
    return {
        **_resnet(),
        **_canonical(),
        **_large(),
        **_random(),
        **_faults(),
        **_sgds_tables(),
        **_sgds_memory(),
    }


def as_rst() -> str:
    """Definitions for the end of every page."""
    pairs = substitutions().items()
    return "\n".join(f".. |{name}| replace:: {text}" for name, text in pairs)


def _read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _resnet() -> dict[str, str]:
    row = next(r for r in _read("discover")["rows"] if r["width"] == 64)
    return {
        "ResNet-50's parameters": f"{row['parameters']:,}",
        "ResNet-50's filters": f"{row['channels']:,}",
    }


def _canonical() -> dict[str, str]:
    rows = {m["task"]: m["ratio"] for m in _read("balance")["measurements"]}
    both = sorted(r for task, r in rows.items() if task.startswith("canonical form"))
    return {"gradients of a canonical form": f"{both[0]:.0f} to {both[-1]:.0f}"}


def _large() -> dict[str, str]:
    facts = _read("large")
    peak = max(r["peak_gibibytes"] for r in facts["rows"])
    millions = facts["parameters"] / 1e6
    return {
        "parameters of the large network": f"{millions:.0f} million",
        "memory of the large network": f"{peak:.1f} GiB",
    }


def _random() -> dict[str, str]:
    facts = _read("random_architectures")
    return {
        "random architectures": f"{facts['networks']:,}",
        "incomplete architectures": str(facts["outcomes"].get("not complete", 0)),
    }


def _faults() -> dict[str, str]:
    rows = _read("faults")["rows"]
    return {
        "malformed inputs": f"{sum(r['tried'] for r in rows):,}",
        "mended faults": f"{sum(r['mended'] for r in rows):,}",
        "unanswered inputs": f"{sum(r['left'] for r in rows):,}",
    }


def _sgds_tables() -> dict[str, str]:
    """Changes against SGD in the same setting, in percent; of accuracies, in points."""
    rows = _read("sgds_tables")["rows"]
    plain = {(r["batch"], r["decay"]): r for r in rows if r["algorithm"] == "SGD"}

    def of(algorithm, batch=None):
        return [
            r
            for r in rows
            if r["algorithm"] == algorithm and batch in (None, r["batch"])
        ]

    def lower(key, found):
        falls = [
            100 * (1 - r[key][0] / plain[r["batch"], r["decay"]][key][0]) for r in found
        ]
        ends = f"{min(falls):.0f}", f"{max(falls):.0f}"
        return f"{ends[0]} %" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]} %"

    def higher(found):
        gains = (r["test_accuracy_difference"] for r in found)
        return sum(change > width for change, width in gains)

    strong = of("SGDS-0, λ = 0.1")
    widths = [
        100 * r["test_accuracy_difference"][1]
        for name in ("SGDS-0", "SGDS-5")
        for r in of(name, 512)
    ]
    return {
        "widest interval of SGDS": f"{max(widths):.1f} %",
        "fall of normalised sharpness": lower("normalised_sharpness", strong),
        "fall of BN-sharpness": lower(
            "bn_sharpness", [r for r in strong if r["batch"] == 512]
        ),
        "fall of BN-sharpness with SAM": lower("bn_sharpness", of("SAM", 512)),
        "fall of normalised sharpness with ASAM": lower(
            "normalised_sharpness", of("ASAM", 512)
        ),
        "settings with higher accuracy": f"{higher(strong)} of {len(strong)}",
        "compared accuracies": str(len(rows) - len(plain)),
    }


def _sgds_memory() -> dict[str, str]:
    """Peak memory over that of SGD with momentum on the same network."""
    used = {m["task"]: m["mebibytes"] for m in _read("sgds_steps")["measurements"]}

    def ratio(network, method):
        return used[f"{network}: {method}"] / used[f"{network}: SGD with momentum"]

    texts = {}
    for method in "SGDS-0", "SGDS-5":
        convolutions = max(ratio(n, method) for n in ("LeNet with BN", "ResNet-20"))
        texts[f"memory of {method} on convolutions"] = f"{convolutions:.2f}"
        texts[f"memory of {method} on a dense network"] = (
            f"{ratio('MLP with BN', method):.1f}"
        )
    return texts
