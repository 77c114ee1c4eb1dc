"""Scales of layers and units, weight normalisation, inputs and shared branches."""

import copy
from math import exp, log, prod, sqrt

import pytest
import torch
from architectures import ARCHITECTURES, Block, norm
from cases import NETWORKS
from equivalents import seeded  # noqa: F401, an autouse fixture
from equivalents import (
    DRAWN,
    LAW,
    architecture,
    chain,
    hessian,
    mlp,
    problem,
    same_function,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import quotientnet as qn
from quotientnet import reparametrisation as rp
from quotientnet.testing.networks import networks


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "unbatched mlp"])
def test_layer_scales_have_the_scales_of_an_element_and_keep_the_function(name):
    model, inputs, symmetry, _ = architecture(name)
    group, coarse = symmetry.group, symmetry.layer_scales
    layout = group.layout
    generator = torch.Generator().manual_seed(4)
    wanted = coarse.exponents(coarse.random(spread=0.5, generator=generator))
    factors = {e.name: exp(wanted[e.start]) for e in layout.entries}
    t = rp.layer_scales(group, factors)
    torch.testing.assert_close(group.exponents(t), wanted, rtol=0, atol=1e-12)
    if group.dimension:
        assert same_function(model, qn.transform(model, group, t), inputs, 1e-8)


def test_layer_scales_are_those_of_appendix_b():
    model, inputs, group, _ = chain(3, 4, 5, 2)
    alphas = (2.0, 0.25, 2.0)
    twin = qn.transform(model, group, rp.layer_scales(group, alphas), inputs=inputs)
    for k, layer in enumerate((0, 2, 4)):
        weight = twin[layer].weight / model[layer].weight
        bias = twin[layer].bias / model[layer].bias
        torch.testing.assert_close(weight, torch.full_like(weight, alphas[k]))
        torch.testing.assert_close(bias, torch.full_like(bias, prod(alphas[: k + 1])))


def test_what_is_not_given_moves_least():
    _, _, group, _ = chain(3, 4, 5, 2, bias=False)
    exponents = group.exponents(rp.layer_scales(group, {"2.weight": 4.0}))
    views = group.layout.unflatten(exponents)
    torch.testing.assert_close(views["2.weight"], torch.full((5, 4), log(4)).double())
    for name in ("0.weight", "4.weight"):  # half of it each, since a chain is symmetric
        torch.testing.assert_close(views[name], torch.full_like(views[name], -log(2)))


def test_the_papers_layer_scales_from_either_group():
    """rangamani2019 Table 2, by the whole group and by its coarsest part."""
    network = NETWORKS["mlp"]
    symmetry = qn.discover(network.build(), network.data()[0])
    w = symmetry.group.layout.flatten(network.build())
    for scales in [(5, 4, 1 / 20), (100, 30, 1 / 3000)]:
        for group in (symmetry.group, symmetry.layer_scales):
            ratio = group.layout.unflatten(
                group.act(w, rp.layer_scales(group, scales)) / w
            )
            weights = [r for name, r in ratio.items() if "weight" in name]
            for found, scale in zip(weights, scales):
                torch.testing.assert_close(found, torch.full_like(found, scale))
    assert rp.layer_scales(symmetry.layer_scales, (5, 4, 1 / 20)).exp().tolist() == (
        pytest.approx([5, 20])
    )


def test_layer_scales_of_a_group_too_large_for_a_dense_inverse():
    layout = qn.ParameterLayout({"A": (900, 3), "B": (800, 900), "C": (2, 800)})
    units = [
        qn.Unit("a", 900, (qn.Scale("A", 0), qn.Scale("B", 1, -1))),
        qn.Unit("b", 800, (qn.Scale("B", 0), qn.Scale("C", 1, -1))),
    ]
    group = qn.ScalingGroup.from_units(layout, units)
    t = rp.layer_scales(group, (1e3, 10.0, 1e-4))
    torch.testing.assert_close(t[:900], torch.full((900,), log(1e3)).double())
    torch.testing.assert_close(t[900:], torch.full((800,), log(1e4)).double())


def test_scales_that_do_not_exist_are_refused_by_name():
    _, _, group, _ = chain(3, 4, 2)
    with pytest.raises(
        ValueError, match="scales '2.weight' by 3|scales '0.weight' by 2"
    ):
        rp.layer_scales(group, (2.0, 3.0))
    with pytest.raises(ValueError, match="scales '2.bias' by 2 .*nearest: 1\\)"):
        rp.layer_scales(group, {"2.bias": 2.0})
    with pytest.raises(ValueError, match="'nowhere' is not in the layout"):
        rp.layer_scales(group, {"nowhere": 2.0})
    with pytest.raises(ValueError, match="got 3 factors for the 2 tensors"):
        rp.layer_scales(group, (1, 2, 3))
    for factor in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="factors are positive and finite"):
            rp.layer_scales(group, {"0.weight": factor})
        with pytest.raises(ValueError, match="factors are positive and finite"):
            rp.unit_scales(group, {0: factor})
    with pytest.raises(ValueError, match="no generator 'x'; it has 4"):
        rp.unit_scales(group, {"x": 2.0})
    with pytest.raises(TypeError, match="layer_scales: group must be a ScalingGroup"):
        rp.layer_scales("group", {})


def test_the_running_example_of_tsuzuku2019_with_corrected_numbers():
    model = mlp(2, 2, 2, bias=False)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        model[2].weight.copy_(torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    inputs = torch.tensor([[1.0, -0.3], [0.2, 0.9], [-1.0, 0.6]]).double()
    group = qn.discover(model, inputs).group

    def norms(m):
        weights = (m[0].weight.detach(), m[2].weight.detach())
        return [
            torch.linalg.matrix_norm(w, ord=o).item()
            for w in weights
            for o in ("fro", 2)
        ]

    assert norms(model) == pytest.approx(
        [sqrt(30), 5.465, sqrt(174), 13.19], abs=5e-4 * 10
    )
    assert norms(model)[1] == pytest.approx(5.465, abs=5e-4)  # (35) prints 5.48
    first, second = group.names
    one = qn.transform(model, group, rp.unit_scales(group, {first: 1 / 10}))
    both = qn.transform(
        one, group, rp.unit_scales(group, {second: 1 / 0.1}), inputs=inputs
    )
    wanted = [[[0.1, 0.2], [3.0, 4.0]], [[50.0, 6.0], [70.0, 8.0]]]
    found = [one[0].weight.tolist(), one[2].weight.tolist()]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted))
    assert norms(both) == pytest.approx(
        [sqrt(2500.05), 50.0, sqrt(7401), 86.03], abs=5e-3
    )
    assert norms(both)[2] != pytest.approx(sqrt(6101.13), rel=0.05)  # (44) as printed
    assert norms(both)[3] != pytest.approx(78.11, rel=0.05)  # (45) as printed
    assert same_function(model, both, inputs)


def test_a_unit_scale_multiplies_the_diagonal_of_its_row_by_alpha_squared():
    model, inputs, group, objective = chain(3, 4, 2, noise=0.3)
    twin = qn.transform(model, group, rp.unit_scales(group, {1: 1 / 7}))
    before, after = (
        hessian(m, objective).diagonal()[:12].view(4, 3) for m in (model, twin)
    )
    torch.testing.assert_close(after[1], 49 * before[1])
    torch.testing.assert_close(after[[0, 2, 3]], before[[0, 2, 3]])


def test_both_matrices_can_have_any_norm_and_stable_rank_one():
    model, inputs, group, _ = chain(3, 4, 2, bias=False)
    twin = qn.transform(
        model, group, rp.unit_scales(group, {0: 1e6, 1: 1e-6}), inputs=inputs
    )
    for weight in (twin[0].weight.detach(), twin[2].weight.detach()):
        spectral = torch.linalg.matrix_norm(weight, ord=2)
        assert spectral > 1e4
        assert weight.square().sum() / spectral**2 < 1 + 1e-6


# -- Theorem 3 ---


@DRAWN
@given(model=networks(), seed=st.integers(0, 99))
def test_derivatives_follow_the_scales_on_drawn_networks(model, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3, 2, 4, 4, generator=generator).double()
    group = qn.discover(model, inputs).layer_scales
    assume(group.dimension and group.layout.size <= 120)
    objective = problem(model, inputs, 0.3)
    t = group.random(spread=0.5, generator=generator)
    d = torch.exp(-group.exponents(t))[: group.layout.parameter_size]
    before = hessian(model, objective)
    after = hessian(qn.transform(model, group, t), objective)
    wanted = d[:, None] * before * d
    assume(torch.isfinite(before).all())
    assert (
        (after - wanted).abs() <= 1e-8 * (d[:, None] * before.abs().max() * d)
    ).all()


# -- section 5.1: weight normalisation ---


def weight_normalised(wrap, whole=False):
    """Two layers, the first one with weight normalisation."""
    first = wrap(nn.Linear(4, 3), dim=None if whole else 0)
    return nn.Sequential(first, nn.ReLU(), nn.Linear(3, 2)).double()


DIRECTION = "0.parametrizations.weight.original1"


@pytest.mark.parametrize("whole", [False, True], ids=["rows", "whole"])
def test_the_direction_of_a_normalised_weight_has_any_scale(whole):
    model = weight_normalised(nn.utils.parametrizations.weight_norm, whole)
    inputs = torch.randn(9, 4).double()
    symmetry = qn.discover(model, inputs)
    objective = problem(model, inputs)
    t = rp.layer_scales(symmetry, {DIRECTION: 1e-3})
    twin = qn.transform(model, symmetry, t, inputs=inputs)
    own = dict(model.named_parameters())
    moved = [n for n, p in twin.named_parameters() if not torch.equal(p, own[n])]
    assert moved == [DIRECTION]
    place = symmetry.group.layout[DIRECTION].slice
    before, after = (hessian(m, objective)[place, place] for m in (model, twin))
    torch.testing.assert_close(after, 1e6 * before, rtol=1e-8, atol=1e-4)
    # The paper's α ≠ 0: with α < 0 it is another function.
    with pytest.raises(ValueError, match="signs are not in the group"):
        rp.layer_scales(symmetry, {DIRECTION: -1.0})
    other = copy.deepcopy(model)
    with torch.no_grad():
        dict(other.named_parameters())[DIRECTION].neg_()
    assert not same_function(model, other, inputs)


def test_each_row_of_a_normalised_weight_has_its_own_scale():
    model = weight_normalised(nn.utils.parametrizations.weight_norm)
    inputs = torch.randn(9, 4).double()
    group = qn.discover(model, inputs).group
    row = next(
        name for name in group.names if name.startswith(f"{DIRECTION} channel 1")
    )
    twin = qn.transform(model, group, rp.unit_scales(group, {row: 5.0}), inputs=inputs)
    a, b = (dict(m.named_parameters())[DIRECTION].detach() for m in (model, twin))
    torch.testing.assert_close(b, a * torch.tensor([[1.0], [5.0], [1.0]]).double())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_normalisation_by_hooks_is_moved_in_place():
    model = weight_normalised(
        nn.utils.weight_norm
    )  # torch cannot copy it after a forward
    inputs = torch.randn(9, 4).double()
    group = qn.discover(model, inputs).group
    before, weight = model(inputs).detach(), model[0].weight_v.detach().clone()
    t = rp.layer_scales(group, {"0.weight_v": 1e-3})
    qn.transform(model, group, t, in_place=True)
    torch.testing.assert_close(model[0].weight_v, 1e-3 * weight)
    torch.testing.assert_close(model(inputs), before)


def test_a_minimum_with_weight_normalisation_is_as_sharp_or_flat_as_one_likes():
    model = weight_normalised(nn.utils.parametrizations.weight_norm)
    inputs = torch.randn(9, 4).double()
    symmetry = qn.discover(model, inputs)
    objective = problem(model, inputs)
    place = symmetry.group.layout[DIRECTION].slice
    tops = []
    for factor in (1e-3, 1.0, 1e3):
        t = rp.layer_scales(symmetry, {DIRECTION: factor})
        block = hessian(qn.transform(model, symmetry, t), objective)[place, place]
        tops.append(torch.linalg.eigvalsh(block).abs().max().item() * factor**2)
    assert tops == pytest.approx([tops[0]] * 3, rel=1e-6)


# -- section 5.2 ---


def shear(x):
    """A preprocessing whose matrix is not symmetric."""
    matrix = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 2.0]]).double()
    return rp.AffinePreprocessing(x.mean(0), matrix)


@pytest.mark.parametrize("make", [rp.standardise, rp.whiten, shear])
def test_gradients_follow_the_representation_of_the_input(make):
    model = mlp(3, 5, 2)
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(3, 3, generator=generator).double()
    x = torch.randn(40, 3, generator=generator).double() @ mix + 2.0
    xi = make(x)
    u = xi(x)
    torch.testing.assert_close(u.mean(0), torch.zeros(3).double(), atol=1e-12, rtol=0)
    covariance = u.T @ u / len(u)
    if make is rp.whiten:
        torch.testing.assert_close(covariance, torch.eye(3).double())
    if make is not shear:
        torch.testing.assert_close(covariance.diagonal(), torch.ones(3).double())
    torch.testing.assert_close(u, torch.einsum("ij,nj->ni", xi.matrix, x - xi.shift))
    torch.testing.assert_close(xi.inverse(u), x)
    f = rp.OnPreprocessed(model, xi)
    torch.testing.assert_close(f(u), model(x))
    for i in range(3):
        new = torch.autograd.functional.jacobian(f, u[i])
        old = torch.autograd.functional.jacobian(model, x[i])
        inner = torch.autograd.functional.jacobian(xi.inverse, u[i])
        torch.testing.assert_close(new, old @ inner)
        assert (new - old).norm() > 0.01 * old.norm()
    assert (
        qn.discover(f, u).group.dimension == qn.discover(model, x).group.dimension == 5
    )


def test_preprocessings_without_an_inverse_are_refused():
    x = torch.tensor(
        [[1.0, 2.0, 3.0], [1.0, 4.0, 7.0], [1.0, 6.0, 11.0], [1.0, 7.0, 0.0]]
    )
    with pytest.raises(
        ValueError, match="1 of 3 features are constant, the first number 0"
    ):
        rp.standardise(x)
    with pytest.raises(ValueError, match="rank 2 of 3"):
        rp.whiten(x)
    with pytest.raises(ValueError, match="shape \\(samples, features\\)"):
        rp.whiten(torch.ones(3))
    with pytest.raises(ValueError, match="rank 1 of 2"):
        rp.AffinePreprocessing(torch.zeros(2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="matrix of shape \\(d, d\\)"):
        rp.AffinePreprocessing(torch.zeros(2), torch.eye(3))


# -- tsuzuku2019 section 7.3 ---


def branches(make=lambda: nn.Linear(3, 4), function=torch.relu):
    """Two equal branches, summed, with a head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        a, b, last = make().double(), make().double(), nn.Linear(4, 2).double()
        b.load_state_dict(a.state_dict())
    return Block(
        lambda m, x: m.last(function(m.a(x)) + function(m.b(x))), a=a, b=b, last=last
    )


PAIRS = {"a.weight": "b.weight", "a.bias": "b.bias"}


def fisher_rao(model, inputs, targets, names):
    """The diagonal (25) and Liang's norm by per-sample gradients, over the named parameters."""
    diagonal = liang = 0.0
    parameters = [dict(model.named_parameters())[n] for n in names]
    for x, y in zip(inputs, targets):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        gradients = torch.autograd.grad(loss, parameters)
        diagonal += sum((p * g).square().sum() for p, g in zip(parameters, gradients))
        liang += sum((p * g).sum() for p, g in zip(parameters, gradients)) ** 2
    return diagonal.item() / len(inputs), liang.item() / len(inputs)


def test_the_diagonal_fisher_rao_norm_doubles_and_liangs_stays():
    model = branches()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 3, generator=generator).double()
    targets = torch.randint(0, 2, (12,), generator=generator)
    merged = rp.share_branches(model, PAIRS, 0.0, inputs)
    torch.testing.assert_close(merged.a.weight, 2 * model.a.weight)
    assert not merged.b.weight.any() and same_function(model, merged, inputs)
    names = [*PAIRS, *PAIRS.values()]
    before, after = (fisher_rao(m, inputs, targets, names) for m in (model, merged))
    assert after[0] == pytest.approx(2 * before[0]) and after[1] == pytest.approx(
        before[1]
    )
    back = rp.share_branches(merged, PAIRS, 0.5, inputs)
    torch.testing.assert_close(back.b.weight, model.b.weight)


@LAW
@given(share=st.floats(0.0, 1.0), seed=st.integers(0, 9))
def test_no_share_changes_the_function(share, seed):
    convolution = seed % 2
    make = (lambda: nn.Conv1d(3, 4, 2)) if convolution else (lambda: nn.Linear(3, 4))
    function = (
        (lambda h: nn.functional.leaky_relu(h).mean(-1)) if convolution else torch.abs
    )
    model = branches(make, function)
    shape = (5, 3, 6) if convolution else (5, 3)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()
    twin = rp.share_branches(model, PAIRS, share, inputs)
    assert same_function(model, twin, inputs, 1e-12)
    torch.testing.assert_close(twin.b.weight, 2 * share * model.b.weight)


def test_branches_that_cannot_share_are_refused():
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    model = branches()
    with pytest.raises(ValueError, match="share from 0 to 1"):
        rp.share_branches(model, PAIRS, 1.5, inputs)
    with pytest.raises(ValueError, match="pairs of names"):
        rp.share_branches(model, {}, 0.5, inputs)
    with pytest.raises(ValueError, match="no parameter 'c.weight'"):
        rp.share_branches(model, {"a.weight": "c.weight"}, 0.5, inputs)
    with pytest.raises(ValueError, match="one parameter or of different shapes"):
        rp.share_branches(model, {"a.weight": "last.weight"}, 0.5, inputs)
    with pytest.raises(ValueError, match="the outputs change"):
        rp.share_branches(
            model, {"a.weight": "b.weight"}, 0.0, inputs
        )  # without the biases
    with pytest.raises(ValueError, match="the outputs change"):
        rp.share_branches(branches(function=torch.tanh), PAIRS, 0.0, inputs)
    with torch.no_grad():
        model.b.weight[0, 0] += 1e-6
    with pytest.raises(ValueError, match="no non-negative multiples"):
        rp.share_branches(model, PAIRS, 0.0, inputs)


def test_normalised_branches_are_still_one_function():
    convolution = nn.Conv2d(2, 3, 3)
    model = nn.Sequential(convolution, norm(3), nn.ReLU()).double()
    inputs = torch.randn(
        4, 2, 6, 6, generator=torch.Generator().manual_seed(0)
    ).double()
    group = qn.discover(model, inputs).group
    t = rp.layer_scales(group, {"0.weight": 1e-2})
    assert same_function(model, qn.transform(model, group, t), inputs)
