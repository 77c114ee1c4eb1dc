"""What went wrong silently once: scales that overflow, local metrics, claims, errors, loops."""

import geoopt
import numpy as np
import pytest
import torch
from torch import nn

import quotientnet as qn
from quotientnet.curvature import ggn_traces_estimate
from quotientnet.losses import NormalisedCrossEntropy
from quotientnet.optimization import frechet_mean
from quotientnet.sharpness import (
    ball_sharpness,
    bn_sharpness,
    box_sharpness,
    matrix_normalised_sharpness,
    normalised_sharpness,
    pac_bayes_terms,
    relative_flatness,
    riemannian_trace,
    second_order_sharpness,
    spectral_norm,
    trace,
    volume_flatness,
)
from quotientnet.symmetry.normalised import normalised_blocks

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("power", [-30, -12, 0, 3, 30, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_normalised_loss_sees_no_scale_however_large(dtype, power):
    logits = torch.tensor([[1.0, 3.0, -2.0, 0.5]], dtype=dtype) * 2.0**power
    if not torch.isfinite(logits).all() or logits.abs().min() < torch.finfo(dtype).tiny:
        pytest.skip("out of the dtype's range")
    value = NormalisedCrossEntropy()(logits, torch.tensor([1]))
    assert value.dtype == dtype
    z = np.array([1.0, 3.0, -2.0, 0.5])
    z = z / z.std()
    exact = np.log(np.exp(z).sum()) - z[1]
    assert float(value) == pytest.approx(exact, abs=4 * torch.finfo(dtype).eps)


def test_the_normalised_loss_has_its_derivatives_at_any_scale():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    loss, targets = NormalisedCrossEntropy(), torch.tensor([0, 3, 2])
    for scale in (1.0, 1e-100, 1e160):
        x = (scale * logits).requires_grad_()
        (slope,) = torch.autograd.grad(loss(x, targets), x)
        h = 1e-6 * scale
        for i, j in ((0, 1), (2, 2)):
            step = torch.zeros_like(logits)
            step[i, j] = h
            rise = loss(x.detach() + step, targets) - loss(x.detach() - step, targets)
            assert float(slope[i, j] * scale) == pytest.approx(
                float(rise) / 2e-6, rel=1e-6
            )


def test_samples_that_do_not_count_may_have_constant_logits():
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 3.0, -2.0]]).double().requires_grad_()
    loss = NormalisedCrossEntropy()
    value = loss(logits, torch.tensor([-100, 1]))
    assert torch.equal(value, loss(logits[1:], torch.tensor([1])))
    (slope,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(slope).all() and not slope[0].any()
    with pytest.raises(
        ValueError, match="1 of 2 samples have one logit for all classes"
    ):
        loss(logits, torch.tensor([0, 1]))


@pytest.mark.parametrize("method", ["power", "conjugate-gradient"])
def test_bn_sharpness_climbs_alike_at_all_scales_of_the_filters(method):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(4, 5, bias=False),
        nn.BatchNorm1d(5, eps=1e-30),
        nn.Tanh(),
        nn.Linear(5, 3),
    ).double()
    data = torch.randn(16, 4).double(), torch.randint(0, 3, (16,))
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    symmetry = qn.discover(model, data[0], layout=objective.layout)
    w, t = (
        objective.layout.flatten(model),
        torch.zeros(symmetry.group.dimension).double(),
    )
    own = torch.as_tensor(normalised_blocks(symmetry.group).generators)
    found = []
    for scale in (0.0, -7.0, 14.0):
        t[own] = scale
        point = objective.at(symmetry.group.act(w, t))
        found.append(bn_sharpness(point, symmetry, 2.0, 0.5, restarts=1, method=method))
    for other in found[1:]:
        assert other.value == pytest.approx(found[0].value, rel=1e-6)
        assert other.converged == found[0].converged
    assert found[0].value > 1.001 * found[0].values[0] or found[0].converged


class Einsum(nn.Module):
    """A weight of three axes whose units run along the third."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, 4))
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.relu((x[:, :, :, None] * self.weight).sum((1, 2))))


def test_normalised_sharpness_claims_no_scales_along_a_third_axis():
    torch.manual_seed(2)
    model = Einsum().double()
    data = torch.randn(8, 3, 2).double(), torch.randint(0, 3, (8,))
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    point = objective.at(objective.layout.flatten(model))
    assert normalised_sharpness(point).invariant_to == ("layer scales", "output shift")
    dense = nn.Linear(3, 3).double()
    other = qn.Objective(dense, nn.CrossEntropyLoss(), (data[0][:, :, 0], data[1]))
    claims = normalised_sharpness(other.at(other.layout.flatten(dense))).invariant_to
    assert "unit scales" in claims


def classifier(seed=3):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    data = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    return objective.at(objective.layout.flatten(model)), qn.discover(model, data[0])


def test_bounds_carry_the_errors_of_the_traces():
    point, _ = classifier()
    traces = ggn_traces_estimate(point, draws=4)
    found = pac_bayes_terms(point, samples=20, lambda_=4.0, curvature=traces)
    matrices = matrix_normalised_sharpness(point, curvature=traces)
    # The noise and the divergence over λ are each half the sum over √λ.
    assert (
        found.error == pytest.approx(matrices.error / 2, rel=1e-12) and found.error > 0
    )
    one = ggn_traces_estimate(point, draws=1)
    assert not pac_bayes_terms(point, samples=20, curvature=one).converged


def test_rows_of_a_transposed_convolution_make_its_outputs():
    torch.manual_seed(4)
    transposed = nn.ConvTranspose1d(2, 3, 2, bias=False).double()
    x, y = torch.randn(5, 2, 4).double(), torch.randn(5, 3, 5).double()
    objective = qn.Objective(transposed, nn.MSELoss(), (x, y))
    point = objective.at(objective.layout.flatten(transposed))
    dense = point.hessian.to_dense().reshape(2, 3, 2, 2, 3, 2)
    weight = transposed.weight.detach()
    inner = torch.einsum("isk,itk->st", weight, weight)
    traces = torch.einsum("iskitk->st", dense)
    found = relative_flatness(point, "weight").value
    assert found == pytest.approx(float((inner * traces).sum()), rel=1e-10)
    grouped = nn.ConvTranspose1d(2, 4, 2, groups=2, bias=False).double()
    objective = qn.Objective(grouped, nn.MSELoss(), (x, torch.randn(5, 4, 5).double()))
    with pytest.raises(ValueError, match="transposed convolution of 2 groups"):
        relative_flatness(objective.at(objective.layout.flatten(grouped)), "weight")


def test_tables_of_embeddings_are_not_the_last_layer():
    model = nn.Sequential(nn.Linear(2, 3), nn.Flatten()).double()
    model.add_module("table", nn.Embedding(4, 3).double())
    model.forward = lambda x: model[0](x) + model.table.weight.sum(0)
    data = torch.randn(5, 2).double(), torch.randint(0, 3, (5,))
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    point = objective.at(objective.layout.flatten(model))
    assert relative_flatness(point).value == relative_flatness(point, "0.weight").value


def test_volumes_that_nothing_bounds_are_refused():
    point, symmetry = classifier()
    flat = qn.Objective(
        point.objective.model,
        lambda out, y: torch.sigmoid(out).mean(),
        point.objective.data,
    )
    with pytest.raises(ValueError, match="volume_flatness: no rise of epsilon=2"):
        volume_flatness(flat.at(point.w), symmetry, 2.0, restarts=0)
    with pytest.raises(ValueError, match="no nonzero parameter grows"):
        volume_flatness(point.objective.at(0 * point.w), symmetry, 0.1)
    with pytest.raises(ValueError, match="boxes must be an integer of at least 1"):
        volume_flatness(point, symmetry, 0.1, boxes=0)


def test_an_exact_trace_states_what_eps_leaves():
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Linear(4, 5, bias=False),
        nn.BatchNorm1d(5, eps=1e-2),
        nn.ReLU(),
        nn.Linear(5, 3),
    ).double()
    data = torch.randn(16, 4).double(), torch.randint(0, 3, (16,))
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    point = objective.at(objective.layout.flatten(model))
    manifold = qn.NodeWiseQuotient(
        qn.discover(model, data[0], layout=objective.layout), frozen_zeros=point.w
    )
    found = riemannian_trace(point, manifold)
    dense = float(manifold.riemannian_hessian(point).to_dense().trace())
    assert 0 < abs(found.value - dense) < 10 * found.error < 0.1 * abs(dense)
    point, symmetry = classifier()
    assert riemannian_trace(point, qn.NodeWiseQuotient(symmetry)).error == 0.0


def test_means_of_antipodal_points_are_refused():
    north = torch.ones(3).double() / 3**0.5
    east = torch.tensor([1.0, -1.0, 0.0]).double() / 2**0.5
    sphere = geoopt.Sphere()
    with pytest.raises(ValueError, match="no shortest geodesic to point 1"):
        frechet_mean(sphere, torch.stack([north, -north]))
    found = frechet_mean(sphere, torch.stack([north, east]))
    assert torch.allclose(found.point, (north + east) / 2**0.5, atol=1e-7)
    with pytest.raises(
        qn.NotOnManifoldError, match="points are not all on the manifold"
    ):
        frechet_mean(sphere, torch.stack([north, 2 * east]), start=north)
    with pytest.raises(TypeError, match="points must be a torch.Tensor, got list"):
        frechet_mean(sphere, [north, east])
    with pytest.raises(TypeError, match="weights must be a torch.Tensor, got list"):
        frechet_mean(sphere, torch.stack([north, east]), [0.5, 0.5])


def test_ends_of_all_ascents_are_told():
    point, _ = classifier()
    found = ball_sharpness(point, 3.0, restarts=6)
    assert len(found.values) == 7
    assert max(found.values) == pytest.approx(found.value, rel=1e-12)


@pytest.mark.parametrize(
    "measure", [spectral_norm, trace, ball_sharpness, box_sharpness]
)
def test_what_is_no_point_is_refused(measure):
    point, _ = classifier()
    extra = (0.1,) if measure in (ball_sharpness, box_sharpness) else ()
    for wrong in (point.w, point.objective):
        with pytest.raises(
            TypeError, match=f"{measure.__name__}: point must be a Point.*at"
        ):
            measure(wrong, *extra)


def test_arguments_of_another_type_are_refused_by_name():
    point, symmetry = classifier()
    with pytest.raises(
        TypeError, match="ball_sharpness: epsilon must be a number, got str"
    ):
        ball_sharpness(point, "0.1")
    with pytest.raises(
        TypeError, match="bn_sharpness: p must be a number, got NoneType"
    ):
        bn_sharpness(point, symmetry, None)
    with pytest.raises(ValueError, match="ball_sharpness: restarts must be 0, 1, 2"):
        ball_sharpness(point, 0.1, restarts=-1)
    with pytest.raises(
        TypeError, match="subspace must be a number of columns or a tensor"
    ):
        box_sharpness(point, 0.1, [1.0])
    assert isinstance(second_order_sharpness(point, torch.tensor(0.05)).value, float)
    with pytest.raises(
        TypeError, match=r"loss is the class CrossEntropyLoss; pass Cross.*\(\)"
    ):
        qn.Objective(point.objective.model, nn.CrossEntropyLoss, point.objective.data)


def test_what_one_measure_finds_is_what_the_next_would_find():
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)).double()
    data = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    w = objective.layout.flatten(model)
    point, kinds = objective.at(w), ["hessian", "gauss-newton", "hessian"]
    together = [
        (normalised_sharpness(point, curvature=k).value,
         matrix_normalised_sharpness(point, curvature=k).value)
        for k in kinds
    ]  # fmt: skip
    apart = [
        (normalised_sharpness(objective.at(w), curvature=k).value,
         matrix_normalised_sharpness(objective.at(w), curvature=k).value)
        for k in kinds
    ]  # fmt: skip
    assert together == apart and together[0] != together[1]
