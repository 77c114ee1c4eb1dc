"""Classes of exchangeable channels against tables by hand; tried one by one; matching."""

from itertools import permutations

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, Block
from attention_networks import ATTENTION
from torch import nn
from torch.nn import functional as F

import quotientnet as qn
from quotientnet.symmetry import match_channels
from quotientnet.symmetry.permutations.axes import (
    factors_of,
    fixed,
    joined,
    leaves,
    new,
    product,
    segment,
    unify,
)
from quotientnet.symmetry.replica import Replica, relative_change

ALL = {**ARCHITECTURES, **ATTENTION}


def derived(name, training=False):
    """A network, its inputs and its classes."""
    model, x = ALL[name].build().train(training), ALL[name].inputs()
    return model, x, qn.permutation_classes(model, x)


def table(classes):
    """Each class as its shape, and for each parameter and axis the channel of each place."""
    found = {}
    for c in classes:
        moves = {}
        for m in c.moves:
            own = moves.setdefault((m.parameter, m.axis), np.full(len(m.channels), -1))
            own[m.channels >= 0] = m.channels[m.channels >= 0]
        key = frozenset((p, a, tuple(v.tolist())) for (p, a), v in moves.items())
        found[key] = c.shape
    return found


def rows(name, *channels, bias=True):
    own = {(f"{name}.weight", 0, channels)}
    return own | ({(f"{name}.bias", 0, channels)} if bias else set())


def columns(name, *channels):
    return {(f"{name}.weight", 1, channels)}


def statistics(name, *channels):
    return {(f"{name}.{s}", 0, channels) for s in ("running_mean", "running_var")}


N2, N3, N4, N5, N6 = (tuple(range(n)) for n in (2, 3, 4, 5, 6))
HEADS, WITHIN = (0, 0, 1, 1), (0, 1, 0, 1)


def union(*sets):
    return frozenset(set().union(*sets))


def stream(*parts, block="1"):
    """The stream of a block of attention and two layers, and what else it touches."""
    qkv = [columns(f"{block}.attention.{n}", *N4) for n in "qkv"]
    return union(*qkv, rows(f"{block}.first", *N4), rows(f"{block}.second", *N4),
                 rows(f"{block}.attention.o", *N4), rows(f"{block}.mlp.b", *N4),
                 columns(f"{block}.mlp.a", *N4), *parts)  # fmt: skip


ATTENTION_CLASSES = {
    union(
        *(rows(f"1.attention.{n}", *HEADS) for n in "qkv"),
        columns("1.attention.o", *HEADS),
    ): (2,),
    union(rows("1.attention.q", *WITHIN), rows("1.attention.k", *WITHIN)): (2, 2),
    union(rows("1.attention.v", *WITHIN), columns("1.attention.o", *WITHIN)): (2, 2),
    union(rows("1.mlp.a", *N6), columns("1.mlp.b", *N6)): (6,),
}

BY_HAND = {
    "mlp": {
        union(rows("0", *N5), columns("2", *N5)): (5,),
        union(rows("2", *N3), columns("4", *N3)): (3,),
    },
    "gelu": {union(rows("0", *N5), columns("2", *N5)): (5,)},
    # after a flatten each channel owns a run of columns
    "convolution, flatten, linear": {
        union(rows("0", *N3), columns("4", *np.repeat(N3, 9))): (3,),
        union(rows("4", *N4), columns("6", *N4)): (4,),
    },
    # a stream of three channels and one of four, each with the channels inside its block
    "resnet, normalised": {
        union(rows("0", *N3, bias=False), rows("1", *N3), statistics("1", *N3),
              columns("3.first.0", *N3), rows("3.second.0", *N3, bias=False),
              rows("3.second.1", *N3), statistics("3.second.1", *N3), columns("4.first.0", *N3),
              columns("4.shortcut.0", *N3)): (3,),
        union(rows("3.first.0", *N3, bias=False), rows("3.first.1", *N3),
              statistics("3.first.1", *N3), columns("3.second.0", *N3)): (3,),
        union(rows("4.first.0", *N4, bias=False), rows("4.first.1", *N4),
              statistics("4.first.1", *N4), columns("4.second.0", *N4)): (4,),
        union(rows("4.second.0", *N4, bias=False), rows("4.second.1", *N4),
              statistics("4.second.1", *N4), rows("4.shortcut.0", *N4, bias=False),
              rows("4.shortcut.1", *N4), statistics("4.shortcut.1", *N4),
              columns("5.2", *N4)): (4,),
    },
    "pre-norm": {
        stream(rows("0", *N4), rows("2", *N4), columns("3", *N4)): (4,), **ATTENTION_CLASSES,
    },
    "gpt": {
        stream(columns("0", *N4), rows("2", *N4), columns("3", *N4)): (4,), **ATTENTION_CLASSES,
    },
    "gpt, tied": {stream(columns("0", *N4), rows("2", *N4)): (4,), **ATTENTION_CLASSES},
    # two heads of queries share one of keys and values; rotations fix channels of queries and keys
    "llama": {
        union(columns("0", *N4), *(rows(n, *N4, bias=False) for n in ("1.first", "1.second", "2")),
              *(columns(f"1.attention.{n}", *N4) for n in "qkv"),
              rows("1.attention.o", *N4, bias=False), columns("1.mlp.gate", *N4),
              columns("1.mlp.up", *N4), rows("1.mlp.down", *N4, bias=False),
              columns("3", *N4)): (4,),
        union(rows("1.attention.q", *np.repeat(N2, 4), bias=False),
              columns("1.attention.o", *np.repeat(N2, 4))): (2,),
        union(rows("1.attention.v", *N4, bias=False), columns("1.attention.o", *N4, *N4)): (4,),
        union(rows("1.mlp.gate", *N3, bias=False), rows("1.mlp.up", *N3, bias=False),
              columns("1.mlp.down", *N3)): (3,),
    },
    # heads of keys with their two heads of queries; these two; channels of each head of keys
    "shared": {
        union(rows("q", *np.repeat(N2, 4)), rows("k", *HEADS), rows("v", *HEADS),
              columns("o", *np.repeat(N2, 4))): (2,),
        union(rows("q", *np.tile(HEADS, 2)), columns("o", *np.tile(HEADS, 2))): (2, 2),
        union(rows("q", *np.tile(N2, 4)), rows("k", *WITHIN)): (2, 2),
        union(rows("v", *WITHIN), columns("o", *np.tile(N2, 4))): (2, 2),
    },
    "unknown operation": {},
    "glu": {
        union({("0.weight", 0, (*N3, *N3)), ("0.bias", 0, (*N3, *N3))}, columns("2", *N3)): (3,)},
}  # fmt: skip


def ints(expected):
    return {frozenset((p, a, tuple(map(int, c))) for p, a, c in key): shape
            for key, shape in expected.items()}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_tables_by_hand(name):
    _, _, classes = derived(name)
    assert table(classes) == ints(BY_HAND[name])
    assert not classes.refused


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ALL)
def test_no_class_changes_the_function_and_none_is_refused(name, training):
    """Each class by itself, on inputs and at a point that the search did not see."""
    model, x, classes = derived(name, training)
    assert not classes.refused
    replica = Replica(model, classes.layout, "test")
    generator = torch.Generator().manual_seed(77)
    w = replica.random_point(generator)
    count = classes.layout.parameter_size
    outputs, after = replica.run(w, (x,), {})
    for own in classes:
        permutation = own.random(generator)
        moved = own.apply(w, permutation)
        found, statistics = replica.run(moved, (x,), {})
        expected = own.apply(torch.cat([w[:count], after]), permutation)[count:]
        for a, b in [*zip(outputs, found), (expected, statistics)]:
            assert relative_change(a, b) < 1e-9
        inverse = permutation.argsort(-1)
        assert own.apply(moved, inverse).equal(w)
        if not (permutation == torch.arange(own.size)).all():
            assert not moved.equal(w)


def exchangeable(model, x, layout, name, axis):
    """Pairs of rows or columns of one tensor... whose exchange some other moves can make up for:
    by brute force over all permutations of a two-layer network's hidden units."""
    w, found = layout.flatten(model), set()
    own = layout[name].shape[axis]
    for p in permutations(range(own)):
        v = layout.unflatten(w.clone())
        v["0.weight"].copy_(v["0.weight"][list(p)])
        v["0.bias"].copy_(v["0.bias"][list(p)])
        v["2.weight"].copy_(v["2.weight"][:, list(p)])
        flat = torch.cat([t.reshape(-1) for t in v.values()])
        y = torch.func.functional_call(model, layout.unflatten(flat), (x,))
        if torch.allclose(y, model(x), rtol=1e-12):
            found.add(p)
    return found


def test_all_permutations_of_hidden_units_and_no_other():
    """A frozen offset holds unit 2 apart from the others."""
    offset = torch.tensor([0.3, 0.3, 0.7], dtype=torch.float64)
    model = nn.Sequential(
        nn.Linear(4, 3), Block(lambda m, h: torch.tanh(h)), nn.Linear(3, 2)
    )
    model = model.double()
    x = torch.randn(5, 4, dtype=torch.float64)
    classes = qn.permutation_classes(model, x)
    assert len(exchangeable(model, x, classes.layout, "0.weight", 0)) == 6
    assert [c.shape for c in classes] == [(3,)]
    apart = Block(
        lambda m, h: m.b(torch.tanh(m.a(h) + offset)),
        a=nn.Linear(4, 3),
        b=nn.Linear(3, 2),
    )
    assert len(qn.permutation_classes(apart.double(), x)) == 0


def test_mixing_along_heads_ties_their_channels():
    """A softmax over heads: channels within heads move alike in all heads."""

    def forward(m, x):
        h = m.a(x).unflatten(-1, (2, 3))
        return m.b((h.softmax(-2) if m.mixes else h.tanh()).flatten(-2))

    shapes = []
    for mixes in (False, True):
        model = Block(
            forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2), mixes=mixes
        ).double()
        classes = qn.permutation_classes(model, torch.randn(5, 4).double())
        assert not classes.refused
        shapes.append({c.shape for c in classes})
    # heads may be exchanged for each channel by itself
    assert shapes == [{(3, 2), (2, 3)}, {(3, 2), (3,)}]


def test_an_operation_treated_wrongly_is_refused():
    """A rule that takes a running sum for an operation on entries: the trial finds out."""
    from quotientnet.symmetry.permutations.registry import AXIS_RULES

    kept = AXIS_RULES["aten::cumsum"]
    AXIS_RULES["aten::cumsum"] = lambda steps, self, dim, **options: self
    try:
        model = Block(
            lambda m, x: m.b(m.a(x).cumsum(-1)), a=nn.Linear(4, 3), b=nn.Linear(3, 2)
        )
        classes = qn.permutation_classes(model.double(), torch.randn(5, 4).double())
    finally:
        AXIS_RULES["aten::cumsum"] = kept
    assert len(classes) == 0 and len(classes.refused) == 1
    assert "refused, for it changes the outputs: rows of a.weight" in str(classes)


def test_dropout_and_the_model_are_left_alone():
    model = nn.Sequential(
        nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Linear(3, 2)
    )
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    classes = qn.permutation_classes(
        model, torch.randn(7, 4, generator=torch.Generator())
    )
    assert torch.rand(3).equal(expected)
    assert [c.size for c in classes] == [3] and model[1].training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_channels_of_each_head_by_hand():
    """Two heads of two channels: the first's channels exchanged, the second's not."""
    _, _, classes = derived("whole, without biases")
    own = next(
        c for c in classes if c.shape == (2, 2) and c.moves[0].parameter == "v.weight"
    )
    w = torch.arange(classes.layout.size, dtype=torch.float64)
    before, after = classes.layout.unflatten(w), classes.layout.unflatten(
        own.apply(w, torch.tensor([[1, 0], [0, 1]])))  # fmt: skip
    assert after["v.weight"].equal(before["v.weight"][[1, 0, 2, 3]])
    assert after["o.weight"].equal(before["o.weight"][:, [1, 0, 2, 3]])
    assert after["q.weight"].equal(before["q.weight"])
    batch = own.apply(torch.stack([w, -w]), torch.tensor([1, 0]))
    assert classes.layout.unflatten(batch)["v.weight"][1].equal(
        -before["v.weight"][[1, 0, 3, 2]]
    )


def test_bad_input_is_answered():
    model, x, classes = derived("mlp")
    w = classes.layout.flatten(model)
    for wrong, message in (
        ([0, 1], r"shape \(5,\), got \(2,\)"),
        ([0, 0, 1, 2, 3], "each of 0 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            classes[0].apply(w, wrong)
    with pytest.raises(ValueError, match="needs 2 permutations"):
        classes.apply(w, [])
    with pytest.raises(TypeError, match="permutation_classes: model must be"):
        qn.permutation_classes("mlp", x)
    with pytest.raises(ValueError, match="reference must be one finite point"):
        match_channels(w, w * float("nan"), classes)
    with pytest.raises(ValueError, match="sweeps must be an integer of at least 1"):
        match_channels(w, w, classes, sweeps=0)


def test_what_is_of_another_kind_is_answered():
    model, x, classes = derived("mlp")
    w = classes.layout.flatten(model)
    integers = "PermutationClass.apply: permutation must be integers"
    whole = "match_channels: classes must be what permutation_classes returned"
    for call, message in (
        (lambda: classes[0].apply(w, torch.arange(5.0)), f"{integers}.*torch.float32"),
        (lambda: classes[0].apply(w, "abc"), f"{integers}.*got str"),
        (lambda: classes[0].apply(w, None), f"{integers}.*got NoneType"),
        (lambda: classes.apply(w, None), "must be a sequence, .*got NoneType"),
        (lambda: match_channels(w, w, [classes[0]]), f"{whole}.*got list"),
        (lambda: match_channels(w, w, "c"), f"{whole}.*got str"),
        (lambda: match_channels(w, w, classes[0]), f"{whole}.*got PermutationClass"),
        (
            lambda: match_channels(w, w, classes, generator=3),
            "torch.Generator.*got int",
        ),
        (
            lambda: match_channels(w, w, classes, sweeps="a"),
            "sweeps must be an integer",
        ),
        (
            lambda: qn.permutation_classes(model, x, samples=1.5),
            "samples must be an int",
        ),
        (lambda: qn.permutation_classes(model, x, tolerance="a"), "must be a number"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    for options, message in (
        ({"samples": 0}, "permutation_classes: samples must be an integer of at least 1, got 0"),
        ({"tolerance": -1}, "permutation_classes: tolerance must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            qn.permutation_classes(model, x, **options)
    with pytest.raises(ValueError, match="^permutation_classes: the model cannot be"):
        qn.permutation_classes(nn.Linear(4, 2), torch.randn(5, 3))


# -- axes ---


def sizes(axis):
    return [leaf.size for leaf in leaves(axis)]


def test_products_are_refined_to_common_factors():
    a, b = product([new(4), new(6)]), product([new(2), new(12)])
    unify(a, b)
    assert sizes(a) == sizes(b) == [2, 2, 6]
    assert [x.found for x in leaves(a)] == [x.found for x in leaves(b)]
    assert not any(x.fixed for x in leaves(a))
    c, d = product([new(4), new(3)]), product([new(3), new(4)])
    unify(c, d)  # no common refinement
    assert all(x.fixed for x in (*leaves(c), *leaves(d)))


def test_an_axis_that_is_fixed_fixes_what_it_is_made_of():
    for whole in (product([new(2), new(3)]), joined([new(2), new(4)])):
        unify(fixed(6), whole)
        assert sizes(whole) in ([2, 3], [2, 4]) and all(x.fixed for x in leaves(whole))


def test_sums_are_cut_where_either_is():
    a = new(7)
    first, rest = segment(a, 0, 3), segment(a, 3, 4)
    assert sizes(a) == [3, 4] and segment(a, 0, 3).found is first.found
    b = joined([new(5), fixed(2)])
    unify(a, b)
    assert sizes(a) == sizes(b) == [3, 2, 2]
    assert [x.fixed for x in leaves(a)] == [False, False, True]
    assert [x.found for x in leaves(rest)] == list(leaves(a))[1:]
    heads = product([new(3), new(2), new(5)])
    assert sizes(segment(heads, 10, 10)) == [2, 5]
    assert sizes(segment(heads, 3, 4)) == [4] and all(x.fixed for x in leaves(heads))
    assert factors_of(product([new(1), new(1)])) == []
    with pytest.raises(ValueError, match="no one axis"):
        unify(new(2), new(3))


# -- matching ---


@pytest.mark.parametrize(
    "name", ["mlp", "resnet, normalised", "gpt", "llama", "grouped sink"]
)
def test_a_permuted_network_is_found_again(name):
    model, x, classes = derived(name)
    w = classes.layout.flatten(model)
    generator = torch.Generator().manual_seed(1)
    hidden = classes.apply(w, classes.random(generator))
    found = match_channels(hidden, w, classes)
    assert not hidden.equal(w) and found.before < found.after
    torch.testing.assert_close(found.w, w, rtol=0, atol=0)
    again = hidden
    for number, permutation in found.steps:
        again = classes[number].apply(again, permutation)
    assert again.equal(found.w) and found.after == pytest.approx(1.0)


def test_matching_two_layers_is_the_best_of_all_permutations():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    classes = qn.permutation_classes(model, torch.randn(5, 4).double())
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, classes.layout.size, generator=generator, dtype=torch.float64)
    best = max(float(classes[0].apply(a, p) @ b) for p in permutations(range(5)))
    found = match_channels(a, b, classes)
    assert float(found.w @ b) == pytest.approx(best, rel=1e-12)
    assert found.after == pytest.approx(best / float(a.norm() * b.norm()), rel=1e-12)
    assert F.cosine_similarity(a, b, dim=0) == pytest.approx(found.before)
