"""Traces on quotients against dense operators, and the parts of measures by tensor."""

import pytest
import torch
from cases import CASES, NETWORKS

import quotientnet as qn
from quotientnet.sharpness import riemannian_trace, spectral_norm, trace

NAMES = ["mlp", "mlp-without-bias", "one-unit", "conv", "conv1d"]
KINDS = ["layer-scale", "node-wise", "filters", "balanced"]


def point_of(network):
    found = NETWORKS[network].objective()
    return found.at(found.layout.flatten(found.model))


@pytest.mark.parametrize("connection", ["levi-civita", "flat"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NAMES)
def test_the_exact_trace_is_that_of_the_dense_operator(network, kind, connection):
    manifold, point = CASES[f"{kind}-{network}"].build(), point_of(network)
    dense = manifold.riemannian_hessian(point, connection).to_dense()
    found = riemannian_trace(point, manifold, connection=connection)
    scale = float(dense.diagonal().abs().sum())
    assert found.value == pytest.approx(float(dense.trace()), abs=1e-11 * scale)
    assert set(found.layers) == {e.name for e in point.layout.entries if not e.passive}


@pytest.mark.parametrize("kind", ["filters", "node-wise", "balanced"])
def test_batch_normalisation_has_an_exact_trace(kind):
    manifold, point = CASES[f"{kind}-batch-norm"].build(), point_of("batch-norm")
    found = riemannian_trace(point, manifold)
    estimate = riemannian_trace(point, manifold, method="hutchinson", samples=60)
    assert abs(found.value - estimate.value) < 4 * estimate.error


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_at_equivalent_points_and_its_parts_are(kind):
    network = NETWORKS["mlp"].objective()
    manifold = CASES[f"{kind}-mlp"].build()
    w = network.layout.flatten(network.model)
    t = manifold.group.random(spread=1.0, generator=torch.Generator().manual_seed(2))
    found = [
        riemannian_trace(network.at(x), manifold) for x in (w, manifold.group.act(w, t))
    ]
    assert found[1].value == pytest.approx(found[0].value, rel=1e-9)
    for name in found[0].layers:
        assert found[1].layers[name].value == pytest.approx(
            found[0].layers[name].value, rel=1e-9
        )


def test_parts_add_up_where_orbits_have_no_part():
    point = point_of("conv")
    found = riemannian_trace(point, CASES["layer-scale-conv"].build())
    parts = sum(part.value for part in found.layers.values())
    assert parts == pytest.approx(found.value, rel=1e-12)


def test_traces_and_norms_of_tensors_are_those_of_their_blocks():
    point = point_of("mlp")
    dense = point.hessian.to_dense()
    whole, norms = trace(point, samples=300), spectral_norm(
        point, layers=True, tolerance=1e-8
    )
    for name in whole.layers:
        block = dense[point.layout[name].slice, point.layout[name].slice]
        part = whole.layers[name]
        assert abs(part.value - float(block.trace())) <= 4.5 * part.error + 1e-12
        values = torch.linalg.eigvalsh(block)
        largest = values[values.abs().argmax()]
        assert norms.layers[name].value == pytest.approx(float(largest), rel=1e-6)
    assert abs(whole.value - float(dense.trace())) < 4 * whole.error
    assert sum(p.value for p in whole.layers.values()) == pytest.approx(
        whole.value, rel=1e-12
    )


def test_bad_input_is_refused():
    point, case = point_of("mlp"), CASES["frame-only"].build()
    with pytest.raises(
        NotImplementedError, match="FourNormQuotient; use method='hutchinson'"
    ):
        riemannian_trace(point, case)
    assert riemannian_trace(point, case, method="hutchinson", samples=5).cost == 5
    with pytest.raises(ValueError, match="method must be 'exact' or 'hutchinson'"):
        riemannian_trace(point, CASES["node-wise-mlp"].build(), method="lucky")
    with pytest.raises(TypeError, match="manifold must be a QuotientManifold"):
        riemannian_trace(point, qn.ScalingGroup)
    with pytest.raises(ValueError, match="needs 2 samples and blocks of 1"):
        trace(point, samples=1)
