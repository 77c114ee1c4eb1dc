"""Whatever strangers give to a public function: a documented error, or a result without NaN.

Nothing of the user's is changed by any call. Every argument of every call in ``hostile.py`` and
``hostile_rest.py`` is replaced by every value of ``malformed.py``: a run tries a seeded part,
``HOSTILE=all`` all.
"""

import os

import pytest
from answers import CALLS, chosen, fault, shared_world
from hostile import World

PART = None if os.environ.get("HOSTILE") == "all" else 3
SECONDS = 120


@pytest.mark.parametrize("label", CALLS)
def test_malformed_arguments_are_answered_and_change_nothing(label):
    found = {
        f"{label}({name}={kind})": fault(label, name, other, SECONDS)
        for name, kind, other in chosen(label, PART)
    }
    wrong = {call: what for call, what in found.items() if what}
    assert not wrong, "\n".join(f"{call}: {what}" for call, what in wrong.items())


@pytest.mark.parametrize("label", CALLS)
def test_the_call_itself_changes_nothing(label):
    world = shared_world()
    before = world.state()
    CALLS[label].function(**CALLS[label].arguments(world))
    assert world.changes(before) == [] or label in World.WRITES
