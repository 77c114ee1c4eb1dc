"""Where training on a quotient would go wrong without a word."""

import copy

import pytest
import torch
from test_riemannian_optimizers import MANIFOLDS, gradient, task
from torch import nn

import quotientnet as qn
from quotientnet.testing import check_equivariant_training
from quotientnet.training import RiemannianAdam, RiemannianSGD, bind


def test_the_law_cannot_be_kept_by_standing_still_or_by_tiny_steps():
    model, symmetry, batches, loss = task("mlp")

    def law(make, group=symmetry, batches=batches, **options):
        return check_equivariant_training(make, model, group, batches, loss, **options)

    def tiny(module):
        return torch.optim.SGD(module.parameters(), lr=1e-10, momentum=0.9)

    assert law(tiny).violation > 0.1
    still = law(lambda module: torch.optim.SGD(module.parameters(), lr=0.0))
    assert still.violation == float("inf") and not still.holds
    none = symmetry.group.without([True] * symmetry.group.dimension)
    for options in ({"group": none}, {"points": 0}, {"batches": batches[:1]}):
        with pytest.raises(ValueError, match="it could not fail"):
            law(tiny, **options)


@pytest.mark.parametrize("quotient", [qn.NodeWiseQuotient, qn.BalancedQuotient])
def test_adam_does_not_divide_what_is_rounding_by_its_own_size(quotient):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8, eps=1e-10), nn.ReLU(), nn.Linear(8, 2)
    )  # the first bias has no effect
    model = model.double()
    nn.init.normal_(model[1].bias, 0, 0.1)
    x = torch.randn(32, 3).double()
    symmetry, batches = qn.discover(model, x), [(x, x[:, :2].sin())] * 30

    def law(**options):
        def make(module):
            return RiemannianAdam([bind(module, quotient(symmetry))], **options)

        return check_equivariant_training(make, model, symmetry, batches, nn.MSELoss())

    assert law(lr=0.02).violation < 2e-6  # 6e-4 without


def test_what_is_not_the_gradient_of_the_loss_is_refused_in_every_mode():
    model, symmetry, batches, _ = task("batch-norm")
    model = copy.deepcopy(model)
    w = bind(model, MANIFOLDS["node-wise"](symmetry))
    optimizer = RiemannianSGD([w], lr=1e-3)
    gradient(model, batches[0])
    optimizer.step()
    model.eval()  # running statistics hold the filters' scales
    gradient(model, batches[1])
    before = w.detach().clone()
    with pytest.raises(ValueError, match="not invariant.*check_invariance=False"):
        optimizer.step()
    assert torch.equal(w, before)
    RiemannianSGD([w], lr=1e-3, check_invariance=False).step()
    assert not torch.equal(w, before)


def bound_mlp(quotient=qn.NodeWiseQuotient):
    model, symmetry, batches, _ = task("mlp")
    model = copy.deepcopy(model)
    return model, bind(model, quotient(symmetry)), batches


@pytest.mark.parametrize("method", [RiemannianSGD, RiemannianAdam])
def test_views_of_a_bound_point_are_refused_in_its_place(method):
    model, w, batches = bound_mlp()
    with pytest.raises(ValueError, match="view of a bound point.*pass the vector"):
        method(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="view of a bound point"):
        method([{"params": [w]}, {"params": model.parameters()}], lr=0.1)
    gradient(model, batches[0])
    with pytest.raises(ValueError, match="clip_grad_norm_: got a parameter.*view of a"):
        qn.training.clip_grad_norm_(model.parameters(), 1.0)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # no longer views
    method(model.parameters(), lr=0.1)
    assert qn.training.clip_grad_norm_(model.parameters(), 1.0) > 0
    method(copy.deepcopy(model).parameters(), lr=0.1)


@pytest.mark.parametrize("quotient", [qn.NodeWiseQuotient, qn.BalancedQuotient])
def test_a_step_that_overflows_says_so_and_train_goes_back(quotient):
    model, w, batches = bound_mlp(quotient)
    before = w.detach().clone()
    optimizer = RiemannianSGD([w], lr=1e308)
    gradient(model, batches[0])
    w.grad.mul_(1e3)
    with pytest.raises(FloatingPointError, match="step overflows; lower the learning"):
        optimizer.step()
    assert torch.equal(w, before)
    with pytest.raises(
        qn.training.NotFiniteError, match="step [01].*lower the learning rate"
    ):
        qn.training.train(model, optimizer, nn.CrossEntropyLoss(), batches, epochs=1)
    assert torch.equal(w, before)


def test_zeros_are_refused_with_remedies_that_work():
    model, symmetry, batches, _ = task("mlp")
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "bias" in n).zero_()
    with pytest.raises(qn.NotOnManifoldError, match="layout.flatten.*BalancedQuotient"):
        bind(model, qn.NodeWiseQuotient(symmetry))
    w = symmetry.group.layout.flatten(model)
    assert bind(model, qn.NodeWiseQuotient(symmetry, frozen_zeros=w)).shape == w.shape
    assert bind(model, qn.BalancedQuotient(symmetry)).shape == w.shape


def test_closures_without_a_gradient_and_options_of_another_kind_are_refused():
    model, w, batches = bound_mlp()
    with pytest.raises(ValueError, match="no gradient; call loss.backward"):
        RiemannianSGD([w], lr=0.1).step(lambda: model(batches[0][0]).sum())
    with pytest.raises(TypeError, match="lr must be a number, got '1e-3'"):
        RiemannianAdam([w], lr="1e-3")
    with pytest.raises(TypeError, match="max_norm must be a number"):
        qn.training.clip_grad_norm_(w, "1")
    options = {"loss": nn.CrossEntropyLoss(), "batches": batches, "epochs": 1}
    with pytest.raises(TypeError, match="optimizer must be one"):
        qn.training.train(model, torch.optim.SGD, **options)
    optimizer = RiemannianSGD([w], lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    for scheduler in (plateau, "cosine"):
        with pytest.raises(TypeError, match="scheduler must be one that is stepped"):
            qn.training.train(model, optimizer, scheduler=scheduler, **options)
    with pytest.raises(TypeError, match=r"a tuple of 3; one batch alone is \[\(inputs"):
        options["batches"] = [(*batches[0], 1)]
        qn.training.train(model, optimizer, **options)


def test_first_moments_of_entries_keep_their_frame_coordinates():
    model, symmetry, batches, _ = task("mlp")
    model, manifold = copy.deepcopy(model), qn.LayerScaleQuotient(symmetry)
    w = bind(model, manifold)
    optimizer = RiemannianAdam([w], lr=0.1, moments="entries")
    gradient(model, batches[0])
    x = w.detach().clone()
    g = manifold.egrad2rgrad(x, w.grad)
    optimizer.step()
    assert not torch.allclose(manifold.frame(w.detach()), manifold.frame(x), rtol=1e-3)
    torch.testing.assert_close(
        manifold.frame(w.detach()) * optimizer.state[w]["exp_avg"],
        0.1 * manifold.frame(x) * g,
        rtol=1e-10,
        atol=1e-14,
    )
