"""Which blocks of a network are directions of fixed norm, and what spheres refuse."""

import re
from math import inf

import numpy as np
import pytest
import torch
from cases import NETWORKS
from oblique_cases import DOUBLE, ROWS, generator, joint, point

import quotientnet as qn
from quotientnet.symmetry import normalised_blocks

# -- the blocks of a network ---


def test_normalised_blocks_of_a_network():
    """A filter with its bias is a block; scale and shift of the normalisation are not."""
    network = NETWORKS["batch-norm"]
    for train in (True, False):
        model = network.build().train(train)
        symmetry = qn.discover(model, network.data()[0])
        found = normalised_blocks(symmetry)
        assert sorted(found.index) == ["0.bias", "0.weight", "3.weight"]
        assert found.index["0.weight"].ravel().tolist() == [0, 1, 2]
        assert found.index["0.bias"].tolist() == [0, 1, 2]
        assert found.index["3.weight"].ravel().tolist() == [3, 4, 5, 6]
        names = [symmetry.group.names[j] for j in found.generators]
        assert all("running_var" in name for name in names)
        w = symmetry.group.layout.flatten(model)
        radii = qn.ProductOblique.at(w, symmetry).radii
        first = [model[0].weight.detach().flatten(1), model[0].bias.detach()[:, None]]
        second = model[3].weight.detach().flatten(1)
        by_hand = torch.cat([torch.cat(first, 1).norm(dim=1), second.norm(dim=1)])
        torch.testing.assert_close(radii, by_hand)


def units(layout, **scales):
    return qn.ScalingGroup.from_units(
        layout,
        [
            qn.Unit(name, n, tuple(qn.Scale(*each) for each in of))
            for name, (n, of) in scales.items()
        ],
    )


def test_generators_that_do_not_count():
    """Opposite or unequal exponents, and generators that share an entry."""
    layout = qn.ParameterLayout({"a": (2, 3), "b": (3, 2), "c": (2, 2), "d": (4,)})
    relu = (2, [("a", 0), ("b", 1, -1)])
    unequal = (1, [("d", None, 2), ("b", None, 1)])
    rows, columns = (2, [("c", 0)]), (2, [("c", 1)])
    whole = (1, [("d", None, -3)])
    assert normalised_blocks(units(layout, relu=relu)).index == {}
    assert normalised_blocks(units(layout, unequal=unequal)).index == {}
    assert normalised_blocks(units(layout, rows=rows, columns=columns)).index == {}
    found = normalised_blocks(units(layout, relu=relu, rows=rows, whole=whole))
    assert list(found.index) == ["c", "d"] and found.generators.tolist() == [2, 3, 4]
    # The shrinking half of a hidden unit does not spoil a filter's own generator.
    both = normalised_blocks(units(layout, relu=relu, own=(3, [("b", 0)])))
    assert list(both.index) == ["b"] and both.generators.tolist() == [2, 3, 4]


def test_exponents_that_cancel_do_not_count():
    """A residual map of a stream that scales its rows and, oppositely, its columns."""
    layout = qn.ParameterLayout({"in": (1, 2), "map": (1, 1), "out": (2,)})
    group = units(layout, stream=(1, [("in", None), ("map", 0), ("map", 1, -1)]))
    found = normalised_blocks(group)
    assert list(found.index) == ["in"] and found.generators.tolist() == [0]


def test_exponents_that_differ_only_where_two_terms_meet_do_not_count():
    """One stream channel of two: exponents 0 and 1 in its row, 0 and −1 in its column."""
    layout = qn.ParameterLayout({"map": (2, 2)})
    terms = [qn.Term([[0], [1]], 1), qn.Term([[0, 1]], -1)]
    group = qn.ScalingGroup(layout, {"map": terms}, np.array([[1], [0]]))
    assert group.exponents(torch.ones(1)).tolist() == [0, 1, -1, 0]
    assert normalised_blocks(group).index == {}


def test_every_generator_against_its_dense_column():
    for name in ("batch-norm", "mlp", "conv"):
        network = NETWORKS[name]
        group = qn.discover(network.build(), network.data()[0]).group
        dense = group.exponents(torch.eye(group.dimension, dtype=torch.float64))
        dense = dense[:, : group.layout.parameter_size]
        expected = [
            j for j, row in enumerate(dense) if len(row[row != 0].unique()) == 1
        ]
        found = normalised_blocks(group)
        assert found.generators.tolist() == expected
        ones = torch.ones(len(expected))
        m = qn.ProductOblique(group.layout, ones, found.index)
        sizes = (dense[expected] != 0).sum(1)
        assert torch.equal(m.blocks.lengths[: len(expected)], sizes)


@pytest.mark.parametrize("train", [True, False])
def test_the_set_scales_with_the_network(train):
    """``ProductOblique.at(t·w)`` is ``t·ProductOblique.at(w)``, and so are its operations."""
    network = NETWORKS["batch-norm"]
    model = network.build().train(train)
    group = qn.discover(model, network.data()[0]).group
    others = np.ones(group.dimension, bool)
    others[normalised_blocks(group).generators] = False
    filters = group.without(others)
    w = group.layout.flatten(model)
    t = filters.random(spread=3.0, generator=generator())
    here, there = (qn.ProductOblique.at(p, group) for p in (w, filters.act(w, t)))
    x = here.random(generator=generator(1), **DOUBLE)
    u = here.proju(x, torch.randn(len(x), generator=generator(2), **DOUBLE))
    push = lambda v: filters.act(v, t)  # noqa: E731
    assert there.check_point_on_manifold(push(x))
    pairs = [
        (there.retr, here.retr),
        (there.expmap, here.expmap),
        (there.proju, here.proju),
    ]
    for moved, plain_one in pairs:
        a, b = moved(push(x), push(u)), push(plain_one(x, u))
        assert (here.norm(x, filters.act(a - b, -t))) <= 1e-12 * here.norm(x, u)


def test_without_normalisation_it_is_the_unit_sphere():
    network = NETWORKS["mlp"]
    model = network.build()
    symmetry = qn.discover(model, network.data()[0])
    m = qn.ProductOblique.at(symmetry.group.layout.flatten(model), symmetry)
    assert len(m.radii) == 0 and m.dimension == symmetry.group.layout.size - 1
    assert m.random(generator=generator()).norm().item() == pytest.approx(1)


# -- bad input ---


def test_zero_filters_are_named():
    network = NETWORKS["batch-norm"]
    model = network.build()
    group = qn.discover(model, network.data()[0]).group
    w = group.layout.flatten(model)
    entry = group.layout["3.weight"]
    w[entry.start : entry.start + entry.numel // 4] = 0
    with pytest.raises(qn.NotOnManifoldError, match=r"at: .* zero in '3.weight' \(1\)"):
        qn.ProductOblique.at(w, group)
    frozen = (torch.arange(len(w)) >= entry.start) & (
        torch.arange(len(w)) < entry.start + entry.numel // 4
    )
    m = qn.ProductOblique.at(w, group, frozen=frozen)
    assert not m.random(generator=generator())[frozen].any() and m.radii[3] == 1
    w[0] = torch.nan
    with pytest.raises(qn.NotOnManifoldError, match="'0.weight' .* NaN or infinite"):
        qn.ProductOblique.at(w, group)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((point(5, 0), {"rows": [[0], [1]]}), {}, ValueError, "radius of block 1 is 0"),
        ((point(5, -1), {"rows": [[0], [1]]}), {}, ValueError, "radius of block 1"),
        ((point(5, inf), {"rows": [[0], [1]]}), {}, ValueError, "radius of block 1"),
        ((point(5), {"rows": [[0], [1]]}), {}, ValueError, "numbers from 0 to 1"),
        ((point(5, 1), {"rows": [[0], [0]]}), {}, ValueError, "block 1 of 2 has no"),
        ((point(5, 1), {"rows": [0, 1]}), {}, ValueError, r"'rows' has shape \(2, 2\)"),
        ((point(5), {"rows": [[0.5]]}), {}, TypeError, "must be integer"),
        ((point(5), {"nothing": [0]}), {}, ValueError, "'nothing', which is no para"),
        ((point(5), {"mean": [0]}), {}, ValueError, "'mean', which is no parameter"),
        ((point(5)[None], {"rows": [[0]]}), {}, ValueError, "radii must have shape"),
        ((point(), {}), {"rest_radius": 0.0}, ValueError, "rest_radius is 0.0"),
        ((point(), {}), {"frozen": torch.ones(3)}, ValueError, "boolean mask of shape"),
    ],
)
def test_refused_constructions(arguments, options, error, message):
    with pytest.raises(error, match=f"ProductOblique: .*{message}"):
        qn.ProductOblique(ROWS, *arguments, **options)


def test_refused_points_and_vectors():
    m = joint()
    x = m.random(generator=generator(), **DOUBLE)
    hole = x.clone()
    hole[:2], hole[4] = 0, 0
    for call in (lambda: m.projx(hole), lambda: m.dist(x, hole)):
        with pytest.raises(
            qn.NotOnManifoldError, match="'rows' .1., 'bias' .1. are zero"
        ):
            call()
    with pytest.raises(qn.NotOnManifoldError, match="retr: blocks in .* come to zero"):
        m.retr(x, -x)
    with pytest.raises(ValueError, match="proju: .* last dimension of 11"):
        m.proju(x[:-1], x[:-1])
    with pytest.raises(ValueError, match="retr: .* is torch.float32 .* use .to"):
        m.retr(x, x.float())
    with pytest.raises(
        ValueError, match="expmap: .* NaN or infinite entries in 'last'"
    ):
        m.expmap(x, torch.where(torch.arange(11) == 7, torch.nan, x))
    with pytest.raises(ValueError, match="ProductOblique: size has shape"):
        m.random(4)
    with pytest.raises(TypeError, match="group must be a ScalingGroup"):
        qn.ProductOblique.at(x, ROWS)
    group = qn.ScalingGroup.from_units(ROWS, [qn.Unit("r", 2, (qn.Scale("rows", 0),))])
    with pytest.raises(ValueError, match="ProductOblique.at: w must be one point"):
        qn.ProductOblique.at(x[None], group)


def test_checks_say_why():
    m, x = joint(), joint().random(generator=generator(), **DOUBLE)
    u = m.proju(x, torch.randn(11, generator=generator(1), **DOUBLE))
    held = torch.arange(11) == 10
    cases = [
        (m.check_point_on_manifold(1.1 * x, explain=True), r"up to 1.00e-01 .* 'rows'"),
        (
            m.check_point_on_manifold(x + held, explain=True),
            "held .* 'mean' .1. are not",
        ),
        (
            m.check_vector_on_tangent(x, u + x, explain=True),
            "radial parts of up to 5.0",
        ),
        (m.check_vector_on_tangent(x, u + held, explain=True), "held .* 'mean'"),
        (m.check_vector_on_tangent(x, u * torch.nan, explain=True), "are NaN or"),
    ]
    for (holds, reason), expected in cases:
        assert not holds
        assert re.search(expected, reason), reason
