"""Rules of matrix products and convolutions: a sum of products has one scale for each result."""

from __future__ import annotations

from quotientnet.symmetry.choices import Choice
from quotientnet.symmetry.chosen import choose, for_each_choice, rows_and_columns
from quotientnet.symmetry.rules.registry import Call, rule
from quotientnet.symmetry.scales import LogScale, Unset

__all__ = ["axis_names"]


@rule("aten::linear")
def linear(call, x, weight, bias=None):
    """``W[o, i]`` has the scale of ``out_o / in_i``."""
    eq = call.equations
    if len(weight.shape) == 1:
        out = matmul(call, x, weight)
        return out if bias is None else eq.equal(out, call.scale(bias))
    out = eq.contract(
        call.scale(weight), call.scale(x).map(lambda t: t.unsqueeze(-2)), [-1]
    )
    out = out.map(lambda t: t.squeeze(-1))
    call.outputs = out
    out = call.spread(out)
    return out if bias is None else eq.equal(out, call.scale(bias))


@rule("aten::matmul", "aten::mm", "aten::bmm", "aten::mv", "aten::dot", "aten::vdot")
def matmul(call, x, y):
    """A sum of products has one scale for each result."""
    eq, x, y = call.equations, call.scale(x), call.scale(y)
    row, column = len(x.shape) == 1, len(y.shape) == 1
    x = x.map(lambda t: t.unsqueeze(0)) if row else x
    y = y.map(lambda t: t.unsqueeze(-1)) if column else y
    # (…, rows, 1, inner) times (…, 1, columns, inner), summed over the last axis.
    x = x.map(lambda t: t.unsqueeze(-2))
    y = y.map(lambda t: t.transpose(-1, -2).unsqueeze(-3))
    out = eq.contract(y, x, [-1]).map(lambda t: t.squeeze(-1))
    call.outputs = out
    if row:
        out = out.map(lambda t: t.squeeze(-2))
    if column:
        out = out.map(lambda t: t.squeeze(-1))
    return call.spread(out)


@rule("aten::addmm", "aten::baddbmm", "aten::addmv")
def addmm(call, bias, x, y, *, beta=1, alpha=1):
    """A product of matrices, and a term that has its scale."""
    if beta == 0:  # what is there is not even read
        return matmul(call, x, y)
    return call.equations.equal(matmul(call, x, y), call.scale(bias))


@rule("aten::addbmm")
def addbmm(call, bias, x, y, *, beta=1, alpha=1):
    """A sum of products of matrices, and a term that has its scale."""
    product = matmul(Call(call.equations, (x.shape[0], *call.shape)), x, y)
    product = call.equations.uniform(product, [0]).map(lambda t: t[0])
    return product if beta == 0 else call.equations.equal(product, call.scale(bias))


@rule("aten::linalg_multi_dot", "aten::chain_matmul")
def multi_dot(call, matrices):
    """Products one by one."""
    eq, out = call.equations, call.scale(matrices[0])
    for matrix in matrices[1:]:
        shape = (*out.shape[:-1], *matrix.shape[1:])
        out = matmul(Call(eq, shape), out, matrix)
    return out


@rule("aten::bilinear")
def bilinear(call, x, y, weight, bias=None):
    """``W[o, i, j]`` has the scale of ``out_o / (x_i y_j)``."""
    eq = call.equations
    x = eq.resolve(call.scale(x)).map(lambda t: t[..., None, :, None])
    y = eq.resolve(call.scale(y)).map(lambda t: t[..., None, None, :])
    out = eq.contract(call.scale(weight), x + y, [-1, -2]).map(lambda t: t[..., 0, 0])
    call.outputs = out = call.spread(out)
    return out if bias is None else eq.equal(out, call.scale(bias))


@rule("aten::outer", "aten::ger")
def outer(call, x, y):
    """Scales of factors multiply."""
    eq = call.equations
    x, y = (eq.resolve(call.scale(z)) for z in (x, y))
    return x.map(lambda t: t[:, None]) + y


@rule("aten::addr")
def addr(call, bias, x, y, *, beta=1, alpha=1):
    """Scales of factors multiply, and a term has the scale of the product."""
    product = outer(call, x, y)
    return product if beta == 0 else call.equations.equal(product, call.scale(bias))


@rule("aten::kron")
def kron(call, x, y):
    """Entry by entry of the first, all of the second."""
    eq = call.equations
    x, y = (eq.resolve(call.scale(z)) for z in (x, y))
    if len(x.shape) != len(y.shape):
        return call.unsupported(x, y)
    times = x.shape
    for axis, length in enumerate(y.shape):
        x = x.map(lambda t, a=axis, n=length: t.repeat_interleave(n, a))
    return x + y.map(lambda t: t.repeat(times))


@rule("aten::inner")
def inner(call, x, y):
    """A sum of products has one scale for each result."""
    y = call.scale(y)
    return matmul(call, x, y if len(y.shape) == 1 else y.map(lambda t: t.mT))


@rule("aten::embedding_bag", "aten::_embedding_bag")
def embedding_bag(call, weight, places, offsets, by_frequency=False, mode=0, sparse=False,
                  shares=None, *args):  # fmt: skip
    """What the data choose and add up has one scale, times that of its shares."""
    eq = call.equations
    out = eq.uniform(call.scale(weight), [0])
    if shares is not None:
        shares = eq.uniform(call.scale(shares), range(len(shares.shape)))
        out = out + shares.map(lambda t: t.reshape(1, 1))
    return [call.spread(out), None, None, None]


@rule("aten::tensordot")
def tensordot(call, x, y, dims_x, dims_y):
    """A sum of products has one scale for each result."""
    eq, x, y = call.equations, call.scale(x), call.scale(y)
    dims_x, dims_y = ([d % len(z.shape) for d in dims]
                      for z, dims in ((x, dims_x), (y, dims_y)))  # fmt: skip
    rows, columns = len(x.shape) - len(dims_x), len(y.shape) - len(dims_y)
    kept = [a for a in range(len(y.shape)) if a not in dims_y]
    x = x.map(lambda t: t.movedim(dims_x, list(range(rows, t.ndim))))
    x = x.map(lambda t: t[(slice(None),) * rows + (None,) * columns])
    y = y.map(lambda t: t.permute(kept + list(dims_y)))
    summed = range(-len(dims_x), 0)
    if not dims_x:
        return call.spread(eq.resolve(x) + eq.resolve(y))
    out = eq.contract(y, x, summed)
    return call.spread(out.map(lambda t: t[(..., *[0] * len(dims_x))]))


@rule("aten::linalg_vecdot")
def vecdot(call, x, y, *, dim=-1):
    """A sum of products has one scale for each result."""
    eq, x, y = call.equations, call.scale(x), call.scale(y)
    total = eq.uniform(eq.resolve(x) + eq.resolve(y), [dim])
    return call.spread(total.map(lambda t: t.squeeze(dim)))


@rule("aten::einsum")
def einsum(call, equation, tensors, **kwargs):
    """Sums of products with named axes; a name that one tensor has twice is its diagonal."""
    tensors = [call.scale(t) for t in tensors]
    names, output = axis_names(equation, [len(t.shape) for t in tensors])
    tensors = [_diagonals(t, own) for t, own in zip(tensors, names)]
    summed = sorted(set().union(*names) - set(output))
    letters = [*output, *summed]

    def align(x, own):
        present = [letter for letter in letters if letter in own]
        x = x.map(lambda t: t.permute([own.index(letter) for letter in present]))
        return x.map(
            lambda t: t[tuple(slice(None) if n in own else None for n in letters)]
        )

    tensors = [align(x, own) for x, own in zip(tensors, names)]
    if summed and len(tensors) == 2:
        out = call.equations.contract(*reversed(tensors), range(-len(summed), 0))
    else:
        total = sum(
            map(call.equations.resolve, tensors[1:]), call.equations.resolve(tensors[0])
        )
        out = call.equations.uniform(total, range(len(output), len(letters)))
    out = out.map(lambda t: t[(..., *[0] * len(summed))])
    call.outputs = call.spread(out)
    return call.outputs


def _diagonals(x: LogScale, own: list[str]) -> LogScale:
    """``x`` with each axis once; ``own``, the names of its axes, is changed with it."""
    while len(set(own)) < len(own):
        name = next(n for n in own if own.count(n) > 1)
        first = own.index(name)
        second = own.index(name, first + 1)
        x = x.map(lambda t, a=first, b=second: t.diagonal(0, a, b))
        own[:] = [n for a, n in enumerate(own) if a not in (first, second)] + [name]
    return x


def axis_names(equation: str, dims: list[int]) -> tuple[list[list[str]], list[str]]:
    """The names of the axes of each tensor and of the result, ``...`` spelled out."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    inputs = inputs.split(",")
    if not arrow:
        letters = sorted(set("".join(inputs)) - {",", "."})
        output = "..." * ("..." in equation) + "".join(
            n for n in letters if "".join(inputs).count(n) == 1
        )
    most = max(d - len(own.replace("...", "")) for d, own in zip(dims, inputs))

    def spelled(own: str, hidden: int) -> list[str]:
        before, dots, after = own.partition("...")
        dotted = [f"...{i}" for i in range(most - hidden, most)] if dots else []
        return [*before, *dotted, *after]

    hidden = [d - len(own.replace("...", "")) for d, own in zip(dims, inputs)]
    return [spelled(own, h) for own, h in zip(inputs, hidden)], spelled(output, most)


@rule("aten::embedding")
def embedding(call, weight, index, *args):
    """Rows read at places that the data choose have one scale."""
    weight = call.scale(weight)
    if not isinstance(index, LogScale):
        return weight.map(lambda t: t[index])
    if (
        isinstance(weight, Unset)
        and weight.leaf.known is None
        and weight.order() == [0, 1]
    ):
        rows_and_columns(call.equations, weight)
    places = index.map(lambda t: t.unsqueeze(-1))
    return call.spread(choose(call.equations, weight.map(lambda t: t.t()), places))


@rule("aten::_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_matmul(call, x, weights, offs=None, bias=None, out_dtype=None):
    """Rows of ``x``, in groups between bounds that the data choose, times one of many matrices."""
    eq = call.equations
    if len(x.shape) != 2 or len(weights.shape) != 3 or bias is not None:
        return call.unsupported(x, weights, offs, bias)
    if not isinstance(offs, Choice):
        offs = eq.choices.variables(len(weights))
    places = Choice(eq.choices.groups(offs, x.shape[0])[:, None])
    each = for_each_choice(eq, call.scale(x), places, weights.shape[0])
    # (experts, rows, outputs, inputs)
    weights = call.scale(weights).map(lambda t: t.transpose(1, 2).unsqueeze(1))
    out = eq.contract(weights, each.map(lambda t: t.unsqueeze(2)), [-1])
    call.outputs = out.map(lambda t: t[:, 0, :, 0].flatten())
    return call.spread(choose(eq, out.map(lambda t: t[..., 0].movedim(0, -1)), places))


@rule("aten::_weight_norm")
def weight_norm(call, direction, length, dim=0):
    """The scale of the length; each direction has one scale, which is forgotten."""
    axes = [a for a in range(len(direction.shape)) if a != dim] if dim >= 0 else None
    call.equations.uniform(
        direction, range(len(direction.shape)) if axes is None else axes
    )
    return LogScale(call.equations.resolve(call.scale(length)).terms, call.shape)


def _each(value, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _positions(call, x, dims, kernel, stride, padding):
    """``x`` of shape (N, channels, …) with one scale along axes that a kernel extends over."""
    padding = [1] * dims if isinstance(padding, str) else _each(padding, dims)
    single = [k == 1 and p == 0 for k, p in zip(kernel, padding)]
    x = call.equations.uniform(x, [a - dims for a in range(dims) if not single[a]])
    steps = [s if one else 1 for s, one in zip(_each(stride, dims), single)]
    return x.map(lambda t: t[(..., *(slice(None, None, s) for s in steps))])


def _convolution(dims: int) -> None:
    @rule(f"aten::conv{dims}d")
    def conv(call, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        """``W[o, i]`` has the scale of ``out_o / in_i``, the same at every place of the kernel."""
        weight, x = call.scale(weight), _batched(call.scale(x), dims)
        kernel = weight.shape[2:]
        x = _positions(call, x, dims, kernel, stride, padding)
        # W (groups, out, in, *kernel); x (N, *positions, groups, 1, in, *1)
        weight = weight.map(lambda t: t.reshape(groups, -1, *t.shape[1:]))
        x = x.map(lambda t: t.movedim(1, -1).unflatten(-1, (groups, -1)).unsqueeze(-2))
        x = x.map(lambda t: t[(..., *[None] * dims)])
        out = call.equations.contract(weight, x, range(-1 - dims, 0))
        out = out.map(lambda t: t[(..., *[0] * (1 + dims))].flatten(-2))
        return _convolved(call, out, dims, bias)

    @rule(f"aten::conv_transpose{dims}d")
    def transposed(
        call,
        x,
        weight,
        bias=None,
        stride=1,
        padding=0,
        output_padding=0,
        groups=1,
        dilation=1,
    ):
        """As convolution, the weight's first two axes exchanged."""
        weight, x = call.scale(weight), _batched(call.scale(x), dims)
        x = call.equations.uniform(x, range(-dims, 0))
        # W (groups, in, out, *kernel) -> (groups, out, in, *kernel)
        weight = weight.map(
            lambda t: t.reshape(groups, -1, *t.shape[1:]).transpose(1, 2)
        )
        x = x.map(lambda t: t.movedim(1, -1).unflatten(-1, (groups, -1)).unsqueeze(-2))
        x = x.map(lambda t: t[(..., *[None] * dims)])
        out = call.equations.contract(weight, x, range(-1 - dims, 0))
        out = out.map(lambda t: t[(..., *[0] * (1 + dims))].flatten(-2))
        return _convolved(call, out, dims, bias)


def _batched(x: LogScale, dims: int) -> LogScale:
    return x if len(x.shape) == dims + 2 else x.map(lambda t: t.unsqueeze(0))


def _convolved(call, out: LogScale, dims: int, bias) -> LogScale:
    """The result (N, *positions, channels) as (N, channels, *positions), with the bias."""
    call.outputs = out
    if bias is not None:
        out = call.equations.equal(out, call.scale(bias))
    out = out.map(lambda t: t.movedim(-1, 1))
    unbatched = len(call.shape) == dims + 1
    return LogScale(
        out.map(lambda t: t[0]).terms if unbatched else out.terms, call.shape
    )


for _dims in (1, 2, 3):
    _convolution(_dims)
