"""The benchmark page's tables, from the JSON that the benchmarks wrote."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent


def write() -> None:
    """Write the tables of ``benchmarks.rst`` into ``_generated``."""
    target = FOLDER / "_generated"
    target.mkdir(exist_ok=True)
    geometry = json.loads((FOLDER / "results/geometry.json").read_text())
    rows = [["Operation", "Ratio", "Target", "Milliseconds"]]
    for m in geometry["measurements"]:
        bound = f"{m['target']:.2f}" if m["target"] else ""
        rows.append([m["task"], f"{m['ratio']:.2f}", bound, f"{m['milliseconds']:.1f}"])
    facts = (
        f"torch {geometry['torch']}, {geometry['threads']} threads, "
        f"{geometry['gpu'] or 'no GPU'}, peak memory {geometry['peak_mebibytes']} MiB."
    )
    (target / "geometry.rst").write_text(_table(rows) + "\n" + facts + "\n")
    rows = [
        [
            "Network",
            "dtype",
            "λ",
            "λmax",
            "Relative difference",
            "Euclidean",
            "Products",
        ]
    ]
    for network in ("F1", "C1"):
        path = FOLDER / f"results/rangamani_tables_{network}.json"
        for r in json.loads(path.read_text())["rows"]:
            scales = ", ".join(f"{scale:.4g}" for scale in r["scales"])
            rows.append([
                network, r["dtype"][6:], f"({scales})", f"{r['value']:.8g}",
                f"{r['difference']:.1e}", f"{r['euclidean_difference']:.1e}", str(r["products"]),
            ])  # fmt: skip
    (target / "rangamani.rst").write_text(_table(rows))
    rows = [[
        "Parameters", "Generators", "Export, s", "Beyond it, s", "Layer scales, s",
        "Extra peak, MiB", "Parameters, MiB",
    ]]  # fmt: skip
    for r in json.loads((FOLDER / "results/discover.json").read_text())["rows"]:
        seconds = (r["export_seconds"], r["beyond_seconds"], r["layer_scale_seconds"])
        memory = (r["extra_peak_mebibytes"], r["parameter_mebibytes"])
        rows.append([
            f"{r['parameters']:,}", f"{r['generators']:,}", *(f"{s:.2f}" for s in seconds),
            *(f"{m:.0f}" for m in memory),
        ])  # fmt: skip
    (target / "discover.rst").write_text(_table(rows))


def _table(rows: list[list[str]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return "\n".join(lines) + "\n"
