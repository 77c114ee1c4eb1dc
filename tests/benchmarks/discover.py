"""Time and memory of ``discover`` on modules of ResNet-50's size, beyond those of the export."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import nn

import quotientnet as qn

LIMIT = 5.0
"""Seconds beyond the export, from the issue."""

WIDTHS = (32, 64, 96)
"""Channels of the first stage; ResNet-50 has 64."""


class Bottleneck(nn.Module):
    """Three convolutions and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        out = 4 * width
        self.first = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        )
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        )
        self.third = nn.Sequential(
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        )
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        """The block's output."""
        y = self.third(self.relu(self.second(self.relu(self.first(x)))))
        return self.relu(y + self.shortcut(x))


def make(width: int = 64, classes: int = 1000) -> nn.Module:
    """A network of 50 layers; 64 is ResNet-50."""
    layers = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    channels = width
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            own = width * 2**stage
            layers.append(Bottleneck(channels, own, 2 if block == 0 and stage else 1))
            channels = 4 * own
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


def measure(width: int, repeats: int) -> dict:
    """Seconds and peak memory of the export alone and of ``discover``, in this process."""
    torch.set_num_threads(1)
    model, inputs = make(width).train(), torch.randn(2, 3, 64, 64)
    exports, totals = [], []
    for _ in range(repeats):
        started = perf_counter()
        torch.export.export(model, (inputs,), strict=False)
        exports.append(perf_counter() - started)
    before = _peak()
    for _ in range(repeats):
        started = perf_counter()
        symmetry = qn.discover(model, inputs)
        totals.append(perf_counter() - started)
    started = perf_counter()
    coarse = symmetry.layer_scales
    layer_scales = perf_counter() - started
    assert not symmetry.unknown
    return {
        "width": width, "parameters": symmetry.group.layout.parameter_size,
        "channels": sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)),
        "generators": symmetry.group.dimension, "layer_scales": coarse.dimension,
        "export_seconds": median(exports), "discover_seconds": median(totals),
        "beyond_seconds": median(totals) - median(exports), "layer_scale_seconds": layer_scales,
        "extra_peak_mebibytes": _peak() - before,
        "parameter_mebibytes": 4 * symmetry.group.layout.parameter_size / 2**20,
    }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table and write ``discover.json``; each width in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--width", type=int, help="measure one width and print it as JSON"
    )
    options = parser.parse_args()
    if options.width:
        print(json.dumps(measure(options.width, options.repeats)))
        return
    rows = []
    for width in WIDTHS:
        command = [sys.executable, __file__, "--width", str(width)]
        command += ["--repeats", str(options.repeats)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        met = "met" if row["beyond_seconds"] <= LIMIT else "MISSED"
        print(
            f"width {width}: {row['parameters']:,} parameters, {row['channels']:,} normalised "
            f"channels, {row['generators']:,} generators; export {row['export_seconds']:.2f} s, "
            f"discover {row['beyond_seconds']:.2f} s beyond it (limit {LIMIT:.0f} s, {met}), layer "
            f"scales {row['layer_scale_seconds']:.2f} s; extra peak "
            f"{row['extra_peak_mebibytes']:.0f} MiB for {row['parameter_mebibytes']:.0f} of them",
            flush=True,
        )
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "discover.json"
    path.write_text(
        json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n"
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
