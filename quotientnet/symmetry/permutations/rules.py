"""What operations on numbers do to axes: sums of products, normalisations, entry by entry."""

from __future__ import annotations

from quotientnet.symmetry.permutations.axes import fix, fixed, new, product, unify
from quotientnet.symmetry.permutations.registry import Axes, axis_rule
from quotientnet.symmetry.rules.elementwise import HOMOGENEOUS
from quotientnet.symmetry.rules.pins import CURVES
from quotientnet.symmetry.rules.products import axis_names

__all__ = []

BY_ENTRY = [*HOMOGENEOUS, *" ".join(CURVES.values()).split()] + (
    "add sub rsub mul multiply div divide true_divide maximum minimum fmax fmin lerp hypot where "
    "masked_fill addcmul addcdiv square sqrt rsqrt reciprocal pow float_power clamp clip clamp_min "
    "clamp_max threshold alpha_dropout feature_alpha_dropout sign sgn gt ge lt le eq ne copy "
    "to _to_copy type_as logical_and logical_or logical_not logical_xor bitwise_and bitwise_or "
    "bitwise_not atan2 floor_divide xlogy polar complex real imag conj _conj conj_physical "
    "resolve_conj resolve_neg angle native_dropout bernoulli heaviside logaddexp logaddexp2 isnan "
    "isinf isfinite"
).split()


@axis_rule(*BY_ENTRY)
def by_entry(steps, **arguments):
    """Broadcast, and combined entry by entry."""
    return steps.together(*(a for a in arguments.values() if isinstance(a, Axes)))


@axis_rule("prelu")
def prelu(steps, self, weight):
    if len(self) > 1 and weight.sizes != (1,):
        unify(self[1], weight[0])
    return self


@axis_rule(
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "fill", "zero"
)  # fmt: skip
def uniform(steps, **arguments):
    return Axes(new(n) for n in steps.shape)


@axis_rule("_assert_tensor_metadata", "_assert_async", "sym_size", "_assert_scalar")
def no_result(steps, **arguments):
    return None


# -- sums of products ---


@axis_rule("linear")
def linear(steps, input, weight, bias=None):
    unify(input[-1], weight[-1])
    if bias is not None:
        unify(bias[-1], weight[0])
    return Axes((*input[:-1], *weight[:-1]))


@axis_rule("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner")
def matmul(steps, **arguments):
    a, b = (x for x in arguments.values() if isinstance(x, Axes))
    if steps.name == "inner":
        b = Axes((*b[:-2], b[-1], b[-2])) if len(b) > 1 else b
    return _matmul(steps, a, b)


def _matmul(steps, a: Axes, b: Axes) -> Axes:
    unify(a[-1], b[-2] if len(b) > 1 else b[-1])
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    shape, count = steps.shape, len(rows) + len(columns)
    steps.shape = shape[: len(shape) - count]
    batch = steps.together(Axes(a[:-2]), Axes(b[:-2]))
    steps.shape = shape
    return Axes((*batch, *rows, *columns))


@axis_rule("addmm", "baddbmm", "addmv", "addbmm")
def addmm(steps, self, beta=1, alpha=1, **factors):
    out = _matmul(steps, *factors.values())
    return steps.together(out, self) if beta else out


@axis_rule("einsum")
def einsum(steps, equation, tensors, path=None):
    names, output = axis_names(equation, [len(t) for t in tensors])
    found = {}
    for own, tensor in zip(names, tensors):
        for name, axis in zip(own, tensor):
            if axis.size > 1 or name not in found:
                if name in found and found[name].size > 1:
                    unify(found[name], axis)
                found[name] = axis
    return Axes(found[name] for name in output)


@axis_rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_matmul(steps, offs=None, bias=None, out_dtype=None, **factors):
    x, weights = factors.values()
    if len(x) != 2 or len(weights) != 3 or bias is not None:
        return None
    fix(weights[0])
    unify(x[1], weights[1])
    return Axes((x[0], weights[2]))


@axis_rule("scaled_dot_product_attention")
def attention(steps, query, key, value, attn_mask=None, enable_gqa=False, **options):
    unify(query[-1], key[-1])
    if enable_gqa and query[-3].size != key[-3].size:
        shared = new(query[-3].size // key[-3].size)
        key, value = (
            Axes((*x[:-3], product([x[-3], shared]), *x[-2:])) for x in (key, value)
        )
    scores = (*query.sizes[:-1], key[-2].size)
    shape, steps.shape = steps.shape, scores
    ends = query[-2], key[-2]
    tensors = [Axes((*x[:-2], *ends)) for x in (query, key, value)]
    whole = steps.together(*tensors, *([attn_mask] if attn_mask is not None else []))
    steps.shape = shape
    unify(key[-2], value[-2])
    steps.noted.append(whole)
    if options.get("is_causal"):
        fix(query[-2]), fix(key[-2])
    return Axes((*whole[:-2], query[-2], value[-1]))


def _convolution(dims: int) -> None:
    def grouped(weight: Axes, groups: int):
        """Outputs and inputs of a group, as factors with the number of the group."""
        group, own = new(groups), new(weight[0].size // groups)
        unify(weight[0], product([group, own]))
        return group, own

    def spatial(steps, input, weight, kernel_from):
        for axis in weight[kernel_from:]:
            fix(axis)
        lead = len(steps.shape) - dims
        for axis in input[lead:]:
            fix(axis)
        return [fixed(n) for n in steps.shape[lead:]]

    @axis_rule(f"conv{dims}d")
    def conv(steps, input, weight, bias=None, groups=1, **options):
        channel = len(input) - dims - 1
        group, _ = grouped(weight, groups)
        unify(input[channel], product([group, weight[1]]))
        if bias is not None:
            unify(bias[0], weight[0])
        places = spatial(steps, input, weight, 2)
        return Axes((*input[:channel], weight[0], *places))

    @axis_rule(f"conv_transpose{dims}d")
    def transposed(steps, input, weight, bias=None, groups=1, **options):
        channel = len(input) - dims - 1
        group, _ = grouped(weight, groups)
        unify(input[channel], weight[0])
        out = product([group, weight[1]])
        if bias is not None:
            unify(bias[0], out)
        places = spatial(steps, input, weight, 2)
        return Axes((*input[:channel], out, *places))


for _dims in (1, 2, 3):
    _convolution(_dims)


# -- normalisations ---


@axis_rule("batch_norm", "instance_norm")
def batch_norm(
    steps, input, weight=None, bias=None, running_mean=None, running_var=None, **options
):
    for vector in (weight, bias, running_mean, running_var):
        if vector is not None:
            unify(input[1], vector[0])
    others = [d for d in range(len(input)) if d != 1]
    if steps.name == "instance_norm":
        others = others[1:]
    return steps.mixed(input, others)


@axis_rule("layer_norm", "rms_norm")
def layer_norm(steps, input, normalized_shape, weight=None, bias=None, **options):
    count = len(normalized_shape)
    for vector in (weight, bias):
        if vector is not None:
            for a, b in zip(input[-count:], vector):
                unify(a, b)
    return steps.mixed(input, range(-count, 0))


@axis_rule("group_norm")
def group_norm(steps, input, num_groups, weight=None, bias=None, **options):
    group, own = new(num_groups), new(input[1].size // num_groups)
    unify(input[1], product([group, own]))
    for vector in (weight, bias):
        if vector is not None:
            unify(input[1], vector[0])
    steps.noted.append(Axes((input[0], group)))
    return input


@axis_rule("_weight_norm")
def weight_norm(steps, v, g, dim=0):
    if dim < 0:
        return steps.mixed(v, range(len(v)))
    unify(v[dim], g[dim])
    return steps.mixed(v, [d for d in range(len(v)) if d != dim])


@axis_rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def softmax(steps, self, dim, **options):
    return steps.mixed(self, [dim])


@axis_rule("cumsum", "cumprod", "logcumsumexp")
def cumulative(steps, self, dim, **options):
    return steps.mixed(self, [dim], ordered=True)


@axis_rule(
    "sum", "mean", "amax", "amin", "nansum", "nanmean", "std", "var", "norm", "linalg_vector_norm",
    "logsumexp", "prod", "all", "any", "max", "min", "median", "argmax", "argmin", "var_mean",
    "std_mean", "count_nonzero",
)  # fmt: skip
def reduction(steps, self, dim=None, other=None, **options):
    """Symmetric in the places that it goes over, but for the number of one of them."""
    if isinstance(dim, Axes) or isinstance(other, Axes):
        return steps.together(self, dim if other is None else other)
    whole = dim is None or dim == [] or isinstance(dim, bool)
    dims = range(len(self)) if whole else [dim] if isinstance(dim, int) else dim
    dims = {d % len(self) for d in dims} if self else set()
    counts = steps.name in ("argmax", "argmin") or (
        len(steps.shapes) > 1 and not steps.name.endswith("_mean")
    )
    steps.mixed(self, dims, ordered=counts)
    if len(steps.shape) == len(self):
        own = Axes(new(1) if d in dims else a for d, a in enumerate(self))
    else:
        own = Axes(a for d, a in enumerate(self) if d not in dims)
    return own if len(steps.shapes) == 1 else [own] * len(steps.shapes)


@axis_rule("topk", "sort", "argsort", "kthvalue", "cummax", "cummin")
def sorting(steps, self, dim=-1, **options):
    steps.mixed(self, [dim], ordered=True)
    if len(steps.shape) < len(self):
        own = Axes(a for d, a in enumerate(self) if d != dim % len(self))
    else:
        own = steps.fresh(self)
    return own if len(steps.shapes) == 1 else [own] * len(steps.shapes)


def _pooling(dims: int) -> None:
    names = [
        f"{kind}_pool{dims}d"
        for kind in ("max", "avg", "adaptive_avg", "_adaptive_avg", "lp")
    ]
    names += [f"max_pool{dims}d_with_indices", f"adaptive_max_pool{dims}d"]
    ways = ("nearest", "linear", "bilinear", "bicubic", "trilinear")
    names += [f"upsample_{way}{dims}d" for way in ways] + [
        f"_upsample_nearest_exact{dims}d"
    ]

    @axis_rule(*names)
    def pool(steps, **arguments):
        x = next(iter(arguments.values()))
        steps.mixed(x, range(-dims, 0), ordered=True)
        own = Axes((*x[:-dims], *(fixed(n) for n in steps.shape[-dims:])))
        return own if len(steps.shapes) == 1 else [own] * len(steps.shapes)


for _dims in (1, 2, 3):
    _pooling(_dims)
