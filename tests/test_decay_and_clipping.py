"""Weight decay and clipping on quotients, and what Riemannian optimizers refuse."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from cases import NETWORKS
from scipy.optimize import minimize
from torch import nn

import quotientnet as qn
from quotientnet.training import (
    RiemannianAdam,
    RiemannianSGD,
    bind,
    clip_grad_norm_,
    decay,
)

MANIFOLDS = {
    "layer-scale": qn.LayerScaleQuotient,
    "node-wise": qn.NodeWiseQuotient,
    "balanced": qn.BalancedQuotient,
}
BOTH = pytest.mark.parametrize("method", [RiemannianSGD, RiemannianAdam])


def prepared(name="mlp", kind="node-wise"):
    """A network, its manifold and data."""
    if name in NETWORKS:
        model, (x, y) = NETWORKS[name].build(), NETWORKS[name].data()
    else:
        model, x = ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()
        y = torch.zeros(len(x), dtype=torch.int64)
    return model, MANIFOLDS[kind](qn.discover(model, x)), (x, y)


def backward(model, data, factor=1.0):
    model.zero_grad()
    loss = factor * nn.functional.cross_entropy(model(data[0]), data[1])
    loss.backward()
    return loss


# -- decay ---


@pytest.mark.parametrize("kind", MANIFOLDS)
@pytest.mark.parametrize("name", ["mlp", "batch-norm", "resnet, normalised"])
def test_the_gradient_of_decay_is_its_difference_quotient(name, kind):
    model, manifold, _ = prepared(name, kind)
    w = manifold.layout.flatten(model)
    gradient = decay(w, manifold).gradient
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        u = torch.randn(w.shape, generator=generator, dtype=w.dtype)
        u[manifold.layout.parameter_size :] = 0
        u, h = u / manifold.norm(w, u), 1e-5
        values = [decay(w + s * h * u, manifold).value for s in (1, -1)]
        slope = float(values[0] - values[1]) / (2 * h)
        assert float(gradient @ u) == pytest.approx(slope, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("kind", MANIFOLDS)
@pytest.mark.parametrize("name", ["mlp", "residual", "batch-norm"])
def test_decay_is_a_function_on_the_quotient(name, kind):
    model, manifold, _ = prepared(name, kind)
    w, group = manifold.layout.flatten(model), manifold.group
    t = group.random(generator=torch.Generator().manual_seed(3))
    here, there = decay(w, manifold), decay(group.act(w, t), manifold)
    assert float(there.value) == pytest.approx(float(here.value), rel=1e-12)
    pulled = group.act(there.gradient, t)
    torch.testing.assert_close(pulled, here.gradient, rtol=1e-9, atol=1e-11)
    assert group.adjoint(w * here.gradient).abs().max() <= 1e-12


@pytest.mark.parametrize("kind", MANIFOLDS)
@pytest.mark.parametrize("name", ["mlp", "residual", "deep tied autoencoder"])
def test_decay_without_levels_is_the_least_norm_of_the_orbit(name, kind):
    model, manifold, _ = prepared(name, kind)
    w, group = manifold.layout.flatten(model), manifold.group
    a, squares = group.to_dense(), w.square().numpy()

    def half(t):
        terms = squares * np.exp(2 * a @ t) / 2
        return terms.sum(), 2 * terms @ a

    found = minimize(half, np.zeros(group.dimension), jac=True, tol=1e-14)
    assert float(decay(w, manifold).value) == pytest.approx(found.fun, rel=1e-10)


def test_filters_with_a_scale_of_their_own_do_not_decay():
    model, manifold, _ = prepared("batch-norm", "balanced")
    w = manifold.layout.flatten(model)
    parts = manifold.layout.unflatten(decay(w, manifold).gradient)
    assert parts["3.weight"].abs().max() < 1e-12
    # The first one shares its scale with a bias: they turn, and keep their common norm.
    assert parts["7.weight"].norm() > 0.1
    canonical = manifold.layout.unflatten(manifold.canonical(w))
    norms = canonical["3.weight"].flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-10, atol=0)


def test_decay_passes_over_frozen_zeros_and_generators_that_move_nothing():
    model, _, (x, _) = prepared("mlp")
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1], model[2].weight[:, 1] = 0, 0, 0
        model[0].weight[2, 0] = 0
    symmetry = qn.discover(model, x)
    w = symmetry.group.layout.flatten(model)
    manifold = qn.NodeWiseQuotient(symmetry, frozen_zeros=w)
    reference = qn.BalancedQuotient(symmetry, exclude=w)
    assert reference.group.dimension == symmetry.group.dimension - 1
    found, expected = decay(w, manifold), decay(w, reference)
    assert torch.equal(found.value, expected.value)
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-12, atol=0)
    assert not found.gradient[w == 0].any()


def test_decay_of_units_that_run_away_is_refused_by_name():
    model, _, (x, y) = prepared("mlp")
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0
    symmetry = qn.discover(model, x)
    w = symmetry.group.layout.flatten(model)
    manifold = qn.NodeWiseQuotient(symmetry, frozen_zeros=w)
    with pytest.raises(
        qn.NotOnManifoldError, match="decay: .*rows of 0.weight.*exclude=w"
    ):
        decay(w, manifold)
    without = qn.BalancedQuotient(symmetry, exclude=w).group
    manifold = qn.NodeWiseQuotient(without, frozen_zeros=w)
    assert decay(w, manifold).value > 0
    bound = bind(model, manifold)
    optimizer = RiemannianSGD([bound], lr=1e-3, weight_decay=0.1)
    backward(model, (x, y))
    optimizer.step()
    assert not bound.detach()[w == 0].any() and (bound.detach() != w).any()


def test_decay_needs_a_quotient():
    oblique = qn.ProductOblique(NETWORKS["mlp"].layout(), [], {})
    with pytest.raises(TypeError, match="decay: manifold must be a quotient"):
        decay(torch.ones(oblique.layout.size), oblique)


@BOTH
@pytest.mark.parametrize("kind", MANIFOLDS)
def test_decay_alone_shrinks_the_canonical_network(method, kind):
    model, manifold, data = prepared("mlp", kind)
    w = bind(model, manifold)
    lr, rate = 1e-3, 0.1
    start = w.detach().clone()
    before = decay(start, manifold)
    length = manifold.norm(start, manifold.egrad2rgrad(start, before.gradient))
    optimizer = method([w], lr=lr, weight_decay=rate)
    backward(model, data, factor=0.0)
    optimizer.step()
    change = float(decay(w.detach(), manifold).value - before.value)
    assert change == pytest.approx(-lr * rate * float(length.square()), rel=2e-3)


# -- clipping ---


@pytest.mark.parametrize("kind", MANIFOLDS)
def test_clipping_bounds_the_length_in_the_metric(kind):
    model, manifold, data = prepared("mlp", kind)
    w = bind(model, manifold)
    free = nn.Parameter(torch.ones(3, dtype=torch.float64))
    unused = nn.Parameter(torch.ones(2))

    def lengths():
        g = manifold.egrad2rgrad(w.detach(), w.grad)
        # In frame coordinates the metric is the identity.
        inside = (manifold.frame(w.detach()) * g).square().sum()
        return float((inside + free.grad.square().sum()).sqrt())

    backward(model, data)
    free.grad = torch.full_like(free, 2.0)
    before, gradient = lengths(), w.grad.clone()
    found = clip_grad_norm_([w, free, unused], float("inf"))
    assert float(found) == pytest.approx(before, rel=1e-12)
    assert torch.equal(w.grad, gradient)
    assert float(clip_grad_norm_([w, free], before / 4)) == pytest.approx(before)
    assert lengths() == pytest.approx(before / 4, rel=1e-12)
    torch.testing.assert_close(w.grad, gradient / 4, rtol=1e-12, atol=0)
    entry = manifold.layout.entries[0]
    own = dict(model.named_parameters())[entry.name].grad
    assert torch.equal(own.reshape(-1), w.grad[entry.slice])


@pytest.mark.parametrize("kind", MANIFOLDS)
def test_the_length_of_a_gradient_is_an_invariant(kind):
    model, manifold, data = prepared("batch-norm", kind)
    t = manifold.group.random(generator=torch.Generator().manual_seed(3))
    found = []
    for network in (model, qn.transform(model, manifold.group, t)):
        w = bind(network, manifold)
        backward(network, data)
        found.append(float(clip_grad_norm_(w, 1.0)))
    assert found[1] == pytest.approx(found[0], rel=1e-10)


def test_clipping_refuses_what_has_no_length():
    model, manifold, data = prepared()
    w = bind(model, manifold)
    assert float(clip_grad_norm_(w, 1.0)) == 0.0
    backward(model, data)
    for bound in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="max_norm must be positive"):
            clip_grad_norm_(w, bound)
    model[0].weight.grad[0, 0] = float("nan")
    kept = w.grad.clone()
    with pytest.raises(FloatingPointError, match="length is nan"):
        clip_grad_norm_([w], 1.0)
    assert torch.equal(w.grad.nan_to_num(7.0), kept.nan_to_num(7.0))
    assert clip_grad_norm_([w], 1.0, error_if_nonfinite=False).isnan()
    assert w.grad.isnan().all()


# -- refusals, after which nothing has changed ---


@BOTH
def test_a_gradient_of_nan_is_refused_with_its_name_and_step(method):
    model, manifold, data = prepared("mlp", "balanced")
    free = nn.Parameter(torch.ones(2, dtype=torch.float64))
    w = bind(model, manifold)
    optimizer = method([{"params": [("free", free)]}, {"params": [("w", w)]}], lr=0.01)
    free.grad = torch.ones_like(free)
    backward(model, data)
    optimizer.step()
    before = w.detach().clone(), free.detach().clone()
    state = {k: v for k, v in optimizer.state[free].items()}
    model[2].weight.grad[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"'2.weight' \(1\).*at step 2"):
        optimizer.step()
    free.grad[0] = float("nan")
    with pytest.raises(FloatingPointError, match="'free'"):
        optimizer.step()
    assert torch.equal(w.detach(), before[0]) and torch.equal(free, before[1])
    assert all(optimizer.state[free][k] is v for k, v in state.items())
    backward(model, data)
    free.grad = None
    optimizer.step()
    assert torch.equal(free, before[1]) and not torch.equal(w.detach(), before[0])


@BOTH
def test_closures_return_a_finite_loss(method):
    model, manifold, data = prepared()
    w = bind(model, manifold)
    optimizer, before = method([w], lr=0.01), w.detach().clone()
    with pytest.raises(TypeError, match="returned no loss"):
        optimizer.step(lambda: None)
    with pytest.raises(FloatingPointError, match="loss is nan"):
        optimizer.step(lambda: torch.tensor(float("nan")))
    assert torch.equal(w.detach(), before) and not optimizer.state
    loss = optimizer.step(lambda: backward(model, data))
    assert loss.requires_grad and not torch.equal(w.detach(), before)


@BOTH
def test_a_loss_that_is_not_invariant_is_refused_at_the_first_step(method):
    model, manifold, data = prepared()
    w = bind(model, manifold)
    before = w.detach().clone()

    def penalised():
        model.zero_grad()
        penalty = sum(p.square().sum() for p in model.parameters())
        loss = nn.functional.cross_entropy(model(data[0]), data[1]) + penalty
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="not invariant under the group"):
        method([w], lr=0.01).step(penalised)
    assert torch.equal(w.detach(), before)
    # A network of the same shapes that lacks the symmetry.
    other = nn.Sequential(
        nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)
    ).double()
    w = bind(other, manifold)
    backward(other, data)
    with pytest.raises(ValueError, match="not invariant under the group"):
        method([w], lr=0.01).step()


@BOTH
def test_a_step_across_zero_is_refused(method):
    model, manifold, data = prepared()
    w = bind(model, manifold)
    before = w.detach().clone()
    backward(model, data, factor=1e3)
    optimizer = method([w], lr=10.0, along="retraction")
    with pytest.raises(qn.NotOnManifoldError, match="through zero.*lower the learning"):
        optimizer.step()
    assert torch.equal(w.detach(), before) and not optimizer.state
    optimizer.param_groups[0]["lr"] = 1e-6
    optimizer.step()
    assert not torch.equal(w.detach(), before)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"lr": float("nan")}, "lr must be"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"nesterov": True}, "nesterov=True needs a momentum"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"along": "geodesics"}, "along must be"),
    ],
)
def test_options_of_descent_out_of_range(options, message):
    _, manifold, _ = prepared()
    w = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=message):
        RiemannianSGD([w], **({"lr": 0.1} | options))
    optimizer = RiemannianSGD([nn.Parameter(torch.ones(3))], lr=0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [w], **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be"),
        ({"betas": (-0.1, 0.9)}, r"betas\[0\] must be"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"eps": -1e-8}, "eps must be"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"moments": "rows"}, "moments must be 'blocks' or 'entries'"),
        ({"moments": "entries"}, "moments='entries' needs a frame.*Euclidean"),
    ],
)
def test_options_of_adam_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        RiemannianAdam([nn.Parameter(torch.ones(3))], lr=0.1, **options)


@pytest.mark.parametrize("method", [RiemannianSGD, RiemannianAdam])
def test_a_sparse_gradient_is_refused(method):
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = method(table.parameters(), lr=0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="is sparse; make it dense"):
        optimizer.step()


def test_a_momentum_of_0_for_a_while_keeps_the_buffer_as_torch_does():
    found = []
    for method in (RiemannianSGD, torch.optim.SGD):
        w = nn.Parameter(torch.ones(3).double())
        optimizer = method([w], lr=0.1, momentum=0.9)
        for momentum in (0.9, 0.9, 0.0, 0.0, 0.9):
            optimizer.param_groups[0]["momentum"] = momentum
            w.grad = w.detach() ** 2
            optimizer.step()
        found.append(w.detach())
    torch.testing.assert_close(*found, rtol=1e-14, atol=0)


def test_without_symmetries_adam_by_entries_is_adam(monkeypatch):
    monkeypatch.setattr(qn.training.riemannian_adam, "_LEAST", 0.0)
    found = []
    for bound in (True, False):
        model, (x, y) = NETWORKS["mlp"].build(), NETWORKS["mlp"].data(8)
        symmetry = qn.discover(model, x)
        none = symmetry.group.without([True] * symmetry.group.dimension)
        if bound:
            w = bind(model, qn.BalancedQuotient(none))
            optimizer = RiemannianAdam([w], lr=0.01, amsgrad=True)
        else:
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
