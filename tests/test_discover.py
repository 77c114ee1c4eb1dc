"""The derived group of a module: sound, complete, explained; and what it refuses."""

import copy

import chains
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import (
    ARCHITECTURES,
    Block,
    asks_for_mode,
    conv,
    dense,
    derive,
    head,
    norm,
)
from cases import NETWORKS
from hypothesis import Phase, given, settings
from torch import nn
from torch.nn.utils import prune

import quotientnet as qn
from quotientnet.testing.networks import networks

BOTH = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def same_range(a, b):
    """Whether two matrices have the same column space."""
    ranks = [
        np.linalg.matrix_rank(m) if m.size else 0 for m in (a, b, np.hstack([a, b]))
    ]
    return ranks[0] == ranks[1] == ranks[2]


# -- sound and complete ---


@BOTH
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sound_complete_and_of_the_dimension_by_hand(name, training):
    model, inputs, symmetry = derive(name, training)
    group = symmetry.group
    assert group.dimension == ARCHITECTURES[name].dimension
    assert np.linalg.matrix_rank(group.to_dense()) == group.dimension
    assert (group.to_dense() == group.to_dense().round()).all()
    qn.verify_sound(model, symmetry, inputs).require()
    if training or asks_for_mode(model, inputs):
        found = qn.verify_complete(model, symmetry, inputs).require()
        assert found.gap > 1e6
        # A bias before layer normalisation has an effect, its first scale has not.
        assert found.found == group.dimension or name == "layer normalisation"


def test_mode_is_asked_for_by_normalisation_and_dropout_alone():
    x = torch.randn(4, 3)
    for layer in (nn.BatchNorm1d(3), nn.Dropout(0.5), nn.MultiheadAttention(3, 1)):
        inputs = (x, x, x) if isinstance(layer, nn.MultiheadAttention) else x
        assert asks_for_mode(layer, inputs)
    assert not asks_for_mode(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), x)


@pytest.mark.slow
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
)
@given(model=networks())
def test_sound_and_complete_on_drawn_networks(model):
    inputs = torch.randn(
        5, 2, 4, 4, generator=torch.Generator().manual_seed(0)
    ).double()
    symmetry = qn.discover(model, inputs)
    assert not symmetry.unknown
    qn.verify_sound(model, symmetry, inputs, modes=["own"]).require()
    qn.verify_complete(model, symmetry, inputs).require()


@pytest.mark.parametrize("name", NETWORKS)
def test_chains_have_the_groups_written_by_hand(name):
    model, (inputs, _) = NETWORKS[name].build(), NETWORKS[name].data()
    symmetry = qn.discover(model, inputs)
    layout = symmetry.group.layout
    whole, coarse = chains.node_wise_group(layout), chains.layer_scale_group(layout)
    assert same_range(symmetry.group.to_dense(), whole.to_dense())
    assert same_range(symmetry.layer_scales.to_dense(), coarse.to_dense())
    qn.verify_sound(model, whole, inputs).require()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layer_scales_are_all_that_is_uniform_on_each_tensor(name):
    *_, symmetry = derive(name)
    whole, coarse = symmetry.group, symmetry.layer_scales
    uniform = np.zeros((whole.layout.size, len(whole.layout.entries)))
    for number, entry in enumerate(whole.layout.entries):
        uniform[entry.slice, number] = 1
    a, b = whole.to_dense(), coarse.to_dense()
    both = (
        a.shape[1] + uniform.shape[1] - np.linalg.matrix_rank(np.hstack([a, uniform]))
    )
    assert coarse.dimension == both == np.linalg.matrix_rank(b)
    assert same_range(np.hstack([a, b]), a) and same_range(
        np.hstack([uniform, b]), uniform
    )
    assert qn.layer_scale_group(coarse) is coarse


@pytest.mark.slow
def test_a_wide_network_is_complete_by_rows_and_columns():
    model = nn.Sequential(
        conv(2, 24), nn.ReLU(), conv(24, 24, groups=3), nn.ReLU(), head(24)
    )
    inputs = torch.randn(4, 2, 6, 6)
    symmetry = qn.discover(model, inputs)
    found = qn.verify_complete(model, symmetry, inputs).require()
    assert found.candidates == "rows and columns" and found.found == 48
    fewer = qn.ScalingGroup(
        symmetry.group.layout, symmetry.group.incidence, symmetry.group.classes[:, 1:]
    )
    short = qn.verify_complete(model, fewer, inputs)
    assert short.missing == 1 and "0.weight" in short.where


def test_quotients_take_what_it_returns():
    model, inputs, symmetry = derive("residual")
    w = symmetry.group.layout.flatten(model)
    moved = symmetry.group.act(
        w, symmetry.group.random(generator=torch.Generator().manual_seed(0))
    )
    for kind in (qn.NodeWiseQuotient, qn.LogPolarQuotient):
        assert kind(symmetry).dist(w, moved) < 1e-12
        assert kind(symmetry).group == kind(symmetry.group).group
    coarse = qn.LayerScaleQuotient(symmetry)
    assert coarse.group == symmetry.layer_scales and coarse.dist(w, moved) > 0.1


# -- compactness ---


def test_exponents_are_compact():
    model = nn.Sequential(
        conv(2, 6), nn.ReLU(), conv(6, 4, groups=2), nn.ReLU(), head(4)
    )
    group = qn.discover(model, torch.randn(2, 2, 6, 6)).group
    shapes = {n: [t.index.shape for t in terms] for n, terms in group.incidence.items()}
    assert shapes["0.weight"] == [(6, 1, 1, 1)]
    assert shapes["2.weight"] == [(4, 1, 1, 1), (4, 3, 1, 1)]
    assert shapes["4.2.weight"] == [(1, 4)]


# -- ties, frozen parameters, constants ---


def test_ties_survive():
    a, b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    b.weight = a.weight
    model = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), a, nn.ReLU(), b, nn.ReLU(), nn.Linear(4, 2)
    )
    symmetry = qn.discover(model, torch.randn(6, 4))
    assert symmetry.group.layout.aliases == {"4.weight": "2.weight"}
    assert symmetry.group.dimension == 5
    w = symmetry.group.layout.flatten(model)
    moved = copy.deepcopy(model)
    symmetry.group.layout.assign(
        moved, symmetry.group.act(w, symmetry.group.random().float())
    )
    assert moved[2].weight is moved[4].weight
    qn.verify_sound(model, symmetry, torch.randn(6, 4)).require()


def test_a_layout_with_frozen_parameters_gives_them_a_scale():
    model = ARCHITECTURES["frozen bias"].build()
    layout = qn.ParameterLayout.from_module(model, include_frozen=True)
    assert (
        qn.discover(model, torch.randn(6, 4).double(), layout=layout).group.dimension
        == 3
    )


def test_indices_from_the_data_and_constant_ones():
    def by_data(m, x, i):
        return m.o(F.relu(m.a(x))[:, i])

    model = Block(by_data, a=nn.Linear(4, 3), o=nn.Linear(3, 2))
    inputs = (torch.randn(6, 4), torch.tensor([2, 0, 1]))
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == 1
    qn.verify_sound(model, symmetry, inputs).require()
    qn.verify_complete(model, symmetry, inputs).require()

    class Permuted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.o = nn.Linear(4, 3), nn.Linear(3, 2)
            self.register_buffer("order", torch.tensor([2, 0, 1]))

        def forward(self, x):
            return self.o(F.relu(self.a(x)).index_select(1, self.order))

    assert qn.discover(Permuted(), inputs[0]).group.dimension == 3


def test_a_module_without_values_has_a_symmetry():
    class Permuted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n, self.o = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
            self.register_buffer("order", torch.tensor([2, 0, 1]))

        def forward(self, x):
            return self.o(F.relu(self.n(self.a(x))))

    symmetry = qn.discover(Permuted().to("meta"), torch.randn(6, 4, device="meta"))
    assert symmetry.group.dimension == 6 and symmetry.approximate[0].size is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "name", ["resnet, normalised", "channel shuffle", "written in place"]
)
def test_on_gpu(name):
    architecture = ARCHITECTURES[name]
    model, inputs = architecture.build().cuda(), architecture.inputs().cuda()
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == architecture.dimension
    qn.verify_sound(model, symmetry, inputs).require()
    qn.verify_complete(model, symmetry, inputs).require()


def test_a_pruned_layer_keeps_its_units():
    layer = nn.Linear(4, 3)
    prune.custom_from_mask(layer, "weight", torch.eye(3, 4))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(3, 2))
    inputs = torch.randn(6, 4)
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == 3
    qn.verify_sound(model, symmetry, inputs).require()


@pytest.mark.parametrize(
    "inputs", [torch.randn(6, 4), (torch.randn(6, 4),), {"x": torch.randn(6, 4)}]
)
def test_inputs_by_position_and_by_name(inputs):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = dense(4, 3, 2)

        def forward(self, x, scale=None):
            return {"logits": self.layers(x), "scale": scale}

    model = Named()
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == 3
    qn.verify_sound(model, symmetry, inputs).require()
    qn.verify_complete(model, symmetry, inputs).require()


def test_nothing_of_the_users_changes():
    model = nn.Sequential(
        conv(2, 3), norm(3), nn.ReLU(inplace=True), nn.Dropout(), head(3)
    ).train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    inputs = torch.randn(4, 2, 8, 8)
    kept = inputs.clone()
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    torch.manual_seed(1)
    random = torch.get_rng_state()
    symmetry = qn.discover(model, inputs)
    qn.verify_sound(model, symmetry, inputs)
    qn.verify_complete(model, symmetry, inputs)
    str(symmetry)
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(inputs, kept)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_network_that_changes_its_input_in_place():
    model = nn.Sequential(nn.ReLU(inplace=True), *dense(4, 3, 2))
    inputs = torch.randn(6, 4)
    kept = inputs.clone()
    assert qn.discover(model, inputs).group.dimension == 3
    assert torch.equal(inputs, kept)


def test_state_that_the_module_updates_keeps_its_scale():
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.o = nn.Linear(4, 3), nn.Linear(3, 2)
            self.register_buffer("seen", torch.ones(3))

        def forward(self, x):
            h = F.relu(self.a(x))
            self.seen.mul_(0.9).add_(0.1 * h.detach().mean(0))
            return self.o(h)

    model = Average()
    symmetry = qn.discover(model, torch.randn(6, 4))
    assert symmetry.group.dimension == 0
    assert symmetry.pinned[0].operation == "add_"


@pytest.mark.skipif(
    torch.__version__.startswith("2.9."),
    reason="torch.export of 2.9 refuses attributes that a forward creates",
)
def test_attributes_that_the_forward_assigns_stay_real():
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.o, self.calls, self.seen = (
                nn.Linear(4, 3),
                nn.Linear(3, 2),
                0,
                [],
            )

        def forward(self, x):
            self.hidden, self.calls = F.relu(self.a(x)), self.calls + 1
            self.seen.append(self.hidden)
            return self.o(self.hidden)

    model = Remembering()
    assert qn.discover(model, torch.randn(6, 4)).group.dimension == 3
    assert model.calls == 0 and model.seen == [] and not hasattr(model, "hidden")


def test_a_number_taken_from_a_tensor_is_pinned():
    model = Block(
        lambda m, x: m.o(F.relu(m.a(x))) * m.a.weight.norm().item(),
        a=nn.Linear(4, 3), o=nn.Linear(3, 2),
    )  # fmt: skip
    symmetry = qn.discover(model, torch.randn(6, 4))
    assert symmetry.group.dimension == 0
    assert "item" in {c.operation for c in symmetry.unknown}


def test_exponents_that_no_number_holds_are_refused():
    def towering(m, x):
        h = m.a(x)
        for _ in range(40):
            h = h * h
        return m.o(h)

    model = Block(towering, a=nn.Linear(4, 3), o=nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match="the rule of .* failed with OverflowError: an exponent"
    ):
        qn.discover(model, torch.randn(6, 4))
