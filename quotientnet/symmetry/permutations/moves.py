"""What operations that move entries do to axes."""

from __future__ import annotations

from collections.abc import Sequence

from quotientnet.symmetry.permutations.axes import (
    Axis,
    fix,
    fixed,
    joined,
    new,
    product,
    segment,
    unify,
)
from quotientnet.symmetry.permutations.registry import Axes, axis_rule

__all__ = []


@axis_rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel",
    "view_as", "reshape_as", "atleast_1d", "atleast_2d", "atleast_3d",
)  # fmt: skip
def reshape(steps, self, **arguments):
    """Axes whose lengths multiply to the same are the same."""
    return regrouped(self, steps.shape)


def regrouped(x: Sequence[Axis], shape: Sequence[int]) -> Axes:
    """``x`` in another shape of as many entries."""
    result, given, wanted = [], list(x), list(shape)
    while given or wanted:
        before, after = _next_group(given, wanted)
        if len(after) == 1:
            result.append(product(before))
        else:
            own = [new(n) for n in after]
            if before:
                unify(product(before), product(own))
            result += own
    return Axes(result)


def _next_group(given: list[Axis], wanted: list[int]) -> tuple[list[Axis], list[int]]:
    """The least number of first axes that have the same product, taken off both lists."""
    before, after = [], []
    left = right = 1
    if given:
        before.append(given.pop(0))
        left = before[0].size
    if wanted and (left > 1 or wanted[0] == 1 or not before):
        after.append(wanted.pop(0))
        right = after[0]
    while left != right:
        if left < right:
            before.append(given.pop(0))
            left *= before[-1].size
        else:
            after.append(wanted.pop(0))
            right *= after[-1]
    return before, after


@axis_rule("permute")
def permute(steps, self, dims):
    return Axes(self[d] for d in dims)


@axis_rule("transpose", "swapaxes", "swapdims")
def transpose(steps, **arguments):
    x, a, b = arguments.values()
    order = list(range(len(x)))
    if order:
        order[a], order[b] = order[b], order[a]
    return Axes(x[d] for d in order)


@axis_rule("t", "numpy_T")
def reverse(steps, self):
    return Axes(self[::-1])


@axis_rule("mT", "adjoint", "mH", "matrix_H")
def transpose_last(steps, self):
    return Axes((*self[:-2], self[-1], self[-2]))


@axis_rule("movedim", "moveaxis")
def movedim(steps, self, source, destination):
    source, destination = (
        [d] if isinstance(d, int) else d for d in (source, destination)
    )
    source, destination = ([d % len(self) for d in ds] for ds in (source, destination))
    order = [d for d in range(len(self)) if d not in source]
    for to, origin in sorted(zip(destination, source)):
        order.insert(to, origin)
    return Axes(self[d] for d in order)


@axis_rule("expand", "broadcast_to", "expand_as")
def expand(steps, self, *arguments, **options):
    lead = len(steps.shape) - len(self)
    return Axes(
        self[d - lead] if d >= lead and self[d - lead].size == n else new(n)
        for d, n in enumerate(steps.shape)
    )


@axis_rule("repeat", "tile")
def repeat(steps, self, **options):
    lead = len(steps.shape) - len(self)
    own = [*(new(1) for _ in range(max(lead, 0))), *self]
    return Axes(product([new(n // a.size), a]) for a, n in zip(own, steps.shape))


@axis_rule("repeat_interleave")
def repeat_interleave(steps, self, repeats, dim=None, **options):
    if not isinstance(repeats, int):
        return None
    own = Axes([product(self)]) if dim is None else self
    return Axes(
        a if a.size == n else product([a, new(n // a.size)])
        for a, n in zip(own, steps.shape)
    )


# -- parts of axes ---


@axis_rule("select")
def select(steps, self, dim, index):
    dim = dim % len(self)
    segment(self[dim], index % self[dim].size, 1)
    return Axes(a for d, a in enumerate(self) if d != dim)


@axis_rule("unbind")
def unbind(steps, self, dim=0):
    return [select(steps, self, dim, i) for i in range(self[dim].size)]


@axis_rule("slice")
def cut(steps, self, dim=0, start=None, end=None, step=1):
    if not self:
        return self
    dim, size = dim % len(self), self[dim].size
    start, end, step = slice(start, end, step).indices(size)
    if step != 1:
        fix(self[dim])
        own = fixed(steps.shape[dim])
    else:
        own = segment(self[dim], start, max(end - start, 0))
    return Axes(own if d == dim else a for d, a in enumerate(self))


@axis_rule("narrow")
def narrow(steps, self, dim, start, length):
    if not isinstance(start, int):
        return None
    return cut(steps, self, dim, start, start + length)


@axis_rule(
    "split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk",
    "unsafe_split_with_sizes", "hsplit", "vsplit", "dsplit",
)  # fmt: skip
def split(steps, self, dim=0, **options):
    dim = {"hsplit": 1 if len(self) > 1 else 0, "vsplit": 0, "dsplit": 2}.get(
        steps.name, dim
    )
    found, start = [], 0
    for shape in steps.shapes:
        found.append(cut(steps, self, dim, start, start + shape[dim]))
        start += shape[dim]
    return found


@axis_rule("cat", "concat")
def cat(steps, tensors, dim=0):
    tensors = [t for t in tensors if t.sizes != (0,)]
    dim = dim % len(tensors[0])
    for other in tensors[1:]:
        for d, (a, b) in enumerate(zip(tensors[0], other)):
            if d != dim:
                unify(a, b)
    whole = joined([t[dim] for t in tensors])
    return Axes(whole if d == dim else a for d, a in enumerate(tensors[0]))


@axis_rule("glu")
def glu(steps, self, dim=-1):
    """Two halves, entry by entry."""
    half = self[dim].size // 2
    value, gate = (segment(self[dim], start, half) for start in (0, half))
    unify(value, gate)
    return Axes(value if d == dim % len(self) else a for d, a in enumerate(self))


@axis_rule("view_as_complex")
def view_as_complex(steps, self):
    fix(self[-1])
    return Axes(self[:-1])


@axis_rule("view_as_real")
def view_as_real(steps, self):
    return Axes((*self, fixed(2)))


@axis_rule("stack")
def stack(steps, tensors, dim=0):
    dim = dim % (len(tensors[0]) + 1)
    tensors = [Axes((*t[:dim], fixed(1), *t[dim:])) for t in tensors]
    own = cat(steps, tensors, dim)
    return Axes(fixed(len(tensors)) if d == dim else a for d, a in enumerate(own))


@axis_rule("pad", "constant_pad_nd")
def pad(steps, self, pad, mode="constant", value=None):
    result = list(self)
    for number, (before, after) in enumerate(zip(pad[::2], pad[1::2])):
        d = len(self) - 1 - number
        if isinstance(mode, str) and mode != "constant" and (before or after):
            fix(self[d])
            result[d] = fixed(steps.shape[d])
            continue
        low, high = max(-before, 0), max(-after, 0)
        inner = segment(self[d], low, self[d].size - low - high)
        ends = fixed(max(before, 0)), fixed(max(after, 0))
        result[d] = joined([ends[0], inner, ends[1]])
    return Axes(result)


@axis_rule("flip", "roll", "tril", "triu", "rot90")
def ordered(steps, self, dims=None, **options):
    matrix = steps.name in ("tril", "triu")
    dims = (-1, -2) if matrix else range(len(self)) if not dims else dims
    for d in [dims] if isinstance(dims, int) else dims:
        fix(self[d])
    if steps.name == "rot90":
        return Axes(fixed(n) if a.fixed else a for a, n in zip(self, steps.shape))
    return self


@axis_rule("pixel_shuffle")
def pixel_shuffle(steps, self, upscale_factor):
    channel, places = new(steps.shape[-3]), fixed(upscale_factor)
    unify(self[-3], product([channel, places, fixed(upscale_factor)]))
    return Axes((*self[:-3], channel, *(fixed(n) for n in steps.shape[-2:])))


@axis_rule("pixel_unshuffle")
def pixel_unshuffle(steps, self, downscale_factor):
    places = fixed(downscale_factor), fixed(downscale_factor)
    own = product([self[-3], *places])
    return Axes((*self[:-3], own, *(fixed(n) for n in steps.shape[-2:])))


@axis_rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(steps, self, groups):
    group, own = new(groups), new(self[1].size // groups)
    unify(self[1], product([group, own]))
    return Axes((self[0], product([own, group]), *self[2:]))


# -- places that are given ---


@axis_rule("embedding")
def embedding(steps, weight, indices, **options):
    fix(weight[0])
    return Axes((*indices, weight[1]))


@axis_rule("index")
def index(steps, self, indices):
    """Advanced indexing by integers."""
    given = [d for d, i in enumerate(indices) if i is not None]
    if any(
        len(i) > 1
        and i.sizes == self.sizes[d : d + len(i)]
        and len(self) != len(steps.shape)
        and len(i) > len(steps.shape)
        for d, i in enumerate(indices)
        if i is not None
    ):
        return None
    for d in given:
        fix(self[d])
    lead = max(len(indices[d]) for d in given)
    adjacent = given == list(range(given[0], given[0] + len(given)))
    at = given[0] if adjacent else 0
    rest = [a for d, a in enumerate(self) if d not in given]
    if len(rest) + lead != len(steps.shape):
        return None  # masks
    shape, steps.shape = steps.shape, steps.shape[at : at + lead]
    places = steps.together(*(indices[d] for d in given))
    steps.shape = shape
    return Axes((*rest[:at], *places, *rest[at:]))


@axis_rule("index_select", "gather")
def index_along(steps, self, dim, index, **options):
    fix(self[dim])
    if steps.name == "gather":
        for d, (a, b) in enumerate(zip(self, index)):
            if d != dim % len(self) and a.size == b.size:
                unify(a, b)
        return steps.fresh(self)
    own = index[0] if index else fixed(1)
    return Axes(own if d == dim % len(self) else a for d, a in enumerate(self))
