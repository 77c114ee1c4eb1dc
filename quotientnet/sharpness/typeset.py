"""A report as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

from html import escape
from itertools import groupby
from math import isfinite
from textwrap import wrap

from quotientnet.sharpness.row import APPROXIMATE

__all__ = ["WIDTH", "SYMBOLS", "as_text", "as_html", "matrix_as_text", "mark", "number"]

WIDTH = 100
"""Columns of a terminal that a report fits into."""

SYMBOLS = {
    "layer scales": "L", "unit scales": "U", "filter scales": "F", "output scale": "O",
    "output shift": "S", "the group given": "G",
}  # fmt: skip
"""A letter for each symmetry; Q for the group of a quotient."""

_VALUE, _SHOWN, _TAIL = 11, 3, 24
"""Columns of a number and of all that follows the numbers; points that are shown one by one."""

_MEANINGS = {
    "=": "= none (a rough search: below 1 %)", "±": "± none beyond 4 standard errors",
    "≈": f"≈ below {APPROXIMATE:.0e}, where the symmetry itself is approximate",
    "≠": "≠ moved", "!": "! not finite",
}  # fmt: skip


def as_text(report) -> str:
    """The report in a terminal, at most ``WIDTH`` columns wide."""
    notes = _footnotes(report)
    heads = [wrap(head, _VALUE + 2) for head in _heads(report)]
    widths = [max(_VALUE, *map(len, head)) for head in heads]
    label = min(
        max(len(_label(row, report, notes)) for row in report.rows) + 2,
        WIDTH - sum(width + 2 for width in widths) - _TAIL,
    )
    lines = [*wrap(_heading(report), WIDTH), ""]
    for above in range(max(map(len, heads)), 0, -1):
        shown = [head[-above] if above <= len(head) else "" for head in heads]
        last = ("change", "claims", "cost") if above == 1 else ("", "", "")
        lines.append(_line("", shown, *last, label=label, widths=widths))
    for paper, rows in groupby(report.rows, lambda row: row.paper):
        lines.append(f"{paper} ".ljust(WIDTH, "·"))
        for row in rows:
            lines += _row_lines(row, report, notes, label, widths)
    return "\n".join([*lines, "", *_legend(report), *_notes_below(notes)])


def mark(row) -> str:
    """``=`` for what stays, ``±`` for an estimate that stays within its error, ``≈`` for what an
    approximate symmetry moves, ``≠`` for what moves and ``!`` for what is nowhere finite.
    """
    if row.values and not row.finite:
        return "!"
    if row.approximate:
        return "≈"
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


def _shown(row, report) -> list[tuple[float | None, float | None]]:
    """The values that the columns show, each with its error."""
    found = list(zip(row.values, row.errors))
    if len(report.points) <= _SHOWN:
        return found
    there = sorted((pair for pair in found if pair[0] is not None), key=_by_value)
    return [found[0], there[0], there[-1]]


def _by_value(pair) -> tuple[bool, float]:
    """NaN after all numbers."""
    return (True, 0.0) if pair[0] != pair[0] else (False, pair[0])


def _footnotes(report) -> dict[str, int]:
    """What is to be said below the table, numbered in the order of the rows."""
    notes: dict[str, int] = {}
    for row in report.rows:
        for text in _remarks(row, report):
            notes.setdefault(text, len(notes) + 1)
    return notes


def _remarks(row, report) -> list[str]:
    """The footnotes of a row."""
    found = [row.note] if row.note else []
    if row.reason is not None:
        found.append(row.reason)
    remedy = ""
    if report.approximate:
        remedy = (
            " (The symmetry is approximate: take a smaller spread, or a smaller eps.)"
        )
    for text in dict.fromkeys(row.refusals.values()):
        names = [name for name, why in row.refusals.items() if why == text]
        found.append(f"at {' and '.join(names)}: {text}{remedy}")
    return found


def _label(row, report, notes: dict[str, int]) -> str:
    """The label with its star and the numbers of its footnotes."""
    numbers = [str(notes[text]) for text in _remarks(row, report)]
    star = "" if row.converged else " *"
    return row.label + star + (f" [{','.join(numbers)}]" if numbers else "")


def _line(label_text, values, change, claims, cost, *, label: int, widths) -> str:
    numbers = "".join(v.rjust(width + 2) for v, width in zip(values, widths))
    start = f"  {label_text}".ljust(label)
    return f"{start}{numbers}  {change:>7}  {claims:<6}{cost:>7}".rstrip()


def _row_lines(row, report, notes, label: int, widths) -> list[str]:
    text, above = _label(row, report, notes), []
    if len(text) + 2 > label:
        above, text = (
            wrap(text, WIDTH - 2, initial_indent="  ", subsequent_indent="  "),
            "",
        )
    if row.reason is not None:
        return [*above, f"  {text}".ljust(label) + "—".rjust(widths[0] + 2)]
    shown = _shown(row, report)
    lines = [_line(
        text, [number(v) for v, _ in shown], f"{_change(row)} {mark(row)}", _claims(row),
        _cost(row), label=label, widths=widths,
    )]  # fmt: skip
    errors = _errors(row, shown)
    if any(errors):
        lines.append(_line("", errors, "", "", "", label=label, widths=widths))
    return [*above, *lines]


def _change(row) -> str:
    return "—" if row.change is None else f"{row.change:.0e}"


def _errors(row, shown) -> list[str]:
    """Standard errors of an estimate; blank where there is none."""
    if row.kind != "sampled":
        return [""] * len(shown)
    return [f"± {e:.1g}" if e and isfinite(e) else "" for _, e in shown]


def _cost(row) -> str:
    return f"{row.gradients:,.0f}" if row.gradients >= 100 else f"{row.gradients:.1f}"


def _claims(row) -> str:
    letters = [SYMBOLS.get(claim, "Q") for claim in row.claims]
    return "".join(dict.fromkeys(letters)) or "-"


def _legend(report) -> list[str]:
    kinds = {mark(row) for row in report.rows}
    text = ["change: the largest, relative to w, over all points;"]
    text.append(
        ", ".join(meaning for sign, meaning in _MEANINGS.items() if sign in kinds) + "."
    )
    used = {SYMBOLS.get(c, "Q"): c for row in report.rows for c in row.claims}
    if "Q" in used:
        used["Q"] = "the group of its own quotient"
        if any(row.label.startswith("layer-scale") for row in report.rows):
            used["Q"] += " (layer scales only for the layer-scale rows)"
    if used:
        text.append("claims to be invariant to:")
        text.append(", ".join(f"{k} {c}" for k, c in sorted(used.items())) + ".")
    text.append("cost: gradients a point.")
    if any(any(_errors(row, _shown(row, report))) for row in report.rows if row.values):
        text.append("±: standard errors.")
    if not all(row.converged for row in report.rows):
        text.append("* short of the accuracy asked for.")
    if report.approximate:
        text.append(
            "The symmetry is approximate, by a normalisation's eps: the loss itself moves by "
            f"{report.drift:.0e}."
        )
    return wrap(" ".join(text), WIDTH)


def _notes_below(notes: dict[str, int]) -> list[str]:
    """The footnotes, numbered."""
    return [
        line
        for text, n in notes.items()
        for line in wrap(f"[{n}] {text}", WIDTH, subsequent_indent="    ")
    ]


def as_html(report) -> str:
    """The report as a table with the columns of the text."""
    notes = _footnotes(report)
    heads = ["measure", *_heads(report), "change", "claims", "cost"]
    lines = [
        f"<p>{escape(_heading(report))}</p>",
        "<table><thead>",
        f"<tr>{_cells(heads, 'th')}</tr>",
        "</thead>",
    ]
    for paper, rows in groupby(report.rows, lambda row: row.paper):
        lines += [
            "<tbody>",
            f'<tr><th colspan="{len(heads)}" style="text-align:left">{escape(paper)}</th></tr>',
            *(_html_row(row, report, notes) for row in rows),
            "</tbody>",
        ]
    lines += ["</table>", f"<p>{escape(' '.join(_legend(report)))}</p>"]
    return "\n".join(
        lines + [f"<p>[{n}] {escape(text)}</p>" for text, n in notes.items()]
    )


def _html_row(row, report, notes) -> str:
    label = _label(row, report, notes)
    if row.reason is not None:
        blank = [""] * (len(_heads(report)) + 2)
        return f"<tr>{_cells([label, '—', *blank], 'td')}</tr>"
    shown = _shown(row, report)
    values = [
        f"{number(v)} {e}".rstrip() for (v, _), e in zip(shown, _errors(row, shown))
    ]
    tail = [f"{_change(row)} {mark(row)}", _claims(row), _cost(row)]
    return f"<tr>{_cells([label, *values, *tail], 'td')}</tr>"


def _cells(texts, tag: str) -> str:
    """Words on the left, numbers on the right."""
    sides = ["left", *["right"] * (len(texts) - 3), "left", "right"]
    return "".join(
        f'<{tag} style="text-align:{side}">{escape(text)}</{tag}>'
        for side, text in zip(sides, texts)
    )


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
