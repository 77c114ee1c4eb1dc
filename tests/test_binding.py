"""A module bound to a point of a manifold: shared memory, gradients, and what unties them."""

import copy
import io

import geoopt
import pytest
import torch
from torch import nn

import quotientnet as qn
from quotientnet.training import BoundParameter, bind

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()


class Tied(nn.Module):
    """A tied weight, batch normalisation, and a parameter that the loss does not use."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.second(torch.relu(self.norm(self.first(x))))


def make():
    torch.manual_seed(1)
    model = Tied().double()
    with torch.no_grad():
        model.norm.bias.normal_()
    layout = qn.ParameterLayout.from_module(model)
    group = qn.ScalingGroup.from_units(
        layout, [qn.Unit("first", 1, (qn.Scale("first.weight", None),))]
    )
    return model, qn.LogPolarQuotient(group)


def backward(model):
    model(X).square().sum().backward()


def test_the_module_keeps_its_tensors_and_shares_their_memory():
    model, manifold = make()
    tensors, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    outputs = copy.deepcopy(model)(X)
    w = bind(model, manifold)
    assert isinstance(w, geoopt.ManifoldParameter) and w.shape == (
        manifold.layout.size,
    )
    for name, parameter in model.named_parameters():
        assert parameter is tensors[name] and parameter.is_leaf
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert model.second.weight is model.first.weight
    assert torch.equal(model(X), outputs)
    # What the forward wrote to the running statistics is in the vector.
    assert torch.equal(manifold.layout.flatten(model), w.data)
    assert not torch.equal(model.norm.running_mean, state["norm.running_mean"])
    with torch.no_grad():
        w.mul_(2.0)
    assert torch.equal(model.first.weight, 2 * state["first.weight"])
    with torch.no_grad():
        model.first.bias.fill_(7.0)
    assert (w[manifold.layout["first.bias"].slice] == 7).all()


def test_the_gradient_is_that_of_the_module():
    model, manifold = make()
    other = copy.deepcopy(model)
    w = bind(model, manifold)
    assert w.grad is None
    backward(model), backward(other)
    expected = torch.zeros_like(w.data)
    for name, parameter in other.named_parameters():
        if parameter.grad is not None:
            expected[manifold.layout[name].slice] = parameter.grad.reshape(-1)
    assert torch.equal(w.grad, expected) and expected.any()
    backward(model)  # accumulates, and the vector follows
    assert torch.allclose(w.grad, 2 * expected, rtol=1e-12, atol=1e-12)
    # Zero, scale or remove one and the other follows.
    w.grad.zero_()
    assert not model.first.weight.grad.any()
    backward(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert float(w.grad.norm()) == pytest.approx(1.0, rel=1e-6)
    model.zero_grad()
    assert w.grad is None
    backward(model)
    assert torch.allclose(w.grad, expected, rtol=1e-12, atol=1e-12)
    w.grad = None
    assert all(p.grad is None for p in model.parameters())
    w.grad = torch.ones_like(w.data)
    assert all((p.grad == 1).all() for p in model.parameters())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_any_optimizer_moves_it_as_it_would_move_the_parameters(set_to_none):
    model, manifold = make()
    other = copy.deepcopy(model)
    w = bind(model, manifold)
    ours = torch.optim.Adam([w], lr=0.1)
    plain = torch.optim.Adam(other.parameters(), lr=0.1)
    for _ in range(3):
        for optimizer, module in ((ours, model), (plain, other)):
            optimizer.zero_grad(set_to_none=set_to_none)
            backward(module)
            optimizer.step()
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters()):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12), name
    assert torch.equal(manifold.layout.flatten(model), w.data)


def test_geoopts_optimizers_take_it():
    model, manifold = make()
    w = bind(model, manifold)
    optimizer = geoopt.optim.RiemannianSGD([w], lr=1e-3)
    before = model(X).square().sum().item()
    for _ in range(5):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
    assert model(X).square().sum().item() < before


def by_copy(whole):
    return copy.deepcopy(whole)


def by_pickle(whole):
    file = io.BytesIO()
    torch.save(whole, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("copied", [by_copy, by_pickle])
def test_a_copy_is_bound_to_a_copy_of_the_module(copied, order):
    model, manifold = make()
    w = bind(model, manifold)
    optimizer = torch.optim.SGD([w], lr=1e-3, momentum=0.9)
    backward(model), optimizer.step()
    twin, other = copied((model, optimizer)[::order])[::order]
    for module, each in ((model, optimizer), (twin, other)):
        each.zero_grad()
        backward(module), each.step()
    v = other.param_groups[0]["params"][0]
    assert isinstance(v, BoundParameter) and v.data_ptr() != w.data_ptr()
    assert torch.equal(v, w) and torch.equal(manifold.layout.flatten(twin), v.data)
    assert torch.equal(
        other.state[v]["momentum_buffer"], optimizer.state[w]["momentum_buffer"]
    )
    assert twin.second.weight is twin.first.weight


def test_a_penalty_on_the_vector_counts():
    model, manifold = make()
    w, count = bind(model, manifold), manifold.layout.parameter_size
    backward(model)
    expected = w.grad.clone()
    expected[:count] += 2 * w.detach()[:count]
    w.grad = None
    (model(X).square().sum() + w.square().sum()).backward()
    assert torch.allclose(w.grad, expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(w.grad, expected, rtol=1e-12, atol=1e-12)  # read once more
    w.grad = None
    w.square().sum().backward()
    assert torch.equal(w.grad[:count], 2 * w.detach()[:count])
    assert not w.grad[count:].any()  # running statistics have none
    assert torch.equal(model.first.bias.grad, 2 * model.first.bias.detach())


def test_a_gradient_that_is_kept_stays_what_it_was():
    model, manifold = make()
    w = bind(model, manifold)
    backward(model)
    kept, value = w.grad, w.grad.clone()
    w.grad = None
    (3 * model(X).square().sum()).backward()
    assert torch.equal(kept, value) and torch.allclose(w.grad, 3 * kept)
    model.zero_grad()
    backward(model)
    assert torch.equal(kept, value) and torch.allclose(w.grad, kept)
    model.zero_grad()
    with pytest.warns(UserWarning, match="create_graph"):
        model(X).square().sum().backward(create_graph=True)
    assert torch.allclose(w.grad, kept) and not w.grad.requires_grad
    w.grad = None


def test_freezing_a_bound_parameter_is_refused():
    model, manifold = make()
    w = bind(model, manifold)
    model.first.bias.requires_grad_(False)
    backward(model)
    with pytest.raises(RuntimeError, match="requires_grad of 'first.bias' has changed"):
        w.grad
    model.first.bias.requires_grad_(True)
    assert w.grad.any()


def test_load_state_dict_moves_the_point():
    model, manifold = make()
    w, state = bind(model, manifold), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        w.mul_(3.0)
    model.load_state_dict(state)
    assert torch.equal(
        w[manifold.layout["first.weight"].slice].view(3, 3), state["first.weight"]
    )


def untie_by_dtype(model):
    model.float()


def untie_by_data(model):
    model.first.bias.data = model.first.bias.data.clone()


def untie_by_assignment(model):
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


@pytest.mark.parametrize("untie", [untie_by_dtype, untie_by_data, untie_by_assignment])
def test_what_unties_the_module_is_noticed(untie):
    model, manifold = make()
    w = bind(model, manifold)
    untie(model)
    with pytest.raises(RuntimeError, match="no longer shares memory.*call bind again"):
        w.grad
    with pytest.raises(RuntimeError, match="no longer shares memory"):
        w.grad = None


def test_other_parameters_of_the_module_stay_as_they_are():
    model, _ = make()
    model.second.bias.requires_grad_(False)
    layout = qn.ParameterLayout.from_module(model)
    group = qn.ScalingGroup.from_units(
        layout, [qn.Unit("first", 1, (qn.Scale("first.weight", None),))]
    )
    pointer = model.second.bias.data_ptr()
    w = bind(model, qn.LogPolarQuotient(group))
    backward(model)
    assert model.second.bias.data_ptr() == pointer
    assert w.grad.shape == (layout.size,)


def test_bad_input_is_refused_and_changes_nothing():
    model, manifold = make()
    pointers = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(
        ValueError, match="manifold is of another model.*the module has none"
    ):
        bind(nn.Linear(3, 3).double(), manifold)
    wider = Tied().double()
    wider.first = nn.Linear(4, 3).double()
    with pytest.raises(
        ValueError, match=r"'first.weight' has shape \(3, 3\).*\(3, 4\)"
    ):
        bind(wider, manifold)
    with pytest.raises(TypeError, match="manifold must be one on a layout.*Sphere"):
        bind(model, geoopt.Sphere())
    with torch.no_grad():
        model.norm.bias.zero_()
    with pytest.raises(
        qn.NotOnManifoldError, match="bind: zero blocks.*'norm.bias'.*frozen_zeros"
    ):
        bind(model, manifold)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert not any(isinstance(p, BoundParameter) for p in model.parameters())
