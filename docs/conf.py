"""Sphinx settings; warnings are errors."""

import os
import re
import sys
import warnings
from pathlib import Path

# Examples and figures are small: a second thread costs more than it saves. Before libraries load.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from quotientnet import __version__  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
import figures  # noqa: E402
import measured  # noqa: E402
import mutation_lists  # noqa: E402
import readme  # noqa: E402
import tables  # noqa: E402

for written in (figures, mutation_lists, readme, tables):
    written.write()
rst_epilog = measured.as_rst()

project = "quotientnet"
author = "the quotientnet authors"
copyright = "2026, the quotientnet authors"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",  # its directives; tests/test_docs.py runs them
    "sphinx.ext.napoleon",
    "mathml",
    "sphinx_gallery.gen_gallery",
]
html_theme = "furo"
html_math_renderer = "mathml"
html_title = "quotientnet"
html_static_path = ["_static"]
html_css_files = ["manual.css"]
exclude_patterns = ["_build", "_generated"]
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
nitpicky = (
    True  # a reference to a name of ours that is not in the reference is an error
)
# Other libraries publish their indices on the web only, and the build must do without it. So their
# names, and as they are abbreviated in annotations, are no links; nor are our private base classes.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|geoopt|numpy|np|scipy|sparse|hypothesis|nn|collections|abc|os)\..*",
    ),
    ("py:class", r"Tensor|optional|callable"),
    (
        "py:class",
        r"quotientnet\.(hessian\.Curvature|manifolds\.vectors\.LayoutManifold)",
    ),
    ("py:class", r"quotientnet\.symmetry\.explanation\.Found"),
    ("py:class", r"quotientnet\.training\.(neighbours\.Neighbours|wrapper\.Wrapper)"),
    ("py:class", r"quotientnet\.training\.riemannian\.RiemannianOptimizer"),
]

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "example_",
    "abort_on_example_error": True,
    "capture_repr": (),
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("alternatives.scraper",),
    "image_srcset": ["2x"],
    "parallel": 2,
    "download_all_examples": False,
    "plot_gallery": True,
    "reset_modules": ("matplotlib", "timing.record"),
    "reset_modules_order": "both",
}


def _let_figures_scroll(app, pagename, templatename, context, doctree):
    """Figures of examples in boxes of their own; see manual.css."""
    image = r'<img [^>]*class = "sphx-glr-single-img"/>'
    context["body"] = re.sub(
        image, r'<div class="wide-figure">\g<0></div>', context.get("body", "")
    )


def setup(app):
    """Register what is changed on each page."""
    app.connect("html-page-context", _let_figures_scroll)


warnings.filterwarnings("ignore", message="Matplotlib is currently using agg")
