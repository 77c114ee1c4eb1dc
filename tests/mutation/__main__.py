"""Judge the tests by mutation: which small changes of the library does no test notice?

``python tests/mutation ROOM [--output FOLDER] [--sample N] [--seconds S] [--workers N] [--again]
[--report] [--write FILE]``, from the repository's root; it needs coverage. ROOM is one of
``geometry``, ``groups`` and ``solver``, of which every line is changed, or ``elsewhere``, of which
a seeded sample is. First the room's own tests run once, to know which of them reaches which line;
then each mutant is tried on those that reach its line, a quick case of each test before its others,
until their time is over or one fails. Every verdict is a line of ``ROOM.jsonl``, and a second call
goes on where the first one stopped; ``--again`` gives mutants that survived ten times as long.
Survivors that were looked at and that no test can notice are in ``reviewed.json``, with the reason.
``python tests/mutation coverage`` runs all tests once, and says which lines and branches they run.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

from children import Job, run
from coverage_map import covered, known, record
from judge import KILLED, SURVIVED, TIMEOUT, judge, judge_loaded, warm_up
from mutants import Mutant, mutants
from rooms import ROOMS

UNREACHED = "no test"
SEED = 0

REVIEWED = Path(__file__).with_name("reviewed.json")
"""Reasons by file and ``Mutant.place``."""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("room", choices=[*ROOMS, "coverage"])
    parser.add_argument("--output", type=Path, default=Path("docs/results/mutation"))
    parser.add_argument("--sample", type=int, default=300, help="mutants of elsewhere")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each mutant")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="try survivors for longer")
    parser.add_argument("--report", action="store_true", help="only say what is known")
    parser.add_argument("--write", type=Path, help="a JSON file for what is known of the room")
    options = parser.parse_args()
    runs = options.output / "runs"
    warm_up()
    if options.room == "coverage":
        tests = ROOMS["elsewhere"].test_files()
        record(tests, runs, options.workers)
        return _report(options, covered(tests, runs))
    chosen = _chosen(options)
    judged = Judged(options.output / f"{options.room}.jsonl")
    if not options.report:
        record(ROOMS[options.room].test_files(), runs, options.workers)
        _judge(options, chosen, judged, runs)
    facts = judged.facts(chosen)
    print(*facts["survivors"], sep="\n")
    noticed = facts["killed"] + facts["timeout"]
    possible = facts["judged"] - len(facts["explained"])
    print(f"{noticed / max(possible, 1):.1%} of those that a test can notice are noticed")
    _report(options, facts)


def _judge(options, chosen: list[Mutant], judged: Judged, runs: Path) -> None:
    room = ROOMS[options.room]
    reached = known(room.test_files(), runs, room.files())
    seconds = options.seconds * (10 if options.again else 1)
    left = [m for m in chosen if judged.is_open(m, options.again)]
    print(f"{options.room}: {len(left)} mutants to judge", flush=True)
    loaded, imported = [], []
    for mutant in left:
        tests, at_import = _reaching(mutant, reached)
        tests, budget = _within(tests, reached, seconds)
        if tests:
            (imported if at_import else loaded).append((mutant, tests, budget))
        else:
            judged.add(mutant, UNREACHED)
    passing = reached["seconds"].keys() - reached["failed"]
    sound = None, *_within(passing, reached, 60.0)
    _in_a_child(lambda: judge_loaded([sound], _require_sound, 1))
    _in_a_child(lambda: judge_loaded(loaded, judged.add, options.workers))
    done = judged.read()
    imported += [task for task in loaded if task[0] not in done]
    judge(imported, judged.add, options.workers)


def _reaching(mutant: Mutant, reached: dict) -> tuple[set[str], bool]:
    """Tests that reach a line or else the file, and whether it runs at import."""
    lines = reached["lines"][mutant.path]
    height = len(mutant.before.splitlines())
    found = set().union(*(lines.get(mutant.line + k, ()) for k in range(height)))
    at_import = "" in found
    tests = found - reached["failed"] - {""}
    if not tests and at_import:
        tests = set().union(*lines.values()) - reached["failed"] - {""}
    return tests, at_import


def _within(tests: set[str], reached: dict, seconds: float) -> tuple[list[str], float]:
    """As many as can be run in the time, one at least if there are any; and when to stop them.

    Cases of one test take turns with those of others; the quicker come first.
    """
    costs, turns = reached["seconds"], defaultdict(int)
    ordered = []
    for test in sorted(tests, key=lambda t: (costs[t], t)):
        name = test.partition("[")[0]
        ordered.append((turns[name], costs[test], test))
        turns[name] += 1
    chosen, total = [], 0.0
    for _, cost, test in sorted(ordered):
        if not chosen or total + cost <= seconds:
            chosen.append(test)
            total += cost
    return chosen, 10 + 4 * total


def _in_a_child(function) -> None:
    """What imports the library, which this process must not."""

    def job() -> int:
        function()
        return 0

    if any(status for _, status in run([Job(None, job, seconds=1e6)], 1)):
        raise SystemExit("see above")


def _require_sound(_, word: str) -> None:
    """Tests that fail on the library as it is would notice everything."""
    if word != SURVIVED:
        raise RuntimeError(f"tests without a change: {word}; mend them first")
    print("its tests pass without a change", flush=True)


class Judged:
    """Verdicts, a line each; of several on one mutant the last counts."""

    def __init__(self, path: Path):
        self.path, self.verdicts = path, {}
        self.read()

    def read(self) -> set[Mutant]:
        """Those that were judged, by this process or another."""
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            row = json.loads(line)
            self.verdicts[Mutant(*row["mutant"])] = row["verdict"]
        return set(self.verdicts)

    def is_open(self, mutant: Mutant, again: bool) -> bool:
        found = self.verdicts.get(mutant)
        return found is None or (again and found in (SURVIVED, UNREACHED))

    def add(self, mutant: Mutant, found: str) -> None:
        self.verdicts[mutant] = found
        fields = (mutant.path, mutant.line, mutant.column, mutant.before, mutant.after)
        with self.path.open("a") as file:
            file.write(json.dumps({"mutant": fields, "verdict": found}) + "\n")

    def facts(self, chosen: list[Mutant]) -> dict:
        """Counts, those that no test can notice with the reasons, and those that none does."""
        found = {m: self.verdicts[m] for m in chosen if m in self.verdicts}
        words = list(found.values())
        missed = [m for m, word in found.items() if word in (SURVIVED, UNREACHED)]
        reviewed = json.loads(REVIEWED.read_text())
        reasons = {m: reviewed.get(m.path, {}).get(m.place) for m in missed}
        explained = {str(m): reason for m, reason in reasons.items() if reason}
        return {
            "mutants": len(chosen),
            "judged": len(words),
            "killed": words.count(KILLED),
            "timeout": words.count(TIMEOUT),
            "unreached": words.count(UNREACHED),
            "explained": explained,
            "survivors": sorted(str(m) for m, reason in reasons.items() if not reason),
        }


def _report(options, facts: dict) -> None:
    """Print counts, and put them into a file of results, whose others are kept."""
    print(*(f"{key} {value}" for key, value in facts.items() if isinstance(value, int)), sep=", ")
    if options.write:
        rooms = json.loads(options.write.read_text()) if options.write.exists() else {}
        rooms[options.room] = facts
        options.write.write_text(json.dumps(rooms, indent=1, sort_keys=True) + "\n")


def _chosen(options) -> list[Mutant]:
    """All mutants of a room, or a sample; in an order that spreads over files."""
    files = ROOMS[options.room].files()
    found = [m for file in files for m in mutants(file)]
    random.Random(SEED).shuffle(found)
    return found[: options.sample] if options.room == "elsewhere" else found


if __name__ == "__main__":
    main()
