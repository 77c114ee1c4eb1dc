"""What the README shows is what the code does, and its two commands are those that CI runs."""

import contextlib
import importlib.util
import io
import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TRIALS = [
    "layer scales, without biases",
    "unit scales",
    "filter scales, train mode, eps = 0",
]
"""The columns of the README's table, by their names in the invariance matrix."""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_snippet_prints_what_the_readme_says():
    (snippet,), (expected,) = blocks("python"), blocks("text")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "README.md", "exec"), {})
    assert printed.getvalue() == expected


def test_two_commands_do_all_the_set_up():
    commands = [block.strip() for block in blocks("console")]
    assert len(commands) == 2
    assert all(
        "venv" in command and "-c constraints.txt" in command for command in commands
    )
    assert commands[0].endswith("-m quotientnet") and commands[1].endswith("-m pytest")


def test_table_of_measures_is_that_of_the_benchmark():
    facts = json.loads((ROOT / "docs/results/invariance.json").read_text())
    columns = [facts["trials"].index(name) for name in TRIALS]
    marks = {True: "=", False: "≠", None: "–"}
    rows = re.findall(r"^\| (.+?) \| (\w+) \| (.) \| (.) \| (.) \|$", README, re.M)
    assert len(rows) > 10
    for measure, paper, *cells in rows:
        row = facts["measures"].index(measure)
        measured = [marks[facts["cells"][row][k]["invariant"]] for k in columns]
        assert (paper, cells) == (facts["papers"][row], measured), measure


def test_figure_is_what_its_script_draws():
    file = ROOT / "docs/readme_figure.py"
    spec = importlib.util.spec_from_file_location("readme_figure", file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    kept = script.FILE.read_text()
    if f"Matplotlib v{version('matplotlib')}," not in kept:
        pytest.skip(
            "the figure was drawn by another matplotlib: python docs/readme_figure.py"
        )
    # Paths are named by a hash of their coordinates, of which the last digits vary.
    drawn, kept = (re.sub(r"p[0-9a-f]{10}\b", "p", text) for text in (script.draw(), kept))
    assert numbers(drawn) == pytest.approx(numbers(kept), abs=1e-4)
    assert NUMBER.sub("0", drawn) == NUMBER.sub("0", kept)


NUMBER = re.compile(r"-?\d+\.\d+")


def numbers(text):
    return [float(number) for number in NUMBER.findall(text)]
