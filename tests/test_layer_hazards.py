"""Models on which layer traces could be wrong without a word: right, or refused."""

import pytest
import torch
import torch.nn.functional as F
from architectures import Block, parameter
from torch import nn

import quotientnet as qn
from quotientnet.curvature import ggn_diagonal, ggn_traces, ggn_traces_estimate


def point_of(model, data, loss=None):
    """The model's own point; classes unless there is another loss."""
    model = model.double()
    objective = qn.Objective(model, loss or nn.CrossEntropyLoss(), data)
    return objective.at(objective.layout.flatten(model))


def samples(count=6, width=4, seed=0):
    """Seeded inputs and three classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (count,), generator=generator)


def layers(seed=0, **sizes):
    """Seeded linear layers by name."""
    torch.manual_seed(seed)
    return {name: nn.Linear(*size) for name, size in sizes.items()}


def seen_alone(function, **members):
    """``last(function(first(x)))``."""
    return Block(
        lambda m, x: m.last(function(m, m.first(x))),
        **layers(first=(4, 5), last=(5, 3)),
        **members,
    )


def centred(m, h):
    """Samples less the mean of the batch."""
    return (h - h.mean(0)).tanh()


COUPLED = {
    "sums so far": lambda m, h: h.tanh().cumsum(0),
    "a causal mixture": lambda m, h: torch.tril(torch.ones(len(h), len(h)).double())
    @ h,
    "the batch's mean": centred,
    "place in the batch": lambda m, h: h + torch.arange(len(h))[:, None],
    "sorted": lambda m, h: h.sort(0)[0],
}


@pytest.mark.parametrize("name", COUPLED)
def test_samples_that_interact_are_refused(name):
    point = point_of(seen_alone(COUPLED[name]), samples())
    with pytest.raises(ValueError, match="depend on other samples or on its place"):
        ggn_traces(point)


def test_they_are_refused_where_the_first_samples_are_one_or_equal():
    x, y = samples()
    alone = [(x[:1], y[:1]), (x[1:], y[1:])]
    equal = (torch.cat([x[:1].expand(3, -1), x[3:]]), y)
    for data in (alone, equal):
        with pytest.raises(ValueError, match="depend on other samples"):
            ggn_traces(point_of(seen_alone(centred), data))


def dense_traces(point):
    """The traces of the blocks of the dense matrix."""
    diagonal = point.ggn.to_dense().diagonal()
    return {e.name: float(diagonal[e.slice].sum()) for e in point.layout.entries}


def agree(point):
    """Traces and diagonal, against the matrix."""
    found = ggn_traces(point)
    for name, expected in dense_traces(point).items():
        assert found.traces[name].value == pytest.approx(expected, rel=1e-10, abs=1e-15)
    torch.testing.assert_close(
        ggn_diagonal(point), point.ggn.to_dense().diagonal(), rtol=1e-9, atol=1e-14
    )
    return found


def test_a_layer_that_only_later_samples_use_is_not_called_unused():
    def routed(m, x):
        first = x[:, :1] > 0
        out = torch.where(first, m.a(x), torch.zeros(len(x), 3).double())
        return out + (m.b(x) * ~first if bool((~first).any()) else 0)

    x, y = samples()
    x[:, 0] = torch.tensor([1, 1, 1, 1, -1, 1])
    point = point_of(Block(routed, **layers(a=(4, 3), b=(4, 3))), (x, y))
    with pytest.raises(ValueError, match="'b.weight' is used .* times by some samples"):
        ggn_traces(point, chunk=2)
    x[0, 0] = -1  # now the first ones use it
    assert agree(point_of(point.objective.model, (x[:4], y[:4]))).total.value > 0


def test_a_layer_that_later_batches_use_more_often_is_refused():
    def recurrent(m, x):
        h = torch.zeros(len(x), 3).double()
        for t in range(x.shape[1]):
            h = torch.tanh(x[:, t] + m.cell(h + 1))
        return h

    generator = torch.Generator().manual_seed(1)
    data = [
        (
            torch.randn(4, steps, 3, generator=generator).double(),
            torch.tensor([0, 1, 2, 0]),
        )
        for steps in (1, 3)
    ]
    point = point_of(Block(recurrent, **layers(cell=(3, 3))), data)
    with pytest.raises(ValueError, match="'cell.weight' is used"):
        ggn_traces(point)


def test_rows_whose_order_values_do_not_tell():
    """Time-major rows through a layer of zeros: all rows are equal."""

    def rows(m, x):
        h = m.b(x.transpose(0, 1).flatten(0, 1))
        gated = m.c(h) * x.transpose(0, 1).flatten(0, 1)
        return m.last(gated.unflatten(0, (3, -1)).mean(0))

    model = Block(rows, **layers(b=(4, 4), c=(4, 4), last=(4, 3)))
    nn.init.zeros_(model.b.weight)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    found = agree(point_of(model, (x, torch.tensor([0, 1, 2, 1, 0]))))
    assert (
        found.ways["c.weight"] == "per sample" and found.ways["last.weight"] == "linear"
    )


class Shy(torch.autograd.Function):
    """A user's function whose name is that of a linear one."""

    @staticmethod
    def forward(context, x):
        """A sigmoid."""
        y = x.sigmoid()
        context.save_for_backward(y)
        return y

    @staticmethod
    def backward(context, slope):
        """Its derivative."""
        (y,) = context.saved_tensors
        return slope * y * (1 - y)


Topk = type("Topk", (Shy,), {})


def test_a_users_function_is_not_taken_for_linear():
    point = point_of(seen_alone(lambda m, h: Topk.apply(h)), samples())
    for found in (agree(point), ggn_traces_estimate(point)):
        assert found.kinds["first.weight"] == "Gauss-Newton"
        assert found.kinds["last.weight"] == "Hessian"


def test_a_penalty_in_the_loss_is_no_part_of_the_gauss_newton_matrix():
    model = seen_alone(lambda m, h: h.relu())

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets) + 0.1 * (model.first.weight**2).sum()

    point = point_of(model, samples(), loss)
    for found in (agree(point), ggn_traces_estimate(point)):
        assert found.kinds["first.weight"] == "Gauss-Newton"
        assert found.kinds["last.weight"] == "Hessian"


def test_a_loss_sees_the_points_parameters():
    model = Block(lambda m, x: m.a(x), heat=parameter(1), **layers(a=(4, 3)))
    objective = qn.Objective(
        model.double(), lambda z, y: F.cross_entropy(z * model.heat, y), samples()
    )
    w = objective.layout.flatten(model)
    w[objective.layout["heat"].slice] = 3.0
    found = agree(objective.at(w))
    estimate = ggn_traces_estimate(objective.at(w), draws=400).traces["a.weight"]
    gap = abs(estimate.value - found.traces["a.weight"].value)
    assert gap < 4 * estimate.error


def test_an_input_that_is_as_long_as_the_batch_by_chance():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x, scale):
            return self.a(x) * scale

    x, y = samples(3)
    with pytest.raises(ValueError, match="failed on 2 samples .* Make it a buffer"):
        ggn_traces(point_of(Masked(), ((x, torch.ones(3).double()), y)))
