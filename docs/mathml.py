"""Formulas as MathML, which browsers draw without a script from elsewhere."""

from __future__ import annotations

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

_WIDE = 45
"""Characters of a formula that may not fit on a small screen: it scrolls by itself there."""


def _inline(translator, node) -> None:
    text = node.astext()
    formula = tex2mathml(text, as_block=False)
    if len(text) > _WIDE:
        formula = f'<span class="wide-math">{formula}</span>'
    translator.body.append(formula)
    raise SkipNode


def _block(translator, node) -> None:
    formula = tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="math">{formula}</div>')
    raise SkipNode


def setup(app) -> dict:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True}
