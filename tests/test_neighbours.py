"""Closures at neighbours, and optimizers around others: what is given back, and what is refused."""

import copy
import pickle

import pytest
import torch
from torch import nn

import quotientnet as qn
from quotientnet.training.neighbours import Neighbours
from quotientnet.training.wrapper import Wrapper

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def make():
    """A network with everything that a forward can change: statistics and random numbers."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1)
    )


def closure_of(model, inputs=X):
    def closure():
        model.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    return closure


def by_pickle(whole):
    return pickle.loads(pickle.dumps(whole))


class Average(Wrapper):
    """The mean of the gradients here and at a neighbour."""

    def gradient(self, near, closure):
        loss, g = near.here(closure)
        _, other = near.at(near.w + 0.1, closure)
        return loss, (g + other) / 2


def state_of(model):
    return copy.deepcopy(model.state_dict()), torch.get_rng_state()


def assert_same(model, state):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[0][name]), name
    assert torch.equal(torch.get_rng_state(), state[1])


def test_an_excursion_leaves_what_one_evaluation_leaves():
    model, twin = make(), make()
    torch.manual_seed(2)
    closure_of(twin)()
    expected = state_of(twin)
    torch.manual_seed(2)
    with Neighbours(model, qn.ParameterLayout.from_module(model), "test") as near:
        loss, g = near.here(closure_of(model))
        again, h = near.at(near.w, closure_of(model))
        other, _ = near.at(near.w + 1, closure_of(model))
    # The same masks of dropout, so the same function.
    assert torch.equal(loss, again) and torch.equal(g, h) and loss != other
    assert_same(model, expected)
    assert int(model[1].num_batches_tracked) == 1


def test_the_gradient_is_that_of_the_parameters():
    model = make().eval()
    model[3].bias.requires_grad_(False)
    layout = qn.ParameterLayout.from_module(model)
    with Neighbours(model, layout, "test") as near:
        _, g = near.here(closure_of(model))
    views = layout.unflatten(g)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(views[name], parameter.grad)
    assert "3.bias" not in views and not views["1.running_mean"].any()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_at_a_neighbour_all_is_as_it_was(error):
    model, calls = make(), []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            model(X)
            raise error("stop")
        return closure_of(model)()

    optimizer = Average(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    state = state_of(model)
    with pytest.raises(error, match="stop"):
        optimizer.step(closure)
    assert_same(model, state)
    assert optimizer.steps == 0 and not optimizer.base.state


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_no_number_changes_nothing(bad):
    model = make()
    optimizer = Average(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    optimizer.step(closure_of(model))
    state, base = state_of(model), copy.deepcopy(optimizer.base.state_dict())
    inputs = X.clone()
    inputs[2, 1] = bad
    with pytest.raises(
        FloatingPointError, match="Average: the loss at the parameters is nan"
    ):
        optimizer.step(closure_of(model, inputs))
    assert_same(model, state)
    for name, old in base["state"].items():
        new = optimizer.base.state_dict()["state"][name]
        assert torch.equal(new["momentum_buffer"], old["momentum_buffer"])


def test_a_gradient_that_is_no_number_names_its_parameter():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[1].weight.zero_()

    def closure():
        model.zero_grad()
        loss = model[1].weight.square().sum().sqrt() + model(X).mean()  # slope 0/0
        loss.backward()
        return loss

    optimizer = Average(model, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(
        FloatingPointError, match="gradient of '1.weight' at the parameters"
    ):
        optimizer.step(closure)


def test_a_wrapper_makes_the_step_of_the_optimizer_inside():
    model = make()[:2].double()
    x = X.double()
    base = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    optimizer, twin = Average(model, base), copy.deepcopy(model)
    plain = torch.optim.Adam(twin.parameters(), lr=0.1, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for step in range(3):
        gradients = []
        for shift in (0.0, 0.1):
            shifted = copy.deepcopy(twin)
            with torch.no_grad():
                for p in shifted.parameters():
                    p.add_(shift)
            loss = shifted(x).square().mean()
            gradients.append(torch.autograd.grad(loss, list(shifted.parameters())))
        for p, a, b in zip(twin.parameters(), *gradients):
            p.grad = (a + b) / 2
        plain.param_groups[0]["lr"] = 0.1 * 0.5**step
        plain.step()
        optimizer.step(closure_of(model, x))
        schedule.step()
    for p, q in zip(model.parameters(), twin.parameters()):
        assert torch.allclose(p, q, rtol=1e-12, atol=1e-14)
    assert optimizer.steps == 3 and base.param_groups[0]["lr"] == 0.0125
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state


def test_bad_input_is_refused():
    model = make()
    base = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(TypeError, match="Average: base must be an optimizer"):
        Average(model, torch.optim.SGD)
    layout = qn.ParameterLayout({"0.weight": (16, 3)})
    with pytest.raises(ValueError, match=r"base moves a parameter of shape \(16,\)"):
        Average(model, base, layout)
    with pytest.raises(
        ValueError, match="Average: the layout is of another model.*'other'"
    ):
        Average(model, base, qn.ParameterLayout({"other": (2,)}))
    optimizer = Average(model, base)
    with pytest.raises(TypeError, match="needs a closure"):
        optimizer.step(None)
    with pytest.raises(TypeError, match="returned no loss; end it with 'return loss'"):
        optimizer.step(lambda: None)
    with pytest.raises(TypeError, match=r"must return a scalar loss, got \(8, 1\)"):
        optimizer.step(lambda: model(X))
    with pytest.raises(TypeError, match="must return a scalar loss, got str"):
        optimizer.step(lambda: "loss")
    with pytest.raises(ValueError, match="no gradient; call loss.backward"):
        optimizer.step(lambda: model(X).mean())


def test_a_closure_that_does_not_zero_gradients_is_none_the_worse():
    model = make()[:2]
    found = []
    for zero in (True, False):
        with Neighbours(model, qn.ParameterLayout.from_module(model), "test") as near:

            def closure():
                if zero:
                    model.zero_grad()
                loss = model(X).square().mean()
                loss.backward()
                return loss

            near.here(closure)
            found.append(near.at(near.w + 0.1, closure)[1])
    assert torch.equal(*found) and found[0].any()


def test_excursions_may_go_on_drawing():
    model = make()
    torch.manual_seed(2)
    own = [float(closure_of(model)().detach()) for _ in range(4)]
    end = torch.get_rng_state()
    model, layout = make(), qn.ParameterLayout.from_module(make())
    torch.manual_seed(2)
    with Neighbours(model, layout, "test") as near:
        found = [near.here(closure_of(model))[0]]
        for replay in (False, True, False, False):
            loss, _ = near.at(near.w, closure_of(model), replay=replay)
            if not replay:
                found.append(loss)
            else:
                assert loss == found[0]
    assert [float(loss) for loss in found] == own and len(set(own)) == 4
    assert torch.equal(torch.get_rng_state(), end)
    assert int(model[1].num_batches_tracked) == 1


def test_schedules_of_momentum_and_new_groups_are_those_of_the_optimizer_inside():
    model = make()
    base = torch.optim.SGD(model[0].parameters(), 0.1, momentum=0.9)
    optimizer = Average(model, base)
    optimizer.add_param_group({"params": list(model[3].parameters()), "lr": 0.5})
    assert [g["lr"] for g in base.param_groups] == [0.1, 0.5]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=5)
    optimizer.step(closure_of(model))
    schedule.step()
    assert base.param_groups[1]["momentum"] != 0.9


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle])
def test_a_copy_goes_on_with_a_copy_of_the_module(copied):
    model = make()
    optimizer = Average(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    optimizer.step(closure_of(model))
    twin, other = copied((model, optimizer))
    for each, module in ((optimizer, model), (other, twin)):
        torch.manual_seed(3)
        each.step(closure_of(module))
    for p, q in zip(model.parameters(), twin.parameters()):
        assert torch.equal(p, q) and p is not q
    assert other.steps == 2 and other.state is other.base.state


def test_a_step_of_the_optimizer_inside_that_fails_is_undone():
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            raise RuntimeError("half way")

    model = make()
    optimizer = Average(model, Failing(model.parameters(), 0.1))
    state = state_of(model)
    with pytest.raises(RuntimeError, match="half way"):
        optimizer.step(closure_of(model))
    assert_same(model, state)
    assert optimizer.steps == 0


def test_a_bound_point_inside_must_be_that_of_the_module():
    bound = []
    for model in (make()[3:], make()[3:]):
        layout = qn.ParameterLayout.from_module(model)
        group = qn.ScalingGroup.from_units(
            layout, [qn.Unit("all", 1, (qn.Scale("3.weight", None),))]
        )
        w = qn.training.bind(model, qn.LogPolarQuotient(group))
        bound.append((model, torch.optim.SGD([w], lr=0.1)))
    (model, base), (_, other) = bound
    assert Average(model, base).base is base
    with pytest.raises(ValueError, match="not among the module's in the layout"):
        Average(model, other)


def test_an_optimizer_that_computes_gradients_itself_is_refused():
    model = make()
    with pytest.raises(TypeError, match="LBFGS needs a closure to compute them itself"):
        Average(model, torch.optim.LBFGS(model.parameters()))


def test_sam_around_a_riemannian_optimizer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    x = X.double()
    w = qn.training.bind(model, qn.NodeWiseQuotient(qn.discover(model, x)))
    refusing = qn.training.SAM(model, qn.training.RiemannianSGD([w], lr=0.01), rho=0.5)
    before = w.detach().clone()
    with pytest.raises(ValueError, match="as inside SAM, pass check_invariance=False"):
        refusing.step(closure_of(model, x))
    assert torch.equal(w, before)
    base = qn.training.RiemannianSGD([w], lr=0.01, check_invariance=False)
    optimizer = qn.training.SAM(model, base, rho=0.05)
    losses = [float(optimizer.step(closure_of(model, x))) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_a_module_can_be_converted_and_discovered_after_a_step():
    model = make()
    Average(model, torch.optim.SGD(model.parameters(), 0.1)).step(closure_of(model))
    model.double()
    assert all(p.grad.dtype == torch.float64 for p in model.parameters())
    assert qn.discover(model, X.double()).group.dimension > 0
