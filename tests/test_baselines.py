"""SAM, ASAM and Entropy-SGD against steps worked out by hand; what they leave alone and refuse."""

import copy
import io
from math import sqrt

import pytest
import torch
from torch import nn
from torch.func import functional_call

import quotientnet as qn
from quotientnet.training import ASAM, SAM, EntropySGD
from quotientnet.training.neighbours import Neighbours

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).double()
ALL = (SAM, ASAM, EntropySGD)


def make():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def make_hazards():
    """Running statistics and random masks."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1)
    ).double()


def closure_of(model, inputs=X):
    def closure():
        model.zero_grad()
        loss = (model(inputs) - 1).square().mean()
        loss.backward()
        return loss

    return closure


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9} | options)


class Dense:
    """A model's loss of one vector, and SGD with momentum and weight decay on it."""

    def __init__(self, model, decay=0.0):
        self.model, self.decay, self.buffer = model, decay, 0.0
        self.names = [n for n, _ in model.named_parameters()]
        self.shapes = [p.shape for p in model.parameters()]
        self.w = nn.utils.parameters_to_vector(model.parameters()).detach().clone()

    def gradient(self, w):
        w = w.clone().requires_grad_()
        pieces = w.split([s.numel() for s in self.shapes])
        parts = {n: p.view(s) for n, p, s in zip(self.names, pieces, self.shapes)}
        loss = (functional_call(self.model, parts, X) - 1).square().mean()
        return torch.autograd.grad(loss, w)[0]

    def step(self, gradient, rate=0.1):
        self.buffer = 0.9 * self.buffer + gradient + self.decay * self.w
        self.w = self.w - rate * self.buffer


def vector(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_sam_by_hand():
    model = make()
    dense, optimizer = Dense(make(), 0.01), SAM(
        model, sgd(model, weight_decay=0.01), 0.3
    )
    for _ in range(4):
        g = dense.gradient(dense.w)
        dense.step(dense.gradient(dense.w + 0.3 * g / sqrt(g @ g)))
        optimizer.step(closure_of(model))
        assert torch.allclose(vector(model), dense.w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("biases", [True, False])
def test_asam_by_hand(biases):
    model = make()
    dense, optimizer = Dense(make()), ASAM(model, sgd(model), 0.4, 0.02, biases=biases)
    weight = torch.cat(
        [torch.full((p.numel(),), p.ndim == 2) for p in model.parameters()]
    )
    for _ in range(4):
        g, scale = dense.gradient(dense.w), dense.w.abs() + 0.02
        if not biases:
            scale[~weight] = 1
        worst = dense.w + 0.4 * scale**2 * g / sqrt(((scale * g) ** 2).sum())
        dense.step(dense.gradient(worst))
        optimizer.step(closure_of(model))
        assert torch.allclose(vector(model), dense.w, rtol=1e-12, atol=1e-14)


def test_asam_goes_where_the_adaptive_sharpness_of_a_linear_loss_is_attained():
    model = nn.Linear(3, 1).double()
    objective = qn.Objective(model, lambda outputs, _: outputs.mean(), (X, X))
    point = objective.at(objective.layout.flatten(model))
    sharpness = qn.sharpness.adaptive_sharpness(point, 0.4, 0.02)
    seen = []

    def closure():
        model.zero_grad()
        loss = model(X).mean()
        loss.backward()
        seen.append(loss.detach())
        return loss

    ASAM(model, sgd(model), 0.4, 0.02).step(closure)
    assert float(seen[1] - seen[0]) == pytest.approx(sharpness.value, rel=1e-9)


def test_the_adaptive_neighbour_of_an_equivalent_network_is_equivalent():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    group, layout = qn.discover(model, X).group, qn.ParameterLayout.from_module(model)
    w, t = layout.flatten(model), group.random(spread=2.0)
    losses = {}
    for kind, eta in ((SAM, {}), (ASAM, {"eta": 0.0}), (ASAM, {"eta": 0.01})):
        for v in (w, group.act(w, t)):
            layout.assign(model, v)
            optimizer = kind(model, sgd(model), 0.3, **eta)
            seen, closure = [], closure_of(model)
            optimizer.step(lambda: seen.append(closure()) or seen[-1])
            losses.setdefault((kind, *eta.values()), []).append(float(seen[1].detach()))
    invariant = losses.pop((ASAM, 0.0))
    assert invariant[0] == pytest.approx(invariant[1], rel=1e-12)
    assert all(abs(a / b - 1) > 1e-3 for a, b in losses.values())


def test_entropy_sgd_by_hand():
    model = make()
    options = dict(
        inner_steps=5, inner_lr=0.2, gamma=0.3, growth=2.0, noise=0.05, averaging=0.6
    )
    draws = torch.Generator().manual_seed(3)
    generator = torch.Generator().manual_seed(3)
    optimizer = EntropySGD(model, sgd(model), **options, generator=generator)
    dense = Dense(make())
    for step in range(3):
        x = mean = dense.w
        for _ in range(5):
            noise = torch.randn(len(x), generator=draws, dtype=x.dtype)
            pull = 0.3 * 2.0**step * (dense.w - x)
            x = x - 0.2 * (dense.gradient(x) - pull) + sqrt(0.2) * 0.05 * noise
            mean = 0.6 * mean + 0.4 * x
        dense.step(dense.w - mean)
        optimizer.step(closure_of(model))
        assert torch.allclose(vector(model), dense.w, rtol=1e-12, atol=1e-14)


def test_entropy_sgd_on_a_parabola_is_its_closed_form():
    """``f = a x²/2``: the inner steps tend geometrically to ``γ w/(a + γ)``."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2.0)
    base = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = EntropySGD(
        model, base, inner_steps=7, inner_lr=0.1, gamma=0.5, noise=0.0, averaging=0.75
    )

    def closure():
        model.zero_grad()
        loss = 3 * model.weight.square().sum() / 2
        loss.backward()
        return loss

    assert float(optimizer.step(closure)) == 6
    rest, rate = 0.5 * 2 / 3.5, 1 - 0.1 * 3.5
    inner = [rest + rate**k * (2 - rest) for k in range(1, 8)]
    mean = 0.75**7 * 2 + 0.25 * sum(0.75 ** (7 - k) * x for k, x in enumerate(inner, 1))
    assert model.weight.item() == pytest.approx(
        mean, rel=1e-13
    )  # a rate of 1 moves w to mu


def test_the_noise_has_its_size():
    model = nn.Linear(200, 200, bias=False).double()
    start = model.weight.detach().clone()
    base = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = EntropySGD(
        model, base, inner_steps=4, inner_lr=0.3, gamma=0.0, noise=0.7
    )

    def closure():
        model.zero_grad()
        loss = 0 * model.weight.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    # The j-th draw is in every later x', so it enters the average with weight 1 - 0.75**(5 - j).
    weights = torch.tensor([1 - 0.75**k for k in (4, 3, 2, 1)])
    expected = sqrt(0.3) * 0.7 * weights.norm()
    moved = model.weight.detach() - start
    assert moved.std().item() == pytest.approx(
        expected.item(), rel=0.02
    )  # 6 standard errors
    assert abs(moved.mean().item()) < 4 * expected / 200


@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_without_a_radius_they_are_the_optimizer_inside(kind):
    model, twin = make_hazards(), make_hazards()
    optimizer, plain = kind(model, sgd(model), 0.0), sgd(twin)
    torch.manual_seed(5)
    for _ in range(3):
        optimizer.step(closure_of(model))
    torch.manual_seed(5)
    for _ in range(3):
        plain.step(closure_of(twin))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name


@pytest.mark.parametrize("kind, count", [(SAM, 2), (ASAM, 2), (EntropySGD, 20)])
def test_statistics_are_updated_once_and_evaluations_are_as_many_as_stated(kind, count):
    model, twin = make_hazards(), make_hazards()
    seen, closure = [], closure_of(model)
    kind(model, sgd(model)).step(lambda: seen.append(1) or closure())
    assert len(seen) == count
    twin(X)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(twin.named_buffers())[name]), name


@pytest.mark.parametrize("kind", ALL)
def test_which_random_numbers_the_evaluations_see(kind):
    """One batch and mask for a gradient at a neighbour; new ones for each step of Langevin's."""
    model, batches, masks = make_hazards(), [], []
    model[2].register_forward_hook(lambda _, inputs, output: masks.append(output == 0))
    optimizer = kind(model, sgd(model))

    def closure():
        rows = torch.randint(12, (6,))
        batches.append(rows)
        return closure_of(model, X[rows])()

    torch.manual_seed(4)
    for _ in range(2):
        optimizer.step(closure)
    count = len(batches) // 2
    distinct = {tuple(b.tolist()) for b in batches}
    if kind is EntropySGD:
        assert len(distinct) == 40 and not torch.equal(masks[0], masks[1])
    else:
        assert len(distinct) == 2 and torch.equal(batches[0], batches[1])
        assert torch.equal(masks[0], masks[1]) and count == 2
    assert not torch.equal(masks[0], masks[count])  # the next step draws anew


@pytest.mark.parametrize("kind", ALL)
def test_a_saved_state_resumes_bit_for_bit(kind):
    def fresh():
        model = make_hazards()
        base = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, kind(model, base)

    model, optimizer = fresh()
    for step in range(20):
        if step == 10:
            file = io.BytesIO()
            state = model.state_dict(), optimizer.state_dict(), torch.get_rng_state()
            torch.save(state, file)
        optimizer.step(closure_of(model))
    file.seek(0)
    other, resumed = fresh()
    weights, state, random = torch.load(file)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    torch.set_rng_state(random)
    for _ in range(10):
        resumed.step(closure_of(other))
    assert resumed.steps == 20 and torch.equal(vector(model), vector(other))
    again = fresh()[1]
    assert resumed.param_groups is resumed.base.param_groups
    assert again.state_dict().keys() == state.keys()


@pytest.mark.parametrize("kind", ALL)
def test_schedulers_take_either(kind):
    ends = []
    for inside in (True, False):
        model = make()
        optimizer = kind(model, sgd(model))
        target = optimizer.base if inside else optimizer
        schedule = torch.optim.lr_scheduler.StepLR(target, 1, 0.5)
        for _ in range(3):
            optimizer.step(closure_of(model))
            schedule.step()
        assert optimizer.base.param_groups[0]["lr"] == 0.0125
        ends.append(vector(model))
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", ALL)
def test_a_batch_that_is_no_number_changes_nothing(kind):
    model = make_hazards()
    optimizer, calls = kind(model, sgd(model)), []
    optimizer.step(closure_of(model))
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    random = torch.get_rng_state()

    def second_is_bad():
        calls.append(1)
        return closure_of(model, X if len(calls) == 1 else X * float("nan"))()

    for closure, where in (
        (closure_of(model, X * float("nan")), "the parameters"), (second_is_bad, "a neighbour")
    ):  # fmt: skip
        with pytest.raises(
            FloatingPointError, match=f"{kind.__name__}: the loss at {where}"
        ):
            optimizer.step(closure)
        after = model.state_dict(), optimizer.state_dict()
        assert_equal(before, after)
        assert torch.equal(random, torch.get_rng_state())


def assert_equal(a, b):
    """Nested states, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        [assert_equal(a[key], b[key]) for key in a]
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        [assert_equal(x, y) for x, y in zip(a, b)]
    else:
        assert a == b


def test_a_gradient_of_zero_is_no_division_by_zero():
    model = nn.Linear(3, 1, bias=False).double()
    before = vector(model).clone()

    def closure():
        model.zero_grad()
        loss = 0 * model(X).sum()
        loss.backward()
        return loss

    for kind in (SAM, ASAM):
        kind(model, sgd(model)).step(closure)
        assert torch.equal(vector(model), before)


def test_bad_options_are_refused():
    model = make()
    base = sgd(model)
    for kind in ALL:
        with pytest.raises(
            TypeError, match=f"{kind.__name__}: base must be an optimizer"
        ):
            kind(model, torch.optim.SGD)
        with pytest.raises(TypeError, match="returned no loss"):
            kind(model, base).step(lambda: None)
        with pytest.raises(ValueError, match="base moves a parameter of shape"):
            kind(model, sgd(make()))
    for options, message in (
        (
            {"inner_steps": 0},
            "EntropySGD: inner_steps must be an integer of at least 1, got 0",
        ),
        ({"inner_lr": 0.0}, "inner_lr must be above 0 and finite, got 0"),
        ({"gamma": -1.0}, "gamma must be at least 0"),
        ({"growth": 0.5}, "growth must be at least 1"),
        ({"noise": float("nan")}, "noise must be at least 0 and finite, got nan"),
        ({"averaging": 1.0}, "averaging must be at least 0 and below 1, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            EntropySGD(model, base, **options)
    with pytest.raises(TypeError, match="EntropySGD: inner_steps must be an integer"):
        EntropySGD(model, base, inner_steps=1.5)
    with pytest.raises(TypeError, match="EntropySGD: gamma must be a number, got str"):
        EntropySGD(model, base, gamma="1")
    with pytest.raises(
        ValueError, match="SAM: rho must be at least 0 and finite, got inf"
    ):
        SAM(model, base, float("inf"))
    with pytest.raises(ValueError, match="ASAM: eta must be at least 0"):
        ASAM(model, base, eta=-0.1)


def test_float32_stays_float32():
    model = make().float()
    layout = qn.ParameterLayout.from_module(model)
    for kind in ALL:
        optimizer = kind(model, sgd(model))
        with Neighbours(model, layout, "test") as near:
            assert (
                optimizer.gradient(near, closure_of(model, X.float()))[1].dtype
                == torch.float32
            )
