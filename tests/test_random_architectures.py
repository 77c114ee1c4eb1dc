"""Random architectures: both oracles on drawn ones, and the laws of the generator itself."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import quotientnet as qn
from quotientnet.symmetry import RULES
from quotientnet.testing import (
    Architecture,
    Step,
    architectures,
    minimised,
    random_architecture,
    without_effect,
)
from quotientnet.testing.drawn.registry import OPERATIONS

QUICK = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@QUICK
@given(network=architectures(most=12))
def test_sound_and_complete(network):
    inputs = network.inputs()
    symmetry = qn.discover(network, inputs)
    assert not symmetry.unknown
    qn.verify_sound(network, symmetry, inputs, modes=["own"]).require()
    qn.verify_complete(network, symmetry, inputs).require()


@settings(QUICK, max_examples=20)
@given(network=architectures())
def test_a_drawn_network_is_its_program(network):
    again = eval(repr(network), {"Architecture": Architecture, "Step": Step})
    assert repr(again) == repr(network)
    same = network.inputs(3)
    assert all((a == b).all() for a, b in zip(same, again.inputs(3)))
    network.eval(), again.eval()
    assert all(torch.equal(a, b) for a, b in zip(network(*same), again(*same)))


@settings(QUICK, max_examples=20)
@given(network=architectures())
def test_every_step_is_needed_and_has_an_effect(network):
    assert 5 <= network.operations.total() <= 40
    assert not without_effect(network)
    assert set(network.unread) <= set(network.outputs)
    assert all(y.shape[0] == 5 for y in network(*network.inputs()))


@given(seed=st.integers(0, 1000))
@settings(QUICK, max_examples=10)
def test_a_seed_is_a_network(seed):
    assert repr(random_architecture(seed)) == repr(random_architecture(seed))


SELDOM = ("group_norm", "shuffle")
"""They take images of four channels, which none of the thousand has where it could be used."""


@pytest.mark.parametrize("name, dimension", [("group_norm", 6), ("shuffle", 4)])
def test_what_is_seldom_drawn(name, dimension):
    options = {"affine": True} if name == "group_norm" else {}
    network = Architecture(
        Step("input", shape=(2, 4, 4), image=True),  # 0
        Step("conv", 0, out=4, size=3, groups=1, same=True, bias=True),  # 1
        Step(name, 1, **options),  # 2
        Step("relu", 2),  # 3
        Step("conv", 3, out=2, size=1, groups=1, same=True, bias=True),  # 4
    )
    inputs = network.inputs()
    symmetry = qn.discover(network, inputs)
    qn.verify_sound(network, symmetry, inputs, modes=["own"]).require()
    qn.verify_complete(network, symmetry, inputs).require()
    assert symmetry.group.dimension == dimension


def test_every_operation_occurs_among_the_thousand():
    results = Path(__file__).parents[1] / "docs/results/random_architectures.json"
    facts = json.loads(results.read_text())
    registered = {name for own in OPERATIONS.values() for name in own}
    assert registered | {"again", "embedding"} == {*facts["operations"], *SELDOM}
    drawn = sum((random_architecture(s).operations for s in range(8)), start=Counter())
    assert set(drawn) <= set(facts["operations"])


def test_a_wrong_rule_is_found_and_made_small(monkeypatch):
    """GELU as if it were homogeneous: the smallest network with it is left."""
    monkeypatch.setitem(RULES, "aten::gelu", RULES["aten::relu"])

    def fails(network):
        inputs = network.inputs()
        symmetry = qn.discover(network, inputs)
        return not qn.verify_sound(network, symmetry, inputs, modes=["own"]).holds

    seeds = (s for s in range(500) if "gelu" in random_architecture(s).operations)
    found = next(n for n in map(random_architecture, seeds) if fails(n))
    small = minimised(found, fails)
    assert small.operations["gelu"] == 1 and small.operations.total() <= 4


def test_an_unknown_operation_is_named():
    with pytest.raises(ValueError, match="'nothing'.*no operation"):
        Architecture(Step("input", shape=(3,)), Step("nothing", 0))
    with pytest.raises(ValueError, match=r"step 1, 'matmul'.*\(3,\)"):
        Architecture(Step("input", shape=(3,)), Step("matmul", 0, 0))
    with pytest.raises(ValueError, match="'linear' reads result 4"):
        Architecture(Step("input", shape=(3,)), Step("linear", 4, out=2, bias=True))


def test_bad_input_is_answered():
    network = random_architecture(0)
    for call, message in (
        (lambda: random_architecture("a"), "seed must be an integer, got 'a'"),
        (
            lambda: random_architecture(0, least=1.5),
            "least must be an integer, got 1.5",
        ),
        (lambda: minimised("a", bool), "minimised: network must be an Arch.*got str"),
        (lambda: minimised(network, 3), "fails must be a function .*got int"),
        (lambda: without_effect("a"), "without_effect: network must be .*got str"),
        (lambda: without_effect(network, "a"), "samples must be an integer, got 'a'"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    for call, message in (
        (lambda: random_architecture(0, least=9, most=3), "got most=3 and least=9"),
        (lambda: random_architecture(1, most=4), "got most=4 and least=5; pass both"),
        (lambda: random_architecture(0, least=0), "least must be an integer of at least 1, got 0"),
        (lambda: random_architecture(-1), "seed must be an integer of at least 0, got -1"),
        (
            lambda: architectures(least=9, most=3),
            "architectures: most must be at least",
        ),
        (lambda: minimised(network, lambda n: False), r"fails\(network\) is false"),
        (lambda: without_effect(network, 0), "samples must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_random_state_is_left_alone():
    state = torch.get_rng_state()
    network = random_architecture(3, most=8)
    small = minimised(network, lambda n: n.operations.total() > 1)
    without_effect(small)
    assert torch.get_rng_state().equal(state)
    assert small.operations.total() == 2
