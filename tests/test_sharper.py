"""Equivalent models that are sharper: dinh2017 Theorems 4 and 5 and section 4.3."""

import copy
from fractions import Fraction
from math import prod

import pytest
import torch
from architectures import ARCHITECTURES
from equivalents import seeded  # noqa: F401, an autouse fixture
from equivalents import SOME, architecture, chain, hessian, mlp, problem, same_function
from torch import nn

import quotientnet as qn
from quotientnet import reparametrisation as rp


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
