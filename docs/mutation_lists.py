"""The page ``mutation.rst``'s lists, from the JSON that ``tests/mutation`` wrote."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from tables import table

FOLDER = Path(__file__).parent


def write() -> None:
    """Write a table of scores, and for each room what survived and what cannot be noticed."""
    target = FOLDER / "_generated"
    target.mkdir(exist_ok=True)
    rooms = json.loads((FOLDER / "results/mutation.json").read_text(encoding="utf-8"))
    (target / "mutation.rst").write_text(_scores(rooms), encoding="utf-8")
    (target / "survivors.rst").write_text(_survivors(rooms), encoding="utf-8")


def _scores(rooms: dict) -> str:
    rows = [["Room", "Changes", "Tried", "Noticed", "Cannot be noticed", "Survived", "Score"]]
    for name, room in rooms.items():
        noticed = room["killed"] + room["timeout"]
        possible = room["judged"] - len(room["explained"])
        counts = room["mutants"], room["judged"], noticed, len(room["explained"])
        counts += (len(room["survivors"]),)
        rows.append([name, *(f"{count:,}" for count in counts), f"{noticed / possible:.1%}"])
    return table(rows)


def _survivors(rooms: dict) -> str:
    lines = []
    for name, room in rooms.items():
        lines += [f"**{name}, survived**", "", *_block(room["survivors"]), ""]
        by_reason = defaultdict(list)
        for change, reason in room["explained"].items():
            by_reason[reason].append(change)
        if by_reason:
            lines += [f"**{name}, cannot be noticed**", ""]
        for reason, changes in sorted(by_reason.items()):
            lines += [f"{reason[0].upper()}{reason[1:]}:", "", *_block(sorted(changes)), ""]
    return "\n".join(lines) + "\n"


def _block(changes: list[str]) -> list[str]:
    shown = (change.removeprefix("quotientnet/") for change in changes)
    return [".. code-block:: text", "", *(f"   {change}" for change in shown)]
