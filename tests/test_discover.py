"""The derived group of a module: sound, complete, explained; and what it refuses."""

import copy
import json

import chains
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, EPS, Block, conv, dense, head, norm
from cases import NETWORKS
from hypothesis import Phase, given, settings
from torch import nn
from torch.nn.utils import prune

import quotientnet as qn
from quotientnet.symmetry import RULES, rule
from quotientnet.testing.networks import networks

BOTH = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
NORMALISED = [n for n in ARCHITECTURES if "normalis" in n or n == "densenet"]


def derive(name, training=False):
    """A network, its inputs and its symmetry."""
    architecture = ARCHITECTURES[name]
    model, inputs = architecture.build().train(training), architecture.inputs()
    return model, inputs, qn.discover(model, inputs)


def dense_exponents(group):
    return group.exponents(torch.eye(group.dimension, dtype=torch.float64)).T.numpy()


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
    assert np.linalg.matrix_rank(dense_exponents(group)) == group.dimension
    assert (dense_exponents(group) == dense_exponents(group).round()).all()
    qn.verify_sound(model, symmetry, inputs).require()
    found = qn.verify_complete(model, symmetry, inputs).require()
    assert found.gap > 1e6
    if (
        name != "layer normalisation"
    ):  # a bias before it has an effect, its first scale has not
        assert found.found == group.dimension


@settings(
    max_examples=60,
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
    assert same_range(dense_exponents(symmetry.group), dense_exponents(whole))
    assert same_range(dense_exponents(symmetry.layer_scales), dense_exponents(coarse))
    qn.verify_sound(model, whole, inputs).require()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layer_scales_are_all_that_is_uniform_on_each_tensor(name):
    *_, symmetry = derive(name)
    whole, coarse = symmetry.group, symmetry.layer_scales
    uniform = np.zeros((whole.layout.size, len(whole.layout.entries)))
    for number, entry in enumerate(whole.layout.entries):
        uniform[entry.slice, number] = 1
    a, b = dense_exponents(whole), dense_exponents(coarse)
    both = (
        a.shape[1] + uniform.shape[1] - np.linalg.matrix_rank(np.hstack([a, uniform]))
    )
    assert coarse.dimension == both == np.linalg.matrix_rank(b)
    assert same_range(np.hstack([a, b]), a) and same_range(
        np.hstack([uniform, b]), uniform
    )
    assert qn.layer_scale_group(coarse) is coarse


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


# -- explanations ---


def test_names_say_what_a_generator_scales():
    model = nn.Sequential(conv(2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 64, 2))
    group = qn.discover(model, torch.randn(4, 2, 8, 8)).group
    assert (
        group.names[1] == "0 channel 1: rows of 0.weight and bias, columns of 3.weight"
    )
    normalised = nn.Sequential(conv(2, 3), norm(3), nn.ReLU(), conv(3, 2))
    names = qn.discover(normalised, torch.randn(4, 2, 8, 8)).group.names
    assert names[0] == (
        "0 channel 0: rows of 0.weight and bias, entries of 1.running_mean, entries of "
        "1.running_var (exponent 2)"
    )
    assert names[3] == "1 channel 0: entries of 1.weight and bias, columns of 3.weight"


def test_pinned_channels_name_the_operation():
    *_, symmetry = derive("squeeze-excitation")
    pinned = {(p.place, p.channels): p.operation for p in symmetry.pinned}
    assert pinned == {("excite", (0, 1, 2, 3)): "sigmoid", ("last", (0, 1)): "output"}
    *_, symmetry = derive("offset in a concatenation")
    pinned = {(p.place, p.channels): p.operation for p in symmetry.pinned}
    assert pinned[("b", (0, 1, 2))] == "add"
    *_, symmetry = derive("relu6")
    assert symmetry.pinned[0].operation == "hardtanh in 1 (ReLU6)"


def test_pins_reach_back_to_their_cause():
    model = Block(
        lambda m, x: m.o(F.gelu(m.b(x) + m.a(x))),
        a=nn.Linear(4, 3), b=nn.Linear(4, 3), o=nn.Linear(3, 2),
    )  # fmt: skip
    pinned = qn.discover(model, torch.randn(6, 4)).pinned
    assert {p.place: p.operation for p in pinned} == {
        "a": "gelu",
        "b": "gelu",
        "o": "output",
    }


def test_unknown_operations_are_listed_and_pin():
    *_, symmetry = derive("unknown operation")
    (unknown,) = symmetry.unknown
    assert unknown.operation == "special_bessel_j0" and unknown.calls == 1
    text = str(symmetry)
    assert "special_bessel_j0 × 1: unknown, pins all it touches" in text
    assert "first: channels 0–4, by special_bessel_j0" in text


def test_operations_on_constants_are_not_unknown():
    model = Block(
        lambda m, x: m.o(F.relu(m.a(torch.special.bessel_j0(x)))),
        a=nn.Linear(4, 3), o=nn.Linear(3, 2),
    )  # fmt: skip
    symmetry = qn.discover(model, torch.randn(6, 4))
    assert symmetry.group.dimension == 3 and not symmetry.unknown


def test_statistics_of_a_channel_that_is_always_zero():
    model = Block(
        lambda m, x: m.o(m.n(F.pad(m.a(x), (0, 2)))),
        a=nn.Linear(4, 4), n=norm(6, 1), o=nn.Linear(6, 2),
    ).double().eval()  # fmt: skip
    inputs = torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == 12
    qn.verify_sound(model, symmetry, inputs).require()
    qn.verify_complete(model, symmetry, inputs).require()


def test_statistics_of_a_result_that_is_never_used_move_along_in_train_mode():
    model = Block(
        lambda m, x: (lambda h: (m.n(h), m.o(F.relu(h)))[1])(m.a(x)),
        a=nn.Linear(4, 5), n=norm(5, 1, affine=False), o=nn.Linear(5, 2),
    ).double().train()  # fmt: skip
    inputs = torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    assert (
        symmetry.group.dimension == 5 and "n.running_mean" in symmetry.group.incidence
    )
    qn.verify_sound(model, symmetry, inputs, modes=["own"]).require()


def test_the_table_is_the_group():
    for name in (
        "resnet, normalised",
        "low-rank update",
        "applied twice without bias",
        "a scalar",
    ):
        *_, symmetry = derive(name)
        group = symmetry.group
        total = np.zeros((group.layout.size, group.dimension))
        for link in symmetry.table:
            entry = group.layout[link.parameter]
            shape = [n if a in link.axes else 1 for a, n in enumerate(entry.shape)]
            number = np.broadcast_to(
                link.generators.reshape(shape), entry.shape
            ).reshape(-1)
            hit = number >= 0
            total[
                np.arange(entry.start, entry.start + entry.numel)[hit], number[hit]
            ] += link.exponent
        assert (total == dense_exponents(group)).all()


def test_json_holds_everything():
    *_, symmetry = derive("densenet", training=True)
    report = json.loads(symmetry.to_json())
    assert report["dimension"] == 22 and report["training"] is True
    assert report["generators"] == list(symmetry.group.names)
    assert set(report["table"][0]) == {"parameter", "axes", "exponent", "generators"}
    assert report["coverage"][0]["treatment"] in ("rule", "constant", "pins")


def test_the_effect_of_eps_is_measured():
    torch.manual_seed(0)
    model = nn.Sequential(conv(2, 3), nn.BatchNorm2d(3, eps=1e-3), nn.ReLU(), head(3))
    inputs = torch.randn(4, 2, 8, 8)
    (measured,) = qn.discover(model.train(), inputs).approximate
    x = model[0](inputs).detach()
    variance = x.var((0, 2, 3), correction=0)
    expected = max(1 - ((variance + 1e-3) / (variance + 4e-3)).sqrt())
    assert measured.place == "1" and measured.eps == 1e-3
    assert measured.size == pytest.approx(float(expected), rel=1e-4)
    model.eval()[1].running_var.fill_(2.0)
    (measured,) = qn.discover(model, inputs).approximate
    assert measured.size == pytest.approx(1 - (2.001 / 2.004) ** 0.5, rel=1e-4)
    drift = qn.verify_sound(model, qn.discover(model, inputs), inputs).eps_drift
    assert 1e-6 < drift < 1e-2
    assert derive("vgg, normalised")[2].approximate[0].size < 1e-20


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


# -- rules ---


def test_rules_of_users_see_parameters_as_any_other_tensor():
    @torch.library.custom_op("quotientnet_tests::scaled", mutates_args=())
    def scaled(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return p * x

    scaled.register_fake(lambda p, x: torch.empty_like(x))
    model = Block(
        lambda m, x: m.o(scaled(m.p, F.relu(m.a(x)))),
        a=nn.Linear(4, 3), o=nn.Linear(3, 2), p=nn.Parameter(torch.ones(3)),
    )  # fmt: skip

    @rule("quotientnet_tests::scaled")
    def scaled_rule(call, p, x):
        return p + x

    try:
        symmetry = qn.discover(model, torch.randn(6, 4))
    finally:
        del RULES["quotientnet_tests::scaled"]
    assert symmetry.group.dimension == 6
    qn.verify_sound(model, symmetry, torch.randn(6, 4)).require()


def test_users_teach_operations():
    model, inputs = (
        ARCHITECTURES["unknown operation"].build(),
        torch.randn(6, 4).double(),
    )

    @rule("aten::special_bessel_j0")
    def homogeneous(call, x):
        return x

    try:
        symmetry = qn.discover(model, inputs)
    finally:
        del RULES["aten::special_bessel_j0"]
    assert symmetry.group.dimension == 5 and not symmetry.unknown
    outcome = qn.verify_sound(model, symmetry, inputs)
    assert not outcome.holds and "first channel" in outcome.generator


def test_a_rule_of_a_users_own_operation():
    @torch.library.custom_op("quotientnet_tests::gate", mutates_args=())
    def gate(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(a) * b

    gate.register_fake(lambda a, b: torch.empty_like(b))
    model = Block(
        lambda m, x: m.o(gate(m.a(x), m.b(x))),
        a=nn.Linear(4, 3), b=nn.Linear(4, 3), o=nn.Linear(3, 2),
    )  # fmt: skip
    inputs = torch.randn(6, 4)
    before = qn.discover(model, inputs)
    assert (
        before.group.dimension == 0
        and before.unknown[0].operation == "quotientnet_tests::gate"
    )

    @rule("quotientnet_tests::gate")
    def gate_rule(call, a, b):
        return call.equations.pin(a) + b

    try:
        after = qn.discover(model, inputs)
        qn.verify_sound(model, after, inputs).require()
        assert after.group.dimension == 3

        @rule("quotientnet_tests::gate")
        def wrong_shape(call, a, b):
            return call.equations.fresh(2)

        with pytest.raises(ValueError, match="returned a log-scale of shape"):
            qn.discover(model, inputs)

        @rule("quotientnet_tests::gate")
        def failing(call, a, b):
            raise KeyError("oops")

        with pytest.raises(
            ValueError, match="rule of .*gate failed with KeyError: 'oops'"
        ):
            qn.discover(model, inputs)

        @rule("quotientnet_tests::gate")
        def other_arguments(call, a):
            return a

        assert (
            qn.discover(model, inputs).unknown[0].operation == "quotientnet_tests::gate"
        )
    finally:
        del RULES["quotientnet_tests::gate"]
    for names in (("gate",), (), (None,)):
        with pytest.raises(ValueError, match="is not the name of an operation"):
            rule(*names)


# -- refusals ---


def test_a_branch_on_data_names_the_place():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            h = self.layer(x)
            if h.sum() > 0:
                h = -h
            return h

    model = nn.Sequential(nn.Linear(4, 4), Branching())
    with pytest.raises(ValueError, match=r"in 1 \(Branching\), .*test_discover.py:\d+"):
        qn.discover(model, torch.randn(6, 4))


def test_refusals():
    model = dense(4, 3, 2)
    with pytest.raises(
        TypeError, match="model must be a torch.nn.Module, got function"
    ):
        qn.discover(F.relu, torch.randn(6, 4))
    with pytest.raises(TypeError, match="inputs must be a tensor, a tuple .* got int"):
        qn.discover(model, 3)
    with pytest.raises(TypeError, match="layout must be a ParameterLayout, got list"):
        qn.discover(model, torch.randn(6, 4), layout=[])
    with pytest.raises(ValueError, match=r"cannot be exported .* in a.0 \(Linear\)"):
        qn.discover(Block(lambda m, x: m.a(x), a=model), torch.randn(6, 5))
    with pytest.raises(ValueError, match="exported but does not run .* same dtype"):
        qn.discover(
            nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
            torch.randn(6, 4).double(),
        )
    with pytest.raises(ValueError, match="has no parameters"):
        qn.discover(nn.ReLU(), torch.randn(6, 4))
    with pytest.raises(ValueError, match=r"shape \(0, 4\) is empty"):
        qn.discover(model, torch.randn(0, 4))
    other = qn.ParameterLayout.from_module(dense(4, 5, 2))
    with pytest.raises(
        ValueError, match="layout belongs to another model: it has '0.weight'"
    ):
        qn.discover(model, torch.randn(6, 4), layout=other)
    with pytest.raises(ValueError, match="A dict is taken as keyword arguments"):
        qn.discover(
            Block(lambda m, x: m.a(x["x"]), a=model), {"x": torch.randn(6, 4), "y": 1}
        )
    with pytest.raises(ValueError, match="depends on data"):
        selecting = Block(lambda m, x: m.a(x)[m.a(x) > 0].sum(), a=model)
        qn.discover(selecting, torch.randn(6, 4))
    with pytest.raises(
        TypeError, match="layer_scale_group: group must be a ScalingGroup"
    ):
        qn.layer_scale_group("group")
    assert EPS < 1e-20
