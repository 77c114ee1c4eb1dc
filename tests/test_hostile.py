"""Whatever strangers give to a public function: a documented error, or a result without NaN.

Nothing of the user's is changed by any call. Every argument of every call in ``hostile.py`` and
``hostile_rest.py`` is replaced by every value of ``malformed.py``: a run tries a seeded part,
``HOSTILE=all`` all.
"""

import os

import pytest
import torch
from answers import CALLS, chosen, fault, shared_world
from hostile import World
from malformed import Changed
from torch import nn

import quotientnet as qn

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


def test_what_was_not_answered_once_is_refused_by_name():
    world = shared_world()
    model, x, rows = world.model, world.x, world.w.expand(3, -1)
    nothing = Changed(model, lambda y: None)

    def on_meta():
        with torch.device("meta"):
            qn.discover(model, x)

    plain = nn.Sequential(nn.ReLU())
    for message, call in {
        "vmap": lambda: world.objective(rows),
        "needs one point": lambda: world.objective.value_and_gradient(rows),
        "returns no tensor": lambda: qn.discover(nothing, x),
        "default device is meta": on_meta,
        "ReLU|Sequential has no parameters at all": lambda: qn.discover(plain, x),
        "on_epoch must be a function": lambda: qn.training.train(
            model, torch.optim.SGD(model.parameters(), lr=0.1), world.loss, [world.data],
            epochs=1, on_epoch=3,
        ),
    }.items():  # fmt: skip
        before = world.state()
        with pytest.raises((TypeError, ValueError), match=message):
            call()
        assert world.changes(before) == []


def test_channels_of_huge_points_are_matched():
    world = shared_world()
    classes = qn.permutation_classes(world.model, world.x)
    other = classes[0].apply(world.w, torch.tensor([3, 1, 0, 2]))
    small = qn.symmetry.match_channels(other, world.w, classes)
    found = qn.symmetry.match_channels(2.0**1022 * other, 2.0**1022 * world.w, classes)
    assert torch.equal(found.w, 2.0**1022 * world.w)
    assert found.after == pytest.approx(small.after) == pytest.approx(1.0)
