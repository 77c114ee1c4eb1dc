"""What the search for a group by derivatives is made of."""

import numpy as np
import torch
from architectures import ARCHITECTURES

import quotientnet as qn
from quotientnet.symmetry.assembly import redundant
from quotientnet.symmetry.candidates import candidate_scalings
from quotientnet.symmetry.derivative import Slopes
from quotientnet.symmetry.lattice import integer_rows, null_space, reduced, sparsest
from quotientnet.symmetry.replica import Replica


def test_candidates_that_others_make_up_for():
    for name in ("mlp", "grouped sink", "grouped transposed", "channel shuffle"):
        model = ARCHITECTURES[name].build()
        layout = qn.ParameterLayout.from_module(model)
        candidates = candidate_scalings(model, layout, False)
        for share in (1.1, 0.7, 0.3):
            noise = torch.rand(layout.size, generator=torch.Generator().manual_seed(0))
            live = (noise < share).numpy()
            dense = candidates.group.to_dense()[live]
            kept = ~redundant(candidates, live) & dense.any(0)
            assert np.linalg.matrix_rank(dense) == kept.sum()
            assert np.linalg.matrix_rank(dense[:, kept]) == kept.sum()


def test_several_sums_at_once_are_each_of_them():
    """The batched derivatives are those taken one by one, running statistics included."""
    for name in ("normalised mlp", "vgg, normalised", "instance normalisation"):
        model = ARCHITECTURES[name].build().train()
        replica = Replica(model, qn.ParameterLayout.from_module(model), "test")
        weights, slopes = {}, Slopes(replica)
        generator = torch.Generator().manual_seed(0)
        inputs = (ARCHITECTURES[name].inputs(),)

        def weigh(y, count):
            key = tuple(y.shape), len(weights)
            weights[key] = torch.randn((5, *y.shape), generator=generator).double()
            return weights[key][:count]

        together = slopes(replica.w, inputs, {}, weigh, 5)
        assert slopes._batched
        for number in range(5):
            parts = iter([weight[number] for weight in weights.values()])
            alone = slopes(replica.w, inputs, {}, lambda y, _: next(parts)[None])
            torch.testing.assert_close(
                together[number], alone[0], rtol=1e-10, atol=1e-12
            )


def test_sums_over_candidates_are_the_adjoint():
    for name in ("grouped sink", "grouped transposed", "normalised mlp", "einsum"):
        model = ARCHITECTURES[name].build()
        layout = qn.ParameterLayout.from_module(model)
        for entries in (True, False):
            candidates = candidate_scalings(model, layout, entries)
            rows = torch.randn(3, layout.size, dtype=torch.float64)
            expected = rows @ torch.from_numpy(candidates.group.to_dense())
            torch.testing.assert_close(candidates.sums(rows), expected)


def test_the_null_space_and_its_gap():
    generator = np.random.default_rng(0)
    basis = np.array([[1, 0, -2, 0, 1], [0, 1, 1, 0, 0]])
    q, _ = np.linalg.qr(basis.T, mode="complete")
    matrix = generator.normal(size=(9, 3)) @ q[:, 2:].T
    found = null_space(matrix)
    assert found.vectors.shape == (5, 2) and found.gap > 1e10
    rows, bad = integer_rows(found.vectors)
    assert not bad.any()
    rows = reduced(rows, np.arange(5))
    assert sorted((abs(r).tolist() for r in rows)) == sorted(abs(basis).tolist())
    assert not (matrix @ rows.T).round(9).any()
    assert null_space(matrix + 1e-10 * generator.normal(size=(9, 5))).gap < 1e11


def test_integer_rows():
    vectors = np.array(
        [[1, 1, 1.0, 1], [0.5, -1 / 3, 2**0.5, 1e-9], [0.25, 2, 0, 2000]]
    )
    rows, bad = integer_rows(vectors)
    assert rows[:2].tolist() == [[4, 2, 1], [3, -1, 6]]
    assert bad.tolist() == [False, False, True, True]


def test_the_sparsest_of_a_pool():
    mixed = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
    pool = np.concatenate(
        [mixed, [[1, 2, 1, 0], [1, 0, 0, 1], [1, 0, -1, 0]], 2 * mixed]
    )
    found = pool[sparsest(pool, 3, (pool != 0).sum(1))]
    assert found.shape == (3, 4) and np.linalg.matrix_rank(found) == 3
    assert (found != 0).sum() == 6
    assert np.linalg.matrix_rank(np.concatenate([mixed, found])) == 3
