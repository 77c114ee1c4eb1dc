"""Manifolds without translations: the laws of their classes, less dimensions, training on them."""

import copy
import pickle

import geoopt
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import quotientnet as qn
from quotientnet.manifolds import without
from quotientnet.symmetry import fix_translations
from quotientnet.testing import check_hessian, check_manifold


def model(dims=4):
    """A transformer's block, all kinds of translations in it."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        dims, 2, 5, dropout=0.0, batch_first=True, norm_first=True, activation="relu"
    )
    net = nn.Sequential(
        nn.Linear(3, dims), layer, nn.LayerNorm(dims), nn.Linear(dims, 2)
    )
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net.double()


NET, INPUTS = (
    model(),
    torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1)).double(),
)
SYMMETRY = qn.discover(NET, INPUTS)
ALL = SYMMETRY.translations
SINGLE = [t for t in ALL if "alike" not in t.name]
LAYOUT = SYMMETRY.group.layout

MANIFOLDS = {
    "tensors": lambda: qn.LayerScaleQuotient(SYMMETRY),
    "coarsest blocks": lambda: qn.LogPolarQuotient(SYMMETRY.group),
    "balanced": lambda: qn.BalancedQuotient(SYMMETRY),
    "spheres": lambda: qn.ProductOblique(LAYOUT, torch.ones(1), {"3.weight": [[0]]}),
    "entries": lambda: qn.NodeWiseQuotient(SYMMETRY),
}


def translations(name):
    """Those that fit a manifold: single entries alone under a metric of these."""
    return SINGLE if name == "entries" else ALL


def dimension(some):
    """Of all of them."""
    return sum(t.dimension for t in some)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MANIFOLDS)
def test_laws(name, seed):
    manifold = qn.without_translations(MANIFOLDS[name](), translations(name))
    verdicts = check_manifold(manifold, seed=seed, batch=(2,) if seed == 2 else ())
    assert len(verdicts) >= 20
    for verdict in verdicts:
        verdict.require()


@pytest.mark.parametrize("name", MANIFOLDS)
def test_dimension_falls_by_one_a_translation(name):
    whole = MANIFOLDS[name]()
    part = qn.without_translations(whole, translations(name))
    assert whole.dimension - part.dimension == dimension(translations(name)) > 15


@pytest.mark.parametrize("name", ["tensors", "coarsest blocks", "balanced", "spheres"])
def test_geodesics_are_those_of_the_whole_manifold(name):
    """Totally geodesic: steps of the whole manifold stay where translations are fixed."""
    whole = MANIFOLDS[name]()
    some = (
        ALL if name in ("balanced", "spheres") else [t for t in ALL if t not in SINGLE]
    )
    part = qn.without_translations(whole, some)
    assert whole.dimension - part.dimension == dimension(some) > 10
    x = part.random(generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = part.proju(x, torch.randn(LAYOUT.size).double())
    u = u / part.norm(x, u)
    assert torch.allclose(whole.proju(x, u), u, atol=1e-12)
    for move in ("retr",) if name == "balanced" else ("retr", "expmap"):
        y = getattr(whole, move)(x, u)
        assert part.check_point_on_manifold(y)
        assert torch.allclose(getattr(part, move)(x, u), y, atol=1e-13)
    if name != "balanced":
        assert torch.allclose(
            part.proju(x, whole.logmap(x, y)), whole.logmap(x, y), atol=1e-12
        )


def objective():
    """Of the square of the outputs, which knows no scale but theirs."""
    targets = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(2)).double()
    return qn.Objective(NET, nn.MSELoss(), [(INPUTS, targets)])


@pytest.mark.parametrize("name", ["tensors", "balanced", "entries"])
def test_hessian_laws(name):
    smooth = model().train()
    for norm in smooth.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = 0.0
    targets = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(2)).double()
    loss = qn.Objective(smooth, nn.MSELoss(), [(INPUTS, targets)])
    manifold = qn.without_translations(MANIFOLDS[name](), translations(name))
    w = fix_translations(LAYOUT.flatten(smooth), translations(name))
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        verdicts = check_hessian(manifold, loss, w)
    assert len(verdicts) >= 4
    for verdict in verdicts:
        verdict.require()


def test_the_gradient_does_not_see_what_was_taken_out():
    """Translations have no gradient, so both manifolds have one gradient norm where both are."""
    loss = objective()
    w = fix_translations(LAYOUT.flatten(NET), SYMMETRY)
    whole, part = MANIFOLDS["balanced"](), None
    part = qn.without_translations(whole, SYMMETRY)
    g = loss.at(w).gradient
    for t in ALL:
        assert (t.basis(w).T @ g).abs().amax() < 1e-10 * g.norm()
    a, b = whole.egrad2rgrad(w, g), part.egrad2rgrad(w, g)
    assert part.norm(w, b) <= whole.norm(w, a) * (1 + 1e-12)
    assert torch.allclose(part.proju(w, a), b, atol=1e-10)


@pytest.mark.parametrize("name", ["tensors", "balanced"])
def test_training_stays_where_translations_are_fixed(name):
    net = copy.deepcopy(NET)
    manifold = qn.without_translations(MANIFOLDS[name](), SYMMETRY)
    with pytest.raises(qn.NotOnManifoldError, match="fix_translations"):
        qn.training.bind(net, manifold)
    before = net(INPUTS).detach()
    LAYOUT.assign(net, fix_translations(LAYOUT.flatten(net), SYMMETRY))
    assert torch.allclose(net(INPUTS), before, atol=1e-12)
    w = qn.training.bind(net, manifold)
    optimizer = qn.training.RiemannianSGD([w], lr=1e-3, momentum=0.9)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (net(INPUTS) - 1).square().mean()
        loss.backward()
        values.append(float(loss.detach()))
        optimizer.step()
        assert manifold.check_point_on_manifold(w.detach())
    zeros = manifold._gauge.zeros
    assert values[-1] < values[0] and zeros.sum() > 15 and not w.detach()[zeros].any()
    other = copy.deepcopy(w)
    assert torch.equal(other, w) and other.manifold.dimension == manifold.dimension


def test_copies_and_once_more():
    first, rest = ALL[:3], ALL[3:]
    whole = MANIFOLDS["tensors"]()
    once = qn.without_translations(whole, SYMMETRY)
    twice = qn.without_translations(qn.without_translations(whole, first), rest)
    assert once.dimension == twice.dimension and type(once) is type(twice)
    assert isinstance(once, qn.LayerScaleQuotient) and once.name == "LayerScaleQuotient"
    for other in (copy.deepcopy(once), pickle.loads(pickle.dumps(once))):
        x, u = once.origin(dtype=torch.float64), torch.randn(LAYOUT.size).double()
        assert torch.equal(other.proju(x, u), once.proju(x, u))


def test_what_is_taken_out_is_said_and_refused_again():
    whole = MANIFOLDS["tensors"]()
    part = qn.without_translations(whole, SYMMETRY)
    taken = f"{dimension(ALL)} directions of translations taken out"
    assert taken in repr(part) and "translations" not in repr(whole)
    for again in (SYMMETRY, ALL[:1]):
        for manifold in (part, pickle.loads(pickle.dumps(part))):
            with pytest.raises(
                ValueError, match="taken out of this manifold already: '"
            ):
                qn.without_translations(manifold, again)


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="alike.*NodeWiseQuotient"):
        qn.without_translations(MANIFOLDS["entries"](), SYMMETRY)
    with pytest.raises(TypeError, match="one on a layout"):
        qn.without_translations(geoopt.Sphere(), SYMMETRY)
    other = qn.discover(nn.Linear(3, 2), torch.randn(4, 3))
    with pytest.raises(ValueError, match="another layout"):
        qn.without_translations(qn.LayerScaleQuotient(other), SYMMETRY)
    # The law broken by hand: what the check refuses is no isometry.
    monkeypatch.setattr(without, "_require_uniform", lambda *args: None)
    manifold = qn.without_translations(MANIFOLDS["entries"](), ALL)
    violated = [v for v in check_manifold(manifold) if not v.holds]
    assert any("translations are not fixed" in str(v) for v in violated)


def test_scalings_map_translations_to_translations():
    """Of home entries by their own scales: ``t · (w + D(w) s) = t·w + D(t·w) s'``."""
    group = SYMMETRY.group
    w, t = torch.randn(LAYOUT.size).double(), torch.randn(group.dimension).double()
    scales = group.exponents(t).exp()
    for translation in ALL:
        s = torch.randn(translation.dimension).double()
        there = group.act(translation.act(w, s), t)
        home = (translation.basis(w) != 0) & LAYOUT.mask(translation.parameter)[:, None]
        own = torch.stack([scales[column].mean() for column in home.T])
        assert torch.allclose(
            translation.act(group.act(w, t), own * s), there, rtol=1e-9
        )
