"""Which files are mutated together, and which tests are their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LIBRARY = "quotientnet"


@dataclass(frozen=True)
class Room:
    """Files and their tests.

    Attributes:
        sources: Files or folders.
        tests: What pytest is to run.
        others: Whether the files are all those of the library that are in no other room.
    """

    sources: tuple[str, ...]
    tests: tuple[str, ...]
    others: bool = False

    def files(self) -> list[str]:
        """The sources, in order."""
        if self.others:
            named = {f for room in ROOMS.values() if not room.others for f in room.files()}
            return [str(p) for p in sorted(Path(LIBRARY).rglob("*.py")) if str(p) not in named]
        found = [Path(LIBRARY, source) for source in self.sources]
        files = [p for f in found for p in (sorted(f.rglob("*.py")) if f.is_dir() else [f])]
        return [str(p) for p in files]

    def test_files(self) -> list[str]:
        """The tests, each file of the folder ``tests`` by itself."""
        folders = {"tests": sorted(str(p) for p in Path("tests").glob("test_*.py"))}
        return [file for test in self.tests for file in folders.get(test, [test])]


ROOMS = {
    "geometry": Room(
        ("manifolds",),
        (
            "tests/test_geometry_parts.py", "tests/test_laws.py", "tests/test_log_polar.py",
            "tests/test_balanced.py", "tests/test_oblique.py", "tests/test_oblique_blocks.py",
            "tests/test_without_translations.py", "tests/test_operators.py",
            "tests/test_hostile.py", "quotientnet/manifolds",
        ),
    ),
    "groups": Room(
        ("units.py", "couplings.py", "gram.py", "axis_sums.py", "exponent_matrix.py", "group.py",
         "exact.py", "layout.py"),
        (
            "tests/test_group.py", "tests/test_layout.py", "tests/test_exact.py",
            "tests/test_balance.py", "tests/test_hostile.py",
            "tests/test_discover.py", "quotientnet/group.py", "quotientnet/units.py",
            "quotientnet/layout.py", "quotientnet/gram.py", "quotientnet/exact.py",
            "quotientnet/couplings.py",
        ),
    ),
    "solver": Room(
        ("exponents.py", "recession.py", "aggregation.py", "descent.py", "exponential.py"),
        (
            "tests/test_solver_parts.py", "tests/test_exponential.py",
            "tests/test_warm_starts.py", "tests/test_balance.py", "tests/test_normalised.py",
            "quotientnet/exponential.py", "quotientnet/descent.py",
        ),
    ),
    "elsewhere": Room((), ("tests", "quotientnet"), others=True),
}  # fmt: skip
