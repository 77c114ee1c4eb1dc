"""The two verifications find what is wrong with a group, and say what."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, Block, conv, dense, head
from scipy import sparse
from torch import nn

import quotientnet as qn

NAMES = [
    "mlp",
    "resnet",
    "vgg, normalised",
    "densenet",
    "u-net",
    "applied twice without bias",
]


def derive(name):
    architecture = ARCHITECTURES[name]
    model, inputs = architecture.build(), architecture.inputs()
    return model, inputs, qn.discover(model, inputs).group


def with_classes(group, classes, names=None):
    return qn.ScalingGroup(group.layout, group.incidence, classes, names)


def with_wrong_generator(group):
    """The group with one generator more, that scales the first tensor's first row alone."""
    entry = group.layout.entries[0]
    index = np.zeros((entry.shape[0], *[1] * (len(entry.shape) - 1)), dtype=np.int64)
    index[0] = 1
    count = group.classes.shape[0]
    term = qn.Term(index + count, 1)
    incidence = dict(group.incidence) | {
        entry.name: (*group.incidence.get(entry.name, ()), term)
    }
    extra = sparse.csr_array(np.array([[0], [1]]))
    classes = sparse.block_diag([group.classes, extra], format="csr")
    return qn.ScalingGroup(
        group.layout, incidence, classes, [*group.names, "the wrong one"]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_generator_is_named_with_the_size_of_its_violation(name):
    model, inputs, group = derive(name)
    outcome = qn.verify_sound(model, with_wrong_generator(group), inputs)
    if "normalis" in name or name == "densenet":
        # Before a normalisation a lone row is wrong through its statistics, or only in eval mode.
        assert not outcome.holds
    assert not outcome.holds and "'the wrong one'" in outcome.generator
    size = float(re.search(r"changes outputs by (\S+) in", outcome.generator)[1])
    assert size > outcome.tolerance and outcome.violation >= 0.1 * size
    with pytest.raises(AssertionError, match="not sound: outputs change by"):
        outcome.require()


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_generator_is_extra_to_the_derivatives(name):
    model, inputs, group = derive(name)
    found = qn.verify_complete(model.eval(), with_wrong_generator(group), inputs)
    assert found.extra == 1 and found.missing == 0
    with pytest.raises(AssertionError, match="1 that are no symmetries"):
        found.require()


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_generator_is_found_with_its_parameters(name):
    model, inputs, group = derive(name)
    left_out = group.dimension // 2
    moved = group.exponents(torch.eye(group.dimension, dtype=torch.float64))[left_out]
    kept = [j for j in range(group.dimension) if j != left_out]
    short = with_classes(group, group.classes[:, kept])
    qn.verify_sound(model, short, inputs).require()
    found = qn.verify_complete(model.eval(), short, inputs)
    assert (found.missing, found.extra) == (1, 0)
    names = {e.name for e in group.layout.entries if moved[e.slice].any()}
    assert names <= set(found.where)


def test_a_small_violation_is_a_violation():
    class Nearly(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.strength = dense(4, 3, 2), 1e-6

        def forward(self, x):
            h = self.layers[0](x)
            return self.layers[2](F.relu(h)) + self.strength * torch.tanh(h).sum()

    model, inputs = Nearly(), torch.randn(6, 4)
    layout = qn.ParameterLayout.from_module(model)
    scales = (qn.Scale("layers.0.weight", 0), qn.Scale("layers.0.bias", 0),
              qn.Scale("layers.2.weight", 1, -1))  # fmt: skip
    group = qn.ScalingGroup.from_units(layout, [qn.Unit("hidden", 3, scales)])
    assert 1e-8 < qn.verify_sound(model, group, inputs).violation < 1e-3
    assert qn.discover(model, inputs).group.dimension == 0
    model.strength = 0.0
    qn.verify_sound(model, group, inputs).require()


def test_a_violation_in_one_mode_only_names_the_mode():
    class Modal(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = dense(4, 3, 2)

        def forward(self, x):
            h = self.layers[0](x)
            return self.layers[2](F.relu(h) if self.training else F.gelu(h))

    model, inputs = Modal().train(), torch.randn(6, 4)
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == 3
    qn.verify_sound(model, symmetry, inputs, modes=["train"]).require()
    outcome = qn.verify_sound(model, symmetry, inputs)
    assert not outcome.holds and "in eval mode" in outcome.generator


def test_statistics_that_do_not_move_along_are_a_violation():
    model = nn.Sequential(conv(2, 3), nn.BatchNorm2d(3), nn.ReLU(), head(3)).train()
    inputs = torch.randn(4, 2, 8, 8)
    group = qn.discover(model, inputs).group
    fixed = {n: t for n, t in group.incidence.items() if "running" not in n}
    without = qn.ScalingGroup(group.layout, fixed, group.classes, group.names)
    assert not qn.verify_sound(model, without, inputs, modes=["train"]).holds


def test_shapes_are_tried_and_reported():
    model, inputs, group = derive("mlp")
    outcome = qn.verify_sound(model, group, inputs)
    assert [c for c in outcome.checked if "(7, 4)" in c]
    outcome = qn.verify_sound(model, group, inputs, second_inputs=inputs[:2])
    assert [c for c in outcome.checked if "(2, 4)" in c]
    single, x, small = derive("unbatched mlp")
    outcome = qn.verify_sound(single, small, x)
    assert outcome.holds and "refused by the model" in outcome.checked[0]
    with pytest.raises(ValueError, match=r"does not run on inputs of shape \(2, 5\)"):
        qn.verify_sound(model, group, inputs, second_inputs=torch.randn(2, 5))


def test_outputs_that_are_not_finite():
    model, inputs, group = derive("mlp")
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="no output of the model is finite"):
        qn.verify_sound(model, group, inputs)
    # Masked logits are infinite at all equivalent points.
    mask = torch.tensor([True, False, False])
    masked = Block(
        lambda m, x: m.b(F.relu(m.a(x))).masked_fill(mask, -torch.inf),
        a=nn.Linear(4, 6), b=nn.Linear(6, 3),
    )  # fmt: skip
    inputs = torch.randn(6, 4)
    symmetry = qn.discover(masked, inputs)
    assert symmetry.group.dimension == 6
    qn.verify_sound(masked, symmetry, inputs).require()
    masked.function = lambda m, x: m.b(F.gelu(m.a(x))).masked_fill(mask, -torch.inf)
    assert not qn.verify_sound(masked, symmetry, inputs).holds
    assert qn.verify_complete(masked, symmetry, inputs).extra > 0


def test_zeros_at_initialisation_hide_nothing():
    fresh = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    )
    layout = qn.ParameterLayout.from_module(fresh)
    scales = (
        qn.Scale("1.weight", 0),
        qn.Scale("3.weight", 1, -1),
    )  # forgets 1.bias, which is 0
    group = qn.ScalingGroup.from_units(layout, [qn.Unit("hidden", 6, scales)])
    inputs = torch.randn(6, 4)
    outcome = qn.verify_sound(fresh, group, inputs)
    assert not outcome.holds and "of hidden" in outcome.generator
    last = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))
    nn.init.zeros_(last[2].weight)
    layout = qn.ParameterLayout.from_module(last)
    group = qn.ScalingGroup.from_units(
        layout, [qn.Unit("hidden", 6, (qn.Scale("0.weight", 0),))]
    )
    assert not qn.verify_sound(last, group, inputs).holds


def test_small_outputs_count_beside_large_ones():
    model = Block(
        lambda m, x: torch.cat([1e5 * m.b(F.relu(m.a(x))), m.c(F.gelu(m.d(x)))], 1),
        a=nn.Linear(4, 6), b=nn.Linear(6, 3), c=nn.Linear(6, 3), d=nn.Linear(4, 6),
    )  # fmt: skip
    inputs = torch.randn(6, 4)
    layout = qn.ParameterLayout.from_module(model)
    scales = (
        qn.Scale("d.weight", 0),
        qn.Scale("d.bias", 0),
        qn.Scale("c.weight", 1, -1),
    )
    group = qn.ScalingGroup.from_units(layout, [qn.Unit("wrong", 6, scales)])
    assert not qn.verify_sound(model, group, inputs).holds
    assert qn.verify_complete(model, group, inputs).extra == 6


def test_a_wrong_entry_of_a_large_network_is_extra():
    model = dense(40, 40, 3)
    inputs = torch.randn(6, 40)
    group = qn.discover(model, inputs).group
    first = np.zeros((40, 40), dtype=np.int64)
    first[0, 0] = 1
    count = group.classes.shape[0]
    incidence = dict(group.incidence)
    incidence["0.weight"] = (*incidence["0.weight"], qn.Term(first + count, 1))
    classes = sparse.block_diag([group.classes, np.array([[0], [1]])], format="csr")
    wrong = qn.ScalingGroup(group.layout, incidence, classes)
    found = qn.verify_complete(model, wrong, inputs)
    assert found.candidates == "rows and columns" and found.extra == 1
    assert qn.verify_complete(model, group, inputs).require().found == 40


def test_jumps_are_invisible_to_derivatives_and_said_to_be():
    model = nn.Sequential(nn.Linear(4, 5), nn.Hardshrink(0.5), nn.Linear(5, 3))
    inputs = torch.randn(6, 4)
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == 0
    found = qn.verify_complete(model, symmetry, inputs)
    assert found.missing == 5 and found.jump > 0.01 and "crosses a jump" in str(found)


@pytest.mark.parametrize(
    "function",
    [
        lambda h: F.layer_norm(h, (4,)), lambda h: F.rms_norm(h, (4,)),
        lambda h: F.rms_norm(h, (4,), eps=1e-6), lambda h: F.group_norm(h, 2),
        lambda h: F.batch_norm(h, None, None, training=True),
        lambda h: torch.layer_norm(h, (4,), eps=1e-3), nn.RMSNorm(4),
    ],
)  # fmt: skip
def test_normalisations_of_every_kind_are_taken_exactly(function):
    model = Block(
        lambda m, x: m.b(function(m.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2)
    )
    inputs = torch.randn(8, 3)
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension >= 1
    outcome = qn.verify_sound(model, symmetry, inputs).require()
    assert outcome.eps_drift >= 0 and "with its own eps" in str(outcome)
    assert qn.verify_complete(model, symmetry, inputs).extra == 0


def test_a_frozen_normalisation_inside_train_mode():
    model = nn.Sequential(conv(2, 3), nn.BatchNorm2d(3), nn.ReLU(), head(3)).train()
    model[1].eval()
    inputs = torch.randn(4, 2, 6, 6)
    symmetry = qn.discover(model, inputs)
    outcome = qn.verify_sound(model, symmetry, inputs).require()
    assert {c.split(" mode")[0] for c in outcome.checked} == {"own", "train", "eval"}
    qn.verify_complete(model, symmetry, inputs).require()


def test_constant_channels_are_refused():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    symmetry = qn.discover(model, torch.randn(5, 4))
    with pytest.raises(
        ValueError, match="a channel is constant where it is to be normalised"
    ):
        qn.verify_sound(model, symmetry, torch.zeros(5, 4))


def test_options_that_check_nothing_are_refused():
    model, inputs, group = derive("mlp")
    for options in ({"samples": 0}, {"decades": -1.0}, {"tolerance": -1.0}):
        with pytest.raises(ValueError, match=f"verify_sound: {next(iter(options))} must be"):
            qn.verify_sound(model, group, inputs, **options)
    for modes in ((), ("training",), "train"):
        with pytest.raises(ValueError, match="modes must be some of"):
            qn.verify_sound(model, group, inputs, modes=modes)
    for call in (qn.verify_sound, qn.verify_complete):
        with pytest.raises(ValueError, match=r"shape \(0, 4\) is empty"):
            call(model, group, inputs[:0])
        with pytest.raises(ValueError, match="is on the meta device"):
            call(dense(4, 5, 3, 2).to("meta"), group, inputs)
        with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
            call(F.relu, group, inputs)


def test_no_more_derivatives_at_a_point_than_there_are_results():
    model = Block(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(20, 25), b=nn.Linear(25, 1))
    inputs = torch.randn(1, 20).double()  # one number: a second combination would say nothing
    found = qn.verify_complete(model.double(), qn.discover(model, inputs), inputs).require()
    assert found.rows < 1.5 * model.a.weight.numel()


def test_what_the_derivatives_cannot_see_is_refused():
    model = Block(lambda m, x: m.a(x).argmax(1), a=nn.Linear(4, 3))
    group = qn.ScalingGroup(qn.ParameterLayout.from_module(model), {})
    with pytest.raises(ValueError, match="returned no floating-point tensor"):
        qn.verify_sound(model, group, torch.randn(6, 4))
    model, inputs, group = derive("mlp")
    with pytest.raises(RuntimeError, match="the rank still grew after"):
        qn.verify_complete(model, group, inputs, max_rows=10)
    with pytest.raises(
        ValueError, match="the layout belongs to another model: it has '0.weight'"
    ):
        qn.verify_sound(dense(4, 6, 2), group, inputs)
    constant = nn.Sequential(
        nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
    ).double()
    symmetry = qn.discover(constant, inputs)
    with pytest.raises(RuntimeError, match="saw a constant channel"):
        qn.verify_complete(
            Block(lambda m, x: m.a(x[:1].expand(6, 4)), a=constant),
            qn.discover(Block(lambda m, x: m.a(x), a=constant), inputs), inputs,
        )  # fmt: skip
    assert symmetry.group.dimension == 6


def test_both_take_a_symmetry_or_a_group():
    model, inputs, group = derive("mlp")
    symmetry = qn.discover(model, inputs)
    assert qn.verify_complete(model, symmetry, inputs) == qn.verify_complete(
        model, group, inputs
    )
    for verify in (qn.verify_sound, qn.verify_complete):
        with pytest.raises(
            TypeError, match=f"{verify.__name__}: group must be a ScalingGroup"
        ):
            verify(model, "group", inputs)
        with pytest.raises(
            TypeError, match=f"{verify.__name__}: inputs must be a tensor"
        ):
            verify(model, group, 3)


def test_running_statistics_of_two_layers_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[2].running_mean = model[1].running_mean
    with pytest.raises(ValueError, match="'2.running_mean' is the running statistic"):
        qn.discover(model, torch.randn(5, 4))
    again = nn.Sequential(nn.Linear(4, 3), model[1], nn.ReLU(), nn.Linear(3, 3), model[1])
    assert qn.discover(again, torch.randn(5, 4)).group.dimension == 0
