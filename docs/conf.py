"""Sphinx settings; warnings are errors."""

import sys
import warnings
from pathlib import Path

from quotientnet import __version__

sys.path.insert(0, str(Path(__file__).parent))
import tables  # noqa: E402

tables.write()

project = "quotientnet"
author = "the quotientnet authors"
copyright = "2026, the quotientnet authors"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",
    "sphinx_gallery.gen_gallery",
]
html_theme = "furo"
html_math_renderer = "mathml"
html_title = "quotientnet"
exclude_patterns = ["_build", "_generated"]
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
nitpicky = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "example_",
    "abort_on_example_error": True,
    "capture_repr": (),
    "show_memory": False,
    "download_all_examples": False,
    "plot_gallery": True,
    "reset_modules": ("matplotlib", "timing.record"),
    "reset_modules_order": "both",
}
warnings.filterwarnings("ignore", message="Matplotlib is currently using agg")
