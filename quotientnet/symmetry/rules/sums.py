"""Rules of sums, maxima, pooling and interpolation: what is summed has one scale."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from quotientnet.symmetry.choices import Choice
from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import ZERO, LogScale, compact

__all__ = []


def _reduced(call, x, dim) -> LogScale:
    """``x`` with one scale along ``dim`` (all axes if ``None`` or empty), in the result's shape."""
    dims = [dim] if isinstance(dim, int) else list(dim or range(len(x.shape)))
    x = call.equations.uniform(x, dims)
    return x.map(lambda t: t.reshape(call.shape))


@rule(
    "aten::sum", "aten::mean", "aten::amax", "aten::amin", "aten::nansum", "aten::nanmean",
    "aten::std",
)  # fmt: skip
def reduction(call, x, dim=None, *args, **kwargs):
    """What is summed or compared has one scale."""
    return _reduced(call, x, None if isinstance(dim, bool) else dim)


@rule("aten::var")
def var(call, x, dim=None, *args, **kwargs):
    """Twice the scale of what is summed."""
    return 2 * reduction(call, x, dim)


@rule("aten::max", "aten::min", "aten::median", "aten::mode", "aten::nanmedian")
def extremum(call, x, dim=None, keepdim=False):
    """What is compared has one scale."""
    if isinstance(dim, (LogScale, Tensor)):
        return call.spread(call.equations.equal(call.scale(x), call.scale(dim)))
    return _reduced(call, x, dim) if dim is None else [_reduced(call, x, dim), None]


@rule("aten::aminmax")
def both_extrema(call, x, *, dim=None, keepdim=False):
    """What is compared has one scale."""
    x = _reduced(call, x, dim)
    return [x, x]


@rule("aten::quantile", "aten::nanquantile")
def quantile(call, x, q, dim=None, keepdim=False, **kwargs):
    """What is compared has one scale."""
    call.equations.pin(call.scale(q))
    x = call.equations.uniform(x, range(len(x.shape)) if dim is None else [dim])
    if dim is None:
        return call.spread(x.map(lambda t: t.reshape([1] * len(call.shape))))
    lead = len(getattr(q, "shape", ()))
    x = x if keepdim else x.map(lambda t: t.squeeze(dim))
    return call.spread(x.map(lambda t: t[(None,) * lead]))


@rule("aten::msort")
def msort(call, x):
    """What is compared has one scale."""
    return call.spread(call.equations.uniform(x, [0]))


@rule("aten::diff")
def difference(call, x, n=1, dim=-1, prepend=None, append=None):
    """Neighbours have one scale."""
    if prepend is not None or append is not None:
        return call.unsupported(x, prepend, append)
    return call.spread(call.equations.uniform(x, [dim]))


@rule("aten::trapezoid", "aten::trapz")
def trapezoid(call, x, *, dx=1, dim=-1):
    """What is summed has one scale."""
    return call.spread(call.equations.uniform(x, [dim]).map(lambda t: t.squeeze(dim)))


@rule("aten::argmax", "aten::argmin")
def position(call, x, dim=None, *args, **kwargs):
    """Unchanged by a scale common to what is compared."""
    call.equations.uniform(x, range(len(x.shape)) if dim is None else [dim])


@rule("aten::argsort")
def order(call, x, *args, **kwargs):
    """Overloads have their axis at different places; the last one is the default."""
    dims = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    call.equations.uniform(x, [kwargs.get("dim", dims[0] if dims else -1)])


@rule("aten::sort")
def sort(call, x, dim=-1, *args, **kwargs):
    """What is compared has one scale."""
    if (
        isinstance(x, Choice)
        and len(x.shape) == 1
        and not any((*args, *kwargs.values()))
    ):
        return [call.equations.choices.derived("values", x, *x.shape), None]
    return [call.spread(call.equations.uniform(x, [dim])), None]


@rule("aten::histc")
def histogram(call, x, bins=100, min=0, max=0):
    """Rounds to a fixed grid; counts of integers that the data choose remember them."""
    whole = isinstance(x, Choice) and (min, max) == (0, bins - 1)
    if whole and x.sorted and x.sorted[0] == "values":
        return call.equations.choices.derived("counts", x, bins)
    return call.pin(x)


@rule("aten::topk", "aten::kthvalue")
def topk(call, x, k, dim=-1, *args, **kwargs):
    """What is compared has one scale."""
    x = call.equations.uniform(x, [dim])
    if len(call.shape) < len(x.shape):
        x = x.map(lambda t: t.squeeze(dim))
    return [call.spread(x), None]


@rule("aten::cummax", "aten::cummin")
def cumulative_extremum(call, x, dim):
    """What is compared has one scale."""
    return [cumsum(call, x, dim), None]


@rule("aten::cumsum")
def cumsum(call, x, dim, **kwargs):
    """What is summed has one scale."""
    if isinstance(x, Choice) and x.sorted and x.sorted[0] == "counts":
        return call.equations.choices.derived("bounds", x, *x.shape)
    return call.spread(call.equations.uniform(x, [dim]))


@rule("aten::linalg_vector_norm", "aten::norm")
def norm(call, x, ord=2, dim=None, keepdim=False, **kwargs):
    """Homogeneous for orders other than 0, which counts."""
    return call.pin(x) if ord == 0 else _reduced(call, x, dim)


def _windows(call, x, dims, sizes, strides, padding, dilation=1) -> LogScale:
    """One scale in each window along the last ``dims`` axes; what lies outside fits any scale.

    Literally only where positions have scales of their own: else windows change nothing.
    """
    eq, axes = call.equations, range(-dims, 0)
    x = eq.simplify(eq.resolve(x))
    varies = any(max(compact(i).shape[-dims:]) > 1 for _, i in x.terms)
    if not varies or set(_each(dilation, dims)) != {1}:
        return eq.uniform(x, axes)
    sizes, padding = _each(sizes, dims), _each(padding, dims)
    strides = _each(strides, dims) if strides else sizes
    index = compact(eq.single(x).terms[0][1])
    index = index.expand(*index.shape[:-dims], *x.shape[-dims:])
    around = []  # the last windows may reach beyond the padding
    for n, out, size, stride, p in zip(
        x.shape[-dims:], call.shape[-dims:], sizes, strides, padding
    ):
        around = [p, max((out - 1) * stride + size - n - p, 0), *around]
    index = F.pad(index, around, value=ZERO)
    for axis, (size, stride) in enumerate(zip(sizes, strides)):
        index = index.unfold(len(x.shape) - dims + axis, size, stride)
    x = LogScale([(1, index)], (*x.shape[:-dims], *index.shape[-2 * dims :]))
    return eq.uniform(x, axes).map(lambda t: t[(..., *[0] * dims)])


def _each(value, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _pooling(dims: int) -> None:
    @rule(f"aten::max_pool{dims}d")
    def pool(call, x, size, stride=None, padding=0, dilation=1, ceil_mode=False):
        """One scale in each window."""
        return call.spread(_windows(call, x, dims, size, stride, padding, dilation))

    @rule(f"aten::avg_pool{dims}d")
    def average(call, x, size, stride=None, padding=0, *args):
        """One scale in each window."""
        return call.spread(_windows(call, x, dims, size, stride, padding))

    @rule(f"aten::max_pool{dims}d_with_indices")
    def pool_with_indices(call, x, *args, **kwargs):
        """One scale along the positions of a channel."""
        return [pool(call, x, *args, **kwargs), None]

    @rule(f"aten::adaptive_avg_pool{dims}d", f"aten::_adaptive_avg_pool{dims}d")
    def adaptive(call, x, size):
        """One scale along the positions of a channel."""
        if tuple(call.shape) == x.shape:
            return x
        return call.spread(call.equations.uniform(x, range(-dims, 0)))

    @rule(f"aten::adaptive_max_pool{dims}d")
    def adaptive_max(call, x, size):
        """One scale along the positions of a channel."""
        return [adaptive(call, x, size), None]

    @rule(f"aten::lp_pool{dims}d")
    def lp(call, x, *args, **kwargs):
        """One scale along the positions of a channel."""
        return call.spread(call.equations.uniform(x, range(-dims, 0)))


for _dims in (1, 2, 3):
    _pooling(_dims)


@rule(
    "aten::upsample_nearest1d", "aten::upsample_nearest2d", "aten::upsample_nearest3d",
    "aten::upsample_linear1d", "aten::upsample_bilinear2d", "aten::upsample_trilinear3d",
    "aten::upsample_bicubic2d", "aten::_upsample_nearest_exact1d",
    "aten::_upsample_nearest_exact2d", "aten::_upsample_nearest_exact3d",
    "aten::_upsample_bilinear2d_aa", "aten::_upsample_bicubic2d_aa",
)  # fmt: skip
def interpolate(call, x, *args, **kwargs):
    """One scale along the positions of a channel."""
    return call.spread(call.equations.uniform(x, range(2, len(x.shape))))


@rule("aten::var_mean")
def var_mean(call, x, dim=None, *args, **kwargs):
    """What is summed has one scale."""
    mean = reduction(call, x, dim)
    return [2 * mean, mean]


@rule("aten::std_mean")
def std_mean(call, x, dim=None, *args, **kwargs):
    """What is summed has one scale."""
    mean = reduction(call, x, dim)
    return [mean, mean]


@rule("aten::cosine_similarity")
def cosine_similarity(call, x, y, dim=1, eps=1e-8):
    """Each vector has one scale, which is forgotten."""
    for vector in (x, y):
        call.equations.uniform(call.scale(vector), [dim])
    call.eps = (eps, call.scale(x))
    return call.equations.pinned(*call.shape)


@rule("aten::pdist")
def distances_within(call, x, p=2):
    """All entries have one scale."""
    if p == 0:
        return call.pin(x)
    return call.spread(call.equations.uniform(x, [0, 1]).map(lambda t: t.reshape(1)))


@rule("aten::dist", "aten::cdist")
def distance(call, x, y, p=2, *args, **kwargs):
    """All entries have one scale along what is summed; what counts entries (order 0) is pinned."""
    if p == 0:
        return call.pin(x, y)
    eq, x, y = call.equations, call.scale(x), call.scale(y)
    if not call.shape:
        return eq.uniform(eq.equal(x, y), range(len(x.shape))).map(
            lambda t: t.reshape(())
        )
    x = eq.uniform(x, [-1])
    y = eq.uniform(y, [-1]).map(lambda t: t.transpose(-1, -2))
    return eq.equal(x, y)
