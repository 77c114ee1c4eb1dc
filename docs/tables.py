"""The benchmark page's tables, from the JSON that the benchmarks wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent

MOST = 3
"""Columns of a table that a small screen stacks; others scroll, for they need their heads."""


def write() -> None:
    """Write the tables of ``benchmarks.rst`` into ``_generated``."""
    target = FOLDER / "_generated"
    target.mkdir(exist_ok=True)
    for name in ("geometry", "oblique", "balance", "products", "traces", "sgds_steps"):
        (target / f"{name}.rst").write_text(_ratios(name))
    (target / "orbit_curvature.rst").write_text(_orbit_curvature())
    (target / "spectrum.rst").write_text(_spectrum())
    (target / "large.rst").write_text(_large())
    (target / "convex_measures.rst").write_text(_convex_measures())
    (target / "exact_trace.rst").write_text(_exact_trace())
    (target / "ascents.rst").write_text(_ascents())
    (target / "trajectories.rst").write_text(_trajectories())
    (target / "sgds_tables.rst").write_text(_sgds_tables())

    (target / "random_architectures.rst").write_text(_random_architectures())
    (target / "invariance.rst").write_text(_invariance())
    (target / "faults.rst").write_text(_faults())
    (target / "operations.rst").write_text(_operations())
    (target / "families.rst").write_text(_families())
    (target / "laws.rst").write_text(_laws())
    (target / "regimes.rst").write_text(_regimes())
    (target / "precision.rst").write_text(_precision())
    (target / "geoopt_manifolds.rst").write_text(_geoopt_manifolds())
    (target / "small_distances.rst").write_text(_small_distances())
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
    (target / "rangamani.rst").write_text(table(rows))
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
    (target / "discover.rst").write_text(table(rows))
    (target / "discover_sizes.rst").write_text(_discover_sizes())
    (target / "scaling.rst").write_text(_scaling())


def _scaling() -> str:
    """The exponents with their intervals, and the costs at the largest size."""
    facts = json.loads((FOLDER / "results/scaling.json").read_text())
    largest = {row["family"]: row for row in facts["rows"]}
    rows = [[
        "Networks", "Operation", "Exponent of time", "Of memory", "Seconds at the largest",
        "MiB at the largest",
    ]]  # fmt: skip
    for r in facts["exponents"]:
        cost = largest[r["family"]]["costs"][r["task"]]
        fits = (_exponent(r[key]) for key in ("seconds", "mebibytes"))
        numbers = f"{cost['seconds']:.3f}", f"{cost['mebibytes']:.0f}"
        rows.append([r["family"], r["task"], *fits, *numbers])
    sizes = ", ".join(f"{f}: {r['parameters']:,}" for f, r in largest.items())
    return (
        f"{table(rows)}\nLargest sizes {sizes}; torch {facts['versions'][0]['torch']}, one thread "
        "of the processor, which others used, too.\n"
    )


def _exponent(fit: dict) -> str:
    if fit["value"] is None:
        return f"× {fit['growth']:.0f} for × {fit['span']:.0f}"
    return f"{fit['value']:.2f} ± {fit['half_width']:.2f}, {fit['verdict']}"


def _discover_sizes() -> str:
    facts = json.loads((FOLDER / "results/discover_sizes.json").read_text())
    rows = [[
        "Network", "Parameters", "Operations", "Generators", "Export, s", "Walk and solution, s",
        "Ratio", "All beyond the export, s", "Extra peak, MiB", "Parameters, MiB",
    ]]  # fmt: skip
    for r in facts["rows"]:
        counts = (r["parameters"], r["operations"], r["generators"])
        seconds = (
            r["export_seconds"],
            r["derived_seconds"],
            r["ratio"],
            r["beyond_seconds"],
        )
        memory = (r["extra_peak_mebibytes"], r["parameter_mebibytes"])
        rows.append([
            r["network"], *(f"{n:,}" for n in counts), *(f"{s:.2f}" for s in seconds),
            *(f"{m:.0f}" for m in memory),
        ])  # fmt: skip
    return (
        f"{table(rows)}\ntorch {facts['torch']}, one thread of {facts['cores']} shared cores, "
        "seconds of the processor.\n"
    )


def _random_architectures() -> str:
    """How many networks, and what the oracles said."""
    facts = json.loads((FOLDER / "results/random_architectures.json").read_text())
    third = facts["third_opinion"]
    rows = [["Outcome", "Networks"]]
    rows += [[name, str(count)] for name, count in facts["outcomes"].items()]
    rows += [
        ["all", str(facts["networks"])],
        ["with a generator, of those decided", str(facts["with_generators"])],
        *([f"by ``discover_numerically``: {k}", str(n)] for k, n in third.items()),
        ["kinds of operations", str(len(facts["operations"]))],
    ]
    sizes = facts["operations_per_network"].items()
    rows += [[f"of {size} operations", str(count)] for size, count in sizes]
    return table(rows)


def _faults() -> str:
    """Malformed inputs by part of the package."""
    rows = [["", "Malformed inputs", "Not answered before", "Not answered now"]]
    for r in json.loads((FOLDER / "results/faults.json").read_text())["rows"]:
        rows.append([r["room"], f"{r['tried']:,}", str(r["mended"]), str(r["left"])])
    return table(rows)


def _ratios(name: str) -> str:
    """The table of a benchmark of ratios."""
    facts = json.loads((FOLDER / f"results/{name}.json").read_text())
    rows = [["Operation", "Ratio", "Target", "Milliseconds"]]
    more = {"operations": "Multiply-adds", "mebibytes": "Extra peak, MiB"}
    more = {
        key: title
        for key, title in more.items()
        if any(m.get(key) is not None for m in facts["measurements"])
    }
    rows[0] += more.values()
    for m in facts["measurements"]:
        numbers = [m["ratio"], m["target"], *(m.get(key) for key in more)]
        ratio, target, *rest = ("" if x is None else f"{x:.2f}" for x in numbers)
        rows.append([m["task"], ratio, target, f"{m['milliseconds']:.1f}", *rest])
    return (
        f"{table(rows)}\ntorch {facts['torch']}, threads: {facts['threads']}, "
        f"{facts['gpu'] or 'no GPU'}, peak memory {facts['peak_mebibytes']} MiB.\n"
    )


def _spectrum() -> str:
    facts = json.loads((FOLDER / "results/spectrum.json").read_text())
    rows = [[
        "Operator", "Eigenvalue", "Tolerance", "Power method", "Lanczos", "Ratio", "Least ratio",
        "Target",
    ]]  # fmt: skip
    for r in facts["rows"]:
        rows.append([
            r["operator"], r["which"], f"{r['tolerance']:g}", f"{r['power']:.0f}",
            f"{r['lanczos']:.1f}", f"{r['ratio']:.1f}", f"{r['least_ratio']:.1f}",
            f"{r['target']:g}",
        ])  # fmt: skip
    ten = facts["top_ten"]
    return (
        f"{table(rows)}\nTen largest eigenvalues of a Hessian of {ten['parameters']} parameters: "
        f"{ten['products']} products, largest relative error {ten['error']:.0e} against a dense "
        "eigensolver.\n"
    )


def _large() -> str:
    facts = json.loads((FOLDER / "results/large.json").read_text())
    rows = [["Task", "Seconds", "Peak so far, GiB", "Products"]]
    for r in facts["rows"]:
        numbers = f"{r['seconds']:.1f}", f"{r['peak_gibibytes']:.2f}"
        rows.append([r["task"], *numbers, str(r.get("products", ""))])
    return (
        f"{table(rows)}\n{facts['parameters']:,} parameters, {facts['batches']} batches of "
        f"{facts['size']}, {facts['threads']} threads.\n"
    )


def _convex_measures() -> str:
    facts = json.loads((FOLDER / "results/convex_measures.json").read_text())
    rows = [
        [
            "Problem",
            "Value",
            "Difference",
            "Milliseconds",
            "SGD, s",
            "Ratio",
            "SGD's gap",
        ]
    ]
    for r in facts["rows"]:
        rows.append([
            r["problem"], f"{r['value']:.6g}", f"{r['difference']:.0e}", f"{r['milliseconds']:.1f}",
            f"{r['descent_seconds']:.1f}", f"{r['ratio']:.0f}", f"{r['descent_gap']:.0e}",
        ])  # fmt: skip
    return f"{table(rows)}\n{facts['threads']} thread.\n"


def _exact_trace() -> str:
    facts = json.loads((FOLDER / "results/exact_trace.json").read_text())
    rows = [["Network", "Parameters", "Exact trace, s", "Naive, scaled up, s", "Ratio", "Target",
             "Entries differ by"]]  # fmt: skip
    for r in facts["rows"]:
        rows.append([
            r["network"], f"{r['parameters']:,}", f"{r['seconds']:.3f}",
            f"{r['naive_seconds']:.0f}", f"{r['ratio']:.0f}", str(r["target"]),
            f"{r['difference']:.0e}",
        ])  # fmt: skip
    return f"{table(rows)}\n{facts['threads']} thread.\n"


def _ascents() -> str:
    facts = json.loads((FOLDER / "results/ascents.json").read_text())
    rows = [["p", "δ", "BN-sharpness", "Best of restarts", "Relative gap", "Restarts within 1 %",
             "Monotone"]]  # fmt: skip
    for r in facts["restarts"]:
        rows.append([
            f"{r['p']:g}", f"{r['delta']:g}", f"{r['value']:.6g}", f"{r['best']:.6g}",
            f"{r['gap']:.0e}", f"{r['share']:.0%} of {r['restarts']:,}",
            "yes" if r["monotone"] else "no",
        ])  # fmt: skip
    known = [["Known optimum", "Method", "Relative error"]]
    known += [[r["problem"], r["method"], f"{r['error']:.0e}"] for r in facts["known"]]
    return f"{table(rows)}\n{table(known)}"


def _trajectories() -> str:
    """Learning rates, losses, steps to Adam's loss, differences of curves, and times."""
    facts = json.loads((FOLDER / "results/trajectories.json").read_text())
    rows = [[
        "Optimizer", "Learning rate", "Loss after N", "Steps to Adam's loss, N",
        "Difference of curves", "Time of a step",
    ]]  # fmt: skip
    ratios = {t["optimizer"]: t["ratio"] for t in facts["times"]}
    pairs = zip(facts["tuned"], facts["curves"])
    for tuned, curve in sorted(pairs, key=lambda pair: "," in pair[0]["optimizer"]):
        multiple, ratio = tuned["multiple"], ratios[tuned["optimizer"]]
        rows.append([
            tuned["optimizer"], f"{tuned['rate']:g}", f"{tuned['loss']:.2g}",
            f"{multiple:g}" if multiple else "more than 3", f"{curve['difference']:.0e}",
            f"{ratio:.2f}",
        ])  # fmt: skip
    return table(rows)


def _sgds_tables() -> str:
    """One table a batch size; bold where the interval of the difference to SGD leaves out 0."""
    facts = json.loads((FOLDER / "results/sgds_tables.json").read_text())
    heads = [
        "Decay", "Algorithm", "Learning rate", "Gradients a step", "Test accuracy, %",
        "Difference to SGD", "Training loss", "BN-sharpness", "Normalised sharpness",
    ]  # fmt: skip
    tables = []
    for batch, epochs in facts["epochs"].items():
        rows = [heads]
        for r in facts["rows"]:
            if r["batch"] != int(batch):
                continue
            change, width = (100 * x for x in r["test_accuracy_difference"])
            rows.append([
                f"{r['decay']:g}", r["algorithm"], f"{r['rate']:g}", str(r["gradients"]),
                _interval(r, "test_accuracy", 100, 2),
                "" if r["algorithm"] == "SGD" else f"{change:+.2f} ± {width:.2f}",
                _interval(r, "train_loss", 1, 4), _interval(r, "bn_sharpness", 1, 3),
                _interval(r, "normalised_sharpness", 1, 1),
            ])  # fmt: skip
        tables.append(f"Batches of {batch}, {epochs} epochs:\n\n{table(rows)}")
    stopped = sum(r["stopped"] for r in facts["rows"])
    return "\n".join(tables) + (
        f"\nMeans over {facts['seeds']} seeds with 95 % intervals; bold: the interval of the "
        f"paired difference to SGD leaves out 0. Runs that stopped at a NaN: {stopped}.\n"
    )


def _interval(r: dict, key: str, unit: float, places: int) -> str:
    value, width = (unit * x for x in r[key])
    change, around = r[f"{key}_difference"]
    cell = f"{value:.{places}f} ± {width:.{places}f}"
    return f"**{cell}**" if abs(change) > around > 0 else cell


def _invariance() -> str:
    """The matrix: the verdict and the size of the change; reasons for what does not apply below."""
    facts = json.loads((FOLDER / "results/invariance.json").read_text())
    rows, reasons = [["Measure", *facts["keys"]]], {}
    for name, cells in zip(facts["measures"], facts["cells"]):
        rows.append([name, *map(_verdict, cells)])
        for column, cell in zip(facts["keys"], cells):
            if cell["reason"]:
                reasons.setdefault(_sentence(cell["reason"]), []).append(
                    f"{name} ({column})"
                )
    keys = "; ".join(f"``{k}`` {n}" for k, n in zip(facts["keys"], facts["trials"]))
    why = "".join(
        f"* {'; '.join(names)}: {reason}\n" for reason, names in reasons.items()
    )
    drift = facts["drifts"][facts["trials"].index(_APPROXIMATE)]
    return (
        f"{table(rows)}\n✓ unchanged, ✗ moved, each with the largest relative change over "
        f"{facts['elements']} random elements; ≈ the symmetry itself is approximate: the loss "
        f"moves by {drift:.0e}; — does not apply.\n\nColumns: {keys}.\n\nWhat does not apply, and "
        f"why:\n\n{why}"
    )


_APPROXIMATE = "filter scales, train mode, eps = 1e-05"


def _verdict(cell: dict) -> str:
    if cell["reason"]:
        return "—"
    sign = {True: "✓", False: "✗", None: "≈"}[cell["invariant"]]
    if cell["change"] == 0:
        return f"{sign}\u00a00"
    size = "∞" if cell["change"] is None else f"{cell['change']:.0e}"
    size = size.replace("e+0", "e").replace("e-0", "e-").replace("e0", "")
    return f"{sign}\u00a0{size}".replace("-", "\u2011")  # in one piece


def _sentence(reason: str) -> str:
    """What a refusal says before it names numbers and remedies."""
    return reason.split(": along generator")[0].split("; ")[0]


def _laws() -> str:
    """Every law of the kit with its statement and its tolerances."""
    from quotientnet import testing

    kinds = {
        "manifolds": testing.RIEMANNIAN_LAWS,
        "quotients": testing.MANIFOLD_LAWS,
        "groups": testing.GROUP_LAWS,
        "Hessians on quotients": testing.HESSIAN_LAWS,
        "derivatives": testing.DERIVATIVE_LAWS,
        "operators": testing.OPERATOR_LAWS,
    }
    rows, seen = [["Law", "Of", "Statement", "float64", "float32"]], set()
    for kind, laws in kinds.items():
        for name, law in laws.items():
            if name in seen:
                continue
            seen.add(name)
            bounds = [f"{bound:.0e}" for bound in law.tolerances.values()]
            statement = " ".join(law.measure.__doc__.split("\n\n")[0].split())
            rows.append([f"``{name}``", kind, statement, *(bounds + ["—"])[:2]])
    return f"{table(rows, '30 13 37 10 10')}\n{len(seen)} laws.\n"


def _regimes() -> str:
    """The kinds of points that laws are measured on."""
    from quotientnet.testing import REGIMES

    return table([["Regime", "What"], *([f"``{k}``", v] for k, v in REGIMES.items())])


def _precision() -> str:
    """The bounds of single precision, and the quantity that uses most of each."""
    from quotientnet.testing import BOUNDS

    facts = json.loads((FOLDER / "results/precision.json").read_text())
    rows = [[
        "Quantity", "Bound, eps √n", "Relative to", "Besides", "Measured", "Bound there", "Of",
    ]]  # fmt: skip
    for r in facts["rows"]:
        bound = BOUNDS[r["kind"]]
        rows.append([
            r["kind"], f"{bound.units:g}", bound.relative_to, bound.plus or "—",
            f"{r['difference']:.0e}", f"{r['bound']:.0e}",
            f"{r['name']}, {r['network']}; worst of {r['quantities']}",
        ])  # fmt: skip
    return f"{table(rows)}\ntorch {facts['torch']}, {len(facts['networks'])} networks.\n"


def _geoopt_manifolds() -> str:
    """What fails, of each manifold, and by how much."""
    facts = json.loads((FOLDER / "results/geoopt_manifolds.json").read_text())
    rows = [["Manifold", "Points", "Laws", "Violated", "By", "At"]]
    for r in facts["rows"]:
        shape = " × ".join(map(str, r["shape"]))
        head = [f"``{r['manifold']}``", shape, str(r["measured"])]
        if not r["failed"]:
            rows.append([*head, "none", "", ""])
        for f in r["failed"]:
            rows.append([*head, f"``{f['law']}``", _violation(f), _where(f)])
            head = ["", "", ""]
    return (
        f"{table(rows, '20 10 8 30 17 15')}\ngeoopt {facts['geoopt']}, "
        f"torch {facts['torch']}, profile "
        f"``{facts['profile']}``.\n"
    )


def _violation(f: dict) -> str:
    if f["order"] is not None:
        return f"order {f['order']:.2f}"
    if f["reason"]:
        return f["reason"].split(", which")[0]
    return "∞" if f["violation"] == "inf" else f"{f['violation']:.1e}"


def _where(f: dict) -> str:
    where = f"length {f['length']:.1e}"
    if f["antipodal"] is not None:
        where = f"{f['antipodal']:g} from the antipode"
    return f"{f['dtype']}, {where}"


def _small_distances() -> str:
    facts = json.loads((FOLDER / "results/geoopt_manifolds.json").read_text())
    rows = [["Apart", "``Sphere.dist`` in float32", "in float64"]]
    found = facts["small_distances"]
    for apart in sorted({r["apart"] for r in found}, reverse=True):
        values = {r["dtype"]: r["dist"] for r in found if r["apart"] == apart}
        rows.append(
            [f"{apart:.0e}", *(f"{values[d]:.4g}" for d in ("float32", "float64"))]
        )
    return table(rows)


def _orbit_curvature() -> str:
    facts = json.loads((FOLDER / "results/orbit_curvature.json").read_text())
    rows = [[
        "Network", "Parameters", "Generators", "Trace", "λmax", "Euclidean trace", "Euclidean λmax",
    ]]  # fmt: skip
    for r in facts["rows"]:
        rows.append([
            r["network"], str(r["parameters"]), str(r["generators"]),
            f"±{r['trace_moved']:.0e}", f"±{r['norm_moved']:.0e}",
            f"×{r['euclidean_trace']:.0e}", f"×{r['euclidean_norm']:.0e}",
        ])  # fmt: skip
    return (
        f"{table(rows)}\nLargest changes over {facts['points']} random points of one orbit, "
        f"with scales over {facts['decades']:g} orders of magnitude.\n"
    )


def _operations() -> str:
    """Every operation that occurs: those with one treatment and reason side by side."""
    facts = json.loads((FOLDER / "results/operations.json").read_text())
    alike: dict[tuple[str, str], list[dict]] = {}
    for row in facts["operations"]:
        kind = next(k for k in (*_TREATMENTS, "unknown") if k in row["treatments"])
        reason = "" if kind == "constant" else row["reason"]
        alike.setdefault((kind, reason), []).append(row)
    rows = [["Operations", "Treatment", "What the rule does, or why it pins"]]
    for kind, title in _TREATMENTS.items():
        for (own, reason), operations in sorted(alike.items()):
            if own == kind:
                names = ", ".join(f"``{row['operation']}``" for row in operations)
                rows.append([names, title, reason or _HANDLES_CONSTANTS])
    return f"{table(rows, '40 15 45')}\n{len(facts['operations'])} operations.\n"


_TREATMENTS = {"rule": "rule", "pins": "pins", "constant": "constants"}
"""The order of the table; an operation that is treated in several ways is with the first."""

_HANDLES_CONSTANTS = "Handles nothing but constants there: masks, positions, shapes."


def _families() -> str:
    facts = json.loads((FOLDER / "results/operations.json").read_text())
    rows = [
        [
            "Network",
            "Parameters",
            "Generators",
            "Outputs change by",
            "Complete",
            "Seconds",
        ]
    ]
    rest: dict[str, list[dict]] = {}
    for r in facts["models"]:
        if r["group"] != "transformers":
            rest.setdefault(r["group"], []).append(r)
            continue
        rows.append([
            r["name"], f"{r['parameters']:,}", str(r["dimension"]), f"{r['violation']:.0e}",
            _completeness([r]), f"{r['seconds']:.1f}",
        ])  # fmt: skip
    for group, own in rest.items():
        sizes = [r["parameters"] for r in own]
        rows.append([
            f"{len(own)} of {group}", f"{min(sizes):,} to {max(sizes):,}",
            f"up to {max(r['dimension'] for r in own)}",
            f"{max(r['violation'] for r in own):.0e}", _completeness(own),
            f"{max(r['seconds'] for r in own):.1f} at most",
        ])  # fmt: skip
    return f"{table(rows)}\ntransformers {facts['transformers']}, torch {facts['torch']}.\n"


def _completeness(rows: list[dict]) -> str:
    others = [f"``{r['name']}``" for r in rows if not r["complete"]]
    return f"all but {', '.join(others)}" if others else "yes"


def table(rows: list[list[str]], widths: str = "auto") -> str:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}"]
    if len(rows[0]) > MOST:
        lines += ["   :class: numbers"]
    lines += [""]
    for row in rows:
        whole = (re.sub(r"(?<=\de)-(?=\d)", "\u2011", cell) for cell in row)
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(whole)]
    return "\n".join(lines) + "\n"
