"""Scaling groups against dense matrices written by hand."""

import copy
import pickle

import chains
import numpy as np
import pytest
import torch
from cases import NETWORKS
from scipy import sparse

import quotientnet as qn
from quotientnet import exact
from quotientnet.gram import Gram


def dense(group):
    """``A``, column by column."""
    return group.exponents(torch.eye(group.dimension, dtype=torch.float64)).T


def test_layer_scale_exponents_by_hand():
    layout = qn.ParameterLayout.from_module(NETWORKS["mlp"].build())
    group = chains.layer_scale_group(layout)
    by_tensor = torch.stack([dense(group)[entry.start] for entry in layout.entries])
    # W1, b1, W2, b2, W3, b3 with cumulated log-scales t1, t2 and t3 = 0.
    expected = torch.tensor([[1, 0], [1, 0], [-1, 1], [0, 1], [0, -1], [0, 0]]).double()
    assert torch.equal(by_tensor, expected)


def test_node_wise_exponents_by_hand():
    layout = qn.ParameterLayout(
        {"0.weight": (2, 1), "0.bias": (2,), "1.weight": (1, 4)}
    )
    group = chains.node_wise_group(layout)
    # The second weight reads each of the two units through two consecutive columns.
    rows = [[1, 0], [0, 1], [1, 0], [0, 1], [-1, 0], [-1, 0], [0, -1], [0, -1]]
    assert torch.equal(dense(group), torch.tensor(rows).double())
    assert group.names == ("unit 0 of 0", "unit 1 of 0")


def test_batch_normalisation_scales_running_statistics():
    layout = NETWORKS["batch-norm"].layout()
    group = chains.layer_scale_group(layout)
    t = torch.zeros(group.dimension).double()
    t[0] = 1.0
    scale = {
        name: float(x.reshape(-1)[0])
        for name, x in layout.unflatten(group.exponents(t)).items()
    }
    assert scale["0.weight"] == scale["0.bias"] == scale["1.running_mean"] == 1
    assert scale["1.running_var"] == 2 and scale["1.weight"] == scale["3.weight"] == 0


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("make", [chains.layer_scale_group, chains.node_wise_group])
@pytest.mark.parametrize("listed", [True, False])
def test_gram_and_adjoint_against_dense_matrices(name, make, listed, monkeypatch):
    if not listed:
        monkeypatch.setattr("quotientnet.group._LISTED", 0)
        monkeypatch.setattr("quotientnet.axis_sums._PIECE", 8)
    group = make(NETWORKS[name].layout())
    a = dense(group)
    rho = torch.randn(
        3, group.layout.size, generator=torch.Generator().manual_seed(0)
    ).double()
    torch.testing.assert_close(group.adjoint(rho), rho @ a)
    torch.testing.assert_close(group.adjoint(rho[0]), rho[0] @ a)
    generator = torch.Generator().manual_seed(1)
    weights = [
        None,
        torch.rand(group.layout.size, generator=generator, dtype=torch.float64),
    ]
    weights += [
        torch.rand(group.layout.size, generator=generator) > p
        for p in (0.05, 0.8, 0.95)
    ]
    for weight in weights:
        scale = torch.ones(len(a)).double() if weight is None else weight.double()
        gram = group.gram(weight)
        expected = a.T @ (scale[:, None] * a)
        np.testing.assert_allclose(gram.to_dense(), expected.numpy(), atol=1e-12)
        assert gram.rank == np.linalg.matrix_rank((scale.sqrt()[:, None] * a).numpy())
        if group.dimension == 0:
            continue
        b = rho @ (scale[:, None] * a)
        direct = gram.solve(b) @ a.T * scale.sqrt()
        by_iteration = (
            gram.conjugate_gradients(b.numpy().T.copy()).T
            @ a.numpy().T
            * scale.sqrt().numpy()
        )
        reference = (scale.sqrt()[:, None] * a) @ torch.linalg.lstsq(
            (scale.sqrt()[:, None] * a), (rho * scale.sqrt()).T, driver="gelsd"
        ).solution
        torch.testing.assert_close(direct, reference.T, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            by_iteration, reference.T.numpy(), rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("small", [1e-8, 1e-12, 1e-15])
def test_solve_with_weights_of_very_different_size(small):
    names = {"0.weight": (3, 2), "1.weight": (3, 3), "2.weight": (2, 3)}
    group = chains.node_wise_group(qn.ParameterLayout(names))
    weight = torch.ones(group.layout.size).double()
    weight[:15] = small  # the first units hold by small weights alone
    exact = torch.arange(1.0, group.dimension + 1).double()
    a = dense(group)
    x = group.gram(weight).solve(a.T @ (weight * (a @ exact)))
    # Rounding in the equilibrated matrix returns to the small block divided by √small.
    bound = 100 * torch.finfo(torch.float64).eps / small**0.5
    torch.testing.assert_close(a @ x, a @ exact, rtol=bound, atol=bound)


def wide_chain(width=300, depth=5, zeros=0):
    layout = qn.ParameterLayout({f"{i}.weight": (width, width) for i in range(depth)})
    group = chains.node_wise_group(layout)
    weight = torch.ones(layout.size, dtype=torch.bool)
    weight[
        torch.randperm(layout.size, generator=torch.Generator().manual_seed(0))[:zeros]
    ] = False
    return group, weight


@pytest.mark.parametrize("zeros", [0, 1, 500, 200_000, 448_000])
def test_iterative_solve_beyond_the_dense_limit(zeros):
    group, weight = wide_chain(zeros=zeros)
    assert group.dimension == 1200
    gram = Gram(group, weight)
    rho = (
        torch.randn(
            2, group.layout.size, generator=torch.Generator().manual_seed(2)
        ).double()
        * weight
    )
    b = group.adjoint(rho).requires_grad_()
    x = gram.solve(b)
    residual = group.adjoint(group.exponents(x) * weight) - b
    assert residual.norm() <= 1e-12 * b.norm()
    # A function of the solution that is linear: its gradient is the solution of another solve.
    c = group.adjoint(torch.ones(group.layout.size).double() * weight * rho[0])
    (gradient,) = torch.autograd.grad((x[0] * c).sum(), b)
    torch.testing.assert_close(
        group.exponents(gradient[0]) * weight, group.exponents(gram.solve(c)) * weight
    )


def test_a_right_hand_side_that_is_not_finite_is_refused():
    group, weight = wide_chain()
    with pytest.raises(RuntimeError, match="is the right-hand side finite"):
        Gram(group, weight).solve(torch.full((1200,), torch.nan))


def test_rank_is_exact_where_floating_point_is_not():
    big = 10**15
    assert exact.rank(sparse.csr_array(np.array([[big, 1], [big + 1, 1]]))) == 2
    assert exact.rank(sparse.csr_array(np.array([[2, 4], [3, 6], [0, 0]]))) == 1
    assert exact.rank(sparse.csr_array((3, 0), dtype=np.int64)) == 0


def test_groups_compare_copy_and_pickle_by_value():
    layout = NETWORKS["conv"].layout()
    a, b = chains.node_wise_group(layout), chains.node_wise_group(
        NETWORKS["conv"].layout()
    )
    a.exponents(a.random())  # fills its caches
    assert a == b and hash(a) == hash(b) and a != chains.layer_scale_group(layout)
    assert copy.deepcopy(a) == a and pickle.loads(pickle.dumps(a)) == a


def test_exponents_through_classes_with_coefficients():
    layout = qn.ParameterLayout({"w": (2, 2)})
    index = np.array([[0], [1]])
    group = qn.ScalingGroup(
        layout, {"w": [qn.Term(index, 3)]}, np.array([[1], [-2]]), ["twist"]
    )
    assert group.exponents(torch.tensor([1.0])).tolist() == [3, 3, -6, -6]
    assert group.act(
        torch.ones(4), torch.tensor([0.5])
    ).log().tolist() == pytest.approx([1.5, 1.5, -3, -3])


@pytest.mark.parametrize(
    "units, message",
    [
        (
            [qn.Unit("u", 2, (qn.Scale("other", 0),))],
            "scales 'other', which is not in the layout; it has w",
        ),
        (
            [qn.Unit("u", 3, (qn.Scale("w", 0),))],
            "axis 0 of 'w' has length 4, no multiple of the 3",
        ),
        ([qn.Unit("u", 2, (qn.Scale("w", 5),))], "'w' has no axis 5"),
        ([qn.Unit("u", 2, (qn.Scale("w", None),))], "needs an axis"),
        ([qn.Unit("u", 2, ())], "generator 'unit 0 of u' scales no parameter"),
    ],
)
def test_bad_units_are_refused(units, message):
    with pytest.raises(ValueError, match=message):
        qn.ScalingGroup.from_units(qn.ParameterLayout({"w": (4, 3)}), units)


def test_other_refusals():
    layout = qn.ParameterLayout({"w": (4, 3)})
    with pytest.raises(
        ValueError, match=r"shape \(2, 1\) does not fit 'w', which has shape \(4, 3\)"
    ):
        qn.ScalingGroup(layout, {"w": [qn.Term(np.array([[0], [1]]), 1)]})
    with pytest.raises(ValueError, match="refers to class 3, but classes has 1 rows"):
        qn.ScalingGroup(
            layout, {"w": [qn.Term(np.arange(4)[:, None], 1)]}, np.array([[1]])
        )
    with pytest.raises(ValueError, match="2 names for 4 generators"):
        qn.ScalingGroup(
            layout, {"w": [qn.Term(np.arange(4)[:, None], 1)]}, names=["a", "b"]
        )
    group = qn.ScalingGroup(layout, {"w": [qn.Term(np.arange(4)[:, None], 1)]})
    with pytest.raises(
        ValueError,
        match=r"last dimension of 4, one coordinate a generator; got shape \(3,\)",
    ):
        group.exponents(torch.ones(3))
    with pytest.raises(ValueError, match="last dimension of 12"):
        group.act(torch.ones(11), torch.ones(4))
    with pytest.raises(ValueError, match="exponent must be an integer, got 0.5"):
        qn.Scale("w", 0, 0.5)
    with pytest.raises(ValueError, match="classes must have integer entries"):
        qn.ScalingGroup(layout, {}, np.array([[1.5]]))
    with pytest.raises(ValueError, match="layer '1' has a one-dimensional weight"):
        chains.node_wise_group(
            qn.ParameterLayout(
                {"0.weight": (2, 2), "1.weight": (1,), "2.weight": (2, 2)}
            )
        )
    with pytest.raises(ValueError, match="'b.weight' is tied or used twice"):
        chains.node_wise_group(
            qn.ParameterLayout({"a.weight": (2, 2)}, None, {"b.weight": "a.weight"})
        )
    with pytest.raises(TypeError, match="use ParameterLayout.from_module"):
        chains.layer_scale_group(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="layer 'third' has no weight"):
        chains.layer_scale_group(
            qn.ParameterLayout({"a.weight": (2, 2)}), ["a", "third"]
        )
    with pytest.raises(
        ValueError, match="normalisation 'bn' has no parameters that tell its place"
    ):
        chains.layer_scale_group(
            qn.ParameterLayout({"a.weight": (2, 2)}, {"bn.running_mean": (2,)})
        )


@pytest.mark.parametrize("dense", [0, 1024])
@pytest.mark.parametrize("tie", [1.0, 1e-4, 1e-8])
def test_the_weakest_direction(tie, dense, monkeypatch):
    """Units that feed each other strongly, and the outside weakly: their common scale."""
    monkeypatch.setattr("quotientnet.gram._DENSE", dense)
    layout = qn.ParameterLayout({"map": (30, 30), "out": (2, 30)})
    stream = qn.Unit(
        "stream",
        30,
        (qn.Scale("map", 0), qn.Scale("map", 1, -1), qn.Scale("out", 1, -1)),
    )
    group = qn.ScalingGroup.from_units(layout, [stream])
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(layout.size, generator=generator, dtype=torch.float64)
    weight[900:] *= tie
    gram = Gram(group, weight)
    matrix = gram.to_dense()
    scale = 1 / np.sqrt(np.diagonal(matrix))
    least = np.linalg.eigvalsh(scale[:, None] * matrix * scale)[0]
    assert 0.9 * least <= gram.weakest() + 1e-14 <= 1.5 * least + 2e-14
