"""Functions of torch beside its layers: the dimension by hand, sound, complete."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import Block, parameter
from torch import nn
from torch._higher_order_ops import associative_scan, scan, while_loop

import quotientnet as qn

FEW = torch.tensor([1, 2])
PLACES = torch.tensor([[0, 1, 1, 2, 2, 2]]).expand(6, -1)


def network(function):
    """``o(function(m, h))`` of six units ``h``; ``m.w`` and ``m.p`` are a matrix and a vector."""

    def forward(m, x):
        y = function(m, F.relu(m.a(x)))
        y = torch.view_as_real(y) if y.is_complex() else y
        return m.o(y.reshape(len(y) if y.ndim and len(y) == 6 else 1, -1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Block(
            forward, a=nn.Linear(4, 6), o=nn.LazyLinear(2), p=parameter(6), w=parameter(6, 6),
            r=nn.Linear(6, 6),
        )  # fmt: skip
        model(torch.randn(6, 4))
    return model.double()


def grid(h):
    """``h`` as six images of one channel."""
    return h.view(6, 1, 2, 3)


def short_time(m, h):
    window = torch.hann_window(4, dtype=h.dtype)
    frames = torch.stft(
        h.repeat(1, 3), 4, hop_length=2, window=window, return_complex=True
    )
    return frames.abs()


def vectors(h):
    """Two vectors of three for each sample."""
    return h[:, :3], h[:, 3:]


def two_draws(m, h):
    return F.gumbel_softmax(h, dim=1) + F.gumbel_softmax(h, dim=1)


FUNCTIONS = {
    # products along an axis: every factor has its scale
    "product": (6, lambda m, h: (h[:2, :2] + h[2:4, :2]).prod(0) * h[:1, :2]),
    "cumulative product": (6, lambda m, h: h[:, :3].cumprod(1)),
    # diagonals, matrices of blocks, sums of products
    "diagonal by names": (12, lambda m, h: torch.einsum("ii->i", m.w) * h),
    "trace by names": (5, lambda m, h: torch.einsum("bii->b", h[:, :4].view(6, 2, 2))),
    "trace": (7, lambda m, h: torch.trace(m.w) * h),
    "diagonal matrix": (12, lambda m, h: h @ torch.diag(m.p)),
    "diagonal embedded": (6, lambda m, h: h.diag_embed()),
    "matrix of blocks": (12, lambda m, h: h @ torch.block_diag(m.w[:3, :3], m.w[3:, 3:])),
    "product of tensors": (12, lambda m, h: torch.tensordot(h, m.w, 1)),
    "products of vectors": (7, lambda m, h: torch.linalg.vecdot(h, m.w)),
    "cross product": (4, lambda m, h: torch.linalg.cross(*vectors(h))),
    "sum of products of matrices": (0, lambda m, h: torch.addbmm(
        h, h.view(6, 1, 6).mT[:, :, :1], h.view(6, 1, 6))),
    # matrices: scales of rows and columns, less the one that goes from all of these to those
    "determinant": (6 + 11, lambda m, h: torch.linalg.det(m.w) * h),
    "log-determinant": (6 + 10, lambda m, h: torch.linalg.slogdet(m.w)[1] * h),
    "inverse": (6 + 6, lambda m, h: h @ torch.linalg.inv(m.w)),
    "solution": (6 + 6, lambda m, h: torch.linalg.solve(m.w, h.t()).t()),
    "triangular solution": (6 + 6, lambda m, h: torch.linalg.solve_triangular(
        m.w.tril(), h.t(), upper=False).t()),
    "Cholesky": (6 + 1, lambda m, h: h @ torch.linalg.cholesky(m.w @ m.w.t())),
    "orthogonal factor": (1 + 6, lambda m, h: h @ torch.linalg.qr(m.w)[0]),
    "triangular factor": (1 + 6, lambda m, h: h @ torch.linalg.qr(m.w)[1]),
    "singular values": (6 + 1, lambda m, h: torch.linalg.svdvals(m.w) * h),
    "eigenvalues": (6 + 1, lambda m, h: torch.linalg.eigvalsh(m.w + m.w.t()) * h),
    "norm of a matrix": (6 + 1, lambda m, h: torch.linalg.matrix_norm(m.w, 2) * h),
    "power of a matrix": (6 + 1, lambda m, h: h @ torch.linalg.matrix_power(m.w, 2)),
    # transforms
    "short-time transform": (1, short_time),
    "transform along an axis": (3, lambda m, h: torch.fft.fftn(h.view(6, 2, 3), dim=(1,)).abs()),
    "shifted": (6, lambda m, h: torch.fft.fftshift(h, 1)),
    "complex product": (9, lambda m, h: (
        torch.complex(h, h.flip(1)) * torch.complex(m.p, m.p)).abs()),
    "angle": (3, lambda m, h: torch.atan2(h, h.flip(1))),
    # grids
    "read at places": (1, lambda m, h: F.grid_sample(
        grid(h), torch.full((6, 2, 2, 2), 0.2).to(h), align_corners=False)),
    "read at learned places": (1 + 2, lambda m, h: F.grid_sample(
        m.w.view(1, 1, 6, 6), h[:, :4].reshape(1, 6, 2, 2), align_corners=False)),
    "read at a learned grid": (1, lambda m, h: F.grid_sample(
        grid(h), F.affine_grid(m.w.view(6, 2, 3), (6, 1, 2, 2), align_corners=False),
        align_corners=False)),
    "windows": (6, lambda m, h: F.unfold(grid(h), 2, padding=1)),
    "windows summed up": (4, lambda m, h: F.fold(h[:, :4, None].expand(6, 4, 2), (2, 3), 2)),
    # places
    "read where data say": (1, lambda m, h: torch.take_along_dim(h, h.argsort(1), 1)),
    "taken": (6, lambda m, h: h.take(torch.tensor([0, 3, 5]))),
    "filled": (6, lambda m, h: h.index_fill(1, FEW, 0.0)),
    "largest at places": (3, lambda m, h: torch.zeros_like(h).scatter_reduce(
        1, PLACES, h, "amax")),
    "summed up at places": (3, lambda m, h: torch.zeros_like(h).scatter_add(1, PLACES, h)),
    "a column written": (6, lambda m, h: torch.zeros_like(h).select_scatter(h[:, 0], 1, 2)),
    "columns written": (6, lambda m, h: torch.zeros_like(h).slice_scatter(h[:, :2], 1, 2, 4)),
    "a diagonal written": (6, lambda m, h: torch.zeros_like(h).diagonal_scatter(h[:, 0])),
    "pairs": (6, lambda m, h: torch.cartesian_prod(h[0], h[1])),
    # order, differences, distances
    "differences": (1, lambda m, h: h.diff(dim=1)),
    "area": (1, lambda m, h: torch.trapezoid(h, dim=1)),
    "quantile": (1, lambda m, h: h.quantile(0.4, dim=1)),
    "both extrema": (1, lambda m, h: h.aminmax(dim=1).max),
    "distances": (1, lambda m, h: F.pdist(h + m.p)),
    "absolute difference": (6, lambda m, h: F.l1_loss(h, m.r(h), reduction="none")),
    "squared difference": (6, lambda m, h: F.mse_loss(h, m.r(h), reduction="none")),
    # signs, counts
    "sign of another": (6, lambda m, h: h.copysign(m.p)),
    "counted": (6, lambda m, h: h * torch.count_nonzero(h, 1)[:, None]),
    "never infinite": (6, lambda m, h: torch.where(h.isinf(), 0.0, h)),
    "degrees": (6, lambda m, h: h.rad2deg()),
    # what pins, with its reason
    "random choice": (0, two_draws),
    "rounded to a grid": (0, lambda m, h: torch.fake_quantize_per_tensor_affine(
        h, 0.1, 0, 0, 255)),
    "a fixed norm": (0, lambda m, h: h.renorm(2, 0, 1.0)),
    "entropy": (0, lambda m, h: torch.special.entr(h)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name):
    dimension, function = FUNCTIONS[name]
    model, inputs = network(function), torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    group = symmetry.group
    assert not symmetry.unknown
    assert group.dimension == dimension
    exponents = group.exponents(torch.eye(dimension).double()) if dimension else None
    assert dimension == 0 or np.linalg.matrix_rank(exponents) == dimension
    qn.verify_sound(model, symmetry, inputs, second_inputs=inputs).require()
    qn.verify_complete(model, symmetry, inputs).require()


def test_a_matrix_exponential_is_scaled_as_a_change_of_basis():
    model, inputs = network(lambda m, h: h @ torch.matrix_exp(m.w)), torch.randn(6, 4)
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == 6
    # The exponential of a badly scaled matrix loses digits: two orders of magnitude will do.
    qn.verify_sound(model, symmetry, inputs, second_inputs=inputs, decades=2).require()
    qn.verify_complete(model, symmetry, inputs).require()


# -- loops ---


def looped(m, x):
    zeros = torch.zeros(6, 6, dtype=x.dtype)
    step = torch.tensor(0)
    _, h = while_loop(
        lambda n, h: n < 3, lambda n, h: (n + 1, F.relu(m.r(h) + m.a(x))), (step, zeros)
    )
    return m.o(h)


def unrolled(m, x):
    h = torch.zeros(6, 6, dtype=x.dtype)
    for _ in range(3):
        h = F.relu(m.r(h) + m.a(x))
    return m.o(h)


def scanned(m, x):
    def step(state, y):
        state = F.relu(m.r(state) + y)
        return state, 2 * state

    zeros = torch.zeros(6, 6, dtype=x.dtype)
    state, steps = scan(step, zeros, m.a(x).expand(3, -1, -1) * 1.0)
    return m.o(state) + m.o(steps.sum(0))


def combined(m, x):
    def combine(a, b):
        return a[0] * b[0], a[1] * b[0] + b[1]

    h = F.relu(m.a(x)).unsqueeze(0) * m.p[:3, None, None]
    _, y = associative_scan(combine, (h.sigmoid(), h * 2), 0, combine_mode="generic")
    return m.o(y.sum(0))


def mapped(m, x):
    return torch.vmap(lambda row: m.o(F.relu(m.a(row))))(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "forward, dimension", [(looped, 6), (scanned, 6), (combined, 1), (mapped, 6)]
)
def test_loops_and_mapped_axes(forward, dimension):
    def build(function):
        torch.manual_seed(0)
        return Block(
            function, a=nn.Linear(4, 6), r=nn.Linear(6, 6), o=nn.Linear(6, 2), p=parameter(6)
        ).double()  # fmt: skip

    model, inputs = build(forward), torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    assert symmetry.group.dimension == dimension and not symmetry.unknown
    qn.verify_sound(model, symmetry, inputs, second_inputs=inputs).require()
    twin = (
        build(unrolled) if forward is looped else model
    )  # autograd knows no such loop
    qn.verify_complete(twin, symmetry, inputs).require()
