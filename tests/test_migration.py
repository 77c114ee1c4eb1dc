"""Scale mappings against tables by hand, sizes of activations against hooks."""

import copy
from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, EPS, Block
from attention_networks import ATTENTION, Attention, gated, language_model, pre_norm
from torch import nn
from torch.nn import functional as F

import quotientnet as qn
from quotientnet.symmetry import channel_sizes, smoothing
from quotientnet.symmetry.choices import Choices

ALL = {**ARCHITECTURES, **ATTENTION}


def derived(name):
    """A network in eval mode, its inputs and its symmetry."""
    model, x = ALL[name].build().eval(), ALL[name].inputs()
    return model, x, qn.discover(model, x)


def table(mappings):
    """Each mapping as sources, channels, targets: names with axes, exponent, places a channel."""

    def side(parts):
        return {(p.parameter, p.axes, p.exponent, p.places) for p in parts}

    return [(side(m.sources), m.channels, side(m.targets)) for m in mappings]


def rows(*names, a=1):
    """Rows of weights, and biases where a name is given with a bias, as sources."""
    return {(n, (0,), -1, a) for n in names}


def columns(*names, a=1):
    return {(n, (1,), 1, a) for n in names}


def with_bias(name):
    return rows(f"{name}.weight", f"{name}.bias")


QKV = "1.attention.q.weight", "1.attention.k.weight", "1.attention.v.weight"

BY_HAND = {
    "convolution, flatten, linear": [
        (with_bias("0"), 3, columns("4.weight", a=9)), (with_bias("4"), 4, columns("6.weight")),
    ],
    "powers": [
        (with_bias("a"), 5, {("b.weight", (1,), 2, 1)}),
        (with_bias("b"), 3, {("o.weight", (1,), 3, 1)}),
    ],
    "resnet, normalised": [
        (with_bias("1") | with_bias("3.second.1"), 3,
         columns("3.first.0.weight", "4.first.0.weight", "4.shortcut.0.weight")),
        (with_bias("3.first.1"), 3, columns("3.second.0.weight")),
        (with_bias("4.first.1"), 4, columns("4.second.0.weight")),
        (with_bias("4.second.1") | with_bias("4.shortcut.1"), 4, columns("5.2.weight")),
    ],
    # four heads of queries read two of values: each channel feeds two columns
    "shared": [
        (rows("q.weight", "q.bias", a=2), 4, {("k.weight", (0,), 1, 1), ("k.bias", (0,), 1, 1)}),
        (with_bias("v"), 4, columns("o.weight", a=2)),
    ],
    # channels j and j + 2 of a head turn into each other
    "rotary": [
        (rows("q.weight", "q.bias", a=2), 4, {("k.weight", (0,), 1, 2), ("k.bias", (0,), 1, 2)}),
        (with_bias("v"), 8, columns("o.weight")),
    ],
    "llama": [
        (rows("1.first.weight"), 4, columns(*QKV)),
        (rows("1.attention.q.weight", a=4), 2, {("1.attention.k.weight", (0,), 1, 2)}),
        (rows("1.attention.v.weight"), 4, columns("1.attention.o.weight", a=2)),
        (rows("1.second.weight"), 4, columns("1.mlp.gate.weight", "1.mlp.up.weight")),
        (rows("1.mlp.up.weight"), 3, columns("1.mlp.down.weight")),
        (rows("2.weight"), 4, columns("3.weight")),
    ],
    # the head is the table of words: of the last norm's channels only a common scale is left
    "gpt, tied": [
        ({(n, (), -1, 1) for n in ("0.weight", "1.attention.o.weight", "1.attention.o.bias",
                                   "1.mlp.b.weight", "1.mlp.b.bias")}, 1,
         {("2.weight", (), 1, 1), ("2.bias", (), 1, 1)}),
        (with_bias("1.first"), 4, columns(*QKV)),
        (with_bias("1.attention.q"), 4,
         {("1.attention.k.weight", (0,), 1, 1), ("1.attention.k.bias", (0,), 1, 1)}),
        (with_bias("1.attention.v"), 4, columns("1.attention.o.weight")),
        (with_bias("1.second"), 4, columns("1.mlp.a.weight")),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_tables_by_hand(name):
    _, _, symmetry = derived(name)
    assert table(qn.scale_mappings(symmetry)) == BY_HAND[name]


def mixture():
    """A block with a router and three experts, and the stream around it, as Mixtral has it."""

    def forward(m, x):
        shares = m.router(x).softmax(-1)[..., None]
        return (shares * torch.stack([e(x) for e in m.experts], -2)).sum(-2)

    experts = nn.ModuleList([gated(4, 3) for _ in range(3)])
    moe = Block(forward, router=nn.Linear(4, 3, bias=False), experts=experts)
    torch.manual_seed(0)
    return language_model(
        pre_norm(Attention(bias=False), moe, lambda n: nn.RMSNorm(n, eps=EPS)),
        norm=lambda n: nn.RMSNorm(n, eps=EPS),
    ).double()


def test_a_mixture_of_experts_by_hand():
    model, x = mixture(), torch.arange(10).view(2, 5) % 7
    found = table(qn.scale_mappings(qn.discover(model, x)))
    first = columns("1.mlp.router.weight", *(
        f"1.mlp.experts.{e}.{n}.weight" for e in range(3) for n in ("gate", "up")))  # fmt: skip
    assert found == [
        (rows("1.first.weight"), 4, columns(*QKV)),
        (rows(QKV[0]), 4, {(QKV[1], (0,), 1, 1)}),
        (rows(QKV[2]), 4, columns("1.attention.o.weight")),
        (rows("1.second.weight"), 4, first),
        *((rows(f"1.mlp.experts.{e}.up.weight"), 3, columns(f"1.mlp.experts.{e}.down.weight"))
          for e in range(3)),
        (rows("2.weight"), 4, columns("3.weight")),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["llama", "shared", "rotary", "powers", "resnet, normalised"]
)
def test_every_mapping_moves_what_it_says_and_nothing_else(name):
    model, x, symmetry = derived(name)
    w = symmetry.group.layout.flatten(model)
    generator = torch.Generator().manual_seed(1)
    for mapping in qn.scale_mappings(symmetry):
        s = torch.rand(mapping.channels, generator=generator).double() + 0.5
        twin = mapping.scale(model, s, inputs=x, tolerance=1e-4)
        torch.testing.assert_close(twin(x), model(x), rtol=1e-5, atol=1e-6)
        factors = {n: torch.ones_like(p) for n, p in model.named_parameters()}
        for part in (*mapping.sources, *mapping.targets):
            own = torch.where(
                torch.from_numpy(part.channels) >= 0,
                s[torch.from_numpy(part.channels)] ** part.exponent, 1.0,
            )  # fmt: skip
            shape = [n if a in part.axes else 1
                     for a, n in enumerate(factors[part.parameter].shape)]  # fmt: skip
            factors[part.parameter] *= own.reshape(shape)
        for n, p in twin.named_parameters():
            expected = dict(model.named_parameters())[n] * factors[n]
            torch.testing.assert_close(p, expected, rtol=1e-13, atol=0)
        assert torch.equal(mapping.scale(w, s), symmetry.group.layout.flatten(twin))


def test_mappings_by_name_and_several_at_once():
    model, x, symmetry = derived("llama")
    mappings = qn.scale_mappings(symmetry)
    assert mappings["1.first"] is mappings[0]
    assert mappings["1.attention.v -> 1.attention.o"] is mappings[2]
    scales = {"1.first": torch.full((4,), 2.0), "2": torch.full((4,), 3.0)}
    t = mappings.coordinates(scales)
    twin = qn.transform(model, symmetry, t, inputs=x)
    torch.testing.assert_close(2 * twin[1].first.weight, model[1].first.weight)
    torch.testing.assert_close(twin[3].weight, 3 * model[3].weight)
    with pytest.raises(KeyError, match="0 mappings are called '1.third'"):
        mappings["1.third"]


def test_a_hand_written_group_and_the_printed_table():
    layout = qn.ParameterLayout({"a": (3, 2), "b": (1, 6)})
    unit = qn.Unit("hidden", 3, (qn.Scale("a", 0), qn.Scale("b", 1, -1)))
    group = qn.ScalingGroup.from_units(layout, [unit])
    assert str(qn.scale_mappings(group)) == (
        "source     channels  target\nrows of a         3  columns of b, 2 a channel"
    )


def test_filters_before_a_normalisation_are_no_mapping():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh())
    assert len(qn.scale_mappings(qn.discover(model, torch.randn(5, 3)))) == 0


# -- sizes of activations, and smoothing ---


def by_hooks(model, batches):
    """The largest and mean magnitudes of the inputs of each linear layer and convolution."""
    largest, sums, counts = {}, {}, {}

    def note(name):
        def hook(module, args):
            axis = 1 if isinstance(module, nn.Conv2d) else -1
            x = args[0].abs().movedim(axis, -1).flatten(0, -2)
            top = x.amax(0)
            largest[name] = torch.maximum(largest.get(name, top), top)
            sums[name] = sums.get(name, 0) + x.sum(0)
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    twin = copy.deepcopy(model)
    for name, module in twin.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_pre_hook(note(name))
    with torch.no_grad():
        for batch in batches:
            twin(batch)
    return largest, {n: sums[n] / counts[n] for n in sums}


def test_sizes_are_those_that_hooks_see():
    model, x, symmetry = derived("llama")
    generator = torch.Generator().manual_seed(4)
    batches = [x, torch.randint(7, (2, 6), generator=generator), x.flip(1)]
    sizes = channel_sizes(model, symmetry, batches)
    largest, means = by_hooks(model, batches)
    for source, reader in (("1.first", "1.attention.q"), ("1.second", "1.mlp.up"),
                           ("1.mlp.up", "1.mlp.down"), ("2", "3")):  # fmt: skip
        own = qn.scale_mappings(symmetry)[source].generators
        torch.testing.assert_close(sizes.activations[own], largest[reader])
        torch.testing.assert_close(sizes.means[own], means[reader])
    mapping = qn.scale_mappings(symmetry)[
        "1.attention.v"
    ]  # one channel feeds two columns
    both = largest["1.attention.o"].view(2, 4).amax(0)
    torch.testing.assert_close(sizes.activations[mapping.generators], both)
    weight = model[1].attention.o.weight.abs().amax(0).view(2, 4).amax(0)
    torch.testing.assert_close(sizes.readers[mapping.generators], weight)
    gate_and_up = torch.cat([model[1].mlp.gate.weight, model[1].mlp.up.weight])
    second = qn.scale_mappings(symmetry)["1.second"].generators
    torch.testing.assert_close(sizes.readers[second], gate_and_up.abs().amax(0))


def test_sizes_of_squares_are_in_units_of_the_channel():
    model, x, symmetry = derived("powers")
    sizes = channel_sizes(model, symmetry, [x])
    largest, _ = by_hooks(model, [x])
    own = qn.scale_mappings(symmetry)["a"].generators
    torch.testing.assert_close(sizes.activations[own], largest["b"].sqrt())
    torch.testing.assert_close(sizes.readers[own], model.b.weight.abs().amax(0).sqrt())


@pytest.mark.parametrize("name", ["experts", "experts, sorted"])
def test_each_expert_sees_its_own_tokens(name):
    model, x, symmetry = derived(name)
    sizes = channel_sizes(model, symmetry, [x])
    seen = torch.zeros(3, 3).double()
    _, chosen = model.router(x).softmax(-1).topk(2, -1)
    for token, experts in zip(x.reshape(-1, 4), chosen.reshape(-1, 2).tolist()):
        for e in experts:
            gate, value = (model.up[e] @ token).chunk(2)
            seen[e] = torch.maximum(seen[e], (F.silu(gate) * value).abs().detach())
    mapping = qn.scale_mappings(symmetry)["up"]
    torch.testing.assert_close(sizes.activations[mapping.generators].view(3, 3), seen)


def test_rows_between_bounds_belong_to_the_group_that_starts_there():
    """Three rows, then none, then two: the second group is empty."""
    choices = Choices()
    bounds = choices.variables(3)
    rows = choices.groups(bounds, 6)
    ends = dict(zip(bounds.variables.tolist(), [3, 3, 5]))
    choices.settle_groups(ends)
    assert [ends[n] for n in rows.tolist()] == [0, 0, 0, 2, 2, 3]


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_smoothing_is_the_formula_of_the_paper(alpha):
    """Inputs and columns afterwards: X^(1−α) W^(1−α) and X^α W^α, by the formula alone."""
    model, x, symmetry = derived("llama")
    mappings = qn.scale_mappings(symmetry)
    chosen = [mappings["1.first"], mappings["1.second"]]
    t = smoothing(channel_sizes(model, symmetry, [x]), alpha, mappings=chosen)
    twin = qn.transform(model, symmetry, t, inputs=x)
    before, after = by_hooks(model, [x])[0], by_hooks(twin, [x])[0]
    for reader, names in (("1.attention.q", "qkv"), ("1.mlp.up", ("gate", "up"))):

        def weight(m):
            parent = m[1].attention if names == "qkv" else m[1].mlp
            return torch.cat([getattr(parent, n).weight for n in names]).abs().amax(0)

        s = before[reader] ** alpha / weight(model) ** (1 - alpha)
        torch.testing.assert_close(after[reader], before[reader] / s, rtol=1e-6, atol=0)
        torch.testing.assert_close(weight(twin), weight(model) * s)
    torch.testing.assert_close(twin[3].weight, model[3].weight)


def test_channels_without_data_stay_and_the_model_is_unchanged():
    model = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)
    ).double()
    x = torch.randn(6, 3).double()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([9.0, -99.0, 9.0, 9.0]))
    state = copy.deepcopy(model.state_dict())
    symmetry = qn.discover(nn.Sequential(model[0], model[1], model[3]), x)
    plain = nn.Sequential(model[0], model[1], model[3])
    sizes = channel_sizes(plain, symmetry, [x])
    assert sizes.seen.tolist() == [True, False, True, True]
    assert smoothing(sizes)[1] == 0
    channel_sizes(model, qn.discover(model, x), [x])
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert model.training and not model[0]._forward_pre_hooks


def test_bad_input_is_answered_with_its_name():
    model, x, symmetry = derived("llama")
    mapping = qn.scale_mappings(symmetry)[0]
    with pytest.raises(ValueError, match="'1.first' has 4 channels"):
        mapping.coordinates(torch.ones(3))
    with pytest.raises(ValueError, match="must be positive and finite; 1 are not"):
        mapping.coordinates(torch.tensor([1.0, 2.0, 0.0, 1.0]))
    with pytest.raises(TypeError, match="scale_mappings: group must be"):
        qn.scale_mappings("llama")
    with pytest.raises(TypeError, match="symmetry must be what discover returned"):
        channel_sizes(model, symmetry.group, [x])
    with pytest.raises(TypeError, match=r"pass \[inputs\]"):
        channel_sizes(model, symmetry, x)
    with pytest.raises(ValueError, match="batches is empty"):
        channel_sizes(model, symmetry, [])
    with pytest.raises(ValueError, match="alpha must be at least 0 and at most 1"):
        smoothing(channel_sizes(model, symmetry, [x]), 2.0)
    _, _, other = derived("shared")
    with pytest.raises(ValueError, match="another model"):
        channel_sizes(model, other, [x])
    with pytest.raises(ValueError, match="is of another group than the sizes"):
        smoothing(
            channel_sizes(model, symmetry, [x]), mappings=qn.scale_mappings(other)
        )
    with pytest.raises(ValueError, match="in its present mode"):
        channel_sizes(model.train(), symmetry, [x])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_batches_that_are_not_finite_are_refused_by_number(bad):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    x = torch.randn(5, 4).double()
    symmetry = qn.discover(model, x)
    wrong = x.clone()
    wrong[1] = bad
    with pytest.raises(ValueError, match="channel_sizes: with batch 1.*NaN.*of '0'"):
        channel_sizes(model, symmetry, [x, wrong])
    found = channel_sizes(model, symmetry, [x])
    assert found.seen.any()
    spoilt = replace(found, activations=found.activations * bad)
    with pytest.raises(ValueError, match="smoothing: sizes are NaN or infinite"):
        smoothing(spoilt)


def test_a_mask_of_minus_infinity_is_no_bad_batch():
    """What is masked is no size of a channel."""

    def forward(m, x, mask):
        scores = m.q(x) @ m.k(x).mT + mask
        return m.o(scores.softmax(-1) @ m.v(x))

    layers = {n: nn.Linear(4, 4) for n in "qkvo"}
    model = Block(forward, **layers).double()
    mask = torch.full((3, 3), float("-inf")).double().triu(1)
    inputs = torch.randn(2, 3, 4).double(), mask
    sizes = channel_sizes(model, qn.discover(model, inputs), [inputs])
    assert sizes.seen.sum() == 8 and torch.isfinite(sizes.activations).all()


def test_what_is_no_number_or_mapping_is_answered():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    x = torch.randn(5, 4).double()
    symmetry = qn.discover(model, x)
    mappings = qn.scale_mappings(symmetry)
    sizes = channel_sizes(model, symmetry, [x])
    for call, message in (
        (
            lambda: smoothing("s"),
            "smoothing: sizes must be what channel_sizes .*got str",
        ),
        (lambda: smoothing(sizes, "a"), "smoothing: alpha must be a number, got str"),
        (lambda: smoothing(sizes, mappings=["1"]), "must be a ScaleMapping, got '1'"),
        (lambda: smoothing(sizes, mappings=mappings[0]), "got one ScaleMapping"),
        (lambda: smoothing(sizes, mappings=3), "got one int"),
        (lambda: mappings[0].scale(model, "a"), "real numbers, one a channel, got str"),
        (lambda: mappings[0].scale(model, torch.ones(3) + 0j), "got torch.complex64"),
        (lambda: mappings[0].coordinates([True] * 3), "got torch.bool"),
        (lambda: mappings.coordinates("a"), "must be a dict .*got str"),
        (lambda: channel_sizes(model, symmetry, 3), "an iterable of inputs, got int"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    w = symmetry.group.layout.flatten(model)
    with pytest.raises(TypeError, match="ScaleMapping.scale: inputs is for a model"):
        mappings[0].scale(w, torch.ones(3), inputs=x)
    with pytest.raises(
        ValueError, match="^channel_sizes: the model cannot be exported"
    ):
        channel_sizes(model, symmetry, [x, torch.randn(5, 3).double()])


def test_packed_projections_show_which_rows():
    """Queries, keys and values in one parameter: rows 0 to 3, 4 to 7 and 8 to 11."""
    model = nn.MultiheadAttention(4, 2, batch_first=True).double()
    x = torch.randn(2, 3, 4).double()
    text = str(qn.scale_mappings(qn.discover(model, (x, x, x))))
    assert [line.split() for line in text.splitlines()[1:]] == [
        line.split()
        for line in (
            "rows 0–3 of in_proj_weight 4 rows 4–7 of in_proj_weight",
            "entries 0–3 of in_proj_bias entries 4–7 of in_proj_bias",
            "rows 8–11 of in_proj_weight 4 columns of out_proj.weight",
            "entries 8–11 of in_proj_bias",
        )
    ]
