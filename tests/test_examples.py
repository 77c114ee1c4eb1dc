"""Every example has the form that the gallery promises, and the docs build ran it as it is.

Nothing is run here: the docs build does that, before the tests in CI, and leaves behind what it
ran and how long it took.
"""

import ast
import configparser
import hashlib
import re
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
LINES, SECONDS = 150, 30
COLUMNS = 85
"""Characters of a printed line that the page shows at a width of 1280 pixels; more would scroll."""

MODULES = {"scikit-learn": "sklearn", "sphinx-gallery": "sphinx_gallery"}
"""What is imported, where it is not the name of the package."""


def installed() -> set[str]:
    """The modules that an example may import: this package's, the docs', and Python's own."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = setup["options"]["install_requires"]
    required += setup["options.extras_require"]["docs"]
    packages = re.findall(r"^[\w-]+", required, re.MULTILINE)
    own = {MODULES.get(package, package) for package in packages}
    return own | {"quotientnet"} | sys.stdlib_module_names


def imports(tree: ast.AST) -> set[str]:
    """The modules that are imported, their first parts."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or ".")
    return {name.partition(".")[0] for name in found}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """All calls with the last part of what is called: ``subplots`` of ``plt.subplots()``."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func).rpartition(".")[2], node) for node in found]


def is_plot(name: str, tree: ast.AST) -> bool:
    """Whether it is a function of this library that returns a figure with labels."""
    return name.startswith("plot_") and "quotientnet" in imports(tree)


def helpers(tree: ast.AST) -> dict[str, ast.AST]:
    """The modules of ``examples/experiments`` that an example imports, by name."""
    places = {path.stem: path for path in (EXAMPLES / "experiments").glob("*.py")}
    return {
        name: ast.parse(places[name].read_text(encoding="utf-8"))
        for name in imports(tree) & places.keys()
    }


def figures(tree: ast.AST) -> list[ast.Call]:
    """The calls that make a figure; ``plt.figure(figure)`` shows one that is there."""
    makers = ("subplots", "subplot_mosaic", "Figure")
    elsewhere = {
        f"{module}.{function.name}"
        for module, helper in helpers(tree).items()
        for function in helper.body
        if isinstance(function, ast.FunctionDef) and figures(function)
    }
    return [
        node
        for name, node in calls(tree)
        if name in makers
        or (name == "figure" and not node.args)
        or is_plot(name, tree)
        or ast.unparse(node.func) in elsewhere
    ]


def looped(tree: ast.AST, wanted: ast.AST) -> bool:
    """Whether a node is in the body of a loop or of a function, so that it may run often."""
    kinds = (ast.For, ast.While, ast.comprehension, ast.FunctionDef, ast.Lambda)
    return any(
        wanted in ast.walk(node) for node in ast.walk(tree) if isinstance(node, kinds)
    )


def is_labelled(tree: ast.AST, axis: str) -> bool:
    """Whether ``xlabel`` or ``ylabel`` is set somewhere, or by a picture of the library."""
    here = any(
        name in (axis, f"set_{axis}")
        or axis in [keyword.arg for keyword in node.keywords]
        or is_plot(name, tree)
        for name, node in calls(tree)
    )
    return here or any(is_labelled(helper, axis) for helper in helpers(tree).values())


def assigned(tree: ast.Module) -> set[str]:
    """The names that the top level assigns to."""
    targets = [
        t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets
    ]
    nodes = (node for target in targets for node in ast.walk(target))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def can_fail(node: ast.AST) -> bool:
    """Whether it is an assertion about something that is computed."""
    return isinstance(node, ast.Assert) and any(
        isinstance(part, ast.Name) for part in ast.walk(node.test)
    )


def is_absolute(node: ast.AST) -> bool:
    """Whether it is a string that names a place on one machine."""
    text = node.value if isinstance(node, ast.Constant) else None
    return isinstance(text, str) and bool(re.match(r"(/\w|~/|[A-Za-z]:[\\/])", text))


def faults(source: str) -> list[str]:
    """What an example lacks."""
    tree = ast.parse(source)
    title, line, *_ = (ast.get_docstring(tree) or "").splitlines() + ["", ""]
    made = figures(tree)
    last = max((node.lineno for node in made), default=0)
    foreign = imports(tree) - installed() - helpers(tree).keys()
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    places = [node.value for node in ast.walk(tree) if is_absolute(node)]
    lines = len(source.splitlines())
    wanted = {
        "no title": title and line == "=" * len(title),
        "no SEED": "SEED" in assigned(tree),
        "no cell": re.search(r"^# %%$", source, re.MULTILINE),
        f"{len(made)} figures": len(made) == 1,
        "a figure in a loop": not any(looped(tree, node) for node in made),
        "no xlabel": is_labelled(tree, "xlabel"),
        "no ylabel": is_labelled(tree, "ylabel"),
        "no assert after the figure": any(
            can_fail(node) and node.lineno > last for node in ast.walk(tree)
        ),
        f"{lines} lines": lines <= LINES,
        "__file__, which the gallery does not define": "__file__" not in names,
        f"a path of one machine, {places}": not places,
        f"imports {sorted(foreign)}, which the docs do not install": not foreign,
    }
    return [fault for fault, holds in wanted.items() if not holds]


@pytest.mark.parametrize("name", NAMES)
def test_has_the_form_that_the_gallery_promises(name):
    assert name.startswith("example_")
    assert faults((EXAMPLES / f"{name}.py").read_text(encoding="utf-8")) == []


WHOLE = '''"""
Draw a line
===========

How long is it?
"""

import matplotlib.pyplot as plt

SEED, COUNT = 0, 3

# %%
# A line.

figure, axis = plt.subplots()
axis.plot(range(COUNT))
axis.set(xlabel="step", ylabel="loss")
assert COUNT == 3
'''
BROKEN = {
    "no title": ("===========", "=========="),
    "no SEED": ("SEED, ", "BEGIN, "),
    "no cell": ("# %%\n", ""),
    "0 figures": ("plt.subplots()", "plt.gcf(), plt.gca()"),
    "2 figures": ("axis.plot", "plt.figure()\naxis.plot"),
    "a figure in a loop": ("figure, ", "for _ in range(2):\n    figure, "),
    "no xlabel": ("xlabel=", "title="),
    "no ylabel": ("ylabel=", "title="),
    "no assert after the figure": ("COUNT == 3", "True"),
    "151 lines": ("assert", "# and so on\n" * 133 + "assert"),
    "a path of one machine, ['/home/me']": ("assert", "open('/home/me')\nassert"),
    "__file__, which the gallery does not define": ("assert", "open(__file__)\nassert"),
    "imports ['pandas'], which the docs do not install": ("import", "import pandas\nimport"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_each_fault_is_found(fault):
    assert faults(WHOLE) == []
    changed = WHOLE.replace(*BROKEN[fault], 1)
    assert changed != WHOLE and faults(changed) == [fault]


def test_an_assert_before_the_figure_closes_nothing():
    first, figure = "assert COUNT == 3\n", "figure, axis"
    changed = WHOLE.replace(first, "").replace(figure, first + figure)
    assert faults(changed) == ["no assert after the figure"]


OUTPUT = re.compile(r"^ \.\. code-block:: none\n\n((?: {4}.*\n|\n)+)", re.MULTILINE)
"""What a cell printed, on the page that the gallery writes."""


def build_faults(docs: Path, name: str, source: str) -> list[str]:
    """How the gallery in a folder of docs differs from one that ran an example as it is."""
    gallery = docs / "gallery"
    ran, took = gallery / f"{name}.py.md5", gallery / f"{name}.seconds"
    if not (ran.exists() and took.exists()):
        return ["did not run"]
    digest = hashlib.md5(source.encode(), usedforsecurity=False).hexdigest()
    if ran.read_text() != digest:
        return ["has changed since; build the docs again, or delete docs/gallery"]
    page = (gallery / f"{name}.rst").read_text(encoding="utf-8")
    texts = re.findall(r"^ *:alt: (.*)$", page, re.MULTILINE)
    nameless = name.replace("_", " ")  # what the gallery writes where it knows nothing
    pictures = list((gallery / "images").glob(f"sphx_glr_{name}_[0-9][0-9][0-9].png"))
    seconds = float(took.read_text())
    printed = "\n".join(textwrap.dedent(each) for each in OUTPUT.findall(page))
    wide = [line for line in printed.splitlines() if len(line) > COLUMNS]
    wanted = {
        f"made {len(pictures)} figures": len(pictures) == 1,
        f"took {seconds} s": 0 < seconds <= SECONDS,
        f"has the texts {texts}": len(texts) == 1 and texts[0] not in ("", nameless),
        f"prints more than {COLUMNS} characters a line, {wide}": not wide,
    }
    return [fault for fault, holds in wanted.items() if not holds]


@pytest.mark.parametrize("name", NAMES)
def test_the_docs_build_ran_it(name):
    if not list((DOCS / "gallery").glob("*.py.md5")):
        pytest.skip("no gallery here: run sphinx-build docs docs/_build/html before")
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert build_faults(DOCS, name, source) == []


def test_the_docs_build_runs_all_examples_and_stops_at_an_error():
    settings = ast.parse((DOCS / "conf.py").read_text(encoding="utf-8"))
    (gallery,) = (
        ast.literal_eval(node.value)
        for node in settings.body
        if isinstance(node, ast.Assign)
        and "sphinx_gallery_conf" in ast.unparse(node.targets[0])
    )
    assert gallery["plot_gallery"] and gallery["abort_on_example_error"]
    assert all(re.search(gallery["filename_pattern"], name) for name in NAMES)


def test_what_a_build_did_not_do_is_found(tmp_path):
    name, source = "example_draw", WHOLE
    gallery, images = tmp_path / "gallery", tmp_path / "gallery/images"
    images.mkdir(parents=True)
    assert build_faults(tmp_path, name, source) == ["did not run"]

    digest = hashlib.md5(source.encode(), usedforsecurity=False).hexdigest()
    (gallery / f"{name}.py.md5").write_text(digest)
    (gallery / f"{name}.seconds").write_text("29.9\n")
    (images / f"sphx_glr_{name}_001.png").touch()
    page = gallery / f"{name}.rst"
    page.write_text(".. image-sg:: /gallery/images/it.png\n   :alt: example draw\n")
    assert build_faults(tmp_path, name, source) == ["has the texts ['example draw']"]
    page.write_text(".. image-sg:: /gallery/images/it.png\n   :alt: Loss against step\n")
    assert build_faults(tmp_path, name, source) == []
    assert "changed" in build_faults(tmp_path, name, source + "\n")[0]

    text = page.read_text()
    for length, found in ((85, 0), (86, 1)):
        line = "no" + "x" * (length - 2)
        page.write_text(f"{text}\n .. code-block:: none\n\n    one\n    {line}\n\nNext\n")
        assert len(build_faults(tmp_path, name, source)) == found
    assert build_faults(tmp_path, name, source)[0].endswith(f"a line, ['{line}']")
    page.write_text(text)

    (gallery / f"{name}.seconds").write_text("30.1\n")
    (images / f"sphx_glr_{name}_002.png").touch()
    assert build_faults(tmp_path, name, source) == ["made 2 figures", "took 30.1 s"]
