"""Judge the tests by mutation: which small changes of the library does no test notice?

``python tests/mutation ROOM [--output FOLDER] [--sample N] [--seconds S] [--workers N] [--again]
[--report] [--write FILE]``, from the repository's root; it needs coverage. ROOM is one of
``geometry``, ``groups`` and ``solver``, of which every line is changed, or ``elsewhere``, of which
a seeded sample is. First the room's own tests run once, to know which of them reaches which line
(``ROOM_tests.json``); then each mutant is tried on those that reach its line, the quickest first,
until their time is over or one fails. Every verdict is a line of ``ROOM.jsonl``, and a second call
goes on where the first one stopped; ``--again`` gives mutants that survived ten times as long.
"""

from __future__ import annotations

import argparse
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from coverage_map import record
from judge import KILLED, SURVIVED, TIMEOUT, verdict, warm_up
from mutants import Mutant, mutants
from rooms import ROOMS

UNREACHED = "no test"
SEED = 0


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--output", type=Path, default=Path("mutation-results"))
    parser.add_argument("--sample", type=int, default=300, help="mutants of elsewhere")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each mutant")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="try survivors for longer")
    parser.add_argument("--report", action="store_true", help="only say what is known")
    parser.add_argument("--write", type=Path, help="a JSON file for what is known of the room")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    judged = Judged(options.output / f"{options.room}.jsonl")
    if options.report:
        return _report(options, judged)
    known = _tests(options)
    warm_up()
    _require_sound(known)
    left = [m for m in _chosen(options) if judged.is_open(m, options.again)]
    print(f"{options.room}: {len(left)} mutants to judge", flush=True)
    seconds = options.seconds * (10 if options.again else 1)

    def judge(mutant: Mutant) -> None:
        tests = _reaching(mutant, known, seconds)
        budget = 10 + 4 * sum(known["seconds"][t] for t in tests)
        judged.add(mutant, verdict(mutant, tests, budget) if tests else UNREACHED)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(judge, left))
    _report(options, judged)


def _report(options, judged: Judged) -> None:
    facts = judged.facts(len(_chosen(options)))
    if options.write:
        _written(options.write, options.room, facts)
    noticed = 1 - len(facts["survivors"]) / max(facts["judged"], 1)
    print(*facts["survivors"], sep="\n")
    print(f"{facts['judged']} of {facts['mutants']} judged: {noticed:.1%} noticed")


class Judged:
    """Verdicts, a line each; of several on one mutant the last counts."""

    def __init__(self, path: Path):
        self.path, self.verdicts = path, {}
        for line in path.read_text().splitlines() if path.exists() else []:
            row = json.loads(line)
            self.verdicts[Mutant(*row["mutant"])] = row["verdict"]

    def is_open(self, mutant: Mutant, again: bool) -> bool:
        found = self.verdicts.get(mutant)
        return found is None or (again and found == SURVIVED)

    def add(self, mutant: Mutant, found: str) -> None:
        self.verdicts[mutant] = found
        fields = (mutant.path, mutant.line, mutant.column, mutant.before, mutant.after)
        with self.path.open("a") as file:
            file.write(json.dumps({"mutant": fields, "verdict": found}) + "\n")

    def facts(self, total: int) -> dict:
        """Counts, and those that no test notices."""
        found = list(self.verdicts.values())
        missed = [str(m) for m, v in self.verdicts.items() if v in (SURVIVED, UNREACHED)]
        return {
            "mutants": total,
            "judged": len(found),
            "killed": found.count(KILLED),
            "timeout": found.count(TIMEOUT),
            "unreached": found.count(UNREACHED),
            "survivors": sorted(missed),
        }


def _written(path: Path, room: str, facts: dict) -> None:
    """One room of a file of results; the others are kept."""
    rooms = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(rooms | {room: facts}, indent=1, sort_keys=True) + "\n")


def _chosen(options) -> list[Mutant]:
    """All mutants of a room, or a sample; in an order that spreads over files."""
    files = ROOMS[options.room].files()
    found = [m for file in files for m in mutants(file)]
    random.Random(SEED).shuffle(found)
    return found[: options.sample] if options.room == "elsewhere" else found


def _tests(options) -> dict:
    """What the room's tests reach, recorded if it is not yet."""
    target = options.output / f"{options.room}_tests.json"
    if not target.exists():
        room = ROOMS[options.room]
        print(f"{options.room}: its own tests, once", flush=True)
        record(room.files(), room.tests, target)
        raise SystemExit("recorded; call again to judge")
    return json.loads(target.read_text())


def _require_sound(known: dict, seconds: float = 60.0) -> None:
    """Tests that fail on the library as it is would notice everything."""
    tests, total = [], 0.0
    for test in sorted(known["seconds"].keys() - set(known["failed"]), key=known["seconds"].get):
        total += known["seconds"][test]
        if total > seconds:
            break
        tests.append(test)
    if verdict(None, tests, 10 + 4 * seconds) != SURVIVED:
        raise RuntimeError(f"one of {len(tests)} tests fails without a change; mend it first")
    print(f"{len(tests)} of {len(known['seconds'])} tests pass without a change", flush=True)


def _reaching(mutant: Mutant, known: dict, seconds: float) -> list[str]:
    """Tests that reach a line or, where it runs at import, the file; the quickest first."""
    lines = known["lines"][mutant.path]
    height = len(mutant.before.splitlines())
    reaching = {
        test for k in range(height) for test in lines.get(str(mutant.line + k), ())
    }
    if not reaching:
        reaching = {test for tests in lines.values() for test in tests}
    ordered = sorted(reaching - set(known["failed"]), key=known["seconds"].get)
    chosen, total = [], 0.0
    for test in ordered:
        total += known["seconds"][test]
        if chosen and total > seconds:
            break
        chosen.append(test)
    return chosen


if __name__ == "__main__":
    main()
