"""Formulas as MathML, which browsers draw without a script from elsewhere."""

from __future__ import annotations

import re

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

_WIDE = 45
"""Characters of a formula that may not fit on a small screen: it scrolls by itself there."""

_MISREAD = re.compile(r"\\[td]?frac\s*\d\d|\\hat\s+\w_")


def _inline(translator, node) -> None:
    text = node.astext()
    formula = _formula(text, as_block=False)
    if len(text) > _WIDE:
        formula = f'<span class="wide-math">{formula}</span>'
    translator.body.append(formula)
    raise SkipNode


def _block(translator, node) -> None:
    formula = _formula(node.astext(), as_block=True)
    translator.body.append(f'<div class="math">{formula}</div>')
    raise SkipNode


def _formula(text: str, as_block: bool) -> str:
    """MathML; what docutils reads otherwise than LaTeX, as a fraction of two digits, is refused."""
    found = _MISREAD.search(text)
    if found:
        raise ValueError(f"{found[0]!r} in {text!r}: write the arguments in braces")
    return tex2mathml(text, as_block=as_block)


def setup(app) -> dict:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True}
