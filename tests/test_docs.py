"""The manual: its code prints what it says, its reference has every public name."""

import contextlib
import doctest
import importlib
import io
import pkgutil
import posixpath
import re
import textwrap
from math import isclose
from pathlib import Path

import pytest
import torch

import quotientnet

DOCS = Path(__file__).parent.parent / "docs"
OURS = ("gallery", "_build", "_generated")
PAGES = {
    str(path.relative_to(DOCS).with_suffix("")): path.read_text()
    for path in sorted(DOCS.rglob("*.rst"))
    if path.relative_to(DOCS).parts[0] not in OURS
    and path.name != "sg_execution_times.rst"
}


# -- code ---

KINDS = ("testsetup", "testcode", "testoutput", "doctest")
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def blocks(text):
    """The kind, line number and source of every block of a page that is run."""
    lines, found = text.splitlines(), []
    for number, line in enumerate(lines):
        start = re.match(r"( *)\.\. (\w+)::$", line)
        if not start or start[2] not in KINDS:
            continue
        body = []
        for inner in lines[number + 1 :]:
            if inner.strip() and not inner.startswith(start[1] + " "):
                break
            body.append(inner)
        found.append(
            (start[2], number + 1, textwrap.dedent("\n".join(body)).strip("\n") + "\n")
        )
    return found


def agree(said, printed):
    """Whether two texts are the same but for spaces and the last digits of numbers."""
    pairs = list(zip(said.split(), printed.split()))
    return len(said.split()) == len(printed.split()) and all(
        a == b or _close(a, b) for a, b in pairs
    )


def _close(a, b):
    try:
        return isclose(float(a), float(b), rel_tol=1e-9)
    except ValueError:
        return False


RUN = [name for name, text in PAGES.items() if blocks(text)]


@pytest.mark.parametrize("name", RUN)
def test_the_code_of_a_page_prints_what_the_page_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    torch.manual_seed(0)
    names, found = {}, blocks(PAGES[name])
    for (kind, line, source), (following, _, said) in zip(
        found, [*found[1:], ("", 0, "")]
    ):
        where = f"docs/{name}.rst, line {line}"
        if kind == "doctest":
            test = doctest.DocTestParser().get_doctest(source, names, where, where, 0)
            test.globs = names
            report = io.StringIO()
            runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
            result = runner.run(test, out=report.write, clear_globs=False)
            assert not result.failed, report.getvalue()
        elif kind != "testoutput":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * line + source, f"docs/{name}.rst", "exec"), names)
            said = said if following == "testoutput" else ""
            same = agree(said, printed.getvalue())
            assert same, f"{where} prints\n{printed.getvalue()}\nand not\n{said}"


ELSEWHERE = {"howto/processes": 1}
"""Scripts of several processes, which ``test_processes.py`` runs."""


def test_no_python_is_shown_without_being_run():
    for name, text in PAGES.items():
        shown = re.findall(r"\.\. code-block:: (.*)", text)
        assert set(shown) <= {"console", "text", "bibtex", "python"}, name
        assert shown.count("python") == ELSEWHERE.get(name, 0), name


# -- names ---

PACKAGES = [quotientnet] + [
    importlib.import_module(f"quotientnet.{module.name}")
    for module in pkgutil.iter_modules(quotientnet.__path__)
    if module.ispkg and module.name != "commands"  # of the command line
]
DIRECTIVE = re.compile(
    r"\.\. (currentmodule|auto(?:module|class|function|exception|data)|py:data):: (\S+)\n"
    r"((?:   :.*\n)*)"
)


def documented():
    """The qualified name and the object of everything that the reference has an entry for."""
    module, found = "", []
    for directive, name, options in DIRECTIVE.findall(PAGES["reference"]):
        if directive.endswith("module"):
            module = name
            if directive == "automodule":
                found.append((name, importlib.import_module(name)))
            if directive == "automodule" and ":no-members:" not in options:
                shown = importlib.import_module(name).__all__
                found += [
                    (f"{name}.{n}", pkgutil.resolve_name(f"{name}:{n}")) for n in shown
                ]
        else:
            full = name if name.startswith("quotientnet.") else f"{module}.{name}"
            home, _, last = full.rpartition(".")
            found.append((full, getattr(importlib.import_module(home), last)))
    return found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name(package):
    shown = {id(thing) for _, thing in documented()}
    missing = [n for n in package.__all__ if id(getattr(package, n)) not in shown]
    assert (
        not missing
    ), f"docs/reference.rst has not {', '.join(missing)} of {package.__name__}"
    assert id(package) in shown


def test_the_reference_has_every_name_once():
    names = [name for name, _ in documented()]
    assert len(names) == len(set(names))


def test_tests_that_the_errata_name_exist():
    tests = "".join(
        path.read_text() for path in Path(__file__).parent.glob("test_*.py")
    )
    named = re.findall(r"``(test_\w+)``", PAGES["errata"])
    assert len(named) > 20
    assert not [name for name in named if f"def {name}(" not in tests]


def test_the_map_of_the_house_names_every_room():
    rooms = [p for p in Path(quotientnet.__file__).parent.iterdir() if p.name[0] != "_"]
    names = [f"``{p.name}``" if p.suffix == ".py" else f"``{p.name}/``" for p in rooms]
    text = PAGES["contributing"]
    assert not [n for n in names if n not in text and n != "``py.typed/``"]


def test_links_between_pages_lead_somewhere():
    examples = (DOCS.parent / "examples").glob("example_*.py")
    known = {*PAGES, "gallery/index", *(f"gallery/{path.stem}" for path in examples)}
    for name, text in PAGES.items():
        for link in re.findall(r":doc:`(?:[^`<]*<)?([^`>]+)>?`", text):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
            assert target.strip("/") in known, (name, link)


# -- numbers ---

NUMBER = re.compile(
    r"(?<![\w.,-])(?:\d[\d,]*(?:\.\d+)? %|\d+\.\d+|\d+(?:\.\d+)?e[-+]?\d+)(?![\w.-]*\w)"
)
"""What may have been measured: a share, a decimal, a power of ten."""

SETTINGS = {
    "benchmarks": {  # targets, tolerances
        "1 %", "1.05", "95 %", "1e-6", "1e-9", "1e-10", "1e-12", "2e-4",
    },
    "channels": {"1e-12"},  # a tolerance
    "curvature": {"2.13"},  # torch
    "optimization": {"1e-8"},  # the root of a rounding error
    "reparametrisation": {"4.2", "4.3", "5.1", "5.2", "7.3", "5.465", "86.03"},  # the papers'
    "report": {"1e-6", "1e-8", "2e-2"},  # thresholds
    "start": {"3.11"},  # Python
    "symmetry": {"0.001"},  # a threshold
    "testing": {"1.7", "2.00", "1e-4", "1e-5", "1e-8", "1e-9"},  # the laws' windows and limits
    "howto/processes": {"1e-10"},  # a tolerance
    "training": {
        "0.01", "0.05", "0.1", "0.5", "0.9", "2 %", "1e-3", "1e-4",  # options of the methods
        "1.5 %", "15 %", "0.28 %", "1.3", "3.7",  # the paper's gain, targets, one image of 360
    },
}  # fmt: skip
"""What is none: options, tolerances, targets, places in papers."""


def prose(text):
    """A page without its code, formulas, literals and references."""
    kept, inside = [], None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if inside is not None and (not line.strip() or indent > inside):
            continue
        inside = None
        if re.match(r" *\.\. (test|doctest|code-block|math|figure|include)", line):
            inside = indent
            continue
        kept.append(line)
    text = "\n".join(kept)
    return re.sub(r":[\w:]+:`[^`]*`|``[^`]*``|\|[^|\n]*\|", "", text)


def test_formulas_that_docutils_misreads_are_refused(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    formula = importlib.import_module("mathml")._formula
    for wrong in (r"\tfrac12 x", r"\frac 34", r"\hat m_b"):
        with pytest.raises(ValueError, match="write the arguments in braces"):
            formula(wrong, as_block=False)
    assert "<mfrac>" in formula(r"\frac{1}{2}", as_block=False)


@pytest.mark.parametrize("name", [n for n in PAGES if n not in ("errata", "changelog")])
def test_no_measured_number_is_typed_in(name):
    typed = set(NUMBER.findall(prose(PAGES[name]))) - SETTINGS.get(name, set())
    assert not typed, (
        f"docs/{name}.rst: {sorted(typed)}: quote a kept result by a substitution of "
        "docs/measured.py, print it in a testoutput, or list a setting in SETTINGS"
    )


def test_every_quoted_result_is_used(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    names = importlib.import_module("measured").substitutions()
    text = "".join(PAGES.values())
    assert not [name for name in names if f"|{name}|" not in text]
