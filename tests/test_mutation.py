"""The tool that judges the tests: its changes by hand, and its verdicts on a small module."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mutation.children import OUT_OF_TIME, Job, run
from mutation.mutants import mutants

FOLDER = Path(__file__).parent / "mutation"

MODULE = '''"""Docstring: 1 + 1."""
__all__ = ["f"]


def f(x: int | None = 3, *, text=f"{1 + 1}"):
    """Twice; 2 + 2."""
    if x is None or not x:
        raise ValueError(f"f: x must be given, got {x + 1}")
    x += 2
    return min(x, 2.5) * -x
'''

EXPECTED = [
    (5, "3", "4"),
    (7, "x is None or not x", "(not (x is None or not x))"),
    (7, "x is None or not x", "(x is None and (not x))"),
    (7, "x is None", "(x is not None)"),
    (7, "not x", "x"),
    (8, 'raise ValueError(f"f: x must be given, got {x + 1}")', "pass"),
    (9, "x += 2", "pass"),
    (9, "x += 2", "x -= 2"),
    (9, "2", "3"),
    (10, "min(x, 2.5) * -x", "(min(x, 2.5) / -x)"),
    (10, "min", "max"),
    (10, "2.5", "5.0"),
    (10, "-x", "x"),
]


def test_the_mutants_of_a_module_by_hand(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(MODULE)
    found = [(m.line, m.before, m.after) for m in mutants(path)]
    assert sorted(found) == sorted(EXPECTED)


def test_a_mutant_differs_from_its_source_in_one_place(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("é = 'ü'\nλ = 1 if é == 'ü' else (\n    2 * 3)\n")
    (comparison,) = (m for m in mutants(path) if "==" in m.before)
    assert comparison.source() == path.read_text().replace("é == 'ü'", "(é != 'ü')")
    assert {m.after for m in mutants(path)} >= {"(2 / 3)", "2", "3", "4"}


JUDGE = """
import sys
from judge import judge, judge_loaded
from mutants import mutants

way = {"imported": judge, "loaded": judge_loaded}[sys.argv[1]]
tests = ["test_module.py::test_one", "test_module.py::test_f"]
tasks = [(mutant, tests, 1.0) for mutant in [None, *mutants("module.py")]]
way(tasks, lambda mutant, word: print(mutant and mutant.after, word, flush=True), 1)
"""

TESTED = """
ONE = 1


def f(x):
    while x > 10:
        x = x - ONE
    return x
"""

TESTS = """
from module import f


def test_one():
    pass


def test_f():
    assert f(12) == 10 and f(3) == 3
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["imported", "loaded"])
def test_verdicts_on_a_small_module(tmp_path, way):
    """A boundary that no test looks at survives; an endless loop is a mutant that is noticed.

    What is no part of a function cannot be changed once it is loaded.
    """
    (tmp_path / "module.py").write_text(TESTED)
    (tmp_path / "test_module.py").write_text(TESTS)
    found = subprocess.run(
        [sys.executable, "-c", JUDGE, way], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": f"{FOLDER}:{tmp_path}"}, check=True,
    )  # fmt: skip
    in_the_function = [
        "(x <= 10) killed", "(x >= 10) killed", "11 killed", "(x + ONE) timeout",
    ]  # fmt: skip
    of_the_module = ["2 survived"] if way == "imported" else []
    lines = [line for line in found.stdout.splitlines() if line and " ran in " not in line]
    assert lines == ["None survived", *of_the_module, *in_the_function]


def test_a_job_that_ends_in_an_exception_or_a_crash_is_told_from_one_that_is_stopped():
    jobs = [
        Job("fine", lambda: 0, 10.0), Job("raises", lambda: 1 // 0, 10.0),
        Job("crashes", lambda: os.kill(os.getpid(), signal.SIGTERM), 10.0),
        Job("hangs", endless, 0.0),
    ]  # fmt: skip
    found = dict(run(jobs, 2))
    assert found["fine"] == 0 and found["raises"] == 1
    assert found["crashes"] == 128 + signal.SIGTERM and found["hangs"] == OUT_OF_TIME


def endless():
    while True:
        pass
