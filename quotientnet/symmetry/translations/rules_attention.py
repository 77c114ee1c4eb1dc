"""Rules on moves of convolutions, attention and products with named axes."""

from __future__ import annotations

import torch

from quotientnet.symmetry.rules.products import axis_names
from quotientnet.symmetry.translations.registry import shift_rule
from quotientnet.symmetry.translations.rules_products import contract, mapped
from quotientnet.symmetry.translations.shifts import Seen, Shift, Term

__all__ = []


def _convolution(dims: int) -> None:
    @shift_rule(f"conv{dims}d")
    def conv(call, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        """A shift of the inputs that is the same everywhere passes, without padding."""
        u, batched = call.unknowns, len(call.shape) == dims + 2
        outputs = call.shape[-1 - dims]
        total = Shift(call.shape)
        moving = isinstance(x, Shift) and x.terms
        u.pin(
            *(v for v in (x,) if isinstance(v, Seen)),
            *(v for v in (weight,) if isinstance(v, Shift)),
        )
        if isinstance(weight, Seen):
            rows = u.rows(weight, range(1, dims + 2))
            if rows is not None:
                lead = [*call.shape[: -1 - dims], groups, 1, *call.shape[-dims:]]
                each = [*lead[: -1 - dims], outputs // groups, *call.shape[-dims:]]
                site = u.sites(lead).expand(each).reshape(call.shape)
                ones = [1] * dims
                total = total + Shift(
                    call.shape, [Term(1.0, site, rows.view(-1, *ones))]
                )
        if moving and (
            _padded(padding) or not isinstance(weight, (Seen, torch.Tensor))
        ):
            u.pin(x)
        elif moving:
            total = total + _through_kernel(call, x, weight, dims, groups, batched)
        if bias is not None:
            own = call.shift(bias).map(lambda t: t.view(-1, *[1] * dims))
            total = total + call.spread(own)
        return total

    @shift_rule(f"conv_transpose{dims}d")
    def transposed(call, x, weight, bias=None, *args):
        """Only the bias moves anything."""
        total = call.pin(x, weight)
        if bias is not None:
            own = call.shift(bias).map(lambda t: t.view(-1, *[1] * dims))
            total = total + call.spread(own)
        return total


def _padded(padding) -> bool:
    if isinstance(padding, str):
        return padding != "valid"
    return any([padding] if isinstance(padding, int) else padding)


def _through_kernel(
    call, x: Shift, weight, dims: int, groups: int, batched: bool
) -> Shift:
    u = call.unknowns
    u.uniform(x, range(-dims, 0))
    x = x if batched else x.map(lambda t: t[None])
    first = (..., *[slice(0, 1)] * dims)
    # x (N, groups, 1, in, 1…), W (groups, out, in, kernel…)
    x = x.map(lambda t: t[first].unflatten(1, (groups, -1)).unsqueeze(2))
    split = lambda t: t.unflatten(0, (groups, -1))[None]  # noqa: E731
    weight = mapped(weight, split)
    x = Shift((*x.shape[:-dims], *weight.shape[-dims:]), x.terms)
    known = weight if isinstance(weight, Seen) else u.constant(weight)
    out = u.product(x, known, Shift(known.shape), range(-1 - dims, 0))
    # (N, groups, out, 1, 1…) -> (N, channels, 1…)
    out = out.map(lambda t: t.squeeze(3).flatten(1, 2))
    return call.spread(out if batched else out.map(lambda t: t[0]))


for _dims in (1, 2, 3):
    _convolution(_dims)


@shift_rule("scaled_dot_product_attention")
def attention(
    call, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None,
    enable_gqa=False,
):  # fmt: skip
    """Scores forget what is the same for all keys; values are averaged.

    A query whose keys are all masked gets zeros: if there may be one, values must not move.
    """
    u = call.unknowns
    query, key, value = (call.shift(x) for x in (query, key, value))
    if enable_gqa:
        heads = query.shape[-3]
        key, value = (
            x.map(lambda t: t.repeat_interleave(heads // t.shape[-3], -3))
            for x in (key, value)
        )
    pair = query.map(lambda t: t.unsqueeze(-2)), key.map(lambda t: t.unsqueeze(-3))
    scores = contract(call, *pair, [-1]).map(lambda t: t[..., 0])
    masked = attn_mask is not None and _may_mask_all(attn_mask)
    if attn_mask is not None:
        scores = scores + call.shift(attn_mask)
    u.uniform(scores, [-1], absorb=True)
    if dropout_p or masked:
        return call.pin(value)
    u.uniform(value, [-2])
    return call.spread(value.map(lambda t: t[..., :1, :]))


def _may_mask_all(mask) -> bool:
    """Whether a row of a mask may hide all keys; one that is a parameter hides none."""
    if isinstance(mask, Seen):
        if mask.leaf.name:
            return False
        mask = mask.leaf.value.reshape(-1)[mask.entries]
    if not isinstance(mask, torch.Tensor):
        return True  # the data decide
    hidden = ~mask if mask.dtype == torch.bool else mask == -torch.inf
    return bool(hidden.all(-1).any())


@shift_rule("einsum")
def einsum(call, equation, tensors, **kwargs):
    """Products of two values with named axes."""
    names, output = axis_names(equation, [len(t.shape) for t in tensors])
    if len(tensors) != 2 or any(len(set(own)) < len(own) for own in names):
        return call.pin(tensors)
    summed = sorted(set().union(*names) - set(output))
    letters = [*output, *summed]

    def aligned(own):
        present = [n for n in letters if n in own]
        axes = tuple(slice(None) if n in own else None for n in letters)
        return lambda t: t.permute([own.index(n) for n in present])[axes]

    pair = [mapped(x, aligned(own)) for x, own in zip(tensors, names)]
    if not summed:
        return call.pin(tensors)
    both = all(
        n in own for n in summed for own in names
    )  # one that only one of them has is summed by itself
    if not both:
        return call.pin(tensors)
    out = contract(call, *pair, range(-len(summed), 0))
    return call.spread(out.map(lambda t: t[(..., *[0] * len(summed))]))
