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
