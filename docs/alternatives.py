"""Alternative texts of figures without titles: what is drawn against what."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import matplotlib_scraper


def described(figure: Figure) -> str:
    """The axes in words, such as ``Loss against step; norm against layer``."""
    parts = []
    for axis in figure.axes:
        labels = axis.get_ylabel() or figure.get_supylabel(), axis.get_xlabel()
        parts.append(" against ".join(filter(None, labels)))
    words = "; ".join(dict.fromkeys(filter(None, parts)))
    words = " ".join(re.sub(r"[$\\]", "", words).split())
    return words[:1].upper() + words[1:]


def scraper(block, block_vars, gallery_conf, **options) -> str:
    """sphinx-gallery's own, which takes texts from titles: a figure without gets one unseen."""
    for figure in map(plt.figure, plt.get_fignums()):
        places = "left", "center", "right"
        titles = [axis.get_title(loc) for axis in figure.axes for loc in places]
        if not any([figure.get_suptitle(), *titles]):
            figure.suptitle(described(figure), visible=False, in_layout=False)
    return matplotlib_scraper(block, block_vars, gallery_conf, **options)
