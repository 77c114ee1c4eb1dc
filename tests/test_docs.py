"""The manual: its code prints what it says, its reference has every public name, its links lead somewhere."""

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import textwrap
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
        found.append((start[2], number + 1, textwrap.dedent("\n".join(body)).strip("\n") + "\n"))
    return found


RUN = [name for name, text in PAGES.items() if blocks(text)]


@pytest.mark.parametrize("name", RUN)
def test_the_code_of_a_page_prints_what_the_page_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    torch.manual_seed(0)
    names, found = {}, blocks(PAGES[name])
    for (kind, line, source), (following, _, said) in zip(found, [*found[1:], ("", 0, "")]):
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
            same = doctest.OutputChecker().check_output(said, printed.getvalue(), FLAGS)
            assert same, f"{where} prints\n{printed.getvalue()}\nand not\n{said}"


def test_no_python_is_shown_without_being_run():
    for name, text in PAGES.items():
        for language in re.findall(r"\.\. code-block:: (.*)", text):
            assert language in ("console", "text", "bibtex"), (name, language)
