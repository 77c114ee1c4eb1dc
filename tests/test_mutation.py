"""The tool that judges the tests: its changes by hand, and its verdicts on a small module."""

import subprocess
import sys
from pathlib import Path

import pytest
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
import pytest
from judge import verdict
from mutants import mutants

for mutant in [None, *mutants("module.py")]:
    after = mutant and mutant.after
    print(after, verdict(mutant, ["test_module.py"], 1.0))
"""


@pytest.mark.slow
def test_verdicts_on_a_small_module(tmp_path):
    """A boundary that no test looks at survives; an endless loop is a mutant that is noticed."""
    (tmp_path / "module.py").write_text(
        "def f(x):\n    while x > 10:\n        x = x - 1\n    return x\n"
    )
    (tmp_path / "test_module.py").write_text(
        "from module import f\n\n\ndef test_f():\n    assert f(12) == 10 and f(3) == 3\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", JUDGE], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": f"{FOLDER}:{tmp_path}"}, check=True,
    )  # fmt: skip
    assert found.stdout.splitlines() == [
        "None survived", "(x <= 10) killed", "(x >= 10) killed", "11 killed",
        "(x + 1) timeout", "2 survived",
    ]  # fmt: skip
