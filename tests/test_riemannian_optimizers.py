"""Riemannian SGD and Adam: one path for each orbit, references by hand and from others."""

import copy
import io
from functools import cache
from math import exp, log, sqrt

import geoopt
import pytest
import torch
from architectures import ARCHITECTURES
from cases import NETWORKS
from equivalents import outputs
from torch import nn

import quotientnet as qn
from quotientnet.testing import check_equivariant_training
from quotientnet.training import RiemannianAdam, RiemannianSGD, bind, clip_grad_norm_

MANIFOLDS = {
    "layer-scale": qn.LayerScaleQuotient,
    "node-wise": qn.NodeWiseQuotient,
    "filters": lambda s: qn.LogPolarQuotient(qn.layer_scale_group(s), "filters"),
    "balanced": qn.BalancedQuotient,
}
TRAINED = [
    "mlp", "conv", "batch-norm", "residual", "resnet, normalised", "deep tied autoencoder",
]  # fmt: skip
OPTIONS = {
    "momentum": lambda w: RiemannianSGD([w], lr=3e-3, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda w: RiemannianSGD([w], lr=3e-3, momentum=0.8, nesterov=True),
    "dampening": lambda w: RiemannianSGD([w], lr=3e-3, momentum=0.8, dampening=0.5),
    "retraction": lambda w: RiemannianSGD(
        [w], lr=1e-4, momentum=0.5, along="retraction"
    ),
    "adam": lambda w: RiemannianAdam([w], lr=0.02, eps=1e-6),
    "adam by entries": lambda w: RiemannianAdam(
        [w], lr=0.002, eps=1e-6, moments="entries"
    ),
    "adam by blocks": lambda w: RiemannianAdam(
        [w], lr=0.02, eps=1e-6, moments="blocks"
    ),
    "amsgrad": lambda w: RiemannianAdam(
        [w], lr=0.02, eps=1e-6, amsgrad=True, weight_decay=0.1
    ),
}


@cache
def task(name, steps=12):
    """A network in train mode, its symmetry, batches and a loss."""
    generator = torch.Generator().manual_seed(1)
    if name in NETWORKS:
        model, (x, y) = NETWORKS[name].build(), NETWORKS[name].data(32)
        rows = [torch.randperm(32, generator=generator)[:16] for _ in range(steps)]
        batches, loss = [(x[r], y[r]) for r in rows], nn.CrossEntropyLoss()
    else:
        model, x = ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()
        clean, loss = outputs(model, x), nn.MSELoss()
        noise = [
            torch.randn(clean.shape, generator=generator).to(clean)
            for _ in range(steps)
        ]
        batches = [(x, clean + 0.3 * each) for each in noise]
    return model, qn.discover(model, x), batches, loss


def check(name, kind, make, **options):
    """The verdict for an optimizer on a manifold of a kind, and the manifold."""
    model, symmetry, batches, loss = task(name)
    manifold = MANIFOLDS[kind](symmetry)  # of its own, so that nothing is remembered

    def bound(module):
        return make(bind(module, manifold))

    return check_equivariant_training(
        bound, model, manifold.group, batches, loss, **options
    )


def gradient(model, batch, loss=nn.CrossEntropyLoss()):
    """Backward through one batch."""
    model.zero_grad()
    value = loss(model(batch[0]), batch[1])
    value.backward()
    return value


# -- the law ---


@pytest.mark.parametrize("kind", MANIFOLDS)
@pytest.mark.parametrize("name", TRAINED)
def test_equivalent_starts_have_equivalent_paths(name, kind):
    # In turn, so that both methods meet every network and every kind of manifold.
    method = "momentum" if (TRAINED.index(name) + list(MANIFOLDS).index(kind)) % 2 else "amsgrad"
    assert check(name, kind, OPTIONS[method]).require().holds


@pytest.mark.parametrize("kind", MANIFOLDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_so_they_have_with_every_option(options, kind):
    verdict = check("mlp", kind, OPTIONS[options], points=2)
    assert verdict.violation <= 1e-10  # of the movement, which is small for some


@pytest.mark.parametrize("kind", ["node-wise", "balanced"])
@pytest.mark.parametrize("method", [RiemannianSGD, RiemannianAdam])
def test_so_they_have_with_clipping_and_a_schedule(method, kind):
    def make(w):
        optimizer = method([w], lr=0.05, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=12)
        lengths = []

        def step(closure):
            closure()
            lengths.append(clip_grad_norm_(w, 0.3))
            optimizer.step()
            schedule.step()

        make.lengths = lengths
        return step

    assert check("batch-norm", kind, make).require().holds
    assert max(make.lengths) > 0.3


@pytest.mark.parametrize("options", ["nesterov", "adam", "amsgrad"])
def test_paths_stay_horizontal(options):
    model, symmetry, batches, _ = task("mlp")
    group = symmetry.group
    for kind, place in {
        # Rates of horizontal vectors are orthogonal to the exponents; t* is kept by the retraction.
        "node-wise": lambda m, w: group.adjoint(w.abs().log()),
        "balanced": lambda m, w: m._coordinates(w),
    }.items():
        w = bind(copy.deepcopy(model), MANIFOLDS[kind](symmetry))
        optimizer, before = OPTIONS[options](w), place(w.manifold, w.detach())
        start = w.detach().clone()
        for batch in batches:
            gradient(w._module, batch)
            optimizer.step()
        after = place(w.manifold, w.detach())
        torch.testing.assert_close(after, before, rtol=0, atol=1e-10)
        assert (w.detach() - start).norm() > 1e-3 * start.norm()


def test_adam_does_not_move_what_has_no_gradient():
    # A bias before a normalisation, on a manifold where a projection couples it to its filter.
    model, symmetry, batches, _ = task("batch-norm")
    w = bind(copy.deepcopy(model), qn.BalancedQuotient(symmetry))
    optimizer = RiemannianAdam([w], lr=0.02, eps=1e-12)
    for batch in batches:
        gradient(w._module, batch)
        optimizer.step()
    moments = w.manifold.layout.unflatten(optimizer.state[w]["exp_avg"])
    assert moments["0.bias"].abs().max() < 1e-13 < 1e-4 < moments["0.weight"].norm()


def test_groups_of_parameters_have_options_of_their_own():
    model, symmetry, batches, loss = task("mlp")
    model = nn.Sequential(model, nn.Linear(3, 3).double())
    manifold = qn.NodeWiseQuotient(symmetry.group)

    def make(module):
        w, free = bind(module[0], manifold), list(module[1].parameters())
        groups = [{"params": [w]}, {"params": free, "lr": 0.1, "momentum": 0.5}]
        return RiemannianSGD(groups, lr=3e-3, momentum=0.9)

    whole = qn.discover(model, batches[0][0]).group
    second = torch.zeros(whole.layout.size)
    for entry in whole.layout.entries:
        second[entry.slice] = float(entry.name.startswith("1."))
    inner = whole.without(whole.magnitudes().adjoint(second).numpy() > 0)
    assert inner.dimension == symmetry.group.dimension
    verdict = check_equivariant_training(make, model, inner, batches, loss)
    assert verdict.require().holds


@pytest.mark.parametrize("kind", MANIFOLDS)
def test_ordinary_optimizers_do_not_have_them(kind):
    model, symmetry, batches, loss = task("mlp")
    for make in (
        lambda m: torch.optim.SGD(m.parameters(), lr=1e-3),
        lambda m: torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9),
        lambda m: torch.optim.Adam(m.parameters(), lr=1e-3),
    ):
        group = MANIFOLDS[kind](symmetry).group
        verdict = check_equivariant_training(make, model, group, batches, loss)
        assert not verdict.holds and not verdict.violation < 1e-3
        with pytest.raises(AssertionError, match="equivariant_training"):
            verdict.require()


@pytest.mark.parametrize("kind", MANIFOLDS)
def test_momentum_of_geoopt_starts_with_the_euclidean_gradient(kind):
    def theirs(momentum):
        return lambda w: geoopt.optim.RiemannianSGD([w], lr=1e-4, momentum=momentum)

    assert check("mlp", kind, theirs(0.0)).violation < 1e-10
    assert not check("mlp", kind, theirs(0.9)).violation < 1e-4
    assert check("mlp", kind, OPTIONS["retraction"]).violation < 1e-10


class _Ambient(RiemannianSGD):
    """Ordinary L2 decay."""

    def propose(self, here, state, options):
        object.__setattr__(here, "gradient", here.gradient + 0.1 * here.x)
        return super().propose(here, state, options)


class _Seeded(RiemannianSGD):
    """Momentum that starts with the Euclidean gradient."""

    def propose(self, here, state, options):
        state = state or {"step": 0, "momentum_buffer": here.gradient}
        return super().propose(here, state, options)


class _Left(RiemannianSGD):
    """Momentum that is left where it was, in coordinates of the weights."""

    def propose(self, here, state, options):
        if state:
            state = state | {
                "momentum_buffer": state["momentum_buffer"] / here.x.norm()
            }
        return super().propose(here, state, options)


class _Euclidean(RiemannianAdam):
    """Second moments of the Euclidean gradient."""

    def propose(self, here, state, options):
        y, following = super().propose(here, state, options)
        return y, following | {"exp_avg_sq": here.gradient.square()}


@pytest.mark.parametrize("broken", [_Ambient, _Seeded, _Left, _Euclidean])
def test_broken_optimizers_are_found_out(broken):
    options = {"lr": 0.01} | ({} if broken is _Euclidean else {"momentum": 0.9})
    whole = broken.__base__
    assert check("mlp", "node-wise", lambda w: whole([w], **options)).holds
    violation = check("mlp", "node-wise", lambda w: broken([w], **options)).violation
    assert not violation < 1e-3


# -- references ---


def scalars(kind):
    """``f(a b)`` of two weights: the quotient is a line with ``c = a b > 0``."""
    layout = qn.ParameterLayout({"a": (), "b": ()})
    unit = qn.Unit("unit", 1, (qn.Scale("a", None), qn.Scale("b", None, -1)))
    manifold = kind(qn.ScalingGroup.from_units(layout, [unit]))
    w = torch.tensor([6.0, 0.5], dtype=torch.float64)
    return geoopt.ManifoldParameter(w, manifold=manifold)


def product_after(optimizer, w, steps=25):
    for _ in range(steps):
        optimizer.zero_grad()
        (w.prod() - 2.0).square().backward()
        optimizer.step()
    return float(w.detach().prod())


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_on_the_line_of_products_by_hand(nesterov):
    # Log-polar: rates of a and b are equal, s = log c, metric ds²/2, so the gradient is 2 f' c.
    # Balanced: a = b = r = √c, metric 2 dr², straight lines; decay is λ r².
    w, lr, mu, decay = scalars(qn.NodeWiseQuotient), 0.01, 0.9, 0.1
    options = {"lr": lr, "momentum": mu, "nesterov": nesterov}
    found = product_after(RiemannianSGD([w], **options), w)
    s, m = log(3.0), 0.0
    for _ in range(25):
        g = 2 * (2 * (exp(s) - 2)) * exp(s)
        m = mu * m + g
        s -= lr * (g + mu * m if nesterov else m)
    assert found == pytest.approx(exp(s), rel=1e-12)
    w = scalars(qn.BalancedQuotient)
    found = product_after(RiemannianSGD([w], weight_decay=decay, **options), w)
    r, m = sqrt(3.0), 0.0
    for _ in range(25):
        g = 2 * (r * r - 2) * r + decay * r
        m = mu * m + g
        r -= lr * (g + mu * m if nesterov else m)
    assert found == pytest.approx(r * r, rel=1e-12)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_on_the_line_of_products_by_hand(amsgrad):
    w, lr, (b1, b2) = scalars(qn.NodeWiseQuotient), 0.02, (0.9, 0.99)
    options = {"lr": lr, "betas": (b1, b2), "amsgrad": amsgrad, "weight_decay": 0.3}
    found = product_after(RiemannianAdam([w], **options), w)
    s, m, v, top = log(3.0), 0.0, 0.0, 0.0
    for k in range(1, 26):
        rate = (2 * (exp(s) - 2)) * exp(s)  # of each of a and b; their metric is 1
        m, v = b1 * m + (1 - b1) * rate, b2 * v + (1 - b2) * rate**2
        top = max(v, top) if amsgrad else v
        d = m / (1 - b1**k) / (sqrt(top / (1 - b2**k)) + 1e-8)
        # Decay is ½(a² + b²) = c where these are equal, with the rate c in each.
        s -= 2 * lr * (d + 0.3 * exp(s))
    assert found == pytest.approx(exp(s), rel=1e-12)


@pytest.mark.parametrize(
    "ours, theirs, options",
    [
        (RiemannianSGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1}),
        (RiemannianSGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (RiemannianSGD, torch.optim.SGD, {"weight_decay": 0.1}),
        (RiemannianAdam, torch.optim.AdamW, {"weight_decay": 0.1}),
        (RiemannianAdam, torch.optim.AdamW, {"weight_decay": 0.0, "amsgrad": True}),
    ],
)
def test_on_plain_parameters_they_are_those_of_torch(ours, theirs, options):
    model, _, batches, loss = task("mlp")
    ends = []
    for method in (ours, theirs):
        twin = copy.deepcopy(model)
        optimizer = method(twin.parameters(), lr=0.03, **options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
        for batch in batches:
            gradient(twin, batch)
            optimizer.step()
            schedule.step()
        ends.append(torch.cat([p.detach().reshape(-1) for p in twin.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}])
def test_on_other_manifolds_adam_is_that_of_geoopt(options):
    target = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
    ends = []
    for method in (RiemannianAdam, geoopt.optim.RiemannianAdam):
        torch.manual_seed(0)
        start = geoopt.EuclideanStiefel().random(4, 3, dtype=torch.float64)
        x = geoopt.ManifoldParameter(start)
        column = start.as_subclass(torch.Tensor)[:, 0].clone()
        ball = geoopt.ManifoldParameter(column, geoopt.Sphere())
        optimizer = method([x, ball], lr=0.05, **options)
        for _ in range(15):
            optimizer.zero_grad()
            (
                (x - target).square().sum() + (ball - target[:, 2]).pow(4).sum()
            ).backward()
            optimizer.step()
        ends.append(torch.cat([x.detach().reshape(-1), ball.detach()]))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


def test_momentum_is_that_of_geoopt_where_that_starts_at_zero():
    model, symmetry, batches, loss = task("mlp")
    ends = []
    for method in (RiemannianSGD, geoopt.optim.RiemannianSGD):
        w = bind(copy.deepcopy(model), qn.BalancedQuotient(symmetry))
        optimizer = method([w], lr=0.01, momentum=0.9)
        if method is not RiemannianSGD:
            optimizer.state[w]["momentum_buffer"] = torch.zeros_like(w)
        for batch in batches:
            gradient(w._module, batch)
            optimizer.step()
        ends.append(w.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


# -- state ---


@pytest.mark.parametrize("kind", ["node-wise", "balanced"])
@pytest.mark.parametrize("options", ["momentum", "amsgrad"])
def test_training_goes_on_from_a_saved_state_bit_for_bit(options, kind):
    model, symmetry, batches, loss = task("batch-norm")

    def make(module):
        w = bind(module, MANIFOLDS[kind](symmetry))
        optimizer = OPTIONS[options](w)
        return w, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3)

    def train(w, optimizer, schedule, some):
        for batch in some:
            gradient(w._module, batch, loss)
            optimizer.step()
            schedule.step()

    whole, half = make(copy.deepcopy(model)), make(copy.deepcopy(model))
    train(*whole, batches)
    train(*half, batches[:6])
    file = io.BytesIO()
    saved = [half[0]._module, *half[1:]]
    torch.save([each.state_dict() for each in saved], file)
    file.seek(0)
    states = torch.load(file)
    module = copy.deepcopy(model)
    module.load_state_dict(states[0])
    w, optimizer, schedule = make(module)
    optimizer.load_state_dict(states[1])
    schedule.load_state_dict(states[2])
    train(w, optimizer, schedule, batches[6:])
    assert torch.equal(w.detach(), whole[0].detach())
    again = optimizer.state_dict()["state"][0]
    for key, value in whole[1].state_dict()["state"][0].items():
        assert torch.equal(torch.as_tensor(again[key]), torch.as_tensor(value))
