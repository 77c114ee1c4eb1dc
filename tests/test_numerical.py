"""The group that derivatives show is the one that the graph has, and doubt is no answer."""

import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, EPS, Block, conv, dense, head, norm, parameter
from scipy import sparse
from torch import nn

import quotientnet as qn
from quotientnet import exact
from quotientnet.symmetry import discover_numerically

SMALL = [
    name
    for name, architecture in ARCHITECTURES.items()
    if qn.ParameterLayout.from_module(architecture.build(), include_frozen=True).size
    <= 200
]
INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture(autouse=True)
def without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def assert_same_span(group, expected, idle=()):
    """Exactly, in integers, on entries with an effect."""
    live = ~group.layout.mask(*idle).numpy() if idle else slice(None)
    a, b = (
        sparse.csr_array(np.rint(g.to_dense()[live]).astype(np.int64).T)
        for g in (group, expected)
    )
    assert exact.rank(a) == exact.rank(b) == exact.rank(sparse.vstack([a, b]))


def built(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double()


class Straight(torch.autograd.Function):
    """ReLU by hand, with a backward that batched tensors break."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(np.where(x.numpy() > 0, g.numpy(), 0.0))


def halved(m, x):
    h = m.a(x)
    while h.abs().max() > 1:
        h = h / 2
    return m.b(h)


# -- the third opinion ---


@pytest.mark.parametrize("name", SMALL)
def test_the_group_is_the_derived_one(name):
    model, inputs = ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()
    found = discover_numerically(model, inputs)
    assert found.group.layout == qn.ParameterLayout.from_module(model)
    assert_same_span(found.group, qn.discover(model, inputs).group, found.idle)
    if name == "unknown operation":
        assert found.unseen == ("first.weight", "first.bias")
    else:
        assert found.group.dimension == ARCHITECTURES[name].dimension
        assert not found.unseen and not found.jumps and found.gap > 1e6


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "name", ["vgg, normalised", "normalised mlp", "instance normalisation"]
)
def test_running_statistics_move_in_either_mode(name, training):
    model = ARCHITECTURES[name].build().train(training)
    inputs = ARCHITECTURES[name].inputs()
    found = discover_numerically(model, inputs)
    assert_same_span(found.group, qn.discover(model, inputs).group, found.idle)
    assert found.training == training
    assert any("running_var (exponent 2)" in name for name in found.group.names)


@pytest.mark.parametrize(
    "name",
    ["mlp", "residual", "powers", "normalised mlp", "grouped sink", "u-net",
     "tied autoencoder", "grouped transposed", "channel shuffle"],
)  # fmt: skip
def test_rows_and_columns_suffice(name):
    model, inputs = ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()
    found = discover_numerically(model, inputs, entries=False)
    assert found.candidates == "rows and columns"
    assert_same_span(found.group, qn.discover(model, inputs).group)


def test_names_are_those_of_discover():
    for name in ("mlp", "residual", "lenet", "normalised mlp", "product with itself"):
        model, inputs = ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()
        found, derived = discover_numerically(model, inputs), qn.discover(model, inputs)
        assert found.group.names == derived.group.names
        assert str(found.namings) == str(derived.namings)


def test_generators_are_local_whatever_the_order_of_the_layers():
    # The layers of a residual network, the first of which reads what is made last.
    model = built(
        lambda: Block(
            lambda m, x: (lambda h: m.o(h + m.b(F.relu(m.a(h)))))(m.i(x)),
            a=nn.Linear(4, 5, bias=False), b=nn.Linear(5, 4, bias=False),
            o=nn.Linear(4, 2, bias=False), i=nn.Linear(4, 4, bias=False),
        )
    )  # fmt: skip
    found = discover_numerically(model, INPUTS)
    supports = np.sort((found.group.to_dense() != 0).sum(0)).tolist()
    # A hidden unit: 4 + 4 entries. A channel of the stream: 4 of i, 5 of a, 5 of b, 2 of o.
    assert supports == [8] * 5 + [16] * 4


# -- what discover cannot export ---

REFUSED = {
    "a branch on the inputs": (
        lambda m, x: m.b(m.a(x).relu() if x.sum() > 0 else m.a(x).abs()), 3),
    "a branch on results": (
        lambda m, x: m.b(m.a(x).relu() if (m.a(x) > 0).sum() % 2 else m.a(x)), 3),
    "a loop": (
        lambda m, x: m.b(sum(m.a(x).relu() for _ in range(int(x.abs().sum()) % 3 + 1))), 3),
    "selected samples": (lambda m, x: m.b(F.relu(m.a(x)))[x[:, 0] > 0].sum(0), 3),
    "through numpy": (
        lambda m, x: m.b(m.a(x) * torch.from_numpy(1.0 * (m.a(x).detach().numpy() > 0))), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_modules_that_cannot_be_exported(name):
    forward, dimension = REFUSED[name]
    model = built(lambda: Block(forward, a=nn.Linear(4, 3), b=nn.Linear(3, 2)))
    with pytest.raises(ValueError):
        qn.discover(model, INPUTS)
    found = discover_numerically(model, INPUTS)
    assert found.group.dimension == dimension and not found.jumps
    same = built(lambda: dense(4, 3, 2))
    by_hand = qn.discover(same, INPUTS).group.to_dense()
    assert np.array_equal(np.sort(found.group.to_dense(), 1), np.sort(by_hand, 1))
    qn.verify_complete(model, found, INPUTS).require()


def test_a_branch_that_few_inputs_take_counts():
    # One of ten batches; what the first points allow is tried at new ones.
    model = built(lambda: Block(
        lambda m, x: m.b((F.gelu if x[0, 0] > 2.6 else F.relu)(m.a(x))),
        a=nn.Linear(4, 3), b=nn.Linear(3, 2)))  # fmt: skip
    for seed in range(6):
        assert discover_numerically(model, INPUTS, seed=seed).group.dimension == 0


@pytest.mark.parametrize("double", [False, True])
def test_an_autograd_function_that_cannot_be_batched(double):
    model = built(
        lambda: Block(
            lambda m, x: m.b(Straight.apply(m.a(x))), a=nn.Linear(4, 3), b=nn.Linear(3, 2)
        )
    )  # fmt: skip
    model = model if double else model.float()
    found = discover_numerically(model, INPUTS if double else INPUTS.float())
    assert found.group.dimension == 3 and found.soundness.violation < 1e-9


def test_vmap_inside():
    model = built(lambda: Block(
        lambda m, x: torch.func.vmap(lambda row: F.relu(row @ m.a) @ m.b)(x),
        a=parameter(4, 3), b=parameter(3, 2)))  # fmt: skip
    found = discover_numerically(model, INPUTS)
    expected = Block(lambda m, x: F.relu(x @ m.a) @ m.b, a=model.a, b=model.b)
    assert_same_span(found.group, qn.discover(expected, INPUTS).group)


# -- what is left out, and why ---


def test_a_jump_is_left_out_and_reported():
    model = built(lambda: Block(
        lambda m, x: m.b(torch.cat([F.hardshrink(m.a(x), 0.5), F.relu(m.c(x))], 1)),
        a=nn.Linear(4, 3), c=nn.Linear(4, 2), b=nn.Linear(5, 2)))  # fmt: skip
    found = discover_numerically(model, INPUTS)
    assert_same_span(found.group, qn.discover(model, INPUTS).group)
    assert found.group.dimension == 2 and len(found.jumps) == 3
    assert all(n.place == "a" for n in found.jumps) and "cross a jump" in str(found)


def test_a_loop_that_depends_on_the_size_is_a_jump():
    model = built(lambda: Block(halved, a=nn.Linear(4, 3), b=nn.Linear(3, 2)))
    found = discover_numerically(model, INPUTS)
    assert found.group.dimension == 0 and len(found.jumps) == 3


def test_units_that_jump_one_by_one_may_be_scaled_together():
    model = built(lambda: Block(
        lambda m, x: m.b(m.a(x) if m.a(x).sum() > 0 else 2 * m.a(x)),
        a=nn.Linear(4, 3), b=nn.Linear(3, 2)))  # fmt: skip
    found = discover_numerically(model, INPUTS)
    expected = np.zeros(found.group.layout.size)
    expected[found.group.layout.mask("a").numpy()] = 1
    expected[found.group.layout.mask("b.weight").numpy()] = -1
    assert found.group.to_dense()[:, 0].tolist() == expected.tolist()
    assert found.group.dimension == 1


def test_parameters_without_effect_are_reported_and_left_out():
    model = built(lambda: Block(
        lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(4, 3), b=nn.Linear(3, 2),
        unused=nn.Linear(2, 2)))  # fmt: skip
    found = discover_numerically(model, INPUTS)
    assert found.idle == ("unused.weight", "unused.bias") and not found.unseen
    assert found.group.dimension == 3
    moved = found.group.to_dense()[found.group.layout.mask("unused").numpy()]
    assert not moved.any() and "no effect, at least in part: unused.weight" in str(
        found
    )


def test_a_bias_without_effect_goes_with_its_rows():
    model = built(
        lambda: nn.Sequential(
            conv(2, 3),
            nn.BatchNorm2d(3, eps=EPS, track_running_stats=False),
            nn.ReLU(),
            head(3),
        )
    )
    images = torch.randn(4, 2, 6, 6).double()
    found = discover_numerically(model, images)
    assert found.idle == ("0.bias",)
    assert found.group.names[0].startswith("0 channel 0: rows of 0.weight and bias")
    assert_same_span(found.group, qn.discover(model, images).group)


def test_what_is_only_compared_is_reported():
    def forward(m, x):
        chosen = m.router(x).argmax(1)
        experts = torch.stack([m.a(x), m.b(x)])
        return m.o(F.relu(experts[chosen, torch.arange(len(x))]))

    model = built(lambda: Block(
        forward, router=nn.Linear(4, 2), a=nn.Linear(4, 3), b=nn.Linear(4, 3),
        o=nn.Linear(3, 2)))  # fmt: skip
    found = discover_numerically(model, INPUTS)
    assert found.unseen == ("router.weight", "router.bias") and not found.idle
    assert found.group.dimension == 3 and "an effect without derivatives" in str(found)


# -- no answer ---


def test_a_doubtful_rank_is_refused_with_the_parameters():
    sizes = torch.logspace(-5, -12, 8, dtype=torch.float64)
    model = built(lambda: Block(
        lambda m, x: m.o(F.relu(m.a(x)) + sizes * torch.tanh(m.a(x))),
        a=nn.Linear(4, 8), o=nn.Linear(8, 2)))  # fmt: skip
    with pytest.raises(
        RuntimeError, match=r"the rank .* doubtful: .* a\.weight, a\.bias, o\.weight is nearly"
    ):  # fmt: skip
        discover_numerically(model, INPUTS)


def test_a_small_eps_is_left_out_as_by_discover_and_a_larger_one_is_not():
    def forward(m, x, eps):
        h = m.a(x)
        return m.b(h / (h.square().mean(1, keepdim=True) + eps).sqrt())

    for eps, dimension in ((0.0, 1), (1e-6, 1), (1e-2, 0)):
        model = built(lambda: Block(
            lambda m, x: forward(m, x, eps), a=nn.Linear(4, 5), b=nn.Linear(5, 2)))  # fmt: skip
        assert discover_numerically(model, INPUTS).group.dimension == dimension
        assert qn.discover(model, INPUTS).group.dimension == dimension


def test_exponents_that_are_no_small_integers_are_refused():
    def power(p):
        return built(lambda: Block(
            lambda m, x: m.o(F.relu(m.a(x)) ** p),
            a=nn.Linear(4, 3), o=nn.Linear(3, 2)))  # fmt: skip

    with pytest.raises(
        ValueError, match=r"no small integers .* a\.weight, a\.bias, o\.weight"
    ):
        discover_numerically(power(2**0.5), INPUTS)
    halves = discover_numerically(power(1.5), INPUTS).group
    assert np.unique(halves.to_dense()).tolist() == [-3, 0, 2]


def test_nothing_is_found_where_nothing_is():
    found = discover_numerically(built(lambda: ARCHITECTURES["gelu"].make()), INPUTS)
    assert found.group.dimension == 0 and found.group.names == ()
    assert str(found).startswith("0 generators (train mode), found numerically")


def test_bad_input():
    model = built(lambda: dense(4, 3, 2))
    with pytest.raises(
        TypeError, match="discover_numerically: model must be a torch.nn"
    ):
        discover_numerically(F.relu, INPUTS)
    with pytest.raises(
        TypeError, match="discover_numerically: inputs must be a tensor"
    ):
        discover_numerically(model, 3)
    for options, error, message in (
        ({"entries": "a"}, TypeError, "entries must be True, False or None, got 'a'"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0 and .*, got -1"),
        ({"seed": "a"}, TypeError, "seed must be an integer, got 'a'"),
        ({"max_rows": 0}, ValueError, "max_rows must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(error, match=f"discover_numerically: {message}"):
            discover_numerically(model, INPUTS, **options)
    with pytest.raises(TypeError, match="layout must be a ParameterLayout, got dict"):
        discover_numerically(model, INPUTS, layout={})
    with pytest.raises(ValueError, match="the layout belongs to another model"):
        discover_numerically(
            dense(4, 5, 2), INPUTS, layout=qn.ParameterLayout.from_module(model)
        )
    with pytest.raises(ValueError, match=r"does not run on inputs of shape \(6, 3\)"):
        discover_numerically(model, INPUTS[:, :3])
    with pytest.raises(
        RuntimeError, match="after 51 derivatives; pass a larger max_rows"
    ):
        discover_numerically(model, INPUTS, max_rows=50)
    with pytest.raises(ValueError, match="no parameters that require a gradient"):
        discover_numerically(model.requires_grad_(False), INPUTS)
    detached = Block(lambda m, x: m.a(x).argmax(1).double(), a=nn.Linear(4, 3).double())
    with pytest.raises(
        ValueError, match="autograd has no derivative|no parameter has an"
    ):
        discover_numerically(detached, INPUTS)
    root = Block(lambda m, x: (m.a(x) - m.a(x)).sqrt(), a=nn.Linear(4, 3).double())
    with pytest.raises(ValueError, match="is not finite, by a.weight, a.bias"):
        discover_numerically(root, INPUTS)


# -- the model, the result ---


def test_nothing_of_the_model_changes_and_the_seed_decides():
    model = ARCHITECTURES["vgg, normalised"].build().train()
    inputs = ARCHITECTURES["vgg, normalised"].inputs()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = discover_numerically(model, inputs)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training and discover_numerically(model, inputs) == found
    other = discover_numerically(model, inputs, seed=7)
    assert_same_span(other.group, found.group)
    assert other.gap != found.gap


def test_the_result_reads_as_that_of_discover():
    model = built(lambda: nn.Sequential(conv(2, 3), norm(3), nn.ReLU(), head(3)))
    images = torch.randn(4, 2, 6, 6).double()
    found = discover_numerically(model, images)
    text = str(found)
    assert text.splitlines()[1].split()[:2] == ["3", "normalised"]
    assert "candidates: entries" in text and "sound: outputs change by" in text
    assert f"after {found.rows} derivatives at {found.points} random points" in text
    record = json.loads(found.to_json())
    assert record["dimension"] == 6 and record["candidates"] == "entries"
    assert [link.parameter for link in found.table][0] == "0.weight"
    assert (
        found.layer_scales.dimension
        == qn.discover(model, images).layer_scales.dimension
    )
    assert qn.verify_sound(model, found, images, modes=["own"]).holds


def test_a_layout_chooses_what_may_be_scaled():
    model = built(lambda: dense(4, 3, 2))
    model[0].bias.requires_grad_(False)
    assert discover_numerically(model, INPUTS).group.dimension == 0
    whole = qn.ParameterLayout.from_module(model, include_frozen=True)
    assert discover_numerically(model, INPUTS, layout=whole).group.dimension == 3
