"""Reparametrisations: the theorems of dinh2017 and the transformations of tsuzuku2019."""

import copy
from fractions import Fraction
from math import exp, log, prod, sqrt

import pytest
import torch
from architectures import ARCHITECTURES, Block, norm
from cases import NETWORKS
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

import quotientnet as qn
from quotientnet import invariance
from quotientnet import reparametrisation as rp
from quotientnet.testing.networks import networks

LAW = settings(max_examples=60, deadline=None, derandomize=True, database=None)
DRAWN = settings(LAW, max_examples=25, phases=[Phase.generate])

SOME = [
    "mlp", "linear mlp", "lenet", "conv1d", "abs", "normalised mlp", "layer normalisation",
    "weight normalisation", "residual", "resnet", "resnet, normalised", "gated product", "split",
    "powers", "deep tied autoencoder", "scaled positions", "linear attention", "relu6",
    "checkpointed", "offset in a concatenation",
]  # fmt: skip


def mlp(*widths, bias=True, activation=nn.ReLU, seed=0):
    """A seeded chain in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Linear(a, b, bias=bias), activation()]
        model = nn.Sequential(*layers[:-1]).double()
        with torch.no_grad():
            for p in model.parameters():
                p += 0.3 * torch.randn_like(p)
    return model


def problem(model, inputs, noise=0.1, seed=1):
    """The squared distance to the model's own outputs and noise; near a minimum if small."""
    generator = torch.Generator().manual_seed(seed)
    clean = outputs(model, inputs)
    noise = noise * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    return qn.Objective(model, nn.MSELoss(), (inputs, clean + noise))


def architecture(name, noise=0.1):
    """A network of every kind in train mode, its inputs, its symmetry and a loss."""
    model, inputs = ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()
    return model, inputs, qn.discover(model, inputs), problem(model, inputs, noise)


def chain(*widths, noise=0.0, **options):
    """A chain at an exact minimum."""
    model = mlp(*widths, **options)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(20, widths[0], generator=generator, dtype=torch.float64)
    return (
        model,
        inputs,
        qn.discover(model, inputs).group,
        problem(model, inputs, noise),
    )


def hessian(model, objective):
    """The Hessian by autograd on the model itself: no layout, no operator."""
    model = copy.deepcopy(model)  # a forward in train mode moves running statistics
    names, parameters = zip(*model.named_parameters())
    sizes = [p.numel() for p in parameters]
    ((inputs, targets),) = objective.data

    def loss(w):
        pieces = [v.view_as(p) for v, p in zip(w.split(sizes), parameters)]
        tensors = dict(zip(names, pieces))
        outputs = torch.func.functional_call(model, tensors, (inputs,))
        return objective.loss(outputs, targets)

    w = torch.cat([p.detach().reshape(-1) for p in parameters])
    return torch.autograd.functional.hessian(loss, w)


def outputs(model, inputs):
    """Its outputs, the same at each call; nothing of the model moves."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return copy.deepcopy(model)(inputs)


def same_function(a, b, inputs, tolerance=1e-9):
    """Whether two models have the same outputs."""
    before, after = outputs(a, inputs), outputs(b, inputs)
    return (after - before).abs().max() <= tolerance * before.abs().max()


@pytest.fixture(autouse=True)
def seeded():
    """Modules made here have the same parameters at each run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# -- scales of layers and units ---


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


def test_layer_scales_do_what_layer_coordinates_did():
    network = NETWORKS["mlp"]
    symmetry = qn.discover(network.build(), network.data()[0])
    w = symmetry.group.layout.flatten(network.build())
    for scales in [(5, 4, 1 / 20), (100, 30, 1 / 3000)]:
        old = symmetry.layer_scales.act(
            w, invariance.layer_coordinates(symmetry.layer_scales, scales)
        )
        for group in (symmetry, symmetry.layer_scales):
            t = rp.layer_scales(group, scales)
            new = getattr(group, "group", group).act(w, t)
            torch.testing.assert_close(new, old, rtol=1e-13, atol=0)


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


# -- Theorem 4 ---


@pytest.mark.parametrize("name", SOME)
def test_theorem_4_on_every_kind_of_network(name):
    model, inputs, symmetry, objective = architecture(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sharp = rp.exceed_spectral_norm(objective, symmetry, 1e12)
    assert abs(sharp.after.value) >= 1e12 and sharp.bound == 1e12
    assert abs(sharp.before.value) < 1e4
    values = torch.linalg.eigvalsh(hessian(sharp.model, objective))
    assert values.abs().max() >= 1e12 * (1 - 1e-9)
    assert same_function(model, sharp.model, inputs, 1e-8)
    assert torch.equal(sharp.point.w, symmetry.group.layout.flatten(sharp.model))
    twin = qn.transform(model, symmetry, sharp.t)
    assert all(
        torch.equal(a, b) for a, b in zip(twin.parameters(), sharp.model.parameters())
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("bound", [1e-6, 3.0, 1e6, 1e12])
def test_theorem_4_as_the_paper_states_it(bound):
    model, _, group, objective = chain(3, 4, 2, bias=False)
    sharp = rp.exceed_spectral_norm(objective, group, bound)
    values = torch.linalg.eigvalsh(hessian(sharp.model, objective))
    assert values[-1] >= bound * (1 - 1e-12)
    assert sharp.after.value == pytest.approx(values[-1].item(), rel=1e-4)
    # One tensor shrinks, the other grows by as much.
    ratios = [b / a for a, b in zip(model.parameters(), sharp.model.parameters())]
    factors = [r.mean().item() for r in ratios]
    assert all((r - f).abs().max() < 1e-12 * f for r, f in zip(ratios, factors))
    assert prod(factors) == pytest.approx(1.0)
    # No further than needed: the bound is met with at most the slack of what it rests on.
    assert values[-1] <= max(10 * bound, 2 * abs(sharp.before.value))


class Total(nn.Module):
    """A loss that is linear in the outputs: no tensor has curvature by itself."""

    def forward(self, outputs, targets):
        return (outputs * targets).sum() + 2.0


def test_theorem_4_at_a_saddle_rests_on_a_pair_of_tensors():
    model = mlp(3, 4, 4, 2, bias=False, activation=nn.Identity)
    inputs = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double()
    group = qn.discover(model, inputs).group
    objective = qn.Objective(model, Total(), (inputs, torch.ones(9, 2).double()))
    dense = hessian(model, objective)
    assert all(
        not dense[s, s].any() for s in (slice(0, 12), slice(12, 28), slice(28, 36))
    )
    sharp = rp.exceed_spectral_norm(objective, group, 1e9)
    assert len(sharp.tensors) == 2
    assert torch.linalg.eigvalsh(hessian(sharp.model, objective)).abs().max() >= 1e9


def test_theorem_4_fails_where_only_two_factors_have_curvature():
    model = mlp(
        3, 4, 2, bias=False, activation=nn.Identity
    )  # so that a minimum is needed
    inputs = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double()
    objective = qn.Objective(model, Total(), (inputs, torch.ones(9, 2).double()))
    assert hessian(model, objective).any()
    symmetry = qn.discover(model, inputs)
    with pytest.raises(
        ValueError, match="the Hessian is zero on everything that the gr"
    ):
        rp.exceed_spectral_norm(objective, symmetry, 10.0)
    t = symmetry.group.random(generator=torch.Generator().manual_seed(0))
    norms = [
        torch.linalg.matrix_norm(hessian(m, objective), ord=2)
        for m in (model, qn.transform(model, symmetry, t))
    ]
    torch.testing.assert_close(*norms)


def test_theorem_4_in_float32_and_in_a_mode_of_its_own():
    model, inputs, symmetry, _ = architecture("normalised mlp")
    model = model.float().eval()
    with torch.no_grad():
        model[-1].bias += 1.0
        for module in model:
            if isinstance(module, nn.BatchNorm1d) and module.affine:
                module.bias += 2.0
    objective = problem(model, inputs.float())
    sharp = rp.exceed_spectral_norm(objective, symmetry, 1e6)
    assert abs(sharp.after.value) >= 1e6 and not sharp.model.training
    assert next(sharp.model.parameters()).dtype == torch.float32


def test_what_the_theorems_cannot_do_is_refused():
    model, inputs, group, objective = chain(3, 4, 2, noise=0.1)
    calls = (rp.exceed_spectral_norm, rp.exceed_eigenvalues, rp.exceed_sharpness)
    none = mlp(3, 4, 2, activation=nn.Tanh)
    rigid = qn.discover(none, inputs)
    flat = copy.deepcopy(model)
    for parameter in flat.parameters():
        nn.init.zeros_(parameter)
    for call in calls:
        for bound in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="must be positive and finite"):
                call(objective, group, bound)
        with pytest.raises(TypeError, match="objective must be an Objective, got Seq"):
            call(model, group, 1.0)
        with pytest.raises(TypeError, match="group must be a ScalingGroup"):
            call(objective, objective, 1.0)
        with pytest.raises(ValueError, match="derive both from one model"):
            call(objective, chain(3, 5, 2)[2], 1.0)
        with pytest.raises(ValueError, match="no generators"):
            call(problem(none, inputs), rigid, 1.0)
        with pytest.raises(
            ValueError, match="is zero|no positive eigenvalue|never raises"
        ):
            call(problem(flat, inputs), group, 1e-3)
    for call in calls[:2]:
        with pytest.raises(ValueError, match="leave the range of torch.float32"):
            single = copy.deepcopy(model).float()
            call(problem(single, inputs.float()), group, 1e120)


def test_a_group_that_is_not_the_models_own_is_found_out():
    model, inputs, group, objective = chain(3, 4, 2, noise=0.1)
    wrong = qn.ScalingGroup.from_units(
        group.layout, [qn.Unit("wrong", 1, (qn.Scale("0.weight", None),))]
    )
    for call, bound in ((rp.exceed_spectral_norm, 1e4), (rp.exceed_sharpness, 1e-3)):
        with pytest.raises(RuntimeError, match="not invariant to the group"):
            call(objective, wrong, bound)


def test_an_eps_that_spoils_the_symmetry_is_found_out():
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)
    )
    inputs = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double()
    group = qn.discover(model.double(), inputs).group
    filters = qn.ScalingGroup.from_units(
        group.layout, [qn.Unit("filters", 1, (qn.Scale("0.weight", None),))]
    )
    with pytest.raises(
        RuntimeError, match="has a loss of .* an eps in the model is too large"
    ):
        rp.exceed_spectral_norm(problem(model, inputs), filters, 1e9)


@pytest.mark.parametrize("name, training", [("normalised mlp", True), ("lenet", False)])
def test_nothing_of_the_users_changes(name, training):
    model, inputs, symmetry, objective = architecture(name)
    model.train(training)
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    for call, amount in (
        (rp.exceed_spectral_norm, 1e3), (rp.exceed_eigenvalues, 1e3), (rp.exceed_sharpness, 0.1),
    ):  # fmt: skip
        sharp = call(objective, symmetry, amount)
        assert sharp.model is not model and sharp.model.training is training
    rp.disjoint_boxes(symmetry.group.layout.flatten(model), symmetry, 0.1).box(1)
    assert torch.equal(random, torch.get_rng_state()) and model.training is training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_with_a_real_eps_only_exact_scales_are_used(training):
    architecture = ARCHITECTURES["resnet, normalised"]
    model, inputs = architecture.build(), architecture.inputs()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
            nn.init.constant_(module.bias, 1.0)  # alive in eval mode, too
    model.train(training)
    symmetry, objective = qn.discover(model, inputs), problem(model, inputs, 0.01)
    views = symmetry.group.layout.unflatten
    for call, amount in (
        (rp.exceed_spectral_norm, 1e9), (rp.exceed_eigenvalues, 1e6), (rp.exceed_sharpness, 1e-5),
    ):  # fmt: skip
        sharp = call(objective, symmetry, amount)
        assert sharp.t.shape == (symmetry.group.dimension,)
        assert same_function(model, sharp.model, inputs, 1e-9)
        moved = views(symmetry.group.exponents(sharp.t))
        still = [v for name, v in moved.items() if "running" in name]
        assert still and all(v.abs().max() < 1e-12 for v in still)
    with pytest.raises(RuntimeError, match="pass what discover returned"):
        rp.exceed_eigenvalues(objective, symmetry.group, 1e6)
    w = symmetry.group.layout.flatten(model)
    boxes = rp.disjoint_boxes(w, symmetry, 1e-4)
    draws = boxes.box(0).sample(5, torch.Generator().manual_seed(0))
    for x in draws:
        image = symmetry.group.act(x, 3 * boxes.t)
        assert objective(image).item() == pytest.approx(objective(x).item(), rel=1e-9)


def test_where_no_scale_is_exact_it_says_so():
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Tanh()
    ).double()
    inputs = torch.randn(9, 3).double()
    symmetry = qn.discover(model, inputs)
    with pytest.raises(
        ValueError, match="every element .* lower its eps, or pass symmetry.group"
    ):
        rp.exceed_spectral_norm(problem(model, inputs), symmetry, 1e3)
    sharp = rp.exceed_spectral_norm(problem(model, inputs), symmetry.group, 1e1)
    assert abs(sharp.after.value) >= 1e1


# -- Theorem 5 ---


@pytest.mark.parametrize("widths", [(3, 4, 2), (2, 3, 4, 2), (4, 5, 5, 5, 3)])
def test_theorem_5_as_the_paper_states_it(widths):
    model, inputs, group, objective = chain(*widths, bias=False)
    fewest = min(a * b for a, b in zip(widths, widths[1:]))
    rank = int(torch.linalg.matrix_rank(hessian(model, objective), rtol=1e-9))
    sharp = rp.exceed_eigenvalues(objective, group, 50.0)
    values = torch.linalg.eigvalsh(hessian(sharp.model, objective))
    assert sharp.positive == rank and sharp.fixed == fewest
    assert sharp.count >= rank - fewest > 0
    assert sharp.before < sharp.count <= int((values > 50.0).sum())
    assert same_function(model, sharp.model, inputs)


def test_theorem_5_with_biases_raises_fewer():
    model, inputs, group, objective = chain(4, 5, 3, 2)
    sharp = rp.exceed_eigenvalues(objective, group, 1e12)
    # The smallest weight grows, and no element of the group scales the last bias.
    assert sharp.fixed == 3 * 2 + 2
    assert set(sharp.tensors) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert sharp.count >= sharp.positive - sharp.fixed and sharp.before == 0
    # A first weight that is the smallest takes all biases of hidden layers with it.
    model, inputs, group, objective = chain(1, 2, 5, 4)
    sharp = rp.exceed_eigenvalues(objective, group, 1e12)
    fixed = {n for n in group.layout.names if n not in sharp.tensors}
    sizes = {e.name: e.numel for e in group.layout.entries}
    assert sharp.fixed == sum(sizes[n] for n in fixed)
    best = min(
        2 + 2 + 5 + 4, 10 + 5 + 4, 20 + 4
    )  # the weight that grows and what follows it
    assert sharp.fixed == best


@pytest.mark.parametrize("name", [n for n in SOME if "normalis" not in n])
def test_theorem_5_on_every_kind_of_network(name):
    model, inputs, symmetry, objective = architecture(name)
    dense = hessian(model, objective)
    sharp = rp.exceed_eigenvalues(objective, symmetry, 1e12)
    values = torch.linalg.eigvalsh(dense)
    assert sharp.positive == int((values > 1e-9 * values.abs().max()).sum())
    assert sharp.count >= max(sharp.positive - sharp.fixed, 1)
    # What shrinks, by itself, as the theorem has it: λ of H there times the least of D².
    group = symmetry.group
    d = torch.exp(-group.exponents(sharp.t))[: len(dense)]
    inside = d > 1
    kept = torch.linalg.eigvalsh(dense[inside][:, inside])
    kept = kept[kept > 1e-9 * values.abs().max()]
    assert kept.min() * d[inside].min() ** 2 >= 1e12 and sharp.count >= len(kept)
    assert int((~inside).sum()) == sharp.fixed
    assert same_function(model, sharp.model, inputs, 1e-8)


def above(matrix, bound):
    """How many eigenvalues exceed a bound, in rational arithmetic: the signs of its pivots."""
    rows = [[Fraction(x) for x in row] for row in ((matrix + matrix.T) / 2).tolist()]
    for i, row in enumerate(rows):
        row[i] -= Fraction(bound)
    positive = 0
    while rows:
        pivot, *rows = rows
        positive += pivot[0] > 0
        rows = [
            [a - row[0] / pivot[0] * b for a, b in zip(row[1:], pivot[1:])]
            for row in rows
        ]
    return positive


@pytest.mark.parametrize("name", ["mlp", "gated product", "unbatched mlp"])
def test_the_count_of_theorem_5_in_exact_arithmetic(name):
    _, _, symmetry, objective = architecture(name)
    assert above(torch.diag(torch.tensor([3.0, 1.0, -2.0, 2.5])), 2.0) == 2
    sharp = rp.exceed_eigenvalues(objective, symmetry, 1e12)
    assert above(hessian(sharp.model, objective), 1e12) >= sharp.count
    assert sharp.count >= sharp.positive - sharp.fixed


@pytest.mark.parametrize(
    "name", ["normalised mlp", "resnet, normalised", "weight normalisation"]
)
def test_theorem_5_with_normalisation_raises_them_too(name):
    model, inputs, symmetry, objective = architecture(name)
    sharp = rp.exceed_eigenvalues(objective, symmetry, 1e3, tolerance=1e-4)
    values = torch.linalg.eigvalsh(hessian(sharp.model, objective))
    assert 0 < sharp.count <= int((values > 1e3).sum())
    # Filters before a normalisation shrink at no one's cost: only scales and the head remain.
    filters = [e for e in symmetry.group.layout.entries if len(e.shape) == 4]
    assert all(e.name in sharp.tensors for e in filters)


def test_theorem_5_takes_the_papers_direction_in_a_chain():
    _, _, group, objective = chain(3, 3, 3, 3, 2, bias=False)
    sharp = rp.exceed_eigenvalues(objective, group, 1e4)
    exponents = group.layout.unflatten(group.exponents(sharp.t))
    beta = -exponents["0.weight"][
        0, 0
    ]  # β^−1 on all weights but the smallest, β^(K−1) there
    for number, power in zip((0, 2, 4, 6), (-1, -1, -1, 3)):
        found = exponents[f"{number}.weight"]
        torch.testing.assert_close(found, torch.full_like(found, power * beta))


def test_theorem_5_needs_a_matrix():
    layout = qn.ParameterLayout({"0.weight": (120, 100)})
    model = nn.Sequential(nn.Linear(100, 120, bias=False)).double()
    group = qn.ScalingGroup.from_units(
        layout, [qn.Unit("a", 1, (qn.Scale("0.weight", None),))]
    )
    with pytest.raises(ValueError, match="12000 coordinates are more than 10000"):
        rp.exceed_eigenvalues(problem(model, torch.ones(2, 100).double()), group, 1.0)


# -- section 4.3 ---


@pytest.mark.parametrize("name", [n for n in SOME if n != "split"] + ["split"])
def test_a_small_ball_reaches_a_far_worse_model(name):
    model, inputs, symmetry, objective = architecture(name, noise=0.01)
    sharp = rp.exceed_sharpness(objective, symmetry, 1e-4)
    gap = sharp.neighbour - sharp.point.w
    assert gap.norm() <= 1e-4
    if len(sharp.tensors) == 1:  # no further than needed
        assert gap.norm().item() == pytest.approx(1e-4, rel=1e-5)
    removed = set(symmetry.group.layout.count(gap != 0))
    assert removed == set(sharp.tensors) and not sharp.neighbour[gap != 0].any()
    other = copy.deepcopy(sharp.model)
    symmetry.group.layout.assign(other, sharp.neighbour)
    ((inputs, targets),) = objective.data
    with torch.no_grad():
        reached = objective.loss(copy.deepcopy(other)(inputs), targets).item()
        start = objective.loss(copy.deepcopy(model)(inputs), targets).item()
    assert reached == pytest.approx(sharp.neighbour_loss) and reached > start
    assert sharp.sharpness == pytest.approx((reached - start) / (1 + start), rel=1e-6)
    assert same_function(model, sharp.model, inputs, 1e-8)


def test_the_sharp_equivalent_is_at_least_as_bad_as_the_best_constant():
    model, inputs, group, objective = chain(3, 5, 2, bias=False)
    sharp = rp.exceed_sharpness(objective, group, 0.1)
    ((_, targets),) = objective.data
    constant = targets.var(0, correction=0).mean().item()
    assert sharp.neighbour_loss >= constant
    # The paper's choice: the norm of a weight is ε.
    (name,) = sharp.tensors
    weight = dict(sharp.model.named_parameters())[name]
    assert weight.norm().item() == pytest.approx(0.1, rel=1e-5)
    large = rp.exceed_sharpness(objective, group, 1e3)
    assert not large.t.any()  # already within the ball


# -- Theorem 2 ---


def two_layers(n1, n2):
    """A point and the group of T_α, with n1 and n2 weights."""
    layout = qn.ParameterLayout({"first": (n1,), "second": (n2,)})
    unit = qn.Unit("layer", 1, (qn.Scale("first", None), qn.Scale("second", None, -1)))
    generator = torch.Generator().manual_seed(n1 * 10 + n2)
    w = torch.randn(n1 + n2, generator=generator, dtype=torch.float64)
    return w, qn.ScalingGroup.from_units(layout, [unit])


@pytest.mark.parametrize("n1, n2", [(6, 2), (2, 6), (4, 4)])
@pytest.mark.parametrize("radius", [0.05, 100.0])
def test_the_boxes_are_those_of_theorem_2(n1, n2, radius):
    w, group = two_layers(n1, n2)
    boxes = rp.disjoint_boxes(w, group, radius)
    grows = w[:n1] if n1 >= n2 else w[n1:]
    largest = grows.abs().max().item()
    inner = min(radius, largest / 2)
    alpha = 2 * (largest + inner) / (largest - inner)
    assert boxes.radius == inner and boxes.alpha == pytest.approx(alpha)
    assert boxes.tensor == ("first" if n1 >= n2 else "second")
    assert boxes.log_growth == pytest.approx(abs(n1 - n2) * log(alpha))
    for k in range(4):
        factor = alpha**k if n1 >= n2 else alpha**-k
        scale = torch.cat([torch.full((n1,), factor), torch.full((n2,), 1 / factor)])
        box = boxes.box(k)
        torch.testing.assert_close(box.centre, w * scale)
        torch.testing.assert_close(box.half_widths, inner * scale.double())
        volume = prod((2 * box.half_widths).tolist())
        assert box.log_volume == pytest.approx(log(volume))
    total = sum(exp(boxes.box(k).log_volume) for k in range(5))
    assert boxes.log_volume(5) == pytest.approx(log(total))


@LAW
@given(
    n1=st.integers(1, 4), n2=st.integers(1, 4), radius=st.floats(1e-3, 10.0),
    j=st.integers(0, 6), k=st.integers(0, 6),
)  # fmt: skip
def test_disjointness_agrees_with_the_intervals(n1, n2, radius, j, k):
    w, group = two_layers(n1, n2)
    boxes = rp.disjoint_boxes(w, group, radius)
    a, b = boxes.box(j), boxes.box(k)
    apart = ((a.centre - b.centre).abs() > a.half_widths + b.half_widths).any()
    assert boxes.are_disjoint(j, k) == bool(apart) == (j != k)
    draws = a.sample(50, torch.Generator().manual_seed(j))
    assert a.contains(draws).all() and not (j != k and b.contains(draws).any())


def test_without_the_right_factor_boxes_meet():
    w, group = two_layers(6, 2)
    boxes = rp.disjoint_boxes(w, group, 0.05)
    largest = w[:6].abs().max().item()
    for spare, apart in ((1 + 1e-9, True), (1 - 1e-9, False)):
        factor = (largest + boxes.radius) / (largest - boxes.radius) * spare
        # On the second layer the intervals may be apart sooner, so take it away.
        single, alone = two_layers(6, 2)[0], two_layers(6, 2)[1]
        single[6:] = 0.0
        closer = rp.DisjointBoxes(
            alone,
            single,
            boxes.radius,
            torch.tensor([log(factor)], dtype=torch.float64),
            factor,
            "",
            0.0,
        )
        assert closer.are_disjoint(0, 1) is apart and not closer.are_disjoint(2, 2)


def test_volumes_add_up_without_limit_where_boxes_overflow():
    for sizes in ((6, 2), (4, 4)):
        w, group = two_layers(*sizes)
        boxes = rp.disjoint_boxes(w, group, 0.1)
        volumes = [boxes.log_volume(10**k) for k in range(12)]
        gaps = [b - a for a, b in zip(volumes, volumes[1:])]
        assert min(gaps) > log(10) - 1e-9
        assert boxes.are_disjoint(0, 10**12) and boxes.are_disjoint(10**12, 10**12 + 1)
        with pytest.raises(ValueError, match="box 1000000 leaves the range"):
            boxes.box(10**6)


@pytest.mark.parametrize(
    "name", ["mlp", "lenet", "normalised mlp", "resnet", "residual", "split"]
)
def test_the_loss_stays_within_epsilon_on_all_boxes(name):
    model, inputs, symmetry, objective = architecture(name)
    group = symmetry.group
    w = group.layout.flatten(model)
    boxes = rp.disjoint_boxes(w, symmetry, 1e-3)
    # Along the gradient of the volume; running statistics have none.
    coarse = symmetry.layer_scales if symmetry.layer_scales.dimension else group
    exponents = coarse.exponents(torch.eye(coarse.dimension).double())
    steepest = exponents[:, : group.layout.parameter_size].sum(1) @ exponents
    along = group.exponents(boxes.t)
    torch.testing.assert_close(
        along / along.abs().max(), steepest / steepest.abs().max(), rtol=0, atol=1e-9
    )
    first = boxes.box(0).sample(20, torch.Generator().manual_seed(0))
    losses = torch.stack([objective(x).detach() for x in first])
    epsilon = (losses - objective(w).detach()).abs().max()
    assert epsilon < 0.1
    for k in (1, 2, 3):
        box = boxes.box(k)
        assert boxes.are_disjoint(0, k) and box.log_volume >= boxes.box(0).log_volume
        images = group.act(first, k * boxes.t)
        slack = 1e-9 * box.half_widths
        grown = rp.Box(box.centre, box.half_widths + slack, box.log_volume)
        assert grown.contains(images).all()
        moved = torch.stack([objective(x).detach() for x in images])
        torch.testing.assert_close(moved, losses, rtol=1e-7, atol=1e-9)
        # The volume by another route: the determinant of the map from the first box.
        jacobian = torch.autograd.functional.jacobian(
            lambda x: group.act(x, k * boxes.t), w
        )
        count = group.layout.parameter_size
        determinant = torch.linalg.slogdet(jacobian[:count, :count]).logabsdet.item()
        assert box.log_volume - boxes.box(0).log_volume == pytest.approx(determinant)


def test_boxes_along_a_given_direction():
    model, inputs, group, _ = chain(3, 4, 5, 2)
    w = group.layout.flatten(model)
    direction = rp.layer_scales(group, {"0.weight": 1.0, "2.weight": 3.0})
    boxes = rp.disjoint_boxes(w, group, 1e-2, direction=direction)
    counts = {"2.weight": 20, "2.bias": 5, "4.weight": -10}
    growth = sum(counts.values()) * log(boxes.alpha)
    assert boxes.log_growth == pytest.approx(growth)
    with pytest.raises(ValueError, match="volumes fall"):
        rp.disjoint_boxes(w, group, 1e-2, direction=-direction)
    with pytest.raises(ValueError, match="no nonzero parameter grows"):
        rp.disjoint_boxes(torch.zeros_like(w), group, 1e-2)
    with pytest.raises(ValueError, match="one point and a positive, finite radius"):
        rp.disjoint_boxes(w, group, 0.0)
    rigid = qn.discover(mlp(3, 4, 2, activation=nn.Tanh), torch.zeros(2, 3).double())
    with pytest.raises(ValueError, match="disjoint_boxes: the group has no generators"):
        rp.disjoint_boxes(torch.ones(rigid.group.layout.size), rigid, 1.0)


# -- section 5.1: bijections ---


@LAW
@given(
    a=st.floats(-0.49, 3.0), b=st.one_of(st.just(0.0), st.floats(1e-12, 1e6)),
    x=st.lists(st.one_of(st.just(0.0), st.floats(-20, 8)), min_size=1, max_size=5),
)  # fmt: skip
def test_the_power_transformation_is_inverted_to_rounding(a, b, x):
    x = torch.tensor(
        [(-1) ** i * 10**u if u else 0.0 for i, u in enumerate(x)]
    ).double()
    bend = rp.PowerTransformation(torch.tensor(0.0).double(), a, b)
    eta = bend.forward(x)
    torch.testing.assert_close(
        eta, ((x * x + b) ** a * x).nan_to_num(0.0), rtol=1e-12, atol=0
    )
    # At 2a = −1 + small, x is a high power of eta, and rounding of eta counts as often.
    back = bend.inverse(eta)
    torch.testing.assert_close(back, x, rtol=4e-15 / min(1, 1 + 2 * a), atol=1e-300)
    torch.testing.assert_close(
        bend.forward(back), eta, rtol=4e-15 * (4 + 2 * a), atol=1e-300
    )


@pytest.mark.parametrize(
    "a, b", [(-0.4, 0.5), (0.0, 1.0), (2.0, 0.1), (1.0, 0.0), (-0.3, 0.0)]
)
def test_the_derivative_of_the_power_transformation_is_that_of_autograd(a, b):
    centre = torch.tensor([0.5, -1.0, 2.0]).double()
    bend = rp.PowerTransformation(centre, a, b)
    theta = (
        torch.tensor([[1.0, -1.7, 2.2], [-8.0, -0.9, 300.0]]).double().requires_grad_()
    )
    (slope,) = torch.autograd.grad(bend.forward(theta).sum(), theta)
    torch.testing.assert_close(bend.derivative(theta.detach()), slope)
    assert (slope > 0).all()
    at_centre = bend.derivative(centre)
    wanted = b**a if b else {1.0: 0.0, -0.3: float("inf")}[a]
    assert (at_centre == pytest.approx(wanted)) if b else (at_centre == wanted).all()


def test_the_power_transformation_at_the_ends_of_the_range():
    bend = rp.PowerTransformation(torch.tensor(0.0).double(), -0.4, 1.0)
    far = torch.tensor([1e200, -1e-200, 0.0], dtype=torch.float64)
    torch.testing.assert_close(
        bend.forward(far), torch.tensor([1e40, -1e-200, 0.0], dtype=torch.float64)
    )
    torch.testing.assert_close(bend.inverse(bend.forward(far)), far, rtol=1e-13, atol=0)
    assert torch.isfinite(bend.derivative(far)).all()
    for a, b in ((-0.5, 1.0), (1.0, -1e-9), (float("nan"), 1.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="needs a > -1/2 and b >= 0"):
            rp.PowerTransformation(torch.zeros(2), a, b)


def test_figure_5_makes_either_of_two_minima_the_sharper_one():
    def loss(theta):
        return (theta**2 - 1) ** 2  # minima at ±1, both of curvature 8

    for b, wanted in ((0.01, 8 / 0.01**2), (10.0, 8 / 10.0**2)):
        bend = rp.PowerTransformation(torch.tensor(1.0).double(), 1.0, b)
        step = 1e-3 * b
        grid = torch.tensor([-step, 0.0, step]).double()
        values = loss(bend.inverse(grid))
        curvature = (values[0] - 2 * values[1] + values[2]) / step**2
        assert curvature.item() == pytest.approx(wanted, rel=1e-2)


RADIAL = st.tuples(st.floats(0.1, 5.0), st.floats(0.05, 0.95), st.floats(0.05, 0.95))


def radial(sizes, dimension=3):
    """A radial transformation around a seeded centre."""
    delta, rho, r_hat = sizes
    generator = torch.Generator().manual_seed(dimension)
    centre = torch.randn(dimension, generator=generator, dtype=torch.float64)
    return rp.RadialTransformation(centre, delta, rho * delta, r_hat * delta)


@LAW
@given(sizes=RADIAL, seed=st.integers(0, 999), dimension=st.integers(1, 5))
def test_the_radial_transformation(sizes, seed, dimension):
    g = radial(sizes, dimension)
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(7, dimension, generator=generator, dtype=torch.float64)
    length = 1.5 * g.delta * torch.rand(7, 1, generator=generator, dtype=torch.float64)
    theta = g.centre + step / step.norm(dim=1, keepdim=True) * length
    theta[0] = g.centre
    eta = g.forward(theta)
    torch.testing.assert_close(g.inverse(eta), theta, rtol=1e-12, atol=1e-12)
    r = (theta - g.centre).norm(dim=1)
    # ψ by interpolation between its corners.
    psi = torch.where(
        r <= g.r_hat, g.rho * r / g.r_hat,
        g.rho + (g.delta - g.rho) * (r - g.r_hat) / (g.delta - g.r_hat),
    )  # fmt: skip
    psi = torch.where(r > g.delta, r, psi)
    torch.testing.assert_close(
        (eta - g.centre).norm(dim=1), psi, rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(g.psi(r), psi, rtol=1e-10, atol=1e-12)
    away = ((r - g.r_hat).abs() > 1e-6) & ((r - g.delta).abs() > 1e-6)
    v = torch.randn(7, dimension, generator=generator, dtype=torch.float64)
    dense = g.jacobian(theta)
    for i in torch.nonzero(away).flatten().tolist():
        exact = torch.autograd.functional.jacobian(g.forward, theta[i])
        torch.testing.assert_close(dense[i], exact, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(
            g.jvp(theta, v)[i], exact @ v[i], rtol=1e-9, atol=1e-9
        )
        solved = torch.linalg.solve(exact, v[i])
        torch.testing.assert_close(g.solve(theta, v)[i], solved, rtol=1e-8, atol=1e-8)


def test_the_jacobian_equals_the_three_terms_printed():
    g = radial((1.0, 0.3, 0.6))
    direction = torch.tensor([1.0, 2.0, -2.0]).double() / 3
    for r in (0.2, 0.6, 0.8, 1.0, 1.7):
        x, middle = r * direction, 0.6 < r <= 1.0
        slope = (
            1.0
            if r > 1.0
            else (g.rho - 1) / (g.r_hat - 1) if middle else g.rho / g.r_hat
        )
        factor = middle * 1.0 * (g.r_hat - g.rho) / (g.r_hat - 1.0)
        eye = torch.eye(3).double()
        printed = slope * eye - factor / r**3 * torch.outer(x, x) + factor / r * eye
        torch.testing.assert_close(g.jacobian(g.centre + x), printed)


def test_radial_transformations_that_do_not_exist():
    for rho, r_hat in ((0.0, 0.5), (1.0, 0.5), (0.5, 1.0), (0.5, -0.1)):
        with pytest.raises(ValueError, match="strictly between 0 and delta"):
            rp.RadialTransformation(torch.zeros(2), 1.0, rho, r_hat)
    with pytest.raises(ValueError, match="centre must be a vector"):
        rp.RadialTransformation(torch.tensor(0.0), 1.0, 0.5, 0.5)
    with pytest.raises(ValueError, match="needs a last dimension of 3"):
        radial((1.0, 0.5, 0.5)).forward(torch.zeros(2))


@pytest.mark.parametrize("kind", ["power", "radial"])
def test_the_hessian_in_the_new_parameter_at_a_minimum(kind):
    model, _, group, objective = chain(2, 3, 1)
    theta = group.layout.flatten(model)
    if kind == "power":
        g = rp.PowerTransformation(theta, a=0.7, b=0.2)
    else:
        centre = theta + 0.6 / sqrt(
            len(theta)
        )  # between r̂ and δ, where directions differ
        g = rp.RadialTransformation(centre, delta=1.0, rho=0.2, r_hat=0.5)
    old = objective.at(theta).hessian
    found = rp.transformed_hessian(g, old, theta)
    eta = g.forward(theta)
    # The loss in the new parameter is zero here, so that its differences are accurate.
    for v in torch.randn(
        5, len(theta), generator=torch.Generator().manual_seed(0)
    ).double():
        with torch.no_grad():
            ends = [objective(g.inverse(eta + s * v)) for s in (1e-5, -1e-5)]
        assert (v @ (found @ v)).item() == pytest.approx(
            sum(ends).item() / 1e-10, rel=1e-3
        )
    block = torch.eye(len(theta)).double()[:, :2]
    torch.testing.assert_close(found @ block, found.to_dense()[:, :2])
    with pytest.raises(ValueError, match="theta has shape"):
        rp.transformed_hessian(g, old, theta[:2])


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    model, inputs, symmetry, _ = architecture("lenet")
    model, inputs = model.cuda(), inputs.cuda()
    with torch.no_grad():
        targets = model(inputs) + 0.1
    objective = qn.Objective(model, nn.MSELoss(), (inputs, targets))
    assert abs(rp.exceed_spectral_norm(objective, symmetry, 1e9).after.value) >= 1e9
    sharp = rp.exceed_eigenvalues(objective, symmetry, 1e9)
    assert sharp.count >= sharp.positive - sharp.fixed and sharp.point.w.is_cuda
    assert rp.exceed_sharpness(objective, symmetry, 1e-3).neighbour.is_cuda
    boxes = rp.disjoint_boxes(symmetry.group.layout.flatten(model), symmetry, 0.1)
    assert boxes.box(2).centre.is_cuda and boxes.are_disjoint(0, 2)
