"""What is remembered of earlier points saves time and changes no result."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from cases import NETWORKS

import quotientnet as qn
from quotientnet.exponent_matrix import ExponentMatrix, exponent_matrix
from quotientnet.exponential import minimise_exponentials
from quotientnet.exponents import compact_group, compact_sums
from quotientnet.symmetry import balancing

SEVERAL = ["mlp", "residual", "resnet, normalised", "powers", "deep tied autoencoder"]


def prepared(name):
    """The group of a network, and a badly scaled point."""
    if name in NETWORKS:
        model, (x, _) = NETWORKS[name].build(), NETWORKS[name].data()
    else:
        model, x = ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()
    group = qn.discover(model, x).group
    w = group.layout.flatten(model)
    return group, group.act(w, group.random(generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("name", SEVERAL)
def test_a_start_changes_rounding_only(name):
    group, w = prepared(name)
    cold = balancing(w, group, runaways="exclude")
    for spread in (1e-6, 0.1, 3.0):
        away = group.random(spread=spread, generator=torch.Generator().manual_seed(6))
        warm = balancing(w, group, runaways="exclude", start=cold.t + away)
        moved = group.exponents(warm.t), group.exponents(cold.t)
        torch.testing.assert_close(*moved, rtol=0, atol=1e-11)
        assert warm.excluded == cold.excluded
    near = balancing(w, group, runaways="exclude", start=cold.t)
    assert near.iterations < cold.iterations


def test_a_start_out_of_range_is_left():
    group, w = prepared("mlp")
    squares, start = w.square(), torch.full((group.dimension,), 1e4)
    start[::2] *= -1
    expected = minimise_exponentials(group, squares)
    found = minimise_exponentials(group, squares, start=start.double())
    assert found.value == pytest.approx(expected.value, rel=1e-12)


def test_a_start_with_generators_that_move_nothing():
    group, w = prepared("mlp")
    view = group.layout.unflatten(w)
    view["0.weight"][1], view["0.bias"][1], view["2.weight"][:, 1] = 0, 0, 0
    expected = balancing(w, group)
    found = balancing(w, group, start=expected.t + 0.1)
    assert balancing(w, group, start=expected.t).iterations < expected.iterations
    moved = (
        group.act(w, found.t),
        group.act(w, expected.t),
    )
    torch.testing.assert_close(*moved, rtol=1e-11, atol=0)


def test_what_is_known_of_one_support_is_not_used_for_another():
    group, w = prepared("mlp")
    assert not balancing(w, group, runaways="exclude").excluded
    dead = w.clone()
    view = group.layout.unflatten(dead)
    view["0.weight"][1], view["0.bias"][1] = 0, 0
    for _ in range(2):
        assert len(balancing(dead, group, runaways="exclude").excluded) == 1
        assert not balancing(w, group, runaways="exclude").excluded
        # With a level for what goes out of it, the dead unit has a balance.
        levels = torch.zeros(group.dimension).double()
        levels[1] = -1.0
        assert balancing(dead, group, levels=levels).balanced.all()
        # Six supports more, so that the oldest are forgotten.
        for j in range(6):
            other = w.clone()
            other[j] = 0
            assert not balancing(other, group, runaways="exclude").excluded


@pytest.mark.parametrize("name", ["mlp", "resnet, normalised"])
def test_frames_do_not_depend_on_what_was_asked_before(name):
    group, w = prepared(name)
    manifold, fresh = qn.BalancedQuotient(group), qn.BalancedQuotient(group)
    dice = torch.Generator().manual_seed(7)
    u = manifold.proju(w, torch.randn(w.shape, generator=dice, dtype=w.dtype))
    u = 0.1 * u / manifold.norm(w, u)
    y = manifold.retr(w, u)
    for point in (w + u, y, w):
        assert torch.equal(manifold.frame(point), fresh.frame(point))
    assert torch.equal(qn.BalancedQuotient(group).retr(w, u), y)
    # The retraction keeps the frame, and batches are what rows are.
    torch.testing.assert_close(manifold.frame(y), manifold.frame(w), rtol=1e-11, atol=0)
    rows = manifold.retr(w, torch.stack([u, -u]))
    assert torch.equal(rows[0], y)


def test_running_statistics_move_without_a_new_balance():
    group, w = prepared("resnet, normalised")
    manifold, later = qn.BalancedQuotient(group), w.clone()
    later[group.layout.parameter_size :] += 1.0
    first = manifold._place(w)
    assert manifold._place(later) is first
    assert torch.equal(manifold.proju(later, w), manifold.proju(w, w))
    later[-1] = float("nan")
    with pytest.raises(qn.NotOnManifoldError, match="NaN or infinite"):
        manifold.frame(later)
    later[-1], later[0] = 1.0, 2 * later[0]
    assert manifold._place(later) is not first


@pytest.mark.parametrize("name", SEVERAL)
def test_gram_matrices_of_a_group_written_down(name):
    group, w = prepared(name)
    weight = w.square()
    weight[group.layout.parameter_size :] = 0
    a = group.to_dense()
    expected = a.T @ np.diag(weight.numpy()) @ a
    matrix = exponent_matrix(group)
    assert exponent_matrix(group) is matrix
    np.testing.assert_allclose(
        matrix.gram(weight.numpy()), expected, rtol=1e-12, atol=1e-13
    )
    small = exponent_matrix(compact_group(group))
    sums = compact_sums(group, weight).numpy()
    np.testing.assert_allclose(small.gram(sums), expected, rtol=1e-12, atol=1e-13)


def test_gram_matrices_with_many_and_with_few_exponents_a_row():
    generator = np.random.default_rng(0)
    for density in (1.0, 0.02):
        a = generator.integers(-2, 3, (50, 30)) * (generator.random((50, 30)) < density)
        weight = generator.random(50)
        matrix = ExponentMatrix(a.astype(float))
        assert (matrix._pairs is None) == (density == 1.0)
        expected = a.T @ np.diag(weight) @ a
        np.testing.assert_allclose(
            matrix.gram(weight), expected, rtol=1e-12, atol=1e-13
        )
