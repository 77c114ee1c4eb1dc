"""SGDS as an optimizer: what it resumes, leaves alone, and refuses."""

import copy
import io

import geoopt
import pytest
import torch
from filter_cases import (  # fmt: skip
    assembled,
    closure_of,
    exact,
    flat,
    frozen_step,
    gradient,
    make,
    named,
    pieces,
    relative,
    symmetry_of,
)
from torch import nn

import quotientnet as qn
from quotientnet.training import SGDS, bind


def momentum(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.01)


def riemannian(model):
    batch = make("convolutions")[1]
    w = bind(model, qn.NodeWiseQuotient(qn.discover(model, batch[0])))
    return geoopt.optim.RiemannianSGD([w], lr=1e-3, momentum=0.9)


@pytest.mark.parametrize("make_base", [momentum, adam, riemannian])
@pytest.mark.parametrize("search_steps", [0, 2])
def test_a_saved_state_resumes_bit_for_bit(make_base, search_steps):
    def start():
        model, batch, _ = make("convolutions")
        options = {"growth": 1.5, "growth_every": 4, "search_steps": search_steps}
        base = make_base(model)
        # Without inputs, as a symmetry of bound parameters needs no new one.
        optimizer = SGDS(model, base, ["0", "3"], regularization=0.1, **options)
        return model, batch, optimizer

    model, batch, optimizer = start()
    for _ in range(10):
        optimizer.step(closure_of(model, batch))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    for _ in range(10):
        optimizer.step(closure_of(model, batch))
    again, _, resumed = start()
    state, own = torch.load(file, weights_only=False)
    again.load_state_dict(state)
    resumed.load_state_dict(own)
    assert resumed.coefficient == pytest.approx(0.1 * 1.5**2)
    for _ in range(10):
        resumed.step(closure_of(again, batch))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert resumed.steps == 20 and resumed.coefficient == optimizer.coefficient


def test_without_regularisation_it_is_the_optimizer_inside():
    model, batch, _ = make("convolutions", seed=1)
    twin = copy.deepcopy(model)
    optimizer, plain = SGDS(model, adam(model), ["0"], regularization=0), adam(twin)
    calls = []
    for _ in range(5):
        optimizer.step(closure_of(model, batch, calls))
        closure_of(twin, batch)()
        plain.step()
    assert len(calls) == 5
    for a, b in zip(model.parameters(), twin.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("search_steps", [0, 3])
def test_float32_has_its_own_accuracy(dtype, search_steps):
    model, batch, filters = make("convolutions", seed=2, dtype=dtype)
    options = {"delta": 1e-2, "search_steps": search_steps}
    h = frozen_step(model, batch, symmetry_of(model, batch), **options)
    assert flat(h).dtype == dtype
    exactly = exact(
        model.double(), [batch[0].to(torch.float64), batch[1]], filters, 2, 1e-2
    )
    assert relative({n: t.double() for n, t in h.items()}, exactly) < 5e-3


class Everything(nn.Module):
    """Batch normalisation, dropout, a tied weight, a frozen filter bank and an unused parameter."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4, bias=False)
        self.stem.weight.requires_grad_(False)
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(4, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        h = torch.tanh(self.norm(self.first(self.stem(x))))
        return self.last(self.drop(torch.tanh(self.second(h))))


def everything():
    torch.manual_seed(3)
    return Everything(), (torch.randn(12, 4), torch.randint(0, 3, (12,)))


def test_what_is_frozen_or_unused_stays_and_buffers_move_once():
    model, batch = everything()
    before = named(model)
    optimizer = SGDS(model, momentum(model), ["first.weight"], max_norm=None)
    torch.manual_seed(4)
    twin = copy.deepcopy(model)
    closure_of(twin, batch)()
    expected = torch.get_rng_state()
    torch.manual_seed(4)
    optimizer.step(closure_of(model, batch))
    assert torch.equal(torch.get_rng_state(), expected)
    assert torch.equal(model.norm.running_mean, twin.norm.running_mean)
    assert int(model.norm.num_batches_tracked) == 1
    assert torch.equal(model.stem.weight, before["stem.weight"])
    assert torch.equal(model.unused, before["unused"]) and model.unused.grad is None
    assert not torch.equal(model.first.weight, before["first.weight"])
    model.stem.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="a new SGDS when parameters are no longer"):
        optimizer.step(closure_of(model, batch))


def test_filters_that_are_frozen_do_not_count():
    model, batch, _ = make("convolutions", seed=4)
    found = symmetry_of(model, batch)
    model[0].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)  # of a filter whose weight is trained
    with pytest.raises(
        ValueError, match="SGDS: found no normalised filters that are trained"
    ):
        SGDS(model, momentum(model), found)
    model[3].bias.requires_grad_(True)
    optimizer = SGDS(model, momentum(model), found)
    assert len(optimizer.manifold.radii) == 4
    assert "0.weight" not in optimizer.layout
    before = model[0].weight.clone()
    optimizer.step(closure_of(model, batch))
    assert torch.equal(model[0].weight, before)


def test_a_filter_without_slope_is_not_moved():
    model, batch, filters = make("convolutions", seed=5)
    with torch.no_grad():
        model[4].weight[1] = 0.0  # nothing passes the second channel
        model[4].bias.zero_()
    w, g = named(model), gradient(model, batch, named(model))
    assert not g["3.weight"][1].any()
    blocks, rest = pieces(g, filters)
    own = zip(blocks, pieces(w, filters)[0])
    blocks = [b.norm() * u / u.norm() if u.any() else 0 * u for u, b in own]
    v = assembled(w, filters, blocks, rest / rest.norm())
    slope, delta = float(flat(g) @ flat(v)), 1e-3
    ends = [
        gradient(model, batch, {n: w[n] + s * 2 / 3 * delta * v[n] for n in w})
        for s in (1, -1)
    ]
    by_hand = {n: slope / delta * (ends[0][n] - ends[1][n]) for n in w}
    h = frozen_step(model, batch, ["0", "3"], gradient="partial")
    assert relative(h, by_hand) < 1e-10
    h = frozen_step(model, batch, ["0", "3"], gradient="partial", search_steps=2)
    assert relative(h, by_hand) < 1e-4


def test_at_a_stationary_point_nothing_is_added():
    model, batch, _ = make("linear")
    calls = []

    def closure():
        model.zero_grad()
        loss = 0.0 * nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        calls.append(1)
        return loss

    before = named(model)
    for search_steps in (0, 2):
        base = torch.optim.SGD(model.parameters(), 0.1)
        SGDS(model, base, ["0"], search_steps=search_steps).step(closure)
    assert len(calls) == 2
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("call, search_steps", [(1, 0), (2, 0), (3, 0), (5, 2)])
def test_a_nan_anywhere_leaves_everything(call, search_steps):
    model, batch = everything()
    options = {"search_steps": search_steps, "delta": 0.1}
    optimizer = SGDS(model, momentum(model), ["first.weight"], **options)
    optimizer.step(closure_of(model, batch))
    before, calls = copy.deepcopy(model.state_dict()), []
    base = copy.deepcopy(optimizer.state_dict())
    random = torch.get_rng_state()
    plain = closure_of(model, batch)

    def closure():
        calls.append(1)
        loss = plain()
        return loss * float("nan") if len(calls) == call else loss

    with pytest.raises(FloatingPointError, match="SGDS: the loss at .* is nan"):
        optimizer.step(closure)
    assert len(calls) == call
    after = model.state_dict()
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    for key, old in base["base"]["state"].items():
        new = optimizer.state_dict()["base"]["state"][key]["momentum_buffer"]
        assert torch.equal(old["momentum_buffer"], new)
    assert optimizer.steps == 1


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"p": 3}, ValueError, "p must be even, 2, 4, 6, ..., got 3"),
        ({"p": 0}, ValueError, "p must be even"),
        ({"p": 2.0}, ValueError, "p must be even"),
        ({"delta": 0.0}, ValueError, "delta must be above 0 and finite, got 0.0"),
        ({"delta": float("nan")}, ValueError, "delta must be above 0"),
        ({"regularization": -1.0}, ValueError, "regularization must be at least 0"),
        ({"growth": 0.0}, ValueError, "growth must be above 0"),
        ({"growth_every": 0}, ValueError, "growth_every must be an integer of at least 1"),
        ({"growth_every": 1.5}, TypeError, "growth_every must be an integer"),
        ({"max_norm": -0.1}, ValueError, "max_norm must be at least 0"),
        ({"max_norm": "0.1"}, TypeError, "max_norm must be a number, got str"),
        ({"search_steps": -1}, ValueError, "search_steps must be an integer of at least 0"),
        ({"gradient": "printed"}, ValueError, "gradient must be one of"),
        ({"filters": []}, ValueError, "found no normalised filters.*list the tensors"),
        ({"filters": "0.weight"}, TypeError, "got '0.weight'"),
        ({"filters": None}, TypeError, "got NoneType"),
        ({"filters": ["9"]}, ValueError, "names '9', which is no parameter.*0.weight"),
        ({"filters": ["2"]}, ValueError, "names '2', which is no parameter"),
        ({"filters": ["1.weight"]}, ValueError, "'1.weight' of BatchNorm2d has no filters"),
        ({"filters": ["1"]}, ValueError, "'1.weight' of BatchNorm2d has no filters"),
        ({"filters": ["0", "0.weight"]}, ValueError, "names '0.weight' twice"),
        ({"base": torch.optim.SGD}, TypeError, "base must be an optimizer"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options, error, message):
    model, _, _ = make("convolutions")
    options = {"filters": ["0"], "base": momentum(model)} | options
    with pytest.raises(error, match=f"SGDS.*{message}"):
        SGDS(model, options.pop("base"), options.pop("filters"), **options)


def test_other_models_and_zero_filters_are_refused():
    model, batch, _ = make("convolutions")
    others = make("biases")
    found = symmetry_of(*others[:2])
    with pytest.raises(ValueError, match="filters is of another model: its '0.weight'"):
        SGDS(model, momentum(model), found)
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    with pytest.raises(ValueError, match="found no normalised filters.*take SAM"):
        SGDS(plain, momentum(plain), symmetry_of(plain, others[1]))
    deconvolution = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm2d(3))
    with pytest.raises(
        ValueError, match="'0.weight' of ConvTranspose2d has no filters"
    ):
        SGDS(deconvolution, momentum(deconvolution), ["0.weight"])
    optimizer = SGDS(model, momentum(model), ["3"])
    with torch.no_grad():
        model[3].weight[2] = 0.0
        model[3].bias[2] = 0.0
    before = named(model)
    with pytest.raises(
        qn.NotOnManifoldError, match=r"zero in '3.weight' \(1\), '3.bias'"
    ):
        optimizer.step(closure_of(model, batch))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    closure = closure_of(model, batch)
    with pytest.raises(TypeError, match="one closure, or three"):
        optimizer.step(closure, closure)
    with pytest.raises(TypeError, match="SGDS.step: needs a closure.*got 1"):
        optimizer.step(closure, 1, closure)


def test_an_overflow_is_refused_or_clipped():
    model, batch, _ = make("linear", seed=6)
    with torch.no_grad():
        model[3].weight.mul_(1e4)
    options = {"p": 200, "regularization": 1.0}
    optimizer = SGDS(model, momentum(model), ["0"], max_norm=None, **options)
    before = named(model)
    with pytest.raises(FloatingPointError, match="overflows.*to the power 199"):
        optimizer.step(closure_of(model, batch))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    g = gradient(model, batch, before)
    SGDS(model, torch.optim.SGD(model.parameters(), 0.0), ["0"], **options).step(
        closure_of(model, batch)
    )
    h = {n: p.grad - g[n] for n, p in model.named_parameters()}
    assert float(flat(h).norm()) == pytest.approx(0.1, rel=1e-9)


def test_a_regularization_that_grows_beyond_all_numbers_is_refused():
    model, batch, _ = make("convolutions")
    optimizer = SGDS(model, momentum(model), ["0", "3"], growth=10.0)
    optimizer.steps = 400
    with pytest.raises(ValueError, match="regularization has grown 400 times by 10.0"):
        optimizer.step(closure_of(model, batch))
