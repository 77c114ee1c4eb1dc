"""A report as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import groupby
from textwrap import wrap

__all__ = ["WIDTH", "SYMBOLS", "as_text", "as_html", "matrix_as_text", "mark", "number"]

WIDTH = 100
"""Columns of a terminal that a report fits into."""

SYMBOLS = {
    "layer scales": "L", "unit scales": "U", "filter scales": "F", "output scale": "O",
    "output shift": "S",
}  # fmt: skip
"""A letter for each symmetry; Q for the group of a quotient."""

_LABEL, _VALUE, _SHOWN = 31, 11, 3


def as_text(report) -> str:
    """The report in a terminal, at most ``WIDTH`` columns wide."""
    lines = [*wrap(_heading(report), WIDTH), ""]
    heads = _heads(report)
    lines.append(_line("", heads, "change", "claims", "cost"))
    for paper, rows in groupby(report.rows, lambda row: row.paper):
        lines.append(f"{paper} ".ljust(WIDTH, "·"))
        for row in rows:
            lines += _row_lines(row, report)
    return "\n".join([*lines, "", *_legend(report)])


def mark(row) -> str:
    """``=`` for what stays, ``±`` for an estimate that stays within its error, ``≠`` moved."""
    if row.invariant is None:
        return " "
    if not row.invariant:
        return "≠"
    return "±" if row.kind == "sampled" and any(row.errors) else "="


def number(value: float | None) -> str:
    """Four significant digits in at most eleven characters."""
    if value is None:
        return "—"
    text = f"{value:.4g}"
    return text if len(text) <= _VALUE else f"{value:.2e}"


def _heading(report) -> str:
    return (
        f"{report.parameters:,} parameters, a group of {report.dimension} generators, "
        f"{report.dtype}; loss {number(report.losses[0])}, which moves by {report.drift:.0e} "
        f"relative over {len(report.points) - 1} equivalent points; one gradient "
        f"{1e3 * report.gradient_seconds:.3g} ms"
    )


def _heads(report) -> list[str]:
    """The columns: every point, or ``w`` and the range over all points if these are many."""
    if len(report.points) <= _SHOWN:
        return [f"at {point}" if point == "w" else point for point in report.points]
    return ["at w", "lowest", "highest"]


def _shown(row, report) -> list[str]:
    if len(report.points) <= _SHOWN:
        return [number(value) for value in row.values]
    return [number(v) for v in (row.values[0], min(row.values), max(row.values))]


def _line(
    label: str, values: Iterable[str], change: str, claims: str, cost: str
) -> str:
    numbers = "  ".join(value.rjust(_VALUE) for value in values)
    return f"  {label:<{_LABEL}}{numbers}  {change:>9}  {claims:<6}{cost:>7}".rstrip()


def _row_lines(row, report) -> list[str]:
    if row.reason is not None:
        start = f"  {row.label:<{_LABEL}}"
        return wrap(
            f"— {row.reason}", WIDTH, initial_indent=start,
            subsequent_indent=" " * (len(start) + 2),
        )  # fmt: skip
    label = row.label + ("" if row.converged else " *")
    line = _line(
        label, _shown(row, report), f"{row.change:.0e} {mark(row)}", _claims(row),
        number(round(row.gradients, 1)),
    )  # fmt: skip
    return [line]


def _claims(row) -> str:
    letters = [SYMBOLS.get(claim, "Q") for claim in row.claims]
    return "".join(dict.fromkeys(letters)) or "-"


def _legend(report) -> list[str]:
    kinds = {mark(row) for row in report.rows}
    text = ["change: the largest, relative to w, over all points;"]
    meanings = {"=": "= none", "±": "± none beyond 4 standard errors", "≠": "≠ moved"}
    text.append(
        ", ".join(meaning for sign, meaning in meanings.items() if sign in kinds) + "."
    )
    used = {SYMBOLS.get(c, "Q"): c for row in report.rows for c in row.claims}
    used = {
        k: "the group of its own quotient" if k == "Q" else c for k, c in used.items()
    }
    if used:
        text.append("claims to be invariant to:")
        text.append(", ".join(f"{k} {c}" for k, c in sorted(used.items())) + ".")
    text.append("cost: gradients a point.")
    if not all(row.converged for row in report.rows):
        text.append("* short of the accuracy asked for.")
    if report.drift > 1e-9:
        text.append(
            f"The symmetry is approximate, by a normalisation's eps: the loss itself moves by "
            f"{report.drift:.0e}."
        )
    return wrap(" ".join(text), WIDTH)


def as_html(report) -> str:
    """The report as a table."""
    heads = ["measure", *report.points, "change", "", "claims", "gradients"]
    lines = [
        f"<p>{escape(_heading(report))}</p>",
        "<table><thead>",
        _cells(heads, "th"),
        "</thead>",
    ]
    for paper, rows in groupby(report.rows, lambda row: row.paper):
        span = f'<tr><th colspan="{len(heads)}" style="text-align:left">{escape(paper)}</th></tr>'
        lines += [
            "<tbody>",
            span,
            *(_html_row(row, len(heads)) for row in rows),
            "</tbody>",
        ]
    legend = escape(" ".join(_legend(report)))
    return "\n".join([*lines, "</table>", f"<p>{legend}</p>"])


def _html_row(row, columns: int) -> str:
    label = f'<td style="text-align:left">{escape(row.label)}</td>'
    if row.reason is not None:
        reason = escape(row.reason)
        cell = f'<td colspan="{columns - 1}" style="text-align:left">— {reason}</td>'
        return f"<tr>{label}{cell}</tr>"
    values = [
        number(v) + (f" ± {e:.1g}" if e and row.kind == "sampled" else "")
        for v, e in zip(row.values, row.errors)
    ]
    tail = [
        f"{row.change:.0e}",
        mark(row),
        ", ".join(row.claims),
        number(round(row.gradients, 1)),
    ]
    return f"<tr>{label}{_cells([*values, *tail], 'td', bare=True)}</tr>"


def _cells(texts, tag: str, bare: bool = False) -> str:
    inside = "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
    return inside if bare else f"<tr>{inside}</tr>"


def matrix_as_text(matrix) -> str:
    """The invariance matrix in a terminal."""
    label = max(len(name) for name in matrix.measures) + 2
    wide = [max(len(key), 1) + 2 for key in matrix.keys]
    lines = [" " * label + "".join(k.rjust(w) for k, w in zip(matrix.keys, wide))]
    for paper, rows in groupby(range(len(matrix.measures)), lambda i: matrix.papers[i]):
        lines.append(f"{paper} ".ljust(label + sum(wide), "·"))
        for i in rows:
            signs = "".join(c.symbol.rjust(w) for c, w in zip(matrix.cells[i], wide))
            lines.append(f"  {matrix.measures[i]}".ljust(label) + signs)
    names = ", ".join(f"{k}: {n}" for k, n in zip(matrix.keys, matrix.trials) if k != n)
    signs = (
        "✓ unchanged, ✗ moved, — does not apply, ≈ the symmetry itself is approximate"
    )
    return "\n".join([*lines, "", *wrap(signs + ".", WIDTH), *wrap(names + ".", WIDTH)])
