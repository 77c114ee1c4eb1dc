"""Models moved along their orbits, with what their optimizers have gathered."""

import copy

import pytest
import torch
from architectures import ARCHITECTURES
from test_balance import derived
from torch import nn

import quotientnet as qn
from quotientnet.symmetry import OPTIMIZER_UNITS


def train(model, optimizer, x, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


TORCHS = [k for k in OPTIMIZER_UNITS if k != "Rprop" and hasattr(torch.optim, k)]


@pytest.mark.parametrize("kind", TORCHS)
def test_optimizer_state_is_what_it_would_have_become(kind):
    """Gradients at equivalent points, accumulated by the formula of each kind, are the reference:
    a fresh optimizer is fed ``e^{−At} g`` on parameters that rest."""
    architecture = ARCHITECTURES["mlp"]
    model, x = architecture.build(), architecture.inputs()
    group = qn.discover(model, x).group
    make = getattr(torch.optim, kind)
    options = {"momentum": 0.9} if kind in ("SGD", "RMSprop") else {}
    options |= {"centered": True} if kind == "RMSprop" else {}
    options |= {"amsgrad": True} if kind in ("Adam", "AdamW") else {}
    optimizer = make(model.parameters(), lr=1e-3, eps=1e-300, **options) if kind not in (
        "SGD", "ASGD") else make(model.parameters(), lr=1e-3, **options)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    t = group.random(spread=1.0, generator=generator)
    scales = group.layout.unflatten(group.exponents(t).exp())
    twin = qn.transform(model, group, t)
    defaults = {k: v for k, v in optimizer.defaults.items() if k in options}
    lone = make(
        twin.parameters(), lr=1e-3, **defaults,
        **({} if kind in ("SGD", "ASGD") else {"eps": 1e-300}),
    )  # fmt: skip
    names = [name for name, _ in model.named_parameters()]
    for _ in range(3):
        for name, p, q in zip(names, model.parameters(), twin.parameters()):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            q.grad = p.grad / scales[name]
        optimizer.step()
        lone.step()
    now = group.layout.flatten(model)
    qn.transform(model, group, t, in_place=True, optimizer=optimizer)
    assert torch.equal(group.layout.flatten(model), group.act(now, t))
    for p, q in zip(model.parameters(), twin.parameters()):
        for key in OPTIMIZER_UNITS[kind]:
            if key in optimizer.state[p] and key not in ("acc_delta", "ax"):
                a, b = optimizer.state[p][key], lone.state[q][key]
                torch.testing.assert_close(a, b, rtol=1e-10, atol=0)


@pytest.mark.parametrize("quotient", [qn.NodeWiseQuotient, qn.BalancedQuotient])
@pytest.mark.parametrize("kind", ["RiemannianSGD", "RiemannianAdam"])
def test_a_riemannian_optimizer_goes_on_as_if_nothing_had_been_moved(kind, quotient):
    options = {"momentum": 0.9} if kind == "RiemannianSGD" else {"amsgrad": True}
    outputs = []
    for moved in (False, True):
        model, x, group, _ = derived("mlp")
        w = qn.training.bind(model, quotient(group))
        optimizer = getattr(qn.training, kind)([w], lr=0.01, **options)
        train(model, optimizer, x)
        if moved:
            before = w.detach().clone()
            t = group.random(generator=torch.Generator().manual_seed(0))
            qn.transform(model, group, t, in_place=True, optimizer=optimizer)
            assert torch.equal(w, group.act(before, t)) and not torch.equal(w, before)
        train(model, optimizer, x, steps=10)
        outputs.append(model(x).detach())
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)


def test_gradients_of_a_bound_point_are_those_of_its_parameters():
    model, x, group, _ = derived("mlp")
    w = qn.training.bind(model, qn.NodeWiseQuotient(group))
    optimizer = torch.optim.SGD([w], lr=0.01, momentum=0.9)
    train(model, optimizer, x)
    old = optimizer.state[w]["momentum_buffer"].clone()
    t = group.random(generator=torch.Generator().manual_seed(0))
    qn.transform(model, group, t, in_place=True, optimizer=optimizer)
    scales = group.exponents(t).exp()
    torch.testing.assert_close(optimizer.state[w]["momentum_buffer"], old / scales)


def test_a_momentum_step_is_that_of_the_moved_gradients():
    model, x, group, _ = derived("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train(model, optimizer, x)
    buffers = [
        optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()
    ]
    before = group.layout.flatten(model)
    same = qn.balance(model, group, in_place=True, optimizer=optimizer, inputs=x)
    assert same is model
    ratio = group.layout.flatten(model) / before
    for p, old, r in zip(
        model.parameters(), buffers, group.layout.unflatten(ratio).values()
    ):
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], old / r)
    train(model, optimizer, x)


def test_ties_are_kept():
    model, x, group, _ = derived("deep tied autoencoder")
    twin = qn.balance(model, group, inputs=x)
    assert len(list(twin.parameters())) == len(list(model.parameters()))
    embedding = nn.Linear(4, 3, bias=False)
    tied = nn.Sequential(
        embedding, nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)
    )
    tied.shared = embedding
    tied.forward = nn.Sequential(*list(tied)[:5]).forward
    layout = qn.ParameterLayout.from_module(tied)
    assert layout.aliases
    x = torch.randn(5, 4)
    twin = qn.balance(tied, qn.discover(tied, x))
    assert twin.shared.weight is twin[0].weight


def test_an_optimizer_that_is_unknown_or_of_a_copy_is_refused():
    model, x, group, w = derived("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="in_place=True"):
        qn.balance(model, group, optimizer=optimizer)

    class Mine(torch.optim.SGD):
        pass

    mine = Mine(model.parameters(), lr=0.0, momentum=0.9)
    train(model, mine, x, 1)
    with pytest.raises(ValueError, match="'momentum_buffer' of Mine.*OPTIMIZER_UNITS"):
        qn.balance(model, group, in_place=True, optimizer=mine)
    assert torch.equal(group.layout.flatten(model), w)


def test_optimizers_whose_state_is_not_understood_are_refused():
    model, x, group, w = derived("mlp")
    with pytest.raises(TypeError, match="must be a torch.optim.Optimizer"):
        qn.balance(model, group, in_place=True, optimizer="adam")
    other = torch.optim.Adam(copy.deepcopy(model).parameters())
    with pytest.raises(ValueError, match="none of the model's parameters"):
        qn.balance(model, group, in_place=True, optimizer=other)
    lbfgs = torch.optim.LBFGS(model.parameters(), lr=0.0)

    def closure():
        lbfgs.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    lbfgs.step(closure)
    with pytest.raises(ValueError, match="of LBFGS changes"):
        qn.balance(model, group, in_place=True, optimizer=lbfgs)
    assert torch.equal(group.layout.flatten(model), w)


def test_state_that_leaves_the_range_of_its_dtype_is_refused():
    model, x, group, _ = derived("mlp")
    model = model.float()
    adam = torch.optim.Adam(model.parameters())
    train(model, adam, x.float())
    before = copy.deepcopy(adam.state_dict())
    with pytest.raises(
        ValueError, match="state 'exp_avg_sq' of .* range of torch.float32"
    ):
        qn.transform(
            model, group, torch.full((group.dimension,), -60.0), in_place=True,
            optimizer=adam,
        )  # fmt: skip
    now = adam.state_dict()["state"]
    for key, state in before["state"].items():
        assert all(torch.equal(v, now[key][k]) for k, v in state.items())


@pytest.mark.parametrize("kind", ["NAdam", "ASGD", "Adam"])
def test_scalars_have_states_like_others(kind):
    model, x, group, _ = derived("a scalar")
    optimizer = getattr(torch.optim, kind)(model.parameters())
    train(model, optimizer, x)
    key = "ax" if kind == "ASGD" else "exp_avg"
    before = optimizer.state[model.scalar][key].clone()
    scalar = model.scalar.detach().clone()
    qn.balance(model, group, in_place=True, optimizer=optimizer, inputs=x)
    scale = model.scalar.detach() / scalar
    assert abs(float(scale) - 1) > 1e-3
    power = OPTIMIZER_UNITS[kind][key]
    torch.testing.assert_close(
        optimizer.state[model.scalar][key], before * scale**power
    )


def test_models_that_torch_cannot_copy_are_balanced_in_place():
    model, x, group, _ = derived("mlp")
    model.kept = model(x)
    with pytest.raises(ValueError, match="cannot be copied.*in_place=True"):
        qn.balance(model, group)
    assert qn.balance(model, group, in_place=True) is model


def test_outputs_that_change_are_refused():
    model, x, group, w = derived("mlp")
    wrong = qn.ScalingGroup.from_units(
        group.layout, [qn.Unit("wrong", 1, (qn.Scale(group.layout.names[0], None),))]
    )
    with pytest.raises(ValueError, match="the group is not the model's own"):
        qn.balance(model, wrong, inputs=x)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, eps=0.1), nn.Linear(2, 1))
    x = torch.randn(8, 3)
    with pytest.raises(ValueError, match="eps makes its symmetry approximate"):
        qn.balance(model, qn.discover(model, x), inputs=x)
